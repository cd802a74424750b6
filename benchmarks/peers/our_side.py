"""Our side: each row is the job that a user would run, `rayrlhf sft ...` and so on, read from its metrics.jsonl."""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.peers import reference_cost
from benchmarks.peers.steps import Steps
from benchmarks.peers.task import MAX_NEW_TOKENS, MAX_TOKENS, PPO_EPOCHS
from rayrlhf.checkpoint import find_stage

# one worker (rank) a core, rather than one with threads: the passes of a small model are too small to be split
MINIBATCH, WORKERS, MICROBATCH_TOKENS = 32, 2, 1024
_SUPERVISED = [
    f"train.minibatch={MINIBATCH}",
    f"train.num_workers={WORKERS}",
    f"train.microbatch_tokens={MICROBATCH_TOKENS}",
]
_ENGINE = ["lr=1e-4"]


def command(row: str, task: Path, root: Path, steps: int, dtype: str, more: list[str]) -> list[str]:
    """The job's command line."""
    engine = [*_ENGINE, f"precision={dtype}"]
    job = "ppo" if row in ("grpo", "ppo") else row
    common = [f"run.name={row}", f"run.root={root}", "run.trackers=[]"]
    if job == "ppo":
        keys = [
            f"policy_model={task}/model",
            f"prompts.train={task}/prompts.jsonl",
            f"prompts.validation={task}/prompts.jsonl",
            "prompts.max_tokens=32",
            f"sampling.max_new_tokens={MAX_NEW_TOKENS}",
            "rollout.kv_cache_gib=0.5",
            *(f"{role}.engine.{key}" for role in LEARN[row] for key in engine),
            f"loop.steps={steps}",
            "loop.rollout_batch=64",
            f"loop.evaluate_every={steps}",
            "loop.evaluation_prompts=8",
            f"loop.save_every={steps}",
            *([f"reward_model={task}/scorer"] if row == "ppo" else []),
            *_ALGORITHMS[row],
        ]
    else:
        name = {"reward_model": "pairs"}.get(row, row)
        keys = [
            f"model={task}/model",
            f"data.train={task}/{name}.jsonl",
            f"data.max_tokens={MAX_TOKENS}",
            f"train.max_steps={steps}",
            f"train.save_every={steps}",
            *_SUPERVISED,
            *(f"train.engine.{key}" for key in engine),
        ]
    return [sys.executable, "-m", f"jobs.{job}", *common, *keys, *more]


_ALGORITHMS = {
    "grpo": [
        "layout.roles.policy.ranks=2",
        "reward_function=benchmarks.peers.rewards:vowels",
        "algorithm.estimator=grpo",
        "algorithm.group_size=8",
        "algorithm.kl.beta=0.05",
        "policy.epochs=1",
        "policy.minibatch=64",
    ],
    "ppo": [  # policy and critic learn side by side, a core each
        "algorithm.kl.beta=0.05",
        *(f"{role}.{key}" for role in ("policy", "critic") for key in (f"epochs={PPO_EPOCHS}", "minibatch=64")),
    ],
}

LEARN = {"grpo": ("policy",), "ppo": ("policy", "critic")}


def steps_of(metrics: Path, stage: str) -> Steps:
    """Wall time from one step's row to the next one's; of the first step its own `time/step_s`."""
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    rows = [row for row in rows if row["stage"] == stage and row["step"] >= 1]
    times = [row["time_s"] for row in rows]
    seconds = [rows[0]["time/step_s"], *(after - before for before, after in zip(times, times[1:], strict=False))]
    if "data/tokens" in rows[0]:
        sums = [0, *(int(row["data/tokens"]) for row in rows)]
        tokens = [after - before for before, after in zip(sums, sums[1:], strict=False)]
    else:
        tokens = [int(row["rollout/tokens"]) for row in rows]
    return Steps(seconds, tokens)


def phases(metrics: Path, warm_up: int) -> dict[str, float]:
    """Medians over an RL run's steps, of seconds, and of the shares of a step that publishing takes and that is spent
    outside of the models: neither sampling nor in the slowest of the roles that judge, and of those that learn."""
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    rows = [row for row in rows if row["stage"] == "ppo" and row["step"] > warm_up]
    found: dict[str, list[float]] = {}
    for row in rows:
        seconds = {name: s for name, s in row.items() if name.startswith("time/") and name.endswith("_s")}
        if "time/sample_wait_s" not in row:  # sampling is a part of the step
            of_models = row["time/rollout_generate_s"]
            of_models += max(s for name, s in seconds.items() if name.endswith(("logprobs_s", "values_s", "scores_s")))
            of_models += max(s for name, s in seconds.items() if name.endswith("update_s"))
            seconds["share_outside_models"] = 1 - of_models / row["time/step_s"]
        if "sync/publish_s" in row:
            seconds["share_publish"] = row["sync/publish_s"] / row["time/step_s"]
        for name, number in seconds.items():
            found.setdefault(name, []).append(number)
    return {name: statistics.median(numbers) for name, numbers in found.items()}


def speaker(folder: Path) -> Path:
    """The model of FOLDER/task after 100 steps of SFT: it has learnt where texts end."""
    root = folder / "speaker"
    if not (root / "sft").exists():
        learn = command("sft", folder / "task", root, 100, "float32", ["train.engine.lr=1e-3"])
        subprocess.run(learn, stdout=subprocess.DEVNULL, check=True)
    return Path(find_stage(str(root / "sft" / "sft")).model_dir)


def main(row: str, task: str, out: str, steps: int, dtype: str, more: list[str]) -> None:
    root = Path(f"{out}.runs").absolute()
    shutil.rmtree(root, ignore_errors=True)
    began = time.time()
    subprocess.run(command(row, Path(task), root, steps, dtype, more), check=True)
    stage = "ppo" if row in LEARN else row
    metrics = root / row / "metrics.jsonl"
    found = steps_of(metrics, stage)
    first = min(json.loads(line)["time_s"] for line in metrics.read_text().splitlines() if '"step": 1,' in line)
    found.more = {"until_first_step_s": first - began} | (phases(metrics, 3) if row in LEARN else {})
    if row == "dpo":
        each = MINIBATCH * reference_cost.seconds_a_row(Path(task), WORKERS, MICROBATCH_TOKENS, dtype)
        print(f"the reference costs {each:.3f} s a step")
        found.seconds = [seconds + each for seconds in found.seconds]
    found.write(out)


if __name__ == "__main__":
    row, task, out, steps, dtype, *more = sys.argv[1:]
    main(row, task, out, int(steps), dtype, more)
