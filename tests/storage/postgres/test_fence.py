"""The fence: a query behind every BEGIN, which can forbid a process to write."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from aether_trio.storage.base import FENCE_HERE, Fetch, StorageUnavailable
from aether_trio.storage.postgres.connections import PostgresLimits
from aether_trio.storage.postgres.database import PostgresDatabase, open_postgres
from aether_trio.storage.postgres.errors import FENCED, FencedError
from tests.helpers.engines import PostgresEngine
from tests.helpers.postgres_session import open_postgres_session
from tests.storage.programs import CREATE, LONG_S, ids, insert

LEASE = f"""
    CREATE TABLE lease (epoch bigint);
    INSERT INTO lease VALUES (1);
    CREATE FUNCTION look(mine bigint) RETURNS void LANGUAGE plpgsql AS $$ BEGIN
        PERFORM FROM lease WHERE epoch = mine FOR SHARE;
        IF NOT FOUND THEN RAISE EXCEPTION 'epoch % is over', mine USING ERRCODE = '{FENCED}'; END IF;
    END $$
"""


@asynccontextmanager
async def opened(
    engine: PostgresEngine, writers: int = 6
) -> AsyncIterator[tuple[PostgresDatabase, Callable[[int], None]]]:
    """A database, and a function that fences its writes with an epoch."""
    engine.outside(LEASE)
    limits = PostgresLimits(writers=writers, patience_s=LONG_S)
    async with open_postgres(engine.server.dsn(), schema=engine.schema, limits=limits) as server:
        database = await server.database("scratch")
        await database.execute(CREATE)
        yield database, lambda epoch: server.fence_writes(lambda: f"SELECT look({epoch})")


async def test_a_fence_that_is_shut_refuses_every_write_and_no_read(postgres_engine: PostgresEngine) -> None:
    async with opened(postgres_engine) as (database, fence):
        fence(1)
        await database.run(insert(1))
        await database.execute("INSERT INTO items (id) VALUES (2)")
        postgres_engine.outside("UPDATE lease SET epoch = 2")
        with pytest.raises(FencedError, match="epoch 1 is over"):
            await database.run(insert(3))
        with pytest.raises(FencedError):
            await database.execute("INSERT INTO items (id) VALUES (4)")
        with pytest.raises(FencedError):
            await database.executemany("INSERT INTO items (id) VALUES ($1)", [(5,), (6,)])
        assert await ids(database) == [1, 2]
        fence(2)
        await database.run(insert(7))
        assert await ids(database) == [1, 2, 7]


FENCED_INSERT = f"INSERT INTO items (id) SELECT $1::bigint FROM (SELECT {FENCE_HERE}) AS fence RETURNING id"


async def test_a_statement_with_the_fence_in_it_is_refused_alike(postgres_engine: PostgresEngine) -> None:
    async with opened(postgres_engine) as (database, fence):
        assert await database.write(Fetch(FENCED_INSERT, (1,))) == [(1,)]
        fence(1)
        assert await database.write(Fetch(FENCED_INSERT, (2,))) == [(2,)]
        postgres_engine.outside("UPDATE lease SET epoch = 2")
        with pytest.raises(FencedError, match="epoch 1 is over"):
            await database.write(Fetch(FENCED_INSERT, (3,)))
        assert await ids(database) == [1, 2]


async def test_a_statement_with_the_fence_holds_the_lease_until_committed(postgres_engine: PostgresEngine) -> None:
    async with opened(postgres_engine) as (database, fence):
        fence(1)
        with open_postgres_session(postgres_engine.server.dsn()) as other:
            other.execute(f"SET search_path = {postgres_engine.schema}")
            other.execute("BEGIN")
            other.execute("UPDATE lease SET epoch = 2")  # another node declares this process dead
            with trio.fail_after(LONG_S), pytest.RaisesGroup(FencedError):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(database.write, Fetch(FENCED_INSERT, (1,)))
                    while not postgres_engine.rows(
                        "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%INSERT INTO items%'"
                    ):
                        await trio.sleep(0.005)
                    other.execute("COMMIT")
        assert await ids(database) == []


async def test_the_fence_is_that_of_the_moment_of_submission(postgres_engine: PostgresEngine) -> None:
    refused: list[int] = []

    async def write(number: int) -> None:
        try:
            await database.run(insert(number))
        except FencedError:
            refused.append(number)

    async with opened(postgres_engine, writers=1) as (database, fence):
        postgres_engine.outside("BEGIN; LOCK TABLE items IN EXCLUSIVE MODE")
        with trio.fail_after(LONG_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(write, 0)
                while postgres_engine.rows(
                    "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND application_name <> ''"
                ) != [(1,)]:
                    await trio.sleep(0.005)
                for number in range(1, 7):
                    fence(1 if number < 4 else 2)
                    nursery.start_soon(write, number)
                    await trio.testing.wait_all_tasks_blocked()
                postgres_engine.outside("UPDATE lease SET epoch = 2; COMMIT")
        assert await ids(database) == [0, 4, 5, 6]
        assert sorted(refused) == [1, 2, 3]


async def test_a_statement_with_the_fence_that_is_refused_at_once_is_answered(
    postgres_engine: PostgresEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away() -> None:
        raise StorageUnavailable("the server is away")

    statement = Fetch(FENCED_INSERT, (1,))
    async with opened(postgres_engine) as (database, _):
        with monkeypatch.context() as patched:
            patched.setattr(database.writer.pool, "acquire", away)
            with trio.fail_after(LONG_S):
                for _ in range(3):
                    with pytest.raises(StorageUnavailable):
                        await database.write(statement)
        assert database.idle
        assert await database.write(statement) == [(1,)]
