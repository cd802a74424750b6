"""What a tokenizer makes of text it was not trained on: tokens a word and a character, by script.

    tokens_per_word   tokens over words (what white space divides), of text that is not Chinese
    tokens_per_char   tokens over characters, white space included
    unknown_share     tokens that stand for something lost
    byte_share        tokens that are a part of a character: its bytes one by one

Rust et al. 2021, "How Good is Your Tokenizer?", section 3.2, for tokens a word.  Chinese has no spaces, so its
runs (Han characters with the punctuation between them) are measured apart, by the character.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

# ideographs of all planes, radicals, and the signs and full-width forms that stand between them
_HAN = r"[\u2e80-\u2fdf\u3000-\u303f\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003fffd]+"
_RUNS = re.compile(f"({_HAN})")
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_ESCAPED = [n for n in range(256) if not (33 <= n <= 126 or 161 <= n <= 172 or 174 <= n <= 255)]
# how byte-level tokenizers write bytes that are no visible letter: as letters from U+0100 on, in their order
_LETTERS = {chr(256 + n): value for n, value in enumerate(_ESCAPED)}


@dataclass
class Counts:
    """What a number of texts comes to."""

    words: int = 0
    characters: int = 0
    tokens: int = 0
    unknown: int = 0
    bytes: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(Counts)))

    def shares(self, prefix: str) -> dict[str, float]:
        """The numbers above, where they mean something."""
        found = {}
        if self.words:
            found[f"{prefix}tokens_per_word"] = self.tokens / self.words
        if self.characters:
            found[f"{prefix}tokens_per_char"] = self.tokens / self.characters
            found[f"{prefix}unknown_share"] = self.unknown / max(1, self.tokens)
            found[f"{prefix}byte_share"] = self.bytes / max(1, self.tokens)
        return found


def fertility(tokenizer: Any, texts: Iterable[str]) -> dict[str, float]:
    """`tokenizer_*` of all `texts`; with Chinese among them `tokenizer_han_*` and `tokenizer_other_*` too."""
    whole, han, other = Counts(), Counts(), Counts()
    is_byte_level = _is_byte_level(tokenizer)
    for text in texts:
        parts = _RUNS.split(text)  # what is not Han, Han, and so on in turn
        found = _counted(tokenizer, text, is_byte_level)
        whole += found
        if len(parts) == 1:
            found.words = len(text.split())
            other += found
            continue
        for number, part in enumerate(parts):
            if number % 2:
                han += _counted(tokenizer, part, is_byte_level)
            elif part:
                rest = _counted(tokenizer, part, is_byte_level)
                rest.words = len(part.split())
                other += rest
    if not han.characters:
        return other.shares("tokenizer_")
    return whole.shares("tokenizer_") | han.shares("tokenizer_han_") | other.shares("tokenizer_other_")


def _counted(tokenizer: Any, text: str, is_byte_level: bool) -> Counts:
    """Words apart, of which only the caller knows."""
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    tokens = tokenizer.convert_ids_to_tokens(ids)
    unknown = 0 if tokenizer.unk_token_id is None else ids.count(tokenizer.unk_token_id)
    parts = sum(_is_part(token, is_byte_level) for token in tokens)
    return Counts(characters=len(text), tokens=len(ids), unknown=unknown, bytes=parts)


def _is_part(token: str, is_byte_level: bool) -> bool:
    """Whether `token` holds no whole character, or some of the bytes of one beside others."""
    if not is_byte_level:
        return bool(_BYTE.fullmatch(token))
    values = [_LETTERS.get(letter, ord(letter)) for letter in token]
    if max(values, default=0) > 255:
        return False  # an added token, as it is
    try:
        bytes(values).decode("utf-8")
    except UnicodeDecodeError:
        return True
    return False


def _is_byte_level(tokenizer: Any) -> bool:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return backend is not None and '"ByteLevel"' in backend.to_str()
