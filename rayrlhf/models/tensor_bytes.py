"""A tensor as bytes that lie in memory as they are: what pickle's protocol 5, and so Ray's object store, takes without
a copy of its own.  Torch's own pickle copies a tensor several times."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class TensorBytes:
    """`data` u8 [bytes], of a tensor of that dtype (NumPy knows no bfloat16) and shape."""

    data: NDArray[Any]
    dtype: torch.dtype
    shape: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor) -> TensorBytes:
        """Shares the memory of a contiguous tensor on CPU."""
        flat = tensor.detach().cpu().contiguous().flatten()
        return cls(flat.view(torch.uint8).numpy(), tensor.dtype, tuple(tensor.shape))

    def tensor(self) -> Tensor:
        """Shares the memory of `data`: read it, and never write, for it may be the object store's."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            flat = torch.from_numpy(np.asarray(self.data))
        return flat.view(self.dtype).view(self.shape)
