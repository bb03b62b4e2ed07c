"""The escapes of the functions html, js and urlquery."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import quote_plus

from aether_trio.model.templates.values import to_bytes

_HTML: Final = {
    0: "\ufffd",
    ord('"'): "&#34;",
    ord("'"): "&#39;",
    ord("&"): "&amp;",
    ord("<"): "&lt;",
    ord(">"): "&gt;",
}
_JAVASCRIPT: Final = re.compile("[\\\\'\"<>&=\x00-\x1f\x80-\U0010ffff]")
_BACKSLASHED: Final = {"\\": r"\\", "'": r"\'", '"': r"\""}


def escape_html(text: str) -> str:
    """Return text with the characters that HTML gives a meaning as references."""
    return text.translate(_HTML)


def escape_javascript(text: str) -> str:
    """Return text as the inside of a JavaScript string; printable Unicode stays."""
    return _JAVASCRIPT.sub(_escaped_for_javascript, text)


def _escaped_for_javascript(match: re.Match[str]) -> str:
    mark = match[0]
    code = ord(mark)
    if code >= 0x80 and (mark.isprintable() or 0xDC80 <= code <= 0xDCFF):
        return mark
    return _BACKSLASHED.get(mark) or rf"\u{code:04X}"


def escape_query(text: str) -> str:
    """Return text as a value in the query of a URL."""
    return quote_plus(to_bytes(text), safe="")
