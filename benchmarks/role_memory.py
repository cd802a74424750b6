"""What the plan expects each actor of a run to hold, beside what it held: `python benchmarks/role_memory.py runs/demo`.

Takes the run's PPO and supervised stages, whose `metrics.jsonl` has `perf/ROLE_memory_gib` (of a supervised stage's
workers `perf/worker_memory_gib`).  Run it where the configurations' relative paths are right.  Writes
benchmarks/results/role-memory-NAME-DATE.json.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

from rayrlhf.checkpoint import find_stage

CONFIGS = {"pretrain": "PretrainConfig", "sft": "SFTConfig", "reward_model": "RewardModelConfig", "ppo": "PPOConfig"}


def compare(run: Path) -> dict[str, dict[str, float]]:
    """`{STAGE/ROLE: {expected, held, ratio}}`, GiB of one actor at its peak."""
    found: dict[str, dict[str, float]] = {}
    held = _held(run)
    for stage in (name for name in CONFIGS if (run / name).is_dir()):
        for role, expected in _expected(stage, find_stage(str(run / stage)).manifest["config"]).items():
            most = held.get((stage, role))
            if most is None:  # measured with a validation, by versions that measure
                continue
            found[f"{stage}/{role}"] = {"expected": expected, "held": most, "ratio": expected / most}
    return found


def _held(run: Path) -> dict[tuple[str, str], float]:
    most: dict[tuple[str, str], float] = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        for name, value in row.items():
            if name.startswith("perf/") and name.endswith("_memory_gib"):
                role = name.removeprefix("perf/").removesuffix("_memory_gib")
                most[row["stage"], role] = max(value, most.get((row["stage"], role), 0.0))
    return most


def _expected(stage: str, config: dict[str, Any]) -> dict[str, float]:
    job = importlib.import_module(f"jobs.{stage}")
    roles = job.plan(getattr(job, CONFIGS[stage]).model_validate(config))
    # on a GPU what counts is the GPU's memory
    kinds = {role: ("_gpu", role.memory.device) if role.gpus else ("", role.memory.total) for role in roles}
    return {(role.name if stage == "ppo" else "worker") + kind: gib for role, (kind, gib) in kinds.items()}


def main(run: Path) -> None:
    found = compare(run)
    print(f"{'':24}expected     held    ratio")
    for name, numbers in found.items():
        print(f"{name:24}" + "  ".join(f"{numbers[key]:7.2f}" for key in ("expected", "held", "ratio")))
    date = time.strftime("%Y-%m-%d")
    path = Path(__file__).parent / "results" / f"role-memory-{run.name}-{date}.json"
    machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    result = {"date": date, "command": f"python benchmarks/role_memory.py {run}", "machine": machine, "gib": found}
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"wrote {path}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
