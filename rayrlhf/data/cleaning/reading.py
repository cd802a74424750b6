"""Raw text as rows, with what cannot be read set apart: file, line and why.

Files of lines are read in ranges of bytes, so that one large file keeps every core busy, and no line is ever held
whole that is longer than allowed.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from rayrlhf.data import json_array
from rayrlhf.data.cleaning import raw_files, raw_rows
from rayrlhf.data.cleaning.raw_rows import WHOLE, Read, Reading, text_of
from rayrlhf.data.cleaning.shards import BYTES, ROWS

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import Dataset

BAD = "_bad"  # the column that says what is wrong with a row; null for a good one
RANGE_BYTES = 32 * 2**20
MAX_TASKS = 2000
_LEAST_TASKS = 64
SHOWN_BAD = 20


def read(path: str, reading: Reading) -> Dataset:
    """Rows {text, _bad} of the files at `path`, in their order; DataError at once when there are none."""
    from ray import data

    from rayrlhf.data import sources
    from rayrlhf.data.context import settle

    settle()
    mark = partial(_marked, where=path, reading=reading)
    if path.startswith(sources.HUB):
        rows = data.read_parquet(sources.hub_file(path))
        return rows.map_batches(mark, batch_format="pyarrow", zero_copy_batch=True)
    files = raw_files.resolve(path, reading.format)
    if files.format == "parquet":
        where: dict[str, Any] = {} if sources.is_local(files.filesystem) else {"filesystem": files.filesystem}
        rows = data.read_parquet(files.paths, include_paths=True, **where)
        return rows.map_batches(mark, batch_format="pyarrow", zero_copy_batch=True)
    items = ranges(files)
    size = sum(files.filesystem.size(name) for name in files.paths)
    tasks = min(MAX_TASKS, max(_LEAST_TASKS, size // RANGE_BYTES))  # of very many small files each reads some
    listed = data.from_items(items, override_num_blocks=max(1, min(len(items), tasks)))
    parts = partial(_read_parts, files=files, reading=reading)
    return listed.map_batches(parts, batch_size=None, batch_format="pyarrow")


def check(path: str, reading: Reading, max_bad_rows: int) -> None:
    """Read the first rows at `path` without Ray; DataError when there are none, when more than `max_bad_rows` of them
    cannot be read, or when none can."""
    from rayrlhf.data import sources
    from rayrlhf.errors import DataError

    if path.startswith(sources.HUB):
        sources.hub_name(path)
        return
    files = raw_files.resolve(path, reading.format)
    if files.format == "parquet" and reading.encoding != "utf-8":
        raise DataError(f"data.encoding={reading.encoding} has no effect on Parquet files ({path}): leave it out")
    if files.format == "text" and reading.columns:
        raise DataError(f"data.columns={reading.columns} has no effect on text files ({path}): leave it out")
    good, bad = 0, list[str]()
    for _, wrong in itertools.islice(_all_rows(files, reading), sources.SAMPLE_ROWS):
        good += wrong is None
        bad += [] if wrong is None else [wrong]
        if len(bad) > max_bad_rows:
            raise DataError(too_many(bad, max_bad_rows))
    if not good:
        shown = f": {bad[0]}" if bad else ""
        raise DataError(f"{path} is empty: {len(files.paths)} {files.format} file(s) without a single row{shown}")


def too_many(bad: list[str], max_bad_rows: int) -> str:
    """What to say of rows that cannot be read when they are more than are borne."""
    if max_bad_rows == 0:
        return bad[0]
    shown = "\n  ".join(bad[:SHOWN_BAD])
    return (
        f"more than data.max_bad_rows={max_bad_rows} rows cannot be read:\n  {shown}\n"
        "Mend the files, or raise data.max_bad_rows to leave such rows out."
    )


def plain_rows(path: str, format: str = "auto") -> Iterator[Any]:
    """Every row at `path` without Ray, whatever its columns; DataError names a line that cannot be read."""
    from rayrlhf.data import sources
    from rayrlhf.errors import DataError

    files = raw_files.resolve(path, format)
    for name in files.paths:
        if files.format == "parquet":
            yield from (row for _, row in sources.parquet_rows(files, name))
            continue
        where = name
        with raw_files.opened(files, name) as file:
            try:
                if files.format == "csv":
                    text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
                    yield from csv.DictReader(text, delimiter=raw_files.delimiter(name))
                    continue
                if files.format == "jsonl" and json_array.is_array(file):
                    yield from json.load(file)
                    continue
                for number, raw in enumerate(file, start=1):
                    where = f"{name}, line {number}"
                    line = raw.decode("utf-8-sig").rstrip("\r\n")
                    if line.strip():
                        yield json.loads(line) if files.format == "jsonl" else {"text": line}
            except (ValueError, RecursionError, csv.Error) as error:
                raise DataError(f"{where}: not {files.format.upper()} ({error})") from error


def columns(path: str, format: str) -> list[str]:
    """The names of the columns that the first row at `path` has; none where it cannot be read."""
    from rayrlhf.data import sources
    from rayrlhf.errors import DataError

    try:
        row: Any = next(plain_rows(sources.hub_file(path) if path.startswith(sources.HUB) else path, format), {})
    except (DataError, ValueError, csv.Error):
        return []
    return sorted(name for name in row if name is not None) if isinstance(row, dict) else []


def ranges(files: Any) -> list[dict[str, Any]]:
    """{path, start, stop} of every file's parts of RANGE_BYTES; a line belongs to the part it begins in.  A CSV file
    is one part: only from its beginning can one tell which line breaks are inside quotes; so are a JSON array and a
    compressed file."""
    found = []
    for path in files.paths:
        if files.format == "csv" or raw_files.is_compressed(path) or raw_files.is_json_array(files, path):
            found.append({"path": path, "start": 0, "stop": WHOLE})
            continue
        size = int(files.filesystem.size(path))
        for start in range(0, size, RANGE_BYTES):
            found.append({"path": path, "start": start, "stop": min(size, start + RANGE_BYTES)})
    return found


def _read_parts(batch: pa.Table, files: Any, reading: Reading) -> Iterator[pa.Table]:
    """The rows of parts of files, in tables of about BYTES and at most ROWS."""
    import pyarrow as pa

    schema = pa.schema([("text", pa.string()), (BAD, pa.string())])
    texts: list[str] = []
    bad: list[str | None] = []
    size = 0
    for one in batch.to_pylist():
        for text, wrong in raw_rows.part(files, reading, **one):
            texts.append(text)
            bad.append(wrong)
            size += len(text)
            if size > BYTES or len(texts) == ROWS:
                yield pa.table({"text": texts, BAD: bad}, schema=schema)
                texts, bad, size = [], [], 0
    if texts:
        yield pa.table({"text": texts, BAD: bad}, schema=schema)


def _all_rows(files: Any, reading: Reading) -> Iterator[Read]:
    """The rows of all files, without Ray."""
    from rayrlhf.data import sources

    if files.format != "parquet":
        for one in ranges(files):
            yield from raw_rows.part(files, reading, **one)
        return
    for name in files.paths:
        for place, row in sources.parquet_rows(files, name):
            try:
                yield text_of(row, reading.columns), None
            except ValueError as error:
                yield "", f"{name}, {place} {error}"


def _marked(batch: pa.Table, where: str, reading: Reading) -> pa.Table:
    """{text, _bad} of rows with any columns."""
    import pyarrow as pa

    paths = batch["path"].to_pylist() if "path" in batch.column_names else [where] * batch.num_rows
    source = reading.columns.get("text", "text")
    texts, bad = list[str](), list[str | None]()
    # a column of that name as it is; else the rows are looked into, for a value in an object or to show what is wrong
    plain = batch[source].to_pylist() if source in batch.column_names else None
    for path, row in zip(paths, plain if plain is not None else batch.to_pylist(), strict=True):
        text, wrong = "", None
        try:
            text = text_of({"text": row}, {}) if plain is not None else text_of(row, reading.columns)
            if 4 * len(text) > reading.max_row_bytes and len(text.encode()) > reading.max_row_bytes:
                raise ValueError(f"is longer than data.max_row_bytes={reading.max_row_bytes}")
        except ValueError as error:
            text, wrong = "", f"{path}: a row {error}"
        texts.append(text)
        bad.append(wrong)
    return pa.table({"text": pa.array(texts, pa.string()), BAD: pa.array(bad, pa.string())})
