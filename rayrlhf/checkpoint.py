"""Stage directories: the only thing that passes from one stage to the next.

    runs/NAME/STAGE/step_000120/model/       Hugging Face folder: safetensors, tokenizer, chat template
                               /state/       optimizer, schedule, RNG, data position
                               /stage.json   config, parents, environment, metrics, sizes and hashes of the rest
    runs/NAME/STAGE/latest                   text file: the newest whole step directory
    runs/NAME/STAGE/best                     text file: the best one by the stage's metric, where it has one

`stage.json` is written last, so a directory with it is whole and one without it is ignored.  No
rename or link is needed: that holds on object stores as well.  A local root is written in place;
any other fsspec URI is staged in a temporary folder and uploaded.
"""

from __future__ import annotations

import datetime
import errno
import hashlib
import json
import os
import posixpath
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import fsspec

from rayrlhf.environment import environment, versions
from rayrlhf.errors import CheckpointError
from rayrlhf.redaction import redacted, redacted_text

MANIFEST = "stage.json"
_HASHED_BYTES = 256 * 2**20
_STEP = re.compile(r"step_[0-9]{1,18}")


@dataclass(frozen=True)
class StageDir:
    """One whole step directory, on a local disk."""

    path: str
    manifest: dict[str, Any]

    @property
    def model_dir(self) -> str:
        return os.path.join(self.path, "model")

    @property
    def state_dir(self) -> str:
        return os.path.join(self.path, "state")


# the disk's or the user's quota, a file's limit, no right to write
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_RIGHT = (errno.EROFS, errno.EACCES, errno.EPERM)


@contextmanager
def writing(path: str) -> Iterator[None]:
    """Around what writes a checkpoint's files under `path`: CheckpointError where the disk is full or may not be
    written to."""
    try:
        yield
    except Exception as error:  # safetensors' own errors carry the system's only as words
        number = getattr(error, "errno", None) or _number_in(str(error))
        if number not in (*_NO_ROOM, *_NO_RIGHT):
            raise
        free = shutil.disk_usage(_existing(path)).free / 2**30
        remedy = "make room" if number in _NO_ROOM else "let it be written to"
        raise CheckpointError(
            f"{path} cannot be written: {os.strerror(number)}; {free:.2f} GiB are free on that disk. The checkpoints "
            f"before it are whole: {remedy}, and the same command goes on from the newest. Fewer are kept with a lower "
            "`keep`, and others written elsewhere with run.root"
        ) from error


def _number_in(words: str) -> int | None:
    """Of a system error in an error's text, as Rust's libraries write it."""
    found = re.search(r"\(os error (\d+)\)", words)
    return int(found[1]) if found else None


def _existing(path: str) -> str:
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return path


class StageWriter:
    """Writes one step directory: fill `model_dir` and `state_dir`, then call `finish`, or `discard`."""

    def __init__(self, root: str, step: int) -> None:
        """`root` is `runs/NAME/STAGE`, local or an fsspec URI; an unfinished directory of the same step is replaced."""
        self.root, self.step, self.started = root.rstrip("/"), step, time.time()
        self._filesystem, self._remote_root = fsspec.core.url_to_fs(self.root)
        self.is_local = is_local(self._filesystem)
        self.name = f"step_{step:06d}"
        self.path = f"{self._remote_root if self.is_local else tempfile.mkdtemp(prefix='rayrlhf-')}/{self.name}"
        shutil.rmtree(self.path, ignore_errors=True)
        with writing(self.path):
            os.makedirs(self.model_dir)
            os.makedirs(self.state_dir)

    @property
    def model_dir(self) -> str:
        return os.path.join(self.path, "model")

    @property
    def state_dir(self) -> str:
        return os.path.join(self.path, "state")

    def finish(
        self,
        kind: str,
        config: dict[str, Any],
        parents: dict[str, str],
        metrics: dict[str, float],
        is_best: bool = False,
        is_final: bool = True,
        keep: int = 2,
        seconds: float | None = None,
    ) -> str:
        """Write `stage.json`, move `latest` (and `best`) to this step, drop all but the newest `keep`.

        `is_final` says that the stage is done, not one of its checkpoints on the way.  `parents`
        maps what this stage was made from (`model`, `data`, ...) to stage directories or folders;
        `config` is the resolved configuration; secrets in either are masked.  Returns the step directory's path.
        """
        with writing(self.path):
            self._finish(kind, config, parents, metrics, is_best, is_final, keep, seconds)
        return f"{self.root}/{self.name}"

    def _finish(
        self,
        kind: str,
        config: dict[str, Any],
        parents: dict[str, str],
        metrics: dict[str, float],
        is_best: bool,
        is_final: bool,
        keep: int,
        seconds: float | None,
    ) -> None:
        manifest = {
            "kind": kind,
            "step": self.step,
            "is_final": is_final,
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "seconds": round(time.time() - self.started if seconds is None else seconds, 3),
            "config": redacted(config),
            "parents": {r: {"path": redacted_text(path), "hash": stage_hash(path)} for r, path in parents.items()},
            "versions": versions(),
            "environment": environment(),
            "metrics": metrics,
            "files": _inventory(self.path),
        }
        final = f"{self._remote_root}/{self.name}"
        if not self.is_local:
            if self._filesystem.exists(final):  # of a former try: `put` would write into it, a level deeper
                self._filesystem.rm(final, recursive=True)
            self._filesystem.put(self.path, final, recursive=True)
        _write(self._filesystem, f"{final}/{MANIFEST}", _json(manifest))
        if is_best:  # before `latest`: a run resumes from there, and by then `best` must keep this step
            _write(self._filesystem, f"{self._remote_root}/best", self.name)
        _write(self._filesystem, f"{self._remote_root}/latest", self.name)
        self._prune(keep)
        if not self.is_local:
            shutil.rmtree(os.path.dirname(self.path))

    def discard(self) -> None:
        """Remove what was written, unless it is whole."""
        if not os.path.exists(f"{self.path}/{MANIFEST}"):
            shutil.rmtree(self.path if self.is_local else os.path.dirname(self.path), ignore_errors=True)

    def _prune(self, keep: int) -> None:
        whole = _steps(self._filesystem, self._remote_root)
        best = _pointer(self._filesystem, self._remote_root, "best")
        for name in whole[:-keep]:
            if name != best and name != self.name:
                self._filesystem.rm(f"{self._remote_root}/{name}", recursive=True)


