"""Clocks for tests: one follows trio's virtual clock, one moves when told to."""

from __future__ import annotations

from collections.abc import Callable


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
