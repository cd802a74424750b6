"""What a rank says before it trains in a precision that its processor has no instructions for."""

from __future__ import annotations

import sys

import torch

from rayrlhf.environment import cpu_has_bf16
from rayrlhf.training.config import EngineConfig


def warn_if_slow(name: str, section: str, config: EngineConfig, device: torch.device, rank: int) -> None:
    """Rank 0 prints a line where `precision=bf16` would be slower than float32.

    Asked where the training is: the driver's machine may be another one.  `name`: the stage or role; `section`: the
    keys of `config`, such as train.engine.
    """
    if rank == 0 and config.precision == "bf16" and device.type == "cpu" and cpu_has_bf16() is False:
        # one write, so that lines of several processes do not mix
        sys.stdout.write(
            f"warning: {name}: {section}.precision=bf16, but this processor has no instructions for it (no avx512_bf16 "
            f"or amx_bf16 in lscpu): several times slower than float32. Set {section}.precision=float32\n"
        )
        sys.stdout.flush()
