"""How a linear head without a bias gives all scores a constant less.

A score is w . h.  If v . h were 1 for every text, the head w - c v would give each c less.  No v does that
in general; `unit_direction` finds the nearest one, and says how near.
"""

from __future__ import annotations

import torch
from torch import Tensor

_RIDGES = tuple(10.0**power for power in range(-6, 2))  # as shares of the mean squared hidden state


def unit_direction(whole: Tensor, cut: Tensor) -> tuple[Tensor, float]:
    """(v, deviation): v f64 `[D]` whose mean of v . h over `whole` is exactly 1, and which is as near to 1 as can
    be everywhere; the root mean square of v . h - 1 on whole texts that v was not made of.

    whole, cut: hidden states `[N, D]` of N >= 4 texts and of the same texts cut short (the states of
    end tokens alone would say nothing of texts that the length limit has cut).
    v is ridge regression of the constant 1 on all of them, rescaled.  Of several ridges the one is taken that
    errs least on the half it was not fitted to: without one, fewer texts than dimensions would be
    fitted to the letter and all others missed.  Raises ValueError for other shapes and a mean state of 0.

    Source: Hoerl and Kennard 1970, "Ridge Regression"; what for: Ouyang et al. 2022 (InstructGPT), section 3.5.
    """
    if whole.dim() != 2 or whole.shape != cut.shape or len(whole) < 4:
        raise ValueError(
            f"hidden states [N, D] of N >= 4 texts, whole and cut, are wanted: got {list(whole.shape)} and "
            f"{list(cut.shape)}"
        )
    whole, cut = whole.double(), cut.double()
    errors = torch.zeros(len(_RIDGES), 2, dtype=torch.float64)
    for start in (0, 1):
        directions = _directions(whole[start::2], cut[start::2])
        for column, others in enumerate((whole[1 - start :: 2], cut[1 - start :: 2])):
            errors[:, column] += ((others @ directions.T - 1) ** 2).mean(0) / 2
    best = int(errors.sum(1).argmin())
    return _directions(whole, cut)[best], float(errors[best, 0].sqrt())


def _directions(whole: Tensor, cut: Tensor) -> Tensor:
    """A direction for each ridge, `[R, D]`."""
    hidden, target = torch.cat([whole, cut]), whole.mean(0)
    if not target.any():
        raise ValueError("the mean hidden state is 0: no head shifts the scores")
    _, singular, right = torch.linalg.svd(hidden, full_matrices=False)
    squares, inside = singular**2 / len(hidden), right @ hidden.mean(0)
    ridges = torch.tensor(_RIDGES, dtype=torch.float64, device=hidden.device)[:, None] * squares.sum() / hidden.shape[1]
    directions = (inside / (squares + ridges)) @ right
    return directions / (directions @ target)[:, None]
