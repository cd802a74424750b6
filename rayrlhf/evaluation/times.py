"""Where a run's time went: seconds a stage, and within RL seconds a phase and a role."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass

from rayrlhf.evaluation.run_files import Row, Run

PHASES = ("generate", "judge", "learn", "publish", "other")
_PHASE_OF = {
    "generate": "generate",
    "logprobs": "judge",
    "values": "judge",
    "scores": "judge",
    "update": "learn",
    "publish": "publish",
}
_CALL = re.compile(r"time/([^_]+)_(.+)_s")  # ROLE_METHOD, as rayrlhf/timing.py names them
_STEP = "time/step_s"


@dataclass(frozen=True)
class StageTime:
    """Seconds of wall time.  `in_steps`: of the training steps themselves; None for a stage without steps."""

    stage: str
    seconds: float
    share: float  # of all stages
    num_steps: int
    in_steps: float | None

    @property
    def outside(self) -> float | None:
        """Start, validation or evaluation, checkpoints."""
        return None if self.in_steps is None else max(self.seconds - self.in_steps, 0.0)


@dataclass(frozen=True)
class CallTime:
    """Seconds spent in one method of one role, over all steps."""

    phase: str
    role: str
    method: str
    seconds: float
    per_step: float
    share: float  # of the seconds of all roles


def stage_times(run: Run) -> list[StageTime]:
    """One entry a stage, in order."""
    found = []
    for stage in run.stages:
        seconds, rows = stage.manifest["seconds"], run.rows.get(stage.name, [])
        steps = [row[_STEP] for row in rows if row.get(_STEP) is not None and row["step"] <= stage.manifest["step"]]
        share = seconds / run.seconds if run.seconds else 0.0
        found.append(StageTime(stage.name, seconds, share, len(steps), sum(steps) if steps else None))
    return found


def call_times(rows: list[Row]) -> list[CallTime]:
    """Seconds a role and method of a stage's steps, in the order of the phases; none for a stage without roles.

    Roles of one phase work side by side, so their seconds add up to more than the step's.
    """
    total, steps = defaultdict[str, float](float), 0
    for row in rows:
        calls = {name: v for name, v in row.items() if v is not None and _CALL.fullmatch(name)}
        steps += bool(calls)
        for name, seconds in calls.items():
            total[name] += seconds
    everything, found = sum(total.values()), []
    for name, seconds in total.items():
        role, method = _CALL.fullmatch(name).groups()  # type: ignore[union-attr]
        phase = _PHASE_OF.get(method, "other")
        found.append(CallTime(phase, role, method, seconds, seconds / steps, seconds / everything if everything else 0))
    return sorted(found, key=lambda call: (PHASES.index(call.phase), -call.seconds))


def by_phase(rows: list[Row]) -> list[tuple[str, float]]:
    """(phase, seconds of wall time), in the order of the phases, over all steps of a stage with roles.

    Calls of one phase run side by side, so a phase lasts as long as its slowest; `rest` is what is left of the step:
    waiting for prompts, arithmetic on the coordinator.
    """
    total = defaultdict[str, float](float)
    for row in rows:
        longest = defaultdict[str, float](float)
        for name, value in row.items():
            if value is not None and (call := _CALL.fullmatch(name)):
                phase = _PHASE_OF.get(call[2], "other")
                longest[phase] = max(longest[phase], value)
        for phase, seconds in longest.items():
            total[phase] += seconds
        if longest:
            total["rest"] += max((row.get(_STEP) or 0.0) - sum(longest.values()), 0.0)
    return [(phase, total[phase]) for phase in (*PHASES, "rest") if total[phase]]


def by_role(calls: list[CallTime]) -> list[tuple[str, float]]:
    """(role, seconds), the slowest first."""
    total = defaultdict[str, float](float)
    for call in calls:
        total[call.role] += call.seconds
    return sorted(total.items(), key=lambda entry: -entry[1])
