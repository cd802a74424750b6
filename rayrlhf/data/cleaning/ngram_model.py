"""A character n-gram language model with Witten-Bell smoothing, as sorted arrays of hashes and counts.

    p(c | h) = (count(hc) + T(h) p(c | h')) / (count(h) + T(h))

where T(h) is the number of different characters seen after h and h' is h without its first character; the
shortest history backs off to the uniform distribution over Unicode (Witten & Bell 1991; Chen & Goodman 1999, eq. 2.9).
Every character, Chinese or Latin, is one event, so one model serves any script.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from rayrlhf.data.cleaning.config import NgramPerplexity
from rayrlhf.data.cleaning.hashing import Hashes, character_hashes, ngram_hashes
from rayrlhf.data.cleaning.verdict import Dropped, Operator, above, below

FILE = "ngrams.npz"
UNIFORM = 1 / 1_114_112  # Unicode's code points
_START = "\x02"  # before every text, so that its first characters have a history too

Table = tuple[Hashes, Any]  # sorted hashes, a number for each


@dataclass(frozen=True)
class NgramModel:
    """Counts of n-grams by length (1 to the order), of what followed each history, of how many different."""

    counts: list[Table]
    follows: list[Table]
    kinds: list[Table]

    @property
    def order(self) -> int:
        return len(self.counts)

    def logprobs(self, text: str) -> Any:
        """Natural log-probability of each character of `text`, its history being what stands before it."""
        padded = _padded(text, self.order)
        hashes = character_hashes(padded)
        start = self.order - 1
        probability: Any = np.full(len(text), UNIFORM)
        for n in range(1, self.order + 1):
            ends = ngram_hashes(hashes, n)[start - n + 1 :]
            histories = _histories(hashes, n)[start - n + 1 : start - n + 1 + len(text)]
            seen, after, kinds = (
                _look_up(self.counts[n - 1], ends),
                _look_up(self.follows[n - 1], histories),
                _look_up(self.kinds[n - 1], histories),
            )
            known = after > 0
            mixed = (seen + kinds * probability) / np.where(known, after + kinds, 1)
            probability = np.where(known, mixed, probability)
        return np.log(probability)

    def perplexity(self, text: str) -> float:
        """exp of the mean negative log-probability a character; 1 for no text."""
        return float(np.exp(-self.logprobs(text).mean())) if text else 1.0

    def save(self, folder: str) -> None:
        """Write `FILE` into `folder`."""
        arrays = {}
        for name, tables in (("counts", self.counts), ("follows", self.follows), ("kinds", self.kinds)):
            for number, (hashes, values) in enumerate(tables):
                arrays[f"{name}_{number}"], arrays[f"{name}_{number}_values"] = hashes, values.astype(np.uint32)
        np.savez(os.path.join(folder, FILE), **arrays)

    @staticmethod
    def load(folder: str) -> NgramModel:
        """The model in `folder`."""
        with np.load(os.path.join(folder, FILE)) as arrays:
            order = sum(name.startswith("counts_") and not name.endswith("values") for name in arrays.files)

            def tables(name: str) -> list[Table]:
                return [(arrays[f"{name}_{n}"], arrays[f"{name}_{n}_values"]) for n in range(order)]

            return NgramModel(tables("counts"), tables("follows"), tables("kinds"))


def train(batches: Iterable[list[str]], order: int, min_count: int) -> NgramModel:
    """Count the n-grams of texts; those longer than 2 seen fewer than `min_count` times are left out.

    The memory is that of the different n-grams (16 bytes each), not of the texts.
    """
    empty = np.empty(0, np.uint64), np.empty(0, np.int64)
    counts: list[Table] = [empty] * order
    history_of: list[Table] = [empty] * order  # n-gram -> its history
    for batch in batches:
        hashed = [character_hashes(_padded(text, order)) for text in batch if text]
        for n in range(1, order + 1):
            grams = [ngram_hashes(hashes, n)[order - n :] for hashes in hashed]
            before = [_histories(hashes, n)[order - n : len(hashes) - n + 1] for hashes in hashed]
            if not grams:
                continue
            found, first, times = np.unique(np.concatenate(grams), return_index=True, return_counts=True)
            history_of[n - 1] = _union(history_of[n - 1], (found, np.concatenate(before)[first]))
            counts[n - 1] = _sum(counts[n - 1], (found, times))
    follows, kinds = [], []
    for n in range(order):
        hashes, times = counts[n]
        kept = times >= (min_count if n > 1 else 1)
        counts[n] = hashes[kept], times[kept]
        after, which, number = np.unique(history_of[n][1][kept], return_inverse=True, return_counts=True)
        follows.append((after, np.bincount(which, weights=times[kept], minlength=len(after)).astype(np.int64)))
        kinds.append((after, number))
    return NgramModel(counts, follows, kinds)


def build(config: NgramPerplexity) -> Operator:
    """Drops for high_perplexity and low_perplexity."""
    from rayrlhf.model_folder import model_folder

    model = NgramModel.load(model_folder(config.model))

    def keep(text: str) -> str | Dropped:
        value = model.perplexity(text)
        found = above("high_perplexity", value, config.max_perplexity)
        found = found or below("low_perplexity", value, config.min_perplexity)
        return text if found is None else found

    return keep


def _padded(text: str, order: int) -> str:
    return _START * (order - 1) + text


def _histories(hashes: Hashes, n: int) -> Hashes:
    """The history of each n-gram, in their order; of single characters it is nothing."""
    return np.zeros(len(hashes), np.uint64) if n == 1 else ngram_hashes(hashes, n - 1)


def _look_up(table: Table, wanted: Hashes) -> Any:
    """The number of each of `wanted`, 0 where there is none."""
    hashes, values = table
    if not len(hashes):
        return np.zeros(len(wanted))
    places = np.minimum(np.searchsorted(hashes, wanted), len(hashes) - 1)
    return np.where(hashes[places] == wanted, values[places], 0).astype(np.float64)


def _sum(one: Table, other: Table) -> Table:
    hashes, which = np.unique(np.concatenate([one[0], other[0]]), return_inverse=True)
    return hashes, np.bincount(which, weights=np.concatenate([one[1], other[1]])).astype(np.int64)


def _union(one: Table, other: Table) -> Table:
    hashes, first = np.unique(np.concatenate([one[0], other[0]]), return_index=True)
    return hashes, np.concatenate([one[1].astype(np.uint64), other[1].astype(np.uint64)])[first]
