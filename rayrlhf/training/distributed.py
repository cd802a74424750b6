"""torch.distributed for ranks that are started by hand (Ray actors, tests); Ray Train sets up its own."""

from __future__ import annotations

import os
import random
from dataclasses import replace
from datetime import timedelta

import torch
import torch.distributed as dist

from rayrlhf.batches import TBatch


def init(
    rank: int,
    world_size: int,
    master_addr: str,
    master_port: int,
    timeout_s: float = 600,
    local_rank: int = 0,
) -> None:
    """Join the process group: nccl where CUDA is there, else gloo.

    `local_rank` numbers this process among those that see the same GPUs (Ray shows an actor only
    its own, so it is 0 there).  Raises torch's error when the others do not come within `timeout_s`.
    """
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_RANK": str(local_rank),
        "MASTER_ADDR": master_addr,
        "MASTER_PORT": str(master_port),
    }
    has_gpu = torch.cuda.is_available()
    if has_gpu:
        torch.cuda.set_device(local_rank)
    dist.init_process_group(
        "nccl" if has_gpu else "gloo", rank=rank, world_size=world_size, timeout=timedelta(seconds=timeout_s)
    )


def shutdown() -> None:
    """Leave the process group: a process that exits inside one may abort."""
    if dist.is_initialized():
        dist.destroy_process_group()


def device() -> torch.device:
    """The device of this rank: the process group's backend says which."""
    if dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def seed_all(seed: int) -> None:
    """Seed torch (CPU and GPU) and Python's random in this process."""
    torch.manual_seed(seed)
    random.seed(seed)


def broadcast_batch(batch: TBatch) -> TBatch:
    """Rank 0's batch on every rank, on the CPU.  The others give one of the same kind and T, without rows."""
    if dist.get_world_size() == 1:
        return batch
    on = device()
    rows = torch.tensor([len(batch)], device=on)
    dist.broadcast(rows, src=0)
    whole = {}
    for name in batch.SHAPES:
        tensor = getattr(batch, name)
        if dist.get_rank() != 0:
            tensor = tensor.new_empty(int(rows), *tensor.shape[1:])
        tensor = tensor.to(on).contiguous()
        dist.broadcast(tensor, src=0)
        whole[name] = tensor.cpu()
    return replace(batch, **whole)


def sum_over_ranks(values: dict[str, float], device: torch.device) -> dict[str, float]:
    """Sums over all ranks of values that every rank holds under the same names.

    A name ending in `_max` keeps the largest instead.
    """
    names = sorted(values)
    reduced: dict[str, float] = {}
    for op, chosen in (
        (dist.ReduceOp.SUM, [n for n in names if not n.endswith("_max")]),
        (dist.ReduceOp.MAX, [n for n in names if n.endswith("_max")]),
    ):
        if chosen:
            tensor = torch.tensor([values[n] for n in chosen], dtype=torch.float64, device=device)
            dist.all_reduce(tensor, op=op)
            reduced |= dict(zip(chosen, tensor.tolist(), strict=True))
    return reduced
