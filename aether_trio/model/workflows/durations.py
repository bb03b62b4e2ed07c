"""Reads durations as Go writes them, and days and weeks: "90s", "1.5h", "2d"."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Final

_PART: Final = re.compile(r"(\d{1,18}(?:\.\d{0,18})?|\.\d{1,18})([a-zA-Z\u00b5\u03bc]*)", re.ASCII)
_UNITS: Final = {
    "ns": Fraction(1, 1_000_000),
    "us": Fraction(1, 1_000),
    "\u00b5s": Fraction(1, 1_000),
    "\u03bcs": Fraction(1, 1_000),
    "ms": Fraction(1),
    "s": Fraction(1_000),
    "m": Fraction(60_000),
    "h": Fraction(3_600_000),
    "d": Fraction(86_400_000),
    "w": Fraction(604_800_000),
}
MAX_LENGTH: Final = 64
MAX_MS: Final = 100 * 366 * 86_400_000
"""The longest duration: a hundred years."""


class DurationError(ValueError):
    """A text is not a duration; `column` is where, from 1."""

    def __init__(self, message: str, column: int) -> None:
        super().__init__(message)
        self.column = column


def duration_ms(text: str) -> int:
    """Return a duration in milliseconds. Raises DurationError.

    It is not negative. "0" needs no unit. Parts of a millisecond are rounded up, so that nothing
    but 0 gives 0, which is "not" in definitions.
    """
    if text == "0":
        return 0
    if not text:
        raise DurationError("a duration is empty: write one such as 90s, 5m or 1h30m", 1)
    if len(text) > MAX_LENGTH:
        raise DurationError(f"a duration has at most {MAX_LENGTH} characters", MAX_LENGTH + 1)
    total, place = Fraction(0), 0
    while place < len(text):
        found = _PART.match(text, place)
        if found is None:
            raise DurationError(f"{text[place:]!a} is not a duration such as 90s, 5m or 1h30m", place + 1)
        number, unit = found.groups()
        if unit not in _UNITS:
            what = f"the unit {unit!a} is unknown" if unit else f"the number {number} has no unit"
            raise DurationError(f"{what}: there are w, d, h, m, s and ms", found.start(2) + 1)
        total += Fraction(number) * _UNITS[unit]
        place = found.end()
    if total > MAX_MS:
        raise DurationError("the duration is longer than a hundred years", 1)
    return -(-total.numerator // total.denominator)
