"""kill -9 loses nothing that was accepted, and reorders nothing.

Agents send numbered messages to agents that are offline, 20,000 for each of ten lives of the
gateway: at a seeded moment it is killed and started again on the same data. Then the targets
connect, and the gateway is killed twice more while it delivers.

Accepted means: the gateway has answered a KV GET that the same connection sent after the message.
Every accepted message must arrive; what was sent and not accepted may. Per target the order is the
log's order: each sender's numbers rise, and a connection after a crash may repeat only a suffix of
what was delivered, in the same order, before it goes on.
"""

from __future__ import annotations

import contextlib
import os
import random
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import trio

from tests.faults import upstream
from tests.helpers.gateway import GatewayProcess, open_gateway_process
from tests.helpers.rawh2 import Disconnected, RawPeer, open_raw_peer

KILLS = 10
TOTAL = KILLS * 20_000
DELIVERY_KILLS = 2
SENDERS = 4
TARGETS = 3
PADDING = b"." * 180
BATCH = 20  # messages between two barriers
IN_FLIGHT = 100  # messages of one sender that wait for their acceptance
LIMIT_S = 280.0
END = b"end"


@dataclass
class Sender:
    """One sending agent over all connections; it never uses a number twice."""

    name: str
    quota: int
    sent: int = 0
    accepted: int = 0  # every number below this is accepted, except those in `unknown`
    unknown: set[int] = field(default_factory=set)

    def crashed(self) -> None:
        """Note a crash: what was sent and not accepted may have been committed."""
        self.unknown |= set(range(self.accepted, self.sent))
        self.accepted = self.sent

    @property
    def known(self) -> set[int]:
        return set(range(self.accepted)) - self.unknown


@dataclass
class Target:
    """One receiving agent: the log of its first deliveries, checked as they come."""

    name: str
    log: list[bytes] = field(default_factory=list)
    places: dict[bytes, int] = field(default_factory=dict)
    repeated: int = 0
    at_end: bool = False

    def deliver(self, payload: bytes, position: int | None) -> int:
        """Take one delivery of a connection; give its new position in the log."""
        place = self.places.get(payload)
        if position is None:
            position = len(self.log) if place is None else place  # where a new connection takes up
        if place is not None:
            assert place == position, f"{self.name}: {payload[:20]!r} came again, out of turn"
            self.repeated += 1
            return position + 1
        assert position == len(self.log), f"{self.name}: {payload[:20]!r} is new, amid a repetition"
        self.places[payload] = len(self.log)
        self.log.append(payload)
        return len(self.log)


