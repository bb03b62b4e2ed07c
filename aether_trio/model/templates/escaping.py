"""The escapes of html, js, urlquery, and the frame of those of quoted strings.

Each replaces single characters. Long texts are handled in pieces, and each replacement is charged
for, so a text of nothing but special characters ends a rendering early.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from aether_trio.model.templates.budget import Meter
from aether_trio.model.templates.values import to_bytes

Escape = Callable[[str, bool], tuple[str, int]]
"""Gets a piece, and whether it has unprintable characters beyond ASCII; returns what it becomes,
and how many characters it has looked at."""

PIECE: Final = 4096  # characters
_REPLACED_COSTS: Final = 32  # bytes that are charged for each character an escape looks at
_WIDE_COSTS: Final = 4  # times the length of a piece with characters beyond ASCII

_HTML: Final = {"\0": "\ufffd", '"': "&#34;", "'": "&#39;", "&": "&amp;", "<": "&lt;", ">": "&gt;"}
_HTML_SPECIAL: Final = re.compile("[\0\"'&<>]")
_BACKSLASHED: Final = {"\\": r"\\", "'": r"\'", '"': r"\""}
_JAVASCRIPT_SPECIAL: Final = re.compile("[\\\\'\"<>&=\x00-\x1f]")
_JAVASCRIPT_OR_WIDE: Final = re.compile("[\\\\'\"<>&=\x00-\x1f\x80-\U0010ffff]")
_QUERY: Final = {chr(byte): f"%{byte:02X}" for byte in range(256)} | {" ": "+"}
_QUERY_SPECIAL: Final = re.compile(r"[^A-Za-z0-9_.~-]", re.ASCII)
_NO_CONTROLS: Final = dict.fromkeys([*range(0x20), 0x7F])


def in_pieces(text: str, escape: Escape, meter: Meter) -> str:
    """Return text with an escape applied to each piece of it, and charge for it."""
    pieces: list[str] = []
    for start in range(0, len(text), PIECE):
        piece = text[start : start + PIECE]
        cost, unprintable = 1, False
        if not piece.isascii():
            unprintable = not (piece.isprintable() or piece.translate(_NO_CONTROLS).isprintable())
            cost = _WIDE_COSTS
        meter.charge_text(len(piece) * cost)
        escaped, count = escape(piece, unprintable)
        meter.charge_text(count * _REPLACED_COSTS)
        pieces.append(escaped)
    return "".join(pieces)


def escape_html(text: str, meter: Meter) -> str:
    """Return text with the characters that HTML gives a meaning as references."""
    return in_pieces(text, lambda piece, _: _HTML_SPECIAL.subn(lambda match: _HTML[match[0]], piece), meter)


def escape_javascript(text: str, meter: Meter) -> str:
    """Return text as the inside of a JavaScript string; printable Unicode stays."""
    return in_pieces(text, _javascript, meter)


def _javascript(piece: str, unprintable: bool) -> tuple[str, int]:
    special = _JAVASCRIPT_OR_WIDE if unprintable else _JAVASCRIPT_SPECIAL
    return special.subn(_escaped_for_javascript, piece)


def _escaped_for_javascript(match: re.Match[str]) -> str:
    mark = match[0]
    code = ord(mark)
    if code >= 0x80 and (mark.isprintable() or 0xDC80 <= code <= 0xDCFF):
        return mark
    return _BACKSLASHED.get(mark) or rf"\u{code:04X}"


def escape_query(text: str, meter: Meter) -> str:
    """Return text as a value in the query of a URL."""
    raw = to_bytes(text).decode("latin-1")  # a character for each byte
    return in_pieces(raw, lambda piece, _: _QUERY_SPECIAL.subn(lambda match: _QUERY[match[0]], piece), meter)