def make_final(root: str, step: int, seconds: float) -> str:
    """Declare the whole checkpoint of `step` the stage's result: later ones, which are worse, are
    removed and `latest` names it.  Returns its directory."""
    filesystem, where = fsspec.core.url_to_fs(root.rstrip("/"))
    name = f"step_{step:06d}"
    manifest = json.loads(filesystem.cat_file(f"{where}/{name}/{MANIFEST}"))
    manifest |= {"is_final": True, "seconds": round(seconds, 3)}
    # in this order: a kill in between leaves a stage that resumes from this step
    _write(filesystem, f"{where}/latest", name)
    for other in _steps(filesystem, where):
        if _number(other) > step:
            filesystem.rm(f"{where}/{other}", recursive=True)
    _write(filesystem, f"{where}/{name}/{MANIFEST}", _json(manifest))
    return f"{root.rstrip('/')}/{name}"


def find_stage(path: str, kind: str | None = None) -> StageDir:
    """The whole step directory that `path` names, checked against its sizes and hashes.

    `path` is a step directory, a stage (`runs/NAME/STAGE`, its newest step) or `.../latest`,
    `.../best`.  A URI is downloaded to the cache once.  Raises CheckpointError when there is none,
    when a file is missing or differs, or when it is not of `kind`.
    """
    filesystem, where = fsspec.core.url_to_fs(path.rstrip("/"))
    parent, last = posixpath.split(where)
    if not filesystem.exists(f"{where}/{MANIFEST}"):
        root, pointer = (parent, last) if last in ("latest", "best") else (where, "latest")
        name = _pointer(filesystem, root, pointer)
        if name is None:
            raise _no_stage(filesystem, root, pointer, path)
        where = f"{root}/{name}"
    if not is_local(filesystem):
        where = _download(filesystem, where)
    try:
        with open(f"{where}/{MANIFEST}", "rb") as file:
            text = file.read()
    except OSError as error:
        raise CheckpointError(f"{where}/{MANIFEST} cannot be read: {error.strerror}") from error
    manifest = read_manifest(text, f"{where}/{MANIFEST}")
    if kind is not None and manifest["kind"] != kind:
        raise CheckpointError(f"{path} is a {manifest['kind']!r} stage, but a {kind!r} stage is needed here")
    for name, entry in manifest["files"].items():
        problem = _differs(os.path.join(where, name), entry)
        if problem:
            raise CheckpointError(
                f"{where} is torn: {name} {problem}. Use an older step_* of the stage, or run the stage again."
            )
    return StageDir(where, manifest)


