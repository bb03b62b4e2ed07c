"""Reads an audit log for `verify` and `export`, beside a gateway or without one.

A source is one snapshot: a read transaction of SQLite, or of PostgreSQL at REPEATABLE READ. To
read a row and to compute its leaf takes some 6 µs, so a long log is read by several processes:
those of PostgreSQL share the snapshot, those of SQLite begin theirs at the same time and compare
what retention had deleted by then. All of this blocks, and is for commands alone.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import quote

from aether_trio.model.audit import LEAF_BITS
from aether_trio.services.audit.trees import COLUMNS
from aether_trio.services.audit.verify import RawRow, RowBlock, StoredHead, TreeRecord, block_of
from aether_trio.storage.errors import StorageSetupError

BLOCK: Final = 8192
"""Rows that are read at once."""
FEW: Final = 300_000
"""So many rows are read by one process: another one takes some tenths of a second to begin."""
MAX_PROCESSES: Final = 8

_TREES: Final = """SELECT tree, origin, node, public_key, size, frontier, floor_size, floor_frontier
    FROM audit_trees ORDER BY tree"""
_HEADS: Final = "SELECT tree, size, at_ms, frontier, note FROM audit_heads ORDER BY tree, size, at_ms"
_NEXT: Final = "SELECT MIN(audit_id) FROM audit_log WHERE audit_id >= $1"
_ENDS: Final = "SELECT MIN(audit_id), MAX(audit_id) FROM audit_log WHERE audit_id >= $1 AND audit_id <= $2"
_ROWS: Final = f"""SELECT {", ".join(COLUMNS)} FROM audit_log WHERE audit_id >= $1 AND audit_id <= $2
    ORDER BY audit_id"""  # noqa: S608


class Snapshot(Protocol):
    """An open read transaction."""

    def query(self, sql: str, *args: int) -> list[Any]:
        """Run a query; return its rows."""

    def close(self) -> None:
        """End the transaction."""


class SqliteSnapshot:
    """A read transaction on a SQLite file."""

    def __init__(self, file: str) -> None:
        self._connection = sqlite3.connect(f"file:{quote(file)}?mode=ro", uri=True, isolation_level=None)
        try:
            self._connection.execute("BEGIN")
        except BaseException:
            self._connection.close()
            raise

    def query(self, sql: str, *args: int) -> list[Any]:
        """Run a query; return its rows."""
        numbered = sql.replace("$", "?")
        try:
            return self._connection.execute(numbered, args).fetchall()
        except sqlite3.OperationalError as error:
            if "UTF-8" not in str(error):
                raise
        # No gateway wrote such bytes. They are read as what has another hash.
        try:
            self._connection.text_factory = lambda data: data.decode("utf-8", "surrogateescape")
            return self._connection.execute(numbered, args).fetchall()
        finally:
            self._connection.text_factory = str

    def close(self) -> None:
        """End the transaction."""
        self._connection.close()


class PostgresSnapshot:
    """A read transaction on a PostgreSQL schema; `shared`: one that another began."""

    def __init__(self, dsn: str, schema: str, shared: str = "") -> None:
        import asyncpg

        self._loop = asyncio.new_event_loop()
        try:
            self._connection = self._wait(asyncpg.connect(dsn, server_settings={"search_path": schema}))
        except BaseException:
            self._loop.close()
            raise
        self._wait(self._connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY"))
        if shared:
            self._wait(self._connection.execute(f"SET TRANSACTION SNAPSHOT '{shared}'"))

    def _wait(self, coroutine: Any) -> Any:
        return self._loop.run_until_complete(coroutine)

    def exported(self) -> str:
        """Return a name by which others begin transactions that see the same."""
        [[number]] = self.query("SELECT pg_export_snapshot()")
        return str(number)

    def query(self, sql: str, *args: int) -> list[Any]:
        """Run a query; return its rows."""
        return [tuple(row) for row in self._wait(self._connection.fetch(sql, *args))]

    def close(self) -> None:
        """End the transaction."""
        try:
            self._wait(self._connection.close())
        finally:
            self._loop.close()


@dataclass(frozen=True, slots=True)
class SnapshotPlace:
    """Where other processes open the snapshot: a file, or a server, schema and number."""

    file: str = ""
    dsn: str = ""
    schema: str = ""
    shared: str = ""

    def open(self) -> Snapshot:
        """Open the snapshot."""
        return SqliteSnapshot(self.file) if self.file else PostgresSnapshot(self.dsn, self.schema, self.shared)


class StoredLog:
    """The AuditSource of a database."""

    def __init__(self, snapshot: Snapshot, place: SnapshotPlace) -> None:
        self._snapshot = snapshot
        self._place = place
        self._pool: ProcessPoolExecutor | None = None
        self.trees: Sequence[TreeRecord] = [TreeRecord(*row) for row in snapshot.query(_TREES)]
        self.heads: Sequence[StoredHead] = [StoredHead(*row) for row in snapshot.query(_HEADS)]

    def tree_numbers(self) -> list[int]:
        """Return the numbers of all trees that have rows."""
        found: list[int] = []
        start = 0
        while True:
            [[first]] = self._snapshot.query(_NEXT, start)
            if first is None:
                return found
            found.append(first >> LEAF_BITS)
            start = found[-1] + 1 << LEAF_BITS

    def ends(self, first: int, last: int) -> tuple[int, int] | None:
        """Return the lowest and the highest id of the rows from `first` to `last`."""
        [[lowest, highest]] = self._snapshot.query(_ENDS, first, last)
        return None if lowest is None else (lowest, highest)

    def rows(self, first: int, last: int) -> Iterator[Sequence[RawRow]]:
        """Return the rows with ids from `first` to `last`, in order, in chunks."""
        for start, end in self._ranges(first, last):
            if found := self._snapshot.query(_ROWS, start, end):
                yield found

    def blocks(self, first: int, last: int) -> Iterator[RowBlock]:
        """Return the rows with ids from `first` to `last`, in order."""
        ends = self.ends(first, last)
        if ends is None or ends[1] - ends[0] < FEW or processes() < 2:
            for start, end in self._ranges(first, last):
                if found := self._snapshot.query(_ROWS, start, end):
                    yield block_of(found)
            return
        pool = self._processes()
        running: deque[Future[RowBlock | None]] = deque()
        for start, end in self._ranges(first, last):
            running.append(pool.submit(_block_in_process, start, end))
            if len(running) > 2 * processes():
                yield from _done(running.popleft())
        while running:
            yield from _done(running.popleft())

    def _ranges(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        """Return ranges of ids in which rows are; a made-up id may be far from the others."""
        start: int | None = first
        while start is not None and start <= last:
            [[start]] = self._snapshot.query(_NEXT, start)
            if start is not None and start <= last:
                yield start, min(start + BLOCK - 1, last)
                start += BLOCK

    def _processes(self) -> ProcessPoolExecutor:
        if self._pool is None:
            floors = {tree.number: tree.floor_size for tree in self.trees}
            self._pool = ProcessPoolExecutor(
                processes(), get_context("spawn"), initializer=_begin_process, initargs=(self._place, floors)
            )
        return self._pool

    def close(self) -> None:
        """End the snapshot and the processes that read it."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self._snapshot.close()


