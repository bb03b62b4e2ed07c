"""The storage engines, for tests that run on SQLite and on PostgreSQL.

A test that asks for the fixture `engine` (tests/conftest.py) runs once for each. On PostgreSQL
every test has a separate schema, on one server for the whole run; `schemas.py` uses schemas again.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing, contextmanager
from itertools import count
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import asyncpg

from aether_trio.storage.base import Abandoned, Database, ProgramFactory
from aether_trio.storage.postgres.connections import PostgresLimits
from aether_trio.storage.postgres.database import PostgresDatabase, open_postgres
from aether_trio.storage.sqlite.database import SqliteDatabase, open_sqlite
from tests.helpers.postgres import PostgresServer
from tests.helpers.postgres_session import PostgresSession
from tests.helpers.schemas import PostgresSchemas

T = TypeVar("T")

_numbers = count(1)


class SqliteEngine:
    """A file for each database, or memory without a `directory`."""

    name = "sqlite"
    bad_sql: type[Exception] = sqlite3.OperationalError
    duplicate: type[Exception] = sqlite3.IntegrityError
    read_only: type[Exception] = sqlite3.OperationalError

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory
        self._last: Path | None = None

    def open(self, database: str = "scratch") -> AbstractAsyncContextManager[SqliteDatabase]:
        self._last = self._directory and self._directory / f"{database}.db"
        return open_sqlite(self._last, name=database, synchronous="OFF")

    def outside(self, sql: str) -> None:
        """In the database that was opened last."""
        assert self._last is not None, "no other process reaches a database in memory"
        with closing(sqlite3.connect(self._last, isolation_level=None)) as other:
            other.execute(sql)


class SmallPrograms(Database):
    """A SQLite database that runs each program by `run_small` and `read_small`."""

    shared = False

    def __init__(self, database: SqliteDatabase) -> None:
        self.database = database
        self.statistics = database.statistics

    async def run(self, program: ProgramFactory[T], abandoned: Abandoned[T] | None = None) -> T:
        """Run the program in the trio thread, unless the writer thread has work."""
        return await self.database.run_small(program, abandoned)

    async def read(self, program: ProgramFactory[T]) -> T:
        """Read in the trio thread, if the data is in a file."""
        return await self.database.read_small(program)


class SmallSqliteEngine(SqliteEngine):
    @asynccontextmanager
    async def open(self, database: str = "scratch") -> AsyncIterator[SmallPrograms]:  # type: ignore[override]
        async with super().open(database) as opened:
            yield SmallPrograms(opened)


class PostgresEngine:
    """A schema on `server`."""

    name = "postgres"
    bad_sql: type[Exception] = asyncpg.SyntaxOrAccessError
    duplicate: type[Exception] = asyncpg.UniqueViolationError
    read_only: type[Exception] = asyncpg.ReadOnlySQLTransactionError

    def __init__(self, server: PostgresServer, session: PostgresSession, schema: str) -> None:
        self.server = server
        self.session = session
        self.schema = schema

    @asynccontextmanager
    async def open(
        self, database: str = "scratch", limits: PostgresLimits | None = None
    ) -> AsyncIterator[PostgresDatabase]:
        async with open_postgres(self.server.dsn(), schema=self.schema, limits=limits) as opened:
            yield await opened.database(database)

    def outside(self, sql: str) -> None:
        self.session.execute(sql)

    def rows(self, sql: str, *args: Any) -> list[tuple[Any, ...]]:
        """Return what another process sees."""
        return self.session.fetch(sql, *args)


Engine: TypeAlias = SqliteEngine | PostgresEngine
"""One engine with a separate place for its data, which outlives its databases."""


@contextmanager
def reuse_postgres_engine(
    server: PostgresServer, session: PostgresSession, schemas: PostgresSchemas
) -> Iterator[PostgresEngine]:
    """An engine on an empty schema with all tables, which was perhaps used before."""
    schema = schemas.take()
    session.execute(f"SET search_path = {schema}")
    try:
        yield PostgresEngine(server, session, schema)
    finally:
        schemas.give_back(schema)


@contextmanager
def open_postgres_engine(server: PostgresServer, session: PostgresSession) -> Iterator[PostgresEngine]:
    schema = f"test_{next(_numbers)}"
    session.execute(f"CREATE SCHEMA {schema}; SET search_path = {schema}")
    try:
        yield PostgresEngine(server, session, schema)
    finally:
        session.execute(f"SET client_min_messages = warning; DROP SCHEMA {schema} CASCADE")
