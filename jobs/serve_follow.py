"""Newer checkpoints of what is served, rolled out one model at a time while the requests go on.

What is deployed is pinned: snapshots or folders of steps, not the stages' pointers, so that a roll-out that fails
goes back to what was served, and the next one changes nothing else.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from typing import Any

from jobs.serve_config import ServeConfig, check_models
from jobs.serve_snapshots import Snapshots
from rayrlhf.checkpoint import stage_hash
from rayrlhf.errors import RayRLHFError
from rayrlhf.model_folder import model_folder


class Follower:
    """Knows which checkpoints are served, and asks for those that are newer."""

    def __init__(
        self,
        config: ServeConfig,
        deploy: Callable[[ServeConfig], None],
        say: Callable[[str], Any],
        snapshots: Snapshots,
    ) -> None:
        """`deploy` lets the running application be what a configuration says; it raises where it cannot."""
        self.config, self._deploy, self._say, self._snapshots = config, deploy, say, snapshots
        self._marks = {served.name: stage_hash(served.model) for served in config.served}  # seen, served or not
        self._folders = {served.name: self._first(served.name, served.model) for served in config.served}
        self._said: dict[str, str] = {}  # by model: why it was not looked at the last time

    @property
    def pinned(self) -> ServeConfig:
        """The configuration of what is served now."""
        return with_folders(self.config, self._folders)

    def look(self) -> None:
        """Roll out what is newer.  Whatever goes wrong is said, and the server goes on as it was."""
        for served in self.config.served:
            try:
                mark = stage_hash(served.model)
                if mark == self._marks[served.name]:
                    if not os.path.isdir(self._folders[served.name]):
                        self._snapshots.folder(served.model)  # linked anew: replicas that start later read it
                    continue
                folder = self._snapshots.folder(served.model)
            except Exception as error:  # made anew just now, unfinished, or a storage that does not answer: look again
                self._say_once(served.name, _told(error))
                continue
            self._marks[served.name] = mark  # also where it cannot be served: it is not tried twice
            if folder != self._folders[served.name]:
                self._roll_out(served.name, folder)
                self._snapshots.keep_only(self._folders.values())

    def _first(self, name: str, model: str) -> str:
        """What to serve at the start: the step itself until the next look, where no snapshot can be made just now."""
        try:
            return self._snapshots.folder(model)
        except OSError as error:
            self._say(f"{name}: no snapshot yet, tried again at the next look ({error})")
            self._marks[name] = ""
            return model_folder(model)

    def _roll_out(self, name: str, folder: str) -> None:
        self._say(f"newer: {name}, {folder}; rolling out")
        wanted = self._folders | {name: folder}
        newer = with_folders(self.config, wanted)
        try:
            check_models(newer)
        except Exception as error:
            self._say(f"{name} is not rolled out: {_told(error)}")
            return
        try:
            self._deploy(newer)
        except Exception as error:
            self._say(f"{name} is not rolled out, its former replicas go on: {_told(error)}")
            self._go_back()
        else:
            self._folders = wanted
            self._say(f"rolled out: {name}")

    def _go_back(self) -> None:
        """Ask for what was served: Ray Serve would go on wanting what failed, and start no replica of the former."""
        try:
            self._deploy(self.pinned)
        except Exception as error:  # such as a former checkpoint, served without a snapshot, that is gone
            self._say(f"the former replicas go on, but none can start anew: {_told(error)}")

    def _say_once(self, name: str, words: str) -> None:
        if self._said.get(name) != words:
            self._said[name] = words
            self._say(f"{name}: nothing newer can be served yet: {words}")


def _told(error: Exception) -> str:
    """In a line; of what nobody raised on purpose the traceback goes to stderr."""
    if not isinstance(error, RayRLHFError | OSError):
        traceback.print_exception(error)
    return (str(error) or repr(error)).splitlines()[0]


def with_folders(config: ServeConfig, folders: dict[str, str]) -> ServeConfig:
    """The same with each model's path replaced."""
    if config.model is not None:
        return config.model_copy(update={"model": folders[config.name]})
    models = {
        name: folders[name] if isinstance(one, str) else one.model_copy(update={"model": folders[name]})
        for name, one in config.models.items()
    }
    return config.model_copy(update={"models": models})
