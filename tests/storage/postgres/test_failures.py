"""Failures of PostgreSQL: lost processes, restarts, crashes, stalled networks.

What was answered is written, what was refused is not, and only CommitUnknown leaves it open.
Afterwards the engine goes on, and no connection has been left half-used.
"""

from __future__ import annotations

import math
import random
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
import structlog
import trio

from aether_trio.storage.base import CommitUnknown, Execute, Program, StorageUnavailable
from aether_trio.storage.errors import StorageSetupError
from aether_trio.storage.postgres.connections import PostgresLimits
from aether_trio.storage.postgres.database import PostgresDatabase, open_postgres
from aether_trio.storage.retry import retry_while_unavailable
from tests.helpers.engines import PostgresEngine
from tests.helpers.postgres import PostgresServer, open_postgres_server
from tests.storage.load import PATIENT, Load, no_connection_is_half_used, proxied
from tests.storage.programs import CREATE, LONG_S, ids, insert, pair

END_BACKENDS = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'aether-%'"


@pytest.fixture(scope="module")
def fragile_server() -> Iterator[PostgresServer]:
    """One that a test may break, on a TCP port."""
    with open_postgres_server(tcp=True) as server:
        yield server


@pytest.fixture
def fragile(fragile_server: PostgresServer) -> Iterator[PostgresServer]:
    fragile_server.psql("DROP SCHEMA IF EXISTS aether CASCADE")
    yield fragile_server
    fragile_server.stop()
    fragile_server.start()


@asynccontextmanager
async def opened(dsn: str, limits: PostgresLimits = PATIENT) -> AsyncIterator[PostgresDatabase]:
    async with open_postgres(dsn, limits=limits) as server:
        database = await server.database("scratch")
        await database.execute(CREATE)
        yield database


async def test_lost_backends_under_load(fragile: PostgresServer) -> None:
    async def weather() -> None:
        for _ in range(8):
            await trio.to_thread.run_sync(fragile.psql, f"{END_BACKENDS} ORDER BY random() LIMIT 2")
            await load.more(10)

    async with opened(fragile.dsn()) as database:
        load = Load(database)
        await load.run(weather)
        assert database.statistics().losses > 0
        await no_connection_is_half_used(database, fragile)


async def test_idle_connections_that_were_cut_are_not_noticed(fragile: PostgresServer) -> None:
    async with opened(fragile.dsn()) as database:
        for number in range(5):
            fragile.psql(END_BACKENDS)
            await database.run(insert(number))
            assert await ids(database) == list(range(number + 1))


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGQUIT, signal.SIGKILL])
async def test_a_server_that_restarts_under_load_is_a_pause(fragile: PostgresServer, signum: signal.Signals) -> None:
    async def weather() -> None:
        for _ in range(2):
            await trio.to_thread.run_sync(lambda: fragile.stop(signum=signum))
            await trio.sleep(0.1)
            await trio.to_thread.run_sync(fragile.start)
            await load.more()

    async with opened(fragile.dsn()) as database:
        load = Load(database)
        await load.run(weather)
        assert not load.refused
        await no_connection_is_half_used(database, fragile)


async def test_a_server_that_stays_away_is_said_so_at_once_and_comes_back(fragile: PostgresServer) -> None:
    async with opened(fragile.dsn()) as database:
        await database.run(insert(1))
        assert await ids(database) == [1]
        for pool in (database._server.writers, database._server.readers):
            pool._patience_s = 0.5
        await trio.to_thread.run_sync(fragile.stop)
        with pytest.raises(StorageUnavailable, match="the server is away"):
            await database.run(insert(2))
        # The patience is over: no caller waits any more.
        for _ in range(200):
            with pytest.raises(StorageUnavailable, match="the server is away"):
                await database.run(insert(3))
        with pytest.raises(StorageUnavailable, match="the server is away"):
            await database.fetch("SELECT 1")
        assert database.statistics().failing
        await database.wait_failed()
        await trio.to_thread.run_sync(fragile.start)
        with trio.fail_after(LONG_S):
            await retry_while_unavailable(lambda: database.run(insert(4)), "the test", structlog.get_logger())
            # Readers look for the server without the writers.
            found = await retry_while_unavailable(lambda: ids(database), "the test", structlog.get_logger())
        assert found == [1, 4]
        assert not database.statistics().failing


async def test_a_server_that_is_not_there_yet_is_waited_for(fragile: PostgresServer) -> None:
    fragile.stop()
    async with trio.open_nursery() as nursery, open_postgres(fragile.dsn(), limits=PATIENT) as server:
        nursery.start_soon(trio.to_thread.run_sync, fragile.start)
        with trio.fail_after(LONG_S):
            state = await server.database("state")
        assert await state.fetch("SELECT count(*) FROM kv_entries") == [(0,)]
    fragile.stop()
    with pytest.raises(StorageSetupError, match="cannot be reached"):
        async with open_postgres(fragile.dsn(), limits=PostgresLimits(patience_s=0.3)) as server:
            await server.database("state")


DIES_AT_COMMIT = """
    CREATE FUNCTION die() RETURNS trigger LANGUAGE plpgsql AS
        'BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); PERFORM pg_sleep(0.1); RETURN NULL; END';
    CREATE CONSTRAINT TRIGGER dies AFTER INSERT ON items DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW WHEN (NEW.id = 13) EXECUTE FUNCTION die()
"""


