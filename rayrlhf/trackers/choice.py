"""Which trackers a run has (`run.trackers`): checked before anything starts, opened where a stage logs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec

import fsspec

from rayrlhf.errors import ConfigError
from rayrlhf.run import RunConfig
from rayrlhf.trackers.base import StageOfRun, Tracker

# what each needs beyond the project's own requirements, and the variable that replaces its place in the run's folder
_PACKAGES = {"wandb": ("wandb",), "mlflow": ("mlflow", "sqlalchemy", "alembic")}
_PLACES = {"wandb": "WANDB_DIR", "mlflow": "MLFLOW_TRACKING_URI"}
_PREFIXES = ("WANDB_", "MLFLOW_")


def check_trackers(run: RunConfig) -> None:
    """Raises ConfigError for a tracker that is not installed, has nowhere to write, or no account."""
    is_local = "file" in fsspec.core.url_to_fs(run.directory)[0].protocol
    for name in run.trackers:
        missing = [package for package in _PACKAGES.get(name, ()) if find_spec(package) is None]
        if missing:
            raise ConfigError(
                f"run.trackers has {name}, but {' and '.join(missing)} is not installed: pip install -e '.[{name}]'"
            )
        place = _PLACES.get(name)
        if place and not is_local and not os.environ.get(place):
            raise ConfigError(
                f"run.trackers has {name}, which writes to a disk, and {run.directory} is none: set the environment "
                f"variable {place}"
            )
    if "wandb" in run.trackers:
        _check_login()


def tracker_environment() -> dict[str, str]:
    """The variables of this process that trackers in other processes need."""
    return {name: value for name, value in os.environ.items() if name.startswith(_PREFIXES)}


def open_trackers(names: Sequence[str], stage: StageOfRun) -> list[Tracker]:
    """The trackers of a stage that begins or goes on."""
    return [_open(name, stage) for name in names]


def _open(name: str, stage: StageOfRun) -> Tracker:
    if name == "wandb":
        from rayrlhf.trackers.wandb import WandB

        return WandB(stage)
    if name == "mlflow":
        from rayrlhf.trackers.mlflow import MLflow

        return MLflow(stage)
    from rayrlhf.trackers.tensorboard import TensorBoard

    return TensorBoard(stage)


def _check_login() -> None:
    if os.environ.get("WANDB_MODE", "online") != "online":
        return
    import wandb

    if not wandb.login(prompt=False, verify=False):
        raise ConfigError(
            "run.trackers has wandb, which is not logged in: run `wandb login`, set WANDB_API_KEY, or keep the run on "
            "this disk with WANDB_MODE=offline"
        )
