"""The reports of all workers put together: totals, and one row for each second."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from bench.latency import Latencies

US_PER_MS = 1000.0
NS_PER_US = 1000
SERIES = {
    "message": "message, from the moment it was due to its arrival",
    "slow": "message to a slow reader",
    "ack": "message, from the moment it was due to its acknowledgement",
    "connect": "connection, from the moment it was due to the gateway's ack",
    "back": "coming back, from the cut to the gateway's ack",
}


@dataclass(frozen=True, slots=True)
class Row:
    """One second of the run.

    Rates are per second, times milliseconds; None where nothing was measured.
    """

    at_s: float
    phase: str
    connected: int
    connects: float
    sent: float
    received: float
    errors: float
    p50_ms: float | None = None
    p99_ms: float | None = None
    max_ms: float | None = None
    rss_mib: float | None = None
    gateway_cores: float | None = None
    load_cores: float = 0.0


@dataclass(frozen=True, slots=True)
class Mark:
    """Something that happened at a moment."""

    at_s: float
    text: str


def percentile(ordered: list[int], per_cent: float) -> float:
    """Of an ordered, not empty list; the nearest rank."""
    return float(ordered[max(0, math.ceil(len(ordered) * per_cent / 100) - 1)])


class Timeline:
    """Fed with reports, closed every second by `row`."""

    def __init__(self, workers: int) -> None:
        self._latest: list[dict[str, Any]] = [{} for _ in range(workers)]
        self._fresh: list[int] = []  # microseconds of messages since the last row
        self._before: Counter[str] = Counter()
        self._before_at = 0.0
        self._before_cpu = 0.0
        self.latencies: dict[str, Latencies] = {}
        self.rows: list[Row] = []
        self.marks: list[Mark] = []

    def feed(self, worker: int, line: dict[str, Any]) -> None:
        """One report."""
        self._latest[worker] = line
        for series, values in line["latencies"].items():
            kept = self.latencies.setdefault(series, Latencies())
            kept.pending.extend(value * NS_PER_US for value in values)
            if series == "message":
                self._fresh += values

    def _sum(self, name: str) -> int:
        return sum(line.get(name, 0) for line in self._latest)

    @property
    def connected(self) -> int:
        """Connections that stand now."""
        return self._sum("connected")

    @property
    def gave_up(self) -> int:
        """Users that were refused for good."""
        return self._sum("gave_up")

    @property
    def came_in_s(self) -> float:
        """Give the time from when the first user was due until the last was connected."""
        first = [line["first_due_ns"] for line in self._latest if line.get("first_due_ns")]
        last = [line["last_new_ns"] for line in self._latest if line.get("last_new_ns")]
        return max(0, max(last) - min(first)) / NS_PER_US / 1e6 if first and last else 0.0

    @property
    def counts(self) -> Counter[str]:
        """What was counted so far."""
        return self._merged("counts")

    @property
    def errors(self) -> Counter[str]:
        """Errors so far by code."""
        return self._merged("errors")

    @property
    def texts(self) -> dict[str, str]:
        """One text for each code."""
        return {code: text for line in self._latest for code, text in line.get("texts", {}).items()}

    def _merged(self, name: str) -> Counter[str]:
        total: Counter[str] = Counter()
        for line in self._latest:
            total.update(line.get(name, {}))
        return total

    def row(self, at_s: float, phase: str, rss_kib: int | None, gateway_cores: float | None) -> Row:
        """Close the second that ends at `at_s`."""
        counts = self.counts
        counts["errors"] = self.errors.total()
        seconds = max(1e-3, at_s - self._before_at)
        cpu = sum(line.get("cpu_s", 0.0) for line in self._latest)
        fresh = sorted(self._fresh)
        rate = {
            name: max(0, counts[name] - self._before[name]) / seconds
            for name in ("connects", "sent", "received", "errors")
        }
        made = Row(
            round(at_s, 2), phase, self.connected, **rate,
            p50_ms=percentile(fresh, 50) / US_PER_MS if fresh else None,
            p99_ms=percentile(fresh, 99) / US_PER_MS if fresh else None,
            max_ms=fresh[-1] / US_PER_MS if fresh else None,
            rss_mib=rss_kib / 1024 if rss_kib else None,
            gateway_cores=gateway_cores,
            load_cores=max(0.0, cpu - self._before_cpu) / seconds if self._before_cpu else 0.0,
        )  # fmt: skip
        self._before, self._before_at, self._before_cpu = counts, at_s, cpu
        self._fresh = []
        self.rows.append(made)
        return made

    def mark(self, at_s: float, text: str) -> None:
        """Remember a moment."""
        self.marks.append(Mark(round(at_s, 2), text))

    def summaries(self) -> dict[str, dict[str, Any]]:
        """Count and percentiles in milliseconds of every series that has values."""
        found: dict[str, dict[str, Any]] = {}
        for series in SERIES:
            if (kept := self.latencies.get(series)) is None:
                continue
            kept.close_window()
            if summary := kept.summary():
                found[series] = {"count": summary["count"]} | {
                    name: round(value / US_PER_MS, 3) for name, value in summary["all"].items()
                }
        return found

    def spectrum(self, series: str) -> list[tuple[float, float]]:
        """Give the distribution as (1 / (1 - quantile), milliseconds): its tail drawn out."""
        kept = self.latencies.get(series)
        total = kept.total.get_total_count() if kept else 0
        if kept is None or not total:
            return []
        points, nines = [], 1.0
        while nines <= total:
            value = kept.total.get_value_at_percentile(100 * (1 - 1 / nines))
            points.append((nines, value / NS_PER_US / US_PER_MS))
            nines *= 1.25
        points.append((float(total), kept.total.get_max_value() / NS_PER_US / US_PER_MS))
        return points


def as_json(rows: Iterable[Row | Mark]) -> list[dict[str, Any]]:
    """Rows or marks as JSON values."""
    return [asdict(row) for row in rows]
