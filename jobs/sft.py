"""Supervised fine-tuning: a causal LM learns to write the completions of prompt/completion rows, or the answers
in conversations."""

from __future__ import annotations

import sys

from jobs import command
from jobs.supervised import FineTuneConfig, FineTuning

JOB = FineTuning("sft", rows="prompt_completion")
parents, check, plan, run = JOB.parents, JOB.check, JOB.plan, JOB.run


class SFTConfig(FineTuneConfig):
    """Supervised fine-tuning of a causal LM on prompt/completion rows or conversations."""


def main(argv: list[str] | None = None) -> int:
    return command.main("sft", SFTConfig, check, plan, run, argv, parents=parents)


if __name__ == "__main__":
    sys.exit(main())
