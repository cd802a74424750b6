"""Where an actor's Python is, asked from outside, whatever it does.

    the process   on SIGUSR2 writes the stacks of its threads into an unlinked file, in the signal handler itself: also
                  while a collective or other native code holds it
    a Ray task    on the process's node sends the signal and reads that file by /proc

Signals and /proc stay on their node, so a task goes there; it needs no CPU of the cluster.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

SIGNAL = signal.SIGUSR2
_WAIT_S = 3.0  # for the signal's handler
_SETTLED_S = 0.2  # without a further line the stack is whole
_file: Any = None  # of this process; open as long as it lives


class Place(NamedTuple):
    """A process that listens."""

    node_id: str
    pid: int
    descriptor: int  # of its file
    started: str  # tells it from a later process of the same number


def listen(_actor: Any = None) -> Place:
    """Let this process answer `ask`; as Ray's `__ray_call__` hands over the actor, it takes one."""
    global _file
    if _file is None:
        _file = tempfile.TemporaryFile()  # noqa: SIM115  # until the process ends
        faulthandler.register(SIGNAL, _file, all_threads=True)
    return Place(ray.get_runtime_context().get_node_id(), os.getpid(), _file.fileno(), _started(os.getpid()))


def ask(place: Place, timeout_s: float = 20.0) -> str:
    """The stacks of all threads, the one that is running Python first as faulthandler has it; why there is none
    otherwise."""
    there = NodeAffinitySchedulingStrategy(place.node_id, soft=False)
    remote: Any = ray.remote(num_cpus=0, max_retries=0)(_read).options(scheduling_strategy=there, name="stack")
    ref = remote.remote(place)
    try:
        return ray.get(ref, timeout=timeout_s)
    except Exception as error:  # a report is worth more with a part missing than not at all
        ray.cancel(ref, force=True)
        return f"no stack: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def _read(place: Place) -> str:
    if _started(place.pid) != place.started:
        return f"no stack: process {place.pid} is gone"
    path = f"/proc/{place.pid}/fd/{place.descriptor}"
    with open(path, "rb") as file:
        file.seek(0, os.SEEK_END)
        os.kill(place.pid, SIGNAL)
        text, end, changed = b"", time.monotonic() + _WAIT_S, time.monotonic()
        while time.monotonic() < end and not (text and time.monotonic() - changed > _SETTLED_S):
            time.sleep(0.05)
            more = file.read()
            if more:
                text, changed = text + more, time.monotonic()
    return text.decode(errors="replace") or f"no stack: process {place.pid} did not take the signal (is it stopped?)"


def _started(pid: int) -> str:
    """When the kernel began the process; "" where there is none."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return ""
