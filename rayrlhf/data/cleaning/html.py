"""The text of a page: HTML's tags, scripts and comments go, blocks become lines."""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterator
from html import unescape

from rayrlhf.data.cleaning.config import StripHtml
from rayrlhf.data.cleaning.verdict import Operator

_NAMES = (
    "a|abbr|address|article|aside|b|blockquote|body|br|button|caption|center|cite|code|dd|del|details|div|dl|dt|em|"
    "fieldset|figcaption|figure|font|footer|form|h[1-6]|head|header|hr|html|i|iframe|img|input|ins|label|li|link|main|"
    "mark|meta|nav|noscript|object|ol|option|p|pre|q|s|script|section|select|small|span|strike|strong|style|sub|"
    "summary|sup|svg|table|tbody|td|textarea|tfoot|th|thead|title|tr|tt|u|ul|video"
)
# with attributes only where one has a value: a<b and c>d is no tag
TAG = re.compile(
    rf"</?(?:{_NAMES})(?:\s[^<>=]*=[^<>]*|\s*)/?>|<!--(?:(?!<!--).)*?-->|<!doctype[^<>]*>", re.IGNORECASE | re.DOTALL
)
ENTITY = re.compile(r"&(?:[a-zA-Z][a-zA-Z0-9]{1,31}|#\d{1,7}|#[xX][0-9a-fA-F]{1,6});")
# where a text has a tag, whatever looks like one; what is in quotes may have a >.  No part goes past the next <
_MARKUP = re.compile(
    rf"<!--|<(?P<end>/?)(?P<name>{_NAMES})(?=[\s/>])(?:=\s*(?:\"[^\"<]*\"|'[^'<]*')|[^<>])*+>|<[!?][A-Za-z\[][^<>]*>",
    re.IGNORECASE,
)
_SILENT = frozenset(("script", "style", "noscript", "svg", "iframe", "object"))
_SILENT_END = re.compile(r"</(script|style|noscript|svg|iframe|object|title)\s*>", re.IGNORECASE)
_IN_HEAD = frozenset(("html", "title", "meta", "link", "script", "style", "noscript"))  # any other tag ends a head
_BLOCKS = frozenset(
    "address article aside blockquote br caption center dd details div dl dt fieldset figcaption figure footer form h1 "
    "h2 h3 h4 h5 h6 header hr li main nav ol p pre section summary table tr ul title".split()
)


def strip_html(text: str) -> str:
    """`text` without HTML; text that has no tag of HTML is left as it is, entities too.

    What a script, a style or the title of a head holds goes only where its end tag follows: a tag that is merely
    mentioned swallows nothing.
    """
    if TAG.search(text) is None:
        return text
    return re.sub(r"(?<![ \t])[ \t]*\n\s*\n\s*", "\n", "".join(_parts(text))).strip()


def _parts(text: str) -> Iterator[str]:
    """What is shown, and breaks."""
    ends: dict[str, list[int]] = {}  # tag -> where its end tags end
    for end in _SILENT_END.finditer(text):
        ends.setdefault(end[1].lower(), []).append(end.end())
    last_comment = text.rfind("-->")
    at, in_head = 0, False
    while (match := _MARKUP.search(text, at)) is not None:
        before, name = text[at : match.start()], (match["name"] or "").lower()
        at, in_head = match.end(), in_head and not before.strip()
        yield unescape(before)
        if not name:
            is_comment = match.group() == "<!--"
            if is_comment and at > last_comment:
                yield match.group()  # never closed
            elif is_comment:
                at = text.index("-->", at) + len("-->")
            continue
        in_head = name == "head" and not match["end"] or in_head and name in _IN_HEAD
        if not match["end"] and (name in _SILENT or (name == "title" and in_head)):
            later = bisect.bisect_right(ends.get(name, []), at)
            at = ends[name][later] if later < len(ends.get(name, [])) else at
        elif name in _BLOCKS:
            yield "\n"
        elif name in ("td", "th") and not match["end"]:
            yield " "
    yield unescape(text[at:])


def build(config: StripHtml) -> Operator:
    """`strip_html`, which has no settings."""
    return strip_html
