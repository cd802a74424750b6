"""The one shift between a model's outputs and its tokens; nobody slices elsewhere."""

from __future__ import annotations

import torch
from torch import Tensor


def shift_right(x: Tensor) -> Tensor:
    """Turn "about the next token" into "about this token": out[:, t] = x[:, t - 1], out[:, 0] = 0.

    A causal model's output at position t - 1 has seen tokens 0 .. t - 1 and says something of
    token t (its log-probability; the value of the state before it).  The last column falls out.

    x: `[B, T]`, any dtype.  Returns `[B, T]`.  Raises ValueError for another number of dimensions.
    """
    if x.dim() != 2:
        raise ValueError(f"shift_right takes [B, T], got shape {list(x.shape)}")
    return torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], dim=1)
