"""One Unicode form, spaces and lines as text has them."""

from __future__ import annotations

import re
import unicodedata
from typing import Literal

from rayrlhf.data.cleaning.config import Normalise
from rayrlhf.data.cleaning.verdict import Operator

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ufeff]")
_TO_HALF = 0xFEE0  # from U+FF01 (full-width !) to U+0021
_ALL = {full: full - _TO_HALF for full in range(0xFF01, 0xFF5F)} | {0x3000: 0x20}
_LETTERS = {full: half for full, half in _ALL.items() if chr(half).isalnum() or half == 0x20}


def normalise(
    text: str,
    form: Literal["NFC", "NFKC"] = "NFC",
    full_width: Literal["keep", "letters", "all"] = "keep",
    remove_control: bool = True,
    collapse_spaces: bool = True,
) -> str:
    """`text` in a Unicode form (NFKC also changes widths, ligatures and superscripts), without control characters,
    with single spaces and at most one empty line in a row."""
    text = unicodedata.normalize(form, text.replace("\r\n", "\n"))
    if full_width != "keep":
        text = text.translate(_ALL if full_width == "all" else _LETTERS)
    if remove_control:
        text = _CONTROL.sub("", text)
    if collapse_spaces:
        text = re.sub(r"[^\S\n]+", " ", text)
        text = re.sub(r"\n{3,}", "\n\n", re.sub(r" ?\n ?", "\n", text)).strip()
    return text


def build(config: Normalise) -> Operator:
    """`normalise` with the values of `config`."""

    def apply(text: str) -> str:
        return normalise(text, config.form, config.full_width, config.remove_control, config.collapse_spaces)

    return apply
