"""Scenarios of KV: each slot puts a value, reads it back and checks it.

In the closed loop a slot asks again when it is answered. On a schedule the slots take turns; one
that still waits for its answer asks when it has it, timed from the moment that was meant.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter_ns
from typing import Any, ClassVar

from bench import wire
from bench.scenarios.base import Scenario, variant
from bench.schedule import Schedule
from bench.world import Participant

CONNECTIONS = 20
SLOTS = 4
LOW_RATE = 1000.0
"""Operations per second at which one is mostly alone on its way."""


@dataclass(slots=True)
class _Slot:
    agent: Participant
    key: str
    value: bytes = b""
    round: int = 0
    reading: bool = False
    busy: bool = False
    asked: int = 0
    due: deque[int] = field(default_factory=deque)
    """When requests were meant to be sent that wait for the one on its way, in nanoseconds."""


class PutGet(Scenario):
    """Scenario: half puts, half gets, in the workspace scope."""

    name = "kv"
    doc = "KV: put and get in turns, 20 connections with 4 requests in flight each, values checked"
    unit = "operation"
    connections: ClassVar[int] = CONNECTIONS
    in_flight: ClassVar[int] = SLOTS

    def prepare(self) -> None:
        self.agents = self.world.agents("kv", self.connections)
        self.slots: dict[str, _Slot] = {}
        for agent in self.agents:
            agent.handler = self._answered
            for number in range(self.in_flight):
                name = f"{agent.index}-{number}"
                self.slots[name] = _Slot(agent, f"bench/{name}")
        self.filler = bytes(max(0, self.options.payload - 16))
        self.outstanding = self.answered = self.failed = self.wrong = 0

    def window(self, seconds: float) -> int:
        before = self.answered
        now = perf_counter_ns()
        for name in self.slots:
            self.ask(name, now)
        self.work(seconds, lambda: self.outstanding)
        return self.answered - before

    def ask(self, name: str, due_ns: int) -> None:
        """Send a slot's next request: a put of a new value, or the get that returns it."""
        slot = self.slots[name]
        if slot.reading:
            message = wire.kv_get(slot.key, name)
        else:
            slot.round += 1
            slot.value = b"%016d" % slot.round + self.filler
            message = wire.kv_put(slot.key, slot.value, name)
        slot.asked, slot.busy = due_ns, True
        self.outstanding += 1
        slot.agent.send(message)

    def _answered(self, agent: Participant, messages: list[bytes]) -> None:
        now = perf_counter_ns()
        for message in messages:
            if message[0] != wire.KV:
                self.world.other(agent, message)
                continue
            success, value, name = wire.read_kv(message)
            slot = self.slots[name]
            self.outstanding -= 1
            self.answered += 1
            self.latencies.pending.append(now - slot.asked)
            if not success:
                self.failed += 1
            elif slot.reading and value != slot.value:
                self.wrong += 1
            slot.reading, slot.busy = not slot.reading, False
            if slot.due:
                self.ask(name, slot.due.popleft())
            elif self.running:
                self.ask(name, now)

    def finish(self) -> None:
        self.verdict.counts = {"operations": self.answered, "failed": self.failed, "wrong": self.wrong}
        self.verdict.failures = [
            f"{count} operations {what}" for what, count in (("failed", self.failed), ("wrong", self.wrong)) if count
        ]

    def parameters(self) -> dict[str, Any]:
        return {"connections": self.connections, "window": self.in_flight, "payload": self.options.payload}


class PacedPutGet(PutGet):
    """Scenario: the same operations on a schedule."""

    name = "kv-paced"
    doc = f"KV: put and get in turns, open loop at {LOW_RATE:,.0f} operations a second, values checked"
    rate: ClassVar[float] = LOW_RATE

    def prepare(self) -> None:
        super().prepare()
        self.schedule = Schedule(self.rate)
        self._names: Sequence[str] = list(self.slots)
        self._turn = 0

    def window(self, seconds: float) -> int:
        before = self.answered
        self.schedule.run(self.world.loop, seconds, self.send_next)
        self.drain(lambda: self.outstanding)
        return self.answered - before

    def send_next(self, due_ns: int) -> None:
        """Send the request of the slot whose turn it is, or have it wait."""
        name = self._names[self._turn % len(self._names)]
        self._turn += 1
        slot = self.slots[name]
        if slot.busy:
            slot.due.append(due_ns)
        else:
            self.ask(name, due_ns)

    def parameters(self) -> dict[str, Any]:
        return super().parameters() | {"rate": self.rate}


KV_1 = variant(PutGet, "kv-1", "KV: put and get in turns, 20 connections with one request in flight each", in_flight=1)
