"""Scores shifted by the head's weights: demonstrations average 0 in what plain transformers loads, on any ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from rayrlhf.models.peft_config import PeftConfig
from rayrlhf.models.scalar import HEAD
from rayrlhf.training.config import EngineConfig
from tests.conftest import byte_tokenizer
from tests.training.ranks import run_ranks

LORA = "lora"  # at ZeRO 3
TEXTS = [[5, *range(9, 12 + n % 7), 20 + n, 258] for n in range(24)]
ROWS = [{"input_ids": text, "loss_mask": [False] * 2 + [True] * (len(text) - 2)} for text in TEXTS]


def write_reward_model(folder: Path) -> str:
    """Its embedding is over ZeRO 3's threshold, so really partitioned; scores far from 0."""
    from transformers import LlamaConfig, LlamaForSequenceClassification

    torch.manual_seed(0)
    size = {"vocab_size": 512, "hidden_size": 256, "intermediate_size": 64, "num_hidden_layers": 1}
    model = LlamaForSequenceClassification(
        LlamaConfig(**size, num_attention_heads=4, num_labels=1, pad_token_id=256, initializer_range=0.1)
    )
    torch.nn.init.normal_(model.score.weight, mean=0.05)
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return str(folder)


def shifted(rank: int, folder: str, out: str, stages: tuple[Any, ...]) -> list[Any]:
    from rayrlhf.models.adapters import with_adapter
    from rayrlhf.models.causal_lm import load_tokenizer
    from rayrlhf.models.scalar import load_scalar, sequence_scores
    from rayrlhf.training.demonstrations import head_shift
    from rayrlhf.training.engine import Engine
    from rayrlhf.training.microbatches import pad

    found = []
    for stage in stages:
        model = with_adapter(load_scalar(folder), PeftConfig(rank=2) if stage == LORA else None)
        engine = Engine(model, EngineConfig(zero_stage=3 if stage == LORA else stage, precision="bf16"), 1)
        before = engine.whole_weights()
        shift = head_shift(engine, ROWS, token_budget=60)
        engine.save_model(f"{out}/{stage}/model", load_tokenizer(folder), shift.applied(engine.whole_weights()))
        with engine.eval_mode(), torch.autocast("cpu", enabled=False):
            seen = sequence_scores(shift.view(engine.module), *pad(TEXTS))
        after = engine.whole_weights()
        assert all(torch.equal(after[name], tensor) for name, tensor in before.items()), "training goes on as it was"
        found.append((shift.weights, shift.metrics, seen))
    return found


def plain_scores(folder: str) -> Tensor:
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        return torch.cat([model(torch.tensor([text])).logits[:, 0] for text in TEXTS])


@pytest.mark.parametrize("world_size", [1, 2])
def test_demonstrations_average_zero_in_the_saved_model(world_size: int, tmp_path: Path) -> None:
    folder, stages = write_reward_model(tmp_path / "start"), (0, 1, 2, 3, LORA)
    ranks = run_ranks(shifted, world_size, tmp_path, folder, str(tmp_path), stages)
    raw = plain_scores(folder)
    assert abs(float(raw.mean())) > 0.2, "or there would be nothing to shift"
    for number, stage in enumerate(stages):
        weights, metrics, seen = ranks[0][number]
        scores = plain_scores(f"{tmp_path}/{stage}/model")
        assert float(scores.mean()) == pytest.approx(0, abs=1e-5), stage
        assert metrics["eval/demonstration_score"] == pytest.approx(float(raw.mean()), abs=1e-5)
        torch.testing.assert_close(seen, scores, atol=1e-4, rtol=0)
        torch.testing.assert_close(weights, ranks[0][0][0], atol=1e-5, rtol=0)
        for other in ranks[1:]:
            assert torch.equal(other[number][0], weights) and other[number][1] == metrics
        # every score loses the mean, but for what is told as noise; these texts are those the shift was made of
        lost = raw - scores - float(raw.mean())
        assert 0 < float(lost.pow(2).mean().sqrt()) < metrics["eval/demonstration_noise"] < abs(float(raw.mean()))
    adapter = load_file(tmp_path / LORA / "adapter" / "adapter_model.safetensors")
    head = load_file(tmp_path / LORA / "model" / "model.safetensors")[HEAD]
    assert torch.equal(adapter[f"base_model.model.{HEAD}"], head), "the adapter's own folder has the same head"
