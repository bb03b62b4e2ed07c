"""The Database protocol: one copy of portable SQL for SQLite and PostgreSQL.

A unit of work is a *program*: a generator that yields statements and is sent their results. SQLite
runs whole programs inside its writer thread, many in one commit. PostgreSQL runs the same generator
over one connection inside a transaction. A program is pure: it does no I/O, reads no clock and
keeps no state outside its locals, because an engine may run it again.

SQL is portable: `$1` parameters, `ON CONFLICT`, `RETURNING`, integer milliseconds, no functions of
one engine. Where that would cost a round trip per row, a `shared` engine (PostgreSQL) has its own
text, which may take arrays (log/topic_sql_postgres.py).

Invariants: `run` returns only after the commit that contains the program is durable; programs of
one caller take effect in its order, and of all callers in the order in which they were given, if no
other process writes (`shared`); a program that raises leaves no trace.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Protocol, TypeAlias, TypeVar

from outcome import Outcome

T = TypeVar("T")

Value: TypeAlias = str | int | float | bytes | None
Argument: TypeAlias = Value | Sequence[Value]
"""A parameter of a statement; a sequence is an array, which only PostgreSQL has."""
Row: TypeAlias = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Fetch:
    """A query or `RETURNING` write that a database program yields to get `list[Row]`."""

    sql: str
    args: Sequence[Argument] = ()


@dataclass(frozen=True, slots=True)
class FetchOne(Fetch):
    """A Fetch of at most one row, whose first column is the first argument.

    Equal ones of programs that run interleaved (`Database.run_keyed`) share a round trip. `late`:
    it runs when none of them waits for one that is not. `reads`: a name for the part of the named
    tables that it reads, if that is not all of them (`Deferred.leaves`). `own`: it reads rows on
    which its program alone decides (`Database.run_keyed`), so it need not wait for writes of others
    that run interleaved with it.
    """

    late: bool = False
    reads: str = ""
    own: bool = False


@dataclass(frozen=True, slots=True)
class Alone:
    """Yielded before a write by a program that may not run interleaved; result None.

    PostgreSQL drops what an interleaved program has done, which is to read, and runs it again when
    the others have ended. Other engines do not know it: yield it on a `shared` engine only.
    """

    sql: ClassVar[str] = ""


@dataclass(frozen=True, slots=True)
class Execute:
    """A write that a database program yields to get the number of touched rows."""

    sql: str
    args: Sequence[Argument] = ()


@dataclass(frozen=True, slots=True)
class ExecuteMany:
    """A write for many parameter rows that a database program yields; result None."""

    sql: str
    rows: Iterable[Sequence[Value]]


@dataclass(frozen=True, slots=True)
class Deferred:
    """A write of `table` that a database program delays up to its commit; result None.

    It runs before a statement that names the table. Writes of one table with the same first
    arguments, which name the row, keep their order. On PostgreSQL the deferred writes of many
    programs travel together. A deferred write that fails undoes the program, like any statement.
    `returns_row`: its SQL returns a row, and on PostgreSQL it fails if it returns none. `leaves`:
    the part of the table, as `FetchOne.reads` names it, in which it changes nothing; a statement
    that reads that part alone need not wait for it. `key`: how many arguments name the row, one
    number for all deferred writes of a table.
    """

    table: str
    sql: str
    args: Sequence[Value] = ()
    returns_row: bool = False
    leaves: str = ""
    key: int = 1


Statement: TypeAlias = Fetch | Execute | ExecuteMany | Deferred | Alone
Program: TypeAlias = Generator[Statement, Any, T]
ProgramFactory: TypeAlias = Callable[[], Program[T]]
Abandoned: TypeAlias = Callable[[Outcome[T]], None]
"""Takes the outcome of a program whose caller was cancelled meanwhile."""


class StorageUnavailable(Exception):
    """Raised when the database cannot commit or read now (disk full, server away)."""


class CommitUnknown(StorageUnavailable):
    """Raised when it is not known whether a program was committed, all or nothing.

    COMMIT was not answered, or with an error that leaves it open, and it could not be found out in
    time. To try again may do a thing twice. PostgreSQL: it is decided before a further program of
    the same queue is written. SQLite: the next program that is written shows that this one was not,
    unless the machine stopped in between.
    """


class RefusedError(StorageUnavailable):
    """Raised when a statement for several callers fails for one caller's parameters."""


