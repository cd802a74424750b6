"""Reads a growing file of metrics as it grows: what has been read is not read again."""

from __future__ import annotations

import json
from typing import Any

import fsspec

from rayrlhf.metrics import is_row

_MARK = 256  # bytes before the position that must still be there
_BLOCK = 16 * 2**20
Row = dict[str, Any]


class Tail:
    """The rows of one `metrics*.jsonl`, on any file system that fsspec takes.

    A writer may cut the file in place (a stage that is made again, a rollback).  That is told by the file
    being shorter than what was read, or by other bytes before the position: then it is read from its start.
    """

    def __init__(self, filesystem: fsspec.AbstractFileSystem, path: str) -> None:
        self.path, self._filesystem = path, filesystem
        self.num_unreadable = 0  # whole lines that are no row
        self._position, self._mark = 0, b""

    def read(self) -> tuple[list[Row], bool]:
        """(rows since the last call, whether they are the file's from its start).

        The last line is left for the next call while its newline is missing.
        """
        starts_over = not self._position
        rows: list[Row] = []
        while True:
            found = self._read_block()
            if found is None:
                if not self._position:
                    return rows, True
                rows, starts_over = [], True
                self._position, self._mark, self.num_unreadable = 0, b"", 0
                continue
            whole = found[: found.rfind(b"\n") + 1]
            if not whole:
                return rows, starts_over
            rows += [row for line in whole.split(b"\n") if (row := self._parse(line)) is not None]
            self._position += len(whole)
            self._mark = (self._mark + whole)[-_MARK:]

    def _read_block(self) -> bytes | None:
        """What follows the position; None where the file is another one now, or gone."""
        try:
            size = self._filesystem.info(self.path)["size"]
            start, end = self._position - len(self._mark), min(size, self._position + _BLOCK)
            data: bytes = self._filesystem.cat_file(self.path, start=start, end=end) if end > start else b""
        except FileNotFoundError:
            return None
        return data[len(self._mark) :] if data.startswith(self._mark) else None

    def _parse(self, line: bytes) -> Row | None:
        if not line.strip():
            return None
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):  # such as a line that a kill cut, with the next one behind it
            row = None
        if not is_row(row) or row.get("time_s") is None:
            self.num_unreadable += 1
            return None
        return dict(row)
