"""Which run a job belongs to: its name, where its stages go, its seed."""

import os
import re
import tempfile
from typing import Literal

import fsspec
from pydantic import Field, field_validator

from rayrlhf.config import Section
from rayrlhf.errors import ConfigError


class RunConfig(Section):
    """A run is a folder of stage directories, `ROOT/NAME/STAGE/step_000120/`."""

    name: str = Field(description="the run's name, a folder under `root`")
    root: str = Field(
        default="runs",
        min_length=1,
        description="where runs live: a folder or an fsspec URI such as s3://bucket/runs",
    )
    seed: int = Field(default=0, ge=0, lt=2**31, description="seeds weights, data order and sampling")
    when_changed: Literal["refuse", "replace"] = Field(
        default="refuse", description="what to do with a stage that is there and was made from other inputs"
    )

    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = Field(
        default=("tensorboard",),
        description="where metrics go beside metrics.jsonl and Ray's dashboard; wandb and mlflow are installed with "
        "pip install -e '.[wandb]', and take their own environment variables",
    )

    @field_validator("name")
    @classmethod
    def _is_a_folder(cls, name: str) -> str:
        if not re.fullmatch(r"[\w.-]+", name) or not name.strip("."):
            raise ValueError(
                f"{name!r} is no name of a folder: use letters, digits, _, - and .; where it lies is run.root"
            )
        return name

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


def check_directory(run: RunConfig) -> None:
    """Raises ConfigError for a run that could not be written: its root is a file, read-only, or of an unknown kind.

    Writes nothing; what is not there yet is made later.  An object store is only asked for its kind.
    """
    try:
        filesystem, where = fsspec.core.url_to_fs(run.directory)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"run.root={run.root} cannot be reached: {error}") from error
    if "file" not in filesystem.protocol:
        return
    while not os.path.lexists(where):
        where = os.path.dirname(where)
    if not os.path.isdir(where):
        raise ConfigError(f"the run cannot be written to {run.directory}: {where} is a file. Set run.root to a folder")
    try:
        with tempfile.TemporaryFile(dir=where):
            pass
    except OSError as error:
        raise ConfigError(
            f"the run cannot be written to {run.directory}: {error.strerror} in {where}. Set run.root to a folder of "
            "your own, or make room there"
        ) from error
