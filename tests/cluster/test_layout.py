"""Plans, and whether they fit, against simulated nodes."""

import pytest

from cluster.config import LAYOUTS, LayoutConfig
from cluster.layout import fits, places, plan, pools_of, render, worker_plan
from cluster.memory import Memory
from rayrlhf.errors import ConfigError, ResourceError

GIB = 2.0**30
CPU_NODE = {"CPU": 4.0, "memory": 16 * GIB}
GPU_NODE = {"CPU": 64.0, "GPU": 8.0, "memory": 512 * GIB}
ENOUGH = {
    "cpu": [CPU_NODE],
    "one_gpu": [{"CPU": 8.0, "GPU": 1.0}],
    "eight_gpu": [GPU_NODE],
    "two_node": [GPU_NODE, GPU_NODE],
    "disaggregated": [GPU_NODE, {**GPU_NODE, "GPU": 4.0}, {**GPU_NODE, "GPU": 4.0}],
}
TOO_LITTLE = {
    "cpu": [{"CPU": 0.5}],
    "one_gpu": [CPU_NODE],
    "eight_gpu": [{"CPU": 64.0, "GPU": 4.0}, {"CPU": 64.0, "GPU": 3.0}],
    "two_node": [GPU_NODE, {**GPU_NODE, "GPU": 7.0}],
    "disaggregated": [{**GPU_NODE, "GPU": 4.0}] * 4,  # GPUs enough, but the trainers stand on one node
}


def inline(pools, roles):
    return LayoutConfig.model_validate({"base": None, "pools": pools, "roles": roles})


def one_pool(strategy, bundles, cpus):
    pools = {"p": {"bundles": bundles, "cpus": cpus, "strategy": strategy}}
    return plan(inline(pools, {"a": {"pool": "p", "cpus": 1}}))


def test_every_shipped_layout_is_planned_here():
    assert {path.stem for path in LAYOUTS.glob("*.yaml")} == set(ENOUGH)


@pytest.mark.parametrize("name", ENOUGH)
def test_shipped_layouts_fit_what_they_are_for_and_nothing_less(name):
    roles = plan(LayoutConfig.model_validate(name))
    assert {role.name for role in roles} == {"policy", "critic", "reference", "reward", "rollout"}
    fits(roles, ENOUGH[name])
    with pytest.raises(ResourceError):
        fits(roles, TOO_LITTLE[name])


def test_disaggregated_rollouts_have_nodes_of_their_own():
    roles = plan(LayoutConfig.model_validate("disaggregated"))
    found, unplaced = places(roles, [{**GPU_NODE, "GPU": 4.0}, GPU_NODE, {**GPU_NODE, "GPU": 4.0}])
    assert unplaced is None and found["train"] == [1] * 8
    assert sorted(found["rollout"]) == [0] * 4 + [2] * 4


def test_cpu_layout_leaves_a_cpu_of_two():
    (pool,) = pools_of(plan(LayoutConfig.model_validate("cpu")))
    assert pool.bundles * pool.cpus == 1


def test_ranks_spread_over_the_bundles_and_roles_share_them():
    pools = {"p": {"bundles": 2, "cpus": 3}}
    a = {"pool": "p", "ranks": 3, "cpus": 1}
    roles = plan(inline(pools, {"a": a, "b": {"pool": "p", "ranks": 2, "cpus": 1}}))
    assert roles[0].bundles == (0, 1, 0)
    assert roles[1].bundles == (0, 1)
    # bundle 0 keeps 1 CPU beside the a's, bundle 1 keeps 2: the first b of 1.5 goes to bundle 1
    assert plan(inline(pools, {"a": a, "b": {"pool": "p", "ranks": 1, "cpus": 1.5}}))[1].bundles == (1,)
    with pytest.raises(ConfigError, match="no bundle of pool p .* has room for b-1"):
        plan(inline(pools, {"a": a, "b": {"pool": "p", "ranks": 2, "cpus": 1.5}}))


