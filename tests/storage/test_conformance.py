"""The promises of a Database, on each engine: SQLite file, memory, PostgreSQL.

"small" engines run each program by `run_small` and `read_small`, which SQLite does in the trio
thread.
"""

from __future__ import annotations

import contextlib
import gc
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import cast

import outcome
import pytest
import trio
import trio.testing

from aether_trio.storage.base import Database, Execute, ExecuteMany, Fetch, Program
from aether_trio.storage.postgres import database as postgres_database
from aether_trio.storage.sqlite import database as sqlite_database
from tests.helpers.engines import Engine
from tests.storage.conftest import make_engine
from tests.storage.programs import (
    CREATE,
    LONG_S,
    append,
    count_up,
    held,
    ids,
    insert,
    insert_then_raise,
    open_serial,
    pair,
    queued,
)

lasting = pytest.mark.parametrize("engine", ["file", "small-file", "postgres"], indirect=True)
"""Engines whose data outlives the database, and that other processes reach."""


@pytest.fixture(params=["file", "small-file", "memory", "small-memory", "postgres"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    yield from make_engine(request, tmp_path)


async def test_a_program_is_sent_rows_then_counts_and_its_return_value_comes_back(database: Database) -> None:
    seen: list[object] = []

    def program() -> Program[str]:
        seen.clear()
        seen.append((yield Execute("INSERT INTO items (id, data) VALUES ($1, $2), ($3, $2)", (1, b"x", 2))))
        seen.append((yield ExecuteMany("INSERT INTO items (id, data) VALUES ($1, $2)", [(3, b"a"), (4, b"b")])))
        seen.append((yield Fetch("SELECT id FROM items WHERE data = $1 ORDER BY id", (b"x",))))
        seen.append((yield Fetch("DELETE FROM items WHERE id = $1 RETURNING data", (4,))))
        return "done"

    assert await database.run(program) == "done"
    assert seen == [2, None, [(1,), (2,)], [(b"b",)]]
    assert await ids(database) == [1, 2, 3]


async def test_the_short_forms_do_what_their_names_say(database: Database) -> None:
    await database.executemany("INSERT INTO items (id, data) VALUES ($1, $2)", ((n, b"") for n in range(5)))
    assert await database.execute("DELETE FROM items WHERE id >= $1", 3) == 2
    assert await database.fetch("SELECT count(*) FROM items WHERE id < $1", 2) == [(2,)]


async def test_what_one_caller_writes_it_reads(database: Database) -> None:
    for number in range(50):
        await database.run(insert(number))
        assert await ids(database) == [*range(number + 1)]


async def test_the_data_of_a_failed_program_is_free_at_once(database: Database) -> None:
    """A worker that saves 4 MiB again and again must not fill the memory with them."""

    class Data:
        pass

    def program(_data: Data) -> Program[None]:
        yield Execute("DELETE FROM items WHERE id = $1", (1,))
        raise LookupError("no")

    async def fail() -> weakref.ref[Data]:
        data = Data()
        with contextlib.suppress(LookupError):
            await database.run(partial(program, data))
        return weakref.ref(data)

    gc.disable()
    try:
        left = [await fail() for _ in range(3)]
        await database.execute("DELETE FROM items")  # a thread may have the last job in a variable
        assert [ref() for ref in left] == [None] * 3
    finally:
        gc.enable()


async def test_a_failing_program_alone_leaves_no_trace(database: Database) -> None:
    with pytest.raises(LookupError, match="no"):
        await database.run(insert_then_raise(1, LookupError("no")))
    await database.run(insert(2))
    assert await ids(database) == [2]


async def test_a_failing_statement_closes_its_program(engine: Engine, database: Database) -> None:
    ended: list[str] = []

    def program() -> Program[None]:
        try:
            yield Execute("INSERT INTO nowhere VALUES ($1)", (1,))
            ended.append("went on")
        finally:
            ended.append("closed")

    with pytest.raises(engine.bad_sql, match="nowhere"):
        await database.run(program)
    assert ended == ["closed"]


async def test_a_read_cannot_write(engine: Engine, database: Database) -> None:
    with pytest.raises(engine.read_only):
        await database.read(insert(1))
    await database.run(insert(2))
    assert await ids(database) == [2]


async def test_a_caller_that_is_already_cancelled_has_done_nothing(database: Database) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await database.run(insert(1))
    assert scope.cancelled_caught
    assert await ids(database) == []


async def test_yielding_something_else_is_a_clear_error(database: Database) -> None:
    def program() -> Program[None]:
        yield "SELECT 1"  # type: ignore[misc]

    with pytest.raises(TypeError, match="Fetch, Execute, ExecuteMany or Deferred"):
        await database.run(program)


async def test_no_update_of_many_callers_is_lost_whether_they_are_small_or_not(database: Database) -> None:
    async def worker(number: int) -> None:
        for turn in range(20):
            await (database.run if (number + turn) % 7 == 0 else database.run_small)(count_up)

    async with trio.open_nursery() as nursery:
        for number in range(25):
            nursery.start_soon(worker, number)
    assert await database.fetch("SELECT data FROM items") == [(b"500",)]


async def test_programs_that_wait_become_one_group(engine: Engine) -> None:
    async with open_serial(engine) as database:
        await database.execute(CREATE)
        before = database.statistics()
        async with held(engine, database) as nursery:
            for number in range(40):
                nursery.start_soon(database.run, insert(number))
            await queued(database, 41)
        after = database.statistics()
        # the program that held it alone, then all the others
        assert after.groups - before.groups == 2
        assert after.programs - before.programs == 41
        assert after.rows - before.rows == len(await ids(database))
        assert (after.largest_group, after.queued) == (40, 0)


async def test_a_program_that_fails_leaves_no_trace_and_does_not_spoil_its_group(engine: Engine) -> None:
    failures: list[str] = []

    async def failing(number: int) -> None:
        with pytest.raises(LookupError) as caught:
            await database.run(insert_then_raise(number, LookupError(str(number))))
        failures.append(str(caught.value))

    async def clashing() -> None:
        with pytest.raises(engine.duplicate):
            await database.run(insert(1))

    async with open_serial(engine) as database:
        await database.execute(CREATE)
        async with held(engine, database) as nursery:
            for number in (1, 2, 3):
                nursery.start_soon(database.run, insert(number))
            await queued(database, 4)
            nursery.start_soon(failing, 4)
            nursery.start_soon(failing, 2_000)
            nursery.start_soon(clashing)
            await queued(database, 7)
            nursery.start_soon(database.run, insert(5))
            await queued(database, 8)
        assert [one for one in await ids(database) if one > 0] == [1, 2, 3, 5]
        assert sorted(failures) == ["2000", "4"]
        assert database.statistics().largest_group == 7


async def test_programs_of_one_caller_take_effect_in_their_order(database: Database) -> None:
    async def caller(first: int) -> None:
        for digit in range(first, first + 20):
            await database.run(append(digit))

    async with trio.open_nursery() as nursery:
        for first in (0, 50, 100):
            nursery.start_soon(caller, first)
    [(data,)] = await database.fetch("SELECT data FROM items")
    assert len(data) == 60
    for first in (0, 50, 100):
        assert [digit for digit in data if first <= digit < first + 50] == list(range(first, first + 20))


@lasting
async def test_a_read_is_one_snapshot(engine: Engine, database: Database) -> None:
    """The read begins, another process commits, the read does not see the commit."""

    def count() -> Program[list[int]]:
        first = yield Fetch("SELECT count(*) FROM items")
        if not first[0][0]:
            engine.outside("INSERT INTO items (id) VALUES (1) ON CONFLICT DO NOTHING")
        second = yield Fetch("SELECT count(*) FROM items")
        return [first[0][0], second[0][0]]

    seen = await database.read(count)
    assert seen[0] == seen[1]
    assert await ids(database) == [1]


async def test_what_a_reading_program_raises_is_raised(database: Database) -> None:
    def broken(statements: int) -> Callable[[], Program[None]]:
        def program() -> Program[None]:
            for _ in range(statements):
                yield Fetch("SELECT 1")
            raise LookupError("no")

        return program

    for statements in (1, 2, 1):
        with pytest.raises(LookupError):
            await database.read(broken(statements))
    assert await ids(database) == []


async def test_a_caller_cancelled_while_its_program_runs_loses_only_the_result(database: Database) -> None:
    """Each program ran wholly or not at all, and the engine is in order after it."""
    finished: list[int] = []

    async def caller(number: int) -> None:
        await database.run(pair(number))
        finished.append(number)

    for start in range(1, 61, 6):
        async with trio.open_nursery() as nursery:
            for number in range(start, start + 6):
                nursery.start_soon(caller, number)
            for _ in range(start):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
    await database.run(insert(5000))
    with trio.fail_after(LONG_S):
        while database.statistics().queued:  # type: ignore[attr-defined]  # of both engines
            await trio.sleep(0.001)
    written = {*await ids(database)} - {5000}
    assert written == {-one for one in written} >= set(finished)


async def test_a_caller_cancelled_in_the_queue_loses_only_the_result(engine: Engine) -> None:
    async with open_serial(engine) as database:
        await database.execute(CREATE)
        async with held(engine, database):
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(database.run, insert(1))
                    await queued(database, 2)
                    scope.cancel()
            assert scope.cancelled_caught
        await database.run(insert(2))  # behind it in the queue
        assert [one for one in await ids(database) if one > 0] == [1, 2]
        assert database.statistics().queued == 0


async def test_the_outcome_of_a_cancelled_callers_program_is_told_once(engine: Engine) -> None:
    told: list[object] = []
    values: list[int] = []

    def returns(number: int) -> Callable[[], Program[int]]:
        def program() -> Program[int]:
            yield Execute("INSERT INTO items (id) VALUES ($1)", (number,))
            return number

        return program

    async def stay(database: Database, number: int) -> None:
        values.append(await database.run(returns(number), told.append))

    async with open_serial(engine) as database:
        await database.execute(CREATE)
        await database.execute("INSERT INTO items (id) VALUES (7)")
        async with held(engine, database) as nursery:
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as leaving:
                    leaving.start_soon(database.run, returns(1), told.append)
                    leaving.start_soon(database.run_small, returns(2), told.append)
                    leaving.start_soon(database.run_keyed, returns(3), "3", told.append)
                    leaving.start_soon(database.run, returns(7), told.append)
                    nursery.start_soon(stay, database, 4)
                    await queued(database, 6)
                    scope.cancel()
            assert told == []
        await database.run(returns(5), told.append)
        assert values == [4]
        outcomes = [cast("outcome.Outcome[int]", one) for one in told]
        assert sorted(one.value for one in outcomes if isinstance(one, outcome.Value)) == [1, 2, 3]
        [failed] = [one.error for one in outcomes if isinstance(one, outcome.Error)]
        assert isinstance(failed, engine.duplicate)


async def test_a_full_queue_makes_callers_wait_and_cancelling_one_undoes_nothing(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (sqlite_database, postgres_database):
        monkeypatch.setattr(module, "QUEUE_PROGRAMS", 3)
    async with open_serial(engine) as database:
        await database.execute(CREATE)
        async with held(engine, database) as nursery:
            for number in (1, 2):
                nursery.start_soon(database.run, insert(number))
            await queued(database, 3)
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as waiting:
                    waiting.start_soon(database.run, insert(3))
                    for _ in range(5):
                        await trio.lowlevel.checkpoint()
                    assert database.statistics().queued == 3
                    scope.cancel()
        assert [one for one in await ids(database) if one > 0] == [1, 2]


@lasting
async def test_closing_commits_what_was_accepted_and_refuses_the_rest(engine: Engine) -> None:
    async with trio.open_nursery() as nursery:
        async with engine.open() as database:
            await database.execute(CREATE)
            for number in range(50):
                nursery.start_soon(database.run, insert(number))
            await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.ClosedResourceError, match="scratch"):
            await database.run(insert(99))
        with pytest.raises(trio.ClosedResourceError, match="scratch"):
            await database.fetch("SELECT 1")
    async with engine.open() as again:
        assert await ids(again) == list(range(50))


@lasting
async def test_closing_while_cancelled_still_commits(engine: Engine) -> None:
    with trio.CancelScope() as scope:
        async with engine.open() as database, trio.open_nursery() as nursery:
            await database.execute(CREATE)
            nursery.start_soon(database.run, insert(1))
            for _ in range(2):
                await trio.lowlevel.checkpoint()
            scope.cancel()
            await trio.lowlevel.checkpoint()  # is cancelled here, however far the program has come
    assert scope.cancelled_caught
    async with engine.open() as again:
        assert await ids(again) == [1]
