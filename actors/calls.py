"""One way to call an actor: with a deadline, the role's name in every error, and its traceback.

Object refs are awaitable, so the callers above (groups, coordinator) are plain asyncio.
"""

from __future__ import annotations

import asyncio
import itertools
import re
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from rayrlhf.errors import DeadlineError, RoleError, StateLost, UserError

# How long a failed gather waits for a better explanation.  When a rank dies, its peers' collectives
# break within milliseconds ("connection closed"), while Ray reports the death about a second later.
EXPLANATION_S = 3.0
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_SHOWN = {"__ray_call__": "is your process up"}  # Ray's way to run a function in an actor's process


@dataclass(frozen=True)
class Waiting:
    """An answer that this process waits for."""

    number: int
    role: str  # the actor's name, or `driver`
    what: str
    since: float  # time.monotonic()


_numbers, _lock = itertools.count(), threading.Lock()
_waiting: dict[int, Waiting] = {}


def waiting() -> list[Waiting]:
    """All of them, oldest first; any thread may ask."""
    with _lock:
        return list(_waiting.values())


@contextmanager
def wait_for(role: str, what: str) -> Iterator[None]:
    """Inside, `waiting` lists it."""
    entry = Waiting(next(_numbers), role, what, time.monotonic())
    with _lock:
        _waiting[entry.number] = entry
    try:
        yield
    finally:
        with _lock:
            del _waiting[entry.number]


class RoleDied(RoleError):
    """The actor's process is gone."""


async def call(
    handle: Any,
    method: str,
    *args: Any,
    role: str,
    deadline_s: float,
    put: Callable[[Any], None] | None = None,
    **kwargs: Any,
) -> Any:
    """The answer of `handle.method(*args, **kwargs)`; `role` is the actor's name, such as `policy-0`.

    With `put` the method is a generator: `put` takes what it yields, each as it comes, and the answer is None.

    Raises the actor's own UserError or StateLost as it was raised there; DeadlineError when there is no answer
    within `deadline_s` seconds; RoleDied when the actor's process is gone; RoleError with the
    remote traceback for anything else.
    """
    options = {"name": f"{role}.{method}"} | ({"num_returns": "streaming"} if put else {})
    ref = getattr(handle, method).options(**options).remote(*args, **kwargs)
    method = _SHOWN.get(method, method)
    try:
        with wait_for(role, method):
            return await asyncio.wait_for(_each(ref, put) if put else _answer(ref), deadline_s)
    except TimeoutError as error:
        if isinstance(error, RayError):  # a TimeoutError raised in the actor arrives as both
            raise _explain(error, role, method) from None
        ray.cancel(ref)
        raise DeadlineError(
            f"{role} did not answer `{method}` within {deadline_s:g} s: it hangs, waits for a peer or for "
            f"resources, or is slow. See its log and stack in the Ray dashboard (Actors, {role}); "
            "if it is only slow, raise call_deadline_s (of `start`: start_deadline_s)."
        ) from None
    except asyncio.CancelledError:
        ray.cancel(ref)  # takes back a call still in the actor's queue; one that runs goes on
        raise
    except RayError as error:
        raise _explain(error, role, method) from None


async def _answer(ref: Any) -> Any:
    return await ref


async def _each(refs: Any, put: Callable[[Any], None]) -> None:
    async for ref in refs:
        put(await ref)


def _explain(error: RayError, role: str, method: str) -> Exception:
    """The error to raise in the caller for what Ray raised."""
    cause = getattr(error, "cause", None)
    if isinstance(error, RayTaskError) and isinstance(cause, UserError | StateLost):
        return cause
    text = _COLOURS.sub("", str(error))
    if isinstance(error, RayActorError):
        return RoleDied(
            f"{role} died in `{method}`. Likely causes: out of memory (see the node's dmesg), a crash in "
            f"native code (see the actor's log in the Ray dashboard), or a lost node.\n{text}"
        )
    return RoleError(f"{role} failed in `{method}`:\n{text}")


async def gather(calls: Sequence[Coroutine[Any, Any, Any]]) -> list[Any]:
    """All answers in order.  The first failure ends the wait: peers of a failed rank may hang in a
    collective operation, and are neither waited for nor allowed to hide which rank failed."""
    tasks = [asyncio.ensure_future(c) for c in calls]
    try:
        done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        if any(task.exception() for task in done) and pending:
            done, pending = await asyncio.wait(tasks, timeout=EXPLANATION_S)
        errors = [e for task in tasks if task in done and (e := task.exception()) is not None]
        if errors:
            raise _most_telling(errors)
        return [task.result() for task in tasks]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _most_telling(errors: list[BaseException]) -> BaseException:
    """The root of several ranks' errors: a user's error, then a death, then what came first; the
    others follow in its message."""
    order = (UserError, RoleDied, Exception)
    first = min(errors, key=lambda e: next(i for i, kind in enumerate(order) if isinstance(e, kind)))
    others = [str(e).splitlines()[0] for e in errors if e is not first]
    if isinstance(first, RoleError) and others:
        return type(first)(f"{first}\nFailed with it: {' | '.join(others)}")
    return first
