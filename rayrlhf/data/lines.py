"""A Ray Data reader of files of lines that names file and line when one is wrong.

Ray's own JSON readers guess types over a whole block ("0042" may become 42, a date a timestamp) and
say nothing of where a broken line stands.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
from ray.data.datasource import FileBasedDatasource

from rayrlhf.data.json_array import is_array
from rayrlhf.data.rows import Parse, Row, parsed_elements, parsed_lines
from rayrlhf.errors import DataError

ROWS_PER_BLOCK = 4096


class Lines(FileBasedDatasource):
    """Reads each line of `paths` (of a .json file that is an array: each element) with `parse`, which raises
    ValueError on a wrong one."""

    def __init__(self, paths: list[str], parse: Parse, **options: Any) -> None:
        super().__init__(paths, **options)
        self._parse = parse

    def _read_stream(self, f: Any, path: str) -> Iterator[pa.Table]:
        rows: list[Row] = []
        file = io.BufferedReader(f)
        is_whole = path.endswith(".json") and is_array(file)
        for _, row in (parsed_elements if is_whole else parsed_lines)(file, path, self._parse):
            rows.append(row)
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
