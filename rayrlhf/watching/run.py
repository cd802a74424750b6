"""A run as it stands: its stages and their states, from what they write, on any file system."""

from __future__ import annotations

import datetime
import json
import posixpath
import re
import time
from dataclasses import dataclass, field
from typing import Any, Literal

import fsspec

from rayrlhf import role_logs
from rayrlhf.checkpoint import MANIFEST, read_manifest
from rayrlhf.errors import ConfigError
from rayrlhf.role_logs import Doing
from rayrlhf.watching.history import FIRST_SILENCE_S, History
from rayrlhf.watching.tail import Row, Tail

State = Literal["running", "finished", "cut off"]
# what a run's folder may hold before it has a row or a stage
_OWN = ("logs", "tensorboard", "wandb", "mlflow.db", ".ray_train", "report.html", "summary.json")
NUM_SAMPLES = 8
_END = 65536  # bytes of a log, in which its last call is


@dataclass(frozen=True)
class StageView:
    """One stage.  `finished`: its newest `stage.json` is final.  Otherwise `running` while its last sign of life
    (a row of metrics; before the first one, a change in its folder) is no older than `History.longest_silence`,
    and `cut off` after that: killed, or stuck."""

    name: str
    kind: str
    state: State
    silent_s: float  # since the last sign of life
    seconds: float | None
    checkpoint: int | None  # step of the newest whole one
    history: History | None  # None without rows
    manifest: dict[str, Any] | None

    @property
    def step(self) -> int | None:
        return self.history.step if self.history else self.checkpoint

    @property
    def total_steps(self) -> int | None:
        return (self.history.total_steps or None) if self.history else None


@dataclass(frozen=True)
class View:
    """A run at one time: its stages in the order in which they began."""

    directory: str
    stages: list[StageView] = field(default_factory=list)
    num_unreadable: int = 0  # lines of the metrics files that are no row

    @property
    def newest(self) -> StageView | None:
        """The stage with the latest sign of life."""
        return min(self.stages, key=lambda stage: stage.silent_s, default=None)

    def stage(self, name: str) -> StageView | None:
        """The stage of that name, None where it is not there."""
        return next((stage for stage in self.stages if stage.name == name), None)


