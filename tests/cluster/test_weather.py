"""The database goes away and comes back, and links to it stall."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import trio

from aether_trio.cluster.errors import FencedError, LeaseLost
from aether_trio.cluster.node.lease import LeaseState
from aether_trio.cluster.timeouts import ClusterLimits
from aether_trio.devtools.fault_proxy import FaultProxy, ProxiedConnection, open_fault_proxy
from aether_trio.storage.base import StorageUnavailable
from tests.cluster.nodes import HISTORY, SHORT_GRACE, STEADY, Node, Nodes, open_nodes, until
from tests.helpers.postgres import PostgresServer

X, Y = "ag::lab::x::1", "ag::lab::y::1"
NOTICES = replace(STEADY, probe_timeout_s=1.0)
"""For a link that stalls. A machine that stalls looks the same to a node, so it may notice more
than there is.
"""
SCHEMA = "weather"


@pytest.fixture
def fragile(tcp_server: PostgresServer) -> Iterator[PostgresServer]:
    tcp_server.psql(f"CREATE SCHEMA {SCHEMA}; SET search_path = {SCHEMA}; " + "; ".join(HISTORY))
    yield tcp_server
    tcp_server.stop()
    tcp_server.start()
    tcp_server.psql(f"SET client_min_messages = warning; DROP SCHEMA {SCHEMA} CASCADE")


@pytest.fixture
async def nodes(fragile: PostgresServer) -> AsyncIterator[Nodes]:
    async with open_nodes(fragile.dsn(), SCHEMA) as opened:
        yield opened


async def held(node: Node) -> None:
    await until(lambda: node.cluster.lease.held)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGQUIT], ids=["restart", "crash"])
async def test_a_short_database_restart_ends_no_session(nodes: Nodes, fragile: PostgresServer, signum: int) -> None:
    a, b = await nodes.start(), await nodes.start()
    x, y = await a.claim(X), await b.claim(Y)
    await trio.to_thread.run_sync(lambda: fragile.stop(signum=signum))
    await a.host.wait_told("lost")
    await b.host.wait_told("lost")
    claimed: list[object] = []

    async def claim() -> None:
        # Refused, or granted when a has its lease back: not by pretending to be alone.
        claimed.append(await a.claim("ag::lab::z::1"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(claim)
        await trio.to_thread.run_sync(fragile.start)
    await a.host.wait_told("back")
    await b.host.wait_told("back")
    assert len(claimed) == 1
    for node, hold in ((a, x.lock), (b, y.lock)):
        assert node.host.told == ["lost", "back"]
        assert node.host.lost == []
        assert node.cluster.locks.mine(hold.identity) == hold
        await node.write(hold.identity, hold.epoch)
    # The bus hears again, too.
    assert (await b.claim(X, resume=x.lock.session_id)).lock.epoch == 2


async def test_a_database_that_is_away_for_longer_ends_every_session_and_then_serves_again(
    nodes: Nodes, fragile: PostgresServer
) -> None:
    a, b = await nodes.start(limits=SHORT_GRACE), await nodes.start(limits=SHORT_GRACE)
    await a.claim(X)
    await trio.to_thread.run_sync(fragile.stop)
    await a.host.wait_told("gone")
    await b.host.wait_told("gone")
    with pytest.raises(LeaseLost):
        await b.claim(X)
    await trio.to_thread.run_sync(fragile.start)
    await held(a)
    await held(b)
    claimed = await b.claim(X)
    assert claimed.lock.epoch == 2
    await b.write(X, claimed.lock.epoch)


@asynccontextmanager
async def behind_a_proxy(
    nodes: Nodes, server: PostgresServer, limits: ClusterLimits
) -> AsyncIterator[tuple[FaultProxy, Node]]:
    async with open_fault_proxy(f"127.0.0.1:{server.port}") as proxy:
        node = await nodes.start(dsn=server.dsn(port=int(proxy.address.rpartition(":")[2])), limits=limits)
        yield proxy, node
        proxy.script = None
        proxy.cut_all()
        await nodes.stop(node)


def stall(*connections: ProxiedConnection) -> None:
    """Nothing comes through any more, in either direction, and neither side is told."""
    for connection in connections:
        connection.upstream.stall()
        connection.downstream.stall()


async def test_a_stalled_link_is_noticed_and_the_lease_taken_by_another(nodes: Nodes, fragile: PostgresServer) -> None:
    async with behind_a_proxy(nodes, fragile, NOTICES) as (proxy, a):
        x = await a.claim(X)
        stall(*proxy.open.values())
        times = a.host.told.count("back") + 1
        await a.host.wait_told("back", times)
        # The server believes in the old session: it has to be ended before the lock is free.
        assert a.host.told == ["lost", "back"] * times
        assert a.cluster.lease.epoch == 1
        assert a.cluster.locks.mine(X) == x.lock
        await until(lambda: a.cluster.bus.statistics().reconnects > 0)
        b = await nodes.start()
        a.host.gate = trio.Event()
        a.host.gate.set()
        assert (await b.claim(X, resume=x.lock.session_id)).lock.epoch == 2


async def test_a_node_that_is_cut_off_loses_wanted_locks_after_the_grace(nodes: Nodes, fragile: PostgresServer) -> None:
    b = await nodes.start(limits=SHORT_GRACE)
    async with behind_a_proxy(nodes, fragile, replace(NOTICES, lease_grace_s=3.0)) as (proxy, a):

        async def nothing(connection: ProxiedConnection) -> None:
            stall(connection)
            await trio.sleep_forever()

        x = await a.claim(X)
        await a.claim(Y)
        proxy.script = nothing
        stall(*proxy.open.values())
        claimed = await b.claim(X)
        assert claimed.lock.epoch == 2
        assert b.cluster.nodes.statistics().cut_off == 1
        await b.write(X, claimed.lock.epoch)
        await a.host.wait_told("gone")
        assert a.cluster.lease.state is LeaseState.AWAY
        assert a.cluster.locks.mine(X) is None
        proxy.script = None
        proxy.cut_all()
        with pytest.raises((FencedError, StorageUnavailable)):
            await a.write(X, x.lock.epoch)
        await held(a)
        assert a.cluster.lease.epoch == 2
        assert (await b.claim(Y)).lock.epoch == 2


async def test_a_claim_on_a_lost_connection_takes_nothing_afterwards(nodes: Nodes, fragile: PostgresServer) -> None:
    """It would take the row from a later session of the same node."""
    async with behind_a_proxy(nodes, fragile, replace(STEADY, statement_s=1.0)) as (proxy, a):
        await a.claim(Y)  # so that there is a connection
        pool = a.cluster.nodes.pool
        ports = {one._transport.get_extra_info("sockname")[1] for one, _ in pool._idle}
        stuck = [one for one in proxy.open.values() if one._client.getpeername()[1] in ports]
        for connection in stuck:
            connection.upstream.stall()
        first = await a.claim(X, session="first")  # over another connection
        assert a.cluster.locks.release(first.lock)
        await a.cluster.locks.batcher.settled()
        second = await a.claim(X, session="second")
        for connection in stuck:
            connection.upstream.release()
            connection.downstream.release()
        for _ in range(20):
            await a.write(Y, 1)
        holder = fragile.psql(
            f"SELECT session_id, ended_ms IS NULL FROM {SCHEMA}.identity_locks WHERE identity = '{X}'"
        )
        assert holder == "second|t"
        assert a.cluster.locks.mine(X) == second.lock
