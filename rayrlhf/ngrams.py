"""How much responses repeat: token n-grams counted by sorting numbers, millions of them in a tenth of a second."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

_LARGEST = 2**62  # numbers of n-grams stay below
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Responses:
    """Responses side by side: `tokens` i64 `[B, L]`, of which the first `lengths` `[B]` of each row count."""

    tokens: Ints
    lengths: Ints

    @classmethod
    def of(cls, tokens: Tensor, mask: Tensor) -> Responses:
        """The tokens `[B, T]` where `mask` bool `[B, T]` is True; what a hole parts stands side by side."""
        lengths = mask.sum(1).numpy()
        packed = np.zeros((len(lengths), int(lengths.max(initial=0))), np.int64)
        packed[np.arange(packed.shape[1]) < lengths[:, None]] = tokens[mask].numpy()
        return cls(packed, lengths)


def repetition(responses: Responses, n: int) -> float:
    """Mean over responses of the share of a response's token n-grams that it had before (seq-rep-n of Welleck et al.
    2020); 0 for one without n-grams."""
    ranks = _ranks(responses.tokens)
    grams = _grams(ranks, n, ranks.shape[1], is_by_row=True)
    counts = np.maximum(responses.lengths - n + 1, 0)
    grams[np.arange(grams.shape[1]) >= counts[:, None]] = -1
    grams.sort(axis=1)
    is_new = grams >= 0
    is_new[:, 1:] &= grams[:, 1:] != grams[:, :-1]
    numbers = zip(is_new.sum(1).tolist(), counts.tolist(), strict=True)
    shares = [1 - new / count if count else 0.0 for new, count in numbers]
    return sum(shares) / len(shares)


def distinct(responses: Responses, n: int) -> float:
    """Unique over total token n-grams of all responses (Li et al. 2016); 1 where there is none."""
    base = int(responses.tokens.max(initial=0)) + 1
    grams = _grams(responses.tokens, n, base, is_by_row=False)
    found = grams[np.arange(grams.shape[1]) < (responses.lengths - n + 1)[:, None]]
    if not len(found):
        return 1.0
    found.sort()
    return (1 + int((found[1:] != found[:-1]).sum())) / len(found)


def _grams(numbers: Ints, n: int, base: int, is_by_row: bool) -> Ints:
    """A number for the n-gram that begins at each place `[B, L - n + 1]`: the same for equal n-grams, and for no others
    (`is_by_row`: of its row).  `numbers` `[B, L]` are of single tokens, from 0, below `base`."""
    width = max(numbers.shape[1] - n + 1, 0)
    grams, size = numbers[:, :width].copy(), base
    for place in range(1, n):
        if size * base > _LARGEST:
            grams = _ranks(grams) if is_by_row else np.unique(grams, return_inverse=True)[1].reshape(grams.shape)
            size = int(grams.max(initial=0)) + 1
        grams *= base
        grams += numbers[:, place : place + width]
        size *= base
    return grams


def _ranks(numbers: Ints) -> Ints:
    """Each number's place among the different ones of its row, from 0; `[B, L]` as `numbers`."""
    order = np.argsort(numbers, axis=1)
    ordered = np.take_along_axis(numbers, order, axis=1)
    ranks = np.zeros_like(numbers)
    ranks[:, 1:] = np.cumsum(ordered[:, 1:] != ordered[:, :-1], axis=1)
    placed = np.empty_like(numbers)
    np.put_along_axis(placed, order, ranks, axis=1)
    return placed
