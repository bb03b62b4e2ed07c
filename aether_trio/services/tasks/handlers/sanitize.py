"""Bound texts of clients, and replace zero bytes, which PostgreSQL does not store."""

from __future__ import annotations

from typing import Final

from aether_trio.model.text import storable

MAX_REASON: Final = 4_096
"""Characters of a reason: lists show it, and events carry it."""


def number_of(text: str, most: int) -> int | None:
    """Parse a number from 0 to `most` in a client's text; None for any other text."""
    # int() takes long for many digits, and refuses more than 4,300.
    if not (text.isascii() and text.isdigit()) or len(text) > len(str(most)):
        return None
    number = int(text)
    return number if number <= most else None


def reason(text: str) -> str:
    """Shorten a client's reason to MAX_REASON characters, and make it storable."""
    return storable(text if len(text) <= MAX_REASON else f"{text[: MAX_REASON - 1]}…")
