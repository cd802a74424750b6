"""The plan of a job whose workers are those of Ray Train."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cluster import layout
from cluster.memory import estimate

if TYPE_CHECKING:
    from rayrlhf.training.config import TrainConfig


def worker_plan(name: str, train: TrainConfig, num_parameters: int) -> list[layout.RolePlan]:
    """One role of `train.num_workers` equal actors that train `num_parameters` parameters."""
    memory = estimate("policy", num_parameters, train.num_workers, train.engine.zero_stage)
    return [
        layout.worker_plan(
            name,
            train.num_workers,
            train.cpus_per_worker,
            train.gpus_per_worker,
            memory,
            train.threads_per_worker,
        )
    ]
