"""The gradients that DeepSpeed holds between the last backward and its step: their norm, and how to drop them.

At ZeRO 0 they are the parameters' `.grad`, reduced, on every rank.  At 1, 2 and 3 each rank holds its
partition in the optimizer's `averaged_gradients`: group number -> tensors, reduced at the boundary of
accumulation.  DeepSpeed tells the norm only after its step, too late to leave that out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rayrlhf.errors import RayRLHFError


def norm(deepspeed_engine: Any, zero_stage: int) -> float:
    """L2 norm of what this rank holds: of the whole gradient at ZeRO 0, of its partition above."""
    return float(torch.nn.utils.get_total_norm(_held(deepspeed_engine, zero_stage)))


def drop(deepspeed_engine: Any, zero_stage: int) -> None:
    """Leave the update out: weights and optimizer states stay, and nothing of the gradients remains."""
    if zero_stage == 0:
        deepspeed_engine.zero_grad()
        return
    # A step whose gradient is not finite is one that DeepSpeed leaves out by itself, and then clears what it
    # keeps at that stage.  So every unwanted gradient is made one, in place of reaching into each stage.
    held = _held(deepspeed_engine, zero_stage)
    for gradient in held:
        gradient.fill_(float("nan"))
    deepspeed_engine.step()
    if deepspeed_engine.was_step_applied():
        raise RayRLHFError("DeepSpeed took a step of gradients that are NaN: its version is not one that is known")
    for gradient in held:
        # ZeRO 3 keeps these buffers, and a parameter that the next loss does not use would find its NaN there
        gradient.zero_()


def _held(deepspeed_engine: Any, zero_stage: int) -> list[Tensor]:
    if zero_stage == 0:
        return [p.grad for p in deepspeed_engine.module.parameters() if p.grad is not None]
    return [gradient for group in deepspeed_engine.optimizer.averaged_gradients.values() for gradient in group]
