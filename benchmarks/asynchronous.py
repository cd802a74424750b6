"""Sampling ahead of training against taking turns: `python -m benchmarks.asynchronous TASK [STEPS] [ROUNDS]`.

GRPO on the task of benchmarks/peers (`python -m benchmarks.peers` makes it: runs/bench/task), max_staleness 0 and 1
in turns, ABAB.  Where the layout gives sampling a machine of its own, one does not slow the other down; here the engine
is pinned to one core and all other roles to the rest, in both runs.  Writes benchmarks/results/asynchronous-DATE.json.
"""

from __future__ import annotations

import datetime
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.record_demo import cpu_model

WARM_UP = 3
KEYS = [
    "run.trackers=[]",
    "prompts.max_tokens=32",
    "sampling.max_new_tokens=64",
    "rollout.kv_cache_gib=0.5",
    "layout.roles.rollout.threads=1",
    "reward_function=benchmarks.peers.rewards:vowels",
    "algorithm.estimator=grpo",
    "algorithm.group_size=8",
    "algorithm.kl.beta=0.05",
    "policy.minibatch=64",
    "policy.epochs=1",
    "policy.engine.precision=float32",
    "loop.rollout_batch=64",
    "loop.evaluation_prompts=8",
]


def actors() -> dict[int, str]:
    """Processes of Ray's actors by number, as they name themselves."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace")
        except OSError:
            continue
        if words.startswith("ray::"):
            found[int(path.parent.name)] = words
    return found


def pin() -> None:
    """The rollout's threads to core 0, those of the other actors to the other cores."""
    others = set(range(1, os.cpu_count() or 1)) or {0}
    for number, name in actors().items():
        cores = {0} if "rollout" in name.lower() else others
        for thread in Path(f"/proc/{number}/task").glob("*"):
            try:
                os.sched_setaffinity(int(thread.name), cores)
            except OSError:
                continue


def seconds(task: Path, root: Path, staleness: int, steps: int) -> list[float]:
    """Wall seconds from each step's row to the next one's, the first steps left out."""
    name = f"staleness{staleness}"
    shutil.rmtree(root / name, ignore_errors=True)
    root.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "jobs.ppo", f"run.name={name}", f"run.root={root}", *KEYS]
    command += [f"policy_model={task}/model", f"prompts.train={task}/prompts.jsonl"]
    command += [f"prompts.validation={task}/prompts.jsonl", f"max_staleness={staleness}"]
    command += [f"loop.steps={steps}", f"loop.evaluate_every={steps}", f"loop.save_every={steps}"]
    with (root / f"{name}.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        while process.poll() is None:
            pin()
            time.sleep(1)
    if process.returncode:
        raise SystemExit((root / f"{name}.log").read_text()[-3000:])
    rows = [json.loads(line) for line in (root / name / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["stage"] == "ppo" and row["step"] >= WARM_UP]
    assert all(row["sync/staleness"] == staleness for row in rows)
    for key in ("time/rollout_generate_s", "time/policy_update_s", "time/reference_logprobs_s"):
        print(f"  {key} {statistics.median(row[key] for row in rows if key in row):.2f}")
    times = [row["time_s"] for row in rows if row["step"] < steps]  # the last step evaluates too
    return [after - before for before, after in zip(times, times[1:], strict=False)]


def main(task: str, steps: int = 16, rounds: int = 2) -> None:
    found: dict[int, list[float]] = {0: [], 1: []}
    for _ in range(rounds):
        for staleness, medians in found.items():
            took = seconds(Path(task).absolute(), Path("runs/ahead").absolute(), staleness, steps)
            medians.append(statistics.median(took))
            print(f"max_staleness={staleness}: {medians[-1]:.2f} s a step", flush=True)
    speed = statistics.median(found[0]) / statistics.median(found[1])
    print(f"{speed:.2f}x as many steps a second with max_staleness=1")
    date = datetime.date.today().isoformat()
    result = {
        "date": date,
        "command": f"python -m benchmarks.asynchronous TASK {steps} {rounds}",
        "machine": {"cpu": cpu_model(), "cores": os.cpu_count()},
        "keys": KEYS,
        "seconds_a_step": {f"max_staleness={staleness}": medians for staleness, medians in found.items()},
        "speed": speed,
    }
    path = Path(__file__).parent / "results" / f"asynchronous-{date}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    task, *numbers = sys.argv[1:]
    main(task, *map(int, numbers))
