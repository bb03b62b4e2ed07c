"""The arithmetic of echoes.

A window is half a second of one kind of work. Windows of the raw echo and of the scenario
alternate, so that both meet the same machine; of each kind the cheapest window counts, because a
neighbour that steals the CPU (or its caches) can only make work dearer, never cheaper. One echo is
the CPU time of one round of the echo in its best window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

NS_PER_US = 1000


@dataclass(frozen=True, slots=True)
class Window:
    """The work, time and server CPU of one window; CPU may be unknown (None).

    `machine_cpu_ns` is that of all programs but the load, `kernel_cpu_ns` that of the kernel's own
    threads. The first one is counted in ticks, and may be below 0 in a short window.
    """

    seconds: float
    count: int
    server_cpu_ns: int | None
    load_cpu_ns: int
    machine_cpu_ns: int | None = None
    kernel_cpu_ns: int | None = None

    @property
    def rate(self) -> float:
        return self.count / self.seconds if self.seconds > 0 else 0.0

    @property
    def cpu_us(self) -> float | None:
        """Server CPU microseconds for each unit of work, or None."""
        if self.server_cpu_ns is None or not self.count:
            return None
        return self.server_cpu_ns / self.count / NS_PER_US


@dataclass(frozen=True, slots=True)
class Pair:
    """A figure in its best window, and over all windows together."""

    best: float
    mean: float


@dataclass(frozen=True, slots=True)
class Figures:
    """A scenario's cost; `cpu_us` and `echoes` need a known server process."""

    rate: Pair
    cpu_us: Pair | None
    echo_us: Pair | None
    echoes: Pair | None
    load_us: float
    machine_us: float | None = None
    """CPU of all programs but the load over all windows, neighbours included."""
    kernel_us: float | None = None
    """CPU of the kernel's threads, which no process is charged for, over all windows."""


def cpu_pair(windows: Sequence[Window]) -> Pair | None:
    """CPU microseconds per thing: the cheapest window, and total CPU over total count."""
    known = [cost for window in windows if (cost := window.cpu_us) is not None]
    if not known:
        return None
    counted = [window for window in windows if window.cpu_us is not None]
    total_ns = sum(window.server_cpu_ns or 0 for window in counted)
    return Pair(min(known), total_ns / sum(window.count for window in counted) / NS_PER_US)


def rate_pair(windows: Sequence[Window]) -> Pair:
    """Things per second: the fastest window, and total count over total time."""
    seconds = sum(window.seconds for window in windows)
    mean = sum(window.count for window in windows) / seconds if seconds else 0.0
    return Pair(max((window.rate for window in windows), default=0.0), mean)


def figures(windows: Sequence[Window], echo_windows: Sequence[Window]) -> Figures:
    """Compare a scenario with the echo: best with best, mean with mean."""
    cpu, echo = cpu_pair(windows), cpu_pair(echo_windows)
    echoes = Pair(cpu.best / echo.best, cpu.mean / echo.mean) if cpu and echo and echo.best and echo.mean else None
    count = sum(window.count for window in windows)
    load = sum(window.load_cpu_ns for window in windows) / count / NS_PER_US if count else 0.0
    machine = mean_us(count, [window.machine_cpu_ns for window in windows])
    kernel = mean_us(count, [window.kernel_cpu_ns for window in windows])
    return Figures(rate_pair(windows), cpu, echo, echoes, load, machine, kernel)


def mean_us(count: int, cpu_ns: Sequence[int | None]) -> float | None:
    """Microseconds of CPU for each of `count` units; None when a window's are unknown."""
    known = [ns for ns in cpu_ns if ns is not None]
    return max(0, sum(known)) / count / NS_PER_US if count and len(known) == len(cpu_ns) else None


@dataclass(frozen=True, slots=True)
class Trend:
    """A line through points: its slope with the standard error, and their mean."""

    slope: float
    error: float
    mean: float

    def rises(self, span: float, tolerance: float) -> bool:
        """Whether it grows by more than `tolerance` of the mean in `span`."""
        return self.slope > 2 * self.error and self.slope * span > tolerance * abs(self.mean)


def trend(points: Sequence[tuple[float, float]]) -> Trend:
    """The least-squares line through (x, y) points; raises ValueError."""
    if len(points) < 3:
        raise ValueError("a trend needs three points")
    found = slope(points)
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    left = sum((y - mean_y - found * (x - mean_x)) ** 2 for x, y in points) / (len(points) - 2)
    return Trend(found, (left / sum((x - mean_x) ** 2 for x, _ in points)) ** 0.5, mean_y)


def slope(points: Sequence[tuple[float, float]]) -> float:
    """The least-squares slope through (x, y) points; raises ValueError."""
    mean_x = sum(x for x, _ in points) / len(points) if points else 0.0
    mean_y = sum(y for _, y in points) / len(points) if points else 0.0
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    if not spread:
        raise ValueError("a slope needs two different x")
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread
