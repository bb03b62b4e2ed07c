"""Measure latency at a fixed rate, from when each message was meant to be sent.

A closed loop waits for a slow server before it sends again and so hides the wait (coordinated
omission); here the schedule does not wait. The rate is half of what the same pairs reach
just before in a closed loop with one message in flight each, unless `--rate` gives it. Not half of
the highest rate there is: that one lives on large batches, which a schedule does not make.

The quiet variants have a fixed rate, at which messages are mostly alone on their way.
"""

from __future__ import annotations

from time import perf_counter
from typing import Any, ClassVar

from bench.scenarios.base import Scenario, variant
from bench.scenarios.routed import Routed
from bench.schedule import Schedule

CALIBRATION_WINDOWS = 3
SHARE_OF_MAXIMUM = 0.5


class Paced(Routed):
    """Scenario: messages on a schedule, by the pairs in turn."""

    name = "paced"
    doc = "routed 1:1, durable, open loop at half of what routed-1 reaches; latency from the intended send"
    gated: ClassVar[tuple[str, ...]] = ()
    in_flight = 1

    def prepare(self) -> None:
        super().prepare()
        self._turn = 0
        self.schedule = Schedule(self.pace())
        self.latencies.drop_window()
        self.extra["paced_rate"] = round(self.schedule.rate, 1)

    def pace(self) -> float:
        """Messages per second: `--rate`, or a share of the best closed-loop rate."""
        if self.options.rate:
            return self.options.rate
        best = 0.0
        for _ in range(CALIBRATION_WINDOWS):
            start = perf_counter()
            count = super().window(self.options.window_seconds)
            best = max(best, count / (perf_counter() - start))
        return SHARE_OF_MAXIMUM * best

    def window(self, seconds: float) -> int:
        before = self.received
        self.schedule.run(self.world.loop, seconds, self.send_next)
        self.drain(lambda: self.outstanding)
        return self.received - before

    def send_next(self, due_ns: int) -> None:
        """Send the message of the pair whose turn it is."""
        self.send(self._turn % self.options.pairs, due_ns)
        self._turn += 1

    def parameters(self) -> dict[str, Any]:
        return {"pairs": self.options.pairs, "payload": self.options.payload}


class PacedAt(Paced):
    """Scenario: the same at a fixed rate, so that its cost is judged."""

    gated = ("echoes",)
    rate: ClassVar[float]

    def pace(self) -> float:
        return self.rate

    def parameters(self) -> dict[str, Any]:
        return super().parameters() | {"rate": self.rate}


def _at(rate: float) -> type[Scenario]:
    doc = f"routed 1:1, durable, open loop at {rate:,.0f} messages a second; latency from the intended send"
    return variant(PacedAt, f"paced-{rate:.0f}", doc, rate=rate)


PACED_AT: tuple[type[Scenario], ...] = (_at(1000.0), _at(5000.0))