class WatchedRun:
    """Follows `ROOT/NAME`: each `view` reads only what has been written since the last one."""

    def __init__(self, directory: str) -> None:
        """Raises ConfigError for what is no run; an empty folder may become one."""
        self.directory = directory.rstrip("/")
        try:
            self._filesystem, self._root = fsspec.core.url_to_fs(self.directory)
        except (ImportError, ValueError) as error:
            raise ConfigError(f"{directory} cannot be reached: {error}") from error
        self.is_local = "file" in self._filesystem.protocol
        self._tails: dict[str, Tail] = {}
        self._rows: dict[str, dict[str, History]] = {}  # by file, by stage
        self._manifests: dict[str, tuple[Any, dict[str, Any]]] = {}  # by path: (what tells a change, content)
        self._samples: tuple[Any, list[Row]] = (None, [])
        self._check()

    def view(self, now: float | None = None) -> View:
        """The run now (seconds since the epoch)."""
        now = time.time() if now is None else now
        self._filesystem.invalidate_cache()
        entries = self._entries(self._root)
        self._read_metrics(sorted(name for name in entries if _is_metrics(name)))
        histories: dict[str, History] = {}
        for by_stage in self._rows.values():
            histories |= by_stage
        folders = [name for name, kind in entries.items() if kind == "directory" and self._is_stage(name)]
        stages = [self._stage(name, histories.get(name), now) for name in sorted({*folders, *histories})]
        stages.sort(key=lambda stage: now - stage.silent_s - (stage.seconds or 0.0))
        return View(self.directory, stages, sum(tail.num_unreadable for tail in self._tails.values()))

    def samples(self, stage: str) -> tuple[int, list[Row]]:
        """(step, rows {prompt, response, score, gold}) of a stage's last samples; (0, []) without any."""
        folder = f"{self._root}/{stage}/samples"
        names = sorted(name for name in self._entries(folder) if name.startswith("step_") and name.endswith(".jsonl"))
        if not names:
            return 0, []
        path = f"{folder}/{names[-1]}"
        mark = (path, self._mark(path))
        if self._samples[0] != mark:
            lines = self._filesystem.cat_file(path).split(b"\n")[:-1]  # the last one may be half written
            self._samples = mark, [json.loads(line) for line in lines[:NUM_SAMPLES]]
        return int(names[-1].removeprefix("step_").removesuffix(".jsonl")), self._samples[1]

    def roles(self, stage: str) -> list[Doing]:
        """What each actor of a stage's newest attempt does, by the end of its log; none where there are no logs."""
        folder = f"{self._root}/{role_logs.FOLDER}/{stage}"
        try:
            began = _seconds(self._filesystem.cat_file(f"{folder}/{role_logs.ATTEMPT}").decode().strip())
        except (FileNotFoundError, NotADirectoryError, ValueError):  # of an older version, or just being written
            began = 0.0
        names = sorted(name for name in self._entries(folder) if name.endswith(".log"))
        found = (role_logs.doing(name.removesuffix(".log"), self._end(f"{folder}/{name}")) for name in names)
        return [one for one in found if one is not None and one.since >= began]

    def _end(self, path: str) -> str:
        start = max(0, self._filesystem.info(path)["size"] - _END)
        return str(self._filesystem.cat_file(path, start=start).decode(errors="replace"))

    def _check(self) -> None:
        filesystem, root = self._filesystem, self._root
        if filesystem.isfile(root):
            raise ConfigError(f"{self.directory} is a file: give a run's folder, such as runs/demo")
        entries = self._entries(root)
        if not entries:
            if self.is_local and not filesystem.isdir(root):
                raise ConfigError(f"no run at {self.directory}: there is no such folder")
            return  # an empty folder; an object store has none
        if {"latest", "samples"} & entries.keys() or any(name.startswith("step_") for name in entries):
            parent = posixpath.dirname(self.directory) or "."
            raise ConfigError(f"{self.directory} is a stage of a run: give the run, {parent}")
        is_run = any(_is_metrics(name) or name in _OWN for name in entries)
        if not is_run and not any(kind == "directory" and self._is_stage(name) for name, kind in entries.items()):
            raise ConfigError(
                f"{self.directory} is no run: it has neither metrics.jsonl nor a stage's folder, but "
                f"{', '.join(sorted(entries)[:5])}. Give a run's folder, such as runs/demo"
            )

    def _read_metrics(self, names: list[str]) -> None:
        for gone in self._tails.keys() - set(names):
            del self._tails[gone], self._rows[gone]
        for name in names:
            tail = self._tails.setdefault(name, Tail(self._filesystem, f"{self._root}/{name}"))
            rows, starts_over = tail.read()
            if starts_over or name not in self._rows:
                self._rows[name] = {}
            for row in rows:
                histories, stage = self._rows[name], row["stage"]
                if stage not in histories or row["step"] <= histories[stage].step:  # in files of older versions
                    histories[stage] = History()
                histories[stage].add(row)

    def _stage(self, name: str, history: History | None, now: float) -> StageView:
        checkpoint, manifest = self._manifest(name)
        kind = str(manifest["kind"]) if manifest else name
        if manifest is not None and manifest["is_final"]:
            since = max(_seconds(manifest["created"]), history.last_s if history else 0.0)
            return StageView(
                name, kind, "finished", max(0.0, now - since), manifest["seconds"], checkpoint, history, manifest
            )
        if history is not None:
            silent, most = max(0.0, now - history.last_s), history.longest_silence
            seconds: float | None = history.seconds + (silent if silent <= most else 0.0)
        else:
            silent, most, seconds = max(0.0, now - self._last_change(name)), FIRST_SILENCE_S, None
        state: State = "running" if silent <= most else "cut off"
        return StageView(name, kind, state, silent, seconds, checkpoint, history, manifest)

    def _manifest(self, stage: str) -> tuple[int | None, dict[str, Any] | None]:
        """(step, content) of a stage's newest `stage.json`."""
        try:
            step = self._filesystem.cat_file(f"{self._root}/{stage}/latest").decode().strip()
            if not re.fullmatch(r"step_[0-9]{1,18}", step):
                return None, None
            path = f"{self._root}/{stage}/{step}/{MANIFEST}"
            mark = self._mark(path)
            if stage not in self._manifests or self._manifests[stage][0] != (path, mark):
                content = read_manifest(self._filesystem.cat_file(path), path)
                content.pop("files", None)
                self._manifests[stage] = (path, mark), content
            return int(step.removeprefix("step_")), self._manifests[stage][1]
        except (FileNotFoundError, NotADirectoryError, UnicodeDecodeError):  # none yet, or being replaced
            return None, None

    def _last_change(self, stage: str) -> float:
        """When something in the folder of a stage was last written, as far as this file system tells."""
        found = self._filesystem.find(f"{self._root}/{stage}", withdirs=True, detail=True).values()
        times = [entry.get("mtime") or entry.get("LastModified") or entry.get("created") or 0.0 for entry in found]
        return max((t.timestamp() if isinstance(t, datetime.datetime) else float(t) for t in times), default=0.0)

    def _is_stage(self, name: str) -> bool:
        if name.startswith("."):  # such as a server's snapshots
            return False
        inside = self._entries(f"{self._root}/{name}")
        return "latest" in inside or any(entry.startswith("step_") for entry in inside)

    def _entries(self, folder: str) -> dict[str, str]:
        """Names in a folder -> file or directory; none where there is no folder."""
        try:
            found = self._filesystem.ls(folder, detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        return {posixpath.basename(entry["name"].rstrip("/")): entry["type"] for entry in found}

    def _mark(self, path: str) -> Any:
        info = self._filesystem.info(path)
        return [str(info.get(key)) for key in ("size", "mtime", "ETag", "LastModified", "created")]


def _is_metrics(name: str) -> bool:
    return name == "metrics.jsonl" or (name.startswith("metrics-") and name.endswith(".jsonl"))


def _seconds(created: str) -> float:
    return datetime.datetime.fromisoformat(created).timestamp()
