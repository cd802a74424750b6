"""Subword models over characters, where what is rare falls back to bytes (as in SentencePiece's byte_fallback).

    specials  <0x00> .. <0xFF>  the frequent characters and the pieces learnt of them

Kudo and Richardson 2018, "SentencePiece"; which characters are frequent is its character coverage.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Texts = Callable[[], Iterable[list[str]]]

BYTES = [f"<0x{value:02X}>" for value in range(256)]
_RARE = "\x00"  # what stands for a rare character while the pieces are learnt: no piece has it
_STEP = 0.0001


def frequent(texts: Texts, coverage: float, at_most: int) -> list[str]:
    """The most frequent characters that make up `coverage` of all texts, `at_most` so many; sorted."""
    counts = Counter(letter for batch in texts() for text in batch for letter in text)
    counts.pop(_RARE, None)
    wanted, kept, seen = coverage * counts.total(), list[str](), 0
    for letter, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if seen >= wanted or len(kept) == at_most:
            break
        kept.append(letter)
        seen += count
    return sorted(kept)


def without_rare(texts: Texts, kept: Iterable[str]) -> Iterable[list[str]]:
    """The texts, cut where a character is not `kept`."""
    letters = set(kept)
    for batch in texts():
        spelled = ("".join(letter if letter in letters else _RARE for letter in text) for text in batch)
        yield [part for text in spelled for part in text.split(_RARE) if part]


def with_bytes(backend: Tokenizer, specials: list[str]) -> Any:
    """The model of a trained `backend` with the tokens of all bytes after the special ones."""
    from tokenizers import models

    learnt = json.loads(backend.to_str())["model"]
    if learnt["type"] == "BPE":
        pieces = sorted(learnt["vocab"], key=learnt["vocab"].__getitem__)
        tokens = [*specials, *BYTES, *(piece for piece in pieces if piece not in specials)]
        merges: Any = [tuple(merge) for merge in learnt["merges"]]
        return models.BPE({token: number for number, token in enumerate(tokens)}, merges, byte_fallback=True)
    scored = [(piece, score) for piece, score in ranked(learnt["vocab"]) if piece not in specials]
    # text that looks like the token of a byte is several words, so the probability of these has no effect
    vocabulary = [*((token, 0.0) for token in [*specials, *BYTES]), *scored]
    return models.Unigram(vocabulary, 0, True)  # nothing is unknown, as all bytes are there


def ranked(vocabulary: list[tuple[str, float]]) -> list[tuple[str, float]]:
    """Pieces with log-probabilities to 6 decimals, the likeliest first.

    The trainer sums floats in the random order of its hash tables, and so differs in the last digits; and characters
    that it has no probability for get the lowest ones, 0.0001 apart, in that order: here all get the last of these.
    """
    scores = sorted(score for piece, score in vocabulary if len(piece) == 1)
    tail = 0
    while tail + 1 < len(scores) and scores[tail + 1] - scores[tail] < 1.5 * _STEP:
        tail += 1
    least = scores[0] if scores else 0.0
    bound = scores[tail] if scores else -math.inf
    rounded = [(piece, round(least if len(piece) == 1 and score <= bound else score, 6)) for piece, score in vocabulary]
    return sorted(rounded, key=lambda item: (-item[1], item[0]))
