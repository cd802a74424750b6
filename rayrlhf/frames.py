"""What a stack says in a few lines: where a process is, and whether it only waits for its peers."""

from __future__ import annotations

import sys
import threading
import traceback
from pathlib import Path

_FRAMES = 3
_COLLECTIVE = "torch/distributed"
# around every call of an actor, and every training function of Ray Train
_AROUND = ("rayrlhf/role_logs.py", "rayrlhf/profiling.py", "ray/util/tracing", "ray/_private", "ray/train/")


def told(stack: str) -> list[str]:
    """["is in" or "waits for its peers", the last calls of the thread that works], of a stack as faulthandler writes
    it; of what is none the first line."""
    frames = innermost(stack)
    return ["waits for its peers" if any(_COLLECTIVE in frame for frame in frames) else "is in", *frames]


def stack_of_this_process() -> str:
    """Of all threads but the calling one, the main one first, as faulthandler writes them: innermost call first."""
    mine, main = threading.get_ident(), threading.main_thread().ident
    threads = sorted(sys._current_frames(), key=lambda number: number != main)
    return "\n\n".join(stack_of_thread(number) for number in threads if number != mine)


def stack_of_thread(number: int) -> str:
    """Of one thread, by its `threading.get_ident()`; a line where it has ended."""
    frame = sys._current_frames().get(number)
    if frame is None:
        return f"no stack: thread {number:#x} has ended"
    found = reversed(traceback.extract_stack(frame))
    lines = [f'  File "{one.filename}", line {one.lineno} in {one.name}' for one in found]
    return "\n".join([f"Thread {number:#x} (most recent call first):", *lines])


def innermost(stack: str, count: int = _FRAMES) -> list[str]:
    """The last calls of the thread that runs Ray's methods (the main one), short; the words for none as they are."""
    threads = stack.split("\n\n")
    main = next((text for text in reversed(threads) if "main_loop" in text or "<module>" in text), threads[0])
    frames = [_short(line.strip()) for line in main.splitlines() if line.strip().startswith("File ")]
    telling = [frame for frame in frames if not any(part in frame for part in _AROUND)]
    return telling[:count] or [stack.strip().splitlines()[0]]


def _short(frame: str) -> str:
    path, _, rest = frame.removeprefix('File "').partition('"')
    parts = Path(path).parts
    start = parts.index("site-packages") + 1 if "site-packages" in parts else max(0, len(parts) - 3)
    return f"{'/'.join(parts[start:])}{rest.replace(', line ', ':', 1)}"
