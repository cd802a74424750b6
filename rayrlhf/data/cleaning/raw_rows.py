"""The rows of one raw file or of a part of it, with what cannot be read set apart: file, line and why."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from rayrlhf.data import json_array
from rayrlhf.data.cleaning import raw_files
from rayrlhf.data.formats import renamed
from rayrlhf.data.rows import from_json, problem
from rayrlhf.errors import DataError

WHOLE = 2**62  # the end of a part that is a whole file
_CHUNK = 2**20
_CSV_FIELD = 2**28  # characters; the parser holds a field, and what comes after a longer one is no row
_SURROGATE = re.compile("[\ud800-\udfff]")  # what surrogateescape leaves of a byte that is no text

Read = tuple[str, str | None]  # a text, and what is wrong with it ("" then)


@dataclass(frozen=True)
class Reading:
    """How raw text is read."""

    format: str = "auto"
    encoding: str = "utf-8"
    max_row_bytes: int = 64 * 2**20
    columns: dict[str, str] = field(default_factory=dict)  # {"text": its name in the files}


def lines(file: Any, start: int, stop: int, max_bytes: int) -> Iterator[tuple[int, bytes | None]]:
    """(where it begins, the line with its end) of the lines of a binary file that begin in start..stop - 1; None for
    one of more than `max_bytes`, which is passed over piece by piece."""
    place = 0  # counted, for a compressed file can tell it slowly or not at all
    if start > 0:
        file.seek(start - 1)
        place = start - 1
        piece = file.readline(_CHUNK)  # the rest of a line of the part before, or just its end
        place += len(piece)
        while piece and not piece.endswith(b"\n"):
            piece = file.readline(_CHUNK)
            place += len(piece)
    while place < stop:
        begin, line = place, file.readline(max_bytes + 2)
        if not line:
            return
        place += len(line)
        if len(line.rstrip(b"\r\n")) <= max_bytes:
            yield begin, line
            continue
        while line and not line.endswith(b"\n"):
            line = file.readline(_CHUNK)
            place += len(line)
        yield begin, None


def parse_json(line: str, columns: Mapping[str, str]) -> str:
    """The text of a line; ValueError says what is wrong with it."""
    try:
        row = from_json(line)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    return text_of(row, columns)


def text_of(row: Any, columns: Mapping[str, str]) -> str:
    """The text of a row; ValueError says what is wrong with it."""
    row = renamed(row, columns) if isinstance(row, dict) else row
    wrong = problem(row, "text")
    if wrong:
        raise ValueError(wrong)
    text: str = row["text"]
    return text


def part(files: Any, reading: Reading, path: str, start: int, stop: int) -> Iterator[Read]:
    """The rows of one part of a file."""
    is_array = stop == WHOLE and raw_files.is_json_array(files, path)
    with raw_files.opened(files, path) as file:
        if files.format == "csv":
            yield from _csv_rows(file, path, reading)
            return
        if is_array:
            yield from _array_rows(file, path, reading)
            return
        parse = partial(parse_json, columns=reading.columns) if files.format == "jsonl" else str
        for place, raw in lines(file, start, stop, reading.max_row_bytes):
            text, wrong = _decoded(raw, place == 0, reading, parse)
            if wrong is not None:
                yield "", f"{path}, line {_line_number(files, path, place)}: {wrong}"
            elif text is not None:
                yield text, None


def _array_rows(file: Any, path: str, reading: Reading) -> Iterator[Read]:
    """The elements of a JSON array; DataError where it is none, for nothing after that place can be read."""
    is_utf8 = codecs.lookup(reading.encoding).name == "utf-8"
    number = 0
    try:
        for number, element in json_array.objects(
            file if is_utf8 else codecs.EncodedFile(file, "utf-8", reading.encoding)
        ):
            text, wrong = "", None
            try:
                text = parse_json(element, reading.columns)
            except ValueError as error:
                wrong = str(error)
            if len(element.encode()) > reading.max_row_bytes:
                wrong = f"longer than data.max_row_bytes={reading.max_row_bytes}"
            yield ("", f"{path}, row {number}: {wrong}") if wrong else (text, None)
    except ValueError as error:
        raise DataError(f"{path}, after row {number}: {error}") from error


def _csv_rows(file: Any, path: str, reading: Reading) -> Iterator[Read]:
    """The rows of a CSV file, its first line naming the columns; DataError for a field that is too long to hold."""
    encoding = "utf-8-sig" if reading.encoding == "utf-8" else reading.encoding
    csv.field_size_limit(max(_CSV_FIELD, reading.max_row_bytes))
    decoded = io.TextIOWrapper(file, encoding=encoding, errors="surrogateescape", newline="")
    reader = csv.DictReader(decoded, delimiter=raw_files.delimiter(path))
    while True:
        wrong, text = "", ""
        try:
            row = next(reader)
            if None in row:
                raise ValueError("has more fields than the first line")
            text = text_of(row, reading.columns)
            if _SURROGATE.search(text):
                raise ValueError(f"not {reading.encoding}; set data.encoding")
            if len(text.encode()) > reading.max_row_bytes:
                raise ValueError(
                    f"longer than data.max_row_bytes={reading.max_row_bytes} (or a quote before it is never closed)"
                )
        except StopIteration:
            return
        except csv.Error as error:
            if "field limit" in str(error):
                raise DataError(
                    f"{path}, line {reader.line_num}: a field goes on for more than {csv.field_size_limit():,} "
                    "characters: is a quote before it never closed?"
                ) from error
            wrong = f"not CSV ({error})"
        except ValueError as error:
            wrong = str(error)
        yield ("", f"{path}, line {reader.line_num}: {wrong}") if wrong else (text, None)


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
    with raw_files.opened(files, path) as file:
        while place > 0:
            chunk = file.read(min(_CHUNK, place))
            count += chunk.count(b"\n")
            place -= len(chunk)
    return count
