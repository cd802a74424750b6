"""Hashes of texts and of n-grams: alike in every process, vectorised where there are many."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

# An odd base has an inverse modulo 2**64, so any window of a running sum can be divided down to one value.
_BASE = 0x9E3779B97F4A7C15
_INVERSE = pow(_BASE, -1, 2**64)
_CACHE_SIZE = 200_000
_known: dict[str, int] = {}

Hashes = Any  # a numpy array of uint64


def text_hash(text: str) -> int:
    """64 bits of `text`: two of a hundred million texts share one with probability 0.0003."""
    import xxhash

    return xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogatepass"))


def token_hashes(found: Sequence[str]) -> Hashes:
    """The hash of each token; frequent words are remembered."""
    if len(_known) > _CACHE_SIZE:
        _known.clear()
    result = np.empty(len(found), np.uint64)
    for place, token in enumerate(found):
        known = _known.get(token)
        if known is None:
            known = _known[token] = text_hash(token)
        result[place] = known
    return result


def character_hashes(text: str) -> Hashes:
    """The mixed code point of each character."""
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    return mixed(points)


def mixed(values: Hashes) -> Hashes:
    """The finaliser of splitmix64 (Steele et al. 2014): nearby values become unrelated ones."""
    values = values + np.uint64(_BASE)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def ngram_hashes(hashes: Hashes, n: int) -> Hashes:
    """One hash for each run of `n` neighbours, first to last (none when there are fewer).

    A polynomial of the neighbours modulo 2**64, from a running sum: the time does not grow with n.
    """
    if len(hashes) < n:
        return np.empty(0, np.uint64)
    if n == 1:
        return mixed(hashes)
    powers = _powers(_BASE, len(hashes))
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(hashes * powers, dtype=np.uint64)])
    windows = (sums[n:] - sums[:-n]) * _powers(_INVERSE, len(hashes))[: len(hashes) - n + 1]
    return mixed(windows)


_power_tables: dict[int, Hashes] = {}


def _powers(base: int, count: int) -> Hashes:
    """base**0 to base**(count - 1) modulo 2**64."""
    table = _power_tables.get(base)
    if table is None or len(table) < count:
        factors = np.full(max(1024, 2 * count), base, np.uint64)
        factors[0] = 1
        table = _power_tables[base] = np.cumprod(factors, dtype=np.uint64)
    return table[:count]
