"""Keeps the figures of a finished pipeline's run: `python benchmarks/record_demo.py runs/demo "make demo"`.

Writes benchmarks/results/NAME-DATE.json with date, machine, command and the run's summary, and
prints its column of the README's table.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from pathlib import Path

ROWS = {
    "reward model, held-out human pairs": ("reward_model", "eval/accuracy", "{:.3f}"),
    "score, SFT": ("evaluate", "eval/baseline/score", "{:.3f}"),
    "score, policy": ("evaluate", "eval/policy/score", "{:.3f}"),
    "gold mean, SFT": ("evaluate", "eval/baseline/gold", "{:.3f}"),
    "gold mean, policy": ("evaluate", "eval/policy/gold", "{:.3f}"),
    "positive share, SFT": ("evaluate", "eval/baseline/gold_positive_share", "{:.1%}"),
    "positive share, policy": ("evaluate", "eval/policy/gold_positive_share", "{:.1%}"),
    "win rate by gold": ("evaluate", "eval/win_rate_gold", "{:.3f}"),
    "win rate by reward model": ("evaluate", "eval/win_rate_reward", "{:.3f}"),
    "KL to SFT, nats a sequence": ("evaluate", "eval/policy/kl", "{:.1f}"),
    "distinct-2, SFT": ("evaluate", "eval/baseline/distinct_2", "{:.3f}"),
    "distinct-2, policy": ("evaluate", "eval/policy/distinct_2", "{:.3f}"),
    "perplexity under the base model, SFT": ("evaluate", "eval/baseline/perplexity", "{:.0f}"),
    "perplexity under the base model, policy": ("evaluate", "eval/policy/perplexity", "{:.0f}"),
    "words known from training, SFT": ("evaluate", "eval/baseline/known_word_share", "{:.1%}"),
    "words known from training, policy": ("evaluate", "eval/policy/known_word_share", "{:.1%}"),
    "tokens a response, SFT": ("evaluate", "eval/baseline/length", "{:.1f}"),
    "tokens a response, policy": ("evaluate", "eval/policy/length", "{:.1f}"),
}


def cpu_model() -> str:
    """The processor's name, where Linux tells it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def largest(run: Path, names: tuple[str, ...]) -> dict[str, float]:
    """The largest value that each metric had in the run, where it had one."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    values = {name: [row[name] for row in rows if row.get(name) is not None] for name in names}
    return {name: max(found) for name, found in values.items() if found}


def main(run: Path, command: str) -> None:
    summary = json.loads((run / "summary.json").read_text())
    for stage in summary["stages"].values():
        stage["directory"] = os.path.relpath(stage["directory"])
    date = time.strftime("%Y-%m-%d")
    pages, page = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    names = ("policy/first_ratio_max_dev", "sync/logprob_gap", "sync/logprob_gap_max", "sync/staleness")
    invariants = largest(run, names)
    record = {
        "date": date,
        "command": command,
        "machine": {"cpu": cpu_model(), "cores": os.cpu_count(), "memory_gib": round(pages * page / 2**30, 1)},
        "largest_over_the_run": invariants,
        "summary": summary,
    }
    path = Path(__file__).parent / "results" / f"{run.name}-{date}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"wrote {path}")
    for label, (stage, metric, form) in ROWS.items():
        metrics = summary["stages"].get(stage, {}).get("metrics", {})
        if metrics.get(metric) is not None:
            print(f"| {label} | {form.format(metrics[metric])} |")
    for name, value in invariants.items():
        print(f"| largest {name} | {value:.1e} |")
    for stage, entry in summary["stages"].items():
        print(f"| seconds of {stage} | {entry['seconds']:.0f} |")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
