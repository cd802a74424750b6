"""Running text has function words; lists, menus and keyword spam have few."""

from __future__ import annotations

from rayrlhf.data.cleaning.config import StopWords
from rayrlhf.data.cleaning.verdict import Dropped, Operator, below
from rayrlhf.data.cleaning.words import words

GOPHER = ("the", "be", "to", "of", "and", "that", "have", "with")
PARTICLES = ("的", "了", "是", "在", "和", "有", "不", "也", "就", "这")


def build(config: StopWords) -> Operator:
    """Drops for stop_words and stop_word_share."""
    listed = frozenset(word.lower() for word in (config.words or GOPHER + PARTICLES))

    def keep(text: str) -> str | Dropped:
        found = words(text)
        count = sum(word.lower() in listed for word in found)
        share = count / len(found) if found else 0.0
        dropped = below("stop_words", count, config.min_count) or below("stop_word_share", share, config.min_share)
        return text if dropped is None else dropped

    return keep
