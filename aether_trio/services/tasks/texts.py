"""Texts of clients on their way into columns: bounded, and without the zero byte, which PostgreSQL does not store in text."""

from __future__ import annotations

from typing import Final

MAX_REASON: Final = 4_096
"""Characters of a reason: it is shown in every list, and sent with every event."""


def storable(text: str) -> str:
    """The text with its zero bytes made visible. What is looked for with one is found nowhere."""
    return text.replace("\x00", "\ufffd") if "\x00" in text else text


def reason(text: str) -> str:
    """A reason, cut off where it is too long."""
    return storable(text if len(text) <= MAX_REASON else f"{text[: MAX_REASON - 1]}…")
