"""`rayrlhf watch RUN`: a run in the terminal, live or finished, from the files that it writes.

RUN is a run's folder or URI (runs/demo, s3://bucket/runs/demo); a name such as demo means runs/demo where no folder
has that name.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Sequence

from jobs.command import USER_ERROR, ToolParser, complain
from rayrlhf.errors import ConfigError, UserError


def watch(argv: Sequence[str]) -> int:
    """Returns the exit code: 0, also after Ctrl-C; 2 for what is no run."""
    parser = ToolParser(prog="rayrlhf watch", description="Watch a run, live or finished.", allow_abbrev=False)
    parser.add_argument("run", help="its folder or URI, or its name under runs/")
    parser.add_argument("--stage", help="the stage to show; default: the newest")
    parser.add_argument("--once", action="store_true", help="print it once, as where the output is no terminal")
    parser.add_argument("--interval", type=float, default=2.0, metavar="S", help="seconds between looks (default 2)")
    try:
        given = parser.parse_intermixed_args(list(argv))
        if not given.interval > 0:
            raise ConfigError(f"--interval {given.interval:g}: seconds above 0")
        _watch(_directory(given.run), given.stage, given.once, given.interval)
    except UserError as error:
        complain(str(error))
        return USER_ERROR
    except KeyboardInterrupt:
        pass
    return 0


def _watch(directory: str, stage: str | None, once: bool, interval: float) -> None:
    from rich.console import Console, RenderableType
    from rich.live import Live

    from rayrlhf.watching.draw import draw
    from rayrlhf.watching.run import WatchedRun

    console, run = Console(), WatchedRun(directory)

    if stage and run.view().stage(stage) is None:
        known = ", ".join(found.name for found in run.view().stages) or "none yet"
        raise ConfigError(f"--stage {stage}: {directory} has no such stage; there are {known}")

    def look() -> RenderableType:
        now = time.time()
        view = run.view(now)
        chosen = (view.stage(stage) if stage else None) or view.newest
        if chosen is None:
            return draw(view, None, (0, []), now)
        return draw(view, chosen, run.samples(chosen.name), now, run.roles(chosen.name))

    if once or not console.is_terminal:
        console.print(look())
        return
    if threading.current_thread() is threading.main_thread():
        # `kill` too gives the terminal back as it was, also where a shell started this deaf to Ctrl-C
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler)
    with Live(look(), console=console, screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(interval)
            live.update(look(), refresh=True)


def _directory(run: str) -> str:
    under = os.path.join("runs", run)
    return under if not os.path.exists(run) and os.path.isdir(under) else run
