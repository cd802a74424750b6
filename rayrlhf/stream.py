"""Batches in order, from any place on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Stream(Iterator[T], Generic[T]):
    """Batch `used`, the one after it, and so on without an end; `used` is the number of the next one."""

    def __init__(
        self,
        batches: Callable[[int, int], Generator[T]],
        used: int,
        count: int,
        waiting: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        """`batches(first, last)` gives the batches `first` .. `last` - 1, the same each time; `count` of them are
        expected to do, and where more are asked for (after a rollback) it is asked for more.  Nothing is read yet.
        `waiting` is around each wait for a batch.
        """
        self.used = used
        self._batches, self._count, self._waiting = batches, count, waiting
        self._part: Generator[T] | None = None
        self._last = 0  # where the part ends

    def __next__(self) -> T:
        with self._waiting():
            if self._part is None or self.used >= self._last:
                self.close()
                while self._last <= self.used:
                    self._last += self._count
                self._part = self._batches(self.used, self._last)
            batch = next(self._part)
        self.used += 1
        return batch

    def seek(self, used: int) -> None:
        """Go on with batch number `used`."""
        if used != self.used:
            self.close()
            self.used, self._last = used, 0

    def close(self) -> None:
        """Let go of what reads; where a thread is reading still, it ends with the process."""
        part, self._part = self._part, None
        if part is not None:
            with suppress(ValueError):
                part.close()


async def read(stream: Stream[T]) -> T:
    """The next batch, read in a thread.  No thread can be ended: cancelled, it waits until the batch is there, so that
    nothing moves `stream` when others have gone on."""
    reading = asyncio.ensure_future(asyncio.to_thread(next, stream))
    try:
        return await asyncio.shield(reading)
    finally:
        await asyncio.wait([reading])
