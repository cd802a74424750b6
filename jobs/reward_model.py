"""The reward model: a language model with a scalar head learns which of two texts people prefer."""

from __future__ import annotations

import sys

from jobs import command
from jobs.supervised import FineTuneConfig, FineTuning
from rayrlhf.training.job import PAIR_METRICS

JOB = FineTuning("reward_model", rows="preference", metrics=PAIR_METRICS, texts_per_row=2)
parents, check, plan, run = JOB.parents, JOB.check, JOB.plan, JOB.run


class RewardModelConfig(FineTuneConfig):
    """Bradley-Terry training on prompt/chosen/rejected rows (Ouyang et al. 2022); a reward model may be continued."""


def main(argv: list[str] | None = None) -> int:
    return command.main("reward_model", RewardModelConfig, check, plan, run, argv, parents=parents)


if __name__ == "__main__":
    sys.exit(main())
