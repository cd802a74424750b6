"""How often what failed is begun anew: a bounded number of times in a row, with growing waits between them.

    failed --> after(name, error): said, waited for --> new process --> asked again --> succeeded(name)
                     |
                     '--> GaveUp, the time after `max_restarts`

Who fails alone and who with others is not decided here: a replica without state is begun anew by its group
(actors/group.py), policy and critic together by the loop (rayrlhf/ppo_loop.py).
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from pydantic import Field

from rayrlhf.config import Section
from rayrlhf.errors import GaveUp, RoleError


class RecoveryConfig(Section):
    """What happens when an actor dies, hangs or raises an error that is not the user's."""

    max_restarts: int = Field(
        default=3,
        ge=0,
        description="times in a row that an actor which failed is begun anew (policy and critic: without a further RL "
        "step between); the next failure ends the run",
    )
    backoff_s: float = Field(
        default=2.0, ge=0, description="seconds before the first of these restarts, doubled each time"
    )
    stall_s: float | None = Field(
        default=None,
        gt=0,
        description="what is waited for longer than this is reported, with the stacks of those who are late; null: a "
        "fifth of call_deadline_s, when the call fails",
    )


def check_stall(config: RecoveryConfig, call_deadline_s: float) -> float:
    """Seconds until a wait is reported; ValueError where the call has failed by then."""
    stall_s = call_deadline_s / 5 if config.stall_s is None else config.stall_s
    if stall_s >= call_deadline_s:
        raise ValueError(
            f"recovery.stall_s={stall_s:g} has no effect, as a call fails after call_deadline_s={call_deadline_s:g}: "
            "set it lower"
        )
    return stall_s


class Restarts:
    """Counts failures in a row by name."""

    def __init__(
        self, config: RecoveryConfig, say: Callable[[str], Any] = print, key: str = "recovery.max_restarts"
    ) -> None:
        """`key`: what the user calls `config.max_restarts`."""
        self.count = 0  # of all names, so far
        self._key = key
        self._config, self._say = config, say
        self._in_row: dict[str, int] = defaultdict(int)

    async def after(self, name: str, error: RoleError) -> None:
        """Says that `name` failed with `error` and returns when it is to be begun anew.  Raises GaveUp."""
        self._in_row[name] += 1
        number, most = self._in_row[name], self._config.max_restarts
        if number > most:
            raise GaveUp(
                f"{error}\n{name} failed {number} time(s) in a row, and {self._key}={most} is used up. The newest "
                "checkpoint is kept: mend the cause, and the same command goes on from there"
            ) from error
        wait_s = self._config.backoff_s * 2 ** (number - 1)
        self.count += 1
        self._say(
            f"warning: {str(error).splitlines()[0]}\n"
            f"warning: beginning {name} anew in {wait_s:g} s (restart {number} of {most} in a row)"
        )
        await asyncio.sleep(wait_s)

    def succeeded(self, name: str) -> None:
        """What fails from now on is the first in its row."""
        self._in_row.pop(name, None)
