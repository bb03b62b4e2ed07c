"""Durable messages to those who are not there.

Accepted means: the gateway has answered a request which the same connection sent after the message.
So each sender sends a batch and one KV get behind it; its answer accepts the batch and releases the
next. In the end the receivers connect and must find everything, once and in order; how fast they
catch up is given beside.
"""

from __future__ import annotations

from time import perf_counter, perf_counter_ns
from typing import Any

from bench import wire
from bench.numbered import HEAD, MARK, Ledger, PayloadReader, filler
from bench.process import ProcessProbe
from bench.scenarios.base import Scenario
from bench.world import Participant

SENDERS = 20
BATCH = 32
LATE_SECONDS = 0.2
"""A repetition would come behind the last message."""


class Enqueue(Scenario):
    name = "enqueue"
    doc = "durable enqueue to offline agents, 20 senders, a barrier after every 32 messages; then all catch up"

    def prepare(self) -> None:
        """Connect the receivers once: their topics begin before the first message."""
        world = self.world
        world.close_all(world.agents("absent", SENDERS))
        self.senders = world.agents("sender", SENDERS)
        for sender in self.senders:
            sender.handler = self._answered
        self.prefixes = [
            world.transport.publication_prefix(world.topic("absent", n), self.options.payload) for n in range(SENDERS)
        ]
        self.filler = filler(self.options.payload)
        self.sent = [0] * SENDERS
        self.asked = [0] * SENDERS
        self.outstanding = self.accepted = 0
        self.ledgers = [Ledger() for _ in range(SENDERS)]
        self.received = 0

    def window(self, seconds: float) -> int:
        before = self.accepted
        for index in range(SENDERS):
            self._batch(index)
        self.work(seconds, lambda: self.outstanding)
        return self.accepted - before

    def _batch(self, index: int) -> None:
        sender, prefix, first = self.senders[index], self.prefixes[index], self.sent[index]
        now = self.asked[index] = perf_counter_ns()
        for number in range(first, first + BATCH):
            sender.send(prefix + HEAD.pack(MARK, index, number, now) + self.filler)
        self.sent[index] = first + BATCH
        sender.send(wire.kv_get("bench/barrier", "barrier"))
        self.outstanding += BATCH

    def _answered(self, sender: Participant, messages: list[bytes]) -> None:
        for message in messages:
            if message[0] != wire.KV:
                self.world.other(sender, message)
                continue
            self.latencies.pending.append(perf_counter_ns() - self.asked[sender.index])
            self.outstanding -= BATCH
            self.accepted += BATCH
            if self.running:
                self._batch(sender.index)

    def finish(self) -> None:
        """Let the receivers catch up, and compare."""
        world = self.world
        self.reader = PayloadReader()
        world.on_greeted = self._listen
        probe = world.probe
        cpu, start = _cpu(probe), perf_counter()
        world.agents("absent", SENDERS)
        refused = world.errors.total()
        world.wait(lambda: self.received >= sum(self.sent) - refused, "catching up")
        elapsed = perf_counter() - start
        world.pause(LATE_SECONDS)
        self.extra["catch_up"] = {
            "messages": self.received,
            "rate": round(self.received / elapsed, 1),
            "cpu_us": round((_cpu(probe) - cpu) / max(1, self.received) / 1000, 2) if probe else None,
        }
        lost = sum(ledger.lost(sent) for ledger, sent in zip(self.ledgers, self.sent, strict=True)) - refused
        self.judge(sum(self.sent), self.received, refused, lost, self.ledgers)

    def _listen(self, participant: Participant) -> None:
        participant.handler = self._caught_up

    def _caught_up(self, receiver: Participant, messages: list[bytes]) -> None:
        for message in messages:
            head = self.reader.read(message)
            if head is None:
                self.world.other(receiver, message)
            elif self.ledgers[receiver.index].note(head[1]):
                self.received += 1

    def parameters(self) -> dict[str, Any]:
        return {"senders": SENDERS, "batch": BATCH, "payload": self.options.payload}


def _cpu(probe: ProcessProbe | None) -> int:
    return probe.cpu_ns() if probe else 0
