"""The text of a page: HTML's tags, scripts and comments go, blocks become lines."""

from __future__ import annotations

import re
from html.parser import HTMLParser

from rayrlhf.data.cleaning.config import StripHtml
from rayrlhf.data.cleaning.verdict import Operator

_NAMES = (
    "a|abbr|address|article|aside|b|blockquote|body|br|button|caption|center|cite|code|dd|del|details|div|dl|dt|em|"
    "fieldset|figcaption|figure|font|footer|form|h[1-6]|head|header|hr|html|i|iframe|img|input|ins|label|li|link|main|"
    "mark|meta|nav|noscript|object|ol|option|p|pre|q|s|script|section|select|small|span|strike|strong|style|sub|"
    "summary|sup|svg|table|tbody|td|textarea|tfoot|th|thead|title|tr|tt|u|ul|video"
)
# with attributes only where one has a value: a<b and c>d is no tag
TAG = re.compile(rf"</?(?:{_NAMES})(?:\s[^<>]*=[^<>]*|\s*)/?>|<!--.*?-->|<!doctype[^>]*>", re.IGNORECASE | re.DOTALL)
ENTITY = re.compile(r"&(?:[a-zA-Z][a-zA-Z0-9]{1,31}|#\d{1,7}|#[xX][0-9a-fA-F]{1,6});")
_SILENT = frozenset(("script", "style", "noscript", "svg", "iframe", "object", "head"))
_BLOCKS = frozenset(
    "address article aside blockquote br caption center dd details div dl dt fieldset figcaption figure footer form h1 "
    "h2 h3 h4 h5 h6 header hr li main nav ol p pre section summary table tr ul title".split()
)


class _Text(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._silent: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag in _SILENT:
            self._silent.append(tag)
        elif not TAG.fullmatch(f"<{tag}>"):
            self._literal(self.get_starttag_text() or "")
        elif tag in _BLOCKS:
            self.parts.append("\n")
        elif tag in ("td", "th"):
            self.parts.append(" ")

    def handle_endtag(self, tag: str) -> None:
        if tag in self._silent:
            del self._silent[self._silent.index(tag) :]
        elif tag in _BLOCKS:
            self.parts.append("\n")
        elif not TAG.fullmatch(f"</{tag}>"):
            self._literal(f"</{tag}>")

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self.parts.append(data)

    def _literal(self, text: str) -> None:
        """Something in angle brackets that is no tag of HTML: <EMAIL>, vector<int>."""
        if not self._silent:
            self.parts.append(text)


def strip_html(text: str) -> str:
    """`text` without HTML; text that has no tag of HTML is left as it is, entities too."""
    if TAG.search(text) is None:
        return text
    parser = _Text()
    parser.feed(text)
    parser.close()
    return re.sub(r"[ \t]*\n\s*\n\s*", "\n", "".join(parser.parts)).strip()


def build(config: StripHtml) -> Operator:
    """`strip_html`, which has no settings."""
    return strip_html