async def test_a_commit_without_an_answer_is_told_apart_from_a_refusal(postgres_engine: PostgresEngine) -> None:
    async with postgres_engine.open() as database:
        await database.execute(CREATE)
        postgres_engine.outside(DIES_AT_COMMIT)
        for _ in range(2):
            for write in (
                lambda: database.run(insert(13)),
                lambda: database.execute("INSERT INTO items (id) VALUES (13)"),
            ):
                with pytest.raises(StorageUnavailable) as raised:
                    await write()
                # Its server process is gone, and has not written.
                assert not isinstance(raised.value, CommitUnknown)
        await database.run(insert(14))
        assert await ids(database) == [14]


async def test_a_commit_whose_answer_was_lost_on_the_way_is_found(fragile: PostgresServer) -> None:
    """The other half: this time it is written, and not written again."""
    async with proxied(fragile, PostgresLimits(writers=1, patience_s=LONG_S)) as (database, proxy):
        await database.run(insert(1))
        runs = 0

        def program() -> Program[int]:
            nonlocal runs
            runs += 1
            yield Execute("INSERT INTO items (id) VALUES (2)")
            for connection in proxy.open.values():
                connection.downstream.discard()  # nothing that the server says from now on arrives
            return 7

        async def cut_when_written() -> None:
            while fragile.psql("SELECT count(*) FROM aether.items WHERE id = 2") != "1":
                await trio.sleep(0.01)
            proxy.cut_all()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(cut_when_written)
            assert await database.run(program) == 7
        assert runs == 1
        await database.run(insert(3))
        assert await ids(database) == [1, 2, 3]


async def test_a_link_that_is_cut_at_random_under_load(fragile: PostgresServer) -> None:
    chance = random.Random(5)

    async def weather() -> None:
        cuts = 0
        # A cut may come between two transactions.
        while cuts < 12 or not database.statistics().losses:
            connections = list(proxy.open.values())
            if connections:
                chance.choice(connections).cut()
                cuts += 1
            await load.more(5)

    async with proxied(fragile) as (database, proxy):
        load = Load(database)
        await load.run(weather)
        await no_connection_is_half_used(database, fragile)


async def test_a_stalled_link_is_replaced_in_time(fragile: PostgresServer) -> None:
    limits = PostgresLimits(writers=1, readers=1, transaction_s=3.0, connect_s=3.0, patience_s=LONG_S)
    async with proxied(fragile, limits) as (database, proxy):
        await database.run(insert(1))
        await ids(database)
        stalled = list(proxy.open.values())
        for connection in stalled:
            connection.downstream.stall()
        # The new connections that they try are fine.
        assert await ids(database) == [1]
        await database.execute("INSERT INTO items (id) VALUES (2)")
        await database.run(insert(3))
        assert await ids(database) == [1, 2, 3]
        for connection in stalled:
            connection.cut()


async def test_cancelling_at_any_moment_leaves_no_connection_half_used(fragile: PostgresServer) -> None:
    chance = random.Random(7)
    finished: list[int] = []
    cancelled: list[bool] = []

    async def caller(number: int, longest_s: float) -> None:
        with trio.move_on_after(longest_s * chance.random()) as scope:
            if number % 3:
                await database.run(pair(number))
                finished.append(number)
            else:
                await database.fetch("SELECT count(*), pg_sleep(0.001) FROM items")
        cancelled.append(scope.cancelled_caught)

    async with opened(fragile.dsn()) as database:
        longest_s = math.inf
        for start in range(1, 600, 60):
            started = trio.current_time()
            async with trio.open_nursery() as nursery:
                for number in range(start, start + 60):
                    nursery.start_soon(caller, number, longest_s)
            if longest_s == math.inf:  # the time that they take undisturbed
                longest_s = trio.current_time() - started
        with trio.fail_after(LONG_S):
            while not database.idle:
                await trio.sleep(0.005)
        await no_connection_is_half_used(database, fragile)
        there = {*await ids(database)}
        assert there == {-one for one in there} >= set(finished)
        assert database.statistics().losses == 0
        assert len(finished) >= 40
        assert any(cancelled)


@pytest.fixture
def primary_and_standby() -> Iterator[tuple[PostgresServer, PostgresServer]]:
    with open_postgres_server(tcp=True) as primary, open_postgres_server(tcp=True, standby_of=primary) as standby:
        primary.psql("ALTER SYSTEM SET synchronous_standby_names = '*'")
        primary.psql("SELECT pg_reload_conf()")
        while primary.psql("SELECT sync_state FROM pg_stat_replication") != "sync":
            pass
        yield primary, standby


@pytest.mark.parametrize("standby_first", [False, True])
async def test_the_primary_dies_under_load_and_the_standby_is_promoted(
    primary_and_standby: tuple[PostgresServer, PostgresServer], standby_first: bool
) -> None:
    primary, standby = primary_and_standby
    hosts = [f"127.0.0.1:{one.port}" for one in primary_and_standby[:: -1 if standby_first else 1]]
    dsn = f"postgresql://postgres@{','.join(hosts)}/postgres"

    async def weather() -> None:
        await trio.to_thread.run_sync(lambda: primary.stop(signum=signal.SIGKILL))
        await trio.sleep(0.2)
        await trio.to_thread.run_sync(standby.psql, "SELECT pg_promote()")

    async with open_postgres(dsn, limits=PATIENT) as server:
        database = await server.database("scratch")
        await database.execute(CREATE)
        load = Load(database)
        await load.run(weather)
        assert not load.refused
        assert await database.fetch("SHOW port") == [(str(standby.port),)]
