"""Words, sentences and lines of English and Chinese text.

Latin and other scripts with spaces split at what is no letter or digit; Chinese, which writes no spaces, is cut into
words by the library jieba, or taken character by character where sequences are compared.
"""

from __future__ import annotations

import logging
import re
from functools import cache, lru_cache
from typing import Any

HAN = "\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"
_LONGEST = 16  # characters of a word before a dot that are looked at
_HAN = re.compile(f"[{HAN}]+")
_TOKEN = re.compile(rf"[{HAN}]|[^\W{HAN}_]+(?:['’][^\W{HAN}_]+)*")
_RUN = re.compile(rf"[{HAN}]+|[^\W{HAN}_]+(?:['’-][^\W{HAN}_]+)*")
# An end mark with the quotes and brackets that close after it.  Latin marks need a space, as in 3.14 or e.g.this.
# A run of them is tried from its first one only: a search from each would take the square of its length.
_END = re.compile(r"[。！？；]+[”’」』）)\"']*|(?<![.!?…])[.!?…]+[”’」』）)\"']*(?=\s|$)")
# words before whose dot a sentence goes on
_ABBREVIATIONS = frozenset(
    "mr mrs ms dr prof sr jr st vs etc e.g i.e eg ie fig no vol pp inc ltd co corp u.s u.k jan feb mar apr jun jul aug "
    "sep sept oct nov dec".split()
)


def has_han(text: str) -> bool:
    """Whether `text` has a Chinese character."""
    return _HAN.search(text) is not None


def tokens(text: str) -> list[str]:
    """Lower-case words, and Chinese characters one by one: what n-grams are made of."""
    return _TOKEN.findall(text.lower())


@lru_cache(maxsize=4)  # the steps of one text ask one after another
def words(text: str) -> tuple[str, ...]:
    """Words as they stand, without punctuation; Chinese by segmentation."""
    found: list[str] = []
    for run in _RUN.findall(text):
        if _HAN.match(run):
            found += segmenter().lcut(run, HMM=False)
        else:
            found.append(run)
    return tuple(found)


@cache
def segmenter() -> Any:
    """jieba, with its dictionary loaded (about a second, once a process)."""
    import jieba

    jieba.setLogLevel(logging.WARNING)
    jieba.initialize()
    return jieba


def sentences(text: str) -> list[str]:
    """The sentences of `text` with the spaces after them: joined they are `text` again."""
    found, start = [], 0
    for line in text.splitlines(keepends=True) or [text]:
        begin = start
        for end in _END.finditer(line):
            stop = _after_spaces(line, end.end())
            if stop + start > begin and not _goes_on(line, end):
                found.append(text[begin : start + stop])
                begin = start + stop
        start += len(line)
        if begin < start:
            found.append(text[begin:start])
    return found


def lines(text: str) -> list[str]:
    """The lines of `text` with their ends: joined they are `text` again."""
    return text.splitlines(keepends=True)


def _after_spaces(line: str, position: int) -> int:
    """Where the spaces after `position` end."""
    while position < len(line) and line[position].isspace():
        position += 1
    return position


def _goes_on(line: str, end: re.Match[str]) -> bool:
    """Whether the mark at `end` is the dot of an abbreviation or of an initial, as in Dr. J. Smith."""
    if end.group() != ".":
        return False
    before = re.search(r"[\w.]+$", line[max(0, end.start() - _LONGEST) : end.start()])
    word = before.group() if before else ""
    return word.lower() in _ABBREVIATIONS or (len(word) == 1 and word.isupper() and word != "I")
