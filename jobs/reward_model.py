"""The reward model: a language model with a scalar head learns which of two texts people prefer."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from pydantic import Field

from jobs import command
from rayrlhf.config import Section
from rayrlhf.data.config import DataConfig
from rayrlhf.run import RunConfig
from rayrlhf.training.config import TrainConfig

if TYPE_CHECKING:
    from cluster.layout import RolePlan

KIND = "reward_model"
ROWS = "preference"


class RewardModelConfig(Section):
    """Bradley-Terry training on pairs (Ouyang et al. 2022)."""

    run: RunConfig = Field(description="which run this is")
    model: str = Field(
        description="the model to start from, a causal LM or a reward model: a stage directory or a Hugging Face folder"
    )
    data: DataConfig = Field(description="prompt/chosen/rejected rows")
    train: TrainConfig = Field(default=TrainConfig(), description="how it is trained")


def parents(config: RewardModelConfig) -> dict[str, str]:
    """What this stage is made from."""
    from rayrlhf.training.job import data_parent

    return {"model": config.model, "data": data_parent(config.data.train)}


def check(config: RewardModelConfig) -> None:
    """Model and data are there and fit together; UserError otherwise."""
    from rayrlhf.checkpoint import model_folder
    from rayrlhf.models.causal_lm import check_folder
    from rayrlhf.training import job

    job.check(ROWS, config.data, config.train, check_folder(model_folder(config.model)))


def plan(config: RewardModelConfig) -> list[RolePlan]:
    """The Ray Train workers."""
    from cluster.memory import parameters_in
    from jobs.workers import worker_plan
    from rayrlhf.checkpoint import model_folder

    return worker_plan(KIND, config.train, parameters_in(model_folder(config.model)))


def run(config: RewardModelConfig) -> str:
    """Train; returns the finished stage directory.  Ray is connected."""
    from rayrlhf.checkpoint import model_folder
    from rayrlhf.training.launcher import fit

    return fit(
        KIND,
        ROWS,
        config.run,
        config.data,
        config.train,
        model_folder(config.model),
        config.model_dump(mode="json"),
        parents(config),
    )


if __name__ == "__main__":
    sys.exit(command.main(KIND, RewardModelConfig, check, plan, run))
