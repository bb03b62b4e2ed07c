"""What a worker counts.

Plain numbers, so that counting costs the load little; the coordinator makes histograms of them.

Counts and errors only grow; latencies are handed over with each report and forgotten here.
"""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict
from typing import Any

from bench import numbered


class Ledger(numbered.Ledger):
    """As the bench's, and it can say which numbers are missing."""

    __slots__ = ()

    def missing(self, sent: int) -> set[int]:
        """The numbers below `sent` that have not arrived."""
        return {number for number in self._missing if number < sent} | set(range(self.next, sent))


class Recorder:
    """All counts of one worker. Times are nanoseconds."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.texts: dict[str, str] = {}
        self.connected = 0
        self.gave_up = 0
        self.first_due_ns = 0
        """When the first user was to connect."""
        self.last_new_ns = 0
        """When the last user that came for the first time was connected. Both are of the clock that
        all processes share.
        """
        self.latencies: defaultdict[str, array[int]] = defaultdict(lambda: array("q"))

    def error(self, code: str, text: str = "") -> None:
        """Something that was refused or broke; the first text of each code is kept."""
        self.errors[code] += 1
        if text and code not in self.texts:
            self.texts[code] = text[:300]

    def latency(self, series: str, ns: int) -> None:
        """One measured time."""
        self.latencies[series].append(ns)

    def report(self) -> dict[str, Any]:
        """Everything so far as JSON values.

        Latencies in whole microseconds, since the last report only.
        """
        taken = {name: [ns // 1000 for ns in values] for name, values in self.latencies.items() if values}
        self.latencies.clear()
        return {
            "connected": self.connected,
            "gave_up": self.gave_up,
            "first_due_ns": self.first_due_ns,
            "last_new_ns": self.last_new_ns,
            "counts": dict(self.counts),
            "errors": dict(self.errors),
            "texts": dict(self.texts),
            "latencies": taken,
        }
