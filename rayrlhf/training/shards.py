"""What this rank holds of each trained parameter: its float32 weights and the optimizer's states.

DeepSpeed keeps them at ZeRO 0 in the parameters themselves, at 1 and 2 in one flat partition for each group of
parameters, at 3 in flat partitions of parts of every parameter.  Here all of them are the same: pieces of the
parameter as one flat row of numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Shard:
    """Elements `start` to `start + length` of the parameter `name`, taken flat; `length` may be 0."""

    name: str
    shape: tuple[int, ...]  # of the whole parameter
    start: int
    length: int
    owner: Tensor  # what the optimizer steps: the parameter, or a flat partition that the piece lies in
    offset: int  # of the piece in it

    def piece(self, tensor: Tensor) -> Tensor:
        """The piece as a view of `tensor`: the owner, or a state of the owner's shape."""
        return tensor.detach().view(-1).narrow(0, self.offset, self.length)


def shards(deepspeed_engine: Any, zero_stage: int, model: nn.Module) -> list[Shard]:
    """One for each trained parameter of `model` (tied ones once), in the same order on every rank."""
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    if zero_stage == 0:
        return [Shard(name, tuple(p.shape), 0, p.numel(), p, 0) for name, p in trained]
    zero = deepspeed_engine.optimizer
    if zero_stage == 3:
        return [_of_stage_3(zero, name, parameter) for name, parameter in trained]
    groups = {id(p): n for n, group in enumerate(zero.bit16_groups) for p in group}
    return [_of_stages_1_and_2(zero.single_partition_of_fp32_groups[groups[id(p)]], n, p) for n, p in trained]


def _of_stages_1_and_2(flat: Tensor, name: str, parameter: Any) -> Shard:
    mapping, shape = parameter._hp_mapping, tuple(parameter.shape)
    if mapping is None:  # all of it lies on other ranks
        return Shard(name, shape, 0, 0, flat, 0)
    here, there = mapping.lp_fragment_address, mapping.hp_fragment_address
    return Shard(name, shape, here.start, here.numel, flat, there.start)


def _of_stage_3(zero: Any, name: str, parameter: Any) -> Shard:
    group, offset, size = zero.grad_position[zero.get_param_id(parameter)]
    start = min(size * torch.distributed.get_rank(), parameter.ds_numel)  # the last ranks' partitions are padded
    length = min(size, parameter.ds_numel - start)
    return Shard(name, tuple(parameter.ds_shape), start, length, zero.fp32_partitioned_groups_flat[group], offset)


def states(deepspeed_engine: Any, zero_stage: int, owner: Tensor) -> dict[str, Any]:
    """The optimizer's states of `owner`, its own dictionary; empty before the first step."""
    found: dict[str, Any] = _optimizer(deepspeed_engine, zero_stage).state.setdefault(owner, {})
    return found


def averages(state: dict[str, Any]) -> dict[str, Tensor]:
    """Those of `states` that have a number for each number of the owner, by name."""
    return {name: value for name, value in state.items() if name != "step"}


def by_owner(found: list[Shard]) -> Iterator[tuple[Tensor, list[Shard]]]:
    """Each owner with its shards."""
    grouped: dict[int, list[Shard]] = {}
    for shard in found:
        grouped.setdefault(id(shard.owner), []).append(shard)
    for some in grouped.values():
        yield some[0].owner, some


def prepare_weights(deepspeed_engine: Any, zero_stage: int) -> None:
    """Before the owners are written to; every rank calls it."""
    if zero_stage == 3:
        deepspeed_engine.optimizer.checkpoint_event_prologue()


def publish_weights(deepspeed_engine: Any, zero_stage: int) -> None:
    """Put the owners' numbers into the model, from all ranks; every rank calls it."""
    zero = deepspeed_engine.optimizer
    if zero_stage in (1, 2):
        zero.update_lp_params()
    if zero_stage == 3:
        for group in range(len(zero.fp32_partitioned_groups_flat)):
            zero._reassign_or_swap_out_partitioned_parameters(group)
        zero.checkpoint_event_epilogue()


def _optimizer(deepspeed_engine: Any, zero_stage: int) -> torch.optim.Optimizer:
    optimizer: torch.optim.Optimizer = deepspeed_engine.optimizer
    return optimizer if zero_stage == 0 else optimizer.optimizer  # type: ignore[attr-defined]
