"""Rows that share an n-gram with an evaluation set (Brown et al. 2020, appendix C: 13 words)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from rayrlhf.data.cleaning.config import Decontaminate
from rayrlhf.data.cleaning.hashing import Hashes, ngram_hashes, token_hashes
from rayrlhf.data.cleaning.verdict import Dropped, Operator
from rayrlhf.data.cleaning.words import has_han, tokens
from rayrlhf.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

COMMON = -1  # where a row's number would be
Lengths = tuple[int, int]  # (tokens of an n-gram, fewest tokens of a text)


@dataclass(frozen=True)
class Index:
    """The n-grams of evaluation texts: sorted hashes by n, and what could not be looked for."""

    ngrams: dict[int, Hashes]
    num_texts: int
    num_too_short: int


def index(texts: Iterator[str], lengths: Lengths, han_lengths: Lengths) -> Index:
    """Each text gives its n-grams; one of fewer tokens gives itself, one under the least number nothing.

    A Chinese character says less than a word, so texts that are mostly Chinese have lengths of their own.
    """
    found: dict[int, list[Hashes]] = {}
    num_texts = num_too_short = 0
    for text in texts:
        num_texts += 1
        words = tokens(text)
        ngram, least = han_lengths if 2 * sum(map(has_han, words)) > len(words) else lengths
        n = min(ngram, len(words))
        if n < least:
            num_too_short += 1
            continue
        found.setdefault(n, []).append(ngram_hashes(token_hashes(words), n))
    return Index({n: np.unique(np.concatenate(parts)) for n, parts in found.items()}, num_texts, num_too_short)


def matches(text: str, known: Index) -> dict[int, str]:
    """The n-grams of `text` that an evaluation text has too: the hash of each, and its tokens joined by spaces."""
    if not known.ngrams:
        return {}
    words = tokens(text)
    hashes, found = token_hashes(words), dict[int, str]()
    for n, listed in known.ngrams.items():
        mine = ngram_hashes(hashes, n)
        places = np.minimum(np.searchsorted(listed, mine), len(listed) - 1)
        for hit in np.flatnonzero(listed[places] == mine).tolist():
            found.setdefault(int(mine[hit]), " ".join(words[hit : hit + n]))
    return found


def match(text: str, known: Index) -> str | None:
    """The first n-gram of `text` that an evaluation text has too, its tokens joined by spaces; None for none."""
    return next(iter(matches(text, known).values()), None)


@lru_cache(maxsize=8)
def known_to(step: str) -> Index:
    """The index of a step as JSON, once a process; DataError for a set that is missing or that cannot match at all."""
    config = Decontaminate.model_validate_json(step)
    known = index(_texts(config), (config.ngram, config.min_tokens), (config.han_ngram, config.min_han_tokens))
    if not known.ngrams:
        raise DataError(
            f"decontaminate: none of the {known.num_texts} texts of {list(config.against)} has {config.min_tokens} "
            f"tokens, or {config.min_han_tokens} where it is mostly Chinese, so no row could match: lower min_tokens "
            "and min_han_tokens, or name other sets"
        )
    return known


def build(config: Decontaminate) -> Operator:
    """Drops for contaminated, with the n-gram; DataError as `known_to`."""
    known = known_to(config.model_dump_json())

    def keep(text: str) -> str | Dropped:
        shared = match(text, known)
        return text if shared is None else Dropped("contaminated", shared)

    return keep


def keys(table: pa.Table, config: Decontaminate) -> dict[str, Any]:
    """With `max_matches` all rows count: `key`: the hashes of the shared n-grams of each row; `place`."""
    known = known_to(config.model_dump_json())
    found = [list(matches(text, known)) for text in table["text"].to_pylist()]
    return {
        "key": np.array([key for mine in found for key in mine], np.uint64),
        "place": np.repeat(np.arange(len(found), dtype=np.int32), [len(mine) for mine in found]),
    }


def contaminated(group: pa.Table, max_matches: int) -> pa.Table:
    """Of rows {key, id}, one a shared n-gram of a row, {id, ngram} of those whose n-gram is in at most `max_matches`
    rows; an n-gram in more of them gives one row, whose id is COMMON."""
    import pyarrow as pa

    key, ids = group["key"].to_numpy(), group["id"].to_numpy()
    different, which, counts = np.unique(key, return_inverse=True, return_counts=True)
    is_rare, common = counts[which] <= max_matches, different[counts > max_matches]
    found = np.concatenate([ids[is_rare], np.full(len(common), COMMON)])
    return pa.table({"id": found, "ngram": np.concatenate([key[is_rare], common])})


def _texts(config: Decontaminate) -> Iterator[str]:
    """Every string in the rows, or in some of their columns, also inside lists and objects; numbers are left out."""
    from rayrlhf.data.cleaning.reading import plain_rows

    for path in config.against:
        is_found = config.columns is None
        for row in plain_rows(path):
            if config.columns is None:
                yield from _strings(row)
                continue
            for name in config.columns:
                if isinstance(row, dict) and name in row:
                    is_found = True
                    yield from _strings(row[name])
        if not is_found:
            raise DataError(f"decontaminate: no row of {path} has a column of {list(config.columns or ())}")


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)
