"""Scenarios of connections: what it costs to make and to keep one.

`connect` counts a connection with its end, since the next one begins when the last one ends.
`connect-open` counts openings alone: what a window has opened is closed behind it, in `reset`. The
difference of the two is the end. An opening that causes work later than some 30 ms after its ack is
not charged for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from time import perf_counter, perf_counter_ns
from typing import Any

from bench import wire
from bench.scenarios.base import Scenario
from bench.units import slope
from bench.world import Participant, ScenarioFailed

IN_FLIGHT = 32
IDLE_STEPS = 4
WARM_CONNECTIONS = 100
WORKSPACE_CONNECTIONS = 1000
"""How many connections the reference allows in one workspace."""
REST_SECONDS = 0.1


class ConnectStorm(Scenario):
    """Connect agents with new identities as fast as the server acknowledges them."""

    name = "connect"
    doc = "connect storm: TCP, the transport's opening, Init, ack, clean end; 32 handshakes in flight"
    unit = "connection"

    def prepare(self) -> None:
        self._number = 0
        self._started: dict[Participant, int] = {}
        self.done = 0
        self.running = False
        self.world.on_greeted = self._greeted

    def window(self, seconds: float) -> int:
        before = self.done
        self.running = True
        for _ in range(IN_FLIGHT):
            self._dial()
        self.world.loop.run(perf_counter() + seconds)
        self.running = False
        self.world.wait(lambda: not self.world.busy, "the last connections")
        return self.done - before

    def place(self, number: int) -> str:
        """The address of a connection; "" is the target's."""
        return ""

    def workspace(self) -> str:
        return self.world.workspace

    def credentials(self) -> Mapping[str, str]:
        return self.options.credentials

    def _dial(self) -> None:
        init = wire.agent_init(self.workspace(), "storm", str(self._number), self.credentials())
        participant = self.world.dial(init, "storm", self._number, self.place(self._number))
        self._started[participant] = perf_counter_ns()
        self._number += 1

    def _greeted(self, participant: Participant) -> None:
        self.latencies.pending.append(perf_counter_ns() - self._started.pop(participant))
        self.done += 1
        self.opened(participant)
        if self.running:
            self._dial()

    def opened(self, participant: Participant) -> None:
        self.world.begin_close(participant)

    def finish(self) -> None:
        self.verdict.counts = {"connections": self.done}

    def parameters(self) -> dict[str, Any]:
        return {"in_flight": IN_FLIGHT}


class ConnectOpen(ConnectStorm):
    """Scenario: the openings alone; the connections of a window are closed after it."""

    name = "connect-open"
    doc = "connect without the end: connections stay open until the window's CPU is read; 32 handshakes in flight"

    def prepare(self) -> None:
        super().prepare()
        self._open: list[Participant] = []

    def workspace(self) -> str:
        return f"{self.world.workspace}-{len(self._open) // (WORKSPACE_CONNECTIONS - IN_FLIGHT)}"

    def opened(self, participant: Participant) -> None:
        self._open.append(participant)

    def reset(self) -> None:
        self.world.close_all(self._open)
        self._open.clear()
        self.world.pause(REST_SECONDS)


class Idle(Scenario):
    """Scenario: a connection's memory, by the slope over steps, and CPU at rest."""

    name = "idle"
    doc = "idle agents: resident KiB of the server for each connection, and CPU for each connection-second"
    unit = "connection-second"
    gated = ("kib",)

    def prepare(self) -> None:
        if self.world.probe is None:
            raise ScenarioFailed("memory needs the server's process: give --pid")
        self.world.close_all(self.world.agents("warm", WARM_CONNECTIONS))
        self.steps = [(0, self._rss())]
        self.open = 0
        step = max(1, self.options.connections // IDLE_STEPS)
        for number in range(IDLE_STEPS):
            # each step in another workspace, because the reference allows a thousand
            # connections in one
            self.world.agents("idle", step, f"{self.world.workspace}-{number}")
            self.open += step
            self.steps.append((self.open, self._rss()))
        self.extra["memory_steps"] = [{"connections": count, "rss_kib": kib} for count, kib in self.steps]
        self.extra["kib_per_connection"] = slope(self.steps)

    def _rss(self) -> int:
        self.world.pause(self.options.window_seconds)
        assert self.world.probe is not None
        return self.world.probe.rss_kib()

    def window(self, seconds: float) -> int:
        self.world.pause(seconds)
        return max(1, round(self.open * seconds))

    def finish(self) -> None:
        """Check nothing: a connection that ended has failed the scenario already."""
        self.verdict.counts = {"connections": self.open}

    def parameters(self) -> dict[str, Any]:
        return {"connections": self.options.connections}
