"""What only PostgreSQL promises: its pool, limits on time, conflicts of nodes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pytest
import trio

from aether_trio.storage.base import Database, Execute, Fetch, Program, StorageUnavailable
from aether_trio.storage.errors import StorageSetupError
from aether_trio.storage.migrations import MIGRATIONS, ONLY_POSTGRES
from aether_trio.storage.postgres import connections
from aether_trio.storage.postgres.connections import PostgresLimits
from aether_trio.storage.postgres.database import open_postgres
from tests.helpers.engines import PostgresEngine
from tests.helpers.postgres import PostgresServer
from tests.storage.programs import CREATE, LONG_S, count_up, ids, insert, locked, waiting_for_a_lock


async def test_who_waits_behind_a_lock_does_not_hold_up_the_others(postgres_engine: PostgresEngine) -> None:
    async with postgres_engine.open() as database, trio.open_nursery() as nursery:
        await database.execute(CREATE)
        await database.execute("CREATE TABLE free (id INTEGER)")
        with locked(postgres_engine):
            nursery.start_soon(database.run, insert(1))
            await waiting_for_a_lock(postgres_engine, 1)
            with trio.fail_after(LONG_S):
                await database.execute("INSERT INTO free VALUES (1)")
                assert await database.fetch("SELECT * FROM items") == []
    assert postgres_engine.rows(f"SELECT count(*) FROM {postgres_engine.schema}.items") == [(1,)]


async def test_the_pool_stays_within_its_limits_and_shrinks(postgres_engine: PostgresEngine) -> None:
    limits = PostgresLimits(writers=3, readers=2, idle_s=0.2, patience_s=LONG_S)
    most = 0

    def backends() -> int:
        [(count,)] = postgres_engine.rows(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'aether-%'"
        )
        return int(count)

    async with postgres_engine.open(limits=limits) as database:
        await database.execute(CREATE)
        async with trio.open_nursery() as nursery:
            for number in range(300):
                nursery.start_soon(database.run, insert(number))
                nursery.start_soon(database.fetch, "SELECT count(*), pg_sleep(0.002) FROM items")
                if number % 30 == 0:
                    await trio.sleep(0.01)
                    most = max(most, backends())
            await trio.sleep(0.01)
            most = max(most, backends(), database.statistics().connections)
        assert len(await ids(database)) == 300
        assert 2 <= most <= 5
        with trio.fail_after(LONG_S):
            while database.statistics().connections > 2:
                await trio.sleep(0.05)
    with trio.fail_after(LONG_S):
        while backends():  # the server takes a moment to see that they have left
            await trio.sleep(0.05)


async def test_no_connection_within_its_time_is_said_so(postgres_engine: PostgresEngine) -> None:
    limits = PostgresLimits(readers=1, patience_s=LONG_S, lock_s=LONG_S, statement_s=LONG_S)
    async with postgres_engine.open(limits=limits) as database:
        await database.execute(CREATE)
        async with trio.open_nursery() as nursery:
            postgres_engine.outside("BEGIN; LOCK TABLE items IN ACCESS EXCLUSIVE MODE")
            nursery.start_soon(database.fetch, "SELECT count(*) FROM items")
            await waiting_for_a_lock(postgres_engine, 1)
            database._server.readers._patience_s = 0.2
            with pytest.raises(StorageUnavailable, match=r"no connection within 0.2 s: every connection is in use"):
                await database.fetch("SELECT 1")
            database._server.readers._patience_s = LONG_S
            postgres_engine.outside("COMMIT")
        assert await database.fetch("SELECT 1") == [(1,)]


async def test_a_lock_that_does_not_come_fails_who_waits_and_no_other(postgres_engine: PostgresEngine) -> None:
    async with postgres_engine.open(limits=PostgresLimits(writers=2, lock_s=0.2)) as database:
        await database.execute(CREATE)
        with locked(postgres_engine):
            with pytest.raises(StorageUnavailable, match="lock timeout"):
                await database.run(insert(1))
            assert database.statistics().failing
        await database.run(insert(2))
        assert not database.statistics().failing
        assert await ids(database) == [2]


async def test_a_program_that_takes_too_long_fails_alone(postgres_engine: PostgresEngine) -> None:
    def slow() -> Program[None]:
        yield Execute("INSERT INTO items (id) VALUES (99)")
        yield Fetch("SELECT pg_sleep(60)")

    async def refused() -> None:
        with pytest.raises(StorageUnavailable, match="statement timeout"):
            await database.run(slow)

    async with postgres_engine.open(limits=PostgresLimits(writers=1, statement_s=3.0)) as database:
        await database.execute(CREATE)
        async with trio.open_nursery() as nursery:
            for number in range(5):
                nursery.start_soon(database.run, insert(number))
            nursery.start_soon(refused)
            for number in range(5, 10):
                nursery.start_soon(database.run, insert(number))
        assert await ids(database) == list(range(10))
        with pytest.raises(StorageUnavailable, match="statement timeout"):
            await database.fetch("SELECT pg_sleep(60)")


async def test_programs_that_take_too_long_together_are_run_one_by_one(postgres_engine: PostgresEngine) -> None:
    def slow(number: int) -> Program[None]:
        yield Fetch("SELECT pg_sleep(0.2)")
        yield Execute("INSERT INTO items (id) VALUES ($1)", (number,))

    limits = PostgresLimits(writers=1, transaction_s=0.8, patience_s=LONG_S)
    async with postgres_engine.open(limits=limits) as database:
        await database.execute(CREATE)
        async with trio.open_nursery() as nursery:
            for number in range(6):
                nursery.start_soon(database.run, partial(slow, number))
        assert await ids(database) == list(range(6))


async def test_nodes_that_write_the_same_row_lose_no_update(postgres_engine: PostgresEngine) -> None:
    """The second program fails and runs again: as if one came after the other."""

    async def worker(database: Database) -> None:
        for _ in range(8):
            await database.run(count_up)

    async with postgres_engine.open() as one, postgres_engine.open() as two, postgres_engine.open() as three:
        await one.execute(CREATE)
        added = 0
        # Nodes that do not happen to meet have shown nothing.
        while not sum(database.statistics().conflicts for database in (one, two, three)):
            async with trio.open_nursery() as nursery:
                for database in (one, two, three) * 10:
                    nursery.start_soon(worker, database)
            added += 240
            assert await one.fetch("SELECT data FROM items") == [(b"%d" % added,)]


async def test_nodes_that_lock_rows_in_opposite_orders_both_get_through(postgres_engine: PostgresEngine) -> None:
    def both(first: int, second: int) -> Callable[[], Program[None]]:
        def program() -> Program[None]:
            for number in (first, second):
                yield Execute("UPDATE items SET data = data || 'x'::bytea WHERE id = $1", (number,))
                yield Fetch("SELECT pg_sleep(0.02)")

        return program

    async with postgres_engine.open() as one, postgres_engine.open() as two:
        await one.execute(CREATE)
        await one.run(insert(1))
        await two.run(insert(2))
        rounds = 0
        while rounds < 5 or not one.statistics().conflicts + two.statistics().conflicts:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(one.run, both(1, 2))
                nursery.start_soon(two.run, both(2, 1))
            rounds += 1
        assert await one.fetch("SELECT length(data) FROM items") == [(2 * rounds,), (2 * rounds,)]


async def test_two_programs_that_read_of_each_other_run_one_after_the_other(postgres_engine: PostgresEngine) -> None:
    """Write skew: each inserts only while the table is empty; one is refused."""

    def if_empty(number: int) -> Callable[[], Program[bool]]:
        def program() -> Program[bool]:
            rows = yield Fetch("SELECT id FROM items LIMIT 1")
            yield Fetch("SELECT pg_sleep(0.01)")
            if not rows:
                yield Execute("INSERT INTO items (id) VALUES ($1)", (number,))
            return not rows

        return program

    done: list[bool] = []

    async def attempt(database: Database, number: int) -> None:
        done.append(await database.run(if_empty(number)))

    async with postgres_engine.open() as one, postgres_engine.open() as two:
        await one.execute(CREATE)
        for _ in range(5):
            done.clear()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(attempt, one, 1)
                nursery.start_soon(attempt, two, 2)
            assert sorted(done) == [False, True]
            assert await one.execute("DELETE FROM items") == 1


@pytest.mark.parametrize("table", ["task_events", "workflow_history"])
async def test_a_number_that_another_transaction_has_taken_is_counted_again(
    postgres_engine: PostgresEngine, table: str
) -> None:
    """Numbers of these are read from a row that is written behind them."""

    held = trio.Event()
    token = trio.lowlevel.current_trio_token()

    def first() -> Program[None]:
        yield Fetch("SELECT pg_advisory_xact_lock(1)::text")
        token.run_sync_soon(held.set)
        while not (yield Fetch("SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")):
            pass
        yield Execute("UPDATE items SET id = id + 1")
        yield Execute(f"INSERT INTO {table} SELECT id FROM items")

    def second() -> Program[None]:
        [(number,)] = yield Fetch("SELECT id FROM items")
        yield Fetch("SELECT pg_advisory_xact_lock(1)::text")
        yield Execute(f"INSERT INTO {table} VALUES ($1)", (number + 1,))
        yield Execute("UPDATE items SET id = $1", (number + 1,))

    async with postgres_engine.open() as one, postgres_engine.open() as two:
        await one.execute(CREATE)
        await one.execute(f"CREATE TABLE {table} (number bigint PRIMARY KEY)")
        await one.run(insert(0))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.run, first)
            await held.wait()
            await two.run(second)
        assert await one.fetch(f"SELECT number FROM {table} ORDER BY number") == [(1,), (2,)]
        assert two.statistics().conflicts == 1


async def test_ten_nodes_migrate_at_once(postgres_engine: PostgresEngine) -> None:
    versions: list[list[tuple[object, ...]]] = []

    async def node() -> None:
        async with open_postgres(postgres_engine.server.dsn(), schema=postgres_engine.schema) as server:
            for name in MIGRATIONS:
                database = await server.database(name)
            rows = await database.fetch("SELECT database_name, version FROM schema_version ORDER BY database_name")
            versions.append(rows)

    with trio.fail_after(LONG_S):
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(node)
    expected = {**MIGRATIONS, "marks": ONLY_POSTGRES["marks"]}
    assert versions == [[(name, len(expected[name])) for name in sorted(expected)]] * 10


async def test_a_node_that_loses_a_deadlock_migrates_again(postgres_engine: PostgresEngine) -> None:
    opened = trio.Event()

    async def node() -> None:
        async with open_postgres(postgres_engine.server.dsn(), schema=postgres_engine.schema) as server:
            await server.database("state")
            opened.set()

    await node()
    opened = trio.Event()
    postgres_engine.outside("INSERT INTO commit_marks VALUES ('gone', 1, 1, 0); SET deadlock_timeout = '30s'")
    postgres_engine.outside("BEGIN; SELECT 1 FROM commit_marks WHERE writer = 'gone' FOR UPDATE")
    turn = f"SELECT pg_advisory_xact_lock(hashtextextended('aether migrations {postgres_engine.schema}', 0))"
    with trio.fail_after(LONG_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node)
            await waiting_for_a_lock(postgres_engine, 1)  # for the row, and it has the turn
            try:
                await trio.to_thread.run_sync(postgres_engine.outside, turn)
            finally:
                postgres_engine.outside("ROLLBACK; RESET deadlock_timeout")
            await opened.wait()


async def test_a_role_that_may_not_create_schemas_uses_the_one_it_is_given(postgres_engine: PostgresEngine) -> None:
    role = f"role_{postgres_engine.schema}"
    postgres_engine.outside(f"CREATE ROLE {role} LOGIN; GRANT ALL ON SCHEMA {postgres_engine.schema} TO {role}")
    dsn = postgres_engine.server.dsn().replace("postgres@", f"{role}@")
    try:
        async with open_postgres(dsn, schema=postgres_engine.schema) as server:
            state = await server.database("state")
            assert await state.fetch("SELECT count(*) FROM kv_entries") == [(0,)]
        with pytest.raises(StorageSetupError, match="lacks a right for this role"):
            async with open_postgres(dsn, schema="another") as server:
                await server.database("state")
    finally:
        postgres_engine.outside(f"DROP OWNED BY {role}; DROP ROLE {role}")


async def test_a_defect_of_the_engine_answers_its_callers(
    postgres_engine: PostgresEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with postgres_engine.open() as database:
        await database.execute(CREATE)
        for part, ask in ((database.writer, database.execute), (database.reader, database.fetch)):
            with monkeypatch.context() as patch:
                patch.setattr(part, "_run", lambda *_args: 1 / 0)
                with pytest.raises(StorageUnavailable, match="division"):
                    await ask("SELECT 1")
            await ask("SELECT 1")


async def test_nothing_runs_in_another_thread(postgres_engine: PostgresEngine) -> None:
    """Both sides of the engine are in trio's thread, so no lock is needed."""
    seen: list[threading.Thread] = []

    def program() -> Program[None]:
        seen.append(threading.current_thread())
        yield Fetch("SELECT 1")

    async with postgres_engine.open() as database:
        await database.run(program)
        await database.read(program)
    assert set(seen) == {threading.current_thread()}


