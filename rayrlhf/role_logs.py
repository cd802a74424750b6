"""A log file for each actor of a stage, `ROOT/NAME/logs/STAGE/policy-0.log`: what a role did, and does now.

A line is time (UTC), level and message; a call leaves two, `begin METHOD(...)` and `end METHOD` or `failed METHOD`.
Warnings of libraries that use Python's root logger stand there too.  Where the run root is no local folder (an object
store takes no appends) there are none, and Ray's own logs of the actors are what there is.
"""

from __future__ import annotations

import datetime
import functools
import inspect
import logging
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayrlhf.environment import versions
from rayrlhf.profiling import spanned

VARIABLE = "RAYRLHF_ROLE_LOG"  # of an actor's environment: its file
FOLDER = "logs"  # of a run
ATTEMPT = "attempt"  # of a stage's logs: when its newest attempt began
_LINE = re.compile(r"(\S+Z) (?:INFO|ERROR) (begin(?=.*\()|end(?=.* after )|failed(?=.* after )) (\w+)")
_lock = threading.Lock()
_depth = 0  # of calls in this process, which is one actor's and runs one call at a time


@dataclass(frozen=True)
class Doing:
    """What an actor does: `call` since `since` (seconds since the epoch), or nothing since `call` was over then."""

    actor: str
    call: str
    state: str  # begin, end or failed
    since: float


def file_of(stage_root: str, actor: str) -> str | None:
    """The log of an actor of the stage at `ROOT/NAME/STAGE`; None where the root is no local folder."""
    if "://" in stage_root:
        return None
    run, stage = os.path.split(os.path.abspath(stage_root))
    return os.path.join(run, FOLDER, stage, f"{actor}.log")


def begin_attempt(stage_root: str) -> None:
    """Note that the actors of a stage start (anew) now: logs without a call since then are of roles that are gone."""
    file = file_of(stage_root, "")
    if file is not None:
        path = Path(file).parent / ATTEMPT
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(datetime.datetime.now(datetime.UTC).isoformat() + "\n", encoding="utf-8")


def doing(actor: str, text: str) -> Doing | None:
    """What the end of an actor's log says; None without a call in it."""
    for line in reversed(text.splitlines()):
        found = _LINE.match(line)
        if found:
            time_s = datetime.datetime.fromisoformat(found[1]).timestamp()
            return Doing(actor, found[3], found[2], time_s)
    return None


class LoggedRole:
    """Base of the actors' classes: their public methods leave lines in the file that `VARIABLE` names, if it is set,
    and are spans of a profile, if there is one."""

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        for name, method in list(vars(cls).items()):
            if inspect.isfunction(method) and not name.startswith("_"):
                setattr(cls, name, _logged(spanned(method)))


def note(line: str, level: int = logging.INFO) -> bool:
    """Write a line to the log of this process's actor; whether it has one."""
    log = _logger(os.environ.get(VARIABLE))
    if log is not None:
        log.log(level, "%s", line)
    return log is not None


def _logged(method: Callable[..., Any]) -> Callable[..., Any]:
    if inspect.isgeneratorfunction(method):  # Ray asks what it is, so it stays one

        @functools.wraps(method)
        def each(self: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
            with _lines_around(method.__name__, args, kwargs):
                yield from method(self, *args, **kwargs)

        return each

    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        with _lines_around(method.__name__, args, kwargs):
            return method(self, *args, **kwargs)

    return call


@contextmanager
def _lines_around(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[None]:
    global _depth
    log = _logger(os.environ.get(VARIABLE))
    if log is None or _depth:  # what a call calls in turn is part of it
        yield
        return
    log.info("begin %s(%s)", name, _told(args, kwargs))
    _depth, began = 1, time.perf_counter()
    try:
        yield
    except BaseException:
        log.exception("failed %s after %.3f s", name, time.perf_counter() - began)
        raise
    finally:
        _depth = 0
    log.info("end %s after %.3f s", name, time.perf_counter() - began)


@functools.cache
def _logger(path: str | None) -> logging.Logger | None:
    """Writes to `path`; its first lines say who writes."""
    if path is None:
        return None
    with _lock:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(path, encoding="utf-8")
        form = logging.Formatter("%(asctime)s.%(msecs)03dZ %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S")
        form.converter = time.gmtime
        handler.setFormatter(form)
        logging.getLogger().addHandler(handler)
        log = logging.getLogger("rayrlhf.role")
        log.setLevel(logging.INFO)
    packages = ", ".join(f"{name} {version}" for name, version in versions().items())
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES") or "none"
    log.info("%s: process %d on %s, GPUs %s, %s", Path(path).stem, os.getpid(), socket.gethostname(), gpus, packages)
    return log


def _told(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """The arguments that are a word or a number."""
    given = [(None, value) for value in args] + list(kwargs.items())
    shown = [(name, value) for name, value in given if isinstance(value, str | int | float | bool)]
    return ", ".join(f"{name}={value}" if name else str(value) for name, value in shown)
