"""Measure the raw trio TCP echo with more connections than the unit has.

Measured in echoes it shows what the alternation leaves of noise: a hundred connections in flight
make a round a little cheaper than the unit's ten do, and the figure should be the same from run to
run.

At a thousand rounds a second it shows what remains of a quiet gateway's cost when nothing is done
for a message: the server sleeps before each round, and its caches are cold.
"""

from __future__ import annotations

from typing import Any

from bench.echo import MESSAGE_BYTES, EchoProcess
from bench.scenarios.base import Scenario
from bench.schedule import Schedule

CONNECTIONS = 100
LOW_RATE = 1000.0


class RawEcho(Scenario):
    name = "raw-echo"
    doc = "raw trio TCP echo, 100 connections, one in flight each: the ceiling for anything on trio"
    unit = "round"
    gated = ()
    own_server = True

    def prepare(self) -> None:
        self.echo = EchoProcess(CONNECTIONS).__enter__()
        self.world.probe = self.echo.probe

    def window(self, seconds: float) -> int:
        return self.echo.window(seconds).count

    def finish(self) -> None:
        self.echo.__exit__()

    def parameters(self) -> dict[str, Any]:
        return {"connections": CONNECTIONS, "payload": MESSAGE_BYTES}


class PacedRawEcho(RawEcho):
    name = "raw-echo-paced"
    doc = (
        f"raw trio TCP echo, 100 connections, open loop at {LOW_RATE:,.0f} rounds a second: the floor of a quiet server"
    )

    def prepare(self) -> None:
        super().prepare()
        self._schedule = Schedule(LOW_RATE)

    def window(self, seconds: float) -> int:
        return self.echo.paced_window(seconds, self._schedule, self.latencies.pending.append).count

    def parameters(self) -> dict[str, Any]:
        return super().parameters() | {"rate": LOW_RATE}
