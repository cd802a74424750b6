"""What is said about a set of texts, and about two sets on the same prompts.  Pure; texts are strings.

Words are runs of letters, digits and apostrophes, lower-cased, so that punctuation does not count.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")

# VADER's documented threshold: a compound score of 0.05 or more is positive (Hutto & Gilbert 2014)
VADER_POSITIVE = 0.05


def words(text: str) -> list[str]:
    """The lower-cased words of a text, without punctuation."""
    return _WORD.findall(text.lower())


def distinct_n(texts: Iterable[str], n: int) -> float:
    """Unique over total word n-grams of the whole set (Li et al. 2016); nan where there is none."""
    grams = [gram for text in texts for gram in _ngrams(words(text), n)]
    return len(set(grams)) / len(grams) if grams else math.nan


def repetition(texts: Iterable[str], n: int = 2) -> float:
    """Mean over texts of the share of word n-grams that the same text already had; 0 for short ones."""
    shares = []
    for text in texts:
        grams = _ngrams(words(text), n)
        shares.append(1 - len(set(grams)) / len(grams) if grams else 0.0)
    return sum(shares) / len(shares) if shares else math.nan


def known_word_share(texts: Iterable[str], vocabulary: set[str]) -> float:
    """Share of the words of all texts that `vocabulary` (lower-cased words) has; nan without words."""
    found = [word in vocabulary for text in texts for word in words(text)]
    return sum(found) / len(found) if found else math.nan


def vocabulary_of(texts: Iterable[str]) -> set[str]:
    """Every word of the texts, as `known_word_share` compares them."""
    return {word for text in texts for word in words(text)}


def perplexity(logprob_sum: float, num_tokens: int) -> float:
    """exp(mean negative log-likelihood per token), in nats; nan without tokens."""
    return math.exp(-logprob_sum / num_tokens) if num_tokens else math.nan


def positive_share(scores: Sequence[float], threshold: float = VADER_POSITIVE) -> float:
    """Share of the scores that are `threshold` or more; nan without scores."""
    return sum(score >= threshold for score in scores) / len(scores) if scores else math.nan


@dataclass(frozen=True)
class WinRate:
    """How often one side beats the other on the same prompts, with a 95 % confidence interval."""

    rate: float
    low: float
    high: float


def win_rate(ours: Sequence[float], theirs: Sequence[float], seed: int = 0, resamples: int = 2000) -> WinRate:
    """Share of prompts where `ours` is higher, a tie counting half.

    The interval is the percentile bootstrap over prompts (Efron 1979): pairs are resampled whole,
    so that what a prompt contributes to both sides stays together.
    """
    if len(ours) != len(theirs) or not ours:
        raise ValueError(f"win_rate needs as many scores on both sides, at least one: {len(ours)}, {len(theirs)}")
    a, b = np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
    wins = (a > b) + 0.5 * (a == b)
    chosen = np.random.default_rng(seed).integers(0, len(wins), size=(resamples, len(wins)))
    low, high = np.quantile(wins[chosen].mean(axis=1), [0.025, 0.975])
    return WinRate(float(wins.mean()), float(low), float(high))


def _ngrams(tokens: list[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
