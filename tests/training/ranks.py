"""Run a function on several ranks of one process group, each a process of its own."""

from __future__ import annotations

import faulthandler
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp


def run_ranks(function: Callable[..., Any], world_size: int, folder: Path, *args: Any) -> list[Any]:
    """`function(rank, *args)` on every rank (gloo); returns what each gave, by rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_rank, (world_size, port, str(folder), function, args), nprocs=world_size)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(world_size)]


def _rank(
    rank: int, world_size: int, port: int, folder: str, function: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    from rayrlhf.training import distributed

    faulthandler.enable()
    torch.set_num_threads(1)
    distributed.init(rank, world_size, "127.0.0.1", port, timeout_s=60)
    torch.save(function(rank, *args), Path(folder) / f"rank{rank}.pt")
    distributed.shutdown()
    # past Python's finalisation, in which a gloo thread that still lets go of a tensor aborts the process
    sys.stdout.flush()
    os._exit(0)
