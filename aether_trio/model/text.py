"""Checks texts of clients, and quotes them safely in errors and log lines.

A text that a client chose ends up in columns, labels of errors and lines of a log. So each has a
bound in bytes of UTF-8, contains no control characters (PostgreSQL's text has no zero byte, and a
terminal obeys the others), and is shown escaped and cut off.
"""

from __future__ import annotations

import re
from typing import Final

SHOWN: Final = 80  # characters of a value that an error quotes: enough to recognize it, on one line
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_CONTROL_BUT_SPACE: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


class TextError(ValueError):
    """A client's text is too long or has control characters; names the field."""


def shown(value: object, most: int = SHOWN) -> str:
    """Return a value as errors quote it: ASCII on one line, cut off at `most`."""
    if isinstance(value, (str, bytes)):
        value = value[: most + 1]  # what is escaped is never shorter
    text = ascii(value)
    return text if len(text) <= most else f"{text[:most]}..."


def line(text: str, most: int) -> str:
    """Return a text as one line, cut off; control characters become a visible one."""
    text = text if len(text) <= most else f"{text[: most - 1]}…"
    return text if text.isprintable() else _CONTROL.sub("\ufffd", text)


def escaped(text: str, most: int) -> str:
    """Return a text as one log line, cut off; unprintable characters are escaped."""
    text = text if len(text) <= most else f"{text[:most]}..."
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def storable(text: str) -> str:
    """Replace zero bytes by a visible character that no stored name has."""
    return text.replace("\x00", "\ufffd") if "\x00" in text else text


def encodable(text: str) -> str:
    """Replace lone surrogates, which an escape of JSON can spell and UTF-8 cannot."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def is_encodable(text: str) -> bool:
    """Return whether a text has no lone surrogate, so that a message can carry it."""
    return text.isascii() or encodable(text) == text


def check_text(text: str, what: str, most_bytes: int, *, lines: bool = False) -> str:
    """Return a client's text if it may be stored; raise TextError, which names `what`.

    `most_bytes` bounds its UTF-8. Control characters are refused; `lines` allows tabs and ends of
    lines.
    """
    if text.isascii():
        if len(text) <= most_bytes and text.isprintable():
            return text
        size = len(text)
    else:
        try:
            size = len(text.encode())
        except UnicodeEncodeError:
            raise TextError(f"{what} has a lone surrogate and cannot be written as UTF-8") from None
    if size > most_bytes:
        raise TextError(f"{what} has {size} bytes; at most {most_bytes} are allowed")
    found = (_CONTROL_BUT_SPACE if lines else _CONTROL).search(text)
    if found is not None:
        raise TextError(f"{what} contains the control character {found[0]!r}, which is not allowed there")
    return text
