"""SQLite on a full disk, with a locked file, or with a foreign file."""

from __future__ import annotations

import gc
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import trio

from aether_trio.storage.base import CommitUnknown, Execute, Program, StorageUnavailable
from aether_trio.storage.errors import StorageSetupError
from aether_trio.storage.sqlite import wal
from aether_trio.storage.sqlite.commit_groups import GroupTransactions
from aether_trio.storage.sqlite.connection import connect_reader
from aether_trio.storage.sqlite.database import SqliteDatabase, open_sqlite
from tests.storage.programs import CREATE, LONG_S, held_reader, held_writer, ids, insert, locked_file, pragma, queued


async def test_a_full_file_fails_the_whole_group_and_recovers(sqlite_database: SqliteDatabase) -> None:
    [(pages,)] = await sqlite_database.run(pragma("page_count"))
    await sqlite_database.run(pragma(f"max_page_count={pages + 4}"))
    failed: list[int] = []

    async def attempt(number: int, size: int) -> None:
        with pytest.raises(StorageUnavailable, match="full"):
            await sqlite_database.run(insert(number, bytes(size)))
        failed.append(number)

    async with held_writer(sqlite_database) as nursery:
        nursery.start_soon(attempt, 1, 10)
        nursery.start_soon(attempt, 2, 100_000)
        nursery.start_soon(attempt, 3, 10)
        await queued(sqlite_database, 4)
    assert sorted(failed) == [1, 2, 3]
    assert await ids(sqlite_database) == []
    assert "full" in sqlite_database.statistics().last_error
    assert sqlite_database.statistics().failed_groups == 1
    assert sqlite_database.statistics().failing
    await sqlite_database.wait_failed()

    await sqlite_database.run(insert(4, b"small"))  # there is room for this one
    assert not sqlite_database.statistics().failing
    await sqlite_database.run(pragma("max_page_count=1000000"))
    await sqlite_database.run(insert(2, bytes(100_000)))
    assert await ids(sqlite_database) == [2, 4]


async def test_a_file_of_another_process_fails_writes_not_reads(file_database: SqliteDatabase, path: Path) -> None:
    await file_database.run(insert(1))
    with locked_file(path, "EXCLUSIVE"):
        with pytest.raises(StorageUnavailable, match="locked"):
            await file_database.run(insert(2))
        assert await ids(file_database) == [1]
    await file_database.run(insert(2))
    assert await ids(file_database) == [1, 2]


WRITE_UNTIL_REFUSED = """
import resource, sys, trio
from aether_trio.storage.base import StorageUnavailable
from aether_trio.storage.sqlite.database import open_sqlite
from tests.storage.programs import CREATE, ids, insert

async def main():
    async with open_sqlite(sys.argv[1]) as database:
        await database.execute(CREATE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))
        written = []
        try:
            for number in range(1000):
                await database.run(insert(number, bytes(10_000)))
                written.append(number)
        except StorageUnavailable:
            pass
        assert 10 < len(written) < 1000, len(written)
        assert await ids(database) == written
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        await database.run(insert(5000))
        assert await ids(database) == [*written, 5000]
        print("recovered", len(written))

trio.run(main)
"""


async def test_a_write_refused_by_the_kernel_loses_nothing_that_was_acknowledged(path: Path) -> None:
    """RLIMIT_FSIZE makes write(2) fail as a full disk does, in a separate process."""
    done = await trio.run_process(
        [sys.executable, "-c", WRITE_UNTIL_REFUSED, str(path)], capture_stdout=True, cwd=Path(__file__).parents[3]
    )
    word, count = done.stdout.split()
    assert word == b"recovered"
    async with open_sqlite(path) as database:
        assert await ids(database) == [*range(int(count)), 5000]


async def cannot_be_opened(path: Path, why: str) -> None:
    with pytest.raises(StorageSetupError, match=why):
        async with open_sqlite(path):
            pass


async def test_a_file_that_is_no_database_is_refused_by_name(path: Path) -> None:
    path.write_bytes(b"not a database, " * 1000)
    await cannot_be_opened(path, r"items\.db is not a SQLite database\. Move it away")
    assert path.read_bytes().startswith(b"not a database")


async def test_a_damaged_file_is_refused_with_advice(path: Path) -> None:
    async with open_sqlite(path) as database:
        await database.execute(CREATE)
    damaged = bytearray(path.read_bytes())
    damaged[100:4096] = b"\xff" * 3996  # the first page's b-tree, behind an intact header
    path.write_bytes(damaged)
    await cannot_be_opened(path, r"items\.db is damaged\. Restore it")


def test_a_reader_that_cannot_be_prepared_is_closed(path: Path) -> None:
    path.write_bytes(b"this is no database" * 1000)
    with pytest.raises(StorageSetupError):
        connect_reader(path)
    gc.collect()  # Python 3.13 warns of an open connection that nothing refers to


