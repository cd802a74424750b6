"""Profiles every actor of a run in chosen steps (`--profile`)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import ray

from rayrlhf import profiling, ray_timeline
from rayrlhf.profile_steps import Steps
from rayrlhf.side_by_side import gather

_CALL = "__ray_call__"  # Ray's way to run a function in an actor's process


class Profiled:
    """`async with profiled(step):` around each step; the actors record in those of `steps`.

    Beginning and ending are calls like others, so they wait in an actor's queue for what it does.  A process that is
    begun anew records from the next step on; where its steps are taken again everyone begins again.
    """

    def __init__(self, groups: Mapping[str, Any], steps: Steps, folder: str, say: Callable[[str], Any]) -> None:
        """`groups`: those of actors/group.py by role, all that there are when a step begins; `folder`: absolute, or a
        URI; `say` is told of actors without a profile."""
        self._groups, self._steps, self._folder, self._say = groups, steps, folder, say
        self._since = time.time()

    @asynccontextmanager
    async def __call__(self, step: int) -> AsyncIterator[None]:
        if step in self._steps:
            await self._begin(step)
        yield
        if step == self._steps.last:
            await self._end()

    async def _begin(self, step: int) -> None:
        is_first = step == self._steps.first
        if is_first:
            self._since = time.time()
        await gather(*(group.everyone(_CALL, _begin, is_first) for group in self._groups.values()))

    async def _end(self) -> None:
        until = time.time()
        began = await gather(*(group.everyone(_CALL, _end, self._folder) for group in self._groups.values()))
        for group, times in zip(self._groups.values(), began, strict=True):
            for name, when in zip(group.names, times, strict=True):
                if when is None:
                    self._say(f"{name} has no profile: its process was begun anew in step {self._steps.last}")
        await asyncio.to_thread(ray_timeline.write, self._folder, self._since, until)


def _begin(_actor: Any, anew: bool) -> None:
    profiling.begin(anew)


def _end(_actor: Any, folder: str) -> tuple[float, float] | None:
    return profiling.end(folder, ray.get_runtime_context().get_actor_name() or "actor")
