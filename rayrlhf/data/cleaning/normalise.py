"""One Unicode form, spaces and lines as text has them."""

from __future__ import annotations

import os
import re
import unicodedata
from typing import Literal

from rayrlhf.data.cleaning.config import Normalise
from rayrlhf.data.cleaning.verdict import Operator

_BREAK = re.compile(r"[\r\x0b\x0c\x1c-\x1f\x85\u2028\u2029]")  # what ends a line beside \n
# nothing to see: controls, soft hyphens, zero-width spaces and word joiners, byte order marks
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1b\x7f-\x9f\xad\u180e\u200b\u2060-\u2064\ufeff]")
# (non-)joiners are letters' business from Arabic to Mongolian, and hold emoji together; elsewhere they hide
_JOINED = "\u0600-\u1fff\u203c-\u2bff\u3030\u303d\u3297\u3299\ufb50-\ufdff\ufe0f\ufe70-\ufefc\U0001f000-\U0001faff"
_JOINER = re.compile(rf"(?<![\xa9\xae{_JOINED}])[\u200c\u200d]+")
_WIDE_INDENT = re.compile(r"^[^\S\n]*\u3000[^\S\n]*", re.MULTILINE)
_RUN = re.compile(r"[^\S\n]{2,}|[^\S\n ]")  # white space that is more than a space
_ODD_INDENT = re.compile(r"\n[^\S\n]*[^\S\n \t][^\S\n]*")
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
    """`text` in a Unicode form (NFKC also changes widths, ligatures and superscripts), without control and zero-width
    characters, with single spaces and at most one empty line in a row.

    Line breaks of all kinds become \\n.  Lines keep their indent, as code needs it, but for what is common to all of
    them; the wide spaces before a Chinese paragraph go.
    """
    text = _BREAK.sub("\n", text.replace("\r\n", "\n"))
    if collapse_spaces and "\u3000" in text:
        text = _WIDE_INDENT.sub("", text)  # before NFKC and full_width make narrow ones of them
    text = unicodedata.normalize(form, text)
    if full_width != "keep":
        text = text.translate(_ALL if full_width == "all" else _LETTERS)
    if remove_control:
        text = _CONTROL.sub("", text)
        text = _JOINER.sub("", text) if "\u200c" in text or "\u200d" in text else text
    return _collapsed(text) if collapse_spaces else text


def _collapsed(text: str) -> str:
    """`text` with single spaces inside of lines, none at their ends, and at most one empty line in a row."""
    # every pattern begins with a character that it needs: one that looks behind first is tried at each place
    text = _RUN.sub(_single, "\n" + text)
    text = re.sub(r"\n[^\S\n]+(?=\n)", "\n", text).replace(" \n", "\n")
    text = _ODD_INDENT.sub(lambda indent: re.sub(r"[^\t\n]", " ", indent.group()), text)
    text = re.sub(r"\n{3,}", "\n\n", text).rstrip().lstrip("\n")
    common = len(os.path.commonprefix(re.findall(r"^[ \t]*(?=[^\n])", text, re.MULTILINE))) if text[:1].isspace() else 0
    return (re.sub(rf"^[ \t]{{{common}}}", "", text, flags=re.MULTILINE) if common else text).strip()


def _single(run: re.Match[str]) -> str:
    """One space for white space, but at the beginning of a line."""
    return run.group() if run.string[run.start() - 1] == "\n" else " "


def build(config: Normalise) -> Operator:
    """`normalise` with the values of `config`."""

    def apply(text: str) -> str:
        return normalise(text, config.form, config.full_width, config.remove_control, config.collapse_spaces)

    return apply
