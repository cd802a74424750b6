"""The engine: the same numbers whatever the split, the ranks and the ZeRO stage."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rayrlhf.errors import RayRLHFError
from rayrlhf.training.config import EngineConfig
from rayrlhf.training.microbatches import microbatches, pad
from tests.training.ranks import run_ranks

STEPS, LR = 3, 0.5
SPLITS = [(stage, budget) for stage in (0, 1, 2, 3) for budget in (40, 1000)]


def tied_llama() -> Any:
    """131,072 numbers in its embedding: over ZeRO 3's threshold, so really partitioned."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=512,
            hidden_size=256,
            num_hidden_layers=1,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=64,
            tie_word_embeddings=True,
        )
    )


def rows() -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(2, 30, (9,), generator=generator)
    return [torch.randint(0, 512, (int(n),), generator=generator).tolist() for n in lengths]


def mean_loss(model: Any, texts: list[list[int]], num_tokens: int) -> Tensor:
    from rayrlhf.models.forward import causal_logits

    tokens, lengths = pad(texts)
    logits = causal_logits(model, tokens, lengths)
    logprobs = logits[:, :-1].log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0]
    real = torch.arange(1, tokens.shape[1]) < lengths[:, None]
    return -torch.where(real, logprobs, 0.0).sum() / num_tokens


def three_steps(engine: Any, budget: int) -> list[dict[str, float]]:
    data = rows()
    num_tokens = sum(len(row) - 1 for row in data)

    def loss_fn(numbers: Tensor) -> tuple[Tensor, dict[str, Any]]:
        loss = mean_loss(engine.module, [data[n] for n in numbers], num_tokens)
        return loss, {"loss": loss, "rows": len(numbers), "largest_max": len(numbers)}

    lengths = [len(row) for row in data]
    return [
        engine.optimizer_step(microbatches(lengths, budget, engine.world_size, engine.rank), loss_fn)
        for _ in range(STEPS)
    ]


def train(rank: int, splits: list[tuple[int, int]]) -> list[Any]:
    from rayrlhf.training.engine import Engine

    results = []
    for stage, budget in splits:
        config = EngineConfig(optimizer="sgd", lr=LR, zero_stage=stage, min_lr_ratio=1, grad_clip=0.5)
        engine = Engine(tied_llama(), config, STEPS)
        stats = three_steps(engine, budget)
        buckets = list(engine.weight_buckets(100_000))
        weights = {name: t for bucket in buckets for name, t in (bucket or {}).items()}
        results.append((stats, weights, [None if b is None else list(b) for b in buckets]))
    return results


def plain_torch() -> tuple[list[float], list[float], dict[str, Tensor]]:
    model, data = tied_llama(), rows()
    losses, norms = [], []
    for _ in range(STEPS):
        loss = mean_loss(model, data, sum(len(row) - 1 for row in data))
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= LR * parameter.grad
                parameter.grad = None
        losses.append(float(loss.detach()))
    return losses, norms, {name: p.detach() for name, p in model.named_parameters()}


@pytest.mark.parametrize("world_size", [1, 2])
def test_same_weights_for_any_split_ranks_and_zero_stage(world_size: int, tmp_path: Path) -> None:
    losses, norms, weights = plain_torch()
    ranks = run_ranks(train, world_size, tmp_path, SPLITS)
    for split, (stats, trained, names) in zip(SPLITS, ranks[0], strict=True):
        assert [s["loss"] for s in stats] == pytest.approx(losses, abs=1e-5), split
        assert [s["optim/grad_norm"] for s in stats] == pytest.approx(norms, rel=1e-5), split
        assert [s["rows"] for s in stats] == [9.0] * 3
        assert stats[0]["largest_max"] <= 9 and stats[0]["optim/lr"] == LR
        assert trained.keys() == weights.keys()  # tied embeddings once
        gap = max(float((trained[name] - weights[name]).abs().max()) for name in weights)
        assert gap < 1e-5, (split, gap)
        assert len(names) > 1
    for other in ranks[1:]:
        for (stats, _, names), (first_stats, _, first_names) in zip(other, ranks[0], strict=True):
            assert stats == first_stats
            assert names == [None] * len(first_names)


def resume(rank: int, folder: str, stage: int) -> dict[str, float]:
    from rayrlhf.training.engine import Engine

    config = EngineConfig(lr=0.01, zero_stage=stage, warmup_steps=2)
    engine = Engine(tied_llama(), config, 6)
    three_steps(engine, 60)
    engine.save_state(folder)
    state = torch.get_rng_state()
    expected = three_steps(engine, 60)
    fresh = Engine(tied_llama(), config, 6)
    torch.manual_seed(99)
    fresh.load_state(folder)
    assert torch.equal(torch.get_rng_state(), state) and fresh.step == 3
    actual = three_steps(fresh, 60)
    gaps = [abs(a[name] - e[name]) for a, e in zip(actual, expected, strict=True) for name in e]
    assert engine.step == fresh.step == 6
    return {"gap": max(gaps), "learnt": expected[0]["loss"] - expected[-1]["loss"]}


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_a_restored_engine_goes_on_as_if_never_stopped(stage: int, tmp_path: Path) -> None:
    for result in run_ranks(resume, 2, tmp_path, str(tmp_path / "state"), stage):
        assert result["gap"] == 0.0 and result["learnt"] > 0


