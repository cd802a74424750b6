"""Whether a plan may wait for nodes that an autoscaler brings, and a real autoscaler that brings one."""

import pytest

from cluster.growth import HEAD, most_nodes, needs_growth
from cluster.layout import worker_plan
from cluster.memory import Memory
from rayrlhf.errors import ResourceError
from tests.cluster.test_placement import run_alone

GIB = 2.0**30
HEAD_NODE = {"CPU": 2.0, "memory": 8 * GIB, HEAD: 1.0}
CONFIG = {
    "max_workers": 3,
    "head_node_type": "head",
    "available_node_types": {
        "head": {"resources": {"CPU": 2}},
        "gpu": {"resources": {"CPU": 8, "GPU": 1}, "max_workers": 2},
        "cpu": {"resources": {"CPU": 4}},  # as many as the cluster
    },
}


def test_the_largest_cluster_is_its_head_and_all_workers_of_each_type():
    gone = {"CPU": 8.0, "GPU": 1.0}  # a worker that is there counts once, as one of its type
    most = most_nodes(CONFIG, [HEAD_NODE, gone])
    assert most == [HEAD_NODE, *[{"CPU": 8, "GPU": 1}] * 2, *[{"CPU": 4}] * 3]
    assert most_nodes({**CONFIG, "max_workers": 1}, [HEAD_NODE]) == [HEAD_NODE, {"CPU": 8, "GPU": 1}, {"CPU": 4}]
    assert most_nodes({**CONFIG, "max_workers": 0}, [HEAD_NODE]) == [HEAD_NODE]


def test_growth_is_waited_for_only_where_it_can_help():
    most = most_nodes(CONFIG, [HEAD_NODE])
    assert not needs_growth([worker_plan("sft", 2, 1.0)], [HEAD_NODE], most)
    assert needs_growth([worker_plan("sft", 2, 8.0, 1.0)], [HEAD_NODE], most)
    with pytest.raises(
        ResourceError, match=r"(?s)^also at its largest .*asked: 24 CPU, 3 GPU.*available: 30 CPU, 2 GPU"
    ):
        needs_growth([worker_plan("sft", 3, 8.0, 1.0)], [HEAD_NODE], most)
    with pytest.raises(ResourceError, match=r"(?s)^the cluster has no room.*asked: 16 CPU.*available: 2 CPU"):
        needs_growth([worker_plan("sft", 2, 8.0, 1.0)], [HEAD_NODE], None)


def test_memory_alone_brings_no_nodes():
    large = [worker_plan("sft", 1, 1.0, memory=Memory(process=9.0))]
    with pytest.raises(ResourceError, match=r"needs about 9.0 GiB of memory, the largest node has 8.0"):
        needs_growth(large, [HEAD_NODE], most_nodes(CONFIG, [HEAD_NODE]))


@pytest.mark.slow
def test_an_autoscaler_brings_the_node_that_a_layout_lacks():
    seen = run_alone("tests.cluster.growing")
    assert (seen["before"], seen["most"], seen["after"]) == (1, [1, 3], 2)
    told = seen["lines"][0]
    assert told.startswith("waiting for the autoscaler, which is expected to bring nodes, ")
    assert "pool p asks 1 x 3 CPU, 0 GPU (PACK); free in the cluster: 1 CPU, 0 GPU on 1 node(s)" in told
    for name, asked in (("too_much", "asked: 4 CPU"), ("too_many_workers", "asked: 5 CPU")):
        message = seen[name]["message"]
        assert (
            asked in message
            and "available: 4 CPU, 0 GPU, memory not known" in message
            and "also at its largest" in message
        )
        assert "now there are 1 node(s) with 1 CPU" in message and seen[name]["seconds"] < 60
    assert seen["refused_lines"] == []
