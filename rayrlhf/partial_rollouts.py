"""Partial rollouts: a long response is sampled in parts, each by newer weights (Kimi k1.5, arXiv 2501.12599, 2.6.2).

    batch j      | part 1 of its responses | part 2 of those that have not ended | ...
    batch j + 1                            | part 1                              | part 2 ...

A row of `Rollouts` that has neither ended nor reached the length limit is *cut*; its next part is sampled after all of
its tokens so far, whose keys and values the newer weights compute anew.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from rayrlhf.batches import Part, Prompts, Rollouts


def num_parts(max_new_tokens: int, part_tokens: int) -> int:
    """Of the longest response."""
    return -(-max_new_tokens // part_tokens)


def cut_rows(rollouts: Rollouts, max_new_tokens: int) -> Tensor:
    """i64[rows]: those that go on."""
    return (~rollouts.finished & (_sampled(rollouts) < max_new_tokens)).nonzero()[:, 0]


def first_parts(prompts: Prompts, part_tokens: int) -> tuple[Prompts, Part]:
    """What an engine is asked for new prompts."""
    return prompts, Part.of_all(len(prompts), part_tokens)


def next_parts(rollouts: Rollouts, rows: Tensor, part_tokens: int, max_new_tokens: int) -> tuple[Prompts, Part]:
    """What an engine is asked for cut rows, i64[rows]: their tokens so far stand as prompts."""
    cut = rollouts.rows(rows)
    begun = _sampled(cut)
    prompts = Prompts(cut.tokens, cut.lengths, cut.prompt_index)
    return prompts, Part(begun, (max_new_tokens - begun).clamp(max=part_tokens))


def joined(rollouts: Rollouts, rows: Tensor, more: Rollouts) -> Rollouts:
    """The batch with the parts `more` of its rows, i64[rows].  A response's version stays that of its first part."""
    count, padded = len(rollouts), Rollouts.concat([rollouts, more])
    old, new = padded.rows(slice(count)), padded.rows(slice(count, None))
    before = old.response_mask[rows]
    new = replace(
        new,
        response_mask=before | new.response_mask,
        sampled_logprobs=torch.where(before, old.sampled_logprobs[rows], new.sampled_logprobs),
        policy_version=old.policy_version[rows],
    )
    order = torch.arange(count).index_copy(0, rows, count + torch.arange(len(more)))
    return Rollouts.concat([old, new]).rows(order)


def partial_share(rollouts: Rollouts, part_tokens: int) -> float:
    """Of the responses, those that more than one part was sampled of."""
    return float((_sampled(rollouts) > part_tokens).float().mean())


def next_part_at(batches: dict[int, Rollouts], max_new_tokens: int, part_tokens: int) -> int | None:
    """At which step's turn the cut rows of `batches` (by step) go on; None where no row is cut.

    Each turn gives a row one part, from its own step's on, so its length tells.
    """
    for step, batch in batches.items():
        for row in cut_rows(batch, max_new_tokens)[:1].tolist():
            return step + int(_sampled(batch)[row]) // part_tokens
    return None


def _sampled(rollouts: Rollouts) -> Tensor:
    """i64[B]: tokens of each response so far."""
    return rollouts.response_mask.sum(1)
