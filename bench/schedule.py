"""Send at a given rate: moments that do not wait for a slow server."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from time import perf_counter, perf_counter_ns

from bench.loop import Loop

SEED = 20


class Schedule:
    """Moments of sending with exponential gaps, the same ones in every run."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self._random = Random(SEED)

    def run(self, loop: Loop, seconds: float, send: Callable[[int], None]) -> None:
        """Run the loop for a window, and call `send` with each due nanosecond."""
        start = perf_counter()
        loop.run(start + seconds, pulse=self.pulse(start, start + seconds, send))

    def pulse(self, start: float, until: float, send: Callable[[int], None]) -> Callable[[float], float]:
        """A function for `Loop.run` that sends what is due between two moments."""
        due = start + self._random.expovariate(self.rate)

        def pulse(now: float) -> float:
            nonlocal due
            while due <= now and due < until:
                send(int(due * 1e9))
                due += self._random.expovariate(self.rate)
            return due

        return pulse


assert abs(perf_counter() * 1e9 - perf_counter_ns()) < 1e9, "both clocks count from the same start"
