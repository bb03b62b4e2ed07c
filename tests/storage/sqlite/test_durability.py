"""When a commit of the event loop is durable, and what a failed sync costs."""

from __future__ import annotations

import errno
import os
import resource
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
import trio
import trio.testing

from aether_trio.storage.base import CommitUnknown, Fetch, StorageUnavailable, single
from aether_trio.storage.sqlite import database as engine
from aether_trio.storage.sqlite import wal
from aether_trio.storage.sqlite.database import SqliteDatabase, open_sqlite
from aether_trio.storage.sqlite.kernel_sync import KernelSync, open_kernel_sync
from aether_trio.storage.sqlite.threads import CheckpointThread
from tests.storage.programs import CREATE, LONG_S, append, held_reader, ids, insert, pragma


class HeldSync(KernelSync):
    """A KernelSync whose syncs end when the test says so, and how."""

    def __init__(self) -> None:
        self.submitted = self.ended = 0
        self._send, self._receive = trio.open_memory_channel[int](100)

    def submit(self) -> None:
        self.submitted += 1

    async def run(self, on_synced: Callable[[int], None]) -> None:
        async for failed in self._receive:
            on_synced(failed)

    def end(self, failed: int = 0) -> None:
        self.ended += 1
        self._send.send_nowait(failed)

    def end_all(self) -> None:
        while self.ended < self.submitted:
            self.end()

    async def wait_submitted(self, count: int) -> None:
        with trio.fail_after(LONG_S):
            while self.submitted < count:
                await trio.sleep(0.001)

    def close(self) -> None:
        self._send.close()


@pytest.fixture
async def held(path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[SqliteDatabase, HeldSync]]:
    """A database with a table `items`, and its syncs."""
    sync = HeldSync()
    monkeypatch.setattr(engine, "open_kernel_sync", lambda _: sync)
    async with open_sqlite(path) as database:
        await database.run(lambda: single(Fetch(CREATE)))
        yield database, sync


async def test_the_kernel_syncs_a_file_and_says_so(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w+b", buffering=0) as file:
        sync = open_kernel_sync(file.fileno())
        if sync is None:
            pytest.skip("this kernel or sandbox has no asynchronous fdatasync")
        told: list[int] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sync.run, told.append)
            for count in range(1, 4):
                file.write(b"x" * 5000)
                sync.submit()
                with trio.fail_after(LONG_S):
                    while len(told) < count:
                        await trio.sleep(0.001)
            nursery.cancel_scope.cancel()
        sync.close()
        assert told == [0, 0, 0]


async def test_what_the_kernel_cannot_sync_is_left_to_a_thread() -> None:
    reader, writer = os.pipe()
    try:
        assert open_kernel_sync(writer) is None
    finally:
        os.close(reader)
        os.close(writer)


async def test_without_the_kernel_a_thread_syncs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "open_kernel_sync", lambda _: None)
    synced = 0
    real = wal.WriteAheadLog.sync

    def sync(log: wal.WriteAheadLog) -> None:
        nonlocal synced
        synced += 1
        real(log)

    monkeypatch.setattr(wal.WriteAheadLog, "sync", sync)
    async with open_sqlite(path) as database:
        await database.run(lambda: single(Fetch(CREATE)))
        for number in range(3):
            await database.run_small(insert(number))
        assert await ids(database) == [0, 1, 2]
        assert synced == 3


async def test_a_write_is_answered_and_seen_by_readers_when_it_is_synced(
    held: tuple[SqliteDatabase, HeldSync],
) -> None:
    database, sync = held
    done: list[str] = []

    async def note(name: str, wait: Callable[[], object]) -> None:
        await wait()  # type: ignore[misc]
        done.append(name)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(note, "write", lambda: database.run_small(insert(1)))
        await sync.wait_submitted(1)
        nursery.start_soon(note, "read", lambda: ids(database))
        nursery.start_soon(note, "read_small", lambda: database.read_small(lambda: single(Fetch("SELECT 1"))))
        for _ in range(20):
            await trio.sleep(0.005)
        assert done == []
        sync.end()
    assert sorted(done) == ["read", "read_small", "write"]


async def test_programs_of_the_thread_wait_behind_the_kernel(held: tuple[SqliteDatabase, HeldSync]) -> None:
    database, sync = held
    async with trio.open_nursery() as nursery:
        nursery.start_soon(database.run_small, append(1))
        await sync.wait_submitted(1)
        nursery.start_soon(database.run, append(2))
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(database.run_small, append(3))
        await trio.testing.wait_all_tasks_blocked()
        sync.end()
    assert await database.fetch("SELECT data FROM items WHERE id = 1") == [(b"\x01\x02\x03",)]


