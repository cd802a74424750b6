"""What is served, kept beside its run while it is served: hard links, which a run that prunes its checkpoints leaves.

    runs/NAME/.served/OWNER/HASH/STAGE/step_000120/model/       links to the files of the step's model
                                                  /stage.json   as it was; HASH is of the model's files in it

Each server has its own OWNER.  The modification time of that folder is its lease: the server renews it, and the next
server on the run removes what has not been renewed for `STALE_S`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import socket
import threading
import uuid
from collections.abc import Callable, Collection
from typing import Any

from fsspec.utils import get_protocol

from rayrlhf.checkpoint import MANIFEST
from rayrlhf.errors import CheckpointError
from rayrlhf.model_folder import model_folder

FOLDER = ".served"
RENEW_S = 60.0
STALE_S = 3600.0  # a server that was held up for minutes loses nothing
_ATTEMPTS = 3
# no hard links there, today or tomorrow: another file system, none of links, or one that we may not write to
_NEVER = (errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EACCES, errno.EROFS)


class Snapshots:
    """Those of one server; a context that removes them at its end."""

    def __init__(self, say: Callable[[str], Any]) -> None:
        self._say = say
        self._owner = f"server-{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._homes: set[str] = set()  # OWNER's folder in each run
        self._without: set[str] = set()  # runs where no links can be made
        self._is_over = threading.Event()
        self._renewal = threading.Thread(target=self._renew_until_over, name="snapshot-lease", daemon=True)

    def __enter__(self) -> Snapshots:
        self._renewal.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._is_over.set()
        self._renewal.join()
        for home in self._homes:
            shutil.rmtree(home, ignore_errors=True)
            _remove_if_empty(os.path.dirname(home))

    def folder(self, path: str) -> str:
        """The model folder to serve for what `path` means now: the snapshot of a step of a run; of anything else, and
        where no links can be made, what `model_folder` says.

        Raises as `model_folder`; CheckpointError too where the step goes away again and again while it is linked;
        OSError where a link fails for what may pass, such as a full disk.
        """
        for _ in range(_ATTEMPTS):
            source = model_folder(path)
            step = os.path.dirname(os.path.abspath(source))
            is_of_a_run = re.fullmatch(r"step_\d+", os.path.basename(step)) and os.path.isfile(f"{step}/{MANIFEST}")
            run = os.path.dirname(os.path.dirname(step))
            if get_protocol(path) not in ("file", "local") or not is_of_a_run or run in self._without:
                return source  # what comes from a URI is in the cache, which nothing prunes
            try:
                return self._link(run, step)
            except FileNotFoundError:  # pruned or made anew just now: the pointer names another by now
                continue
            except OSError as error:
                if error.errno not in _NEVER:
                    raise
                self._without.add(run)
                self._say(
                    f"{run}: no links can be made there ({error.strerror or error}), so its step folders "
                    "themselves are served: they must stay, for replicas that start later (a run that goes on: larger "
                    "keep)"
                )
        raise CheckpointError(f"{path} went away while it was linked, {_ATTEMPTS} times: does a run prune it (keep)?")

    def keep_only(self, folders: Collection[str]) -> None:
        """Remove the snapshots that are none of these model folders."""
        for home in self._homes:
            for name in _names(home):
                if not any(folder.startswith(f"{home}/{name}/") for folder in folders):
                    shutil.rmtree(f"{home}/{name}", ignore_errors=True)

    def renew(self) -> None:
        """Say that this server lives.  What another removed, as it took this one for dead, the next look links anew."""
        for home in list(self._homes):
            try:
                os.utime(home)
            except FileNotFoundError:
                self._make_anew(home)
            except OSError:  # a storage that does not answer: the lease lasts for many renewals
                continue

    def _make_anew(self, home: str) -> None:
        root = os.path.dirname(home)
        if not os.path.isdir(os.path.dirname(root)):  # the run itself is gone
            return
        try:
            os.makedirs(home, exist_ok=True)
        except OSError:  # at the next renewal
            return
        self._say(
            f"{home} was removed while it was in use: did this server stand still for more than {STALE_S / 60:g} "
            "minutes, so that another took it for dead? The steps that are still there are linked anew at the next look"
        )

    def _renew_until_over(self) -> None:
        while not self._is_over.wait(RENEW_S):
            self.renew()

    def _link(self, run: str, step: str) -> str:
        """Link the model of a whole step.  Raises FileNotFoundError where it is not there from first to last."""
        with open(f"{step}/{MANIFEST}", "rb") as file:
            text = file.read()
        files = json.loads(text)["files"]
        model = {name: entry for name, entry in sorted(files.items()) if name.startswith("model/")}
        content = hashlib.sha256(json.dumps(model, sort_keys=True).encode()).hexdigest()[:16]
        snapshot = os.path.join(self._home(run), content, os.path.basename(os.path.dirname(step)))
        snapshot = os.path.join(snapshot, os.path.basename(step))
        if os.path.isfile(f"{snapshot}/{MANIFEST}"):
            return f"{snapshot}/model"
        try:
            for name in model:
                os.makedirs(os.path.dirname(f"{snapshot}/{name}"), exist_ok=True)
                os.link(f"{step}/{name}", f"{snapshot}/{name}")
            os.link(f"{step}/{MANIFEST}", f"{snapshot}/{MANIFEST}")  # last: with it the snapshot is whole
            with open(f"{snapshot}/{MANIFEST}", "rb") as file:
                if file.read() != text:
                    raise FileNotFoundError(f"{step} was made anew")
        except OSError:
            shutil.rmtree(snapshot, ignore_errors=True)
            raise
        return f"{snapshot}/model"

    def _home(self, run: str) -> str:
        """This server's folder in a run; the first time what dead servers left there is removed."""
        home = os.path.join(run, FOLDER, self._owner)
        if home not in self._homes:
            os.makedirs(home, exist_ok=True)
            self._homes.add(home)
            _remove_stale(home)
        return home


def _remove_stale(home: str) -> None:
    """Remove the other owners' folders whose leases are over, by the clock of the storage, which all servers share."""
    now, root = os.stat(home).st_mtime, os.path.dirname(home)
    for name in _names(root):
        other = f"{root}/{name}"
        try:
            is_stale = other != home and now - os.stat(other).st_mtime > STALE_S
        except FileNotFoundError:  # its server has just ended
            continue
        if is_stale:
            shutil.rmtree(other, ignore_errors=True)


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []


def _remove_if_empty(folder: str) -> None:
    try:
        os.rmdir(folder)
    except OSError:  # another server's are there
        return
