"""Says who is late, and what they do meanwhile: a run that stands still explains itself.

    the run            calls.wait_for lists what it waits for
    this thread        every few seconds: whatever has waited longer than `stall_s` is asked for its stack, once
                           |            (actors/stacks.py: the process need not cooperate)
                           '--> a few lines on the console, all of it in `stalls.txt` beside the roles' logs

It changes nothing: a late call goes on, and fails at its own deadline.
"""

from __future__ import annotations

import datetime
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ray

from actors import calls, stacks
from actors.group import ActorGroup
from rayrlhf import role_logs
from rayrlhf.frames import stack_of_this_process, told

FILE = "stalls.txt"
DRIVER = "driver"  # this process


class Watchdog:
    """A thread from `start` to `stop`."""

    def __init__(
        self,
        stall_s: float,
        groups: Mapping[str, ActorGroup],
        stage_root: str,
        say: Callable[[str], Any] = print,
    ) -> None:
        """`groups` may fill up and change meanwhile; `stage_root`: `ROOT/NAME/STAGE`, whose role logs it joins."""
        log = role_logs.file_of(stage_root, "stalls")
        self._file = Path(log).with_name(FILE) if log else None
        self._stall_s, self._groups, self._say = stall_s, groups, say
        self._told: set[int] = set()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more; waits for a report that is being made."""
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._end.wait(min(5.0, self._stall_s / 4)):
            try:
                self.look()
            except Exception:  # a watchdog that fails must neither end the run nor be silent
                self._say(f"warning: the watchdog failed:\n{traceback.format_exc()}")

    def look(self) -> None:
        """Report what is late and was not reported yet."""
        now, waits = time.monotonic(), calls.waiting()
        if all(one.number in self._told for one in waits if now - one.since > self._stall_s):
            return
        late = [one for one in waits if now - one.since > self._stall_s / 2]  # with those asked a moment later
        self._told = {one.number for one in late}
        report, whole = self._report(late)
        if self._file is not None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with open(self._file, "a", encoding="utf-8") as file:
                file.write(whole)
            report += f"\n  whole stacks: {self._file}"
        self._say(report)

    def _report(self, late: list[calls.Waiting]) -> tuple[str, str]:
        """(for the console, for the file)."""
        now = time.monotonic()
        places = {name: place for group in list(self._groups.values()) for name, place in list(group.places.items())}
        said = [f"warning: nothing for {now - late[0].since:.0f} s; waiting for " + ", ".join(map(_named, late))]
        whole = [f"==== {datetime.datetime.now(datetime.UTC):%Y-%m-%dT%H:%M:%SZ} {said[0].removeprefix('warning: ')}"]
        for role in dict.fromkeys(one.role for one in late):
            stack = stack_of_this_process() if role == DRIVER else _stack_of(places.get(role))
            state, *frames = told(stack)
            said += [f"  {role} {state}", *(f"    {frame}" for frame in frames)]
            whole += [f"---- {role}", stack]
        free, there = ray.available_resources(), ray.cluster_resources()
        said.append(f"  CPUs of the cluster: {free.get('CPU', 0):g} of {there.get('CPU', 0):g} are not reserved")
        return "\n".join(said), "\n".join([*whole, ""])


def _named(one: calls.Waiting) -> str:
    return f"{one.role}: {one.what}"


def _stack_of(place: stacks.Place | None) -> str:
    return stacks.ask(place) if place is not None else "no stack: its process is not up yet, or waits for its place"
