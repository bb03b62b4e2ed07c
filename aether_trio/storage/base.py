"""The Database seam: one copy of portable SQL, run by whichever engine is configured.

A unit of work is a *program*: a generator that yields statements and is sent their results. The engine decides how
to drive it. SQLite runs a whole program inside its writer thread (one thread hop for many programs, which commit as
one group); PostgreSQL drives the same generator over one connection inside a transaction. A program is pure: it does
no I/O of its own, reads no clock and keeps no state outside its locals, because an engine may run it again from the
start.

SQL is portable: `$1` parameters, `ON CONFLICT`, `RETURNING`, integer milliseconds, no engine functions. Where that would cost a round
trip per row, a `shared` engine (PostgreSQL) has a text of its own, which may take arrays (log/topic_sql_postgres.py).

Invariants: `run` returns only after the commit that contains the program is durable; programs given to `run` by one
caller, one after another, take effect in that order; a program that raises leaves no trace.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeAlias, TypeVar

T = TypeVar("T")

Value: TypeAlias = str | int | float | bytes | None
Argument: TypeAlias = Value | Sequence[Value]
"""A sequence is an array, which only PostgreSQL has."""
Row: TypeAlias = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Fetch:
    """Run a query (or a write with `RETURNING`); the program is sent `list[Row]`."""

    sql: str
    args: Sequence[Argument] = ()


@dataclass(frozen=True, slots=True)
class Execute:
    """Run a write; the program is sent the number of rows it touched."""

    sql: str
    args: Sequence[Argument] = ()


@dataclass(frozen=True, slots=True)
class ExecuteMany:
    """Run one write for many parameter rows; the program is sent None."""

    sql: str
    rows: Iterable[Sequence[Value]]


@dataclass(frozen=True, slots=True)
class Deferred:
    """Run a write of `table` that the rest of its transaction does not build on; the program is sent None.

    It is done by the commit, and before a statement that names the table. Those of one table with the same first argument, which
    says what row it is about, keep their order. Where there is a server those of many programs travel together. One that fails spoils
    whatever the program did, like any statement.
    """

    table: str
    sql: str
    args: Sequence[Value] = ()


Statement: TypeAlias = Fetch | Execute | ExecuteMany | Deferred
Program: TypeAlias = Generator[Statement, Any, T]
ProgramFactory: TypeAlias = Callable[[], Program[T]]


class StorageUnavailable(Exception):
    """The engine could not commit or read now (disk full, file locked, server gone). Safe to try again later."""


class CommitUnknown(StorageUnavailable):
    """COMMIT was not answered, or with an error that leaves it open, and it could not be found out in time what has become of it: the
    program is written wholly or not at all.

    To try again may do a thing twice. Of a server: before it takes anything else from the same queue, it is decided. Of a file: the
    next program that is written shows that this one was not, unless the machine stopped in between.
    """


class RefusedError(StorageUnavailable):
    """The server does not take what a statement was given, and would not at another time: one of those who share it is at fault
    (batches.py)."""


class Database(Protocol):
    """One logical database. Engines are async context managers; closing one flushes what was accepted."""

    @property
    def shared(self) -> bool:
        """Whether other processes write to it too: then memory never knows better than the database."""
        ...

    async def run(self, program: ProgramFactory[T]) -> T:
        """Run a read-write program atomically; return its result after the commit is durable.

        Raises StorageUnavailable when nothing was written, or whatever the program itself raised.
        """
        ...

    async def run_small(self, program: ProgramFactory[T]) -> T:
        """`run`, for a few statements that find their rows by key: an embedded engine may run it on the caller's own thread.

        There it costs a third less, and the loop waits for it. Not for scans, nor for what writes megabytes.
        """
        ...

    async def write(self, statement: Statement) -> Any:
        """Run one write as a program of its own; what a program would be sent. One round trip on an engine with a server."""
        ...

    async def read(self, program: ProgramFactory[T]) -> T:
        """Run a read-only program on one consistent snapshot that includes every write committed before the call."""
        ...

    async def read_small(self, program: ProgramFactory[T]) -> T:
        """`read`, for a few rows found by key: an embedded engine may run it on the caller's own thread.

        A row that is in memory costs some microseconds there, and two thread hops cost a hundred. Not for scans.
        """
        ...

    async def fetch(self, sql: str, *args: Value) -> list[Row]:
        """One read-only query."""
        ...

    def beside(self, *, locking: bool = False) -> Database:
        """The same data, with a queue of its own where there is a server: what is given to the one shares no transaction with what is
        given to the other, so neither holds locks while it waits for those of the other. It lives as long as this one.

        `locking`: its programs lock the rows on which they decide, and each statement sees what is
        committed by then. They are in no conflict with what others have read.
        """
        ...

    async def execute(self, sql: str, *args: Value) -> int:
        """One write; the number of rows it touched."""
        ...

    async def executemany(self, sql: str, rows: Iterable[Sequence[Value]]) -> None:
        """One write for many rows, in one transaction."""
        ...


class Shorthands:
    """What an engine can do in terms of its `run` and `read`."""

    async def run(self, program: ProgramFactory[T]) -> T:
        """See Database."""
        raise NotImplementedError

    async def read(self, program: ProgramFactory[T]) -> T:
        """See Database."""
        raise NotImplementedError

    async def run_small(self, program: ProgramFactory[T]) -> T:
        """See Database."""
        return await self.run(program)

    async def write(self, statement: Statement) -> Any:
        """See Database."""
        return await self.run(lambda: single(statement))

    async def fetch(self, sql: str, *args: Value) -> list[Row]:
        """See Database."""
        rows: list[Row] = await self.read(lambda: single(Fetch(sql, args)))
        return rows

    async def execute(self, sql: str, *args: Value) -> int:
        """See Database. INSERT, UPDATE or DELETE."""
        count: int = await self.write(Execute(sql, args))
        return count

    async def executemany(self, sql: str, rows: Iterable[Sequence[Value]]) -> None:
        """See Database. `rows` is read in this task, before anything is queued."""
        held = rows if isinstance(rows, list) else list(rows)
        await self.write(ExecuteMany(sql, held))

    def beside(self, *, locking: bool = False) -> Any:
        """See Database."""
        return self


FENCE_HERE: Final = "/* fence */"
"""In the SQL of a Fetch that is given to `Database.write`, as `FROM (SELECT /* fence */) AS fence`: an engine with a fence (postgres.py)
puts it there, so that the statement fails when the process may not write. Elsewhere it is a comment. Such a statement has a number or the
like of its own: its caller may give it again when it is not known whether it took effect, and sees then whether it had."""


def placeholders(count: int, first: int = 1) -> str:
    """`$1, $2, ...`: the parameters of a list in SQL; the first one has the number `first`."""
    return ", ".join(f"${number}" for number in range(first, first + count))


def rounded_up(values: Sequence[T], multiple: int) -> tuple[T, ...]:
    """The values and the first one again, up to a multiple: so few different statements are prepared for lists. Empty stays empty."""
    first = tuple(values[:1])
    return (*values, *first * (-len(values) % multiple))


def single(statement: Statement) -> Program[Any]:
    """A statement as a program."""
    return (yield statement)
