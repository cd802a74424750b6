"""Rows that share an n-gram with an evaluation set (Brown et al. 2020, appendix C: 13 words)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from rayrlhf.data.cleaning.config import Decontaminate
from rayrlhf.data.cleaning.hashing import Hashes, ngram_hashes, token_hashes
from rayrlhf.data.cleaning.verdict import Dropped, Operator
from rayrlhf.data.cleaning.words import tokens
from rayrlhf.errors import DataError


@dataclass(frozen=True)
class Index:
    """The n-grams of evaluation texts: sorted hashes by n, and what could not be looked for."""

    ngrams: dict[int, Hashes]
    num_texts: int
    num_too_short: int


def index(texts: Iterator[str], ngram: int, min_tokens: int) -> Index:
    """Each text gives its n-grams; one of fewer tokens gives itself, one under `min_tokens` nothing."""
    found: dict[int, list[Hashes]] = {}
    num_texts = num_too_short = 0
    for text in texts:
        num_texts += 1
        hashes = token_hashes(tokens(text))
        n = min(ngram, len(hashes))
        if n < min_tokens:
            num_too_short += 1
            continue
        found.setdefault(n, []).append(ngram_hashes(hashes, n))
    return Index({n: np.unique(np.concatenate(parts)) for n, parts in found.items()}, num_texts, num_too_short)


def match(text: str, known: Index) -> str | None:
    """The first n-gram of `text` that an evaluation text has too, its tokens joined by spaces; None for none."""
    if not known.ngrams:
        return None
    words = tokens(text)
    hashes = token_hashes(words)
    for n, listed in known.ngrams.items():
        mine = ngram_hashes(hashes, n)
        places = np.minimum(np.searchsorted(listed, mine), len(listed) - 1)
        hits = np.flatnonzero(listed[places] == mine)
        if len(hits):
            return " ".join(words[hits[0] : hits[0] + n])
    return None


def build(config: Decontaminate) -> Operator:
    """Drops for contaminated, with the n-gram; DataError for a set that is missing or that cannot match at all."""
    known = index(_texts(config.against), config.ngram, config.min_tokens)
    if not known.ngrams:
        raise DataError(
            f"decontaminate: none of the {known.num_texts} texts of {list(config.against)} has {config.min_tokens} "
            "tokens, so no row could match: lower min_tokens or name other sets"
        )

    def keep(text: str) -> str | Dropped:
        shared = match(text, known)
        return text if shared is None else Dropped("contaminated", shared)

    return keep


def _texts(paths: tuple[str, ...]) -> Iterator[str]:
    """Every string in the rows at `paths`, also inside lists and objects; numbers and labels are left out."""
    from rayrlhf.data.cleaning.reading import plain_rows

    for path in paths:
        for row in plain_rows(path):
            yield from _strings(row)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)
