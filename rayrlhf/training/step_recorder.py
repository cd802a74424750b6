"""Profiles a worker of a supervised stage in chosen steps (`--profile`), from its wait for their rows on."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rayrlhf import profiling, ray_timeline
from rayrlhf.profile_steps import Steps

T = TypeVar("T")


class StepRecorder:
    """Told of each step's beginning and end; without `steps` it records nothing."""

    def __init__(self, steps: Steps | None, folder: str, rank: int) -> None:
        """`folder`: absolute, or a URI.  Rank 0 leaves there when it recorded, for Ray's timeline."""
        self._steps, self._folder, self._rank = steps, folder, rank

    def waited(self, batches: Iterable[T], done: int) -> Iterator[tuple[T, float]]:
        """Each of `batches`, those of the steps after `done`, with the seconds that it was waited for."""
        iterator = iter(batches)
        while True:
            done += 1
            if self._steps is not None and done in self._steps:
                profiling.begin(anew=done == self._steps.first)
            began = time.perf_counter()
            with profiling.span("rows"):
                batch = next(iterator, None)
            if batch is None:
                return
            yield batch, time.perf_counter() - began

    def end(self, step: int) -> None:
        """Write the files after the last step."""
        if self._steps is None or step != self._steps.last:
            return
        times = profiling.end(self._folder, f"worker-{self._rank}")
        if self._rank == 0 and times is not None:
            ray_timeline.leave_times(self._folder, *times)
