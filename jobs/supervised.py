"""What SFT and the reward model share as jobs: a model, rows, a training; no job itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from rayrlhf.config import Section
from rayrlhf.data.config import DataConfig
from rayrlhf.run import RunConfig
from rayrlhf.training.config import TrainConfig

if TYPE_CHECKING:
    from cluster.layout import RolePlan


class FineTuneConfig(Section):
    """A stage that starts from a model."""

    run: RunConfig = Field(description="which run this is")
    model: str = Field(description="the model to start from: a stage directory or a Hugging Face folder")
    data: DataConfig = Field(description="the rows")
    train: TrainConfig = Field(default=TrainConfig(), description="how it is trained")


class FineTuning:
    """The four functions of a job whose stage `kind` learns from rows of form `rows`."""

    def __init__(self, kind: str, rows: str) -> None:
        self.kind, self.rows = kind, rows

    def parents(self, config: FineTuneConfig) -> dict[str, str]:
        """What this stage is made from."""
        from rayrlhf.training.job import data_parents

        return {"model": config.model} | data_parents(config.data)

    def check(self, config: FineTuneConfig) -> None:
        """Model and data are there and fit together; UserError otherwise."""
        from rayrlhf.checkpoint import model_folder
        from rayrlhf.models.causal_lm import check_folder
        from rayrlhf.training import job

        job.check(self.rows, config.data, config.train, check_folder(model_folder(config.model)))

    def plan(self, config: FineTuneConfig) -> list[RolePlan]:
        """The Ray Train workers."""
        from cluster.memory import parameters_in
        from rayrlhf.checkpoint import model_folder

        return worker_plan(self.kind, config.train, parameters_in(model_folder(config.model)))

    def run(self, config: FineTuneConfig) -> str:
        """Train; returns the finished stage directory.  Ray is connected."""
        from rayrlhf.checkpoint import model_folder
        from rayrlhf.training.launcher import fit

        describe, parents = config.model_dump(mode="json"), self.parents(config)
        folder, more = model_folder(config.model), self.options(config)
        return fit(self.kind, self.rows, config.run, config.data, config.train, folder, describe, parents, **more)

    def options(self, config: Any) -> dict[str, Any]:
        """Further arguments of `fit`: a loss of its own, its reference."""
        return {}


def worker_plan(name: str, train: TrainConfig, num_parameters: int) -> list[RolePlan]:
    """One role of `train.num_workers` equal Ray Train workers that train `num_parameters` parameters."""
    from cluster import layout
    from cluster.memory import estimate

    memory = estimate("policy", num_parameters, train.num_workers, train.engine.zero_stage)
    cpus, gpus, threads = train.cpus_per_worker, train.gpus_per_worker, train.threads_per_worker
    return [layout.worker_plan(name, train.num_workers, cpus, gpus, memory, threads)]
