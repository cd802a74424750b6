"""Seconds spent in each call to a role, without a timer in the coordinator."""

from __future__ import annotations

import functools
import time
from collections import defaultdict
from typing import Any


class Stopwatch:
    """Adds up seconds by name until `take` empties it."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = defaultdict(float)

    def take(self) -> dict[str, float]:
        """`time/ROLE_METHOD_s` -> seconds since the last `take`; calls side by side overlap."""
        taken, self._seconds = dict(self._seconds), defaultdict(float)
        return taken

    def timed(self, role: Any, name: str) -> Any:
        """`role` with every async method timed under `time/NAME_METHOD_s`."""
        return _Timed(role, name, self._add)

    def _add(self, name: str, seconds: float) -> None:
        self._seconds[name] += seconds


class _Timed:
    def __init__(self, role: Any, name: str, add: Any) -> None:
        self._role, self._name, self._add = role, name, add

    def __getattr__(self, method: str) -> Any:
        function = getattr(self._role, method)

        @functools.wraps(function)
        async def call(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return await function(*args, **kwargs)
            finally:
                self._add(f"time/{self._name}_{method}_s", time.perf_counter() - start)

        return call
