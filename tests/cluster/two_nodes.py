"""Run by test_placement.py in a process of its own: placement on a simulated cluster of two nodes."""

import json
import time

import ray
from ray.cluster_utils import Cluster

from cluster import bring_up
from cluster.config import LayoutConfig
from cluster.layout import plan, render
from cluster.placement import Placement
from rayrlhf.errors import ResourceError


class Where:
    def look(self):
        import os

        import torch

        context = ray.get_runtime_context()
        threads = os.environ["OMP_NUM_THREADS"], torch.get_num_threads()
        return context.get_node_id(), context.get_actor_name(), threads, os.getpid()


def spread(bundles, cpus=1.0):
    pools = {"p": {"bundles": bundles, "cpus": cpus, "strategy": "STRICT_SPREAD"}}
    roles = {"a": {"pool": "p", "ranks": bundles, "cpus": 0.5, "threads": 2}, "b": {"pool": "p", "cpus": 0.5}}
    return LayoutConfig.model_validate({"base": None, "pools": pools, "roles": roles})


def refusal(layout, deadline_s, say=print):
    begin = time.monotonic()
    try:
        Placement.reserve(layout, deadline_s, say).release()
    except ResourceError as error:
        return {"message": str(error), "seconds": time.monotonic() - begin}
    return None


def main():
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    cluster.add_node(num_cpus=2)
    ray.init(address=cluster.address, logging_level="error")
    seen = {"nodes": len(bring_up.nodes()), "render": render(plan(spread(2)), bring_up.nodes())}

    placement = Placement.reserve(spread(2), 30)
    actors = {
        f"{role}-{rank}": ray.remote(Where).options(**placement.options(role, rank)).remote()
        for role, rank in (("a", 0), ("a", 1), ("b", 0))
    }
    seen["actors"] = {name: ray.get(actor.look.remote()) for name, actor in actors.items()}

    lines = []
    seen["busy"] = refusal(spread(2, cpus=2), 2, lines.append)
    seen["busy_lines"] = lines
    placement.release()
    seen["freed"] = refusal(spread(2, cpus=2), 30)
    seen["too_much"] = refusal(spread(3), 60)
    seen["left_over"] = [group["state"] for group in ray.util.placement_group_table().values()]
    ray.shutdown()
    cluster.shutdown()
    print("SEEN " + json.dumps(seen))


if __name__ == "__main__":
    main()
