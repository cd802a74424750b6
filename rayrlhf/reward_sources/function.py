"""The score of a Python function, for what can be checked by a program.

The function runs in another process (isolated.py).  Where a call on a batch gives no scores, each response is tried
alone: one that is to blame fails, the others have a score.
"""

from __future__ import annotations

import logging
import math
import sys
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch

from rayrlhf import role_logs
from rayrlhf.batches import ALONE, FAILED, Rollouts, Scores
from rayrlhf.errors import ConfigError, RewardError
from rayrlhf.models.causal_lm import load_tokenizer
from rayrlhf.reward_sources.config import MAX_DEADLINE_SHARE, RewardFailuresConfig
from rayrlhf.reward_sources.isolated import CallFailed, IsolatedFunction
from rayrlhf.rollout_texts import texts_of

KINDS = ("timeout", "exception", "count", "died", "not_number", "not_finite")
_LARGEST = torch.finfo(torch.float32).max


@dataclass(frozen=True)
class Failure:
    """Why a response has no score: one of KINDS, and what is known of it."""

    kind: str
    told: str


@dataclass(frozen=True)
class _Batch:
    """What the function is called with; `ends`: when (time.monotonic) scoring must be over."""

    prompts: list[str]
    responses: list[str]
    columns: dict[str, list[Any]]
    ends: float

    def one(self, row: int) -> tuple[list[str], list[str], dict[str, list[Any]]]:
        columns = {name: values[row : row + 1] for name, values in self.columns.items()}
        return self.prompts[row : row + 1], self.responses[row : row + 1], columns


