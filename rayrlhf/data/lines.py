"""A Ray Data reader of files that are not Parquet, which names file and line where one is wrong.

Ray's own JSON and CSV readers guess types over a whole block ("0042" may become 42, a date a timestamp) and
say nothing of where a broken line stands.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
from ray.data.datasource import FileBasedDatasource

from rayrlhf.data.bad_rows import NONE, BadRows
from rayrlhf.data.row_files import file_rows
from rayrlhf.data.rows import Row
from rayrlhf.errors import DataError

ROWS_PER_BLOCK = 4096


class Lines(FileBasedDatasource):
    """Each row of the files at `paths`, as `read` makes it of what stands there (text: of the line), which raises
    ValueError at a wrong one; `bad` says what becomes of those."""

    def __init__(
        self,
        paths: list[str],
        read: Callable[[Any], Row],
        format: str = "text",
        bad: BadRows = NONE,
        **options: Any,
    ) -> None:
        super().__init__(paths, **options)
        self._read, self._format, self._bad = read, format, bad

    def _read_stream(self, f: Any, path: str) -> Iterator[pa.Table]:
        rows: list[Row] = []
        for where, found in file_rows(io.BufferedReader(f), path, self._format):
            try:
                if isinstance(found, ValueError):
                    raise found
                rows.append(self._read(found))
            except ValueError as error:
                self._bad.add(where, str(error))
            if len(rows) == ROWS_PER_BLOCK:
                yield _table(rows, path)
                rows = []
        if rows:
            yield _table(rows, path)


def _table(rows: list[Row], path: str) -> pa.Table:
    try:
        return pa.Table.from_pylist(rows)
    except pa.ArrowException as error:
        raise DataError(
            f"{path}: a column mixes types ({error}). Make `prompt` strings, or messages, throughout."
        ) from error
