"""Run by test_chaos.py in a process of its own, `python -m tests.jobs.lose_node POOL METRICS.jsonl COMMAND...`.

COMMAND, a PPO run, on a simulated cluster whose node with POOL (none: no node) goes away after the second step; another
one joins some seconds later.  Exits with COMMAND's status.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import ray
from ray.cluster_utils import Cluster
from ray.util import placement_group_table


def main(pool: str, log: Path, command: list[str]) -> int:
    # the head has no room for a pool: the driver's own node is not to go away
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    nodes = [cluster.add_node(num_cpus=2) for _ in range(2)]
    ray.init(address=cluster.address, logging_level="error")
    run = subprocess.Popen(command, env=os.environ | {"RAY_ADDRESS": cluster.address})
    try:
        if pool != "none":
            while run.poll() is None and not (log.exists() and '"step": 2,' in log.read_text()):
                time.sleep(0.02)
            groups = placement_group_table().values()
            [node_id] = [
                g["bundles_to_node_id"][0] for g in groups if g["name"].endswith(pool) and g["state"] == "CREATED"
            ]
            [node] = [node for node in nodes if node.node_id == node_id]
            cluster.remove_node(node, allow_graceful=False)
            print(f"LOST the node of {pool}", flush=True)
            time.sleep(5)
            cluster.add_node(num_cpus=2)
        return run.wait()
    finally:
        run.kill()
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:]))
