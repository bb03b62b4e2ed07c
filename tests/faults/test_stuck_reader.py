"""A subscriber that stops reading costs bounded memory, and loses no message.

Other subscribers do not notice it.

Two of them, stuck in the two ways there are: one does not read its socket, one reads but never
opens its HTTP/2 window. Fifty others read on. 20,000 messages of 1 KiB flow; with TESTS_FULL=1 the
100,000 of the requirement.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from dataclasses import dataclass, field

import trio

from tests.faults import numbered, upstream
from tests.faults.swarm import Swarm
from tests.helpers.gateway import GatewayProcess, open_gateway_process
from tests.helpers.rawh2 import DEFAULT_WINDOW, RawPeer, open_raw_peer

FULL = bool(os.environ.get("TESTS_FULL"))
FLOOD = 100_000 if FULL else 20_000
WARM_UP = 2_000
PACED = 1_000
PACE_S = 0.005
READERS = 50
BARRIER_EVERY = 200
MAX_GROWTH_BYTES = 16 * 1024 * 1024
LIMIT_S = 1800.0 if FULL else 280.0

# Whether a peer that takes nothing is cut after a while is not what is measured here.
NEVER_CUT = ("--set", "grpc.tcp_user_timeout_s=0")


@dataclass
class Publisher:
    """Sends numbered messages to ga::ws; `sent` counts over all phases."""

    peer: RawPeer
    topic: str
    sent: int = 0
    answered: dict[str, trio.Event] = field(default_factory=dict)

    async def read(self) -> None:
        while True:
            for data in await self.peer.receive():
                down = upstream.Down.FromString(data)
                # It is an agent of the workspace itself, so it gets its own broadcasts too.
                if down.WhichOneof("payload") == "kv":
                    self.answered.pop(down.kv.request_id).set()
                assert down.WhichOneof("payload") != "error", down

    async def barrier(self) -> None:
        name = str(self.sent)
        event = self.answered[name] = trio.Event()
        await self.peer.send(upstream.barrier(name))
        await event.wait()

    async def flood(self, count: int, swarm: Swarm) -> None:
        """Send as fast as the fifty readers follow, so that no outbox is full."""
        for start in range(0, count, BARRIER_EVERY):
            batch = range(self.sent, self.sent + min(BARRIER_EVERY, count - start))
            await self.peer.send(*(upstream.message(self.topic, numbered.payload(n)) for n in batch))
            self.sent = batch.stop
            await self.barrier()
            await swarm.wait_for("least", self.sent)

    async def paced(self, count: int) -> None:
        start = trio.current_time()
        for n in range(count):
            await trio.sleep_until(start + n * PACE_S)
            await self.peer.send(upstream.message(self.topic, numbered.payload(self.sent)))
            self.sent += 1


@dataclass
class Reader:
    """One of the two that get stuck. `next_number` is the number it must see next."""

    peer: RawPeer
    next_number: int = 0

    async def read_until(self, number: int) -> None:
        while self.next_number < number:
            batch = await self.peer.receive()
            assert batch, f"the gateway ended the stream: {self.peer.h2.ended}"
            for data in batch:
                if found := numbered.find(data):
                    assert found[0] == self.next_number, f"{found[0]} instead of {self.next_number}"
                    self.next_number += 1


class Memory:
    """The most that the gateway's memory grew since `start`."""

    def __init__(self, gateway: GatewayProcess) -> None:
        self._gateway = gateway
        self.start = self.most = gateway.resident_bytes()

    async def watch(self) -> None:
        while True:
            self.most = max(self.most, self._gateway.resident_bytes())
            await trio.sleep(0.1)

    def __str__(self) -> str:
        return f"{self.start / 2**20:.1f} MiB, grew by {(self.most - self.start) / 2**20:.1f} MiB"


async def test_a_stuck_reader_costs_little_and_loses_nothing() -> None:
    ws = f"stuck-{uuid.uuid4().hex[:8]}"
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(trio.fail_after(LIMIT_S))
        gateway = await stack.enter_async_context(
            open_gateway_process(extra_args=NEVER_CUT, env={"NEW_INTERPRETERS": "1"})
        )
        swarm = stack.enter_context(Swarm(gateway.address, ws, READERS))

        async def connect(name: str, **settings: object) -> RawPeer:
            init = upstream.agent(ws, "special", name)
            peer = await stack.enter_async_context(open_raw_peer(gateway.address, init, **settings))
            first = await peer.receive()
            assert upstream.Down.FromString(first[0]).WhichOneof("payload") == "connection_ack"
            return peer

        publisher = Publisher(await connect("publisher"), f"ga::{ws}")
        deaf = Reader(await connect("deaf"))
        shut = Reader(await connect("shut", window=DEFAULT_WINDOW))
        await swarm.wait_for("connected", READERS)
        nursery = await stack.enter_async_context(trio.open_nursery())
        nursery.start_soon(publisher.read)

        async def latency() -> dict[str, object]:
            """Of messages that are sent one after another, to all readers."""
            await swarm.ask("latency")
            await publisher.paced(PACED)
            await swarm.wait_for("least", publisher.sent)
            return await swarm.ask("latency")

        # All subscribers read: the allocators reach their working size, and the latency without a
        # stuck reader is taken.
        async with trio.open_nursery() as warm:
            for reader in (deaf, shut):
                warm.start_soon(reader.read_until, WARM_UP + PACED)
            await publisher.flood(WARM_UP, swarm)
            before = await latency()

        # Both stop: one leaves its socket alone, the other goes on reading, but its window closes
        # behind what it has.
        shut.peer.h2.shut()
        end = publisher.sent + FLOOD + PACED
        reading = await stack.enter_async_context(trio.open_nursery())
        reading.start_soon(shut.read_until, end)
        memory = Memory(gateway)
        nursery.start_soon(memory.watch)
        started = trio.current_time()
        await publisher.flood(FLOOD, swarm)
        took = trio.current_time() - started
        meanwhile = await latency()
        grown = memory.most - memory.start

        # And they read again.
        missed = {"deaf": end - deaf.next_number, "shut": end - shut.next_number}
        shut.peer.h2.reopen()
        await shut.peer.flush()
        await deaf.read_until(end)
        while shut.next_number < end:
            await trio.sleep(0.01)
        async with trio.open_nursery() as warm:
            for reader in (deaf, shut):
                warm.start_soon(reader.read_until, end + PACED)
            after = await latency()
        nursery.cancel_scope.cancel()

    print(
        f"\n{FLOOD:,} messages to {READERS} readers and 2 stuck ones in {took:.1f} s; gateway {memory};"
        f"\nthe stuck ones had {missed} messages to catch up"
        f"\nothers' latency in ms, before {before}\n               meanwhile {meanwhile}\n                   after {after}"
    )
    assert min(missed.values()) > FLOOD // 2, f"they were not stuck at all: {missed}"
    assert grown < MAX_GROWTH_BYTES, str(memory)
