"""Small programs over one table, and ways to make programs wait in the queue."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any, Protocol

import trio

from aether_trio.storage.base import Database, Execute, Fetch, Program, ProgramFactory, single
from aether_trio.storage.postgres.connections import PostgresLimits
from aether_trio.storage.sqlite.database import SqliteDatabase
from tests.helpers.engines import Engine, PostgresEngine, SqliteEngine

# which SQLite takes for any type
CREATE = "CREATE TABLE items (id INTEGER PRIMARY KEY, data BYTEA)"
LONG_S = 300.0  # a safety net against a hang, never a measurement


class Counting(Protocol):
    """A database that counts what it does."""

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


def pair(number: int) -> Callable[[], Program[None]]:
    """Two rows, of which no caller ever sees one alone."""

    def program() -> Program[None]:
        for one in (number, -number):
            yield Execute("INSERT INTO items (id) VALUES ($1)", (one,))

    return program


WRITE_1 = "INSERT INTO items (id, data) VALUES (1, $1) ON CONFLICT (id) DO UPDATE SET data = excluded.data"


def count_up() -> Program[None]:
    """Read, add, write, with nothing that locks the row first."""
    rows = yield Fetch("SELECT data FROM items WHERE id = 1")
    yield Execute(WRITE_1, (b"%d" % (int(rows[0][0]) + 1 if rows else 1),))


def append(digit: int) -> Callable[[], Program[None]]:
    def program() -> Program[None]:
        rows = yield Fetch("SELECT data FROM items WHERE id = 1")
        yield Execute(WRITE_1, ((bytes(rows[0][0]) if rows else b"") + bytes([digit]),))

    return program


def pragma(text: str) -> ProgramFactory[list[Any]]:
    return lambda: single(Fetch(f"PRAGMA {text}"))


async def ids(database: Database) -> list[int]:
    return [row[0] for row in await database.fetch("SELECT id FROM items ORDER BY id")]


@asynccontextmanager
async def held_writer(database: SqliteDatabase) -> AsyncIterator[trio.Nursery]:
    """Keep the writer thread busy until the block ends; programs wait as a group."""
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


@asynccontextmanager
async def held_reader(database: SqliteDatabase) -> AsyncIterator[None]:
    """Keep one reader's snapshot of the file open until the block ends."""
    started, leave = trio.Event(), trio.Event()
    token = trio.lowlevel.current_trio_token()

    def slow_read() -> Program[None]:
        yield Fetch("SELECT count(*) FROM items")
        token.run_sync_soon(started.set)
        trio.from_thread.run(leave.wait, trio_token=token)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(database.read, slow_read)
        await started.wait()
        try:
            yield
        finally:
            leave.set()


async def queued(database: Counting, count: int) -> None:
    """Wait until `count` programs (the gate included) are in the queue."""
    with trio.fail_after(LONG_S):
        while database.statistics().queued < count:
            await trio.lowlevel.checkpoint()


@contextmanager
def locked_file(path: Path, how: str) -> Iterator[None]:
    """Another process has a transaction in this file, EXCLUSIVE or IMMEDIATE."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute(f"BEGIN {how}")
        yield


ONE_WRITER = PostgresLimits(writers=1, patience_s=LONG_S, lock_s=LONG_S, statement_s=LONG_S)


def open_serial(engine: Engine) -> AbstractAsyncContextManager[Any]:
    """Open a database that writes one group at a time."""
    return engine.open(limits=ONE_WRITER) if isinstance(engine, PostgresEngine) else engine.open()


@contextmanager
def locked(engine: PostgresEngine) -> Iterator[None]:
    """Make every write to `items` wait for another process."""
    engine.outside("BEGIN; LOCK TABLE items IN EXCLUSIVE MODE")
    try:
        yield
    finally:
        engine.outside("COMMIT")


async def waiting_for_a_lock(engine: PostgresEngine, count: int) -> None:
    with trio.fail_after(LONG_S):
        # Not pg_stat_activity: in a transaction it omits connections that were opened since its
        # first look.
        while engine.rows("SELECT count(*) FROM pg_locks WHERE NOT granted") != [(count,)]:
            await trio.sleep(0.005)


@asynccontextmanager
async def held(engine: Engine, database: Any) -> AsyncIterator[trio.Nursery]:
    """Keep the writer busy until the block ends; its program may write the row -1."""
    if isinstance(engine, SqliteEngine):
        async with held_writer(getattr(database, "database", database)) as nursery:
            yield nursery
        return
    assert isinstance(engine, PostgresEngine)
    async with trio.open_nursery() as nursery:
        with locked(engine):
            nursery.start_soon(database.run, insert(-1))
            await waiting_for_a_lock(engine, 1)
            yield nursery