async def test_the_database_of_another_application_is_not_touched(path: Path) -> None:
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE theirs (x)")
    other.close()
    before = path.read_bytes()
    await cannot_be_opened(path, "another application")
    assert path.read_bytes() == before


async def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    await cannot_be_opened(tmp_path / "gone" / "items.db", r"gone/items\.db cannot be opened")


async def test_a_file_locked_at_open_is_named(path: Path) -> None:
    async with open_sqlite(path):
        pass
    with locked_file(path, "EXCLUSIVE"):
        await cannot_be_opened(path, "locked by another process")
    async with open_sqlite(path):
        pass


async def test_readers_that_leave_no_gap_cannot_grow_the_log_without_bound(
    file_database: SqliteDatabase, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = 1_000_000
    monkeypatch.setattr(wal, "LIMIT_BYTES", limit)
    monkeypatch.setattr(wal, "GROWTH_BYTES", limit)
    log = Path(f"{path}-wal")
    async with held_reader(file_database):
        for number in range(wal.CHECK_GROUPS - 4):
            await file_database.run(insert(number, bytes(40_000)))
        assert log.stat().st_size > limit  # the reader's snapshot keeps it
    for number in range(1000, 1000 + wal.CHECK_GROUPS):
        await file_database.run(insert(number))
    with trio.fail_after(LONG_S):
        while log.stat().st_size >= limit:
            await trio.sleep(0.01)


ACKNOWLEDGE = """
import sys, trio
from aether_trio.storage.sqlite.database import open_sqlite
from tests.storage.programs import CREATE, insert

async def main():
    async with open_sqlite(sys.argv[1]) as database:
        await database.execute(CREATE)
        async def worker(first):
            for number in range(first, 10**9, 8):
                await database.run(insert(number, b"x" * 300))
                print(number, flush=True)
        async with trio.open_nursery() as nursery:
            for first in range(8):
                nursery.start_soon(worker, first)

trio.run(main)
"""


async def test_what_was_acknowledged_before_a_kill_is_there_afterwards(path: Path) -> None:
    acknowledged: set[int] = set()
    command = [sys.executable, "-c", ACKNOWLEDGE, str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[3])
    assert process.stdout is not None
    with process:
        for line in process.stdout:
            acknowledged.add(int(line))
            if len(acknowledged) == 500:
                process.kill()
                break
        acknowledged.update(int(line) for line in process.stdout if line.endswith(b"\n"))
    async with open_sqlite(path) as database:
        stored = set(await ids(database))
    assert acknowledged <= stored
    for first in range(8):  # of each caller's programs, a prefix
        mine = sorted(number for number in stored if number % 8 == first)
        assert mine == list(range(first, first + 8 * len(mine), 8))


def fails_to_commit(code: int) -> Callable[[GroupTransactions], None]:
    def commit(groups: GroupTransactions) -> None:
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = code
        raise error

    return commit


@pytest.mark.parametrize(
    ("code", "overwritten", "unknown"),
    [
        (sqlite3.SQLITE_IOERR_FSYNC, True, False),
        (sqlite3.SQLITE_IOERR_FSYNC, False, True),
        (sqlite3.SQLITE_IOERR_WRITE, False, False),
        (sqlite3.SQLITE_FULL, False, False),
    ],
)
async def test_a_commit_that_may_be_on_the_disk_is_overwritten_or_unknown(
    path: Path, monkeypatch: pytest.MonkeyPatch, code: int, overwritten: bool, unknown: bool
) -> None:
    """The disk does not confirm a write, which may be in the file after a crash."""
    async with open_sqlite(path) as database:
        await database.run_small(partial(create_and_insert, 1))
        log = Path(f"{path}-wal")
        before = log.read_bytes()
        for write in (database.run, database.run_small):
            with monkeypatch.context() as patch:
                patch.setattr(GroupTransactions, "commit", fails_to_commit(code))
                if not overwritten:
                    patch.setattr(GroupTransactions, "overwrite", lambda _: False)
                with pytest.raises(StorageUnavailable) as raised:
                    await write(insert(2))
            assert isinstance(raised.value, CommitUnknown) == unknown
            assert database.statistics().failing
            # Whatever was in the log behind the last commit is not there any more.
            assert (len(log.read_bytes()) > len(before)) == overwritten
            before = log.read_bytes()
            await write(insert(2))
            assert not database.statistics().failing
            await database.execute("DELETE FROM items WHERE id = 2")
            before = log.read_bytes()
        assert await ids(database) == [1]


def create_and_insert(number: int) -> Program[None]:
    yield Execute(CREATE)
    yield from insert(number)()
