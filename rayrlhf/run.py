"""Which run a job belongs to: its name, where its stages go, its seed."""

from typing import Literal

from pydantic import Field

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

    @property
    def directory(self) -> str:
        """`ROOT/NAME`."""
        return f"{self.root.rstrip('/')}/{self.name}"

    def stage(self, name: str) -> str:
        """`ROOT/NAME/STAGE`."""
        return f"{self.directory}/{name}"