async def test_a_locking_queue_is_not_serializable(postgres_engine: PostgresEngine) -> None:
    async with postgres_engine.open() as database:
        for queue, level in (
            (database, "serializable"),
            (database.separate_queue(), "serializable"),
            (database.separate_queue(locking=True), "read committed"),
        ):
            assert await queue.run(isolation) == [(level,)]
            queue.writer._polite = 1  # as after a conflict: it takes its turn
            assert await queue.run(isolation) == [(level,)]


def isolation() -> Program[list[tuple[str]]]:
    found: list[tuple[str]] = yield Fetch("SELECT current_setting('transaction_isolation')")
    return found


@pytest.mark.parametrize("dropped", ["search_path", "default_transaction_isolation"])
async def test_a_setting_that_a_pooler_drops_is_noticed_at_the_start(
    dropped: str, postgres_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = connections._session

    def pooled(*args: Any) -> Mapping[str, str]:
        return {name: value for name, value in given(*args).items() if name != dropped}

    monkeypatch.setattr(connections, "_session", pooled)
    async with open_postgres(postgres_server.dsn(), schema="pooled") as server:
        with pytest.raises(StorageSetupError, match="probably a pooler"):
            await server.database("log")
    assert postgres_server.psql("SELECT count(*) FROM pg_namespace WHERE nspname = 'pooled'") == "0"
