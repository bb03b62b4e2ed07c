"""Collect latencies while a window runs, and count them when it is over.

The counts are HDR histograms.

Appending to an array costs a tenth of recording into a histogram, and the load's CPU is the scarcer
thing.
"""

from __future__ import annotations

from array import array
from collections import Counter
from typing import Any

from hdrh.histogram import HdrHistogram

LOWEST_NS = 1
HIGHEST_NS = 120 * 10**9
DIGITS = 3
COARSE_NS = 10_000
PERCENTILES = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p99.9": 99.9}


class Latencies:
    """The latencies of a scenario in ns: of all windows, and of the best window."""

    def __init__(self) -> None:
        self.pending = array("q")
        self.total = HdrHistogram(LOWEST_NS, HIGHEST_NS, DIGITS)
        self._best: dict[str, float] = {}
        self._coarse: Counter[int] = Counter()

    def close_window(self) -> None:
        """Count what the window collected. The best window is the one with the lowest p99."""
        if not self.pending:
            return
        window = HdrHistogram(LOWEST_NS, HIGHEST_NS, DIGITS)
        for value in self.pending:
            window.record_value(min(max(value, LOWEST_NS), HIGHEST_NS))
        del self.pending[:]
        self.total.add(window)
        seen = percentiles_us(window)
        if not self._best or seen["p99"] < self._best["p99"]:
            self._best = seen

    def drop_window(self) -> None:
        del self.pending[:]

    def fold(self) -> int:
        """Count what is pending to 10 us, without a pause; give the longest in ns, or 0."""
        longest = max(self.pending, default=0)
        # A method of C for each, and counted in C: a histogram would take ten times as long.
        self._coarse.update(map(COARSE_NS.__rfloordiv__, self.pending))
        del self.pending[:]
        return longest

    def summary(self) -> dict[str, Any]:
        """Microseconds over all windows and in the best one; {} without records."""
        for step, count in self._coarse.items():
            self.total.record_value(min(max(step * COARSE_NS, LOWEST_NS), HIGHEST_NS), count)
        self._coarse.clear()
        if not self.total.get_total_count():
            return {}
        return {
            "count": self.total.get_total_count(),
            "all": percentiles_us(self.total),
            "best_window": dict(self._best),
            "hdr": self.total.encode().decode(),
        }


def percentiles_us(histogram: HdrHistogram) -> dict[str, float]:
    seen = {name: histogram.get_value_at_percentile(at) / 1000 for name, at in PERCENTILES.items()}
    return seen | {"max": histogram.get_max_value() / 1000}
