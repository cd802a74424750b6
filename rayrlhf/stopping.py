"""Ending a run after its current step, which is what the first Ctrl-C or SIGTERM asks for.

    signal -> request() -> the loop sees asked() after its step -> checkpoint -> the context raises Interrupted

Outside of such a loop (while models load or rows are prepared), and the second time, a request ends the job at once.
The state is the process's, as signals are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rayrlhf.errors import Interrupted

_tell: Callable[[], None] | None = None  # of the loop that is running
_asked = False


@contextmanager
def after_step(stage: str, tell: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Around a loop that looks at `asked` after each step.  `tell` is called by the first request, from a signal
    handler: it passes the request on to where the loop runs.

    Raises Interrupted at its end when a request came, unless an error ends it.
    """
    global _tell, _asked
    _tell, _asked = tell, False
    try:
        yield
        if _asked:
            raise Interrupted(f"{stage}: stopped after a whole step, and saved it; the same command goes on from there")
    finally:
        _tell, _asked = None, False


def asked() -> bool:
    """Whether the loop is to end after its step."""
    return _asked


def request() -> bool:
    """Ask the loop to end after its step; False where the job has to end at once."""
    global _asked
    if _tell is None or _asked:
        return False
    _asked = True
    _tell()
    return True
