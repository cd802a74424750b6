"""What a tracker is: a service or a file format that a stage's metrics go to, beside metrics.jsonl."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from typing import Any, Protocol

import fsspec


class Tracker(Protocol):
    """Takes a stage's metrics step by step."""

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Values that are not finite are given as they are."""

    def rewind(self, done: int) -> None:
        """Steps after `done` are taken again: they will be logged a second time."""

    def close(self, is_failed: bool) -> None:
        """Send what is left; `is_failed`: an error or an interrupt ends the stage, which may be resumed."""


@dataclass(frozen=True)
class StageOfRun:
    """The stage that is tracked."""

    directory: str  # of the run, a path or an fsspec URI
    stage: str
    done: int  # steps of it that an earlier process has logged; -1: it begins
    config: dict[str, Any] = field(default_factory=dict)  # resolved

    @property
    def run(self) -> str:
        """The run's name."""
        return self.directory.rstrip("/").rsplit("/", 1)[-1]

    def known_id(self, tracker: str) -> str | None:
        """What the tracker called this stage when it began; None for a stage that begins.

        The ids lie in the stage's folder, so a stage goes on under its id, also on another machine; one that is made
        anew gets another, and never overwrites what stands under the first.
        """
        return self._ids().get(tracker) if self.done >= 0 else None

    def remember_id(self, tracker: str, value: str) -> None:
        """For the processes that resume this stage."""
        filesystem, path = self._file()
        filesystem.makedirs(os.path.dirname(path), exist_ok=True)
        filesystem.pipe_file(path, json.dumps(self._ids() | {tracker: value}).encode())

    def _ids(self) -> dict[str, str]:
        filesystem, path = self._file()
        return dict(json.loads(filesystem.cat_file(path))) if filesystem.exists(path) else {}

    def _file(self) -> tuple[fsspec.AbstractFileSystem, str]:
        found: tuple[Any, str] = fsspec.core.url_to_fs(f"{self.directory.rstrip('/')}/{self.stage}/trackers.json")
        return found
