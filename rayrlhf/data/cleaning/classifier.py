"""A quality classifier: logistic regression on hashed n-grams of words and characters.

Features are hashed into a fixed number of weights (Weinberger et al. 2009) and count once a text; their values are
1/sqrt(their number), so a long text is not surer than a short one.  Trained by AdaGrad (Duchi et al. 2011).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rayrlhf.data.cleaning.config import QualityClassifier
from rayrlhf.data.cleaning.hashing import Hashes, character_hashes, ngram_hashes, token_hashes
from rayrlhf.data.cleaning.verdict import Dropped, Operator, below
from rayrlhf.data.cleaning.words import tokens

FILE = "classifier.npz"
CHARS = 10_000  # the beginning of a text decides


@dataclass(frozen=True)
class Features:
    """Which n-grams count, and into how many weights they are hashed."""

    bits: int
    word_ngram: int
    char_ngram: int

    def of(self, text: str) -> Hashes:
        """The places of the weights of `text`, each once."""
        text = text[:CHARS]
        words = token_hashes(tokens(text))
        parts = [ngram_hashes(words, n) for n in range(1, self.word_ngram + 1)]
        chars = character_hashes(text)
        parts += [ngram_hashes(chars, n) for n in range(2, self.char_ngram + 1)]
        return np.unique(np.concatenate(parts) >> np.uint64(64 - self.bits)).astype(np.int64)


class Classifier:
    """Weights and bias; `score` is the probability of the positive class."""

    def __init__(self, features: Features) -> None:
        self.features = features
        self.weights: Any = np.zeros(2**features.bits, np.float32)
        self.bias = 0.0
        self._squares: Any = np.full(2**features.bits, 1e-8, np.float32)
        self._bias_square = 1e-8

    def score(self, text: str) -> float:
        """The probability that `text` is good."""
        return self._probability(self.features.of(text))

    def learn(self, text: str, is_good: bool, weight: float, lr: float) -> None:
        """One step of AdaGrad on `weight` x the cross-entropy."""
        places = self.features.of(text)
        slope = weight * (self._probability(places) - float(is_good))
        value = 1 / np.sqrt(max(1, len(places)))
        self._squares[places] += (slope * value) ** 2
        self.weights[places] -= lr * slope * value / np.sqrt(self._squares[places])
        self._bias_square += slope**2
        self.bias -= lr * slope / float(np.sqrt(self._bias_square))

    def save(self, folder: str) -> None:
        """Write `FILE` into `folder`."""
        about = json.dumps(vars(self.features))
        np.savez(os.path.join(folder, FILE), weights=self.weights, bias=np.float64(self.bias), about=about)

    @staticmethod
    def load(folder: str) -> Classifier:
        """The classifier in `folder`."""
        with np.load(os.path.join(folder, FILE)) as arrays:
            made = Classifier(Features(**json.loads(str(arrays["about"]))))
            made.weights, made.bias = arrays["weights"], float(arrays["bias"])
        return made

    def _probability(self, places: Hashes) -> float:
        logit = self.bias + float(self.weights[places].sum()) / np.sqrt(max(1, len(places)))
        return float(1 / (1 + np.exp(-np.clip(logit, -30, 30))))


def fit(model: Classifier, rows: Iterable[tuple[str, bool]], share_good: float, lr: float) -> None:
    """One pass over `rows`; each class weighs a half in all, whatever its share of the rows."""
    for text, is_good in rows:
        model.learn(text, is_good, 0.5 / (share_good if is_good else 1 - share_good), lr)


def area(scores: Sequence[float], labels: Sequence[bool]) -> float:
    """The area under the ROC curve: how often a good text scores above a bad one, ties counting half."""
    good = np.array([s for s, is_good in zip(scores, labels, strict=True) if is_good])
    bad = np.sort([s for s, is_good in zip(scores, labels, strict=True) if not is_good])
    wins = np.searchsorted(bad, good, "left") + np.searchsorted(bad, good, "right")
    return float(wins.sum() / (2 * len(good) * len(bad)))


def build(config: QualityClassifier) -> Operator:
    """Drops for low_quality."""
    from rayrlhf.model_folder import model_folder

    model = Classifier.load(model_folder(config.model))

    def keep(text: str) -> str | Dropped:
        return below("low_quality", model.score(text), config.min_score) or text

    return keep
