"""Measure latency at a fixed rate, from when each message was meant to be sent.

A closed loop waits for a slow server before it sends again and so hides the wait (coordinated
omission); here the schedule does not wait. Gaps are exponential with a fixed seed, so that bursts
come as they do in life and the same in every run. The rate is half of what the same pairs reach
just before in a closed loop with one message in flight each, unless `--rate` gives it. Not half of
the highest rate there is: that one lives on large batches, which a schedule does not make.
"""

from __future__ import annotations

from random import Random
from time import perf_counter, perf_counter_ns
from typing import Any

from bench.scenarios.routed import Routed

CALIBRATION_WINDOWS = 3
SHARE_OF_MAXIMUM = 0.5
SEED = 20


class Paced(Routed):
    """Messages on a schedule, dealt to the pairs in turns."""

    name = "paced"
    doc = "routed 1:1, durable, open loop at half of what routed-1 reaches; latency from the intended send"
    gated = ()
    in_flight = 1

    def prepare(self) -> None:
        super().prepare()
        self._random = Random(SEED)
        self._turn = 0
        self.rate = self.options.rate or self.pace()
        self.latencies.drop_window()
        self.extra["paced_rate"] = round(self.rate, 1)

    def pace(self) -> float:
        """Messages per second, when the command line gives no rate."""
        return SHARE_OF_MAXIMUM * self._maximum()

    def _maximum(self) -> float:
        """The best closed-loop rate of a few windows, the first of which warms up."""
        best = 0.0
        for _ in range(CALIBRATION_WINDOWS):
            start = perf_counter()
            count = super().window(self.options.window_seconds)
            best = max(best, count / (perf_counter() - start))
        return best

    def window(self, seconds: float) -> int:
        before = self.received
        start = perf_counter()
        until = start + seconds
        self._due = start + self._random.expovariate(self.rate)
        self._until = until
        self.world.loop.run(until, pulse=self._pulse)
        self.drain(lambda: self.outstanding)
        return self.received - before

    def _pulse(self, now: float) -> float:
        """Send all that is due and say when the next one is."""
        due, pairs = self._due, self.options.pairs
        while due <= now and due < self._until:
            self.send(self._turn % pairs, int(due * 1e9))
            self._turn += 1
            due += self._random.expovariate(self.rate)
        self._due = due
        return due

    def parameters(self) -> dict[str, Any]:
        return {"pairs": self.options.pairs, "payload": self.options.payload}


assert abs(perf_counter() * 1e9 - perf_counter_ns()) < 1e9, "both clocks count from the same start"
