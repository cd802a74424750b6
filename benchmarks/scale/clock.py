"""Where the CPU seconds of this process go, by name; what is inside something else counts there alone."""

from __future__ import annotations

import functools
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch


class Clock:
    """Seconds by name.  Sections may nest, and must not hold an `await`."""

    def __init__(self, now: Callable[[], float] = time.process_time) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._now, self._open, self._since = now, [""], now()

    def _switch(self) -> None:
        now = self._now()
        self.seconds[self._open[-1]] += now - self._since
        self._since = now

    @contextmanager
    def section(self, name: str) -> Iterator[None]:
        """What happens inside counts as `name`, but for sections in it."""
        self._switch()
        self._open.append(name)
        try:
            yield
        finally:
            self._switch()
            self._open.pop()

    def take(self) -> dict[str, float]:
        """The seconds since the last `take`; outside of all sections is ''."""
        self._switch()
        taken, self.seconds = dict(self.seconds), defaultdict(float)
        return taken

    def timed(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        @functools.wraps(function)
        def inside(*args: Any, **kwargs: Any) -> Any:
            with self.section(name):
                return function(*args, **kwargs)

        return inside

    @contextmanager
    def watching(self, watched: list[tuple[Any, str, str]]) -> Iterator[None]:
        """Within, each (owner, attribute) runs in the section named third."""
        with ExitStack() as stack:
            for owner, attribute, name in watched:
                raw = vars(owner)[attribute]
                is_class_method = isinstance(raw, classmethod)
                timed = self.timed(raw.__func__ if is_class_method else raw, name)
                stack.enter_context(patch.object(owner, attribute, classmethod(timed) if is_class_method else timed))
            yield
