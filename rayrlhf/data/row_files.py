"""The rows of one file of lines, of a JSON array or of CSV, one by one as they stand there."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from rayrlhf.data.json_array import is_array, objects
from rayrlhf.data.rows import from_json
from rayrlhf.errors import DataError

Found = tuple[str, Any]  # file and place, and the row there, or the ValueError that says why it cannot be read

MAX_ROW_BYTES = 64 * 2**20
_PIECE = 1 << 20
_NOT_UTF8 = re.compile("[\udc80-\udcff]")
_CONVERT = "convert the file, such as with `iconv -f gb18030 -t utf-8`"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


def file_rows(file: Any, path: str, format: str) -> Iterator[Found]:
    """Each row of a binary `file` that can be peeked into; of a text file the lines, which are strings.

    Blank lines are no rows.  Raises DataError where what follows cannot be read either.
    """
    if format == "csv":
        return _csv_rows(file, path)
    if format == "jsonl" and path.endswith(".json") and is_array(file):
        return _elements(file, path)
    return _lines(file, path, from_json if format == "jsonl" else str)


def _lines(file: Any, path: str, parse: Callable[[str], Any]) -> Iterator[Found]:
    number = 0
    while raw := file.readline(MAX_ROW_BYTES + 1):
        number += 1
        is_whole = len(raw) <= MAX_ROW_BYTES
        while raw and not is_whole and not raw.endswith(b"\n"):
            raw = file.readline(_PIECE)
        found = _parsed(raw, number == 1, parse) if is_whole else ValueError(f"longer than {MAX_ROW_BYTES:,} bytes")
        if found is not None:
            yield f"{path}, line {number}", found


def _parsed(raw: bytes, is_first: bool, parse: Callable[[str], Any]) -> Any:
    """The row of a line, None for a blank one, a ValueError for one that is none."""
    try:
        line = raw.decode("utf-8-sig" if is_first else "utf-8").rstrip("\r\n")
        return parse(line) if line.strip() else None
    except UnicodeDecodeError as error:
        return ValueError(not_utf8(raw, error))
    except ValueError as error:
        return error


def not_utf8(raw: bytes, error: UnicodeDecodeError) -> str:
    """Which byte is none of UTF-8, and what would mend it."""
    mend = _CONVERT.replace("gb18030", "utf-16") if raw.startswith(_UTF16) else _CONVERT
    return f"not UTF-8 (byte {error.start + 1} is 0x{raw[error.start]:02x}): {mend}"


def _elements(file: Any, path: str) -> Iterator[Found]:
    number = 0
    try:
        for number, element in objects(file):
            yield f"{path}, row {number}", _parsed(element.encode(), False, from_json)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}, after row {number}: {not_utf8(error.object, error)}") from error
    except ValueError as error:  # there is no telling where the next element would begin
        raise DataError(f"{path}, row {number + 1}: {error}") from error


def _csv_rows(file: Any, path: str) -> Iterator[Found]:
    csv.field_size_limit(MAX_ROW_BYTES)
    reader = csv.DictReader(io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline=""))
    try:
        twice = [name for name, count in Counter(reader.fieldnames or ()).items() if count > 1]
        broken = [name for name in reader.fieldnames or () if _NOT_UTF8.search(name)]
        if broken:
            raise DataError(f"{path}, line 1: not UTF-8: {_CONVERT}, or from utf-16")
        if twice:
            raise DataError(f"{path} names {' and '.join(twice)} more than once in its first line")
        for row in reader:
            wrong = ""
            if None in row:
                wrong = f"has {len(reader.fieldnames or ()) + len(row[None])} fields, the first line {len(row) - 1}"
            elif None in row.values():
                given = sum(value is not None for value in row.values())
                wrong = f"has {given} field{'' if given == 1 else 's'}, the first line {len(row)}"
            elif any(_NOT_UTF8.search(value) for value in row.values() if value):
                wrong = f"not UTF-8: {_CONVERT}"
            yield f"{path}, line {reader.line_num}", ValueError(wrong) if wrong else row
    except csv.Error as error:  # quotes are open: what follows would be read wrongly
        raise DataError(f"{path}, line {reader.line_num}: not CSV ({error})") from error
