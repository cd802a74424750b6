"""Split a minibatch over ranks and into forward passes of bounded size.

Padding is the largest waste on short texts, so rows of like length go together.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import LongTensor, Tensor

from rayrlhf.errors import ConfigError


def microbatches(
    lengths: Tensor | Sequence[int], token_budget: int, world_size: int, rank: int, packed: bool = False
) -> list[LongTensor]:
    """Row numbers of this rank's forward passes: rows of like length, tokens <= `token_budget` with their
    padding, or without it where rows are `packed`.

    `lengths` [B] are those of the whole minibatch, alike on every rank.  Every row goes to exactly
    one rank, passes have like costs, and every rank gets the same number of microbatches: a rank
    with fewer fills up with empty ones, because ZeRO 2 and 3 communicate in every pass.
    Raises ConfigError when one row alone exceeds the budget.
    """
    sizes = [int(n) for n in lengths]
    longest = max(sizes, default=0)
    if longest > token_budget:
        raise ConfigError(
            f"a row of {longest} tokens does not fit microbatch_tokens={token_budget} "
            "(a preference pair counts both texts): raise microbatch_tokens or lower max_tokens"
        )
    order = sorted(range(len(sizes)), key=lambda row: (-sizes[row], row))
    num_each = -(-len(_fill(order, sizes, token_budget, packed)) // world_size)
    # as many passes of like cost: the smallest budget that still needs no more of them
    low, high = longest, token_budget
    while low < high:
        middle = (low + high) // 2
        if len(_fill(order, sizes, middle, packed)) <= num_each * world_size:
            high = middle
        else:
            low = middle + 1
    passes = _fill(order, sizes, high, packed)
    mine = passes[rank::world_size]
    mine += [[]] * (num_each - len(mine))
    return [torch.tensor(rows, dtype=torch.long) for rows in mine]  # type: ignore[misc]


def _fill(rows: list[int], sizes: list[int], token_budget: int, packed: bool) -> list[list[int]]:
    """Rows, longest first, one after the other into bins of what the budget allows."""
    bins: list[list[int]] = []
    used = 0
    for row in rows:
        more = used + sizes[row] if packed else sizes[bins[-1][0]] * (len(bins[-1]) + 1) if bins else 0
        if bins and more <= token_budget:
            bins[-1].append(row)
            used += sizes[row]
        else:
            bins.append([row])
            used = sizes[row]
    return bins


def pad(rows: Sequence[Sequence[int]], device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Rows of numbers -> (i64[B, T] right-padded with 0, lengths i64[B]); T >= 1 also for no rows."""
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.long)
    out = torch.zeros((len(rows), max([1, *map(len, rows)])), dtype=torch.long)
    for index, row in enumerate(rows):
        out[index, : len(row)] = torch.as_tensor(row, dtype=torch.long)
    return out.to(device), lengths.to(device)
