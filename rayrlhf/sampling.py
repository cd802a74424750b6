"""Where an RL step's rollouts come from, and what becomes of the weights that it has made.

    OnPolicy (max_staleness = 0)     generate j | judge, learn j | publish j | generate j + 1 | ...

    Ahead (S = max_staleness = 1)    judge, learn j    | judge, learn j + 1 | ...
                                     generate j + 1    | generate j + 2     | ...
                                     weights of j - 1  | weights of j

Batch j of `Ahead` is sampled by exactly the weights of version max(v, j - 1 - S), v being the version that sampling
began with, whatever takes how long: so a run's numbers do not depend on time.  One task does all that touches the
engines, in this order, and a publish only leaves a copy of the weights for it: no weights change within a batch.

    publish(j) --copy j--> [ load the version of batch k | generate batch k | ... ] --at most S + 1 batches--> next(j)
                                                  ^
    settle() --- after all batches of older versions: load the newest, and stand still until the next `next`

With partial rollouts (rayrlhf/partial_rollouts.py) the turn of batch j samples at most `part_tokens` tokens of each
response, and goes on with those of earlier batches that were cut; after the last batch such turns alone follow.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Protocol

from safetensors.torch import load_file, save_file

from rayrlhf.batches import Part, Prompts, Rollouts
from rayrlhf.checkpoint import writing
from rayrlhf.partial_rollouts import (
    cut_rows,
    first_parts,
    joined,
    next_part_at,
    next_parts,
    num_parts,
    partial_share,
)
from rayrlhf.roles import Early, Metrics, Publisher, Rollout
from rayrlhf.side_by_side import put_by
from rayrlhf.stream import Stream, read


@dataclass(frozen=True)
class Sampled:
    """What a step is given, or a part of its rows."""

    rollouts: Rollouts
    metrics: Metrics = field(default_factory=dict)


class Sampler(Protocol):
    """The rollouts of each step, in order.  Between `stop` (or before the first `begin`) and `begin` nothing touches
    the engines or the prompts."""

    max_staleness: int

    @property
    def used(self) -> int:
        """Batches of prompts that steps were given so far: the number of the next one."""

    async def begin(self, step: int, used: int, directory: str | None = None) -> None:
        """The policy is as step `step` left it, and `used` batches of prompts have been: sample for the steps after it.

        What was sampled before is dropped, but for what `save` wrote under `directory`.  Raises what `publish` does.
        """

    def next(self, step: int) -> AsyncGenerator[Sampled, None]:
        """The rollouts of that step, at once or in parts as they have ended; steps are asked for in order.  Raises
        what sampling raised.  To be closed where it is left early."""

    async def publish(self, step: int) -> Metrics:
        """The policy is as step `step` left it.  Raises what exporting its weights raises."""

    async def settle(self) -> None:
        """The engines hold the newest weights, and do nothing until the next call of `next`."""

    async def save(self, directory: str) -> None:
        """Write what was sampled for steps to come, so that `begin` goes on from there; settles first."""

    async def stop(self) -> None:
        """End what samples."""

    async def close(self) -> None:
        """Stop for good."""


class OnPolicy:
    """Samples when a step asks for it, from the weights that the step before has left in the engines."""

    max_staleness = 0

    def __init__(
        self, rollout: Rollout, publisher: Publisher, prompts: Stream[Prompts], seed: int, parts: int = 1
    ) -> None:
        """`seed`: the run's.  `parts`: in which each engine hands over its rows."""
        self._rollout, self._publisher, self._prompts, self._seed = rollout, publisher, prompts, seed
        self._parts = parts

    @property
    def used(self) -> int:
        return self._prompts.used

    async def begin(self, step: int, used: int, directory: str | None = None) -> None:
        self._prompts.seek(used)
        await self._publisher.publish(step)

    async def next(self, step: int) -> AsyncGenerator[Sampled, None]:
        began = time.perf_counter()
        prompts = await read(self._prompts)
        metrics = {"time/data_s": time.perf_counter() - began}
        if self._parts == 1:
            yield Sampled(await self._rollout.generate(prompts, self._seed), metrics)
            return

        def generate(put: Callable[[Rollouts], None]) -> Awaitable[Rollouts]:
            return self._rollout.generate(prompts, self._seed, early=Early(self._parts, put))

        async with aclosing(put_by(generate)) as found:
            async for rollouts in found:
                yield Sampled(rollouts, metrics)

    async def publish(self, step: int) -> Metrics:
        return await self._publisher.publish(step)

    async def settle(self) -> None:
        pass

    async def save(self, directory: str) -> None:
        pass

    async def stop(self) -> None:
        pass

    async def close(self) -> None:
        self._prompts.close()


