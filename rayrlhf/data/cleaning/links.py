"""How much of a text is web addresses and HTML."""

from __future__ import annotations

import re

from rayrlhf.data.cleaning.config import Links
from rayrlhf.data.cleaning.html import ENTITY, TAG
from rayrlhf.data.cleaning.verdict import Dropped, Operator, above

# ends before the punctuation of the sentence around it, and before Chinese text, which needs no space
URL = re.compile(
    r"(?:https?://|ftp://|www\.)[^\s<>\"'“”‘’（）《》【】，。、；：！？\u3400-\u9fff]*[^\s<>\"'“”‘’（）《》【】，。、；：！？\u3400-\u9fff.,;:!?)\]}]",
    re.IGNORECASE,
)


def share(text: str, *patterns: re.Pattern[str]) -> float:
    """The share of the characters inside matches of `patterns`, which do not overlap."""
    covered = sum(len(match.group()) for pattern in patterns for match in pattern.finditer(text))
    return covered / len(text) if text else 0.0


def build(config: Links) -> Operator:
    """Drops for urls and html."""

    def keep(text: str) -> str | Dropped:
        found = above("urls", share(text, URL), config.max_url_share)
        found = found or above("html", share(text, TAG, ENTITY), config.max_html_share)
        return text if found is None else found

    return keep
