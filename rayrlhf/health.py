"""Watches over a run's metrics: a bound that is broken for some steps in a row warns, rolls back or stops.

Defaults are wide: they are meant to fire on a run that is broken, not on one that is only slow.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, model_validator

from rayrlhf.config import Section
from rayrlhf.metric_names import METRICS, find

START = 5  # steps whose mean a relative bound is a share of
State = dict[str, dict[str, float]]  # of each watch: `row`, `fired`, and of relative bounds `sum` and `seen`
Action = Literal["warn", "roll_back", "stop", "ignore"]


class Bound(Section):
    """The watch over one metric."""

    above: float | None = Field(default=None, description="a larger value is unhealthy; null: none is too large")
    below: float | None = Field(default=None, description="a smaller value is unhealthy; null: none is too small")
    relative: bool = Field(
        default=False, description=f"above and below are shares of the metric's mean over its first {START} steps"
    )
    steps: int = Field(default=5, ge=1, description="steps in a row that it takes to fire, and to have recovered")
    action: Action = Field(
        default="warn",
        description="warn: say so once; roll_back: to the newest checkpoint, as loop.rollback says; stop: end the run; "
        "ignore: no watch. While a watch that may roll back or stop is counting no checkpoint falls due",
    )

    @model_validator(mode="after")
    def _has_a_bound(self) -> Bound:
        if self.above is None and self.below is None:
            raise ValueError("a watch needs a bound: set above or below (or action=ignore)")
        return self


class HealthConfig(Section):
    """The watches; what a configuration has no metric for is not watched."""

    kl: Bound = Field(default=Bound(above=2.0, steps=3), description="objective/kl_per_token")
    entropy: Bound = Field(default=Bound(below=0.1, relative=True), description="objective/entropy")
    length: Bound = Field(default=Bound(below=0.2, relative=True), description="rollout/length")
    repetition: Bound = Field(default=Bound(above=0.5), description="rollout/repetition_4")
    diversity: Bound = Field(default=Bound(below=0.2, relative=True), description="rollout/distinct_2")
    score_std: Bound = Field(default=Bound(below=1e-6), description="objective/scores_std")
    equal_groups: Bound = Field(default=Bound(above=0.95, steps=10), description="objective/frac_reward_zero_std")
    logprob_gap: Bound = Field(default=Bound(above=0.01, steps=1), description="sync/logprob_gap")
    explained_variance: Bound = Field(default=Bound(below=0.02, steps=20), description="critic/explained_variance")
    metrics: dict[str, Bound] = Field(default={}, description="further watches, by the names of their metrics")

    @model_validator(mode="after")
    def _metrics_are_there(self) -> HealthConfig:
        for name in self.metrics:
            metric = find(name)
            if metric is None or "ppo" not in metric.stages:
                known = [metric.name for metric in METRICS if "ppo" in metric.stages]
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]}?" if near else "docs/metrics.md lists them"
                raise ValueError(f"health.metrics: PPO logs no metric {name}; {hint}")
        return self

    def watches(self) -> Iterator[tuple[str, str, Bound]]:
        """(name, metric, bound) of each watch."""
        for name, told in WATCHED.items():
            yield name, told.metric, getattr(self, name)
        for metric, bound in self.metrics.items():
            yield f"metrics.{metric}", metric, bound


@dataclass(frozen=True)
class Told:
    """What a watch reads, and what it says when it fires."""

    metric: str
    cause: str
    remedy: str


WATCHED = {
    "kl": Told(
        "objective/kl_per_token",
        "the policy has left the reference and may be exploiting the reward",
        "raise algorithm.kl.beta or set algorithm.kl.target; lower policy.engine.lr",
    ),
    "entropy": Told(
        "objective/entropy",
        "the policy says nearly the same whatever is sampled",
        "set policy.entropy; raise algorithm.kl.beta, or lower policy.engine.lr",
    ),
    "length": Told(
        "rollout/length",
        "responses end at once: the reward likes short ones, or the policy has lost its language",
        "read ppo/samples; see what the reward gives an empty response; raise algorithm.kl.beta",
    ),
    "repetition": Told(
        "rollout/repetition_4",
        "responses go round in circles, which the reward does not punish",
        "read ppo/samples; raise algorithm.kl.beta; score repetition in the reward",
    ),
    "diversity": Told(
        "rollout/distinct_2",
        "all prompts get much the same response",
        "read ppo/samples; raise algorithm.kl.beta, or set policy.entropy",
    ),
    "score_std": Told(
        "objective/scores_std",
        "every response has the same score, so there is nothing to learn from",
        "call the reward by hand on two responses of ppo/samples; take easier or harder prompts",
    ),
    "equal_groups": Told(
        "objective/frac_reward_zero_std",
        "the samples of a prompt have equal scores, so their advantages are 0",
        "take easier or harder prompts; raise algorithm.group_size or sampling.temperature",
    ),
    "logprob_gap": Told(
        "sync/logprob_gap",
        "the rollout engine's log-probs are not the policy's: a publish was missed, or the two compute in different "
        "precision",
        "set rollout.dtype and policy.engine.precision alike; with bfloat16 raise the bound",
    ),
    "explained_variance": Told(
        "critic/explained_variance",
        "the critic predicts nothing, so advantages are noise",
        "raise critic.engine.lr or algorithm.critic_warmup_steps; start the critic from the reward model",
    ),
}


@dataclass(frozen=True)
class Change:
    """A watch has fired, or recovered."""

    is_fired: bool
    action: Action
    text: str


class Health:
    """The watches of a run; what they have seen is in the `State` that each call is given."""

    def __init__(self, config: HealthConfig) -> None:
        self.watches = [one for one in config.watches() if one[2].action != "ignore"]

    def see(self, metrics: dict[str, float], state: State) -> tuple[dict[str, float], list[Change]]:
        """(metrics `health/*` of the step, what has changed with it); brings `state` up to date."""
        flags: dict[str, float] = {}
        changes: list[Change] = []
        for name, metric, bound in self.watches:
            value = metrics.get(metric, math.nan)
            if math.isnan(value):  # not logged at this step
                continue
            mine = state.setdefault(name, {"row": 0, "fired": 0})
            limits = _limits(bound, value, mine)
            is_bad = limits is not None and not limits[0] <= value <= limits[1]
            if _turned(mine, is_bad, bound.steps):
                told = WATCHED.get(name, Told(metric, "", ""))
                changes.append(_change(name, bound, f"{metric} is {value:.3g}", _beyond(value, limits), is_bad, told))
            flags[f"health/{name}"] = float(mine["fired"])
        return flags | {"health/fired": float(sum(flags.values()))}, changes

    def is_suspicious(self, state: State) -> bool:
        """Whether a watch that may roll back or stop is counting, so that a checkpoint would not be a good one."""
        severe = [name for name, _, bound in self.watches if bound.action in ("roll_back", "stop")]
        return any(name in state and (state[name]["row"] or state[name]["fired"]) for name in severe)


def rolled_back(state: State) -> State:
    """A checkpoint's state for going on from there: no watch is counting."""
    return {name: one | {"row": 0} for name, one in state.items()}