async def test_a_failed_sync_is_repaired_before_it_is_answered(
    held: tuple[SqliteDatabase, HeldSync], path: Path
) -> None:
    """The log is copied into the file, and the file synced."""
    database, sync = held
    async with trio.open_nursery() as nursery:
        nursery.start_soon(database.run_small, insert(1))
        await sync.wait_submitted(1)
        nursery.start_soon(database.run, insert(2))
        await trio.testing.wait_all_tasks_blocked()
        sync.end(errno.EIO)
    assert await ids(database) == [1, 2]
    assert "Input/output" in database.statistics().last_error
    assert not database.statistics().failing


async def test_after_a_failed_sync_nothing_is_written_until_it_is_repaired(
    held: tuple[SqliteDatabase, HeldSync], monkeypatch: pytest.MonkeyPatch
) -> None:
    database, sync = held

    def fails(_log: wal.WriteAheadLog, _cursor: sqlite3.Cursor) -> None:
        raise wal.LogBrokenError("the disk is gone")

    with monkeypatch.context() as patch:
        patch.setattr(wal.WriteAheadLog, "repair", fails)
        async with trio.open_nursery() as nursery:

            async def unknown() -> None:
                with pytest.raises(CommitUnknown, match="gone"):
                    await database.run_small(insert(1))

            nursery.start_soon(unknown)
            await sync.wait_submitted(1)
            sync.end(errno.EIO)
        for write in (database.run, database.run_small):
            with pytest.raises(StorageUnavailable, match="gone") as raised:
                await write(insert(2))
            assert not isinstance(raised.value, CommitUnknown)
        assert database.statistics().failing
        assert sync.submitted == 1
        assert 2 not in await ids(database)
    await database.run(insert(2))
    assert not database.statistics().failing
    async with trio.open_nursery() as nursery:
        nursery.start_soon(database.run_small, insert(3))
        await sync.wait_submitted(2)
        sync.end()
    assert await ids(database) == [1, 2, 3]


async def test_a_kernel_that_takes_no_sync_leaves_it_to_the_thread(
    held: tuple[SqliteDatabase, HeldSync], monkeypatch: pytest.MonkeyPatch
) -> None:
    database, sync = held

    def refuse() -> None:
        raise OSError(errno.EAGAIN, "too many")

    monkeypatch.setattr(sync, "submit", refuse)
    await database.run_small(insert(1))
    assert await ids(database) == [1]


