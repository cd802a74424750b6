"""TensorBoard's event files in `runs/NAME/tensorboard/STAGE`."""

from __future__ import annotations

import shutil
import tempfile
import time

import fsspec

from rayrlhf.trackers.base import StageOfRun

_UPLOAD_S = 30.0  # between two uploads, where the run is not on a disk


class TensorBoard:
    """Event files; steps that are taken again are purged from the charts.

    They are written to a disk: for a run on an object store to a temporary folder, which is uploaded now and then.
    """

    def __init__(self, stage: StageOfRun) -> None:
        self._filesystem, self._path = fsspec.core.url_to_fs(f"{stage.directory.rstrip('/')}/tensorboard/{stage.stage}")
        self._temporary = None if "file" in self._filesystem.protocol else tempfile.mkdtemp(prefix="rayrlhf-")
        self._uploaded = time.monotonic()
        self._num_opened = 0
        self._open(stage.done)

    def _open(self, done: int) -> None:
        from tensorboardX import SummaryWriter

        self._num_opened += 1  # in the file's name, which else holds only the second
        suffix = f".{self._num_opened}"
        self._board = SummaryWriter(
            self._temporary or self._path, flush_secs=10, purge_step=done + 1, filename_suffix=suffix
        )

    def log(self, step: int, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            self._board.add_scalar(name, value, step)
        if self._temporary and time.monotonic() - self._uploaded > _UPLOAD_S:
            self._board.flush()
            self._upload()

    def rewind(self, done: int) -> None:
        self._board.close()
        self._open(done)

    def close(self, is_failed: bool) -> None:
        self._board.close()
        if self._temporary:
            self._upload()
            shutil.rmtree(self._temporary)

    def _upload(self) -> None:
        self._filesystem.put(f"{self._temporary}/", f"{self._path}/", recursive=True)
        self._uploaded = time.monotonic()
