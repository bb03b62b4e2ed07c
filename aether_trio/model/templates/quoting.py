"""Strings and characters in quotes, as Go's strconv quotes them."""

from __future__ import annotations

import re
from typing import Final

_ESCAPES: Final = {"\a": r"\a", "\b": r"\b", "\f": r"\f", "\n": r"\n", "\r": r"\r", "\t": r"\t", "\v": r"\v"}
_ORDINARY: Final = re.compile(r"[ !#-\[\]-~]*")  # printable ASCII but " and \
_NO_BACKQUOTE: Final = re.compile("[\x00-\x08\x0a-\x1f`\x7f\ufeff\ud800-\udfff]")
REPLACEMENT: Final = 0xFFFD


def quote(text: str, *, ascii_only: bool) -> str:
    """Return text in double quotes, with the escapes of Go's strconv.Quote."""
    if _ORDINARY.fullmatch(text):
        return f'"{text}"'
    return f'"{"".join([_escaped(mark, chr(34), ascii_only=ascii_only) for mark in text])}"'


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
