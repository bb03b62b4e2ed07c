"""Computes how long a client pauses before its next attempt to connect.

The pause is uniform between 0 and a bound that doubles with each failure (full jitter), so that ten
thousand clients that were cut together do not come back together. Tests give the randomness.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Retry:
    """Limits of a client's reconnecting: pauses in seconds, and attempts in a row."""

    base_s: float = 0.25
    """The bound of the first pause."""
    cap_s: float = 30.0
    max_attempts: int | None = None
    """Attempts in a row that may fail; None tries for ever, 0 never reconnects."""
    steady_s: float = 1.0
    """A connection that lasted this long resets the count of failures."""
    random: Callable[[], float] = random.random

    def __post_init__(self) -> None:
        if self.base_s < 0 or self.cap_s < self.base_s:
            raise ValueError(
                f"Retry(base_s={self.base_s}, cap_s={self.cap_s}) is invalid; expected 0 <= base_s <= cap_s"
            )
        if self.max_attempts is not None and self.max_attempts < 0:
            raise ValueError(
                f"Retry(max_attempts={self.max_attempts}) is negative; 0 never reconnects, None always does"
            )

    def exhausted(self, failures: int) -> bool:
        """Return whether the client gives up after this many failed attempts in a row."""
        return self.max_attempts is not None and failures > self.max_attempts

    def pause_s(self, failures: int, retry_after_s: float = 0.0) -> float:
        """Return the pause after `failures` failed attempts, at least `retry_after_s`."""
        bound = min(self.cap_s, self.base_s * 2.0 ** min(failures, 64))
        return retry_after_s + bound * self.random()
