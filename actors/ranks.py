"""What policy and critic ranks share: meeting their peers."""

from __future__ import annotations

import socket
from typing import Any

import ray
import torch

from rayrlhf.batches import TBatch
from rayrlhf.role_logs import LoggedRole
from rayrlhf.training import distributed


class EngineRank(LoggedRole):
    """One rank of a DeepSpeed engine, before it knows its model."""

    def offer_address(self) -> tuple[str, int]:
        """(this node's address, a port free on it) for the ranks to meet at."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return ray.util.get_node_ip_address(), probe.getsockname()[1]

    def join(self, rank: int, world_size: int, address: str, port: int, timeout_s: float, threads: int) -> None:
        """Meet the other ranks.  A collective that waits longer than `timeout_s` for a peer fails; the group notices a
        failed rank sooner."""
        torch.set_num_threads(threads)
        distributed.init(rank, world_size, address, port, timeout_s)
        self.rank = rank

    def whole(self, batch: TBatch) -> TBatch:
        """The batch, of which the group sends its rows to rank 0 alone.  A collective: every rank's turn."""
        return distributed.broadcast_batch(batch)

    def answer(self, value: Any) -> Any:
        """`value` on rank 0, which speaks for all; None elsewhere."""
        return value if self.rank == 0 else None
