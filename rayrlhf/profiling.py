"""Records what torch does in this process: a trace for Perfetto, and a table of the operators that took most.

    begin()  ->  the process works; its named calls are spans in the trace  ->  end(folder, name): two files

torch's profiler sees the operators of the thread that calls `begin` and of what autograd starts for it; so of an actor
`begin`, the calls and `end` are on its one thread.  It changes no number: it replaces no operator and draws nothing.
What runs in other processes (vLLM's workers with tensor_parallel above 1, a reward function's) is not in it.
"""

from __future__ import annotations

import functools
import inspect
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import fsspec

from rayrlhf.profile_steps import TABLE, TRACE

if TYPE_CHECKING:
    from torch.profiler import profile

NUM_OPERATORS = 10  # of the table


@dataclass
class _Recording:
    profile: profile
    began: float  # time.time()
    spans: dict[str, list[float]] = field(default_factory=dict)  # seconds of each named call


_recording: _Recording | None = None  # of this process, which is one actor's or one worker's


def begin(anew: bool = True) -> None:
    """Record from now on.  What is being recorded is dropped, or with `anew` false goes on."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    global _recording
    if _recording is not None:
        if not anew:
            return
        _recording.profile.stop()
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])
    found = profile(activities=activities)
    found.start()
    _recording = _Recording(found, time.time())


def is_recording() -> bool:
    """Whether `begin` was called and `end` was not."""
    return _recording is not None


def end(folder: str, name: str) -> tuple[float, float] | None:
    """Write `folder/NAME.json.gz` and `folder/NAME.txt` (a folder or URI); returns when the recording began and ended,
    in seconds since the epoch.  None where this process was not recording: it was begun anew meanwhile."""
    global _recording
    done, _recording = _recording, None
    if done is None:
        return None
    ended = time.time()
    done.profile.stop()
    filesystem, where = fsspec.core.url_to_fs(folder)
    filesystem.makedirs(where, exist_ok=True)
    with tempfile.TemporaryDirectory() as here:
        path = os.path.join(here, f"{name}{TRACE}")
        done.profile.export_chrome_trace(path)
        filesystem.put_file(path, f"{where}/{name}{TRACE}")
    text = table(name, ended - done.began, done.spans, done.profile.key_averages())
    filesystem.pipe_file(f"{where}/{name}{TABLE}", text.encode())
    return done.began, ended


@contextmanager
def span(name: str) -> Iterator[None]:
    """Inside is one box of that name in the trace; nothing where nothing is recorded."""
    if _recording is None:
        yield
        return
    import torch

    current, start = _recording, time.perf_counter()
    try:
        with torch.profiler.record_function(name):
            yield
    finally:
        current.spans.setdefault(name, []).append(time.perf_counter() - start)


def spanned(method: Callable[..., Any]) -> Callable[..., Any]:
    """`method`, whose calls are spans of its name; one of a generator lasts until it is over."""
    if inspect.isgeneratorfunction(method):

        @functools.wraps(method)
        def each(*args: Any, **kwargs: Any) -> Iterator[Any]:
            with span(method.__name__):
                yield from method(*args, **kwargs)

        return each

    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        with span(method.__name__):
            return method(*args, **kwargs)

    return call


def table(name: str, seconds: float, spans: dict[str, list[float]], operators: Any) -> str:
    """The calls of `spans` and the operators (torch's `key_averages()`) with most self time: on the GPU where there is
    one, else on the CPU.  Self time is without the operators that one calls in turn."""
    on_gpu = any(one.self_device_time_total for one in operators)
    device = "GPU" if on_gpu else "CPU"

    def self_s(one: Any) -> float:
        return float(one.self_device_time_total if on_gpu else one.self_cpu_time_total) / 1e6

    own = [one for one in operators if one.key not in spans]
    total = sum(map(self_s, own))
    first = sorted(own, key=self_s, reverse=True)[:NUM_OPERATORS]
    lines = [f"{name}: {seconds:.3f} s recorded, {total:.3f} s of them in operators ({device})", ""]
    lines += [f"{'call':<48} {'times':>8} {'s':>10}"]
    lines += [f"{call:<48} {len(took):>8} {sum(took):>10.3f}" for call, took in sorted(spans.items())]
    lines += ["", f"{'operator, by self time on the ' + device:<48} {'times':>8} {'s':>10} {'share':>7}"]
    lines += [
        f"{one.key[:48]:<48} {one.count:>8} {self_s(one):>10.3f} {self_s(one) / total if total else 0:>7.1%}"
        for one in first
    ]
    return "\n".join(lines) + "\n"
