"""One log that writes every metric everywhere, and the console line.

Names are `group/name_unit`, where TRL has a name for a thing that one; rayrlhf/metric_names.py has all of them.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Sequence
from typing import Any, TextIO

import fsspec

from rayrlhf.checkpoint import writing
from rayrlhf.metric_names import described, gauge_name
from rayrlhf.redaction import redacted
from rayrlhf.trackers.base import StageOfRun
from rayrlhf.trackers.choice import open_trackers

_MOST = 1e300  # of a number that a line may hold: sums of a few must be finite too
ROW_KEYS = ("stage", "step", "time_s", "total_steps")  # of a row of metrics.jsonl; the rest are metrics


class MetricsLog:
    """Every value of a stage goes to `metrics.jsonl`, `ray.util.metrics` and the run's trackers.

    `directory` is the run's (`runs/NAME`), `config` the stage's resolved configuration.  The Ray gauges carry the tags
    run and stage, and are there only where Ray is connected.  Rows of `stage` after step `done`, left by a run that was
    cut off or is being replaced, are dropped: each step stands in the file once.  Every row says `total_steps`, how
    many the stage takes; 0 for a stage of one row.
    """

    def __init__(
        self,
        directory: str,
        stage: str,
        total_steps: int,
        done: int = -1,
        trackers: Sequence[str] = ("tensorboard",),
        config: dict[str, Any] | None = None,
    ) -> None:
        filesystem, self.directory = fsspec.core.url_to_fs(directory)
        self.stage, self.run = stage, os.path.basename(self.directory.rstrip("/"))
        self.total_steps = total_steps
        self.is_local = "file" in filesystem.protocol
        self._filesystem = filesystem
        filesystem.makedirs(self.directory, exist_ok=True)
        # object stores cannot append: there each stage has a file of its own, written anew with every line
        self._path = f"{self.directory}/metrics{'' if self.is_local else '-' + stage}.jsonl"
        self._gauges: dict[str, Any] = {}
        self._open(done)
        self._trackers = open_trackers(trackers, StageOfRun(directory, stage, done, redacted(config or {})))

    def _open(self, done: int) -> None:
        self._lines = self._earlier(done)
        self._file: TextIO | None = None
        if self.is_local:
            self._file = open(self._path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115

    def rewind(self, done: int) -> None:
        """Drop the stage's rows after step `done`: those steps are taken again."""
        if self._file is not None:
            self._file.close()
        self._open(done)
        for tracker in self._trackers:
            tracker.rewind(done)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Write one step's metrics, `{name: float}`.  Raises CheckpointError where the disk is full."""
        row: dict[str, Any] = {"stage": self.stage, "step": step, "time_s": round(time.time(), 3)}
        row["total_steps"] = self.total_steps
        row |= {name: _plain(value) for name, value in metrics.items()}
        self._write(json.dumps(row))
        for tracker in self._trackers:
            tracker.log(step, metrics)
        self._to_ray(metrics)

    def close(self) -> None:
        """Flush and close all of it.  While an error ends the stage the trackers are told so."""
        is_failed = sys.exc_info()[0] is not None
        for tracker in self._trackers:
            tracker.close(is_failed)
        if self._file is not None:
            with writing(self._path):
                self._file.close()

    def _earlier(self, done: int) -> list[str]:
        """The file's lines without those of this stage after step `done`; the file is cut to them."""
        if not self._filesystem.exists(self._path):
            return []
        lines = self._filesystem.cat_file(self._path).decode().splitlines()
        kept = [line for line in lines if not self._is_stale(line, done)]
        if len(kept) < len(lines):
            self._replace(kept)
        return kept

    def _replace(self, lines: list[str]) -> None:
        """A local file in one step: a kill or a full disk leaves the former one, with the rows of all stages."""
        new = self._path + ".part" if self.is_local else self._path
        with writing(self._path):
            self._filesystem.pipe_file(new, "".join(line + "\n" for line in lines).encode())
            if self.is_local:
                os.replace(new, self._path)

    def _is_stale(self, line: str, done: int) -> bool:
        try:
            row = json.loads(line)
        except ValueError:
            return True  # a line that a kill cut short
        return bool(row["stage"] == self.stage and row["step"] > done)

    def _write(self, line: str) -> None:
        if self._file is not None:
            with writing(self._path):
                self._file.write(line + "\n")
            return
        self._lines.append(line)
        self._replace(self._lines)

    def _to_ray(self, metrics: dict[str, float]) -> None:
        import ray

        if not ray.is_initialized():
            return
        from ray.util.metrics import Gauge

        tags = {"run": self.run, "stage": self.stage}
        for name, value in metrics.items():
            if name not in self._gauges:
                self._gauges[name] = Gauge(gauge_name(name), description=described(name), tag_keys=tuple(tags))
            self._gauges[name].set(value, tags=tags)


def console_line(stage: str, step: int, total: int, metrics: dict[str, float], keys: dict[str, str]) -> str:
    """One line a step: `keys` maps a metric's name to its short label; absent metrics are left out."""
    parts = [f"{label} {short(metrics[name])}" for name, label in keys.items() if name in metrics]
    return f"{stage} {step:>{len(str(total))}}/{total}  " + "  ".join(parts)


def is_row(row: Any) -> bool:
    """Whether `row` is as MetricsLog writes them: a stage, a step, and numbers (null where not finite)."""
    if not isinstance(row, dict) or not isinstance(row.get("stage"), str) or not isinstance(row.get("step"), int):
        return False
    numbers = [value for name, value in row.items() if name != "stage" and value is not None]
    return all(isinstance(value, int | float) and abs(value) < _MOST for value in numbers)


def _plain(value: float) -> float | None:
    # JSON has no NaN and no infinity: null keeps every line readable by any parser
    value = float(value)
    return value if math.isfinite(value) else None


def short(value: float) -> str:
    """A number in few characters."""
    if not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    return f"{value:.2e}" if value and (abs(value) < 1e-3 or abs(value) >= 1e5) else f"{value:.4g}"
