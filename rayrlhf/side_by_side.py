"""Several calls at once, of which none goes on alone."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


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
