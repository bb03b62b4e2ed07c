"""Ways to the server that stall: found out by asking the server, not by waiting for a limit on time, which is far away in these tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
import trio

from aether_trio.storage.base import CommitUnknown, Execute, Program
from aether_trio.storage.postgres import PostgresDatabase, open_postgres
from aether_trio.storage.postgres_connections import PostgresLimits
from aether_trio.testing.fault_proxy import FaultProxy, open_fault_proxy
from tests.helpers.engines import PostgresEngine
from tests.helpers.postgres import PostgresServer, open_postgres_server
from tests.storage.programs import CREATE, LONG_S, ids, insert

NEVER_S = 10 * LONG_S
NO_LIMITS = PostgresLimits(
    writers=1,
    readers=1,
    patience_s=NEVER_S,
    connect_s=NEVER_S,
    statement_s=NEVER_S,
    lock_s=NEVER_S,
    idle_in_transaction_s=NEVER_S,
    transaction_s=NEVER_S,
    silence_s=NEVER_S,
    slow_s=0.2,
    look_s=0.3,
)


@pytest.fixture(scope="module")
def tcp_server() -> Iterator[PostgresServer]:
    with open_postgres_server(tcp=True) as server:
        yield server


@asynccontextmanager
async def proxied(server: PostgresServer) -> AsyncIterator[tuple[PostgresDatabase, FaultProxy]]:
    server.psql("DROP SCHEMA IF EXISTS aether CASCADE")
    async with open_fault_proxy(f"127.0.0.1:{server.port}") as proxy:
        dsn = server.dsn(port=int(proxy.address.rpartition(":")[2]))
        with trio.fail_after(LONG_S):
            async with open_postgres(dsn, limits=NO_LIMITS) as opened:
                database = await opened.database("scratch")
                await database.execute(CREATE)
                try:
                    yield database, proxy
                finally:
                    for connection in list(proxy.open.values()):
                        connection.cut()


def stall(proxy: FaultProxy, *, answers_only: bool = False) -> None:
    """What is open by now carries nothing any more; what is opened later does."""
    for connection in proxy.open.values():
        connection.downstream.stall()
        if not answers_only:
            connection.upstream.stall()


async def test_a_transaction_whose_way_stalls_runs_again_and_its_locks_are_free(tcp_server: PostgresServer) -> None:
    async with proxied(tcp_server) as (database, proxy):
        await database.run(insert(1, b"0"))
        runs = 0

        def program() -> Program[None]:
            nonlocal runs
            runs += 1
            yield Execute("UPDATE items SET data = data || '+'::bytea WHERE id = 1")
            if runs == 1:
                stall(proxy)
            yield Execute("UPDATE items SET data = data || '-'::bytea WHERE id = 1")

        await database.run(program)
        assert runs == 2
        assert await database.fetch("SELECT data FROM items") == [(b"0+-",)]
        assert database.statistics().stalls >= 1


async def test_a_commit_whose_answer_does_not_come_is_unknown_and_not_lost(tcp_server: PostgresServer) -> None:
    async with proxied(tcp_server) as (database, proxy):
        await database.run(insert(1))
        stall(proxy, answers_only=True)
        with pytest.raises(CommitUnknown):
            await database.execute("INSERT INTO items (id) VALUES (2)")
        assert await ids(database) == [1, 2]
        assert database.statistics().stalls >= 1


async def test_a_read_whose_way_stalls_runs_again(tcp_server: PostgresServer) -> None:
    async with proxied(tcp_server) as (database, proxy):
        await database.run(insert(1))
        assert await ids(database) == [1]
        stall(proxy)
        assert await ids(database) == [1]
        assert database.statistics().stalls >= 1


async def test_who_waits_for_a_lock_or_is_slow_is_left_alone(postgres_engine: PostgresEngine) -> None:
    async with postgres_engine.open(limits=NO_LIMITS) as database:
        await database.execute(CREATE)
        watch = database._server.watch
        with trio.fail_after(LONG_S):
            async with trio.open_nursery() as nursery:
                postgres_engine.outside("BEGIN; LOCK TABLE items IN EXCLUSIVE MODE")
                try:
                    nursery.start_soon(database.run, insert(1))
                    while watch.looks < 4:
                        await trio.sleep(0.01)
                finally:
                    postgres_engine.outside("COMMIT")
        assert await ids(database) == [1]
        assert watch.cuts == database.statistics().losses == 0


async def test_a_large_message_on_a_slow_way_is_no_stall(tcp_server: PostgresServer) -> None:
    async with proxied(tcp_server) as (database, proxy):
        watch = database._server.watch
        await database.run(insert(1))
        for connection in proxy.open.values():
            connection.upstream.drip(64 * 1024, 0.05)
        await database.run(insert(2, bytes(6 * 1024 * 1024)))
        assert watch.looks >= 4, "it was over too soon to show anything"
        assert await database.fetch("SELECT length(data) FROM items ORDER BY id") == [(0,), (6 * 1024 * 1024,)]
        assert watch.cuts == database.statistics().losses == 0


async def test_a_watch_that_reaches_no_server_decides_nothing(tcp_server: PostgresServer) -> None:
    async with proxied(tcp_server) as (database, proxy):
        await database.run(insert(1))
        watch = database._server.watch
        tried = 0

        async def refused() -> None:
            nonlocal tried
            tried += 1
            raise ConnectionRefusedError

        watch._connect = refused
        stall(proxy)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(database.run, insert(2))
            while tried < 3:
                await trio.sleep(0.01)
            assert database.statistics().losses == 0
            for connection in proxy.open.values():
                connection.upstream.release()
                connection.downstream.release()
        assert await ids(database) == [1, 2]
        assert watch.cuts == database.statistics().losses == 0
