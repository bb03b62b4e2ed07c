"""Clocks that give the gateway calendar time and monotonic time, also in tests.

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


class VirtualClock:
    """A test clock: calendar time that follows a monotonic source, such as trio's.

    With `monotonic=trio.current_time` under an autojump clock, a key with a TTL of an hour expires
    when the test has slept for an hour of virtual time. `epoch_ms` is the calendar time at the
    moment of construction.
    """

    def __init__(self, monotonic: Callable[[], float], epoch_ms: int = 1_700_000_000_000) -> None:
        self._monotonic = monotonic
        self._start = monotonic()
        self._epoch_ms = epoch_ms

    def now_ms(self) -> int:
        return self._epoch_ms + int((self._monotonic() - self._start) * 1_000)

    def monotonic(self) -> float:
        return self._monotonic()


class ManualClock:
    """A test clock that moves only when the test says so; it needs no trio run."""

    def __init__(self, epoch_ms: int = 1_700_000_000_000) -> None:
        self._now_ms = epoch_ms
        self._elapsed_ms = 0

    def now_ms(self) -> int:
        return self._now_ms

    def monotonic(self) -> float:
        return self._elapsed_ms / 1_000

    def advance(self, ms: int) -> None:
        """Advance calendar time and monotonic time; ValueError for a negative time."""
        if ms < 0:
            raise ValueError(f"cannot advance by {ms} ms; use set_wall to set the calendar back")
        self._now_ms += ms
        self._elapsed_ms += ms

    def set_wall(self, now_ms: int) -> None:
        """Set the calendar time alone, as an operator or a time daemon does."""
        self._now_ms = now_ms
