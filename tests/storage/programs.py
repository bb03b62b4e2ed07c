"""Small programs over one table, and a gate to make programs wait for each other in the writer's
queue.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Protocol

import trio

from aether_trio.storage.base import Database, Execute, Fetch, Program, ProgramFactory
from aether_trio.storage.sqlite.database import SqliteDatabase

# Which SQLite takes for any type.
CREATE = "CREATE TABLE items (id INTEGER PRIMARY KEY, data BYTEA)"
LONG_S = 300.0  # a safety net against a hang, never a measurement


class Counting(Protocol):
    """A database that says what it has done."""

    def statistics(self) -> Any: ...


def insert(number: int, data: bytes = b"") -> Callable[[], Program[int]]:
    def program() -> Program[int]:
        yield Execute("INSERT INTO items (id, data) VALUES ($1, $2)", (number, data))
        return number

    return program


def insert_then_raise(number: int, error: Exception) -> Callable[[], Program[None]]:
    def program() -> Program[None]:
        yield Execute("INSERT INTO items (id) VALUES ($1)", (number,))
        raise error

    return program


def pragma(text: str) -> ProgramFactory[list[Any]]:
    def program() -> Program[list[Any]]:
        rows: list[Any] = yield Fetch(f"PRAGMA {text}")
        return rows

    return program


async def ids(database: Database) -> list[int]:
    return [row[0] for row in await database.fetch("SELECT id FROM items ORDER BY id")]


@asynccontextmanager
async def held_writer(database: SqliteDatabase) -> AsyncIterator[trio.Nursery]:
    """Keep the writer thread busy until the block ends, so that what is submitted meanwhile becomes
    one group.
    """
    entered, leave = threading.Event(), threading.Event()

    def gate() -> Program[None]:
        entered.set()
        assert leave.wait(LONG_S)
        yield Fetch("SELECT 1")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(database.run, gate)
        assert await trio.to_thread.run_sync(entered.wait, LONG_S)
        try:
            yield nursery
        finally:
            leave.set()


async def queued(database: Counting, count: int) -> None:
    """Wait until `count` programs (the gate included) are in the queue."""
    with trio.fail_after(LONG_S):
        while database.statistics().queued < count:
            await trio.lowlevel.checkpoint()
