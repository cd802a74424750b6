"""Shares of punctuation, symbols and digits, of words without letters, of bullets and cut-off lines."""

from __future__ import annotations

import unicodedata
from collections import Counter
from functools import lru_cache

from rayrlhf.data.cleaning.config import Characters
from rayrlhf.data.cleaning.verdict import Dropped, Operator, above, below

_BULLETS = ("-", "*", "•", "‣", "◦", "●", "▪", "■", "·", "–", "—", "+", ">")
_ELLIPSES = ("...", "…", "。。。")


@lru_cache(maxsize=65536)
def character_class(char: str) -> str:
    """ "punctuation", "symbol", "digit", "space" or "letter" (and marks); # is a symbol, as in Gopher's rule."""
    if char == "#":
        return "symbol"
    kind = unicodedata.category(char)
    names = {"P": "punctuation", "S": "symbol", "N": "digit", "Z": "space"}
    return "space" if char.isspace() else names.get(kind[0], "letter")


def shares(text: str) -> dict[str, float]:
    """The share of each class among the characters that are no spaces; 0 for text without any."""
    counts: Counter[str] = Counter()
    for char, count in Counter(text).items():
        counts[character_class(char)] += count
    total = counts.total() - counts["space"]
    return {name: counts[name] / total if total else 0.0 for name in ("punctuation", "symbol", "digit", "letter")}


def letter_words(text: str) -> float:
    """The share of the words (between spaces) with a letter in them; 1 for none."""
    found = text.split()
    return sum(any(map(str.isalpha, word)) for word in found) / len(found) if found else 1.0


def line_share(text: str, marks: tuple[str, ...], at_end: bool) -> float:
    """The share of the lines (blank ones left out) that begin, or end, with one of `marks`."""
    found = [line.strip() for line in text.splitlines() if line.strip()]
    hits = sum(line.endswith(marks) if at_end else line.startswith(marks) for line in found)
    return hits / len(found) if found else 0.0


def build(config: Characters) -> Operator:
    """Drops for punctuation, symbols, digits, letter_words, bullet_lines and ellipsis_lines."""
    bounds = (
        ("punctuation", "punctuation", config.max_punctuation),
        ("symbols", "symbol", config.max_symbols),
        ("digits", "digit", config.max_digits),
    )

    def keep(text: str) -> str | Dropped:
        share = shares(text)
        for reason, name, most in bounds:
            found = above(reason, share[name], most)
            if found is not None:
                return found
        found = (
            below("letter_words", letter_words(text), config.min_letter_words)
            or above("bullet_lines", line_share(text, _BULLETS, at_end=False), config.max_bullet_lines)
            or above("ellipsis_lines", line_share(text, _ELLIPSES, at_end=True), config.max_ellipsis_lines)
        )
        return text if found is None else found

    return keep