def newest_whole(root: str) -> tuple[StageDir, dict[str, str]]:
    """(the newest step of the stage at `root` that is whole, why each newer one is not, by its name), up to the step
    that `latest` names: those behind it were dropped.  Raises CheckpointError where none is whole."""
    filesystem, where = fsspec.core.url_to_fs(root.rstrip("/"))
    torn: dict[str, str] = {}
    pointer = filesystem.cat_file(f"{where}/latest")
    try:
        last: int | None = _number(pointer.decode().strip())
    except ValueError:
        last, torn["latest"] = None, f"{root}/latest is torn: {pointer[:40]!r} names no step."
    names = [posixpath.basename(entry.rstrip("/")) for entry in filesystem.ls(where, detail=False, refresh=True)]
    steps = sorted((name for name in names if re.fullmatch(r"step_\d+", name)), key=_number, reverse=True)
    for name in steps:
        if last is not None and _number(name) > last:
            continue
        try:
            return find_stage(f"{root.rstrip('/')}/{name}"), torn
        except CheckpointError as error:
            torn[name] = str(error)
    raise CheckpointError(f"no step of {root} is whole: {'; '.join(torn.values()) or 'there is none'}")


def set_aside(root: str, torn: Iterable[str], newest: str) -> None:
    """Steps that are torn are called `torn_step_*` from now on, which nothing reads, and `latest` names the step
    directory `newest`."""
    filesystem, where = fsspec.core.url_to_fs(root.rstrip("/"))
    _write(filesystem, f"{where}/latest", posixpath.basename(newest))
    for name in (name for name in torn if name != "latest"):
        if filesystem.exists(f"{where}/torn_{name}"):
            filesystem.rm(f"{where}/torn_{name}", recursive=True)
        filesystem.mv(f"{where}/{name}", f"{where}/torn_{name}", recursive=True)


def _no_stage(filesystem: fsspec.AbstractFileSystem, root: str, pointer: str, path: str) -> CheckpointError:
    there = sorted(_names(filesystem, root))[:8] if filesystem.isdir(root) else []
    if pointer in there:
        named = filesystem.cat_file(f"{root}/{pointer}")[:80].decode(errors="replace").strip()
        steps = [name for name in there if name.startswith("step_")]
        return CheckpointError(
            f"{path} is not a finished stage: `{pointer}` there names {named!r}, which has no {MANIFEST}. Name a whole "
            f"step ({', '.join(steps) or 'there is none'}), or run the stage again"
        )
    return CheckpointError(
        f"{path} is not a finished stage: no {MANIFEST} and no `{pointer}` file there (found: "
        f"{', '.join(there) or 'nothing'}). Run the stage that makes it, or give a runs/NAME/STAGE directory."
    )


# of `stage.json` what is read here and elsewhere, and its types
_TYPES: dict[str, type | tuple[type, ...]] = {
    "kind": str,
    "step": int,
    "is_final": bool,
    "created": str,
    "seconds": (int, float),
    "config": dict,
    "parents": dict,
    "metrics": dict,
    "files": dict,
}
_ENTRIES: dict[str, dict[str, type]] = {"parents": {"path": str, "hash": str}, "files": {"size": int, "sha256": str}}


def read_manifest(text: bytes, where: str) -> dict[str, Any]:
    """The content of the `stage.json` at `where`.  Raises CheckpointError where it is torn, or not of this form."""
    try:
        manifest = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _unreadable(where, f"no JSON: {error}") from error
    if not isinstance(manifest, dict):
        raise _unreadable(where, "no JSON object")
    wrong = [name for name, kind in _TYPES.items() if not isinstance(manifest.get(name), kind)]
    for name, keys in _ENTRIES.items():
        entries: Any = manifest[name].items() if name not in wrong else ()
        wrong += [
            f"{name}.{inner}"
            for inner, entry in entries
            if not isinstance(entry, dict) or any(not isinstance(entry.get(key), kind) for key, kind in keys.items())
        ]
    if "created" not in wrong and not _is_time(manifest["created"]):
        wrong.append("created")
    if "metrics" not in wrong:
        wrong += [
            f"metrics.{name}" for name, value in manifest["metrics"].items() if not isinstance(value, int | float)
        ]
    if wrong:
        raise _unreadable(where, f"without, or with other values than are written there: {', '.join(wrong[:5])}")
    return dict(manifest)


def _is_time(text: str) -> bool:
    try:
        datetime.datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        return False
    return True


def _unreadable(where: str, why: str) -> CheckpointError:
    return CheckpointError(f"{where} cannot be read ({why}): remove that step or name another")


