"""Strings and characters in quotes, as Go's strconv quotes them."""

from __future__ import annotations

import re
from typing import Final

from aether_trio.model.templates.budget import Meter
from aether_trio.model.templates.escaping import in_pieces

_ESCAPES: Final = {"\a": r"\a", "\b": r"\b", "\f": r"\f", "\n": r"\n", "\r": r"\r", "\t": r"\t", "\v": r"\v"}
_SPECIAL: Final = re.compile('[\x00-\x1f\x7f"\\\\]')
_SPECIAL_OR_WIDE: Final = re.compile('[\x00-\x1f\x7f-\U0010ffff"\\\\]')
_NO_BACKQUOTE: Final = re.compile("[\x00-\x08\x0a-\x1f`\x7f\ufeff\ud800-\udfff]")
REPLACEMENT: Final = 0xFFFD


def quote(text: str, meter: Meter, *, ascii_only: bool) -> str:
    """Return text in double quotes, with the escapes of Go's strconv.Quote."""

    def escape(piece: str, unprintable: bool) -> tuple[str, int]:
        special = _SPECIAL_OR_WIDE if ascii_only or unprintable else _SPECIAL
        return special.subn(lambda match: _escaped(match[0], '"', ascii_only=ascii_only), piece)

    return f'"{in_pieces(text, escape, meter)}"'


def quote_character(code: int, *, ascii_only: bool) -> str:
    """Return a code point in single quotes, as Go's strconv.QuoteRune does."""
    return f"'{_escaped(chr(valid_character(code)), chr(39), ascii_only=ascii_only)}'"


def valid_character(code: int) -> int:
    """Return a code point, or U+FFFD in place of what is none."""
    return code if 0 <= code < 0xD800 or 0xE000 <= code <= 0x10FFFF else REPLACEMENT


def can_backquote(text: str) -> bool:
    """Return whether text can be in backquotes on one line without a change."""
    return not _NO_BACKQUOTE.search(text)


def _escaped(mark: str, around: str, *, ascii_only: bool) -> str:
    if mark in (around, "\\"):
        return "\\" + mark
    code = ord(mark)
    if mark.isprintable() and (code < 0x80 or not ascii_only):
        return mark
    if mark in _ESCAPES:
        return _ESCAPES[mark]
    if 0xDC80 <= code <= 0xDCFF:
        return rf"\x{code - 0xDC00:02x}"  # a byte that is no UTF-8
    if code < 0x20 or code == 0x7F:
        return rf"\x{code:02x}"
    code = valid_character(code)
    return rf"\u{code:04x}" if code < 0x10000 else rf"\U{code:08x}"
