"""Small reads of SQLite on the caller's own thread.

Their promises are those of `read`: see test_database.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from aether_trio.storage.base import Fetch, Program, Row
from aether_trio.storage.sqlite.database import open_sqlite


def rows() -> Program[list[Row]]:
    return (yield Fetch("SELECT value FROM thing ORDER BY value"))


async def test_memory_reads_through_the_writer() -> None:
    async with open_sqlite(None) as database:
        await database.execute("CREATE TABLE thing (value INTEGER)")
        await database.execute("INSERT INTO thing VALUES (7)")
        assert await database.read_small(rows) == [(7,)]


async def test_closed(tmp_path: Path) -> None:
    async with open_sqlite(tmp_path / "x.db") as database:
        await database.execute("CREATE TABLE thing (value INTEGER)")
    with pytest.raises(trio.ClosedResourceError):
        await database.read_small(rows)
