"""Sampling beside learning: `python -m benchmarks.asynchronous ahead|parts|judge [--rounds N]`.

GRPO on the task of benchmarks/peers (`python -m benchmarks.peers sft sampling` makes both models: runs/bench), two
settings in turns, ABAB.  Where the layout gives sampling a machine of its own, one does not slow the other down; here
the engine is pinned to one core and all other roles to the rest, in all runs.

    ahead  max_staleness 0 and 1; sampling and learning sized to take similar time
    parts  max_staleness 4, responses that end anywhere below 224 tokens sampled whole and in parts of 64 tokens
    judge  128 responses of 25 tokens on average and 104 at most, judged when all have ended and in 4 parts while others
           are sampled

Writes benchmarks/results/asynchronous-EXPERIMENT-DATE.json.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers import our_side, task
from benchmarks.record_demo import cpu_model

BENCH, ROOT = Path("runs/bench"), Path("runs/ahead")
WARM_UP = 4
KEYS = (
    "run.trackers=[]",
    "prompts.max_tokens=32",
    "rollout.kv_cache_gib=0.5",
    "layout.roles.rollout.threads=1",
    "reward_function=benchmarks.peers.rewards:vowels",
    "algorithm.estimator=grpo",
    "algorithm.group_size=8",
    "algorithm.kl.beta=0.05",
    "policy.epochs=1",
    "policy.engine.precision=float32",
    "loop.evaluation_prompts=8",
)


@dataclass(frozen=True)
class Experiment:
    """Two settings of the same run."""

    steps: int
    rows: int  # responses a step, in one minibatch
    max_new_tokens: int
    is_speaker: bool  # the model that ends texts by itself
    settings: tuple[tuple[str, ...], tuple[str, ...]]
    keys: tuple[str, ...] = ()  # of both


EXPERIMENTS = {
    "ahead": Experiment(16, 16, 224, False, (("max_staleness=0",), ("max_staleness=1",))),
    "parts": Experiment(24, 32, 224, True, (("max_staleness=4",), ("max_staleness=4", "partial_rollout_tokens=64"))),
    # at the usual rate it has unlearnt after a step where texts end
    "judge": Experiment(24, 128, 224, True, (("judge_parts=1",), ("judge_parts=4",)), ("policy.engine.lr=1e-6",)),
}
SECONDS = ("rollout_generate", "policy_logprobs", "reference_logprobs", "policy_update", "sample_wait")


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


def run(experiment: Experiment, setting: tuple[str, ...], name: str) -> dict[str, float]:
    """A step's wall seconds ("step") and those of its calls, means, the first and the last steps left out."""
    shutil.rmtree(ROOT / name, ignore_errors=True)
    ROOT.mkdir(parents=True, exist_ok=True)
    made, steps = BENCH / "task", experiment.steps
    model = our_side.speaker(BENCH.absolute()) if experiment.is_speaker else made / "model"
    command = [sys.executable, "-m", "jobs.ppo", f"run.name={name}", f"run.root={ROOT}"]
    command += [*KEYS, *experiment.keys, *setting]
    command += [f"policy_model={model}", f"prompts.train={made}/prompts.jsonl"]
    command += [f"prompts.validation={made}/prompts.jsonl", f"sampling.max_new_tokens={experiment.max_new_tokens}"]
    command += [f"loop.rollout_batch={experiment.rows}", f"policy.minibatch={experiment.rows}"]
    command += [f"loop.steps={steps}", f"loop.evaluate_every={steps}", f"loop.save_every={steps}"]
    with (ROOT / f"{name}.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        while process.poll() is None:
            pin()
            time.sleep(1)
    if process.returncode:
        raise SystemExit((ROOT / f"{name}.log").read_text()[-3000:])
    rows = [json.loads(line) for line in (ROOT / name / "metrics.jsonl").read_text().splitlines()]
    # the last step evaluates too, and with sampling ahead nothing is left to sample beside the ones before it
    rows = [row for row in rows if row["stage"] == "ppo" and WARM_UP <= row["step"] < steps - 5]
    times = [row["time_s"] for row in rows]
    found = {"step": (times[-1] - times[0]) / (len(times) - 1)}  # no median: long responses come in some steps only
    for key in (f"time/{part}_s" for part in SECONDS):  # beside learning a call ends within one of the steps
        found[key] = sum(row.get(key, 0.0) for row in rows) / len(rows)
    for key in ("rollout/tokens", "rollout/finished_share", "sync/staleness", "sync/partial_share"):
        if key in rows[0]:
            found[key] = statistics.mean(row[key] for row in rows)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.asynchronous")
    parser.add_argument("experiment", choices=EXPERIMENTS)
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    task.make((BENCH / "task").absolute())
    experiment = EXPERIMENTS[arguments.experiment]
    runs: dict[str, list[dict[str, float]]] = {" ".join(setting): [] for setting in experiment.settings}
    for _ in range(arguments.rounds):
        for number, setting in enumerate(experiment.settings):
            found = run(experiment, setting, f"{arguments.experiment}{number}")
            runs[" ".join(setting)].append(found)
            print(" ".join(setting), json.dumps({key: round(value, 3) for key, value in found.items()}), flush=True)
    before, after = (statistics.median(one["step"] for one in found) for found in runs.values())
    print(f"{before:.2f} -> {after:.2f} s a step, {before / after:.2f}x as many steps")
    date = datetime.date.today().isoformat()
    result = {
        "date": date,
        "command": f"python -m benchmarks.asynchronous {arguments.experiment} --rounds {arguments.rounds}",
        "machine": {"cpu": cpu_model(), "cores": os.cpu_count()},
        "keys": KEYS + experiment.keys,
        "rows": experiment.rows,
        "max_new_tokens": experiment.max_new_tokens,
        "runs": runs,
        "speed": before / after,
    }
    path = Path(__file__).parent / "results" / f"asynchronous-{arguments.experiment}-{date}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
