"""What the rows of one stage add up to: newest values, their course, the pace of its steps."""

from __future__ import annotations

import statistics
from collections import deque

from rayrlhf.metrics import ROW_KEYS
from rayrlhf.watching.tail import Row

RECENT = 20  # steps from which the pace is taken
MIN_SILENCE_S = 120.0
FIRST_SILENCE_S = 600.0  # before two rows are there: engines start, kernels are compiled


class Course:
    """A metric's values over the whole stage in at most `SIZE` points; neighbours are averaged when it is full."""

    SIZE = 512

    def __init__(self) -> None:
        self.points: list[float] = []
        self._sum, self._count, self._per_point = 0.0, 0, 1

    def add(self, value: float) -> None:
        self._sum, self._count = self._sum + value, self._count + 1
        if self._count < self._per_point:
            return
        self.points.append(self._sum / self._count)
        self._sum, self._count = 0.0, 0
        if len(self.points) == self.SIZE:
            self.points = [(a + b) / 2 for a, b in zip(self.points[::2], self.points[1::2], strict=True)]
            self._per_point *= 2


class History:
    """The rows of one stage, of which only the recent ones are kept."""

    def __init__(self) -> None:
        self.step, self.total_steps, self.first_s, self.last_s = -1, 0, 0.0, 0.0
        self.seconds = 0.0  # between its rows, without the silences in which it was cut off
        self.newest: dict[str, float | None] = {}  # of each metric, whenever it was logged last; None: not finite
        self.courses: dict[str, Course] = {}
        self.largest_gap = (0.0, 0)  # sync/logprob_gap, and its step
        self.recent: deque[Row] = deque(maxlen=RECENT + 1)
        self._intervals: deque[float] = deque(maxlen=RECENT)  # seconds a step

    def add(self, row: Row) -> None:
        """Take the next row, of a later step."""
        step, time_s = int(row["step"]), float(row["time_s"])
        if self.recent:
            interval = max(0.0, time_s - self.last_s)
            if interval <= self.longest_silence:
                self.seconds += interval
            self._intervals.append(interval / (step - self.step))
        else:
            self.first_s = time_s
        self.step, self.last_s = step, time_s
        self.total_steps = int(row.get("total_steps") or 0)
        self.recent.append(row)
        for name, value in row.items():
            if name not in ROW_KEYS and (value is None or isinstance(value, int | float)):
                self.newest[name] = value
                if value is not None:
                    self.courses.setdefault(name, Course()).add(value)
        gap = row.get("sync/logprob_gap")
        if gap is not None and gap > self.largest_gap[0]:
            self.largest_gap = (gap, step)

    @property
    def step_s(self) -> float | None:
        """Median seconds of the recent steps, from row to row; None before there are two rows."""
        return statistics.median(self._intervals) if self._intervals else None

    @property
    def eta_s(self) -> float | None:
        """Seconds of the remaining steps at that pace; None where the pace or their number is not known."""
        if self.step_s is None or not self.total_steps:
            return None
        return self.step_s * max(0, self.total_steps - self.step)

    @property
    def longest_silence(self) -> float:
        """Seconds after the last row from which the stage counts as cut off: ten times its longest recent step
        (validation and checkpoints between steps take time too)."""
        return max(MIN_SILENCE_S, 10 * max(self._intervals)) if self._intervals else FIRST_SILENCE_S

    def mean(self, name: str) -> float | None:
        """A metric's mean over the recent rows that have it."""
        values = [row[name] for row in self.recent if row.get(name) is not None]
        return statistics.fmean(values) if values else None
