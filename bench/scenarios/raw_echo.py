"""Measure the raw trio TCP echo with more connections than the unit has.

Measured in echoes it shows what the alternation leaves of noise: a hundred connections in flight
make a round a little cheaper than the unit's ten do, and the figure should be the same from run to
run.
"""

from __future__ import annotations

from typing import Any

from bench.echo import MESSAGE_BYTES, EchoProcess
from bench.scenarios.base import Scenario

CONNECTIONS = 100


class RawEcho(Scenario):
    name = "raw-echo"
    doc = "raw trio TCP echo, 100 connections, one in flight each: the ceiling for anything on trio"
    unit = "round"
    gated = ()
    own_server = True

    def prepare(self) -> None:
        self._echo = EchoProcess(CONNECTIONS).__enter__()
        self.world.probe = self._echo.probe

    def window(self, seconds: float) -> int:
        return self._echo.window(seconds).count

    def finish(self) -> None:
        self._echo.__exit__()

    def parameters(self) -> dict[str, Any]:
        return {"connections": CONNECTIONS, "payload": MESSAGE_BYTES}
