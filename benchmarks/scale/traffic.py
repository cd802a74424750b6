"""What one step's batches weigh, and what they cost the links between nodes.  Counted, not measured.

By the code of actors/group.py: policy and critic get the whole batch, one object in the object store of the driver's
node, which each node of theirs fetches once; the rows of reference, reward and rollout go by value to the actor that
works on them.  Bytes are those of the tensors; what Ray adds is less than a part in a thousand at these sizes.
"""

from __future__ import annotations

from typing import Any

from benchmarks.scale import broadcast
from benchmarks.scale.cluster import PROMPT_TOKENS, Cluster
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
    `to_driver_node`: over the link of its node.  `from_driver_node_s`: at 100 Gbit/s; `from_driver_node_chain_s`: if
    nodes passed whole batches on.  `by_reference_to_any_node`: what a node would get at most if each rank were given
    its own rows by the actors that made them.
    """
    rows, tokens = cluster.rows, cluster.tokens
    prompts, rollouts = batch_bytes(Prompts, rows, PROMPT_TOKENS), batch_bytes(Rollouts, rows, tokens)
    policy, critic = batch_bytes(PolicyBatch, rows, tokens), batch_bytes(CriticBatch, rows, tokens)
    per_token, values = 4 * rows * tokens, batch_bytes(Values, rows, tokens)
    scores = batch_bytes(Scores, rows, tokens)

    def elsewhere(role: str) -> int:
        """Nodes of a role that the driver is not on."""
        return len(cluster.nodes_of(role) - {0})

    def part(role: str, whole: int) -> int:
        """Of bytes that the replicas of a role share equally, those of replicas on other nodes."""
        count = cluster.actors[role]
        return whole * sum(cluster.node(role, rank) > 0 for rank in range(count)) // count

    # rank 0 of policy and critic, which answers, is on the driver's node
    to_node = part("rollout", rollouts) + part("reference", per_token) + part("reward", scores)
    whole_batches = (rollouts + policy) * elsewhere("policy") + (rollouts + critic) * elsewhere("critic")
    by_value = part("rollout", prompts) + part("reference", rollouts) + part("reward", rollouts)
    from_node = whole_batches + by_value
    own_rows = max(
        (2 * rollouts + policy + critic) * 8 // cluster.actors["policy"],  # 8 ranks of policy, 8 of critic on a node
        2 * rollouts * 4 // cluster.actors["reference"],  # a node holds 4 GPUs with a replica of each
    )
    return {
        "driver_in": rollouts + 2 * per_token + values + scores,
        "driver_out": prompts + 4 * rollouts + policy + critic,
        "to_driver_node": to_node,
        "from_driver_node": from_node,
        "from_driver_node_s": round(from_node / LINK_BYTES_PER_S, 3),
        "from_driver_node_chain_s": round((_chain(cluster, rollouts, policy, critic) + by_value / LINK_BYTES_PER_S), 3),
        "by_reference_to_any_node": own_rows if cluster.nodes > 1 else 0,
    }


def _chain(cluster: Cluster, rollouts: int, policy: int, critic: int, piece: int = 5 * 2**20) -> float:
    """Seconds of the same whole batches if each node passed pieces on (5 MiB: Ray's own chunks)."""
    nodes = len(cluster.nodes_of("policy") - {0})
    if not nodes:
        return 0.0
    return sum(
        broadcast.seconds("tree", nodes, -(-size // piece), piece / LINK_BYTES_PER_S)
        for size in (rollouts, rollouts, policy, critic)
    )
