"""Texts of clients on their way into columns: bounded, and without the zero byte, which PostgreSQL does not store in text."""

from __future__ import annotations

from typing import Final

MAX_REASON: Final = 4_096
"""Characters of a reason: it is shown in every list, and sent with every event."""


def storable(text: str) -> str:
    """The text with its zero bytes made visible. What is looked for with one is found nowhere."""
    return text.replace("\x00", "\ufffd") if "\x00" in text else text


def number_of(text: str, most: int) -> int | None:
    """The number that these digits are; None if they are no number from 0 to `most`.

    Python refuses to read one of more than 4,300 digits, and takes long for a shorter one.
    """
    if not (text.isascii() and text.isdigit()) or len(text) > len(str(most)):
        return None
    number = int(text)
    return number if number <= most else None


def reason(text: str) -> str:
    """A reason, cut off where it is too long."""
    return storable(text if len(text) <= MAX_REASON else f"{text[: MAX_REASON - 1]}…")
