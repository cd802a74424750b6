"""What matrix products are computed in: float32, or bfloat16 with float32 weights."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from rayrlhf.environment import cpu_has_bf16


def matrix_dtype(device: torch.device, precision: str) -> torch.dtype:
    """What `EngineConfig.precision` means on `device`; `auto` is bfloat16 on a GPU, and on a processor with
    instructions for it (without them it is several times slower than float32)."""
    if precision == "auto":
        return torch.bfloat16 if device.type != "cpu" or cpu_has_bf16() else torch.float32
    return torch.bfloat16 if precision == "bf16" else torch.float32


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """What a forward pass runs in."""
    dtype = matrix_dtype(device, precision)
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype=dtype)


def warn_if_slow(name: str, section: str, precision: str, device: torch.device, rank: int) -> None:
    """Rank 0 prints a line where `precision=bf16` is slower than float32, and one where `auto` found that.

    Asked where the training is: the driver's machine may be another one.  `name`: the stage or role; `section`: the
    keys that hold `precision`, such as train.engine.
    """
    if rank != 0 or precision == "float32" or device.type != "cpu" or cpu_has_bf16() is not False:
        return
    lacking = "this processor has no instructions for bfloat16 (no avx512_bf16 or amx_bf16 in lscpu)"
    # one write, so that lines of several processes do not mix
    if precision == "auto":
        sys.stdout.write(f"{name}: {section}.precision=auto is float32 here: {lacking}\n")
    else:
        sys.stdout.write(
            f"warning: {name}: {section}.precision=bf16, but {lacking}: several times slower than float32. "
            f"Set {section}.precision=auto\n"
        )
    sys.stdout.flush()
