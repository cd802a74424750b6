"""MLflow: an experiment for the run, an MLflow run for each stage."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from typing import Any

from rayrlhf.trackers.base import StageOfRun

_BATCH = 100  # parameters that MLflow takes at once
_NOT_IN_NAMES = re.compile(r"[^\w\-. :/]")


class MLflow:
    """An MLflow run at MLFLOW_TRACKING_URI, without one in the SQLite file `runs/NAME/mlflow.db`.

    MLflow keeps every value of a step. So steps that a rollback or a resumed stage takes again have two, the later one
    with the later time.
    """

    def __init__(self, stage: StageOfRun) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        directory = os.path.abspath(stage.directory)
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        self._client = MlflowClient(uri or f"sqlite:///{directory}/mlflow.db")
        known = stage.known_id("mlflow")
        if known is not None:
            self._id = known
            self._client.update_run(known, "RUNNING")
            return
        experiment = self._client.get_experiment_by_name(stage.run)
        # without a server's own place for artifacts MLflow would name one relative to the working directory
        artifacts = None if uri else f"{directory}/mlflow_artifacts"
        number = experiment.experiment_id if experiment else self._client.create_experiment(stage.run, artifacts)
        self._id = self._client.create_run(number, run_name=stage.stage).info.run_id
        stage.remember_id("mlflow", self._id)
        params = [Param(name, str(value)) for name, value in _flat("", stage.config)]
        for start in range(0, len(params), _BATCH):
            self._client.log_batch(self._id, params=params[start : start + _BATCH])

    def log(self, step: int, metrics: dict[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        values = [Metric(_NOT_IN_NAMES.sub("_", name), float(value), now, step) for name, value in metrics.items()]
        self._client.log_batch(self._id, metrics=values)

    def rewind(self, done: int) -> None:
        pass  # see the class

    def close(self, is_failed: bool) -> None:
        self._client.set_terminated(self._id, "FAILED" if is_failed else "FINISHED")


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Dotted keys and their values."""
    if not isinstance(value, dict):
        yield prefix, value
        return
    for key, inner in value.items():
        yield from _flat(f"{prefix}.{key}" if prefix else key, inner)
