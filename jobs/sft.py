"""Supervised fine-tuning: a causal LM learns to write the completions of prompt/completion rows, or the answers
in conversations."""

from __future__ import annotations

import sys
from typing import Any

from jobs import command
from jobs.supervised import FineTuning, WriterConfig


class _SFT(FineTuning):
    def options(self, config: Any) -> dict[str, Any]:
        return {"stop_strings": config.stop_strings}


JOB = _SFT("sft", rows="prompt_completion")
parents, check, plan, run, steps = JOB.parents, JOB.check, JOB.plan, JOB.run, JOB.steps


class SFTConfig(WriterConfig):
    """Supervised fine-tuning of a causal LM on prompt/completion rows or conversations."""


def main(argv: list[str] | None = None) -> int:
    return command.main("sft", SFTConfig, check, plan, run, argv, parents=parents, steps=steps)


if __name__ == "__main__":
    sys.exit(main())
