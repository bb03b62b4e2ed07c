"""Limits how often an HTTP/2 peer may send frames that are costly to handle.

One counter per kind, which leaks. Below its burst a frame costs one increment; beyond it the time
is asked for, and a kind still over its burst ends the connection with ENHANCE_YOUR_CALM.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Final

from aether_trio.transport.http2.frames import Http2ErrorCode, Http2Violation
from aether_trio.transport.http2.limits import Allowance, Allowances

SETTINGS_FLOOD: Final = 0
PING_FLOOD: Final = 1
RESET_FLOOD: Final = 2
EMPTY_DATA_FLOOD: Final = 3
PRIORITY_FLOOD: Final = 4
WINDOW_UPDATE_FLOOD: Final = 5
STRAY_DATA_FLOOD: Final = 6
UNKNOWN_FRAME_FLOOD: Final = 7

REASONS: Final = (
    "settings_flood",
    "ping_flood",
    "rapid_reset",
    "empty_data_flood",
    "priority_flood",
    "window_update_flood",
    "stray_data_flood",
    "unknown_frame_flood",
)


def allowance_table(allowances: Allowances) -> tuple[Allowance, ...]:
    """Return the allowances for costly frames in the order of their counters."""
    return tuple(getattr(allowances, one.name) for one in fields(allowances))


class FloodBudgets:
    """Counts one HTTP/2 connection's costly frames, by kind, against the allowances."""

    __slots__ = ("_clock", "_counters", "_started", "_table")

    def __init__(self, allowances: tuple[Allowance, ...], clock: Callable[[], float]) -> None:
        self._table = allowances
        self._clock = clock
        self._started = clock()
        self._counters: list[int] | None = None

    def spend(self, kind: int, earned: int = 0) -> None:
        """Count a costly frame of `kind`; raise Http2Violation when it is one too many.

        `earned` is the connection's running total of events that excuse one frame each.
        """
        counters = self._counters
        if counters is None:
            # Spent, then forgiven so far, per kind.
            counters = self._counters = [0] * (2 * len(self._table))
        counters[kind] += 1
        allowance = self._table[kind]
        if counters[kind] > allowance.burst:
            self._forgive(kind, allowance, earned, counters)

    def _forgive(self, kind: int, allowance: Allowance, earned: int, counters: list[int]) -> None:
        # Forgiveness is counted from the connection's start, in whole tokens, so that nothing is
        # forgiven twice; what leaked away while the bucket was not full is not saved up, for the
        # count never goes below zero.
        slot = len(self._table) + kind
        total = int((self._clock() - self._started) * allowance.per_second) + earned
        counters[kind] = max(0, counters[kind] - (total - counters[slot]))
        counters[slot] = total
        if counters[kind] > allowance.burst:
            raise Http2Violation(Http2ErrorCode.ENHANCE_YOUR_CALM, REASONS[kind])
