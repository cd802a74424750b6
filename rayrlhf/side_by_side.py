"""Several calls at once, of which none goes on alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def gather(*calls: Coroutine[Any, Any, Any]) -> list[Any]:
    """All answers in order.  The first error ends the others, waits until they are over, and is raised: what is done
    about it then meets no call that still runs."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def put_by(call: Callable[[Callable[[T], None]], Awaitable[Any]]) -> AsyncGenerator[T, None]:
    """What `call(put)` puts while it runs, in order; raises what it raises.  To be closed where it is left early
    (`contextlib.aclosing`): that ends the call, and waits until it is over."""
    found: asyncio.Queue[T | None] = asyncio.Queue()

    async def called() -> None:
        try:
            await call(found.put_nowait)
        finally:
            found.put_nowait(None)

    task = asyncio.ensure_future(called())
    try:
        while (one := await found.get()) is not None:
            yield one
        await task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
