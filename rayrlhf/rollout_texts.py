"""Rollouts as text."""

from __future__ import annotations

from typing import Any

from rayrlhf.batches import Rollouts


def texts_of(rollouts: Rollouts, tokenizer: Any) -> tuple[list[str], list[str]]:
    """(prompts, responses) as text, special tokens left out."""
    prompts, responses = [], []
    for tokens, length, mask in zip(rollouts.tokens, rollouts.lengths, rollouts.response_mask, strict=True):
        start = int(length) - int(mask.sum())
        prompts.append(tokenizer.decode(tokens[:start], skip_special_tokens=True))
        responses.append(tokenizer.decode(tokens[start : int(length)], skip_special_tokens=True))
    return prompts, responses
