"""`rayrlhf JOB [CONFIG.yaml] [key=value ...]`: the same as `python -m jobs.JOB ...`; and tools:
`rayrlhf cluster up`, `rayrlhf submit JOB ...`, `rayrlhf watch RUN`, `rayrlhf compare RUN RUN`, `rayrlhf doctor`."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Sequence

from jobs.command import USER_ERROR, complain

JOBS = {
    "prepare": "read, clean and split the data, train the tokenizer",
    "ngram_model": "count an n-gram model of good text, for prepare's perplexity filter",
    "quality_classifier": "train a classifier of good and bad text, for prepare's quality filter",
    "pretrain": "train a causal language model on text",
    "sft": "fine-tune on prompt and completion",
    "reward_model": "train a reward model on preferences, rankings, ratings or labels",
    "pairs": "sample from a model and rank the samples: preference rows",
    "dpo": "train the policy on preferences directly",
    "kto": "train the policy on completions labelled good or bad",
    "ppo": "train the policy against the reward model or function (also GRPO, RLOO, REINFORCE++)",
    "evaluate": "compare a policy with the one it started from",
    "generate": "answer prompts in the terminal, without a cluster",
    "serve": "serve a model over HTTP, OpenAI's protocol",
    "pipeline": "all stages as one job, skipping finished ones",
}
SUBMISSION = {
    "submit": "run a job on a cluster: submit JOB [CONFIG.yaml] [key=value ...] [--address URL]",
    "jobs": "list a cluster's submitted jobs",
    "logs": "show, or follow, what a job prints",
    "stop": "end a job, resumably",
}
REPORTING = {
    "report": "write a run's report.html and summary.json: report RUN",
    "compare": "overlay runs in one HTML file: compare RUN1 RUN2 [...] [--output FILE]",
}
TOOLS = (
    {"cluster": "a cluster on this machine: cluster up [--nodes N] | status [--address URL] | down"}
    | SUBMISSION
    | {"watch": "a run in the terminal, live or finished: watch RUN [--stage STAGE] [--once] [--interval S]"}
    | REPORTING
    | {"doctor": "say what is missing on this machine and how to mend it"}
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the job that the first argument names; returns the exit code."""
    if os.getcwd() not in sys.path:  # as for `python -m`: a reward function may be a module of this folder
        sys.path.insert(0, os.getcwd())
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("--help", "-h", "help"):
        print(usage())
        return 0
    name, *rest = arguments
    if name in ("--version", "-V"):
        from rayrlhf.version import __version__

        print(f"rayrlhf {__version__}")
        return 0
    if name == "doctor":
        from rayrlhf import doctor

        return doctor.main(rest)
    if name == "watch":
        from jobs import watch

        return watch.watch(rest)
    if name in REPORTING:
        from jobs import reporting

        return reporting.run(name, rest)
    if name == "cluster":
        from jobs import local_cluster

        return local_cluster.run(rest)
    if name in SUBMISSION:
        from jobs import submission

        return submission.run(name, rest)
    if name not in JOBS:
        near = difflib.get_close_matches(name, [*JOBS, *TOOLS], n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join([*JOBS, *TOOLS])}."
        complain(f"no job {name!r}; {hint} `rayrlhf --help` says what each does.")
        return USER_ERROR
    job = importlib.import_module(f"jobs.{name}")
    return int(job.main(rest))


def usage() -> str:
    """What `rayrlhf --help` prints."""
    lines = ["usage: rayrlhf JOB [CONFIG.yaml] [key=value ...] [--help | --print-config | --dry-run]", ""]
    for title, commands in (("jobs", JOBS), ("tools", TOOLS)):
        lines += [title, *(f"  {name:<20}{about}" for name, about in commands.items()), ""]
    lines.append("`rayrlhf JOB --help` lists every key of a job; `rayrlhf --version` is there too.")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
