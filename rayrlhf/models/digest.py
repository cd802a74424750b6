"""A tensor's digest: what sender and receiver of weights compare."""

from __future__ import annotations

import xxhash
from torch import Tensor

from rayrlhf.models.tensor_bytes import TensorBytes


def tensor_digest(tensor: Tensor) -> str:
    """16 hexadecimal digits of XXH3 over dtype, shape and contents; equal tensors, equal digests.

    It finds what changed by accident, at the speed of memory; nobody is kept from making another tensor of that digest.

    The same on every device and for every memory layout of the same values.
    """
    digest = xxhash.xxh3_64(f"{tensor.dtype}{list(tensor.shape)}".encode())
    digest.update(TensorBytes.of(tensor).data.data)
    return digest.hexdigest()
