"""The engine: the same numbers whatever the split, the ranks and the ZeRO stage."""

from __future__ import annotations

import gc
import importlib
import math
import sys
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from rayrlhf.training import engine as engine_module
from rayrlhf.training.config import EngineConfig, GuardConfig
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


def rows(seed: int = 1) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
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


FAULTS = {
    "loss nan": "the loss is nan",
    "gradient nan": "the gradient norm is nan",
    "loss spike": "above its bound",
    "gradient spike": "the gradient norm ",
}


def faulty(loss: Tensor, fault: str) -> Tensor:
    """`loss` with `fault`: in its value, or in its gradient alone."""
    kind, what = fault.split()
    if kind == "gradient":
        factor = math.nan if what == "nan" else 1000.0
        loss.register_hook(lambda gradient: gradient * factor)
        return loss
    return loss + (math.nan if what == "nan" else 1000.0)


def one_step(engine: Any, seed: int, fault: str = "") -> dict[str, float]:
    """A step on rows of their own, several microbatches a rank; the fault is in one of the last rank's."""
    data = rows(seed)
    num_tokens = sum(len(row) - 1 for row in data)
    mine = microbatches([len(row) for row in data], 60, engine.world_size, engine.rank)
    assert len(mine) > 1
    is_bad = engine.rank == engine.world_size - 1 and bool(fault)

    def loss_fn(numbers: Tensor) -> tuple[Tensor, dict[str, Any]]:
        loss = mean_loss(engine.module, [data[n] for n in numbers], num_tokens)
        return (faulty(loss, fault) if is_bad and torch.equal(numbers, mine[0]) else loss), {"loss": loss}

    return engine.optimizer_step(mine, loss_fn, f"minibatch {seed}")


def skipping(rank: int) -> dict[tuple[int, str], Any]:
    from rayrlhf.training.engine import Engine

    found: dict[tuple[int, str], Any] = {}
    for stage in (0, 1, 2, 3):
        guard = GuardConfig(bound=20, window=2)
        config = EngineConfig(lr=0.05, zero_stage=stage, warmup_steps=1, guard=guard)
        for fault in ("", *FAULTS):
            engine = Engine(tied_llama(), config, 6)
            one_step(engine, 1)
            one_step(engine, 2)
            bad = one_step(engine, 3, fault) if fault else {}
            problem, count = engine.problem, (engine.guard.num_skipped, engine.guard.num_in_row)
            good = [one_step(engine, seed) for seed in (4, 5)]
            assert engine.guard.num_in_row == 0 and not engine.problem
            buckets = list(engine.weight_buckets(1 << 30))
            weights = {name: t for bucket in buckets for name, t in (bucket or {}).items()}
            found[stage, fault] = problem, count, bad, good, weights, engine.step, list(engine.recent)
    return found


def test_a_skipped_step_leaves_no_trace_at_any_zero_stage(tmp_path: Path) -> None:
    """Weights, Adam's moments (the step after next), gradients and learning rate: as if never seen, to the bit."""
    ranks = run_ranks(skipping, 2, tmp_path)
    for stage in (0, 1, 2, 3):
        clean = ranks[0][stage, ""]
        assert clean[5] == 4
        for fault, message in FAULTS.items():
            problem, count, bad, good, weights, steps, recent = ranks[0][stage, fault]
            assert message in problem and count == (1, 1), (stage, fault)
            assert bad["optim/skipped_steps"] == 1 and bad["optim/lr"] == good[0]["optim/lr"]
            assert [s.pop("optim/skipped_steps") for s in good] == [1, 1]
            assert good == [{k: v for k, v in s.items() if k != "optim/skipped_steps"} for s in clean[3]]
            assert all(torch.equal(weights[name], tensor) for name, tensor in clean[4].items()), (stage, fault)
            assert steps == 4
            assert f"skipped, as {problem}" in recent[2] and recent[3].endswith("taken")
            assert ranks[1][stage, fault][0] == problem


def after_a_fault(rank: int) -> list[tuple[list[str], bool]]:
    """What is wrong with a step after a skipped one, whose loss uses only the embedding; and whether a
    closed engine's weights are gone."""
    from rayrlhf.training.engine import Engine

    def two_steps(stage: int) -> tuple[list[str], Any]:
        engine, problems = Engine(tied_llama(), EngineConfig(zero_stage=stage), 6), []
        one_step(engine, 1, "gradient nan")
        problems.append(engine.problem)
        embedding, tokens = engine.module.get_input_embeddings(), torch.tensor([rows(2)[0]])
        engine.optimizer_step([0], lambda _: (embedding(tokens).mean(), {}))
        problems.append(engine.problem)
        engine.close()
        return problems, weakref.ref(embedding.weight)

    found = []
    for stage in (0, 1, 2, 3):
        problems, weight = two_steps(stage)
        gc.collect()
        found.append((problems, weight() is None))
    return found


def test_what_the_next_loss_does_not_use_keeps_nothing_of_a_fault(tmp_path: Path) -> None:
    [found] = run_ranks(after_a_fault, 1, tmp_path)
    assert [problems for problems, _ in found] == [["the gradient norm is nan", ""]] * 4
    assert all(is_gone for _, is_gone in found[:3]), "at ZeRO 3 DeepSpeed's own caches keep it"


def as_on_cuda(device: str = "cpu", asked: Callable[[str], bool] = torch.is_autocast_enabled) -> bool:
    """Asked without a device, it speaks of the one that is trained on."""
    return asked(device)


def seen(found: dict[str, Any], engine: Any, _: int) -> tuple[torch.Tensor, dict[str, Any]]:
    logits = engine.module(input_ids=torch.tensor([rows()[0]])).logits
    found[engine.config.precision, "step"] = logits.dtype
    return logits.float().mean(), {}


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
        # DeepSpeed's forward asks for CUDA's autocast, and would switch off one that is around it
        with patch("torch.is_autocast_enabled", as_on_cuda):
            engine.optimizer_step([0], partial(seen, found, engine))
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
    assert found["float32", "step"] == torch.float32 and found["bf16", "step"] == torch.bfloat16
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


def test_a_hidden_module_is_not_installed_until_it_is_shown_again():
    sys.modules.pop("colorsys", None)
    with engine_module._hidden("colorsys"), pytest.raises(ImportError):
        importlib.import_module("colorsys")
    shown = importlib.import_module("colorsys")
    with engine_module._hidden("colorsys"):  # one that is there stays
        assert importlib.import_module("colorsys") is shown
    assert sys.modules["colorsys"] is shown
