"""Raw text as rows, with what cannot be read set apart: file, line and why.

Files of lines are read in ranges of bytes, so that one large file keeps every core busy, and no line is ever held
whole that is longer than allowed.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from rayrlhf.data.rows import from_json, problem

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import Dataset

BAD = "_bad"  # the column that says what is wrong with a row; null for a good one
RANGE_BYTES = 32 * 2**20
BATCH_BYTES = 16 * 2**20
MAX_TASKS = 2000
SHOWN_BAD = 20
_CHUNK = 2**20
_SURROGATE = re.compile("[\ud800-\udfff]")  # what surrogateescape leaves of a byte that is no text


@dataclass(frozen=True)
class Reading:
    """How raw text is read."""

    format: str = "auto"
    encoding: str = "utf-8"
    max_row_bytes: int = 64 * 2**20


def read(path: str, reading: Reading) -> Dataset:
    """Rows {text, _bad} of the files at `path`, in their order; DataError at once when there are none."""
    from ray import data

    from rayrlhf.data import sources
    from rayrlhf.data.context import settle

    settle()
    mark = partial(_marked, where=path, max_bytes=reading.max_row_bytes)
    if path.startswith(sources.HUB):
        rows = data.read_parquet(sources.hub_file(path))
        return rows.map_batches(mark, batch_format="pyarrow", zero_copy_batch=True)
    files = sources.resolve(path, reading.format)
    if files.format == "parquet":
        where: dict[str, Any] = {} if sources.is_local(files.filesystem) else {"filesystem": files.filesystem}
        rows = data.read_parquet(files.paths, include_paths=True, **where)
        return rows.map_batches(mark, batch_format="pyarrow", zero_copy_batch=True)
    items = ranges(files)
    listed = data.from_items(items, override_num_blocks=max(1, min(len(items), MAX_TASKS)))
    return listed.map_batches(partial(_read_parts, files=files, reading=reading), batch_size=1, batch_format="pyarrow")


def check(path: str, reading: Reading, max_bad_rows: int) -> None:
    """Read the first rows at `path` without Ray; DataError when there are none, when more than `max_bad_rows` of them
    cannot be read, or when none can."""
    from rayrlhf.data import sources
    from rayrlhf.errors import DataError

    if path.startswith(sources.HUB):
        sources.hub_name(path)
        return
    files = sources.resolve(path, reading.format)
    if files.format == "parquet" and reading.encoding != "utf-8":
        raise DataError(f"data.encoding={reading.encoding} has no effect on Parquet files ({path}): leave it out")
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


def plain_rows(path: str) -> Iterator[Any]:
    """Every row at `path` without Ray, whatever its columns; DataError names a line that cannot be read."""
    from rayrlhf.data import sources
    from rayrlhf.errors import DataError

    files = sources.resolve(path, "auto")
    for name in files.paths:
        if files.format != "jsonl":
            yield from (row for _, row in sources.first_rows(files, name, "text"))
            continue
        where = name
        try:
            with files.filesystem.open(name, "rb") as file:
                is_array = file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")
                file.seek(0)
                if is_array:
                    yield from json.load(file)
                    continue
                for number, raw in enumerate(file, start=1):
                    where = f"{name}, line {number}"
                    if raw.strip():
                        yield json.loads(raw.decode("utf-8-sig"))
        except ValueError as error:
            raise DataError(f"{where}: not JSON ({error})") from error


def ranges(files: Any) -> list[dict[str, Any]]:
    """{path, start, stop} of every file's parts of RANGE_BYTES; a line belongs to the part it begins in.  A CSV file
    is one part: only from its beginning can one tell which line breaks are inside quotes."""
    found = []
    for path in files.paths:
        size = int(files.filesystem.size(path))
        step = size if files.format == "csv" else RANGE_BYTES
        for start in range(0, size, max(1, step)):
            found.append({"path": path, "start": start, "stop": min(size, start + step)})
    return found


def lines(file: Any, start: int, stop: int, max_bytes: int) -> Iterator[tuple[int, bytes | None]]:
    """(where it begins, the line with its end) of the lines of a binary file that begin in start..stop - 1; None for
    one of more than `max_bytes`, which is passed over piece by piece."""
    file.seek(max(0, start - 1))
    if start > 0:
        piece = file.readline(_CHUNK)  # the rest of a line of the part before, or just its end
        while piece and not piece.endswith(b"\n"):
            piece = file.readline(_CHUNK)
    place = file.tell()
    while place < stop:
        line = file.readline(max_bytes + 2)
        if not line:
            return
        if len(line.rstrip(b"\r\n")) > max_bytes:
            while line and not line.endswith(b"\n"):
                line = file.readline(_CHUNK)
            yield place, None
        else:
            yield place, line
        place = file.tell()


def parse_json(line: str) -> str:
    """The text of a line; ValueError says what is wrong with it."""
    try:
        row = from_json(line)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    wrong = problem(row, "text")
    if wrong:
        raise ValueError(wrong)
    text: str = row["text"]
    return text


def _read_parts(batch: pa.Table, files: Any, reading: Reading) -> Iterator[pa.Table]:
    """The rows of parts of files, in tables of about BATCH_BYTES."""
    import pyarrow as pa

    schema = pa.schema([("text", pa.string()), (BAD, pa.string())])
    for part in batch.to_pylist():
        texts: list[str] = []
        bad: list[str | None] = []
        size = 0
        for text, wrong in _part(files, reading, **part):
            texts.append(text)
            bad.append(wrong)
            size += len(text)
            if size > BATCH_BYTES:
                yield pa.table({"text": texts, BAD: bad}, schema=schema)
                texts, bad, size = [], [], 0
        if texts:
            yield pa.table({"text": texts, BAD: bad}, schema=schema)


Read = tuple[str, str | None]  # a text, and what is wrong with it ("" then)


def _part(files: Any, reading: Reading, path: str, start: int, stop: int) -> Iterator[Read]:
    """The rows of one part of a file."""
    with files.filesystem.open(path, "rb") as file:
        if files.format == "csv":
            yield from _csv_rows(file, path, reading)
            return
        parse = parse_json if files.format == "jsonl" else str
        for place, raw in lines(file, start, stop, reading.max_row_bytes):
            text, wrong = _decoded(raw, place == 0, reading, parse)
            if wrong is not None:
                yield "", f"{path}, line {_line_number(files, path, place)}: {wrong}"
            elif text is not None:
                yield text, None


def _csv_rows(file: Any, path: str, reading: Reading) -> Iterator[Read]:
    """The rows of a CSV file, its first line naming the columns."""
    encoding = "utf-8-sig" if reading.encoding == "utf-8" else reading.encoding
    csv.field_size_limit(reading.max_row_bytes)
    reader = csv.DictReader(io.TextIOWrapper(file, encoding=encoding, errors="surrogateescape", newline=""))
    while True:
        wrong, text = "", ""
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            wrong = f"not CSV, or longer than data.max_row_bytes={reading.max_row_bytes} ({error})"
        else:
            wrong = "has more fields than the first line" if None in row else problem(row, "text")
            text = "" if wrong else row["text"]
            if _SURROGATE.search(text):
                wrong = f"not {reading.encoding}; set data.encoding"
            elif len(text.encode()) > reading.max_row_bytes:
                wrong = f"longer than data.max_row_bytes={reading.max_row_bytes}"
        yield ("", f"{path}, line {reader.line_num}: {wrong}") if wrong else (text, None)


def _all_rows(files: Any, reading: Reading) -> Iterator[Read]:
    """The rows of all files, without Ray."""
    from rayrlhf.data import sources

    if files.format != "parquet":
        for part in ranges(files):
            yield from _part(files, reading, **part)
        return
    for name in files.paths:
        for place, row in sources.parquet_rows(files, name):
            wrong = problem(row, "text")
            yield ("", f"{name}, {place} {wrong}") if wrong else (row["text"], None)


def _decoded(raw: bytes | None, is_first: bool, reading: Reading, parse: Any) -> tuple[str | None, str | None]:
    """(text, None), (None, what is wrong), or (None, None) for a blank line."""
    if raw is None:
        return None, f"longer than data.max_row_bytes={reading.max_row_bytes}"
    encoding = reading.encoding
    try:
        line = raw.decode(encoding).rstrip("\r\n")
    except UnicodeDecodeError as error:
        return None, f"not {encoding} (byte {error.start + 1} is 0x{raw[error.start]:02x}); set data.encoding"
    line = line.removeprefix("\ufeff") if is_first else line
    if not line.strip():
        return None, None
    try:
        return parse(line), None
    except ValueError as error:
        return None, str(error)


def _line_number(files: Any, path: str, place: int) -> int:
    """The number of the line that begins at a byte: counted only for lines that cannot be read."""
    count = 1
    with files.filesystem.open(path, "rb") as file:
        while place > 0:
            chunk = file.read(min(_CHUNK, place))
            count += chunk.count(b"\n")
            place -= len(chunk)
    return count


def _marked(batch: pa.Table, where: str, max_bytes: int) -> pa.Table:
    """{text, _bad} of rows with any columns."""
    import pyarrow as pa

    paths = batch["path"].to_pylist() if "path" in batch.column_names else [where] * batch.num_rows
    if "text" not in batch.column_names:
        texts: list[Any] = [None] * batch.num_rows
        bad = [f"{path}: a row {problem(row, 'text')}" for path, row in zip(paths, batch.to_pylist(), strict=True)]
    else:
        texts = batch["text"].to_pylist()
        found = [_wrong(text, max_bytes) for text in texts]
        bad = [f"{path}: a row {wrong}" if wrong else "" for path, wrong in zip(paths, found, strict=True)]
    kept = ["" if wrong else text for text, wrong in zip(texts, bad, strict=True)]
    problems = [wrong or None for wrong in bad]
    return pa.table({"text": pa.array(kept, pa.string()), BAD: pa.array(problems, pa.string())})


def _wrong(text: Any, max_bytes: int) -> str:
    """What is wrong with the value of a text column; "" for nothing."""
    wrong = problem({"text": text}, "text")
    if not wrong and 4 * len(text) > max_bytes and len(text.encode()) > max_bytes:
        wrong = f"is longer than data.max_row_bytes={max_bytes}"
    return wrong
