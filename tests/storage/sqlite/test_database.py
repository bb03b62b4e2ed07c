"""What only the SQLite engine promises: groups of one writer thread, its queue, its files. The seam
is in test_database.py.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
import trio
import trio.testing

from aether_trio.storage.base import Fetch, Program, StorageUnavailable
from aether_trio.storage.sqlite import database as sqlite_database
from aether_trio.storage.sqlite.database import SqliteDatabase, open_sqlite
from aether_trio.storage.sqlite.threads import WAL_CHECK_GROUPS
from tests.storage.programs import CREATE, held_writer, ids, insert, insert_then_raise, queued


async def test_waiting_programs_become_one_group(sqlite_database: SqliteDatabase) -> None:
    before = sqlite_database.statistics()
    async with held_writer(sqlite_database) as nursery:
        for number in range(40):
            nursery.start_soon(sqlite_database.run, insert(number))
        await queued(sqlite_database, 41)
    after = sqlite_database.statistics()
    assert after.groups - before.groups == 2  # the gate alone, then all the others
    assert after.programs - before.programs == 41
    assert after.largest_group == 40
    assert after.rows - before.rows == 40
    assert after.queued == 0


async def test_a_failing_program_leaves_no_trace_and_does_not_spoil_its_group(sqlite_database: SqliteDatabase) -> None:
    failures: list[Exception] = []

    async def failing(number: int) -> None:
        try:
            await sqlite_database.run(insert_then_raise(number, LookupError(str(number))))
        except LookupError as exc:
            failures.append(exc)

    async def clashing() -> None:
        with pytest.raises(sqlite3.IntegrityError):
            await sqlite_database.run(insert(1))

    async with held_writer(sqlite_database) as nursery:
        for number in (1, 2, 3):
            nursery.start_soon(sqlite_database.run, insert(number))
        await queued(sqlite_database, 4)
        nursery.start_soon(failing, 4)
        nursery.start_soon(failing, 2_000)
        nursery.start_soon(clashing)
        await queued(sqlite_database, 7)
        nursery.start_soon(sqlite_database.run, insert(5))
        await queued(sqlite_database, 8)
    assert await ids(sqlite_database) == [1, 2, 3, 5]
    assert sorted(str(exc) for exc in failures) == ["2000", "4"]


async def test_a_file_and_no_file_take_more_groups_than_the_log_is_left_alone_for(
    sqlite_database: SqliteDatabase,
) -> None:
    """After WAL_CHECK_GROUPS commits the size of the write-ahead log is looked at.

    A database in memory has none.
    """
    before = sqlite_database.statistics().groups
    count = 2 * WAL_CHECK_GROUPS + 1
    for number in range(count):
        await sqlite_database.run(insert(number))
    after = sqlite_database.statistics()
    assert after.groups - before == count
    assert not after.failing
    assert after.last_error == ""
    assert await ids(sqlite_database) == list(range(count))


async def test_a_read_is_one_snapshot(file_database: SqliteDatabase) -> None:
    """The read begins, the write commits, the read goes on: it must not see the write."""
    started, written = trio.Event(), trio.Event()
    token = trio.lowlevel.current_trio_token()

    def count() -> Program[list[int]]:
        first = yield Fetch("SELECT count(*) FROM items")
        token.run_sync_soon(started.set)
        trio.from_thread.run(written.wait, trio_token=token)
        second = yield Fetch("SELECT count(*) FROM items")
        return [first[0][0], second[0][0]]

    async def write() -> None:
        await started.wait()
        await file_database.run(insert(1))
        written.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        assert await file_database.read(count) == [0, 0]
    assert await ids(file_database) == [1]


async def test_a_caller_cancelled_in_the_queue_loses_only_the_result(sqlite_database: SqliteDatabase) -> None:
    async with held_writer(sqlite_database):
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(sqlite_database.run, insert(1))
                await queued(sqlite_database, 2)
                scope.cancel()
        assert scope.cancelled_caught
    await sqlite_database.run(insert(2))  # behind it in the queue
    assert await ids(sqlite_database) == [1, 2]
    assert sqlite_database.statistics().queued == 0


async def test_a_full_queue_makes_callers_wait_and_cancelling_one_undoes_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_database, "QUEUE_PROGRAMS", 3)
    async with open_sqlite(path) as database:
        await database.execute(CREATE)
        async with held_writer(database) as nursery:
            for number in (1, 2):
                nursery.start_soon(database.run, insert(number))
            await queued(database, 3)
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as waiting:
                    waiting.start_soon(database.run, insert(3))
                    await trio.testing.wait_all_tasks_blocked()
                    assert database.statistics().queued == 3
                    scope.cancel()
        assert await ids(database) == [1, 2]


async def test_closing_commits_what_was_accepted_and_refuses_the_rest(path: Path) -> None:
    async with open_sqlite(path) as database, trio.open_nursery() as nursery:
        await database.execute(CREATE)
        async with held_writer(database):
            for number in range(10):
                nursery.start_soon(database.run, insert(number))
            await queued(database, 11)
    with pytest.raises(trio.ClosedResourceError, match="scratch"):
        await database.run(insert(99))
    async with open_sqlite(path) as again:
        assert await ids(again) == list(range(10))


async def test_closing_while_cancelled_still_commits(path: Path) -> None:
    with trio.CancelScope() as scope:
        async with open_sqlite(path) as database:
            await database.execute(CREATE)
            async with held_writer(database) as nursery:
                nursery.start_soon(database.run, insert(1))
                await queued(database, 2)
                scope.cancel()
    async with open_sqlite(path) as again:
        assert await ids(again) == [1]


async def test_a_clean_close_leaves_no_write_ahead_log(path: Path) -> None:
    async with open_sqlite(path) as database:
        await database.execute(CREATE)
        assert Path(f"{path}-wal").stat().st_size > 0
    assert not Path(f"{path}-wal").exists()


@pytest.mark.parametrize("way", ["run", "run_small"])
async def test_a_defect_of_the_engine_answers_its_callers(
    file_database: SqliteDatabase, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    assert file_database._writer is not None
    monkeypatch.setattr(file_database._writer._groups, "_attempt", lambda *_args, **_named: 1 / 0)
    with pytest.raises(StorageUnavailable, match="division"):
        await getattr(file_database, way)(insert(1))
    monkeypatch.undo()
    await getattr(file_database, way)(insert(1))
