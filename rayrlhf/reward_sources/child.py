"""The process that a reward function runs in: started by isolated.py, which kills it where it hangs.

    actor ---- calls (a socket, JSON) ----> worker: imports the function, answers one call after another
      '------- life (a socket) -----------> guard: the worker's parent, kills the whole process group when the actor is
                                            gone, and tells the actor how the worker ended

Only the standard library is imported here: what a process needs beside it is the function's own.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import traceback
from collections.abc import Iterable, Mapping, Set
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, NoReturn

from rayrlhf.errors import ConfigError
from rayrlhf.score_function import find_function, number, parameters_of

MAX_TOLD = 8000  # characters of a traceback


def main(name: str, calls: int, life: int) -> NoReturn:
    """Play guard and worker of the function `name`, `module:function`, on the two inherited file descriptors."""
    worker = os.fork()
    if not worker:
        os.close(life)
        _work(name, Connection(calls))
        sys.exit(0)
    os.close(calls)
    _guard(worker, life)


def _guard(worker: int, life: int) -> NoReturn:
    """Wait for the worker's end, whose exit code goes to `life`, and then, or before, for that of the actor."""
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    is_told = False
    while True:
        ended, status = (0, 0) if is_told else os.waitpid(worker, os.WNOHANG)
        if ended:
            with suppress(OSError):  # an actor that is gone
                os.write(life, str(os.waitstatus_to_exitcode(status)).encode())
            is_told = True
        ready = select.select([woken, life], [], [])[0]
        if life in ready:  # nothing is ever sent to it: the other end is closed
            os.killpg(0, signal.SIGKILL)
        os.read(woken, 64)


def _work(name: str, calls: Connection) -> None:
    """Answer `[prompts, responses, columns]` with `{"scores": [...]}`, where a text stands for what is no score, or
    with `{"kind": ..., "told": ...}`, until the actor closes the socket."""
    try:
        function = find_function(name, "reward_function")
        _say(calls, {"needed": parameters_of(function)[1]})
    except ConfigError as error:
        _say(calls, {"kind": "import", "told": str(error)})
        return
    while True:
        try:
            prompts, responses, columns = json.loads(calls.recv_bytes())
        except EOFError:
            return
        _say(calls, _answer(function, prompts, responses, columns))


def _answer(function: Any, prompts: list[str], responses: list[str], columns: dict[str, list[Any]]) -> dict[str, Any]:
    try:
        answer = function(prompts, responses, **columns)
        if not isinstance(answer, Iterable) or isinstance(answer, str | bytes | Mapping | Set):
            told = f"it returned {repr(answer)[:80]} of type {type(answer).__name__}: give a list of numbers"
            return {"kind": "not_number", "told": told}
        scores = [number(score) for score in answer]
    except BaseException as error:  # sys.exit() too: whatever the user's code does is told
        mine = error.__traceback__
        if mine is not None and mine.tb_next is not None:
            error = error.with_traceback(mine.tb_next)
        told = "".join(traceback.format_exception(error))
        return {"kind": "exception", "told": told[-MAX_TOLD:]}
    if len(scores) != len(responses):
        return {"kind": "count", "told": f"{len(scores)} scores for {len(responses)} responses"}
    return {"scores": scores}


def _say(calls: Connection, answer: dict[str, Any]) -> None:
    calls.send_bytes(json.dumps(answer).encode())