@pytest.mark.parametrize(
    ("strategy", "bundles", "cpus", "nodes", "fit"),
    [
        ("STRICT_PACK", 2, 3, [6], True),
        ("STRICT_PACK", 2, 3, [5, 5], False),
        ("PACK", 2, 3, [5, 5], True),
        ("PACK", 2, 3, [5, 2], False),  # enough in sum, but a bundle lies on one node
        ("STRICT_SPREAD", 2, 1, [8], False),
        ("STRICT_SPREAD", 2, 1, [8, 1], True),
        ("SPREAD", 3, 2, [2, 4], True),
    ],
)
def test_strategies(strategy, bundles, cpus, nodes, fit):
    roles, cluster = one_pool(strategy, bundles, cpus), [{"CPU": float(n)} for n in nodes]
    if fit:
        fits(roles, cluster)
    else:
        with pytest.raises(ResourceError, match="no room for pool p"):
            fits(roles, cluster)


def test_pools_are_placed_together_not_one_by_one():
    pools = {"big": {"cpus": 4, "strategy": "STRICT_PACK"}, "small": {"bundles": 2, "cpus": 1}}
    roles = plan(inline(pools, {"a": {"pool": "small"}, "b": {"pool": "big"}}))
    fits(roles, [{"CPU": 2.0}, {"CPU": 4.0}])
    with pytest.raises(ResourceError, match="pool small"):
        fits(roles, [{"CPU": 1.0}, {"CPU": 4.0}])


def test_fractions_that_sum_to_one_fit_a_bundle_of_one():
    roles = {name: {"pool": "p", "cpus": 0.1} for name in "abcdefghij"}
    assert all(role.bundles == (0,) for role in plan(inline({"p": {"cpus": 1}}, roles)))


def test_refusal_shows_asked_and_available():
    with pytest.raises(ResourceError) as error:
        fits(plan(LayoutConfig.model_validate("eight_gpu")), [CPU_NODE])
    assert "asked: 32 CPU, 8 GPU" in str(error.value)
    assert "available: 4 CPU, 0 GPU, 16.0 GiB on 1 node" in str(error.value)


def test_memory_is_compared_where_roles_have_no_gpu():
    roles = [worker_plan("worker", 3, 1.0, memory=Memory(process=6.0))]
    fits(roles, [{"CPU": 4.0, "memory": 18 * GIB}])
    with pytest.raises(ResourceError, match=r"(?s)about 18.0 GiB of the nodes' memory, the cluster has 16.0.*worker's"):
        fits(roles, [CPU_NODE])


def test_render_lists_each_role_once_and_each_node():
    text = render(plan(LayoutConfig.model_validate("two_node"), {"policy": Memory(12.5)}), [GPU_NODE, CPU_NODE])
    assert [line.split()[:4] for line in text.splitlines()[1:3]] == [
        ["policy", "8", "2", "0.5"],
        ["critic", "8", "2", "0.5"],
    ]
    assert "12.50" in text
    assert "about 100.0 GiB" in text, "eight ranks' processes"
    assert "node 1: 4 CPU, 0 GPU, 16.0 GiB" in text and "hold" not in text, "there is no room for it all"