def stage_hash(path: str) -> str:
    """A short hash of what `path` means: of `stage.json` for a stage, a step or a folder inside one;
    for anything else of the files that a path or glob means: names, sizes, and contents (of more than
    256 MiB, or elsewhere than on a local disk: times or tags of change); "" where there is nothing."""
    if path.startswith("hf://"):
        return ""  # a hub's data set, of which only the hub knows the revision
    filesystem, where = fsspec.core.url_to_fs(path.rstrip("/"))
    parent, last = posixpath.split(where)
    for root, pointer in ((where, "latest"), (parent, last)):
        name = _pointer(filesystem, root, pointer) if pointer in ("latest", "best") else None
        if name is not None:
            where = f"{root}/{name}"
    inside = where
    while inside and inside != posixpath.dirname(inside):
        if filesystem.isfile(f"{inside}/{MANIFEST}"):
            return hashlib.sha256(filesystem.cat_file(f"{inside}/{MANIFEST}")).hexdigest()[:16]
        inside = posixpath.dirname(inside)
    files: dict[str, dict[str, Any]] = {}
    for found in filesystem.glob(where) if any(c in where for c in "*?[") else [where]:
        files |= filesystem.find(found, detail=True)
    if not files:
        return ""
    is_here, size = is_local(filesystem), sum(entry["size"] for entry in files.values())
    marks = []
    for name, entry in sorted(files.items()):
        if is_here and size <= _HASHED_BYTES:
            mark: Any = _sha256(name)
        else:  # what changes with the content, as far as this file system tells
            mark = next((str(entry[key]) for key in ("ETag", "etag", "mtime", "LastModified") if entry.get(key)), "")
        marks.append((name.removeprefix(where), entry["size"], mark))
    return hashlib.sha256(json.dumps(marks).encode()).hexdigest()[:16]


def _json(manifest: dict[str, Any]) -> str:
    return json.dumps(manifest, indent=1, sort_keys=True, allow_nan=True)


def _write(filesystem: fsspec.AbstractFileSystem, path: str, text: str) -> None:
    """A local file is replaced in one step, so that no reader ever sees half of it."""
    if not is_local(filesystem):
        filesystem.pipe_file(path, text.encode())
        return
    with open(path + ".part", "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(path + ".part", path)


def is_local(filesystem: fsspec.AbstractFileSystem) -> bool:
    """Whether its paths are paths of this machine."""
    protocol = filesystem.protocol
    return "file" in ((protocol,) if isinstance(protocol, str) else protocol)


def _names(filesystem: fsspec.AbstractFileSystem, root: str) -> list[str]:
    """Names of the whole step directories and other entries under `root`."""
    names = []
    for entry in filesystem.ls(root, detail=False, refresh=True) if filesystem.isdir(root) else []:
        name = posixpath.basename(entry.rstrip("/"))
        if not name.startswith("step_") or filesystem.exists(f"{root}/{name}/{MANIFEST}"):
            names.append(name)
    return names


def _steps(filesystem: fsspec.AbstractFileSystem, root: str) -> list[str]:
    """Names of the whole step directories under `root`, oldest first."""
    return sorted((name for name in _names(filesystem, root) if _STEP.fullmatch(name)), key=_number)


def _number(name: str) -> int:
    return int(name.removeprefix("step_"))


def _pointer(filesystem: fsspec.AbstractFileSystem, root: str, name: str) -> str | None:
    try:
        target = filesystem.cat_file(f"{root}/{name}").decode().strip()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, UnicodeDecodeError):
        return None
    is_step = _STEP.fullmatch(target) is not None  # what a torn file holds is no path
    return target if is_step and filesystem.exists(f"{root}/{target}/{MANIFEST}") else None


def _download(filesystem: fsspec.AbstractFileSystem, where: str) -> str:
    cache = os.environ.get("RAYRLHF_CACHE", os.path.expanduser("~/.cache/rayrlhf"))
    key = hashlib.sha256(filesystem.cat_file(f"{where}/{MANIFEST}")).hexdigest()[:16]
    local = os.path.join(cache, "stages", key)
    if not os.path.isfile(f"{local}/{MANIFEST}"):
        shutil.rmtree(local, ignore_errors=True)
        os.makedirs(os.path.dirname(local), exist_ok=True)
        filesystem.get(where, local, recursive=True)
    return local


def _inventory(root: str) -> dict[str, dict[str, Any]]:
    found = {}
    for folder, _, names in os.walk(root):
        for name in names:
            path = os.path.join(folder, name)
            found[os.path.relpath(path, root)] = {"size": os.path.getsize(path), "sha256": _sha256(path, settle=True)}
    found.pop(MANIFEST, None)
    return found


def _differs(path: str, entry: dict[str, Any]) -> str:
    if not os.path.isfile(path):
        return "is missing"
    if os.path.getsize(path) != entry["size"]:
        return f"has {os.path.getsize(path)} bytes instead of {entry['size']}"
    return "" if _sha256(path) == entry["sha256"] else "has another sha256 than when it was written"


def _sha256(path: str, settle: bool = False) -> str:
    """`settle`: and the file is on the disk then, so that no power loss leaves a manifest of files that are not."""
    with open(path, "rb") as file:
        if settle:
            os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()
