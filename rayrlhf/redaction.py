"""Secrets out of what is shown: credentials in URLs, passwords and tokens by their key, keys by their form.

A mask is for what is written down or shown (stage.json, trackers, reports, a recorded command line, errors); what a
stage is made from is the configuration itself.
"""

from __future__ import annotations

import re
from typing import Any

MASK = "***"
# The last word of a key.  max_tokens and tokenizer are none of them, nor are the names of a tokenizer's own tokens, nor
# what is counted per token.
_WORD = (
    r"(?:(?<!pad_)(?<!eos_)(?<!bos_)(?<!unk_)(?<!sep_)(?<!cls_)(?<!mask_)(?<!per_)token|passwd|password|passphrase|secret"
    r"|credentials?|authorization|api_?key|access_?key(?:_?id)?|secret_?key|private_?key|signature|sig)"
)
_KEY = re.compile(rf"(?i)(?:.*[^a-z])?{_WORD}$")
# a sentence that goes on after "token:" is a parser's or ours
_ASSIGNS = r"(?:=|(?<!token): ?|(?<=token):(?! [a-z]+ [a-z]) ?)"
_ASSIGNED = re.compile(rf"(?i)((?<![a-z]){_WORD}{_ASSIGNS})[^\s&'\",}}\]]+")
_URL = re.compile(r"([a-zA-Z][a-zA-Z0-9+.\-]*://)(?:[^\s/?#]+|[^\s:/@]+:[^\s@]+)@")
_FORMS = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_\-]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,}"
    r"|(?:AKIA|ASIA)[0-9A-Z]{16}|xox[abeprs]-[A-Za-z0-9\-]{10,}|AIza[A-Za-z0-9_\-]{30,}"
    r"|eyJ[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]+\.[A-Za-z0-9_\-]+)"
)


def redacted(value: Any) -> Any:
    """`value`, JSON, with secrets masked: what stands under the key of a secret, and what `redacted_text` finds."""
    if isinstance(value, dict):
        return {
            redacted_text(key): MASK if is_secret(key) and _may_be_one(inner) else redacted(inner)
            for key, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return [redacted(inner) for inner in value]
    return redacted_text(value) if isinstance(value, str) else value


def redacted_text(text: str) -> str:
    """`text` with credentials in URLs, `password=...` (also `password: ...`) and keys of well-known forms masked."""
    text = _URL.sub(rf"\1{MASK}@", text)
    text = _ASSIGNED.sub(rf"\1{MASK}", text)
    return _FORMS.sub(MASK, text)


def _may_be_one(value: Any) -> bool:
    """No password is empty, true or a fraction."""
    return bool(value) and not isinstance(value, bool | float)


def is_secret(key: str) -> bool:
    """Whether a key names a secret."""
    return _KEY.fullmatch(key) is not None
