"""Supervised fine-tuning: a causal LM learns to write the completions of prompt/completion rows."""

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

KIND = "sft"
ROWS = "prompt_completion"


class SFTConfig(Section):
    """Supervised fine-tuning of a causal LM."""

    run: RunConfig = Field(description="which run this is")
    model: str = Field(description="the model to start from: a stage directory or a Hugging Face folder")
    data: DataConfig = Field(description="prompt/completion rows")
    train: TrainConfig = Field(default=TrainConfig(), description="how it is trained")


def parents(config: SFTConfig) -> dict[str, str]:
    """What this stage is made from."""
    from rayrlhf.training.job import data_parent

    return {"model": config.model, "data": data_parent(config.data.train)}


def check(config: SFTConfig) -> None:
    """Model and data are there and fit together; UserError otherwise."""
    from rayrlhf.checkpoint import model_folder
    from rayrlhf.models.causal_lm import check_folder
    from rayrlhf.training import job

    job.check(ROWS, config.data, config.train, check_folder(model_folder(config.model)))


def plan(config: SFTConfig) -> list[RolePlan]:
    """The Ray Train workers."""
    from cluster.memory import parameters_in
    from jobs.workers import worker_plan
    from rayrlhf.checkpoint import model_folder

    return worker_plan(KIND, config.train, parameters_in(model_folder(config.model)))


def run(config: SFTConfig) -> str:
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
    sys.exit(command.main(KIND, SFTConfig, check, plan, run))
