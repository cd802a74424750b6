"""What benchmarks/scale computes, against cases counted by hand."""

import pytest

from benchmarks.scale import broadcast, traffic
from benchmarks.scale.clock import Clock
from benchmarks.scale.cluster import Cluster
from rayrlhf.batches import CriticBatch, PolicyBatch, Rollouts


@pytest.mark.parametrize("kind", ["source", "holders"])
def test_one_bucket_that_all_ask_for_at_once_comes_from_the_source(kind: str) -> None:
    assert broadcast.seconds(kind, 3, 1, bucket_s=1.0) == 3.0, "one after the other"
    assert broadcast.seconds(kind, 3, 1, bucket_s=1.0, slots=3) == 3.0, "all at once, a third of the link each"
    assert broadcast.seconds(kind, 3, 1, bucket_s=1.0, slots=2) == 4.0, "two for 2 s, then one on half a link"


def test_the_source_alone_sends_every_copy() -> None:
    assert broadcast.seconds("source", 5, 4, bucket_s=0.5) == 5 * 4 * 0.5


def test_tree_by_hand() -> None:
    # a chain: the last of 3 nodes has the first bucket after 3 s, the second a second later
    assert broadcast.seconds("tree", 3, 2, bucket_s=1.0, fan_out=1) == 4.0
    # 0 -> 1 until 1 s; 0 -> 2 and 1 -> 3 until 2 s
    assert broadcast.seconds("tree", 3, 1, bucket_s=1.0, fan_out=2) == 2.0
    # 1 2 3 4 by 2 s, 2 s, 2 s, 3 s: node 1 passes it on to 3 and 4 after 1 s, node 0 to 2
    assert broadcast.seconds("tree", 4, 1, bucket_s=1.0, fan_out=2) == 3.0


def test_holders_are_of_no_use_to_nodes_that_all_ask_for_the_same() -> None:
    source, asked, rotated = (
        broadcast.seconds(kind, 16, 32, bucket_s=1.0) for kind in ("source", "holders", "rotated")
    )
    assert source == asked == 16 * 32
    assert broadcast.seconds("tree", 16, 32, bucket_s=1.0) == 16 + 32 - 1 < rotated < source / 2


def test_rotated_by_hand() -> None:
    # node 1 asks for bucket 0, node 2 for bucket 1: the source sends both until 2 s.  Node 1 asks for bucket 1 at 1 s,
    # when the source alone has it, and node 2 for bucket 0 at 2 s: of node 1, or of the source, which is busy until 3 s
    assert broadcast.seconds("rotated", 2, 2, bucket_s=1.0) in (3.0, 4.0)


def test_what_a_broadcast_refuses() -> None:
    with pytest.raises(ValueError, match="fan_out is 0"):
        broadcast.seconds("tree", 1, 1, 1.0, fan_out=0)
    with pytest.raises(ValueError, match="num_nodes is 0"):
        broadcast.seconds("source", 0, 1, 1.0)
    with pytest.raises(ValueError, match="'ring'"):
        broadcast.seconds("ring", 1, 1, 1.0)


def test_where_the_actors_are() -> None:
    cluster = Cluster(64)
    assert cluster.rows == 512 and cluster.nodes == 8
    assert cluster.actors == {"policy": 32, "critic": 32, "rollout": 24, "reference": 8, "reward": 8}
    assert [cluster.node("critic", rank) for rank in (0, 7, 8, 31)] == [0, 0, 1, 3]
    assert cluster.nodes_of("rollout") == {4, 5, 6} and cluster.nodes_of("reward") == {7}
    assert Cluster(8).nodes_of("rollout") == {0}, "all on one node"


def test_a_clock_counts_each_second_once() -> None:
    now = 0.0
    clock = Clock(lambda: now)
    with clock.section("outer"):
        now += 1.0
        with clock.section("inner"):
            now += 2.0
        now += 4.0
    now += 8.0
    assert clock.take() == {"": 8.0, "outer": 5.0, "inner": 2.0}
    assert clock.take() == {"": 0.0}


def test_bytes_of_batches_by_hand() -> None:
    # tokens 8, mask 1, sampled log-probs 4 a token; lengths, prompt index, version 8 and finished 1 a row
    assert traffic.batch_bytes(Rollouts, 2, 3) == 2 * 3 * 13 + 2 * 25
    assert traffic.batch_bytes(PolicyBatch, 2, 3) == 2 * 3 * 25 + 2 * 8
    assert traffic.batch_bytes(CriticBatch, 2, 3) == 2 * 3 * 17 + 2 * 8


def test_bytes_of_a_step_by_hand() -> None:
    assert traffic.of_step(Cluster(8))["from_driver_node"] == 0, "one node, no network"
    step = traffic.of_step(Cluster(64))
    cells, rows = 512 * 1024, 512
    rollouts, policy, critic = 13 * cells + 25 * rows, 25 * cells + 8 * rows, 17 * cells + 8 * rows
    prompts = 512 * 512 * 8 + 16 * rows
    assert step["driver_in"] == rollouts + 3 * 4 * cells + 4 * rows + 8 * rows
    assert step["driver_out"] == prompts + 4 * rollouts + policy + critic
    # policy and critic are on nodes 0 to 3, the driver on node 0, all replicas elsewhere
    assert step["from_driver_node"] == (2 * rollouts + policy + critic) + prompts + 2 * rollouts
    assert step["to_driver_node"] == rollouts + 4 * cells + 8 * rows
