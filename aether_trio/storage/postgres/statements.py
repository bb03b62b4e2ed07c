"""Runs a program over one asyncpg connection, inside the transaction that is open."""

from __future__ import annotations

import asyncio
import math
import weakref
from collections.abc import Awaitable, Callable, Collection, Sequence
from operator import itemgetter
from typing import Any, Final, TypeVar

from aether_trio.storage.base import (
    FENCE_HERE,
    Abandoned,
    Alone,
    Deferred,
    Execute,
    ExecuteMany,
    Fetch,
    FetchOne,
    MissedWriteError,
    ProgramFactory,
    Statement,
    single,
)
from aether_trio.storage.jobs import DatabaseJob
from aether_trio.storage.postgres.merged_writes import MergedWrites, RowName, WriteBatch, WriteMerger, in_batches
from aether_trio.storage.session_writes import SessionWrites

T = TypeVar("T")


class PostgresJob(DatabaseJob):
    """One database program on its way to the server, then its result."""

    __slots__ = ("also", "fence", "key", "pending", "queued_at", "recognized", "rows", "undecided")

    def __init__(
        self, factory: ProgramFactory[Any], key: str = "", abandoned: Abandoned[Any] | None = None, also: str = ""
    ) -> None:
        super().__init__(factory, abandoned)
        self.key = key  # interleaving.py; "": it does not run interleaved
        self.also = also  # a second key, "": none
        self.recognized = False  # a statement with the fence in it, which alone needs no BEGIN
        self.fence = ""  # the query behind BEGIN that must succeed; from the moment of the submit
        self.queued_at = 0.0  # by the loop's clock
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


MOST_PROGRAMS: Final = 8
"""Programs whose writes are merged: of more of them, the texts are fewer than the programs."""


class DeferredWrites:
    """Deferred writes of one transaction; those with one text share a round trip.

    With a `merger`, all those of a program may be one statement, and programs of one kind share it.
    """

    __slots__ = ("_merger", "_pending", "_writes")

    def __init__(self, merger: WriteMerger | None = None) -> None:
        self._merger = merger
        self._writes: list[tuple[object, Deferred]] = []
        """The programs and their writes, in their order."""
        self._pending: set[tuple[str, str]] = set()
        """The tables that are written, and what the writes leave alone (`Deferred.leaves`)."""

    def add(self, write: Deferred, program: object = None) -> None:
        """Add a deferred write of a program behind all writes of the same row."""
        self._writes.append((program, write))
        self._pending.add((write.table, write.leaves))

    def precede(self, statement: Statement) -> bool:
        """Whether a deferred write waits whose table this statement names, and may see."""
        reads = statement.reads if isinstance(statement, FetchOne) else ""
        return any(table in statement.sql and not (reads and reads == leaves) for table, leaves in self._pending)

    def precede_own(self, statement: FetchOne, readers: Sequence[object], others: Collection[object]) -> bool:
        """As `precede`, of a read of `readers` that run interleaved with `others`."""
        if not statement.own or not self.precede(statement):
            return self.precede(statement)
        return any(
            write.table in statement.sql
            for program, write in self._writes
            if program in readers or program not in others
        )

    async def write(self, connection: Any) -> None:
        """Run all deferred writes that wait."""
        if not self._writes:
            return
        writes, self._writes = self._writes, []
        self._pending.clear()
        merged, batches = self._merge(writes)
        for statements in merged:
            await _run_merged(connection, statements)
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

    def _merge(
        self, writes: Sequence[tuple[object, Deferred]]
    ) -> tuple[Sequence[Sequence[MergedWrites]], Sequence[WriteBatch]]:
        """Return merged writes, by their texts, and the writes that are not merged."""
        every = [write for _, write in writes]
        if self._merger is None or len(every) < 2:
            return (), in_batches(every)
        by_program: dict[object, list[Deferred]] = {}
        for program, write in writes:
            by_program.setdefault(program, []).append(write)
        if len(by_program) > MOST_PROGRAMS:
            return (), in_batches(every)
        batches_of = {program: in_batches(mine) for program, mine in by_program.items()}
        names = [set[RowName]().union(*(batch.names for batch in batches)) for batches in batches_of.values()]
        if len(set[RowName]().union(*names)) != sum(map(len, names)):
            return (), in_batches(every)  # two programs write one row, in their order
        left: list[Deferred] = []
        together: dict[tuple[int, str], list[MergedWrites]] = {}
        for program, batches in batches_of.items():
            found = self._merger.merge(batches)
            if found is None:
                left += by_program[program]
            else:
                for number, one in enumerate(found):
                    together.setdefault((number, one.sql), []).append(one)
        return [together[at] for at in sorted(together, key=itemgetter(0))], in_batches(left)


async def _run_merged(connection: Any, statements: Sequence[MergedWrites]) -> None:
    """Run merged writes of one text."""
    found = await connection.fetchmany(statements[0].sql, [one.args for one in statements])
    for counted, one in zip(found, statements, strict=True):
        if one.counts and tuple(counted) != one.counts:
            raise MissedWriteError(f"a row is not as this transaction has read it: {one.sql}")


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
                waiting.add(statement, job)
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
