"""Logical databases without threads or tasks, on either engine.

A program runs to its end before the call returns. A `Store` gives out *places*, each empty and for
one user; a place has the logical databases, which outlive their users. On PostgreSQL places
are schemas that are emptied and used again, which takes a millisecond where making one takes fifty.
On SQLite they are copies of databases that are upgraded once, page by page.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import cache
from itertools import count
from typing import Any, Final, TypeAlias, TypeVar

from aether_trio.storage.base import Program, ProgramFactory, Statement
from aether_trio.storage.migrations import MIGRATIONS, POSTGRES, SQLITE, upgrade
from aether_trio.storage.postgres.interleaving import drive_group
from aether_trio.storage.postgres.statements import PostgresJob
from aether_trio.storage.postgres.statements import drive as drive_postgres
from aether_trio.storage.sqlite.statements import drive as drive_sqlite
from tests.helpers.postgres_session import PostgresSession

T = TypeVar("T")


def caught(program: Program[T], into: list[Statement]) -> Program[T]:
    """A program, and each statement that it makes."""
    answer: Any = None
    while True:
        try:
            statement = program.send(answer)
        except StopIteration as end:
            result: T = end.value
            return result
        into.append(statement)
        answer = yield statement


def _in_transaction(cursor: sqlite3.Cursor, program: ProgramFactory[T]) -> T:
    cursor.execute("BEGIN")
    try:
        result = drive_sqlite(cursor, program)
    except BaseException:
        cursor.execute("ROLLBACK")
        raise
    cursor.execute("COMMIT")
    return result


@cache
def _upgraded(name: str) -> sqlite3.Connection:
    """The logical database `name` with empty tables, to be copied."""
    connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    _in_transaction(connection.cursor(), lambda: upgrade(name, SQLITE, "in memory"))
    return connection


class SqliteDirect:
    shared = False

    def __init__(self, name: str) -> None:
        self._connection = sqlite3.connect(":memory:", isolation_level=None)
        _upgraded(name).backup(self._connection)
        self._connection.execute("PRAGMA foreign_keys=ON")
        self._cursor = self._connection.cursor()

    def drive(self, program: ProgramFactory[T]) -> T:
        return _in_transaction(self._cursor, program)

    def read(self, program: ProgramFactory[T]) -> T:
        """Run a program that only reads."""
        return self.drive(program)

    def close(self) -> None:
        """Forget everything."""
        self._connection.close()


class SqlitePlace:
    def __init__(self) -> None:
        self._databases: dict[str, SqliteDirect] = {}

    def direct(self, name: str) -> SqliteDirect:
        """The logical database "state", "log" or "tasks": the same one each time."""
        found = self._databases.get(name)
        if found is None:
            found = self._databases[name] = SqliteDirect(name)
        return found

    def close(self) -> None:
        for database in self._databases.values():
            database.close()


class SqliteStore:
    name = "sqlite"

    def place(self) -> SqlitePlace:
        """An empty place. Its user closes it."""
        return SqlitePlace()

    def new_place(self) -> SqlitePlace:
        """An empty place that was never used: the engine has no statistics of its tables."""
        return SqlitePlace()

    def examples(self, count: int) -> int:
        """How many examples of a property this engine runs, of those of the fastest one."""
        return count


class PostgresPlace:
    """All databases of it are one schema, as in a gateway."""

    shared = True

    def __init__(self, session: PostgresSession, schema: str, give_back: Callable[[PostgresPlace], None]) -> None:
        self._session = session
        self._schema = schema
        self._give_back = give_back
        session.execute(f"CREATE SCHEMA {schema}")
        for name in MIGRATIONS:
            self.drive(lambda name=name: upgrade(name, POSTGRES, schema))  # type: ignore[misc]
        tables = session.fetch(
            "SELECT quote_ident(relname) FROM pg_class WHERE relnamespace = $1::text::regnamespace AND relkind IN ('r', 'p') "
            "AND NOT relispartition AND relname <> 'schema_version'",
            schema,
        )
        self._empty = "; ".join(f"DELETE FROM {schema}.{name}" for (name,) in tables)

    def direct(self, name: str) -> PostgresPlace:
        return self

    def drive(self, program: ProgramFactory[T]) -> T:
        result: T = self._session.call(self._drive(program))
        return result

    def drive_group(self, programs: Sequence[tuple[ProgramFactory[T], str]]) -> list[T]:
        """Run programs, each with its key or "", as one commit group in this order."""
        return self._session.call(self._drive_group(programs))

    def read(self, program: ProgramFactory[T]) -> T:
        """Run without a transaction; a place has one connection, so nothing comes between."""
        result: T = self._session.call(self._read(program))
        return result

    async def _read(self, program: Callable[[], Program[Any]]) -> Any:
        await self._enter()
        return await drive_postgres(self._session.connection, PostgresJob(program))

    async def _enter(self) -> None:
        if self._session.schema != self._schema:
            await self._session.connection.execute(f"SET search_path = {self._schema}")
            self._session.schema = self._schema

    async def _drive(self, program: Callable[[], Program[Any]]) -> Any:
        async with self._transaction() as connection:
            return await drive_postgres(connection, PostgresJob(program))

    async def _drive_group(self, programs: Sequence[tuple[Callable[[], Program[Any]], str]]) -> list[Any]:
        jobs = [PostgresJob(program, key) for program, key in programs]
        async with self._transaction() as connection:
            await drive_group(connection, jobs)
        return [job.value for job in jobs]

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[Any]:
        await self._enter()
        connection = self._session.connection
        await connection.execute("BEGIN")
        try:
            yield connection
        except BaseException:
            await connection.execute("ROLLBACK")
            raise
        await connection.execute("COMMIT")

    def close(self) -> None:
        parts = self._session.fetch(
            "SELECT inhrelid::regclass::text FROM pg_inherits JOIN pg_class c ON c.oid = inhrelid "
            "WHERE c.relnamespace = $1::text::regnamespace AND c.relkind = 'r'",
            self._schema,
        )
        self._session.execute(self._empty + "".join(f"; DROP TABLE {name}" for (name,) in parts))
        self._give_back(self)

    def drop(self) -> None:
        self._session.execute(f"DROP SCHEMA {self._schema} CASCADE")


_PLACES: Final = count(1)
"""Of the whole process: a session's fixture may be made several times (pytest-xdist), on one
server.
"""


class PostgresStore:
    """The session is to be its own.

    One is to live as long as its server: it keeps the places that are given back, and making one is
    dear.
    """

    name = "postgres"

    def __init__(self, session: PostgresSession) -> None:
        self._session = session
        self._free: list[PostgresPlace] = []

    def place(self) -> PostgresPlace:
        return self._free.pop() if self._free else self._make(self._free.append)

    def new_place(self) -> PostgresPlace:
        """It is not used again."""
        return self._make(PostgresPlace.drop)

    def _make(self, closed: Callable[[PostgresPlace], None]) -> PostgresPlace:
        return PostgresPlace(self._session, f"place_{next(_PLACES)}", closed)

    def examples(self, count: int) -> int:
        """A statement takes fifty times as long here."""
        return max(count // 8, 1)


Direct: TypeAlias = SqliteDirect | PostgresPlace
"""One logical database."""
Place: TypeAlias = SqlitePlace | PostgresPlace
"""Room for the logical databases of one gateway."""
Store: TypeAlias = SqliteStore | PostgresStore
"""One engine."""
