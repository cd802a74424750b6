"""Which steps of a training job are profiled (`--profile`), and where their files lie.

ROOT/NAME/profile/STAGE/step_000003/policy-0.json.gz    a trace: ui.perfetto.dev or chrome://tracing open it
                                    policy-0.txt        the operators that took most, of the same process
                                    ray_timeline.json.gz  what Ray's processes did meanwhile
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

import fsspec

from rayrlhf.errors import ConfigError

OPTION = "--profile"
DEFAULT = 3  # step 1 compiles and fills caches, step 2 is still a little slower
MOST = 20  # steps of one profile: a process keeps every operator call in memory until the last of them
TRACE, TABLE = ".json.gz", ".txt"
TIMELINE = f"ray_timeline{TRACE}"


@dataclass(frozen=True)
class Steps:
    """The steps `first` to `last`, both included."""

    first: int
    last: int

    def __contains__(self, step: int) -> bool:
        return self.first <= step <= self.last

    def __str__(self) -> str:
        """As the command line writes them."""
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"

    def folder(self, run_directory: str, stage: str) -> str:
        """Where the files of these steps of a stage lie; `run_directory` is ROOT/NAME."""
        last = "" if self.first == self.last else f"_to_{self.last:06d}"
        return f"{run_directory}/profile/{stage}/step_{self.first:06d}{last}"

    def check(self, stage: str, total: int | None, done: int = 0) -> None:
        """ConfigError where `stage`, which takes `total` steps (None: not known yet) and has `done` of them, does not
        reach them."""
        if total is not None and self.last > total:
            raise ConfigError(
                f"{OPTION} {self}: {stage} takes {total} steps{self._meant()}. Give steps from 1 to {total}"
            )
        if self.first <= done:
            raise ConfigError(
                f"{OPTION} {self}: {stage} goes on after step {done}{self._meant()}. Give later steps, or another "
                "run.name"
            )

    def _meant(self) -> str:
        return f" (without a value it is step {DEFAULT})" if self == Steps(DEFAULT, DEFAULT) else ""


def parse(text: str | None) -> Steps:
    """`3` or `5-6`; None is the default.  Raises ConfigError."""
    if text is None:
        return Steps(DEFAULT, DEFAULT)
    found = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", text)
    if found is None:
        raise ConfigError(f"{OPTION} {text}: give a step or the first and the last one: {OPTION} 3, {OPTION} 5-6")
    first, last = int(found[1]), int(found[2] or found[1])
    if not 1 <= first <= last:
        what = "steps count from 1" if first <= last else "the first step is after the last one"
        raise ConfigError(f"{OPTION} {text}: {what}; write {OPTION} 3 or {OPTION} 5-6")
    if last - first >= MOST:
        raise ConfigError(
            f"{OPTION} {text}: {last - first + 1} steps are more than a trace can hold; give at most {MOST}"
        )
    return Steps(first, last)


def told(folder: str, steps: Steps) -> str:
    """What the user reads at the end of a run: the files in `folder` and what opens them; "" where there are none."""
    filesystem, path = fsspec.core.url_to_fs(folder)
    found = filesystem.ls(path, detail=False) if filesystem.isdir(path) else []
    names = sorted(os.path.basename(file) for file in found)
    traces = [name for name in names if name.endswith(TRACE)]
    if not traces:
        return ""
    return (
        f"profile of step {steps}: {folder}\n"
        f"  traces: {', '.join(traces)}: open one at https://ui.perfetto.dev or in Chrome at chrome://tracing\n"
        f"  the operators that took most: {', '.join(name for name in names if name.endswith(TABLE))}"
    )
