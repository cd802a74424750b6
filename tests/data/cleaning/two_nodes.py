"""Run by test_execute.py in a process of its own: `python -m tests.data.cleaning.two_nodes SOURCE WORK`; cleans on a
simulated cluster of two nodes."""

import json
import sys
from typing import Any

import pyarrow as pa
import ray
from ray.cluster_utils import Cluster

from rayrlhf.data.cleaning import execute, reading
from tests.data.cleaning.planted import STEPS, steps


def with_node(batch: Any) -> Any:
    """Rows with the node that read them."""
    node = ray.get_runtime_context().get_node_id()
    return batch.append_column("node", pa.array([node] * batch.num_rows, pa.string()))


def main(source: str, work: str) -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 150 * 2**20})
    cluster.add_node(num_cpus=1, object_store_memory=150 * 2**20)
    ray.init(address=cluster.address, logging_level="error")
    read = reading.read(source, reading.Reading()).map_batches(with_node, batch_format="pyarrow")
    cleaned = execute.clean(read, steps(STEPS), work)
    rows = [row for path in cleaned.paths for row in execute.shards.read(path).to_pylist()]
    seen = {
        "nodes": sorted(node["NodeID"] for node in ray.nodes()),
        "worked": sorted({row["node"] for row in rows}),
        "rows": sorted(row["text"] for row in rows),
        "fates": cleaned.fates(),
    }
    ray.shutdown()
    cluster.shutdown()
    print("SEEN " + json.dumps(seen))


if __name__ == "__main__":
    main(*sys.argv[1:])
