"""The engine with an adapter: only it learns, the merged weights are the same at any ZeRO stage and number of ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rayrlhf.models.peft_config import PeftConfig
from rayrlhf.training.config import EngineConfig
from tests.training.ranks import run_ranks
from tests.training.test_engine import mean_loss, rows, three_steps, tied_llama

# rank 400 makes lora_A of 102,400 numbers: over ZeRO 3's threshold, so really partitioned
CONFIGS = {
    "lora": PeftConfig(rank=400, alpha=400.0),
    "ia3": PeftConfig(kind="ia3"),
    "prompt_tuning": PeftConfig(kind="prompt_tuning", num_virtual_tokens=3),
    "prefix_tuning": PeftConfig(kind="prefix_tuning", num_virtual_tokens=3),
}
MERGED = ("lora", "ia3")
LR = {"lora": 0.05, "ia3": 0.5}


def engine_of(kind: str, **config: Any) -> Any:
    from rayrlhf.models.adapters import with_adapter
    from rayrlhf.training.engine import Engine

    model = tied_llama()
    torch.manual_seed(1)
    return Engine(with_adapter(model, CONFIGS[kind]), EngineConfig(**{"min_lr_ratio": 1, **config}), 6)


def whole(engine: Any) -> dict[str, Tensor]:
    return {name: t for bucket in engine.weight_buckets(100_000) for name, t in (bucket or {}).items()}


def logits(engine: Any) -> Tensor:
    with engine.eval_mode():
        return engine.module(input_ids=torch.tensor([rows()[1]])).logits


def train(rank: int, stages: list[int]) -> list[Any]:
    from rayrlhf.models.adapters import adapter_off

    results = []
    for stage in stages:
        for kind in MERGED:
            engine = engine_of(kind, optimizer="sgd", lr=LR[kind], zero_stage=stage, grad_clip=0.5)
            before = logits(engine)
            stats = three_steps(engine, 60)
            with adapter_off(engine.module):
                off = logits(engine)
            stats += three_steps(engine, 60)  # an adapter that was off goes on learning
            results.append((stats, whole(engine), before, off, logits(engine)))
    return results


def by_plain_torch(kind: str) -> tuple[list[dict[str, float]], dict[str, Tensor], Tensor]:
    """(statistics, merged weights, trained logits) of the same six steps on one process."""
    from rayrlhf.models.adapters import whole_weights, with_adapter

    model, data, stats = tied_llama(), rows(), []
    torch.manual_seed(1)
    model = with_adapter(model, CONFIGS[kind])
    trained = [p for p in model.parameters() if p.requires_grad]
    for _ in range(6):
        loss = mean_loss(model, data, sum(len(row) - 1 for row in data))
        loss.backward()
        norm = float(torch.nn.utils.clip_grad_norm_(trained, 0.5))
        with torch.no_grad():
            for parameter in trained:
                parameter -= LR[kind] * parameter.grad
                parameter.grad = None
        stats.append({"loss": float(loss.detach()), "optim/grad_norm": norm})
    with torch.no_grad():
        logits = model.eval()(input_ids=torch.tensor([rows()[1]])).logits
    return stats, {w.name: w.whole() for w in whole_weights(model)}, logits


@pytest.mark.parametrize("world_size", [1, 2])
def test_same_merged_weights_for_any_ranks_and_zero_stage(world_size: int, tmp_path: Path) -> None:
    stages = [0, 1, 2, 3] if world_size == 2 else [0, 3]
    results = run_ranks(train, world_size, tmp_path, stages)[0]
    plain = {name: p.detach() for name, p in tied_llama().named_parameters()}
    expected = {kind: by_plain_torch(kind) for kind in MERGED}
    cases = [(stage, kind) for stage in stages for kind in MERGED]
    for (stage, kind), (stats, weights, before, off, after) in zip(cases, results, strict=True):
        steps, expected_weights, expected_logits = expected[kind]
        for name in ("loss", "optim/grad_norm"):
            assert [s[name] for s in stats] == pytest.approx([s[name] for s in steps], rel=1e-4), (stage, kind)
        assert stats[-1]["loss"] < stats[0]["loss"] - 1e-3
        assert torch.equal(before, off), "with the adapter off it is the start model, to the bit"
        torch.testing.assert_close(after, expected_logits, atol=1e-4, rtol=0)
        assert weights.keys() == plain.keys()
        moved = {name for name in plain if not torch.equal(weights[name], plain[name])}
        ends = ("k_proj", "v_proj", "down_proj") if kind == "ia3" else ("_proj",)
        assert moved == {name for name in plain if name.removesuffix(".weight").endswith(ends)}
        gap = max(float((weights[name] - expected_weights[name]).abs().max()) for name in plain)
        assert gap < 1e-5, (stage, kind, gap)


def resume(rank: int, folder: str, cases: list[tuple[int, str]]) -> list[dict[str, Any]]:
    results = []
    for number, (stage, kind) in enumerate(cases):
        state, config = f"{folder}/{number}", {"lr": 0.01, "zero_stage": stage, "warmup_steps": 2, "weight_decay": 0.1}
        engine = engine_of(kind, **config)
        three_steps(engine, 60)
        engine.save_state(state)
        stats, outputs = three_steps(engine, 60), whole(engine) | {"logits": logits(engine)}
        fresh = engine_of(kind, **config)
        fresh.load_state(state)
        is_same = three_steps(fresh, 60) == stats
        again = whole(fresh) | {"logits": logits(fresh)}
        is_same &= all(torch.equal(tensor, outputs[name]) for name, tensor in again.items())
        size = sum(path.stat().st_size for path in Path(state).rglob("*.safetensors"))
        results.append({"is_same": is_same, "size": size, "learnt": stats[0]["loss"] - stats[-1]["loss"]})
    return results


def test_a_restored_adapter_goes_on_as_if_never_stopped(tmp_path: Path) -> None:
    cases = [(0, "ia3"), (1, "lora"), (2, "ia3"), (3, "lora"), (3, "ia3"), (1, "prompt_tuning"), (3, "prefix_tuning")]
    base = sum(p.numel() * 4 for p in tied_llama().parameters())
    for rank in run_ranks(resume, 2, tmp_path, str(tmp_path / "state"), cases):
        for case, result in zip(cases, rank, strict=True):
            assert result["is_same"] and result["learnt"] > 0, case
            assert case[1] != "ia3" or result["size"] < base / 2, "the frozen weights are not written again"
