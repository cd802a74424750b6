"""Cutting a batch into pieces for the model, and passes without gradients over all of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rayrlhf.algorithms.logprobs import chosen_logprobs
from rayrlhf.batches import Rollouts
from rayrlhf.models.forward import chosen_logits
from rayrlhf.training.microbatches import microbatches


def minibatches(num_rows: int, size: int, seed: int, step: int, epoch: int) -> Iterator[Tensor]:
    """Row numbers of each minibatch of one epoch: a permutation fixed by (seed, step, epoch), so the
    same on every rank and after a resume.  The last one is shorter when `size` does not divide."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + step) * 1_009 + epoch)
    yield from torch.randperm(num_rows, generator=generator).split(size)


def piece(batch: Any, rows: Tensor, device: torch.device) -> Any:
    """`rows` (maybe none) of any batch with `lengths`, on `device`, without all-padding columns."""
    chosen = batch.rows(rows)
    longest = int(chosen.lengths.max()) if len(rows) else 1
    tensors = {}
    for name, (_, dims) in chosen.SHAPES.items():
        tensor = getattr(chosen, name)
        tensors[name] = (tensor[:, :longest] if dims == "B,T" else tensor).to(device)
    return replace(chosen, **tensors)


@torch.no_grad()
def token_pass(
    rollouts: Rollouts,
    compute: Callable[[Rollouts], Tensor],
    token_budget: int,
    device: torch.device,
    world_size: int = 1,
    rank: int = 0,
    is_packed: bool = False,
) -> Tensor:
    """`compute(piece)` (f32 `[b, t]`, one number a token; b may be 0) over this rank's share of the rows.

    Pieces hold at most `token_budget` tokens, padding not counted where `is_packed`.  Returns f32 `[B, T]` on the CPU
    in the rows' order; rows of other ranks and padding are 0, so the sum over ranks is the whole.
    """
    out = torch.zeros(rollouts.tokens.shape, dtype=torch.float32)
    for rows in microbatches(rollouts.lengths, token_budget, world_size, rank, is_packed):
        answer = compute(piece(rollouts, rows, device)).float().cpu()
        out[rows, : answer.shape[1]] = answer
    return out


def response_logprobs(model: Any, part: Any, temperature: float) -> Tensor:
    """log_softmax(logits / temperature) of each response token, f32 `[b, t]`, 0 elsewhere.

    `part`: any batch with tokens, lengths and response_mask.
    """
    mask = part.response_mask
    logits = chosen_logits(model, part.tokens, part.lengths, mask)
    return spread(chosen_logprobs(logits, part.tokens[mask], temperature), mask)


def spread(values: Tensor, mask: Tensor) -> Tensor:
    """`values` `[n]` at the n True places of `mask` bool`[B, T]`, 0 elsewhere."""
    out = values.new_zeros(mask.shape)
    out[mask] = values
    return out
