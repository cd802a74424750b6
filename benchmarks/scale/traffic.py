"""What one step's batches weigh, and what they cost the links between nodes.  Counted, not measured.

By the code of actors/group.py: replicas are sent their part of the rows, by value, and so is rank 0 of policy and of
critic the whole batch, which it hands on to the other ranks over the network that they train over.  Bytes are those of
the tensors; what Ray adds is less than a part in a thousand at these sizes.
"""

from __future__ import annotations

from typing import Any

from benchmarks.scale.cluster import Cluster
from rayrlhf.batches import CriticBatch, PolicyBatch, Prompts, Rollouts, Scores, Values

LINK_BYTES_PER_S = 100e9 / 8  # 100 Gbit/s a node, each way
_BYTES = {"i64": 8, "f32": 4, "bool": 1}
_COMPONENTS = 1  # of a score


def batch_bytes(batch: type[Any], rows: int, tokens: int) -> int:
    """Of the tensors of a batch of `rows` rows."""
    sizes = {"B": rows, "T": tokens, "C": _COMPONENTS}
    total = 0
    for kind, dims in batch.SHAPES.values():
        count = 1
        for dim in dims.split(","):
            count *= sizes[dim]
        total += _BYTES[kind] * count
    return total


def of_step(cluster: Cluster) -> dict[str, Any]:
    """Bytes of one step, without the weights.

    `driver_in`, `driver_out`: into and out of the driver's process, each object once.  `from_driver_node`,
    `to_driver_node`: over the link of its node.  `from_driver_node_s`: at 100 Gbit/s.  A
    batch that rank 0, which is on the driver's node, hands on leaves it once: the ranks are a ring or a tree.
    """
    rows, tokens = cluster.rows, cluster.tokens
    prompts, rollouts = batch_bytes(Prompts, rows, cluster.half), batch_bytes(Rollouts, rows, tokens)
    policy, critic = batch_bytes(PolicyBatch, rows, tokens), batch_bytes(CriticBatch, rows, tokens)
    per_token, values = 4 * rows * tokens, batch_bytes(Values, rows, tokens)
    scores = batch_bytes(Scores, rows, tokens)

    def part(role: str, whole: int) -> int:
        """Of bytes that the replicas of a role share equally, those of replicas on other nodes."""
        count = cluster.actors[role]
        return whole * sum(cluster.node(role, rank) > 0 for rank in range(count)) // count

    # rank 0 of policy and critic, which answers, is on the driver's node
    to_node = part("rollout", rollouts) + part("reference", per_token) + part("reward", scores)
    to_others = part("rollout", prompts) + part("reference", rollouts) + part("reward", rollouts)
    handed_on = 2 * rollouts + policy + critic if len(cluster.nodes_of("policy")) > 1 else 0
    from_node = handed_on + to_others
    return {
        "driver_in": rollouts + 2 * per_token + values + scores,
        "driver_out": prompts + 4 * rollouts + policy + critic,
        "to_driver_node": to_node,
        "from_driver_node": from_node,
        "from_driver_node_s": round(from_node / LINK_BYTES_PER_S, 3),
    }
