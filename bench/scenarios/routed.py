"""Send durable messages from one agent to another, windowed by receipts.

Each of `pairs` senders keeps `in_flight` numbered messages under way to its receiver; a receipt at
the receiver releases the next. Both ends live here, so the receipt costs no message.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter_ns
from typing import Any, ClassVar

from bench.numbered import HEAD, MARK, Ledger, PayloadReader, filler
from bench.scenarios.base import Scenario, variant
from bench.world import Participant


class Routed(Scenario):
    """Scenario: pairs of agents; subclasses set the messages in flight of each."""

    in_flight: ClassVar[int]

    def prepare(self) -> None:
        world, pairs = self.world, self.options.pairs
        self.reader = PayloadReader()
        receivers_at, senders_at = self.places()
        self.receivers = world.agents("receiver", pairs, places=receivers_at)
        self.senders = world.agents("sender", pairs, places=senders_at)
        self.prefixes = [
            world.transport.publication_prefix(world.topic("receiver", n), self.options.payload, more)
            for n, more in enumerate(self.further_fields())
        ]
        self.filler = filler(self.options.payload)
        self.ledgers = [Ledger() for _ in range(pairs)]
        self.sent = [0] * pairs
        self.outstanding = self.received = self.refused = 0
        for receiver in self.receivers:
            receiver.handler = self.delivered
        world.on_refusal = self.refusal

    def further_fields(self) -> Sequence[bytes]:
        """What each pair's messages have besides, as encoded fields of SendMessage."""
        return [b""] * self.options.pairs

    def places(self) -> tuple[Sequence[str], Sequence[str]]:
        """The addresses of receivers and senders in turn; () is the target's."""
        return (), ()

    def send(self, pair: int, stamp: int) -> None:
        """Queue the pair's next message, as sent at `stamp` nanoseconds."""
        number = self.sent[pair]
        self.sent[pair] = number + 1
        self.outstanding += 1
        self.senders[pair].send(self.prefixes[pair] + HEAD.pack(MARK, pair, number, stamp) + self.filler)

    def window(self, seconds: float) -> int:
        before = self.received
        now = perf_counter_ns()
        for pair in range(self.options.pairs):
            for _ in range(self.in_flight):
                self.send(pair, now)
        self.work(seconds, lambda: self.outstanding)
        return self.received - before

    def delivered(self, receiver: Participant, messages: list[bytes]) -> None:
        """Check numbers of deliveries, take their times, release the next messages."""
        now = perf_counter_ns()
        for message in messages:
            head = self.reader.read(message)
            if head is None:
                self.world.other(receiver, message)
                continue
            pair, number, stamp = head
            if not self.ledgers[pair].note(number) or pair != receiver.index:
                continue
            self.latencies.pending.append(now - stamp)
            self.received += 1
            self.outstanding -= 1
            if self.running:
                self.send(pair, now)

    def refusal(self, participant: Participant, code: str) -> None:
        """Count a message that the gateway refused, and let the next one be sent."""
        self.refused += 1
        self.outstanding -= 1
        if self.running:
            self.send(participant.index, perf_counter_ns())

    def finish(self) -> None:
        lost = sum(ledger.lost(sent) for ledger, sent in zip(self.ledgers, self.sent, strict=True)) - self.refused
        self.judge(sum(self.sent), self.received, self.refused, lost, self.ledgers)

    def parameters(self) -> dict[str, Any]:
        return {"pairs": self.options.pairs, "payload": self.options.payload, "window": self.in_flight}


ROUTED: tuple[type[Scenario], ...] = (
    variant(Routed, "routed-1", "routed 1:1, durable, one message in flight for each pair", in_flight=1),
    variant(Routed, "routed-16", "routed 1:1, durable, 16 messages in flight for each pair", in_flight=16),
)
