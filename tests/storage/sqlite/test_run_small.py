"""Small programs, which run in the trio thread, among those of the writer."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from aether_trio.storage.base import Execute, Program, ProgramFactory, StorageUnavailable
from aether_trio.storage.sqlite import commit_groups, inline
from aether_trio.storage.sqlite.database import SqliteDatabase
from tests.storage.programs import LONG_S, append, held_writer, ids, insert, locked_file, pragma, queued


async def test_programs_that_wait_become_one_group_of_the_writer_thread(sqlite_database: SqliteDatabase) -> None:
    before = sqlite_database.statistics()
    threads: set[int] = set()

    def program(number: int) -> ProgramFactory[None]:
        def run() -> Program[None]:
            threads.add(threading.get_ident())
            yield Execute("INSERT INTO items (id) VALUES ($1)", (number,))

        return run

    async with trio.open_nursery() as nursery:
        for number in range(40):
            nursery.start_soon(sqlite_database.run_small, program(number))
    after = sqlite_database.statistics()
    assert threads == {threading.get_ident()}
    assert (after.groups - before.groups, after.programs - before.programs) == (1, 40)
    assert after.rows - before.rows == 40
    assert after.queued == 0


async def test_a_turn_is_bounded(sqlite_database: SqliteDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inline, "TURN_PROGRAMS", 3)
    before = sqlite_database.statistics()
    async with trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(sqlite_database.run_small, insert(number))
    assert sqlite_database.statistics().groups - before.groups == 4
    assert await ids(sqlite_database) == list(range(10))


async def test_order_is_kept_across_the_ways_also_behind_a_cancelled_call(sqlite_database: SqliteDatabase) -> None:
    async def abandoned(way: Callable[[ProgramFactory[None]], Awaitable[None]], digit: int) -> None:
        given = trio.Event()

        async def give() -> None:
            given.set()
            await way(append(digit))  # which it is given before anything else runs

        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(give)
                await given.wait()
                scope.cancel()

    async with held_writer(sqlite_database):
        await abandoned(sqlite_database.run, 1)
        await abandoned(sqlite_database.run_small, 2)
        await abandoned(sqlite_database.run, 3)
    await abandoned(sqlite_database.run_small, 4)
    await abandoned(sqlite_database.run_small, 5)
    await abandoned(sqlite_database.run, 6)
    await abandoned(sqlite_database.run_small, 7)
    await sqlite_database.run_small(append(8))
    assert await sqlite_database.fetch("SELECT data FROM items WHERE id = 1") == [(bytes(range(1, 9)),)]


async def test_a_lock_of_another_process_does_not_keep_the_loop(
    file_database: SqliteDatabase, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program waits for the lock in the thread; this test frees the lock."""
    monkeypatch.setattr(commit_groups, "BUSY_TIMEOUT_S", LONG_S)
    async with trio.open_nursery() as nursery:
        with locked_file(path, "IMMEDIATE"):
            nursery.start_soon(file_database.run_small, insert(1))
            await queued(file_database, 1)
            await trio.testing.wait_all_tasks_blocked()
    assert await ids(file_database) == [1]
    monkeypatch.undo()
    with locked_file(path, "IMMEDIATE"), pytest.raises(StorageUnavailable, match="locked"):
        await file_database.run_small(insert(2))
    await file_database.run_small(insert(3))
    assert await ids(file_database) == [1, 3]


async def test_a_full_file_fails_the_group_and_recovers(sqlite_database: SqliteDatabase) -> None:
    [(pages,)] = await sqlite_database.run(pragma("page_count"))
    await sqlite_database.run(pragma(f"max_page_count={pages + 4}"))
    with pytest.raises(StorageUnavailable, match="full"):
        await sqlite_database.run_small(insert(1, bytes(100_000)))
    assert sqlite_database.statistics().failing
    await sqlite_database.run_small(insert(2))
    assert not sqlite_database.statistics().failing
    assert await ids(sqlite_database) == [2]