class MissedWriteError(Exception):
    """A deferred write has found no row.

    So what its program has taken for true is not, or it has a bug.
    """


class Database(Protocol):
    """One logical database; engines subclass it. Closing it flushes accepted programs."""

    shared: bool
    """Whether other processes write to this database too."""

    @abstractmethod
    async def run(self, program: ProgramFactory[T], abandoned: Abandoned[T] | None = None) -> T:
        """Run a read-write program atomically; return its result once it is durable.

        Raises StorageUnavailable when nothing was written, or what the program itself raised. A
        caller that is cancelled does not take its program back: when the program has ended,
        `abandoned` is called with what the caller would have got. It may not raise.
        """

    @abstractmethod
    async def read(self, program: ProgramFactory[T]) -> T:
        """Run a read-only program on a snapshot with all writes before the call."""

    async def run_small(
        self, program: ProgramFactory[T], abandoned: Abandoned[T] | None = None, *, gathered: bool = False
    ) -> T:
        """Run, as `run` does, a program of a few statements that find their rows by key.

        SQLite may run it on the caller's thread, where it costs a third, and the event loop waits
        for its statements. Not for scans, nor for programs that write megabytes. `gathered`: the
        program has the work of many, and is not to wait for that of other tasks.
        """
        return await self.run(program, abandoned)

    async def run_keyed(
        self, program: ProgramFactory[T], key: str, abandoned: Abandoned[T] | None = None, *, also: str = ""
    ) -> T:
        """Run, as `run` does, a program that decides on the one row that `key` names.

        `also` names a further one.

        On PostgreSQL the programs of a group that have different keys run interleaved, as far as
        each goes between two FetchOne: all of them read, then all of them go on. So another program
        may have written between two statements of this one, but nothing that has its key. A program
        that finds out that it depends on other rows yields Alone.
        """
        return await self.run(program, abandoned)

    async def read_small(self, program: ProgramFactory[T]) -> T:
        """Read, as `read`, a few rows by key, on SQLite perhaps on the caller's thread."""
        return await self.read(program)

    async def write(self, statement: Statement) -> Any:
        """Run one write as a program; return its result. One round trip on PostgreSQL."""
        return await self.run(lambda: single(statement))

    async def fetch(self, sql: str, *args: Value) -> list[Row]:
        """Run one read-only query; return its rows."""
        rows: list[Row] = await self.read(lambda: single(Fetch(sql, args)))
        return rows

    async def execute(self, sql: str, *args: Value) -> int:
        """Run one write; return the number of rows that it touched."""
        count: int = await self.write(Execute(sql, args))
        return count

    async def executemany(self, sql: str, rows: Iterable[Sequence[Value]]) -> None:
        """Run one write for many rows, which are read before it is queued."""
        await self.write(ExecuteMany(sql, rows if isinstance(rows, list) else list(rows)))

    def separate_queue(self, *, locking: bool = False) -> Database:
        """Return the same data with a separate write queue, of the same lifetime.

        On PostgreSQL programs of different queues share no transaction, so neither holds locks
        while it waits for those of the other. `locking`: its programs lock the rows on which they
        decide, and each statement sees what is committed by then; they never conflict with what
        other programs have read. An engine without a server has one queue.
        """
        return self


FENCE_HERE: Final = "/* fence */"
"""Marks where an engine with a fence puts it into a Fetch for `Database.write`.

The SQL says `FROM (SELECT /* fence */) AS fence`; with the fence the statement fails when the
process may not write. Elsewhere it is a comment. Such a statement can be recognized (by a number,
for example): its caller may give it again when it is not known whether it took effect, and sees
then whether it had."""


def placeholders(count: int, first: int = 1) -> str:
    """Return `$1, $2, ...`, the parameters of a list in SQL, counted from `first`."""
    return ", ".join(f"${number}" for number in range(first, first + count))


def rounded_up(values: Sequence[T], multiple: int) -> tuple[T, ...]:
    """Repeat the first value until the length is a multiple: fewer distinct SQL texts."""
    first = tuple(values[:1])
    return (*values, *first * (-len(values) % multiple))


def single(statement: Statement) -> Program[Any]:
    """Make a database program of one statement."""
    return (yield statement)
