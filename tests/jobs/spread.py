"""Run by test_spread.py in a process of its own, `python -m tests.jobs.spread CONFIG.yaml NODES key=value...`: PPO on a
simulated cluster of so many nodes; prints where its bundles were."""

import json
import sys

import ray
from ray.cluster_utils import Cluster

from cluster.placement import Placement
from jobs import ppo
from rayrlhf.config import load

CPUS = 6  # of all nodes together


def main(path: str, num_nodes: int, overrides: list[str]) -> None:
    config = load(ppo.PPOConfig, path, overrides)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": CPUS // num_nodes})
    for _ in range(num_nodes - 1):
        cluster.add_node(num_cpus=CPUS // num_nodes)
    ray.init(address=cluster.address, logging_level="error")
    seen: dict[str, list[str]] = {}
    release = Placement.release

    def look_and_release(placement: Placement) -> None:
        for name, group in placement._groups.items():
            seen[name] = list(ray.util.placement_group_table(group)["bundles_to_node_id"].values())
        release(placement)

    Placement.release = look_and_release
    ppo.check(config)
    ppo.run(config)
    ray.shutdown()
    cluster.shutdown()
    print("SEEN " + json.dumps(seen))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
