"""Run by test_execute.py in a process of its own: `python -m tests.data.cleaning.two_nodes SOURCE WORK`; cleans on a
simulated cluster of two nodes."""

import json
import sys

import ray
from ray.cluster_utils import Cluster

from rayrlhf.data.cleaning import execute, reading
from tests.data.cleaning.planted import STEPS, steps


def main(source: str, work: str) -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 150 * 2**20})
    cluster.add_node(num_cpus=1, object_store_memory=150 * 2**20)
    ray.init(address=cluster.address, logging_level="error")
    cleaned = execute.clean(reading.read(source, reading.Reading()), steps(STEPS), work)
    rows = [row for path in cleaned.paths for row in execute.shards.read(path)["text"].to_pylist()]
    seen = {"nodes": len(ray.nodes()), "rows": sorted(rows), "fates": cleaned.fates()}
    ray.shutdown()
    cluster.shutdown()
    print("SEEN " + json.dumps(seen))


if __name__ == "__main__":
    main(*sys.argv[1:])
