"""How long a publish of weights takes: the network by benchmarks/scale/broadcast.py, a model; digests and copies by
rates that are measured here, on one core."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import ray
import torch

from actors.weight_sync import BUCKET_BYTES, put
from benchmarks.scale import broadcast
from benchmarks.scale.cluster import Cluster
from benchmarks.scale.traffic import LINK_BYTES_PER_S
from rayrlhf.models.digest import tensor_digest

# parameters of Qwen3 0.6B, Qwen2.5 7B and Llama 3 70B; two bytes each
MODELS = {"0.6B": 0.596e9, "7B": 7.616e9, "70B": 70.55e9}


def rates() -> dict[str, float]:
    """Bytes a second of a digest, of a put and of a get of a 256 MiB bucket of bfloat16 tensors, a CPU second."""
    bucket = {f"layer{i}": torch.randn(4096, 4096).bfloat16() for i in range(8)}
    num_bytes = sum(tensor.nbytes for tensor in bucket.values())
    assert num_bytes == BUCKET_BYTES
    ref, _ = put(bucket)

    def rate(function: Callable[[], Any]) -> float:
        taken = []
        for _ in range(5):
            began = time.process_time()
            function()
            taken.append(time.process_time() - began)
        return round(num_bytes / statistics.median(taken))

    return {
        "digest": rate(lambda: [tensor_digest(tensor) for tensor in bucket.values()]),
        "put with digest": rate(lambda: put(bucket)),
        "get": rate(lambda: ray.get(ref)),
    }


def table(sizes: list[int], rates: dict[str, float]) -> list[dict[str, Any]]:
    """A row for each model and number of GPUs whose rollouts are on other nodes than the driver.

    `policy_s`: digests and puts of policy-0, one after the other.  `rollout_s`: gets and digests of each rollout.
    The others are seconds of the network alone: `rotated_s` as it is, `same_order_s` as it was.
    """
    rows = []
    for name, parameters in MODELS.items():
        num_bytes = 2 * parameters
        buckets = int(-(-num_bytes // BUCKET_BYTES))
        bucket_s = num_bytes / buckets / LINK_BYTES_PER_S
        for gpus in sizes:
            nodes = len(Cluster(gpus).nodes_of("rollout") - {0})
            if not nodes:
                continue

            def network(kind: str, fan_out: int = 1) -> float:
                return round(broadcast.seconds(kind, nodes, buckets, bucket_s, fan_out=fan_out), 2)  # noqa: B023

            chain, binary = network("tree"), network("tree", 2)
            rows.append(
                {
                    "model": name,
                    "gpus": gpus,
                    "rollout_nodes": nodes,
                    "gigabytes": round(num_bytes / 1e9, 1),
                    "same_order_s": network("holders"),
                    "rotated_s": network("rotated"),
                    "chain_s": chain,
                    "binary_tree_s": binary,
                    "policy_s": round(num_bytes / rates["put with digest"], 1),
                    "rollout_s": round(num_bytes / rates["digest"] + num_bytes / rates["get"], 1),
                }
            )
    return rows