class Run:
    """The senders and targets of one run, and when the gateway dies next."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.ws = f"crash-{uuid.uuid4().hex[:8]}"
        self.senders = [Sender(f"s{n}", TOTAL // SENDERS) for n in range(SENDERS)]
        self.targets = [Target(f"t{n}") for n in range(TARGETS)]
        # A kill in every tenth of the traffic, anywhere in it.
        self.kill_at = [int((n + self.random.random()) / KILLS * TOTAL) for n in range(KILLS)]

    @property
    def sent(self) -> int:
        return sum(sender.sent for sender in self.senders)

    @property
    def all_at_end(self) -> bool:
        return all(target.at_end for target in self.targets)

    def topic(self, target: Target) -> str:
        return f"ag::{self.ws}::target::{target.name}"

    async def send(self, sender: Sender, address: str) -> None:
        """Send until the quota is used and accepted, or the gateway is gone."""
        with contextlib.suppress(Disconnected, OSError):
            async with open_raw_peer(address, upstream.agent(self.ws, "sender", sender.name)) as peer:
                room = trio.Event()

                async def take_answers() -> None:
                    nonlocal room
                    while sender.accepted < sender.quota:
                        for data in await peer.receive():
                            down = upstream.Down.FromString(data)
                            assert down.WhichOneof("payload") in ("connection_ack", "config", "kv"), down
                            if down.WhichOneof("payload") == "kv":
                                assert down.kv.success
                                sender.accepted = int(down.kv.request_id)
                        room.set()
                        room = trio.Event()
                        assert peer.h2.ended is None, peer.h2.ended

                async with self.cut_is_an_end(), trio.open_nursery() as nursery:
                    nursery.start_soon(take_answers)
                    while sender.sent < sender.quota:
                        while sender.sent - sender.accepted > IN_FLIGHT:
                            await room.wait()
                        await self.send_batch(sender, peer)
        # The connection is gone, or all is accepted.

    async def send_batch(self, sender: Sender, peer: RawPeer) -> None:
        batch = []
        for number in range(sender.sent, min(sender.sent + BATCH, sender.quota)):
            target = self.targets[number % TARGETS]
            batch.append(upstream.message(self.topic(target), b"%s %d %s" % (sender.name.encode(), number, PADDING)))
        # Before the bytes leave: who is cut while sending does not know what arrived.
        sender.sent += len(batch)
        await peer.send(*batch, upstream.barrier(str(sender.sent)))

    @staticmethod
    @contextlib.asynccontextmanager
    async def cut_is_an_end() -> AsyncIterator[None]:
        """End both tasks of a connection when it is cut; other errors fail the test."""
        try:
            yield
        except* (Disconnected, OSError):
            pass

    async def accept_everything(self, gateway: GatewayProcess) -> None:
        """Run ten gateways, and a last one in which all clients finish."""
        for kill_at in [*self.kill_at, None]:
            async with trio.open_nursery() as nursery:
                for sender in self.senders:
                    nursery.start_soon(self.send, sender, gateway.address)
                if kill_at is not None:
                    while self.sent < kill_at:
                        await trio.sleep(0.001)
                    await trio.sleep(self.random.random() * 0.02)
                    await trio.to_thread.run_sync(gateway.kill)
            if kill_at is not None:
                for sender in self.senders:
                    sender.crashed()
                await trio.to_thread.run_sync(gateway.restart)

    async def mark_the_ends(self, address: str) -> None:
        async with open_raw_peer(address, upstream.agent(self.ws, "sender", "last")) as peer:
            await peer.send(
                *(upstream.message(self.topic(target), END) for target in self.targets), upstream.barrier("e")
            )
            while b"e" not in [upstream.Down.FromString(data).kv.request_id.encode() for data in await peer.receive()]:
                pass

    async def receive(self, target: Target, address: str) -> None:
        """Receive until the end mark, or until the gateway is gone."""
        position: int | None = None
        with contextlib.suppress(Disconnected, OSError):
            async with open_raw_peer(address, upstream.agent(self.ws, "target", target.name)) as peer:
                while not target.at_end:
                    for data in await peer.receive():
                        down = upstream.Down.FromString(data)
                        if down.WhichOneof("payload") != "msg":
                            assert down.WhichOneof("payload") in ("connection_ack", "config"), down
                        elif down.msg.payload == END:
                            target.at_end = True
                        else:
                            position = target.deliver(down.msg.payload, position)

    async def deliver_everything(self, gateway: GatewayProcess) -> None:
        expected = sum(len(sender.known) for sender in self.senders)
        for n in range(DELIVERY_KILLS + 1):
            async with trio.open_nursery() as nursery:
                for target in self.targets:
                    if not target.at_end:
                        nursery.start_soon(self.receive, target, gateway.address)
                if n < DELIVERY_KILLS:
                    kill_at = (n + self.random.random()) / (DELIVERY_KILLS + 1) * expected
                    while sum(len(target.log) for target in self.targets) < kill_at and not self.all_at_end:
                        await trio.sleep(0.001)
                    await trio.to_thread.run_sync(gateway.kill)
            if n < DELIVERY_KILLS:
                await trio.to_thread.run_sync(gateway.restart)

    def check(self) -> str:
        delivered: dict[str, set[int]] = defaultdict(set)
        for target in self.targets:
            last: dict[str, int] = {}
            for payload in target.log:
                name, number = payload.split(b" ", 2)[:2]
                sender, n = name.decode(), int(number)
                assert n > last.get(sender, -1), f"{target.name}: {sender} {n} after {last[sender]}"
                last[sender] = n
                delivered[sender].add(n)
        accepted = 0
        for sender in self.senders:
            missing = sender.known - delivered[sender.name]
            assert not missing, f"{sender.name}: {len(missing)} accepted messages were lost: {sorted(missing)[:10]} ..."
            assert max(delivered[sender.name]) < sender.sent
            accepted += len(sender.known)
        figures = {
            "sent": self.sent,
            "accepted": accepted,
            "delivered": sum(len(numbers) for numbers in delivered.values()),
            "repeated": sum(target.repeated for target in self.targets),
        }
        return ", ".join(f"{name} {count:,}" for name, count in figures.items())


async def test_a_killed_gateway_loses_nothing_accepted() -> None:
    run = Run(seed=int(os.environ.get("TESTS_SEED", "1")))
    with trio.fail_after(LIMIT_S):
        async with open_gateway_process() as gateway:
            await run.accept_everything(gateway)
            assert run.sent == TOTAL
            await run.mark_the_ends(gateway.address)
            await run.deliver_everything(gateway)
    assert run.all_at_end
    print(f"\nkilled {KILLS} times while sending, {DELIVERY_KILLS} times while delivering: {run.check()}")
