"""What sampling one step ahead does to what is learnt: `python -m benchmarks.ahead_reward arithmetic|demo [SEEDS]`.

The stages before RL are made once; then RL and the evaluation run with max_staleness 0 and 1 from the same models, for
each seed.  The means over the seeds are compared with how far the seeds of one setting lie apart.  Writes
benchmarks/results/ahead-reward-TASK-DATE.json.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.record_demo import cpu_model

ROOT = Path("runs/ahead-reward")
BEFORE, AFTER = ("prepare", "pretrain", "sft", "reward_model"), ("ppo", "evaluate", "serve")
METRICS = {  # of the evaluation on held-out prompts
    "arithmetic": ("eval/policy/score", "eval/policy/kl"),
    "demo": ("eval/policy/score", "eval/policy/gold", "eval/policy/gold_positive_share", "eval/policy/kl"),
}


@dataclass
class Setting:
    """The runs of one max_staleness, a number a seed."""

    metrics: dict[str, list[float]] = field(default_factory=dict)
    step_s: list[float] = field(default_factory=list)  # medians

    def told(self) -> dict[str, object]:
        """As JSON, with mean, spread (largest less smallest) and standard deviation of each metric."""
        return {
            "metrics": {
                name: {
                    "by_seed": found,
                    "mean": statistics.mean(found),
                    "spread": max(found) - min(found),
                    "deviation": statistics.stdev(found) if len(found) > 1 else None,
                }
                for name, found in self.metrics.items()
            },
            "median_step_s": self.step_s,
        }


def pipeline(task: str, name: str, left_out: tuple[str, ...], *keys: str) -> Path:
    """Run the task's pipeline without those stages; the run's folder.  Raises SystemExit with the end of its log."""
    given = Path(f"jobs/configs/{task}.yaml").read_text()
    without = [f"{stage}=null" for stage in left_out if f"\n{stage}:" in given]
    run = [f"run.name={name}", f"run.root={ROOT}", "run.trackers=[]"]
    command = [sys.executable, "-m", "jobs.pipeline", f"jobs/configs/{task}.yaml", *run, *without, *keys]
    log = ROOT / f"{name}.log"
    with log.open("w") as out:
        code = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT).returncode
    if code:
        raise SystemExit(log.read_text()[-3000:])
    return ROOT / name


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ahead_reward")
    parser.add_argument("task", choices=sorted(METRICS))
    parser.add_argument("seeds", nargs="?", type=int, default=3)
    arguments = parser.parse_args()
    task = arguments.task
    ROOT.mkdir(parents=True, exist_ok=True)
    before = pipeline(task, task, AFTER)
    settings = {0: Setting(), 1: Setting()}
    for seed in range(arguments.seeds):
        for staleness, setting in settings.items():
            keys = (f"upstream={before}", f"run.seed={seed}", f"ppo.max_staleness={staleness}")
            run = pipeline(task, f"{task}-seed{seed}-ahead{staleness}", (*BEFORE, "serve"), *keys)
            rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
            steps = [row for row in rows if row["stage"] == "ppo" and "time/step_s" in row]
            assert {row["sync/staleness"] for row in steps[1:]} == {staleness}
            setting.step_s.append(statistics.median(row["time/step_s"] for row in steps))
            found = json.loads((run / "summary.json").read_text())["stages"]["evaluate"]["metrics"]
            for name in METRICS[task]:
                setting.metrics.setdefault(name, []).append(found[name])
            told = ", ".join(f"{name} {found[name]:.3f}" for name in METRICS[task])
            print(f"seed {seed}, max_staleness {staleness}: {told}, {setting.step_s[-1]:.2f} s a step", flush=True)
    date = datetime.date.today().isoformat()
    result = {
        "date": date,
        "command": f"python -m benchmarks.ahead_reward {task} {arguments.seeds}",
        "machine": {"cpu": cpu_model(), "cores": os.cpu_count()},
        **{f"max_staleness={staleness}": setting.told() for staleness, setting in settings.items()},
    }
    path = Path(__file__).parent / "results" / f"ahead-reward-{task}-{date}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    for name in METRICS[task]:
        first, second = (setting.metrics[name] for setting in settings.values())
        apart = abs(statistics.mean(first) - statistics.mean(second))
        spread = max(max(found) - min(found) for found in (first, second))
        means = f"{statistics.mean(first):.3f} and {statistics.mean(second):.3f}"
        print(f"{name}: means {means}, {apart:.3f} apart; seeds lie {spread:.3f} apart")


if __name__ == "__main__":
    main()