async def test_closing_waits_for_a_sync(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sync = HeldSync()
    monkeypatch.setattr(engine, "open_kernel_sync", lambda _: sync)
    async with trio.open_nursery() as nursery, open_sqlite(path) as database:
        await database.run(lambda: single(Fetch(CREATE)))
        nursery.start_soon(database.run_small, insert(1))
        await sync.wait_submitted(1)
        nursery.start_soon(end_soon, sync)
    async with open_sqlite(path) as database:
        assert await ids(database) == [1]


async def end_soon(sync: HeldSync) -> None:
    await trio.sleep(0.05)
    sync.end()


@pytest.mark.parametrize("way", ["run", "run_small"])
async def test_checkpoints_bound_the_log_while_writers_leave_no_gap(
    file_database: SqliteDatabase, path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Only the second half, in the writer's thread, completes a checkpoint."""
    monkeypatch.setattr(wal, "CHECKPOINT_PAGES", 256)
    monkeypatch.setattr(wal, "GROWTH_BYTES", 1024 * 1024)
    log = Path(f"{path}-wal")
    largest = 0
    async with trio.open_nursery() as nursery:

        async def write(first: int) -> None:
            nonlocal largest
            for number in range(first, first + 500):
                await getattr(file_database, way)(insert(number, bytes(10_000)))
                largest = max(largest, log.stat().st_size)

        for writer in range(8):
            nursery.start_soon(write, writer * 1000)
    assert await file_database.run(pragma("quick_check")) == [("ok",)]
    assert len(await ids(file_database)) == 4000
    assert largest < 30 * 1024 * 1024  # of 40 MB that were written
    assert file_database.statistics().last_error == ""


async def test_programs_that_waited_for_a_failed_sync_run_before_later_ones(
    held: tuple[SqliteDatabase, HeldSync], monkeypatch: pytest.MonkeyPatch
) -> None:
    database, sync = held
    repairing, go_on = threading.Event(), threading.Event()
    repair = wal.WriteAheadLog.repair

    def slow(log: wal.WriteAheadLog, cursor: sqlite3.Cursor) -> None:
        repairing.set()
        go_on.wait(LONG_S)
        repair(log, cursor)

    monkeypatch.setattr(wal.WriteAheadLog, "repair", slow)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(database.run_small, append(1))
        await sync.wait_submitted(1)
        nursery.start_soon(database.run, append(2))
        await trio.testing.wait_all_tasks_blocked()
        sync.end(errno.EIO)
        await trio.to_thread.run_sync(repairing.wait, LONG_S)
        nursery.start_soon(database.run, append(3))
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(database.run_small, append(4))
        await trio.testing.wait_all_tasks_blocked()
        go_on.set()
    assert await database.fetch("SELECT data FROM items WHERE id = 1") == [(b"\x01\x02\x03\x04",)]


async def test_the_commit_that_begins_the_log_anew_is_made_by_the_thread(
    held: tuple[SqliteDatabase, HeldSync], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It syncs the log's header, for which the event loop would have to wait."""
    database, sync = held
    noted: list[tuple[int, int]] = []
    note = wal.WriteAheadLog.note_checkpoint

    def note_checkpoint(log: wal.WriteAheadLog, pages: int, copied: int) -> None:
        note(log, pages, copied)
        noted.append((pages, copied))

    monkeypatch.setattr(wal.WriteAheadLog, "note_checkpoint", note_checkpoint)
    monkeypatch.setattr(wal, "CHECK_GROUPS", 4)
    monkeypatch.setattr(wal, "CHECKPOINT_PAGES", 1)
    with trio.fail_after(LONG_S):
        for number in range(3):
            await database.run(insert(number))
        while not noted:
            await trio.sleep(0.001)
    assert noted[0][0] == noted[0][1] > 0
    for _ in range(20):
        await trio.sleep(0.001)  # until the thread has nothing to do
    for number, syncs in (10, 0), (11, 1):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(database.run_small, insert(number))
            await trio.testing.wait_all_tasks_blocked()
            sync.end_all()
        assert sync.submitted == syncs


async def test_a_slow_checkpoint_is_not_asked_for_again(
    file_database: SqliteDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wal, "CHECK_GROUPS", 1)
    monkeypatch.setattr(wal, "CHECKPOINT_PAGES", 1)
    asked = 0

    def start_checkpoint(_thread: CheckpointThread) -> None:
        nonlocal asked
        asked += 1

    monkeypatch.setattr(CheckpointThread, "start_checkpoint", start_checkpoint)
    for number in range(20):
        await file_database.run_small(insert(number))
    assert asked == 1


async def test_a_checkpoint_of_another_process_does_not_count_as_ours(
    file_database: SqliteDatabase, path: Path
) -> None:
    log = wal.WriteAheadLog(path, is_synced=True)
    for _ in range(wal.CHECKPOINT_PAGES - 1):
        log.note_group()
    log.note_checkpoint(-1, -1)
    assert not log.restarts
    assert log.note_group()
    log.close()


def test_the_kernel_syncs_in_a_process_with_many_open_files(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 1200
    if hard != resource.RLIM_INFINITY and hard < wanted + 100:
        pytest.skip("this process may not open so many files")
    if soft != resource.RLIM_INFINITY and soft < wanted + 100:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted + 100, hard))
    try:
        with (tmp_path / "log").open("w+b", buffering=0) as file, ExitStack() as opened:
            for _ in range(wanted):
                opened.callback(os.close, os.dup(file.fileno()))
            sync = open_kernel_sync(file.fileno())
            if sync is not None:
                sync.close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_a_reader_that_never_ends_is_waited_for_rarely(
    file_database: SqliteDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer thread waits for it once for each stretch by which the log grows."""
    monkeypatch.setattr(wal, "CHECKPOINT_PAGES", 1)
    monkeypatch.setattr(wal, "LIMIT_BYTES", 200_000)
    monkeypatch.setattr(wal, "GROWTH_BYTES", 400_000)
    waited = 0
    note = wal.WriteAheadLog.note_kept

    def count(log: wal.WriteAheadLog) -> None:
        nonlocal waited
        waited += 1
        note(log)

    monkeypatch.setattr(wal.WriteAheadLog, "note_kept", count)
    async with held_reader(file_database):
        for number in range(20 * wal.CHECK_GROUPS):  # some 10 MB, and a look after each 64 of them
            await file_database.run(insert(number, b""))
            if number % wal.CHECK_GROUPS == 0:
                await trio.sleep(0.02)
    grown = Path(f"{file_database.path}-wal").stat().st_size
    assert 1 <= waited <= grown // 400_000 + 1
