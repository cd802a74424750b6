"""Texts with listed words or phrases."""

from __future__ import annotations

import re
from collections.abc import Iterable

import fsspec

from rayrlhf.data.cleaning.config import Keywords
from rayrlhf.data.cleaning.verdict import Dropped, Operator
from rayrlhf.data.cleaning.words import HAN, has_han
from rayrlhf.errors import DataError

_PART = rf"[^\W{HAN}\u3040-\u30ff]"  # of a word of a script with spaces; Chinese and kana are \w too


def pattern(listed: Iterable[str]) -> re.Pattern[str]:
    """Any of `listed`, whole words only (Chinese has no spaces to tell where one ends); case does not count.

    A word in Latin letters may stand right beside Chinese ones.
    """
    # the longest first: of two that begin alike both would match, and the shorter one would win
    ordered = sorted(set(listed), key=lambda word: (-len(word), word))
    parts = [re.escape(word) if has_han(word) else rf"(?<!{_PART}){re.escape(word)}(?!{_PART})" for word in ordered]
    return re.compile("|".join(parts), re.IGNORECASE)


def build(config: Keywords) -> Operator:
    """Drops for keywords; DataError when the list of `config.path` cannot be read or is empty."""
    listed = list(config.words)
    if config.path is not None:
        try:
            with fsspec.open(config.path, "rt", encoding="utf-8-sig") as file:
                listed += [line.strip() for line in file if line.strip()]
        except (OSError, ValueError) as error:
            raise DataError(f"keywords.path={config.path} cannot be read: {error}") from error
    if not listed:
        raise DataError(f"keywords.path={config.path} holds no word; write one a line")
    search = pattern(listed)

    def keep(text: str) -> str | Dropped:
        found = search.findall(text)
        if len(found) <= config.max_matches:
            return text
        return Dropped("keywords", f"{len(found)} matches: {', '.join(sorted(set(found))[:5])}")

    return keep