class Ahead:
    """Samples in a task of its own, up to `max_staleness` steps ahead of the one that learns."""

    def __init__(
        self,
        rollout: Rollout,
        publisher: Publisher,
        prompts: Stream[Prompts],
        seed: int,
        max_staleness: int,
        last_step: int,
        max_new_tokens: int,
        part_tokens: int | None = None,
    ) -> None:
        """`seed`: the run's.  Nothing is sampled for a step after `last_step`.  `max_new_tokens`: of a response;
        `part_tokens`: of it by one version of the weights, None: all.

        ValueError for a max_staleness below 1, or below the number of parts that may follow the first one.
        """
        if max_staleness < 1:
            raise ValueError(f"max_staleness is {max_staleness}; sampling ahead needs 1 or more")
        self._longest, self._part = max_new_tokens, part_tokens or max_new_tokens
        later = num_parts(self._longest, self._part) - 1
        if max_staleness < later:
            raise ValueError(f"max_staleness is {max_staleness}, but {later} parts may follow a response's first one")
        self._rollout, self._publisher, self._prompts, self._seed = rollout, publisher, prompts, seed
        self.max_staleness, self._last = max_staleness, last_step
        self._task: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()  # set, and replaced, when anything below changes
        self._used = prompts.used
        self._batches: dict[int, Rollouts] = {}  # by step; those with cut rows are not ready
        self._copies: dict[int, Any] = {}  # exported weights newer than those of the engines, by version
        self._begun = self._newest = 0  # versions: that of `begin`, the last one published
        self._loaded: int | None = None  # the engines' version
        self._next = 1  # the step whose turn is next
        self._is_held = self._is_still = False  # `settle` was asked for; the task has nothing to do

    @property
    def used(self) -> int:
        return self._used

    async def begin(self, step: int, used: int, directory: str | None = None) -> None:
        await self.stop()
        self._prompts.seek(used)
        self._used, self._begun, self._loaded, self._is_held, self._copies = used, step, None, False, {}
        self._batches = read_sampled(directory, step + 1) if directory else {}
        for _ in self._batches:  # so that whoever remembers the rows of prompts knows these
            await read(self._prompts)
        self._next = next_part_at(self._batches, self._longest, self._part) or step + 1 + len(self._batches)
        await self.publish(step)
        self._task = asyncio.create_task(self._sample())
        self._task.add_done_callback(lambda _: self._tell())

    async def next(self, step: int) -> AsyncGenerator[Sampled, None]:
        began = time.perf_counter()
        self._is_held = False
        self._tell()
        while step not in self._batches or self._is_cut(step):
            await self._change()
        self._used += 1
        rollouts, metrics = self._batches.pop(step), {"time/sample_wait_s": time.perf_counter() - began}
        if self._part < self._longest:
            metrics["sync/partial_share"] = partial_share(rollouts, self._part)
        yield Sampled(rollouts, metrics)

    async def publish(self, step: int) -> Metrics:
        self._copies[step], metrics = await self._publisher.export(step)
        self._newest = step
        self._tell()
        return metrics

    async def settle(self) -> None:
        self._is_held, self._is_still = True, False
        self._tell()
        while not (self._is_still and self._loaded == self._newest):
            await self._change()

    async def save(self, directory: str) -> None:
        await self.settle()
        for step, rollouts in self._batches.items():
            path = _file(directory, step)
            with writing(path):
                save_file({name: getattr(rollouts, name).contiguous() for name in rollouts.SHAPES}, path)

    async def stop(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def close(self) -> None:
        await self.stop()
        self._copies, self._batches = {}, {}
        self._prompts.close()

    def _version(self, step: int) -> int:
        """That of the weights which sample for the step."""
        return max(self._begun, step - 1 - self.max_staleness)

    def _is_due(self, step: int) -> bool:
        version = self._version(step)
        is_left = step <= self._last or any(self._is_cut(earlier) for earlier in self._batches)
        return is_left and (version < self._newest or (version == self._newest and not self._is_held))

    def _is_cut(self, step: int) -> bool:
        return len(cut_rows(self._batches[step], self._longest)) > 0

    async def _sample(self) -> None:
        """The one that touches the engines."""
        while True:
            if self._is_due(self._next):
                await self._load(self._version(self._next))
                await self._turn()
                self._next += 1
                self._tell()
            elif self._is_held and self._loaded != self._newest:
                await self._load(self._newest)
            else:
                self._is_still = True
                changed = self._tell()
                await changed.wait()
                self._is_still = False

    async def _turn(self) -> None:
        """Sample for the next step, if there is one, and go on with what was cut."""
        cut = {step: cut_rows(batch, self._longest) for step, batch in self._batches.items()}
        cut = {step: rows for step, rows in cut.items() if len(rows)}
        asked = [next_parts(self._batches[step], rows, self._part, self._longest) for step, rows in cut.items()]
        if self._next <= self._last:
            asked.append(first_parts(await read(self._prompts), self._part))
        prompts = Prompts.concat([some for some, _ in asked])
        part = Part.concat([some for _, some in asked])
        found = await self._rollout.generate(prompts, self._seed, part)
        begins = 0
        for step, rows in cut.items():
            more = found.rows(slice(begins, begins + len(rows)))
            self._batches[step] = joined(self._batches[step], rows, more)
            begins += len(rows)
        if self._next <= self._last:
            self._batches[self._next] = found.rows(slice(begins, None))

    async def _load(self, version: int) -> None:
        if version != self._loaded:
            await self._publisher.load(self._copies[version])
            self._loaded = version
            self._copies = {number: copy for number, copy in self._copies.items() if number > version}

    def _tell(self) -> asyncio.Event:
        """Wakes all who wait for a change; the event of the next one."""
        self._changed.set()
        self._changed = asyncio.Event()
        return self._changed

    async def _change(self) -> None:
        """Waits for one.  Raises what ended the task."""
        if self._task is None:
            raise RuntimeError("sampling was not begun, or was stopped")
        if self._task.done():
            self._task.result()
        await self._changed.wait()


def _file(directory: str, step: int) -> str:
    return os.path.join(directory, f"sampled_{step:06d}.safetensors")


def read_sampled(directory: str, first_step: int) -> dict[int, Rollouts]:
    """What `Ahead.save` wrote under `directory`, by step, from `first_step` on."""
    found: dict[int, Rollouts] = {}
    while os.path.exists(path := _file(directory, first_step + len(found))):
        found[first_step + len(found)] = Rollouts(**load_file(path))
    return found
