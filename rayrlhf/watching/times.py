"""Where the seconds of a step go: by phase and by role, means over the recent steps."""

from __future__ import annotations

from typing import NamedTuple

from rayrlhf.watching.history import History

STEP = "time/step_s"
# phase of an RL step -> the calls in it (`rayrlhf/timing.py`: time/ROLE_METHOD_s); roles work side by side within one
PHASES = {
    "generate": ("generate",),
    "judge": ("logprobs", "values", "scores"),
    "learn": ("update",),
    "publish": ("publish",),
}


class Share(NamedTuple):
    """Seconds of a step, and their part of it."""

    name: str
    seconds: float
    share: float


def phases(history: History) -> list[Share]:
    """A phase lasts as long as its longest call; `rest` is what no call accounts for.  Of a stage without
    roles: the step itself, and what lies between two steps (reading, validation, checkpoints)."""
    step, calls = history.mean(STEP), _calls(history)
    if not step:
        return []
    if not calls:
        whole = _between_rows(history)
        return [] if whole is None else _shares({"step": step, "between": max(0.0, whole - step)}, max(step, whole))
    seconds = {
        phase: max((took for (_, method), took in calls.items() if method in methods), default=0.0)
        for phase, methods in PHASES.items()
    }
    return _shares(seconds | {"rest": max(0.0, step - sum(seconds.values()))}, step)


def roles(history: History) -> list[Share]:
    """How long each role was busy in a step."""
    step, busy = history.mean(STEP), dict[str, float]()
    for (role, _), seconds in _calls(history).items():
        busy[role] = busy.get(role, 0.0) + seconds
    return _shares(dict(sorted(busy.items(), key=lambda item: -item[1])), step) if step else []


def _calls(history: History) -> dict[tuple[str, str], float]:
    """(role, method) -> seconds a step."""
    found = {}
    for name in history.newest:
        if name.startswith("time/") and name.endswith("_s") and name != STEP and (seconds := history.mean(name)):
            role, _, method = name.removeprefix("time/").removesuffix("_s").partition("_")
            if method:  # others, such as time/data_s, are no call to a role
                found[role, method] = seconds
    return found


def _between_rows(history: History) -> float | None:
    first, last = history.recent[0], history.recent[-1]
    steps = last["step"] - first["step"]
    return (last["time_s"] - first["time_s"]) / steps if steps else None


def _shares(seconds: dict[str, float], step: float) -> list[Share]:
    return [Share(name, value, value / step) for name, value in seconds.items()]
