"""Pretraining: a Llama from scratch (or a model continued) learns plain text."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from pydantic import Field

from jobs import command
from rayrlhf.config import Section
from rayrlhf.data.config import DataConfig
from rayrlhf.models.config import ModelConfig
from rayrlhf.run import RunConfig
from rayrlhf.training.config import TrainConfig

if TYPE_CHECKING:
    from cluster.layout import RolePlan
    from rayrlhf.models.targets import Shapes
    from rayrlhf.profile_steps import Steps

KIND = "pretrain"
ROWS = "text"


class PretrainConfig(Section):
    """Pretraining of a causal LM on plain text."""

    run: RunConfig = Field(description="which run this is")
    model: ModelConfig = Field(description="the size of a fresh model, or the model to continue from")
    data: DataConfig = Field(description="text rows")
    train: TrainConfig = Field(default=TrainConfig(), description="how it is trained")


def parents(config: PretrainConfig) -> dict[str, str]:
    """What this stage is made from."""
    from rayrlhf.training.job import data_parents

    role = "model" if config.model.from_folder else "tokenizer"
    return {role: config.model.source()} | data_parents(config.data)


def check(config: PretrainConfig) -> None:
    """Tokenizer (or model) and data are there and fit together; UserError otherwise."""
    from rayrlhf.models.causal_lm import check_tokenizer, check_writes, load_tokenizer
    from rayrlhf.training import job

    folder = _folder(config)
    if config.model.from_folder:
        context = check_writes(folder, f"model.from_folder={config.model.from_folder}")
    else:
        check_tokenizer(folder)
        context = config.model.context
    tokenizer = load_tokenizer(folder)
    job.check(ROWS, config.data, config.train, context, tokenizer=lambda: tokenizer)


def plan(config: PretrainConfig) -> list[RolePlan]:
    """The Ray Train workers."""
    from jobs.supervised import worker_plan

    return worker_plan(KIND, config.train, shapes(config))


def shapes(config: PretrainConfig) -> Shapes:
    """The weights of the model to come, or to be continued."""
    from rayrlhf.models.causal_lm import vocabulary_size
    from rayrlhf.models.headers import tensor_shapes

    folder = _folder(config)
    return tensor_shapes(folder) if config.model.from_folder else config.model.shapes(vocabulary_size(folder))


def steps(config: PretrainConfig) -> int | None:
    """The most that are taken; None where the rows decide."""
    return config.train.max_steps


def run(config: PretrainConfig, profile: Steps | None = None) -> str:
    """Train; returns the finished stage directory.  `profile`: the steps to record.  Ray is connected."""
    from rayrlhf.training.launcher import fit

    return fit(
        KIND,
        ROWS,
        config.run,
        config.data,
        config.train,
        _folder(config),
        config,
        parents(config),
        new=None if config.model.from_folder else config.model,
        profile=profile,
    )


def _folder(config: PretrainConfig) -> str:
    """The folder with the tokenizer, and the weights when continuing."""
    from rayrlhf.model_folder import model_folder
    from rayrlhf.models.causal_lm import has_tokenizer

    source = config.model.source()
    return source if has_tokenizer(source) else model_folder(source)


def main(argv: list[str] | None = None) -> int:
    return command.main(KIND, PretrainConfig, check, plan, run, argv, parents=parents, steps=steps)


if __name__ == "__main__":
    sys.exit(main())