def test_render_says_what_each_node_would_hold():
    pools = {"train": {"bundles": 2, "cpus": 2, "strategy": "STRICT_SPREAD"}, "frozen": {"cpus": 1}}
    a, b = {"pool": "train", "ranks": 2, "cpus": 1}, {"pool": "frozen", "ranks": 1, "cpus": 1}
    roles = plan(
        inline(pools, {"policy": a, "critic": a, "reward": b}),
        {"policy": Memory(3.0), "critic": Memory(2.0), "reward": Memory(12.0)},
    )
    nodes = [{"CPU": 3.0, "memory": 16 * GIB}, {"CPU": 2.0, "memory": 16 * GIB}, {"CPU": 0.5, "memory": 16 * GIB}]
    lines = [line.strip() for line in render(roles, nodes).splitlines()[-3:]]
    held = "would hold 3 CPU, 0 GPU, about 17.0 GiB: policy-1 critic-1 reward-0  (more than its 16.0 GiB)"
    assert lines == [
        f"node 0: 3 CPU, 0 GPU, 16.0 GiB; {held}",
        "node 1: 2 CPU, 0 GPU, 16.0 GiB; would hold 2 CPU, 0 GPU, about 5.0 GiB: policy-0 critic-0",
        "node 2: 0.5 CPU, 0 GPU, 16.0 GiB; would hold nothing",
    ]


def test_an_actor_larger_than_any_node_is_refused():
    fits([worker_plan("worker", 1, 1.0, memory=Memory(process=16.0))], [CPU_NODE, CPU_NODE])
    with pytest.raises(
        ResourceError, match="one actor of worker needs about 17.0 GiB of memory, the largest node has 16"
    ):
        fits([worker_plan("worker", 1, 1.0, memory=Memory(process=17.0))], [CPU_NODE, CPU_NODE])


def one_gpu(gpu_gib, **memory):
    layout = LayoutConfig.model_validate({"base": "one_gpu", "pools": {"all": {"gpu_gib": gpu_gib}}})
    return plan(layout, memory)


def test_roles_that_take_turns_on_a_gpu_must_fit_phase_by_phase():
    # policy and critic leave their 6 + 6 of optimizer states while the sampler has its 2 + 30; it has nothing while
    # they learn, activations of all the others included
    roles = {
        "policy": Memory(1, weights=2, optimizer=6, activations=3),
        "critic": Memory(1, weights=2, optimizer=6, activations=1),
        "reference": Memory(1, weights=2, activations=1),
        "reward": Memory(1, weights=2),
        "rollout": Memory(1, weights=2, cache=30),
    }
    node = [{"CPU": 8.0, "GPU": 1.0, "memory": 64 * GIB}]
    # sampling: 32 + 2 + 2 + 3 + 2 = 41; learning: 11 + 9 + 3 + 2 = 25; and half a GiB of each of the five
    fits(one_gpu(43.5, **roles), node)
    # on the host five processes, the sampler's 2 of weights and the learners' 12 of optimizer states
    assert sum(role.node_gib for role in one_gpu(43.5, **roles)) == 5 + 2 + 12
    with pytest.raises(
        ResourceError, match=r"(?s)about 43.5 GiB of GPU memory, its 1 GPU of layout.pools.all.gpu_gib=43"
    ):
        fits(one_gpu(43, **roles), node)
    with pytest.raises(ResourceError, match=r"Most of it is rollout's: lower kv_cache_gib, or give"):
        fits(one_gpu(43, **roles), node)
    roles["rollout"] = Memory(1, weights=2, cache=1)
    fits(one_gpu(27.5, **roles), node)
    with pytest.raises(
        ResourceError, match=r"Most of it is policy's: set zero_stage=2 or 3 and more ranks, or train an"
    ):
        fits(one_gpu(27, **roles), node)


def test_gpu_memory_is_compared_bundle_by_bundle():
    # two ranks of 10 on two bundles fit a GPU of 11 each, though not one of them both
    layout = inline(
        {"p": {"bundles": 2, "cpus": 1, "gpus": 1, "gpu_gib": 11}}, {"a": {"pool": "p", "ranks": 2, "gpus": 0.5}}
    )
    node = [{"CPU": 8.0, "GPU": 2.0}]
    fits(plan(layout, {"a": Memory(weights=10)}), node)
    with pytest.raises(ResourceError, match=r"bundle 0 of pool p \(a\) need about 11.5 GiB"):
        fits(plan(layout, {"a": Memory(weights=11)}), node)
