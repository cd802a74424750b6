"""Exact duplicates over the whole data set, of rows and of their lines or sentences.

Every row (or unit) gives a hash; those with the same hash meet in one group, where the first by content stays.  Only
hashes and row numbers travel.  Which of several stays depends on the texts alone, not on shards or nodes.
"""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING, Any

import numpy as np

from rayrlhf.data.cleaning.config import ExactDuplicates, UnitDuplicates
from rayrlhf.data.cleaning.hashing import text_hash
from rayrlhf.data.cleaning.words import lines, sentences
from rayrlhf.data.rows import content

if TYPE_CHECKING:
    import pyarrow as pa

# a number with its sign and what stands between its digits, or a run of letters
_PART = re.compile(r"-?\.?\d+(?:[.,:/-]\d+)*|[^\W\d_]+")

_LEAST_SHARE = 4  # what counts of a unit is a quarter of min_chars or more
_BLANK_LINES = re.compile(r"\A(?:[^\S\n]*\n)+")


def row_keys(table: pa.Table) -> dict[str, Any]:
    """`key`: the text's hash; `rank`: rows of one text in the order of their content, as text."""
    texts = table["text"].to_pylist()
    rank = [""] * len(texts)
    if table.num_columns > 1:
        rank = [content(row | {"text": ""}) for row in table.to_pylist()]
    return {
        "key": np.array([text_hash(text) for text in texts], np.uint64),
        "rank": np.array(rank, np.str_),
        "place": np.arange(len(texts), dtype=np.int32),
    }


def units(text: str, unit: str) -> list[str]:
    """The lines or sentences of `text`, which they make when joined."""
    return lines(text) if unit == "line" else sentences(text)


def compared(unit: str) -> str:
    """What counts of a unit: its letters in lower case, at half width, and its numbers as they stand, apart."""
    parts = _PART.findall(unicodedata.normalize("NFKC", unit).lower())
    return "".join(f" {part} " if part[-1].isdigit() else part for part in parts)


def unit_keys(table: pa.Table, config: UnitDuplicates) -> dict[str, Any]:
    """`key`: each unit's hash, of those long enough and not mostly rules and bars; `rank`: its text's hash; `place` and
    `unit`: where it stands."""
    keys, ranks, places, numbers = [], [], [], []
    for place, text in enumerate(table["text"].to_pylist()):
        rank = text_hash(text)
        for number, unit in enumerate(units(text, config.unit)):
            same = compared(unit) if len(unit.strip()) >= config.min_chars else ""
            if same and _LEAST_SHARE * len(same) >= config.min_chars:
                keys.append(text_hash(same))
                ranks.append(rank)
                places.append(place)
                numbers.append(number)
    return {
        "key": np.array(keys, np.uint64),
        "rank": np.array(ranks, np.uint64),
        "place": np.array(places, np.int32),
        "unit": np.array(numbers, np.int32),
    }


def keys(table: pa.Table, step: ExactDuplicates | UnitDuplicates) -> dict[str, Any]:
    """What a step asks of every row."""
    return unit_keys(table, step) if isinstance(step, UnitDuplicates) else row_keys(table)


def later_ones(group: pa.Table) -> pa.Table:
    """Of rows {key, rank, id[, unit]} those that are not the first of their key, as {id[, unit]}."""
    order = [(name, "ascending") for name in ("key", "rank", "id", "unit") if name in group.column_names]
    ordered = group.sort_by(order)
    key = ordered["key"].to_numpy()
    repeats = np.flatnonzero(np.concatenate([[False], key[1:] == key[:-1]])) if len(key) else np.empty(0, np.int64)
    return ordered.take(repeats).select([name for name in ("id", "unit") if name in group.column_names])


def without_units(text: str, unit: str, removed: set[int]) -> str:
    """`text` without some of its lines or sentences; the first that is left keeps its indent."""
    kept = [piece for number, piece in enumerate(units(text, unit)) if number not in removed]
    return _BLANK_LINES.sub("", "".join(kept)).rstrip()
