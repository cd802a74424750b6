"""The forms of a row, and what is wrong with one."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable
from typing import Any, Literal

Kind = Literal[
    "text", "prompt_completion", "preference", "preference_margin", "ranking", "scored", "labelled", "prompts"
]
Row = dict[str, Any]

COLUMNS: dict[str, tuple[str, ...]] = {
    "text": ("text",),
    "prompt_completion": ("prompt", "completion"),
    "preference": ("prompt", "chosen", "rejected"),
    "preference_margin": ("prompt", "chosen", "rejected", "margin"),
    "ranking": ("prompt", "ranked"),
    "scored": ("prompt", "completion", "score"),
    "labelled": ("prompt", "completion", "label"),
    "prompts": ("prompt",),
}


def truth(value: Any) -> bool | None:
    """A label: true or false, 1 or 0, also as text (CSV has nothing else); None for anything else."""
    if isinstance(value, str):
        return {"true": True, "1": True, "false": False, "0": False}.get(value.strip().lower())
    return bool(value) if isinstance(value, int | float) and value in (0, 1) else None


def number(value: Any) -> float | None:
    """A finite number, also as text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def ranked(value: Any) -> list[str] | None:
    """Texts, best first; None for anything else and for fewer than two."""
    is_ranking = isinstance(value, list) and len(value) > 1 and all(isinstance(text, str) for text in value)
    return value if is_ranking else None


# columns that are no plain text: how a value is read, and what it may be
PARSED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "label": (truth, "true or false (1 or 0)"),
    "margin": (number, "a finite number"),
    "score": (number, "a finite number"),
    "ranked": (ranked, "a list of two texts or more, the best first"),
}


def parsed(row: Row, kind: str) -> Row:
    """The columns of `kind` of a row without `problem`, their values read."""
    return {name: PARSED[name][0](row[name]) if name in PARSED else row[name] for name in COLUMNS[kind]}


def problem(row: Any, kind: str) -> str:
    """What is wrong with `row` as one of `kind`; "" when nothing is.  `prompt` is a string or messages."""
    if not isinstance(row, dict):
        return f"is {type(row).__name__} {shortened(row)}, not an object with {list(COLUMNS[kind])}"
    missing = [name for name in COLUMNS[kind] if name not in row]
    if missing:
        return (
            f"has no {' and no '.join(missing)}: found the columns {sorted(map(str, row))}, {kind} rows need "
            f"{list(COLUMNS[kind])}. The row: {shortened(row)}"
        )
    for name in COLUMNS[kind]:
        if name in PARSED:
            read, wanted = PARSED[name]
            if read(row[name]) is None:
                return f"has {name}={shortened(row[name])} ({type(row[name]).__name__}), not {wanted}"
        elif not isinstance(row[name], str) and not (name == "prompt" and _are_messages(row[name])):
            wanted = "a string or a list of {role, content} messages" if name == "prompt" else "a string"
            return f"has {name}={shortened(row[name])} ({type(row[name]).__name__}), not {wanted}"
    return ""


def _are_messages(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(message, dict) and all(isinstance(message.get(key), str) for key in ("role", "content"))
        for message in value
    )


def from_json(line: str) -> Any:
    """The value of one line of JSON; ValueError where it is none, where it has a key twice, of which one would be lost,
    or half a character, which no UTF-8 file can hold."""
    try:
        found = json.loads(line, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg}, character {error.pos + 1}); give one object a line") from error
    except RecursionError:
        raise ValueError("nested too deeply for a row") from None
    if "\\ud" in line or "\\uD" in line:
        half = _HALF.search(json.dumps(found, ensure_ascii=False))
        if half:
            raise ValueError(f"has half a character, \\u{ord(half[0]):04x}, of a pair that was cut apart")
    return found


_HALF = re.compile("[\ud800-\udfff]")


def _unique(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"has {' and '.join(twice)} more than once in an object: {shortened(names)}")
    return row


def shortened(value: Any, limit: int = 200) -> str:
    """`value` as one line of at most `limit` characters, for a message."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def digest(*parts: str) -> str:
    """32 hexadecimal digits that depend on nothing but `parts`; unlike `hash()`, alike in every process."""
    joined = "\x1f".join(parts).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(joined, digest_size=16).hexdigest()


def content(row: Row) -> str:
    """`row` as text: equal rows, and only they, give equal text."""
    return json.dumps(row, sort_keys=True, ensure_ascii=False, default=lambda array: array.tolist())
