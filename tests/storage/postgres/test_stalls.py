"""Stalled PostgreSQL connections are found by asking the server, before any limit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import trio

from aether_trio.devtools.fault_proxy import FaultProxy
from aether_trio.storage.base import CommitUnknown, Execute, Program
from aether_trio.storage.postgres.connections import PostgresLimits
from aether_trio.storage.postgres.database import open_postgres
from aether_trio.storage.postgres.writer import TURN_CONNECTIONS
from aether_trio.storage.session_writes import CURRENT_SESSION_WRITES, SessionWrites
from tests.helpers.engines import PostgresEngine
from tests.helpers.postgres import PostgresServer, open_postgres_server
from tests.helpers.postgres_session import open_postgres_session
from tests.storage.load import proxied
from tests.storage.programs import CREATE, LONG_S, ids, insert

NEVER_S = 10 * LONG_S
MANY = 100
"""Programs for which a writer opens all connections that it may have."""
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


def stall(proxy: FaultProxy, *, answers_only: bool = False) -> None:
    """What is open by now carries nothing any more; what is opened later does."""
    for connection in proxy.open.values():
        connection.downstream.stall()
        if not answers_only:
            connection.upstream.stall()


async def test_a_transaction_whose_way_stalls_runs_again_and_its_locks_are_free(tcp_server: PostgresServer) -> None:
    async with proxied(tcp_server, NO_LIMITS) as (database, proxy):
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


@pytest.mark.parametrize("answers_only", [True, False], ids=["the answer", "the commit"])
async def test_what_has_become_of_a_commit_is_found_out(tcp_server: PostgresServer, answers_only: bool) -> None:
    async with proxied(tcp_server, NO_LIMITS) as (database, proxy):
        await database.run(insert(1))
        runs = 0

        def program() -> Program[int]:
            nonlocal runs
            runs += 1
            yield Execute("UPDATE items SET data = data || '+'::bytea WHERE id = 1")
            if runs == 1:
                stall(proxy, answers_only=answers_only)
            return runs

        assert await database.run(program) == (1 if answers_only else 2)
        assert await database.fetch("SELECT data FROM items") == [(b"+",)]
        assert database.statistics().stalls >= 1


async def test_an_unknown_outcome_is_said_and_decided_before_the_next_write(tcp_server: PostgresServer) -> None:
    """The commit is on its way when its program is answered, and may arrive later."""
    pending = SessionWrites()
    async with proxied(tcp_server, replace(NO_LIMITS, transaction_s=1.0, patience_s=0.5)) as (database, proxy):
        await database.run(insert(1))
        runs = 0
        target = proxy.target

        def program() -> Program[None]:
            nonlocal runs
            runs += 1
            yield Execute("UPDATE items SET data = 'unknown' WHERE id = 1")
            stall(proxy)
            proxy.target = lambda: ()  # no server is there

        stalled = list(proxy.open.values())
        token = CURRENT_SESSION_WRITES.set(pending)
        with pytest.raises(CommitUnknown):
            await database.run(program)
        CURRENT_SESSION_WRITES.reset(token)
        assert (runs, pending.count) == (1, 1)
        proxy.target = target
        await pending.wait_none()  # though nothing is written
        await database.execute("UPDATE items SET data = 'later' WHERE id = 1")
        for connection in stalled:
            connection.upstream.release()
        assert await database.fetch("SELECT data FROM items") == [(b"later",)]
        for _ in range(20):
            await database.run(insert(2))
            await database.execute("DELETE FROM items WHERE id = 2")
        assert await database.fetch("SELECT data FROM items") == [(b"later",)]


async def test_a_read_whose_way_stalls_runs_again(tcp_server: PostgresServer) -> None:
    async with proxied(tcp_server, NO_LIMITS) as (database, proxy):
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
    async with proxied(tcp_server, NO_LIMITS) as (database, proxy):
        watch = database._server.watch
        await database.run(insert(1))
        for connection in proxy.open.values():
            connection.upstream.drip(64 * 1024, 0.05)
        await database.run(insert(2, bytes(6 * 1024 * 1024)))
        assert watch.looks >= 4, "it was over too soon to show anything"
        assert await database.fetch("SELECT length(data) FROM items ORDER BY id") == [(0,), (6 * 1024 * 1024,)]
        assert watch.cuts == database.statistics().losses == 0


async def test_a_watch_that_reaches_no_server_decides_nothing(tcp_server: PostgresServer) -> None:
    async with proxied(tcp_server, NO_LIMITS) as (database, proxy):
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


async def test_the_turn_of_a_node_that_is_not_heard_of_ends(tcp_server: PostgresServer) -> None:
    """It has the turn unknowingly, as it or its network stalls; no other node watches."""
    limits = replace(NO_LIMITS, slow_s=NEVER_S, idle_in_transaction_s=0.5)
    async with proxied(tcp_server, limits) as (database, proxy):
        await database.run(insert(1))
        stall(proxy, answers_only=True)
        database.writer._polite = 1
        async with trio.open_nursery() as nursery:
            nursery.start_soon(database.run, insert(2))
            await until_turn_is_taken(tcp_server)
            async with open_postgres(tcp_server.dsn(), limits=NO_LIMITS) as elsewhere:
                other = await elsewhere.database("scratch")
                other.writer._polite = 2
                await other.run(insert(3))
                await other.run(insert(4))
                assert other.writer._polite == 0
            proxy.cut_all()


async def until_turn_is_taken(server: PostgresServer) -> None:
    taken = "SELECT count(*) FROM pg_locks WHERE mode = 'ExclusiveLock' AND locktype IN ('relation', 'advisory')"
    while server.psql(taken) == "0":
        await trio.sleep(0.01)


async def test_who_waits_for_a_turn_leaves_connections_to_other_databases(postgres_engine: PostgresEngine) -> None:
    """The turn may be held up by a connection of another node that stalls."""
    limits = replace(NO_LIMITS, writers=4, slow_s=NEVER_S)
    async with open_postgres(postgres_engine.server.dsn(), schema=postgres_engine.schema, limits=limits) as server:
        scratch, other = await server.database("scratch"), await server.database("other")
        await scratch.execute(CREATE)
        with open_postgres_session(postgres_engine.server.dsn()) as stuck:
            stuck.execute(f"SET search_path = {postgres_engine.schema}")
            stuck.execute("BEGIN; LOCK TABLE turn_scratch IN EXCLUSIVE MODE")
            scratch.writer._polite = 2
            async with trio.open_nursery() as nursery:
                for number in range(MANY):
                    nursery.start_soon(scratch.run, insert(number))
                try:
                    while postgres_engine.rows("SELECT count(*) FROM pg_locks WHERE NOT granted") < [(2,)]:
                        await trio.sleep(0.01)
                    assert scratch.writer._open == TURN_CONNECTIONS == 2
                    await other.execute("SELECT 1")
                    assert not scratch.idle
                finally:
                    stuck.execute("ROLLBACK")
        assert len(await ids(scratch)) == MANY


async def test_who_keeps_the_turn_without_a_limit_is_ended(postgres_engine: PostgresEngine) -> None:
    """PostgreSQL before 17 has no limit for a client that stops within a statement."""
    limits = replace(NO_LIMITS, lock_s=0.2, idle_in_transaction_s=0.1)
    async with postgres_engine.open(limits=limits) as database:
        await database.execute(CREATE)
        with open_postgres_session(postgres_engine.server.dsn()) as stuck:
            stuck.execute(
                f"SET search_path = {postgres_engine.schema}; BEGIN; LOCK TABLE turn_scratch IN EXCLUSIVE MODE"
            )
            held = "SELECT 1 FROM pg_locks WHERE relation = $1::text::regclass AND granted"
            table = f"{postgres_engine.schema}.turn_scratch"
            assert postgres_engine.rows(held, table)
            for number in range(3):
                database.writer._polite = 2
                await database.run(insert(number))
            with trio.fail_after(LONG_S):
                while postgres_engine.rows(held, table):
                    await trio.sleep(0.01)
        assert await ids(database) == [0, 1, 2]
