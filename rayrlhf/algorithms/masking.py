"""Reductions under a mask.

A mask is bool and True counts.  What lies outside it is never read: every function replaces it by
0 with `torch.where` before the first arithmetic (multiplying by the mask would keep a NaN, and
would send a NaN back through the gradient).
"""

from __future__ import annotations

import torch
from torch import Tensor


def check_mask(mask: Tensor, **tensors: Tensor) -> None:
    """Refuse a mask that is not bool, does not fit `tensors`, or has a row (last dimension) without True.

    A mask of no rows at all passes: a filled-up microbatch has none.

    Raises TypeError (dtype), ValueError (shape, empty row).
    """
    if mask.dtype != torch.bool:
        raise TypeError(f"the mask must be bool, got {mask.dtype}: compare it first, as in `mask > 0`")
    for name, tensor in tensors.items():
        if tensor.shape != mask.shape:
            raise ValueError(f"{name} has shape {list(tensor.shape)}, but the mask has {list(mask.shape)}")
    has_true = mask.any(dim=-1).flatten()
    if not bool(has_true.all()):
        rows = (~has_true).nonzero().flatten().tolist()
        raise ValueError(
            f"{len(rows)} of {has_true.numel()} rows of the mask hold no True (first: {rows[:8]}): "
            "likely an empty response; drop such rows before they get here"
        )


def zero_outside(x: Tensor, mask: Tensor) -> Tensor:
    """`x` where the mask is True, 0 elsewhere; no gradient reaches the elements outside.  Same shape."""
    return torch.where(mask, x, torch.zeros((), dtype=x.dtype, device=x.device))


def masked_sum(x: Tensor, mask: Tensor) -> Tensor:
    """Sum of the True elements, a scalar; 0 (and connected to `x`) where there are no rows.

    x, mask: `[..., T]`.  Raises as `check_mask`.
    """
    check_mask(mask, x=x)
    return zero_outside(x, mask).sum()


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over all True elements together (not a mean of row means), a scalar.

    x, mask: `[..., T]`.  Raises as `check_mask`, and ValueError where there are no rows.
    """
    return masked_sum(x, mask) / count(mask)


def masked_whiten(x: Tensor, mask: Tensor, eps: float = 1e-8) -> Tensor:
    """(x - mean) / sqrt(var + eps) over all True elements together; 0 outside.  Same shape as `x`.

    The variance is the unbiased one (n - 1), over the whole tensor: whiten the whole rollout batch
    at once, before it is split over minibatches or ranks.

    Raises as `check_mask`, and ValueError with fewer than two True elements.

    Source: Huang et al. 2024, "The N+ Implementation Details of RLHF with PPO" (whitening).
    """
    check_mask(mask, x=x)
    n = count(mask)
    if n < 2:
        raise ValueError("whitening needs at least 2 True elements, got 1: their variance is not defined")
    x = zero_outside(x, mask)
    centred = zero_outside(x - x.sum() / n, mask)
    return centred * torch.rsqrt((centred**2).sum() / (n - 1) + eps)


def count(mask: Tensor, given: int | Tensor | None = None) -> int | Tensor:
    """The normaliser of a sum under `mask`: `given` (a global count) or else the local count.

    Raises ValueError unless it is above 0.
    """
    n = int(mask.sum()) if given is None else given
    if not bool(n > 0):
        raise ValueError(
            f"the count to divide by is {n} for a mask of shape {list(mask.shape)}: "
            "a microbatch without rows needs the global count of its minibatch"
        )
    return n