def processes() -> int:
    """Return how many processes read a long log."""
    return min(len(os.sched_getaffinity(0)), MAX_PROCESSES)


class _RetentionRan(Exception):
    """Retention deleted rows between the begins of two snapshots."""


_snapshots: list[Snapshot] = []
"""The snapshot of this process, one of several that read a log."""


def _begin_process(place: SnapshotPlace, floors: Mapping[int, int]) -> None:
    snapshot = place.open()
    if dict(snapshot.query("SELECT tree, floor_size FROM audit_trees")) == floors:
        _snapshots.append(snapshot)


def _block_in_process(first: int, last: int) -> RowBlock | None:
    if not _snapshots:
        raise _RetentionRan
    rows = _snapshots[0].query(_ROWS, first, last)
    return block_of(rows) if rows else None


def _done(future: Future[RowBlock | None]) -> Iterator[RowBlock]:
    try:
        block = future.result()
    except _RetentionRan:
        raise StorageSetupError("retention deletes old rows at this moment; run the command again.") from None
    if block is not None:
        yield block


def _log_of(snapshot: Snapshot, place: SnapshotPlace) -> StoredLog:
    """Return the log in a snapshot, which is closed if it cannot be read."""
    try:
        return StoredLog(snapshot, place)
    except BaseException:
        snapshot.close()
        raise


@contextmanager
def open_sqlite_log(file: Path) -> Iterator[StoredLog]:
    """Read the audit log in a SQLite file. Raises StorageSetupError."""
    if not file.is_file():
        raise StorageSetupError(f"there is no {file}: name the data directory of a gateway with --data-dir.")
    try:
        with closing(_log_of(SqliteSnapshot(str(file)), SnapshotPlace(file=str(file)))) as log:
            yield log
    except sqlite3.Error as error:
        raise StorageSetupError(f"cannot read the audit log in {file}: {error}.") from error


@contextmanager
def open_postgres_log(dsn: str, schema: str) -> Iterator[StoredLog]:
    """Read the audit log in a PostgreSQL schema. Raises StorageSetupError."""
    try:
        import asyncpg
    except ImportError as error:
        raise StorageSetupError(f"PostgreSQL needs the packages of aether-trio[cluster]: {error}.") from error
    with ExitStack() as stack:
        try:
            snapshot = PostgresSnapshot(dsn, schema)
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            raise StorageSetupError(f"cannot connect to the database: {error}.") from error
        try:
            place = SnapshotPlace(dsn=dsn, schema=schema, shared=snapshot.exported())
            log = stack.enter_context(closing(_log_of(snapshot, place)))
            yield log
        except asyncpg.PostgresError as error:
            raise StorageSetupError(f"cannot read the audit log in schema {schema}: {error}.") from error
