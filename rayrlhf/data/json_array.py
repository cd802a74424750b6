"""Files that are one JSON array of objects, read piece by piece as if each object were a line."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from typing import IO, Any

CHUNK_BYTES = 1 << 20
MAX_ELEMENT = 1 << 28  # characters; what is not JSON by then never will be
_BETWEEN = " \t\r\n"


def is_array(file: Any) -> bool:
    """Whether a binary `file`, at its beginning, begins with `[`; it stays there."""
    if hasattr(file, "peek"):
        start = file.peek(64)
    else:
        start = file.read(64)
        file.seek(0)
    return bool(start.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"["))


def objects(file: IO[bytes]) -> Iterator[tuple[int, str]]:
    """(number from 1, text) of each element of the array in `file`; at most one element and a chunk are held.

    Raises ValueError where it is not JSON.
    """
    decoder, scanner = codecs.getincrementaldecoder("utf-8-sig")(), json.JSONDecoder()
    held, at, number = "", 0, 0
    while True:
        chunk = file.read(CHUNK_BYTES)
        held, at = held[at:] + decoder.decode(chunk, final=not chunk), 0
        while True:
            start = _skip(held, at, "[" if not number else ",")
            if held.startswith("]", start):
                return
            try:
                if not held.startswith("{", start):
                    raise json.JSONDecodeError("an object is expected", held, start)
                _, end = scanner.raw_decode(held, start)
            except json.JSONDecodeError as error:
                if chunk and len(held) - start < MAX_ELEMENT:
                    break  # the element may go on in the next chunk
                shown = held[start : start + 80]
                raise ValueError(f"element {number + 1} of the array is not JSON ({error.msg}): {shown!r}") from error
            number += 1
            yield number, held[start:end]
            at = end


def _skip(text: str, at: int, mark: str) -> int:
    """The place after white space, and after `mark` where it is there."""
    for letter in ("", mark):
        at += letter != "" and text.startswith(letter, at)
        while at < len(text) and text[at] in _BETWEEN:
            at += 1
    return at
