"""Packed rows against padded ones: the same numbers and gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from rayrlhf.models import forward
from rayrlhf.models.causal_lm import load_causal_lm
from rayrlhf.models.scalar import load_scalar, sequence_scores
from rayrlhf.training.losses import LOSSES
from rayrlhf.training.microbatches import pad

ROWS = [[5, 6, 7, 8, 9, 10], [40], [40, 41, 42], [7, 7]]


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2"])
def test_packed_is_padded(kind: str, tiny_model: Callable[[str], str]) -> None:
    padded, packed = load_causal_lm(tiny_model(kind)), load_causal_lm(tiny_model(kind))
    forward.use_packing(packed)
    tokens, lengths = pad(ROWS)
    real = torch.arange(tokens.shape[1]) < lengths[:, None]
    with torch.no_grad():
        one, other = (forward.causal_logits(model, tokens, lengths) for model in (padded, packed))
    torch.testing.assert_close(other[real], one[real], atol=1e-5, rtol=1e-5)
    assert not other[~real].any()
    rows = [{"input_ids": row, "loss_mask": [True] * len(row)} for row in ROWS]
    for model in (padded, packed):
        LOSSES["text"].shares(model, rows, 8, torch.device("cpu"))["loss"].backward()
    for (name, mine), theirs in zip(packed.named_parameters(), padded.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-5, rtol=1e-4, msg=name)


def test_a_row_sees_only_itself(tiny_model: Callable[[str], str]) -> None:
    model = load_causal_lm(tiny_model("llama"))
    forward.use_packing(model)
    with torch.no_grad():
        before = forward.causal_logits(model, *pad(ROWS))[2, :3]
        after = forward.causal_logits(model, *pad([[99, 98], [40], [40, 41, 42], [1]]))[2, :3]
    torch.testing.assert_close(after, before, atol=1e-5, rtol=0)


def test_packed_scores_and_no_rows(tiny_model: Callable[[str], str]) -> None:
    torch.manual_seed(0)
    model = load_scalar(tiny_model("qwen3"))
    tokens, lengths = pad(ROWS)
    with torch.no_grad():
        scores = sequence_scores(model, tokens, lengths)
        forward.use_packing(model)
        torch.testing.assert_close(sequence_scores(model, tokens, lengths), scores, atol=1e-6, rtol=1e-5)
    none = sequence_scores(model, *pad([]))
    none.sum().backward()
    assert none.shape == (0,) and all(p.grad is not None for p in model.parameters()), "collectives still run"