class FunctionReward:
    """`module:function(prompts, responses, **columns) -> one number a response`, on decoded texts."""

    def __init__(
        self,
        name: str,
        folder: str,
        failures: RewardFailuresConfig | None = None,
        call_deadline_s: float = math.inf,
        threads: int | None = None,
    ) -> None:
        """`folder`: where the policy's tokenizer is; `failures`: None where the run stops at the first and the
        configuration has no such key; `call_deadline_s`: of a call of `scores`; `threads`: of the function's process.

        Raises ConfigError, ModelError.
        """
        self.name, self.tokenizer = name, load_tokenizer(folder)
        self.failures, self.has_key = failures or RewardFailuresConfig(), failures is not None
        self.call_deadline_s = call_deadline_s
        self.function = IsolatedFunction(name, threads)
        self._shown: set[str] = set()  # kinds of failure that were told in full
        try:
            self.function.start()
        except CallFailed as error:
            raise ConfigError(f"reward_function={name}: {error.told}") from error

    def scores(self, rollouts: Rollouts, columns: dict[str, list[Any]] | None = None) -> Scores:
        """One score a row; `columns` of the prompts' rows go to the function by name, but for those that no row has
        where the function has a default.  With `failures.score` there is a component for each of KINDS, 1 where a row
        failed so.  Raises RewardError where a response has no score, or with `failures.score` too many."""
        given = {
            name: values
            for name, values in (columns or {}).items()
            if name in self.function.needed or any(value is not None for value in values)
        }
        ends = time.monotonic() + MAX_DEADLINE_SHARE * self.call_deadline_s
        batch = _Batch(*texts_of(rollouts, self.tokenizer), given, ends)
        found, is_alone = self._found(batch)
        default = self.failures.score
        total = torch.tensor([default if isinstance(one, Failure) else one for one in found], dtype=torch.float32)
        if default is None:
            return Scores(total, total[:, None], ("function",))
        self._tell(batch, found)
        kinds = [one.kind if isinstance(one, Failure) else None for one in found]
        counted = [[float(kind == name) for kind in kinds] for name in KINDS] + [[float(is_alone)] * len(found)]
        components = torch.cat([total[:, None], torch.tensor(counted).T], dim=1)
        return Scores(total, components, ("function", *(FAILED + kind for kind in KINDS), ALONE))

    def _found(self, batch: _Batch) -> tuple[list[float | Failure], bool]:
        """(score or failure of each response, whether each was scored by a call of its own)."""
        timeout, count = self.failures.timeout_s, len(batch.responses)
        try:
            answers = self._call(batch.prompts, batch.responses, batch.columns, batch.ends, timeout and timeout * count)
            found = [_judged(answer) for answer in answers]
            self._check(batch, found)
            return found, False
        except CallFailed as error:
            whole = error
        found = []
        for row in range(count):
            if time.monotonic() >= batch.ends:
                raise RewardError(
                    f"reward_function={self.name} gave {count} responses no scores within {MAX_DEADLINE_SHARE:g} of "
                    f"call_deadline_s={self.call_deadline_s:g}: {whole.told}. "
                    + self._way_out("or find the one that hangs with reward_failures.timeout_s, or raise the deadline")
                )
            try:
                found.append(_judged(self._call(*batch.one(row), batch.ends, timeout)[0]))
            except CallFailed as error:
                found.append(Failure(error.kind, error.told))
            self._check(batch, found)
        if not any(isinstance(one, Failure) for one in found):
            self._blame_none(Failure(whole.kind, whole.told), count)
        return found, True

    def _call(
        self,
        prompts: list[str],
        responses: list[str],
        columns: dict[str, list[Any]],
        ends: float,
        timeout_s: float | None,
    ) -> list[float | str]:
        """The function's answers within `timeout_s`, and before `ends` in any case."""
        try:
            self.function.start(_until(ends))
        except CallFailed as error:
            raise RewardError(f"reward_function={self.name} cannot be started again: {error.told}") from error
        left = _until(ends)
        return self.function(prompts, responses, columns, left if timeout_s is None else min(timeout_s, left))

    def _check(self, batch: _Batch, found: list[float | Failure]) -> None:
        """RewardError where more failed than may."""
        failed = [row for row, one in enumerate(found) if isinstance(one, Failure)]
        count, failures = len(batch.responses), self.failures
        if not failed or (failures.score is not None and len(failed) <= failures.max_share * count):
            return
        if failures.score is None:
            way_out = "or let a few such responses have a score: reward_failures.score=0"
            told = f"reward_function={self.name} failed; reward_failures.score is null, so the run stops"
        else:
            way_out = "or raise reward_failures.max_share"
            told = (
                f"reward_function={self.name} failed on {_counted(found)}, "
                f"more than reward_failures.max_share={failures.max_share:g} of {count}"
            )
        told = told if self.has_key else f"reward_function={self.name} failed"
        raise RewardError(f"{told}. {_shown(batch, found, failed[0])}\n" + self._way_out(way_out))

    def _blame_none(self, failure: Failure, count: int) -> None:
        """The batch failed, and no response alone."""
        told = (
            f"reward_function={self.name} failed on a batch of {count} responses and on none of them alone "
            f"({failure.kind}): it keeps something between calls, or needs more than the machine has.\n{failure.told}"
        )
        if self.failures.score is None:
            raise RewardError(
                f"{told}\n" + self._way_out("or take the scores that it gives them alone: reward_failures.score=0")
            )
        self._say(told)

    def _way_out(self, way: str) -> str:
        return f"Mend the function, {way}" if self.has_key else "Mend the function"

    def _tell(self, batch: _Batch, found: list[float | Failure]) -> None:
        """Show the first failure of each kind, once."""
        for row, one in enumerate(found):
            if isinstance(one, Failure) and one.kind not in self._shown:
                self._shown.add(one.kind)
                self._say(
                    f"reward_function={self.name} failed on {_counted(found)}, which get "
                    f"reward_failures.score={self.failures.score:g}. {_shown(batch, found, row)}\n"
                    f"Later failures of this kind are only counted (objective/{FAILED}{one.kind})"
                )

    def _say(self, text: str) -> None:
        """To the actor's log and, as Ray passes on what an actor prints, the console of the run."""
        role_logs.note(text, logging.WARNING)
        print(f"warning: {text}", file=sys.stderr, flush=True)


def _until(ends: float) -> float:
    return max(0.0, min(ends - time.monotonic(), 1e6))  # what select() takes


def _judged(answer: float | str) -> float | Failure:
    if isinstance(answer, str):
        return Failure("not_number", f"its score is {answer}: give an int or a float")
    if not abs(answer) <= _LARGEST:
        return Failure("not_finite", f"its score is {answer}, which is no finite float32")
    return answer


def _counted(found: list[float | Failure]) -> str:
    kinds = Counter(one.kind for one in found if isinstance(one, Failure))
    listed = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    return f"{kinds.total()} of {len(found)} responses ({listed})"


def _shown(batch: _Batch, found: list[float | Failure], row: int) -> str:
    failure = found[row]
    assert isinstance(failure, Failure)
    return (
        f"Response {row} ({failure.kind}): {failure.told.rstrip()}\n"
        f"prompt: {_short(batch.prompts[row])}\nresponse: {_short(batch.responses[row])}"
    )


def _short(text: str) -> str:
    return repr(text if len(text) <= 240 else f"{text[:160]} [...] {text[-80:]}")
