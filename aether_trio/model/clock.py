"""The clock of a gateway: calendar time and monotonic time.

`now_ms` is a calendar time to be stored and shown: message timestamps, expiry of keys and tokens.
`monotonic` measures how long something took or may take; it never jumps, and it means nothing
outside this process.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, Protocol

MAX_HOLD_MS: Final = 1_000  # how far the wall clock may step back before `SystemClock` follows it


class Clock(Protocol):
    """Gives calendar time and monotonic time; both calls are cheap and never block."""

    def now_ms(self) -> int:
        """Return Unix time in milliseconds."""

    def monotonic(self) -> float:
        """Return seconds since some fixed moment; trio's time when the gateway runs."""


class SystemClock:
    """The machine's clock, without small steps back.

    When the machine's clock steps back by up to MAX_HOLD_MS (a time daemon's correction), `now_ms`
    stands still until the machine has caught up, so timestamps do not run backwards. A larger step
    back means that the clock was set, and is followed at once: standing still for that long would
    keep expired keys alive. Nothing may depend on `now_ms` for order; order is the log's offsets.

    The gateway gives `trio.current_time` as `monotonic`, so that deadlines computed from it fit
    trio's own.
    """

    def __init__(
        self, monotonic: Callable[[], float] = time.monotonic, wall_ns: Callable[[], int] = time.time_ns
    ) -> None:
        self._monotonic = monotonic
        self._wall_ns = wall_ns
        self._latest_ms = wall_ns() // 1_000_000

    def now_ms(self) -> int:
        wall_ms = self._wall_ns() // 1_000_000
        if self._latest_ms - MAX_HOLD_MS <= wall_ms < self._latest_ms:
            return self._latest_ms
        self._latest_ms = wall_ms
        return wall_ms

    def monotonic(self) -> float:
        return self._monotonic()