def _limits(bound: Bound, value: float, mine: dict[str, float]) -> tuple[float, float] | None:
    """(smallest, largest) healthy value; None as long as a relative bound has not seen the start."""
    scale = 1.0
    if bound.relative:
        if mine.setdefault("seen", 0) < START:
            if math.isfinite(value):
                mine["seen"], mine["sum"] = mine["seen"] + 1, mine.get("sum", 0.0) + value
            return None
        scale = mine["sum"] / START
    low = -math.inf if bound.below is None else bound.below * scale
    return low, math.inf if bound.above is None else bound.above * scale


def _turned(mine: dict[str, float], is_bad: bool, steps: int) -> bool:
    """Count a step; whether it was the last of so many that the watch fires or recovers."""
    mine["row"] = mine["row"] + 1 if is_bad != bool(mine["fired"]) else 0
    if mine["row"] < steps:
        return False
    mine["row"], mine["fired"] = 0, float(is_bad)
    return True


def _beyond(value: float, limits: tuple[float, float] | None) -> str:
    if limits is None or limits[0] <= value <= limits[1]:
        return ""
    return f", below {limits[0]:.3g}" if value < limits[0] else f", above {limits[1]:.3g}"


def _change(name: str, bound: Bound, what: str, beyond: str, is_bad: bool, told: Told) -> Change:
    key, in_a_row = f"loop.health.{name}", f"{bound.steps} steps in a row" if bound.steps > 1 else "at this step"
    if not is_bad:
        return Change(False, bound.action, f"{key} has recovered: {what}, healthy {in_a_row}")
    why = f": {told.cause}. What may help: {told.remedy}." if told.cause else "."
    return Change(True, bound.action, f"{key}: {what}{beyond}, {in_a_row}{why} Other bounds, or none: {key}.*")


def check_known(config: HealthConfig, missing: dict[str, Any]) -> None:
    """ValueError where a watch is set whose metric this run does not log; `missing`: what metrics need (`Metric.when`)
    that it has not, and why."""
    defaults = HealthConfig()
    for name, metric, bound in config.watches():
        found = find(metric)
        if found is not None and found.when in missing and bound != getattr(defaults, name, None):
            raise ValueError(f"loop.health.{name} watches {metric}, which this run has not: {missing[found.when]}")
