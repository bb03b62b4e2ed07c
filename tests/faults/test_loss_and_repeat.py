"""The application loses and repeats nothing, whatever happens to connections.

Senders and receivers of our own client talk over the binary framing, through a proxy that cuts,
ends, half-closes, truncates, stalls, delays and starves their connections at random. Sends are
acknowledged after the commit and repeated by their numbers after a cut; deliveries are acknowledged
by the application. In one variant the gateway is killed and started again as well, so the numbers
that tell a repetition must have been committed with their messages.

Each receiver must see each sender's numbers exactly once and in order. A run lasts about ten
seconds, and where the machine is slow as long as it takes to be as bad as it is meant to be; with
TESTS_FULL=1 in the environment it lasts two minutes.
"""

from __future__ import annotations

import itertools
import os
import random
import struct
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
import trio

from aether_trio.client import AetherError, AgentClient, Publication, Retry
from aether_trio.devtools.fault_proxy import FaultProxy, NetworkFault, open_fault_proxy
from aether_trio.devtools.random_faults import RandomFaults
from tests.helpers.gateway import GatewayProcess, open_gateway_process

FULL = os.environ.get("TESTS_FULL") == "1"
DURATION_S = 120.0 if FULL else 8.0
SENDERS = 4
RECEIVERS = 3
BURST = 60
"""Messages that a sender publishes at once, at most."""
PAUSE_S = 0.05
"""Mean pause between its bursts."""
PAYLOAD_BYTES = 3000
LIMIT_S = DURATION_S + 120.0
KILLS = 4 if FULL else 2
MUST_HAPPEN = (NetworkFault.CUT, NetworkFault.END, NetworkFault.HALF_CLOSE, NetworkFault.TRUNCATE, NetworkFault.STALL)

_NUMBER = struct.Struct(">HI")
_END = 2**32 - 1


@dataclass
class Tally:
    """What was sent and what came. Numbers are per sender and receiver, from 0."""

    sent: Counter[tuple[int, int]] = field(default_factory=Counter)
    received: dict[tuple[int, int], list[int]] = field(default_factory=dict)
    sent_again: int = 0
    dropped_by_clients: int = 0
    connections: int = 0
    kills: int = 0

    @property
    def lost(self) -> int:
        return sum(len(set(range(count)) - set(self.received.get(pair, ()))) for pair, count in self.sent.items())

    @property
    def repeated(self) -> int:
        return sum(len(numbers) - len(set(numbers)) for numbers in self.received.values())

    @property
    def out_of_order(self) -> int:
        return sum(later <= earlier for each in self.received.values() for earlier, later in itertools.pairwise(each))


