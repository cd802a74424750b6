"""Texts too short or too long, in characters and words; words of an unlikely length."""

from __future__ import annotations

from rayrlhf.data.cleaning.config import Length
from rayrlhf.data.cleaning.verdict import Dropped, Operator, above, below
from rayrlhf.data.cleaning.words import has_han, words


def mean_word(text: str) -> float | None:
    """Mean characters of the words that are not Chinese (whose words have one to four); None where none is."""
    lengths = [len(word) for word in words(text) if not has_han(word)]
    return sum(lengths) / len(lengths) if lengths else None


def build(config: Length) -> Operator:
    """Drops for too_short, too_long, too_few_words, too_many_words, short_words and long_words."""
    counts_words = config.min_words is not None or config.max_words is not None
    means_words = config.min_mean_word is not None or config.max_mean_word is not None

    def keep(text: str) -> str | Dropped:
        found = below("too_short", len(text), config.min_chars) or above("too_long", len(text), config.max_chars)
        if found is None and counts_words:
            count = len(words(text))
            found = below("too_few_words", count, config.min_words) or above("too_many_words", count, config.max_words)
        if found is None and means_words:
            mean = mean_word(text)
            if mean is not None:
                found = below("short_words", mean, config.min_mean_word)
                found = found or above("long_words", mean, config.max_mean_word)
        return text if found is None else found

    return keep
