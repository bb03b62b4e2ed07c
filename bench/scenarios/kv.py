"""Scenario of KV: each slot puts a value, reads it back and checks it."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter_ns
from typing import Any

from bench import wire
from bench.scenarios.base import Scenario
from bench.world import Participant

CONNECTIONS = 20
SLOTS = 4


@dataclass(slots=True)
class _Slot:
    agent: Participant
    key: str
    value: bytes = b""
    round: int = 0
    reading: bool = False
    asked: int = 0


class PutGet(Scenario):
    """Scenario: half puts, half gets, in the workspace scope."""

    name = "kv"
    doc = "KV: put and get in turns, 20 connections with 4 requests in flight each, values checked"
    unit = "operation"

    def prepare(self) -> None:
        self.agents = self.world.agents("kv", CONNECTIONS)
        self.slots: dict[str, _Slot] = {}
        for agent in self.agents:
            agent.handler = self._answered
            for number in range(SLOTS):
                name = f"{agent.index}-{number}"
                self.slots[name] = _Slot(agent, f"bench/{name}")
        self.filler = bytes(max(0, self.options.payload - 16))
        self.outstanding = self.answered = self.failed = self.wrong = 0

    def window(self, seconds: float) -> int:
        before = self.answered
        for name, slot in self.slots.items():
            self._ask(name, slot)
        self.work(seconds, lambda: self.outstanding)
        return self.answered - before

    def _ask(self, name: str, slot: _Slot) -> None:
        """The slot's next request: a put of a new value, or the get that must return it."""
        if slot.reading:
            message = wire.kv_get(slot.key, name)
        else:
            slot.round += 1
            slot.value = b"%016d" % slot.round + self.filler
            message = wire.kv_put(slot.key, slot.value, name)
        slot.asked = perf_counter_ns()
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
            slot.reading = not slot.reading
            if self.running:
                self._ask(name, slot)

    def finish(self) -> None:
        self.verdict.counts = {"operations": self.answered, "failed": self.failed, "wrong": self.wrong}
        self.verdict.failures = [
            f"{count} operations {what}" for what, count in (("failed", self.failed), ("wrong", self.wrong)) if count
        ]

    def parameters(self) -> dict[str, Any]:
        return {"connections": CONNECTIONS, "window": SLOTS, "payload": self.options.payload}
