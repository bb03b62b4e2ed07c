"""Runs a program over one asyncpg connection, inside the transaction that is open."""

from __future__ import annotations

import asyncio
import math
import weakref
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from aether_trio.storage.base import (
    FENCE_HERE,
    Abandoned,
    Alone,
    Deferred,
    Execute,
    ExecuteMany,
    Fetch,
    ProgramFactory,
    Statement,
    Value,
    single,
)
from aether_trio.storage.jobs import DatabaseJob
from aether_trio.storage.session_writes import SessionWrites

T = TypeVar("T")


class PostgresJob(DatabaseJob):
    """One database program on its way to the server, then its result."""

    __slots__ = ("also", "fence", "key", "pending", "recognized", "rows", "undecided")

    def __init__(
        self, factory: ProgramFactory[Any], key: str = "", abandoned: Abandoned[Any] | None = None, also: str = ""
    ) -> None:
        super().__init__(factory, abandoned)
        self.key = key  # interleaving.py; "": it does not run interleaved
        self.also = also  # a second key, "": none
        self.recognized = False  # a statement with the fence in it, which alone needs no BEGIN
        self.fence = ""  # the query behind BEGIN that must succeed; from the moment of the submit
        self.pending: SessionWrites | None = None  # the writes of the session that it belongs to
        self.undecided = False  # it was answered, and may still take effect
        self.rows = 0

    def begin(self) -> None:
        """Count the job's program among its session's unfinished writes."""
        if self.pending is not None:
            self.pending.began()

    def over(self) -> None:
        """Take the job's program, once, out of its session's unfinished writes."""
        pending, self.pending = self.pending, None
        if pending is not None:
            pending.over()

    def fail(self, error: Exception, cause: BaseException | None = None) -> None:
        """Answer with an error for this job alone, as tasks must not share tracebacks."""
        self.error = error
        self.error.__cause__ = cause


def statement_job(statement: Statement) -> PostgresJob:
    """Make a PostgresJob of one write."""
    job = PostgresJob(lambda: single(_with_fence(statement, job.fence)))
    job.recognized = FENCE_HERE in statement.sql
    return job


def _with_fence(statement: Statement, fence: str) -> Statement:
    if not fence or not isinstance(statement, Fetch) or FENCE_HERE not in statement.sql:
        return statement
    return Fetch(statement.sql.replace(FENCE_HERE, fence.removeprefix("SELECT ")), statement.args)


class MissedWriteError(Exception):
    """A deferred write has found no row, which is a bug of its program."""


class DeferredWrites:
    """Deferred writes of one transaction; those with one text share a round trip."""

    __slots__ = ("_batches",)

    def __init__(self) -> None:
        self._batches: list[_Batch] = []

    def add(self, write: Deferred) -> None:
        """Add a deferred write behind all writes of the same row."""
        for batch in reversed(self._batches):
            if batch.sql == write.sql:
                batch.rows.append(write.args)
                return
            if batch.table == write.table and any(row[0] == write.args[0] for row in batch.rows):
                break
        self._batches.append(_Batch(write.table, write.sql, [write.args], write.returns_row))

    def precede(self, statement: Statement) -> bool:
        """Whether a deferred write waits whose table this statement names."""
        return any(batch.table in statement.sql for batch in self._batches)

    async def write(self, connection: Any) -> None:
        """Run all deferred writes that wait."""
        batches, self._batches = self._batches, []
        for batch in batches:
            if batch.returns_row:
                if len(await connection.fetchmany(batch.sql, batch.rows)) != len(batch.rows):
                    raise MissedWriteError(
                        f"a row of {batch.table} is not as this transaction has read it: {batch.sql}"
                    )
            elif len(batch.rows) == 1:
                await connection.execute(batch.sql, *batch.rows[0])
            else:
                await connection.executemany(batch.sql, batch.rows)


@dataclass(frozen=True, slots=True)
class _Batch:
    table: str
    sql: str
    rows: list[Sequence[Value]]
    returns_row: bool


async def drive(connection: Any, job: PostgresJob, deferred: DeferredWrites | None = None) -> Any:
    """Run a job's program to its end; return its result, and count rows.

    A statement that fails ends the program, which is closed without an exception in it, as its
    transaction is over. With `deferred`, the caller runs the deferred writes that are left at the
    end.
    """
    program = job.factory()
    job.rows = 0
    waiting = DeferredWrites() if deferred is None else deferred
    try:
        statement = next(program)
        while True:
            if isinstance(statement, Deferred):
                waiting.add(statement)
                job.rows += 1
                statement = program.send(None)
                continue
            if isinstance(statement, Alone):
                statement = program.send(None)
                continue
            if waiting.precede(statement):
                await waiting.write(connection)
            statement = program.send(await run_statement(connection, statement, job))
    except StopIteration as stop:
        if deferred is None:
            await waiting.write(connection)
        return stop.value
    finally:
        program.close()


async def run_statement(connection: Any, statement: Statement, job: PostgresJob) -> Any:
    """Run one statement on a PostgreSQL connection; return what its program is sent."""
    if isinstance(statement, Fetch):
        return [tuple(record) for record in await connection.fetch(statement.sql, *statement.args)]
    if isinstance(statement, Execute):
        count = _touched(await connection.execute(statement.sql, *statement.args))
        job.rows += count
        return count
    if isinstance(statement, ExecuteMany):
        rows = statement.rows if isinstance(statement.rows, Sequence) else list(statement.rows)
        job.rows += len(rows)
        await connection.executemany(statement.sql, rows)
        return None
    raise TypeError(f"cannot run {statement!r}: a database program yields Fetch, Execute, ExecuteMany or Deferred")


def _touched(status: str) -> int:
    """Return the count in a command tag: 3 of "INSERT 0 3", 0 of "CREATE TABLE"."""
    count = status.rpartition(" ")[2]
    return int(count) if count.isdecimal() else 0


class _Guard:
    """Cuts a connection whose work takes too long; one timer serves all its work."""

    __slots__ = ("_connection", "_loop", "_timer", "until")

    def __init__(self, connection: Any) -> None:
        self._connection = weakref.ref(connection)
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self.until = math.inf

    def watch(self, seconds: float) -> None:
        self.until = self._loop.time() + seconds
        if self._timer is None:
            self._timer = self._loop.call_at(self.until, self._look)
        elif self._timer.when() > self.until:
            self._timer.cancel()
            self._timer = self._loop.call_at(self.until, self._look)

    def _look(self) -> None:
        self._timer = None
        connection = self._connection()
        if connection is None or self.until == math.inf:
            return
        if self._loop.time() >= self.until:
            connection.terminate()
        else:
            self._timer = self._loop.call_at(self.until, self._look)


_guards: weakref.WeakKeyDictionary[Any, _Guard] = weakref.WeakKeyDictionary()


async def within(connection: Any, seconds: float, work: Callable[[], Awaitable[T]]) -> T:
    """Await `work()` on a connection; abort the connection if it takes `seconds`.

    Then `work` fails. No call of asyncpg is cancelled: a cancelled query leaves a connection that
    is still busy with it. A connection does one piece of work at a time.
    """
    guard = _guards.get(connection)
    if guard is None:
        guard = _guards[connection] = _Guard(connection)
    guard.watch(seconds)
    try:
        return await work()
    finally:
        guard.until = math.inf


async def roll_back(connection: Any) -> bool:
    """Roll back the transaction, if any; return whether the connection is usable."""
    try:
        if connection.is_in_transaction():
            await connection.execute("ROLLBACK")
    except Exception:  # then it is lost, and its transaction with it
        return False
    return not connection.is_closed()
