"""What an hour of samples says: what grows, what is level, and where it paused.

A figure rises when its least-squares line does beyond twice its standard error, and by more than a
twentieth of the mean in the time that was watched. The first quarter does not count: caches fill,
and nothing is old enough to be deleted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any, Final

from bench.units import Window, trend

PAUSE_NS: Final = 100_000_000
MACHINE_SHARE: Final = 0.5
"""A pause is the machine's when the echo took this share of it, or the wait for a CPU."""
SKIPPED: Final = 0.25
TOLERANCE: Final = 0.05
MOST_PAUSES: Final = 1000


@dataclass(frozen=True, slots=True)
class Sample:
    """A second: when it ended, messages so far, sizes, and its longest latencies.

    `waited_ns` is how long the gateway's main thread was ready in it and had no CPU.
    """

    at_s: float
    messages: int
    rss_kib: int
    wal_bytes: int
    file_bytes: int
    fds: int
    longest_ns: int
    echo_ns: int
    waited_ns: int


@dataclass(slots=True)
class Pause:
    """Samples behind each other in which something took longer than PAUSE_NS."""

    from_s: float
    until_s: float
    longest_ns: int
    echo_ns: int
    waited_ns: int

    @property
    def of_machine(self) -> bool:
        """Whether the echo was late as well, or other programs had the CPU."""
        return max(self.echo_ns, self.waited_ns) >= MACHINE_SHARE * self.longest_ns


class Watch:
    """Collects samples of a run, and says what they show."""

    def __init__(self) -> None:
        self.samples: list[Sample] = []

    def add(self, sample: Sample) -> None:
        self.samples.append(sample)

    def pauses(self) -> list[Pause]:
        """All pauses, the first one first."""
        found: list[Pause] = []
        before = 0.0
        for sample in self.samples:
            if max(sample.longest_ns, sample.echo_ns) > PAUSE_NS:
                if found and found[-1].until_s == before:
                    last = found[-1]
                    last.until_s = sample.at_s
                    last.longest_ns = max(last.longest_ns, sample.longest_ns)
                    last.echo_ns = max(last.echo_ns, sample.echo_ns)
                    last.waited_ns += sample.waited_ns
                else:
                    found.append(Pause(before, sample.at_s, sample.longest_ns, sample.echo_ns, sample.waited_ns))
            before = sample.at_s
        return found

    def summary(self) -> dict[str, Any]:
        """Trends and pauses as JSON."""
        counted = [sample for sample in self.samples if sample.at_s >= SKIPPED * self.samples[-1].at_s]
        mib = 2**20
        figures = {
            "memory MiB": [(one.at_s, one.rss_kib / 1024) for one in counted],
            "WAL MiB": [(one.at_s, one.wal_bytes / mib) for one in counted],
            "other files MiB": [(one.at_s, one.file_bytes / mib) for one in counted],
            "file descriptors": [(one.at_s, float(one.fds)) for one in counted],
        }
        pauses = self.pauses()
        return {
            "trends": {name: _trend(points) for name, points in figures.items() if len(points) > 2},
            "wal_mib_most": round(max((one.wal_bytes for one in self.samples), default=0) / mib, 2),
            "pauses": {
                "gateway": sum(not one.of_machine for one in pauses),
                "machine": sum(one.of_machine for one in pauses),
            },
            "longest_pauses": [
                {
                    "from_s": round(one.from_s, 2),
                    "until_s": round(one.until_s, 2),
                    "ms": round(one.longest_ns / 1e6, 1),
                    "echo_ms": round(one.echo_ns / 1e6, 1),
                    "waited_ms": round(one.waited_ns / 1e6, 1),
                    "of": "machine" if one.of_machine else "gateway",
                }
                for one in sorted(pauses, key=lambda one: -one.longest_ns)[:MOST_PAUSES]
            ],
            "columns": " ".join(field.name for field in fields(Sample)),
            "samples": [
                " ".join(f"{value:.4g}" if type(value) is float else str(value) for value in astuple(one))
                for one in self.samples
            ],
        }


def cpu_trend(windows: Sequence[Window]) -> dict[str, Any]:
    """The trend of CPU microseconds for each message, by windows; {} when unknown."""
    at, points = 0.0, []
    for window in windows:
        at += window.seconds
        if (cost := window.cpu_us) is not None:
            points.append((at - window.seconds / 2, cost))
    counted = [point for point in points if point[0] >= SKIPPED * at]
    return {"CPU us a message": _trend(counted)} if len(counted) > 2 else {}


def _trend(points: Sequence[tuple[float, float]]) -> dict[str, Any]:
    line = trend(points)
    span = points[-1][0] - points[0][0]
    return {
        "mean": round(line.mean, 3),
        "least": round(min(y for _, y in points), 3),
        "most": round(max(y for _, y in points), 3),
        "per_hour": round(line.slope * 3600, 3),
        "error": round(line.error * 3600, 3),
        "rises": line.rises(span, TOLERANCE),
    }


def file_sizes(data_dir: Path) -> tuple[int, int]:
    """Bytes of write-ahead logs, and of all other files, below a directory."""
    wal = others = 0
    for path in data_dir.rglob("*"):
        try:
            size = path.stat().st_size if path.is_file() else 0
        except OSError:
            continue  # deleted just now
        if path.name.endswith("-wal"):
            wal += size
        else:
            others += size
    return wal, others
