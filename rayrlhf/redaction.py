"""Secrets out of what is shown: credentials in URLs, passwords and tokens by their key, keys by their form.

A mask is for what is written down or shown (stage.json, trackers, reports, a recorded command line, errors); what a
stage is made from is the configuration itself.

Every expression here takes time linear in the text, which may be what a model or a foreign process has written.
"""

from __future__ import annotations

import re
from typing import Any

MASK = "***"
# Of a tokenizer, a position in a text, or what is counted per token: `eos_token`, `perToken`
_NO_CREDENTIAL = (
    *("pad", "eos", "bos", "unk", "sep", "cls", "mask", "image", "audio", "video", "special"),
    *("per", "first", "next", "last", "start", "stop", "end"),
)
_TOKEN = "".join(f"(?<!{kind}{joint})" for kind in _NO_CREDENTIAL for joint in ("", "_", "-")) + "token"
# The last word of a key, also of a camelCase one; max_tokens and tokenizer are none.
_START = r"(?:(?<![A-Za-z])|(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z]))"
_WORD = (
    rf"{_START}(?i:{_TOKEN}|passwd|password|passphrase|secret|credentials?|authorization|api[_-]?key"
    r"|access[_-]?key(?:[_-]?id)?|account[_-]?key|secret[_-]?key|private[_-]?key|signature|sig)"
)
_KEY = re.compile(rf"{_WORD}\Z")
_NAME = r"[\w.\-]"
# `"`, `'`, and `\"` in JSON within JSON; one that is not closed goes on to the end of the line
_QUOTED = (
    r'"(?P<double>(?:[^"\\\n]|\\.)+)|' + r"'(?P<single>(?:[^'\\\n]|\\.)+)|" + r'\\"(?P<escaped>(?:[^"\\\n]|\\[^"\n])+)'
)
_BARE = rf"(?P<bare>(?:[^\s&'\",;}}\]\\]|\\(?!\")|[&;,](?![\s\"']|{_NAME}+[=:]|\Z))+)"
_CONTAINER = rf"[{{\[](?:[\"']|{_NAME}+:)"  # its own keys are looked at
_SCHEME = r"(?:(?i:bearer|basic|digest|token|apikey)[ \t]+)?"
_ASSIGNED = re.compile(
    rf"(?P<key>{_WORD})(?:\\?[\"'])?(?P<sign>[ \t]?=[ \t]?|:[ \t]?){_SCHEME}(?!{_CONTAINER})"
    rf"(?:{_QUOTED}|{_BARE})"
)
# `key: value` as a line or in the braces of YAML: a value without quotes may have blanks
_LINE = re.compile(
    rf"(?m)(?:^[ \t]*(?:-[ \t]+)?|[{{,][ \t]*)(?P<key>{_NAME}*?{_WORD}):[ \t]+"
    rf"(?P<bare>(?![\"'|>]|{_CONTAINER})(?:[^\n,}}]|,(?![ \t]*[\"']?{_NAME}+[\"']?[=:]))+)"
)
_JOINED = re.compile(_NAME)
_PROSE = re.compile(r"(?i)[a-z]+ [a-z]")
_PROBLEM = re.compile(r"unknown key[;,]|required, but not set")  # what config_problems says after a key
# In the authority alone (RFC 3986, 3.2), or in what AWS's secrets make of it: those have slashes.  http://host:80/...@
# has a port.
_PORT = r"(?:(?<=http://)|(?<=https://))[^\s:/@]+:\d+[/?#]"
_URL = re.compile(rf"(?<=://)(?:[^\s/?#]+|(?!{_PORT})[^\s:/@\[]+:[^\s@?#]{{1,256}})@")
_FORMS = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_\-]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,}"
    r"|(?:AKIA|ASIA)[0-9A-Z]{16}|xox[abeprs]-[A-Za-z0-9\-]{10,}|AIza[A-Za-z0-9_\-]{30,}"
    r"|(?<=[Bb]earer )[A-Za-z0-9._~+/\-]{20,}=*|(?<![\w\-])eyJ[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]+\.[A-Za-z0-9_\-]+)"
)
_NOTHING = ("", "true", "false", "null", "none", "~")
_NUMBER = re.compile(r"[+-]?[\d.]+(?:e[+-]?\d+)?", re.IGNORECASE)


def redacted(value: Any) -> Any:
    """`value`, JSON, with secrets masked: what stands under the key of a secret, and what `redacted_text` finds."""
    if isinstance(value, dict):
        return {redacted_text(key): MASK if hides(key, inner) else redacted(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [redacted(inner) for inner in value]
    return redacted_text(value) if isinstance(value, str) else value


def redacted_text(text: str) -> str:
    """`text` with credentials in URLs, values of secret keys (`password=x`, `"apiKey": "x"`, `Authorization: Bearer x`)
    and keys of well-known forms masked.

    `password: two words` is masked to its end where it is a line or in braces, as in YAML, and its first word
    elsewhere.  After the word `token:` alone, two words of letters are taken for a sentence ("token: the next one") and
    left as they are, as are a number after any `token`, and what a configuration's error says of a key.
    """
    text = _URL.sub(f"{MASK}@", text)
    text = _LINE.sub(_without_value, text)
    text = _ASSIGNED.sub(_without_value, text)
    return _FORMS.sub(MASK, text)


def is_secret(key: str) -> bool:
    """Whether a key names a secret."""
    return _KEY.search(key) is not None


def hides(key: str, value: Any) -> bool:
    """Whether `value` (JSON, or text of a command line) under `key` is a secret: nothing empty, no bool, no fraction
    is one, and under `..._token` no number, which is a count; a password may be a whole number."""
    if not is_secret(key) or not value or isinstance(value, bool | float):
        return False
    is_count = key.lower().endswith("token") and _NUMBER.fullmatch(str(value)) is not None
    return not is_count and str(value).lower() not in _NOTHING


def _without_value(match: re.Match[str]) -> str:
    """The match with its value masked, where that is one."""
    name = next(name for name in ("double", "single", "escaped", "bare") if match.groupdict().get(name))
    start, end = match.span(name)
    if name == "bare" and (_is_sentence(match) or not hides(match["key"], match[name].strip())):
        return match[0]
    return match[0][: start - match.start()] + MASK + match[0][end - match.start() :]


def _is_sentence(match: re.Match[str]) -> bool:
    """Whether what follows is said of the key: after the word `token` alone two words, else what we say ourselves."""
    if _PROBLEM.match(match.string, match.start("bare")):
        return True
    before = match.string[match.start("key") - 1 : match.start("key")]
    is_bare = match["key"].lower() == "token" and match.string[match.end("key")] == ":" and not _JOINED.match(before)
    return is_bare and _PROSE.match(match.string, match.start("bare")) is not None
