"""Small reads on the caller's own thread: the same answers as `read`, and no waiting for other processes."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
import trio

from aether_trio.storage.base import Fetch, Program, Row
from aether_trio.storage.sqlite import open_sqlite


def rows() -> Program[list[Row]]:
    return (yield Fetch("SELECT value FROM thing ORDER BY value"))


async def test_sees_what_was_committed_before(tmp_path: Path) -> None:
    async with open_sqlite(tmp_path / "x.db") as database:
        await database.execute("CREATE TABLE thing (value INTEGER)")
        for number in range(20):
            await database.execute("INSERT INTO thing VALUES ($1)", number)
            assert await database.read_small(rows) == [(one,) for one in range(number + 1)]


async def test_one_snapshot_for_all_statements(tmp_path: Path) -> None:
    async with open_sqlite(tmp_path / "x.db") as database:
        await database.execute("CREATE TABLE thing (value INTEGER)")
        other = sqlite3.connect(tmp_path / "x.db", isolation_level=None)

        def twice() -> Program[list[list[Row]]]:
            first = yield Fetch("SELECT value FROM thing")
            other.execute("INSERT INTO thing VALUES (1)")
            second = yield Fetch("SELECT value FROM thing")
            return [first, second]

        assert await database.read_small(twice) == [[], []]
        assert await database.read_small(rows) == [(1,)]
        other.close()


async def test_memory_reads_through_the_writer() -> None:
    async with open_sqlite(None) as database:
        await database.execute("CREATE TABLE thing (value INTEGER)")
        await database.execute("INSERT INTO thing VALUES (7)")
        assert await database.read_small(rows) == [(7,)]


async def test_what_the_program_raises_is_raised(tmp_path: Path) -> None:
    async with open_sqlite(tmp_path / "x.db") as database:
        await database.execute("CREATE TABLE thing (value INTEGER)")

        def broken() -> Program[None]:
            yield Fetch("SELECT 1")
            raise LookupError("no")

        with pytest.raises(LookupError):
            await database.read_small(broken)
        assert await database.read_small(rows) == []


async def test_it_cannot_write(tmp_path: Path) -> None:
    async with open_sqlite(tmp_path / "x.db") as database:
        await database.execute("CREATE TABLE thing (value INTEGER)")

        def write() -> Program[list[Row]]:
            return (yield Fetch("INSERT INTO thing VALUES (1) RETURNING value"))

        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            await database.read_small(write)


async def test_closed(tmp_path: Path) -> None:
    async with open_sqlite(tmp_path / "x.db") as database:
        await database.execute("CREATE TABLE thing (value INTEGER)")
    with pytest.raises(trio.ClosedResourceError):
        await database.read_small(rows)
