"""Send one message to many: a service to `ga::{workspace}`.

Every agent of the workspace listens there.

The sender is a service because services do not hear `ga` themselves and do not count among a
workspace's connections, of which the reference allows a thousand. A few broadcasts are in flight,
or one ("lone"); each is over when its last receiver has it. The unit is one delivery, since that is
what costs.
"""

from __future__ import annotations

from time import perf_counter_ns
from typing import Any, ClassVar

from bench import wire
from bench.numbered import HEAD, MARK, Ledger, PayloadReader, filler
from bench.scenarios.base import Scenario, variant
from bench.world import Participant

IN_FLIGHT = 4


class FanOut(Scenario):
    """Scenario: a broadcast to all agents of a workspace; subclasses set the number."""

    unit = "delivery"
    position: ClassVar[int]
    in_flight: ClassVar[int] = IN_FLIGHT

    def prepare(self) -> None:
        world = self.world
        self.size = self.options.fanout[self.position]
        self.reader = PayloadReader()
        self.receivers = world.agents("listener", self.size)
        init = wire.service_init("speaker", world.workspace, self.options.credentials)
        (self.sender,) = world.open([init], "speaker")
        self.prefix = world.transport.publication_prefix(f"ga::{world.workspace}", self.options.payload)
        self.filler = filler(self.options.payload)
        self.ledgers = [Ledger() for _ in range(self.size)]
        self.remaining: dict[int, int] = {}
        self.sent = self.received = self.refused = 0
        for receiver in self.receivers:
            receiver.handler = self._delivered
        world.on_refusal = self._refusal

    def _send(self) -> None:
        self.remaining[self.sent] = self.size
        self.sender.send(self.prefix + HEAD.pack(MARK, 0, self.sent, perf_counter_ns()) + self.filler)
        self.sent += 1

    def window(self, seconds: float) -> int:
        before = self.received
        for _ in range(self.in_flight):
            self._send()
        self.work(seconds, lambda: len(self.remaining))
        return self.received - before

    def _delivered(self, receiver: Participant, messages: list[bytes]) -> None:
        now = perf_counter_ns()
        remaining = self.remaining
        for message in messages:
            head = self.reader.read(message)
            if head is None:
                self.world.other(receiver, message)
                continue
            _, number, stamp = head
            if not self.ledgers[receiver.index].note(number):
                continue
            self.latencies.pending.append(now - stamp)
            self.received += 1
            left = remaining[number] - 1
            if left:
                remaining[number] = left
                continue
            del remaining[number]
            if self.running:
                self._send()

    def _refusal(self, participant: Participant, code: str) -> None:
        """Count a refusal: of a broadcast at the sender, of a delivery at a receiver."""
        if participant is self.sender:
            self.refused += 1

    def finish(self) -> None:
        lost = sum(ledger.lost(self.sent) for ledger in self.ledgers)
        self.judge(self.sent, self.received, self.refused, lost, self.ledgers)

    def parameters(self) -> dict[str, Any]:
        return {"receivers": self.size, "payload": self.options.payload, "window": self.in_flight}


FANOUTS: tuple[type[Scenario], ...] = (
    variant(FanOut, "fanout-100", "fan-out 1:100 over ga::workspace, 4 broadcasts in flight", position=0),
    variant(FanOut, "fanout-1000", "fan-out 1:1000 over ga::workspace, 4 broadcasts in flight", position=1),
)
LONE: tuple[type[Scenario], ...] = tuple(
    variant(
        FanOut, f"{name}-lone", f"fan-out {ratio} over ga::workspace, one broadcast at a time", position=at, in_flight=1
    )
    for at, (name, ratio) in enumerate((("fanout-100", "1:100"), ("fanout-1000", "1:1000")))
)
