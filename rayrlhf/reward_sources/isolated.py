"""A reward function in a process of its own (child.py), which may hang, die or print whatever it likes.

It is no `multiprocessing.Process`: spawn would run the main module of Ray's workers again, and fork would copy an actor
with its threads.  Both ways go JSON, so that nothing that comes back is run.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any

from rayrlhf import role_logs
from rayrlhf.errors import ConfigError

_RUN = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from rayrlhf.reward_sources import child"
_RUN += "; child.main(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))"
MAX_LINES, MAX_LINE = 200, 2000  # of what one call may print


class CallFailed(Exception):
    """A call gave no scores: `kind` is timeout, exception, count, not_number (no list of them) or died, `told` what is
    known of it."""

    def __init__(self, kind: str, told: str) -> None:
        super().__init__(f"{kind}: {told}")
        self.kind, self.told = kind, told


class IsolatedFunction:
    """`module:function`, called in another process, which is started when it is needed and is not there."""

    def __init__(self, name: str, threads: int | None = None) -> None:
        """`threads`: for OpenMP, and so torch, in it; None: as here."""
        self.name, self.threads = name, threads
        self.needed: tuple[str, ...] = ()  # columns that the function cannot do without
        self._process: subprocess.Popen[bytes] | None = None
        self._sending: threading.Thread | None = None
        self._num_lines = 0

    def start(self, deadline_s: float | None = None) -> None:
        """Start the process, if there is none, and import the function.

        Raises ConfigError where it cannot be imported, CallFailed where that takes longer than `deadline_s` or ends
        the process.
        """
        if self._process is not None:
            return
        here, there = socket.socketpair()
        life, guarded = socket.socketpair()
        with there, guarded:
            files = there.fileno(), guarded.fileno()
            self._process = subprocess.Popen(
                [sys.executable, "-u", "-c", _RUN, json.dumps(sys.path), self.name, *map(str, files)],
                pass_fds=files,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a process group, to be killed as one
            )
        self._calls, self._life, self._num_lines = Connection(here.detach()), life, 0
        threading.Thread(target=self._pass_on, args=(self._process.stdout,), daemon=True).start()
        answer = self._hear(deadline_s, "importing it")
        if "needed" not in answer:
            self.close()
            raise ConfigError(answer["told"])
        self.needed = tuple(answer["needed"])

    def __call__(
        self, prompts: list[str], responses: list[str], columns: Mapping[str, list[Any]], deadline_s: float | None
    ) -> list[float | str]:
        """One answer a response: a number, which may not be finite, or a text that shows what is none.

        Raises CallFailed; after timeout and died the process is gone, with all that it started.
        """
        self._num_lines = 0
        batch = json.dumps([prompts, responses, columns]).encode()
        # beside the wait, whose deadline is for both: a process that does not read lets a long batch wait
        self._sending = threading.Thread(target=self._send, args=(batch,), daemon=True)
        self._sending.start()
        answer = self._hear(deadline_s, "the call")
        if "scores" not in answer:
            raise CallFailed(answer["kind"], answer["told"])
        return list(answer["scores"])

    def close(self) -> None:
        """Kill the process and its group."""
        if self._process is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        if self._sending is not None:
            self._sending.join(1.0)  # the other end of what it writes to is gone: that ends it
        self._calls.close()
        self._life.close()
        self._process = None

    def _send(self, batch: bytes) -> None:
        with suppress(OSError):  # it died between two calls, or is killed at the deadline: `_hear` tells
            self._calls.send_bytes(batch)

    def _hear(self, deadline_s: float | None, what: str) -> dict[str, Any]:
        """The process's next answer."""
        began = time.monotonic()
        ready = wait([self._calls, self._life], deadline_s)
        try:
            if self._calls in ready or self._calls.poll():
                return dict(json.loads(self._calls.recv_bytes()))
        except (EOFError, OSError):
            ready = [self._life]
        if not ready:
            self.close()
            raise CallFailed("timeout", f"{what} took longer than {deadline_s:g} s")
        self._life.settimeout(1.0)
        with suppress(OSError):
            code = int(self._life.recv(16) or b"-9")
            what = f"{what} ended its process with {_named(code)}"
        self.close()
        raise CallFailed("died", f"{what} after {time.monotonic() - began:.3g} s")

    def _environment(self) -> dict[str, str] | None:
        return None if self.threads is None else os.environ | {"OMP_NUM_THREADS": str(self.threads)}

    def _pass_on(self, output: Any) -> None:
        """What it prints, to this actor's log, or where this process prints; read to its end, or it would wait."""
        with output:
            while line := output.readline(MAX_LINE):
                self._num_lines += 1
                if self._num_lines > MAX_LINES + 1:
                    continue
                text = line.decode(errors="replace").rstrip("\n")
                if self._num_lines > MAX_LINES:
                    text = f"(what it printed after {MAX_LINES} lines of this call is left out)"
                if not role_logs.note(f"{self.name}: {text}"):
                    print(text, flush=True)


def _named(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    hint = ": out of memory, or killed from outside" if code == -signal.SIGKILL else ""
    return f"{signal.Signals(-code).name}{hint}"