class Run:
    """One run: its participants, through the proxy, until `over`."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.over = False
        self.tally = Tally()
        self.clients: list[AgentClient] = []

    @asynccontextmanager
    async def connected(self, proxy: FaultProxy, kind: str, number: int) -> AsyncIterator[AgentClient]:
        chance = random.Random(f"{self.seed} {kind} {number}")

        def lost(_: AetherError) -> None:
            self.tally.sent_again += client._dispatch.send_queue.written_unsettled

        client = AgentClient(
            f"aether://{proxy.address}",
            workspace="default",
            implementation=kind,
            specifier=str(number),
            connect_timeout_s=LIMIT_S,
            handshake_timeout_s=5,
            retry=Retry(base_s=0.02, cap_s=0.5, steady_s=0.2, random=chance.random),
            credit_messages=200,
            max_unsettled=500,
            on_disconnected=lost,
        )
        self.clients.append(client)
        async with client:
            yield client

    def count(self) -> None:
        """Bring the tally up to date with what the clients know."""
        self.tally.connections = sum(client.connections for client in self.clients)
        self.tally.dropped_by_clients = sum(client._dispatch.inbox.duplicates for client in self.clients)

    def was_bad(self, proxy: FaultProxy) -> bool:
        """Whether everything has happened that the run is for."""
        self.count()
        faults, tally = proxy.statistics().faults, self.tally
        return (
            all(faults.get(fault, 0) for fault in MUST_HAPPEN)
            and tally.sent_again > 0
            and tally.dropped_by_clients > 0
            and tally.connections > 3 * (SENDERS + RECEIVERS)
        )

    async def send(self, proxy: FaultProxy, sender: int) -> None:
        chance = random.Random(f"{self.seed} sender {sender}")
        publications: list[Publication] = []
        async with self.connected(proxy, "sender", sender) as client:
            while not self.over:
                for _ in range(chance.randint(1, BURST)):
                    receiver = chance.randrange(RECEIVERS)
                    number = self.tally.sent[sender, receiver]
                    self.tally.sent[sender, receiver] += 1
                    padding = bytes(int(PAYLOAD_BYTES * chance.random() ** 4))
                    payload = _NUMBER.pack(sender, number) + padding
                    publications.append(await client.publish(f"ag::default::receiver::{receiver}", payload))
                await trio.sleep(chance.expovariate(1 / PAUSE_S))
            await client.flush()
            assert all(one.settled and one.error is None for one in publications)
            for receiver in range(RECEIVERS):
                await client.send(f"ag::default::receiver::{receiver}", _NUMBER.pack(sender, _END))

    async def receive(self, proxy: FaultProxy, receiver: int) -> None:
        chance = random.Random(f"{self.seed} receiver {receiver}")
        ended: set[int] = set()
        async with self.connected(proxy, "receiver", receiver) as client:
            async for message in client:
                sender, number = _NUMBER.unpack_from(message.payload)
                if number == _END:
                    ended.add(sender)
                    if len(ended) == SENDERS:
                        break
                else:
                    self.tally.received.setdefault((sender, receiver), []).append(number)
                if chance.random() < 0.01:
                    # An application takes its time: what waits for it survives the cuts as well.
                    await trio.sleep(0.02)

    async def play(self, gateway: GatewayProcess, *, kills: int) -> FaultProxy:
        faults = RandomFaults(
            random.Random(self.seed), mean_s=0.4, mean_bytes=40_000, stall_s=0.15, over=lambda: self.over
        )
        with trio.fail_after(LIMIT_S):
            async with open_fault_proxy(gateway.address, faults) as proxy, trio.open_nursery() as nursery:
                for number in range(SENDERS):
                    nursery.start_soon(self.send, proxy, number)
                for number in range(RECEIVERS):
                    nursery.start_soon(self.receive, proxy, number)
                for _ in range(kills):
                    await trio.sleep(DURATION_S / (kills + 1))
                    await trio.to_thread.run_sync(gateway.kill)
                    self.tally.kills += 1
                    await trio.to_thread.run_sync(gateway.restart)
                await trio.sleep(DURATION_S / (kills + 1))
                while not self.was_bad(proxy):
                    await trio.sleep(0.1)
                self.over = True
                for connection in proxy.open.values():
                    connection.upstream.release()
                    connection.downstream.release()
        self.count()
        return proxy

    def table(self, proxy: FaultProxy) -> str:
        tally, statistics = self.tally, proxy.statistics()
        rows: list[tuple[str, int]] = [(fault.value, statistics.faults.get(fault, 0)) for fault in NetworkFault]
        rows += [
            ("kill -9", tally.kills),
            ("connections", tally.connections),
            ("messages sent", sum(tally.sent.values())),
            ("received", sum(map(len, tally.received.values()))),
            ("in doubt at a cut and sent again", tally.sent_again),
            ("came again and were dropped by the client", tally.dropped_by_clients),
            ("lost", tally.lost),
            ("repeated", tally.repeated),
            ("out of order", tally.out_of_order),
        ]
        return f"seed {self.seed}\n" + "\n".join(f"  {name:<42}{count:>8}" for name, count in rows)


@pytest.mark.parametrize(("seed", "kills"), [(1, 0), (2, 0), (3, 0), (1, KILLS)], ids=["1", "2", "3", "1-kill"])
async def test_nothing_is_lost_and_nothing_is_repeated(seed: int, kills: int) -> None:
    run = Run(seed)
    async with open_gateway_process() as gateway:
        proxy = await run.play(gateway, kills=kills)
        assert "Traceback" not in gateway.output()
    print(run.table(proxy))
    tally = run.tally
    assert (tally.lost, tally.repeated, tally.out_of_order) == (0, 0, 0)
    assert sum(map(len, tally.received.values())) == sum(tally.sent.values())
    assert run.was_bad(proxy)
