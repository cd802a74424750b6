"""Says where a worker is when its step takes too long; every worker has its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from rayrlhf.frames import stack_of_thread, told


class StepWatch:
    """A thread from its making, by the thread that trains, to `stop`; `begin` tells it of each step."""

    def __init__(self, name: str, stall_s: float, say: Callable[[str], Any]) -> None:
        """`name`: the stage and the worker; `stall_s`: the longest that a step may take without a word."""
        self._name, self._stall_s, self._say = name, stall_s, say
        self._step, self._since, self._is_told = 0, time.monotonic(), False
        self._worker = threading.get_ident()  # Ray Train's workers train in a thread of their own
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="step watch", daemon=True)
        self._thread.start()

    def begin(self, step: int) -> None:
        """The step that is waited for from now on."""
        self._step, self._since, self._is_told = step, time.monotonic(), False

    def stop(self) -> None:
        """Say nothing more."""
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._end.wait(min(5.0, self._stall_s / 4)):
            passed_s = time.monotonic() - self._since
            if passed_s > self._stall_s and not self._is_told:
                self._is_told = True
                state, *frames = told(stack_of_thread(self._worker))
                lines = "".join(f"\n    {frame}" for frame in frames)
                self._say(f"warning: {self._name}: step {self._step} takes {passed_s:.0f} s; it {state}{lines}")
