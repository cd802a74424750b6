"""How much of a text repeats: lines, paragraphs, n-grams of words (Rae et al. 2021, section A.1.1)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from rayrlhf.data.cleaning.config import Repetition
from rayrlhf.data.cleaning.hashing import ngram_hashes, token_hashes
from rayrlhf.data.cleaning.verdict import Dropped, Operator, above
from rayrlhf.data.cleaning.words import words


def repeated(pieces: Sequence[str]) -> tuple[float, float]:
    """(the share of the pieces that came before, their share of all characters)."""
    seen: set[str] = set()
    count = chars = 0
    for piece in pieces:
        if piece in seen:
            count += 1
            chars += len(piece)
        seen.add(piece)
    total = sum(map(len, pieces))
    return (count / len(pieces) if pieces else 0.0), (chars / total if total else 0.0)


def top_ngram(found: Sequence[str], n: int) -> float:
    """The share of the words' characters that the most frequent n-gram covers; 0 when none comes twice.

    Of equally frequent ones the longest counts.
    """
    hashes, lengths = _numbers(tuple(found))
    _, first, counts = np.unique(ngram_hashes(hashes, n), return_index=True, return_counts=True)
    most = counts.max(initial=0)
    if most < 2:
        return 0.0
    ends = np.concatenate([[0], np.cumsum(lengths)])
    starts = first[counts == most]
    return float((ends[starts + n] - ends[starts]).max() * most / ends[-1])


def duplicate_ngrams(found: Sequence[str], n: int) -> float:
    """The share of the words' characters inside n-grams that came before, each character counted once."""
    hashes, lengths = _numbers(tuple(found))
    ngrams = ngram_hashes(hashes, n)
    different, first, which = np.unique(ngrams, return_index=True, return_inverse=True)
    if len(different) == len(ngrams):
        return 0.0
    again = np.flatnonzero(first[which] != np.arange(len(ngrams)))
    steps = np.zeros(len(hashes) + 1, np.int64)  # +1 where a repeated n-gram begins, -1 after its end
    np.add.at(steps, again, 1)
    np.add.at(steps, again + n, -1)
    return float(lengths[np.cumsum(steps)[:-1] > 0].sum() / lengths.sum())


@lru_cache(maxsize=2)  # asked for every n
def _numbers(found: tuple[str, ...]) -> tuple[Any, Any]:
    """(hash, length) of each word."""
    return token_hashes(found), np.array([len(word) for word in found], np.int64)


def build(config: Repetition) -> Operator:
    """Drops for duplicate_lines, duplicate_paragraphs, ..._chars, top_N_gram and duplicate_N_grams."""
    asks_ngrams = bool(config.max_top_ngram or config.max_duplicate_ngrams)

    def keep(text: str) -> str | Dropped:
        line_share, line_chars = repeated([line.strip() for line in text.split("\n") if line.strip()])
        paragraph_share, paragraph_chars = repeated([p.strip() for p in re.split(r"\n\s*\n", text) if p.strip()])
        found = (
            above("duplicate_lines", line_share, config.max_duplicate_lines)
            or above("duplicate_line_chars", line_chars, config.max_duplicate_line_chars)
            or above("duplicate_paragraphs", paragraph_share, config.max_duplicate_paragraphs)
            or above("duplicate_paragraph_chars", paragraph_chars, config.max_duplicate_paragraph_chars)
        )
        if found is None and asks_ngrams:
            found = _ngrams(words(text), config)
        return text if found is None else found

    return keep


def _ngrams(found: Sequence[str], config: Repetition) -> Dropped | None:
    for n, most in config.max_top_ngram.items():
        dropped = above(f"top_{n}_gram", top_ngram(found, n), most)
        if dropped is not None:
            return dropped
    for n, most in sorted(config.max_duplicate_ngrams.items()):
        share = duplicate_ngrams(found, n)
        dropped = above(f"duplicate_{n}_grams", share, most)
        if dropped is not None:
            return dropped
        if share == 0:  # then no longer n-gram comes twice
            return None
    return None
