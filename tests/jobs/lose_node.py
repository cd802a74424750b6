"""Run by test_chaos.py in a process of its own, `python -m tests.jobs.lose_node CONFIG.yaml ROLE key=value...`.

PPO on a simulated cluster whose node with ROLE (none: no node) goes away after the second step; another one joins some
seconds later."""

import sys
import threading
import time
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from jobs import ppo
from rayrlhf.config import load


def main(path: str, role: str, overrides: list[str]) -> None:
    config = load(ppo.PPOConfig, path, overrides)
    # the head has no room for a pool: the driver's own node is not to go away
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    nodes = [cluster.add_node(num_cpus=2) for _ in range(2)]
    ray.init(address=cluster.address, logging_level="error")
    start, groups = ppo._start, {}

    async def started(config, placement, made, *rest):
        roles = await start(config, placement, made, *rest)
        groups.update(made)
        return roles

    def lose() -> None:
        log = Path(config.run.directory) / "metrics.jsonl"
        while not (log.exists() and '"step": 2,' in log.read_text()):
            time.sleep(0.02)
        node_id = groups[role].places[f"{role}-0"].node_id
        [node] = [node for node in nodes if node.node_id == node_id]
        cluster.remove_node(node, allow_graceful=False)
        print(f"LOST the node of {role}-0", flush=True)
        time.sleep(5)
        cluster.add_node(num_cpus=2)

    ppo._start = started
    losing = threading.Thread(target=lose)
    if role != "none":
        losing.start()
    ppo.run(config)
    if role != "none":
        losing.join()
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
