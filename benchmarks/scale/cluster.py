"""A cluster of N GPUs that does not exist: which actors it has, on which nodes, and the sizes of a step's batches.

Weak scaling: rows a step grow with the GPUs, 8 a GPU, 512 tokens of prompt and 512 of response each.  The roles share
the GPUs as in cluster/layouts/eight_gpu.yaml: of 8, four train policy and critic side by side, three sample, one holds
the frozen models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

GPUS_PER_NODE = 8
ROWS_PER_GPU = 8
VOCABULARY = 151_936  # of Qwen2.5 and Qwen3

# seconds that the roles are said to take in a step: not measured, an input, constant as rows grow with the GPUs
LATENCIES_S = {"generate": 30.0, "judge": 8.0, "update": 20.0, "publish": 2.0}
STEP_S = sum(LATENCIES_S.values())


@dataclass(frozen=True)
class Cluster:
    """`gpus`, a multiple of 8, on nodes of 8; the driver is on the first node, which also trains.  `half`: tokens of a
    prompt, and of a response."""

    gpus: int
    half: int = 512

    def __post_init__(self) -> None:
        if self.gpus < GPUS_PER_NODE or self.gpus % GPUS_PER_NODE:
            raise ValueError(f"gpus is {self.gpus}: a cluster has whole nodes of {GPUS_PER_NODE} GPUs")

    @property
    def rows(self) -> int:
        """Of a rollout batch."""
        return ROWS_PER_GPU * self.gpus

    @property
    def tokens(self) -> int:
        """Of a row."""
        return 2 * self.half

    @property
    def nodes(self) -> int:
        return self.gpus // GPUS_PER_NODE

    @property
    def actors(self) -> dict[str, int]:
        """Actors of each role."""
        train, frozen = self.gpus // 2, self.gpus // 8
        return {
            "policy": train,
            "critic": train,
            "rollout": self.gpus - train - frozen,
            "reference": frozen,
            "reward": frozen,
        }

    def node(self, role: str, rank: int) -> int:
        """The node that an actor is on: those that train come first, then those that sample, then the frozen ones."""
        actors = self.actors
        first = {"policy": 0, "critic": 0, "rollout": actors["policy"]}
        gpu = first.get(role, actors["policy"] + actors["rollout"]) + rank
        return gpu // GPUS_PER_NODE

    def nodes_of(self, role: str) -> set[int]:
        return {self.node(role, rank) for rank in range(self.actors[role])}

    def about(self) -> dict[str, Any]:
        """For the results."""
        return {"gpus": self.gpus, "nodes": self.nodes, "rows": self.rows, "tokens_a_row": self.tokens} | {
            "actors": self.actors
        }
