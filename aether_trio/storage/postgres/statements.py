"""Driving a program over one asyncpg connection, inside whatever transaction is open."""

from __future__ import annotations

import asyncio
import math
import weakref
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import trio

from aether_trio.storage.base import (
    FENCE_HERE,
    Deferred,
    Execute,
    ExecuteMany,
    Fetch,
    ProgramFactory,
    Statement,
    Value,
    single,
)
from aether_trio.storage.session_writes import Pending

T = TypeVar("T")


class Job:
    """One program on its way through the engine, and then its result."""

    __slots__ = ("error", "factory", "fence", "pending", "recognized", "rows", "task", "undecided", "value")

    def __init__(self, factory: ProgramFactory[Any]) -> None:
        self.factory = factory
        # It is one statement that has the fence in it, and that its caller recognizes: it needs no BEGIN and COMMIT when it is alone.
        self.recognized = False
        self.fence = ""  # what has to succeed behind BEGIN; that of the moment when the job was submitted
        self.task: trio.lowlevel.Task | None = None
        self.pending: Pending | None = None  # in whose name it writes
        self.undecided = False  # it is answered, and may still take effect
        self.value: Any = None
        self.error: Exception | None = None
        self.rows = 0

    def forget(self, _raise_cancel: Any) -> trio.lowlevel.Abort:
        """The caller was cancelled: the job goes on, nobody is told."""
        self.task = None
        return trio.lowlevel.Abort.SUCCEEDED

    def begin(self) -> None:
        """From now on it may take effect."""
        if self.pending is not None:
            self.pending.began()

    def over(self) -> None:
        """It has taken effect, or never will. Once."""
        pending, self.pending = self.pending, None
        if pending is not None:
            pending.over()

    def fail(self, error: Exception, cause: BaseException | None = None) -> None:
        """Answer with an error of this job's own (an exception that several tasks raise would gather their tracebacks)."""
        self.error = error
        self.error.__cause__ = cause


def statement_job(statement: Statement) -> Job:
    """A job of one write."""
    job = Job(lambda: single(_with_fence(statement, job.fence)))
    job.recognized = FENCE_HERE in statement.sql
    return job


def _with_fence(statement: Statement, fence: str) -> Statement:
    if not fence or not isinstance(statement, Fetch) or FENCE_HERE not in statement.sql:
        return statement
    return Fetch(statement.sql.replace(FENCE_HERE, fence.removeprefix("SELECT ")), statement.args)


class Asides:
    """Writes of one transaction that wait to travel together: those with one text are one round trip."""

    __slots__ = ("_batches",)

    def __init__(self) -> None:
        self._batches: list[_Batch] = []

    def add(self, aside: Deferred) -> None:
        """Behind all that waits for the same row."""
        for batch in reversed(self._batches):
            if batch.sql == aside.sql:
                batch.rows.append(aside.args)
                return
            if batch.table == aside.table and any(row[0] == aside.args[0] for row in batch.rows):
                break
        self._batches.append(_Batch(aside.table, aside.sql, [aside.args]))

    def stand_before(self, statement: Statement) -> bool:
        """Whether something waits that this statement may see."""
        return any(batch.table in statement.sql for batch in self._batches)

    async def write(self, connection: Any) -> None:
        """All that waits."""
        batches, self._batches = self._batches, []
        for batch in batches:
            if len(batch.rows) == 1:
                await connection.execute(batch.sql, *batch.rows[0])
            else:
                await connection.executemany(batch.sql, batch.rows)


@dataclass(frozen=True, slots=True)
class _Batch:
    table: str
    sql: str
    rows: list[Sequence[Value]]


async def drive(connection: Any, job: Job, asides: Asides | None = None) -> Any:
    """Run a job's program to its end; return its result. Counts the rows that its writes touch.

    A statement that fails ends the program: it is closed, not told, as its transaction is over. With `asides` given it is the caller who
    writes what is left of them.
    """
    program = job.factory()
    job.rows = 0
    waiting = Asides() if asides is None else asides
    try:
        statement = next(program)
        while True:
            if isinstance(statement, Deferred):
                waiting.add(statement)
                job.rows += 1
                statement = program.send(None)
                continue
            if waiting.stand_before(statement):
                await waiting.write(connection)
            statement = program.send(await run_statement(connection, statement, job))
    except StopIteration as stop:
        if asides is None:
            await waiting.write(connection)
        return stop.value
    finally:
        program.close()


async def run_statement(connection: Any, statement: Statement, job: Job) -> Any:
    """Run one statement; return what its program is to be sent."""
    if isinstance(statement, Fetch):
        return [tuple(record) for record in await connection.fetch(statement.sql, *statement.args)]
    if isinstance(statement, Execute):
        count = _touched(await connection.execute(statement.sql, *statement.args))
        job.rows += count
        return count
    if isinstance(statement, ExecuteMany):
        rows = _held(statement.rows)
        job.rows += len(rows)
        await connection.executemany(statement.sql, rows)
        return None
    raise TypeError(f"a program yields Fetch, Execute, ExecuteMany or Deferred, not {statement!r}")


def _held(rows: Iterable[Sequence[Value]]) -> Sequence[Sequence[Value]]:
    return rows if isinstance(rows, Sequence) else list(rows)


def _touched(status: str) -> int:
    """The count in a command tag: "INSERT 0 3", "DELETE 2"; 0 when it has none ("CREATE TABLE")."""
    count = status.rpartition(" ")[2]
    return int(count) if count.isdecimal() else 0


class _Guard:
    """Ends a connection whose work takes too long. One timer serves many pieces of work: it looks again when it comes early."""

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
    """`work` on this connection; when it takes longer, the connection is cut, and `work` fails of that.

    Nothing of asyncpg is ever cancelled: a cancelled query leaves a connection that is still busy with it. A connection does one piece
    of work at a time.
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
    """Leave the transaction, if there is one; whether the connection is of further use."""
    try:
        if connection.is_in_transaction():
            await connection.execute("ROLLBACK")
    except Exception:  # then it is lost, and its transaction with it
        return False
    return not connection.is_closed()
