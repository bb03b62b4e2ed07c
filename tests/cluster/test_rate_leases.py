"""A rate on several nodes: shared by demand, given back, never exceeded."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import msgspec
import pytest
import trio

from aether_trio.cluster import rate_leases
from aether_trio.cluster.rate_leases import LeasedRates
from aether_trio.model.clock import SystemClock
from aether_trio.model.rate_lease import LeaseBook
from aether_trio.storage.base import CommitUnknown
from tests.cluster.nodes import LONG_S, Node, Nodes, until
from tests.helpers.engines import PostgresEngine

RATE = 200.0
W = "lab"


class Sender:
    """A node's rates, and messages that are offered at a steady pace."""

    def __init__(self, rates: LeasedRates) -> None:
        self.rates = rates
        self.accepted = self.offered = 0
        self.demand = 0.0
        self.rate = RATE
        self.begins: float | None = None

    @property
    def lease(self) -> float:
        one = self.rates._workspaces.get(W)
        return 0.0 if one is None else one.bucket.rate

    async def run(self) -> None:
        """Offer messages, as many as are due; a machine that stalls offers them later."""
        owed, last = 0.0, trio.current_time()
        while True:
            await trio.sleep(0.02)
            now = trio.current_time()
            owed += self.demand * (now - last)
            last = now
            while owed >= 1:
                owed -= 1
                self.offered += 1
                self.accepted += self.rates.take(W, self.rate, now)


@asynccontextmanager
async def sending(*nodes: Node) -> AsyncIterator[list[Sender]]:
    clock = SystemClock(trio.current_time)
    senders: list[Sender] = []
    async with trio.open_nursery() as nursery:
        for node in nodes:
            database = await node.server.database("tasks")
            rates = LeasedRates(database, node.cluster.bus, node.cluster.lease, clock)
            senders.append(Sender(rates))
            nursery.start_soon(rates.run)
            nursery.start_soon(senders[-1].run)
        with trio.fail_after(2 * LONG_S):
            yield senders
        nursery.cancel_scope.cancel()


def book(place: PostgresEngine) -> Mapping[str, list[float]]:
    found = place.rows("SELECT leases FROM rate_leases")
    value: Mapping[str, list[float]] = msgspec.json.decode(found[0][0]) if found else {}
    return value


async def test_a_node_that_is_alone_has_all_and_gives_it_back(nodes: Nodes, place: PostgresEngine) -> None:
    async with sending(await nodes.start()) as (one,):
        one.demand = 5.0
        await until(lambda: one.lease == RATE)
        one.demand = 0.0
        await until(lambda: len(one.rates) == 0)
        assert book(place) == {}


async def test_a_first_message_is_not_refused(nodes: Nodes) -> None:
    async with sending(await nodes.start()) as (one,):
        for rate in (0.5, 10.0, 1000.0):
            assert one.rates.take(f"w{rate}", rate, trio.current_time())


async def test_uneven_demand_is_shared_and_a_newcomer_gets_its_share(nodes: Nodes, place: PostgresEngine) -> None:
    async with sending(*[await nodes.start() for _ in range(3)]) as (a, b, c):
        a.demand = 500.0
        await until(lambda: a.lease == RATE)
        b.demand = 500.0
        await until(lambda: a.lease == b.lease == pytest.approx(RATE / 2))
        c.demand = 20.0
        await until(lambda: 19 <= c.lease <= 40 and a.lease == b.lease == pytest.approx((RATE - c.lease) / 2, abs=3))
        a.demand = b.demand = 10.0
        c.demand = 500.0
        await until(lambda: c.lease > 0.7 * RATE)
        assert LeaseBook.of(book(place)).leased(0) <= RATE * (1 + 1e-9)


async def test_three_nodes_together_accept_no_more_than_the_rate(nodes: Nodes, place: PostgresEngine) -> None:
    async with sending(*[await nodes.start() for _ in range(3)]) as senders:
        for sender, demand in zip(senders, (900.0, 150.0, 40.0), strict=True):
            sender.demand = demand
        await until(lambda: sum(one.lease for one in senders) > 0.9 * RATE)
        await trio.sleep(2.0)
        accepted, began = sum(one.accepted for one in senders), trio.current_time()
        for _ in range(20):
            await trio.sleep(0.1)
            assert LeaseBook.of(book(place)).leased(0) <= RATE * (1 + 1e-9)
        passed = trio.current_time() - began
        # What the buckets hold comes on top, at most one second's worth.
        assert sum(one.accepted for one in senders) - accepted <= RATE * (passed + 1) + 3


async def test_the_lease_of_a_dead_node_returns(nodes: Nodes) -> None:
    one, two = await nodes.start(), await nodes.start()
    async with sending(two) as (alive,):
        async with sending(one) as (dead,):
            dead.demand = 500.0
            await until(lambda: dead.lease > 0)
        # It has not given anything back.
        alive.demand = 500.0
        await until(lambda: alive.lease == RATE)


async def test_a_node_at_its_end_gives_its_lease_back(nodes: Nodes, place: PostgresEngine) -> None:
    async with sending(await nodes.start()) as (one,):
        one.demand = 500.0
        await until(lambda: one.lease == RATE)
        one.demand = 0.0
        await one.rates.give_back()
        assert LeaseBook.of(book(place)).leased(0) == 0


async def test_another_rate_counts_at_once(nodes: Nodes) -> None:
    async with sending(await nodes.start(), await nodes.start()) as senders:
        for one in senders:
            one.demand = 500.0
        await until(lambda: sum(one.lease for one in senders) == pytest.approx(RATE))
        for one in senders:
            one.rate = 50.0
        await until(lambda: all(one.lease == pytest.approx(25.0) for one in senders))


async def test_a_lease_in_doubt_is_not_used(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    async with sending(await nodes.start()) as (one,):
        one.demand = 500.0
        await until(lambda: one.lease == RATE)
        run = one.rates._database.run

        async def in_doubt(*args: object) -> None:
            await trio.lowlevel.checkpoint()
            raise CommitUnknown("no answer")

        monkeypatch.setattr(one.rates._database, "run", in_doubt)
        await until(lambda: one.lease == 0)
        accepted = one.accepted
        await trio.sleep(0.2)
        assert one.accepted == accepted
        monkeypatch.setattr(one.rates._database, "run", run)
        await until(lambda: one.lease == RATE)


async def test_old_books_are_forgotten(nodes: Nodes, place: PostgresEngine) -> None:
    async with sending(await nodes.start()) as (one,):
        one.rates.take("old", 10.0, trio.current_time())
        await until(lambda: len(book(place)) == 0 and place.rows("SELECT count(*) FROM rate_leases") == [(1,)])
        ends_ms = place.rows("SELECT ends_ms FROM rate_leases")[0][0]
        forget = rate_leases.forget_ended
        assert await one.rates._database.run(lambda: forget(ends_ms)) == 0
        assert await one.rates._database.run(lambda: forget(ends_ms + 1)) == 1