def scaled_loss(rank: int, stage: int, factor: float) -> tuple[str, float]:
    from rayrlhf.training.engine import Engine

    engine = Engine(tied_llama(), EngineConfig(optimizer="sgd", lr=0.1, zero_stage=stage), 1)
    before = next(iter(engine.module.parameters())).detach().clone()
    try:
        engine.optimizer_step([0], lambda _: (mean_loss(engine.module, rows(), 1) * factor, {}))
        message = ""
    except RayRLHFError as error:
        message = str(error)
    return message, float((next(iter(engine.module.parameters())).detach() - before).abs().max())


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_gradients_that_are_not_finite_stop_the_run(stage: int, tmp_path: Path) -> None:
    [(message, change)] = run_ranks(scaled_loss, 1, tmp_path, stage, math.nan)
    assert "gradient norm of optimizer step 0" in message and "engine.lr" in message
    assert change == 0.0


def settings(rank: int) -> dict[str, Any]:
    from rayrlhf.training.engine import Engine

    found: dict[str, Any] = {}
    # weight decay: with a zero gradient AdamW moves only what is decayed, by lr * weight_decay
    engine = Engine(tied_llama(), EngineConfig(lr=0.1, weight_decay=0.5, zero_stage=0), 1)
    before = {name: p.detach().clone() for name, p in engine.module.named_parameters()}
    engine.optimizer_step([0], lambda _: (mean_loss(engine.module, rows(), 1) * 0.0, {}))
    after = dict(engine.module.named_parameters())
    found["decayed"] = {n: torch.allclose(after[n], before[n] * 0.95, atol=1e-7) for n in before}
    found["kept"] = {n: torch.equal(after[n], before[n]) for n in before}
    for precision in ("float32", "bf16"):
        engine = Engine(tied_llama(), EngineConfig(precision=precision), 1)
        with engine.eval_mode():
            found[precision] = engine.module(input_ids=torch.tensor([rows()[0]])).logits.dtype
        found[precision, "training"] = engine.module.training
        found[precision, "weights"] = next(engine.module.parameters()).dtype
    engine = Engine(tied_llama(), EngineConfig(zero_stage=3), 1)
    found["sum"] = engine.evaluate([1, 2, 3], lambda n: {"sum": n, "top_max": n})
    return found


def test_settings_take_effect(tmp_path: Path) -> None:
    [found] = run_ranks(settings, 1, tmp_path)
    vectors = {name for name in found["kept"] if "norm" in name}
    assert vectors and {name for name, kept in found["kept"].items() if kept} == vectors
    assert {name for name, decayed in found["decayed"].items() if decayed} == found["kept"].keys() - vectors
    assert found["float32"] == torch.float32 and found["bf16"] == torch.bfloat16
    assert found["bf16", "weights"] == torch.float32 and found["bf16", "training"]
    assert found["sum"] == {"sum": 6.0, "top_max": 3.0}


def saved(rank: int, folder: str, tiny: str, stage: int) -> Tensor:
    from rayrlhf.models.causal_lm import load_causal_lm, load_tokenizer
    from rayrlhf.training.engine import Engine

    engine = Engine(load_causal_lm(tiny), EngineConfig(zero_stage=stage, lr=0.05), 1)
    tokens = torch.arange(10)[None]
    engine.optimizer_step([0], lambda _: (engine.module(input_ids=tokens, labels=tokens).loss / 2, {}))
    engine.save_model(folder, load_tokenizer(tiny))
    with engine.eval_mode():
        return engine.module(input_ids=tokens).logits


@pytest.mark.parametrize(("kind", "stage"), [("qwen3", 3), ("gpt2", 2)])
def test_a_saved_model_loads_with_plain_transformers(
    kind: str, stage: int, tiny_model: Callable[[str], str], tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    logits = run_ranks(saved, 2, tmp_path, str(tmp_path / "model"), tiny_model(kind), stage)[0]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=torch.arange(10)[None]).logits, logits, atol=1e-5, rtol=0)
        before = AutoModelForCausalLM.from_pretrained(tiny_model(kind))
        assert not torch.allclose(before(input_ids=torch.arange(10)[None]).logits, logits, atol=1e-2)
    assert AutoTokenizer.from_pretrained(tmp_path / "model").chat_template
