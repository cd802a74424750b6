"""Which run a job belongs to: its name, where its stages go, its seed."""

from typing import Literal

from pydantic import Field, field_validator

from rayrlhf.config import Section


class RunConfig(Section):
    """A run is a folder of stage directories, `ROOT/NAME/STAGE/step_000120/`."""

    name: str = Field(pattern=r"^[\w.-]+$", description="the run's name, a folder under `root`")
    root: str = Field(
        default="runs",
        min_length=1,
        description="where runs live: a folder or an fsspec URI such as s3://bucket/runs",
    )
    seed: int = Field(default=0, ge=0, description="seeds weights, data order and sampling")
    when_changed: Literal["refuse", "replace"] = Field(
        default="refuse", description="what to do with a stage that is there and was made from other inputs"
    )

    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = Field(
        default=("tensorboard",),
        description="where metrics go beside metrics.jsonl and Ray's dashboard; wandb and mlflow are installed with "
        "pip install -e '.[wandb]', and take their own environment variables",
    )

    @field_validator("trackers")
    @classmethod
    def _each_once(cls, trackers: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(trackers)) < len(trackers):
            raise ValueError(f"{', '.join(trackers)} names one twice")
        return trackers

    @property
    def directory(self) -> str:
        """`ROOT/NAME`."""
        return f"{self.root.rstrip('/')}/{self.name}"

    def stage(self, name: str) -> str:
        """`ROOT/NAME/STAGE`."""
        return f"{self.directory}/{name}"
