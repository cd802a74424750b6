"""The coordinator at 8 to 1,024 simulated GPUs: `python -m benchmarks.scale LABEL`, a few minutes.

Writes under LABEL into benchmarks/results/scale-DATE.json, beside what other labels left there (`before` and `after` a
change, say); benchmarks/scale/plot.py draws them.  What is measured and what is assumed: docs/scale.md.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import ray
import torch

from benchmarks.record_demo import cpu_model
from benchmarks.scale import cluster as assumed
from benchmarks.scale import publish, step, traffic
from benchmarks.scale.cluster import Cluster
from cluster.bring_up import ENVIRONMENT

RESULTS = Path(__file__).parents[1] / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("label")
    parser.add_argument("--gpus", type=int, nargs="+", default=[8, 64, 256, 1024])
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--processes", type=int, default=24, help="real Ray actors at most; 0: none")
    parser.add_argument("--real-gpus", type=int, nargs="*", default=[8, 64], help="sizes to run over real Ray actors")
    tokens = "of a prompt, and of a response; with 2 what is left is what calls cost"
    parser.add_argument("--tokens", type=int, default=Cluster.half, help=tokens)
    given = parser.parse_args()
    # what a driver starts its cluster with
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    ray.init(num_cpus=1, object_store_memory=4 * 2**30, log_to_driver=False, include_dashboard=False, logging_level=40)
    torch.set_num_threads(1)  # CPU seconds are then those that a step waits for on an idle core
    runs = []
    for gpus in given.gpus:
        cluster = Cluster(gpus, given.tokens)
        run: dict[str, Any] = cluster.about() | {"load_before": round(os.getloadavg()[0], 2)}
        run["coordinator"] = step.in_process(cluster, given.steps)
        run["network"] = traffic.of_step(cluster)
        if given.processes and gpus in given.real_gpus:
            run["ray_actors"] = step.over_processes(cluster, given.processes, given.steps)
        runs.append(run)
        print(json.dumps(run, indent=1), flush=True)
    rates = publish.rates()
    result = {
        "date": datetime.date.today().isoformat(),
        "command": f"python -m benchmarks.scale {' '.join(sys.argv[1:])}",
        "machine": {"cpu": cpu_model(), "cores": os.cpu_count(), "torch_threads": torch.get_num_threads()},
        "assumed": {
            "rows_a_gpu": assumed.ROWS_PER_GPU,
            "prompt_tokens": given.tokens,
            "response_tokens": given.tokens,
            "latencies_s": assumed.LATENCIES_S,
            "link_bytes_per_s": traffic.LINK_BYTES_PER_S,
        },
        "runs": runs,
        "publish_rates_measured": rates,
        "publish_model": publish.table(given.gpus, rates),
    }
    print(json.dumps(result["publish_model"], indent=1))
    path = RESULTS / f"scale-{time.strftime('%Y-%m-%d')}.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(results | {given.label: result}, indent=1) + "\n")
    print(f"wrote {given.label} into {path}")


if __name__ == "__main__":
    main()
