"""The SQLite engine: one file, a writer thread that commits in groups, readers.

`run` puts a program into a bounded queue and sleeps until the group that contains it is durable
(write-ahead log, synced after each commit; wal.py). `run_small` runs cheap programs in the trio
thread (inline.py). `read` runs on a reader's own connection, and returns when all that it may have
seen is durable. With `path=None` the database lives in memory and the writer thread also reads.

Cancellation: a caller that is cancelled while it waits for room in the queue has done nothing. Once
its program is queued, the program runs, and only the result is lost.

When the environment fails (disk full, file locked by another process, I/O error), each program of
the group gets StorageUnavailable and none has written. The next group tries again.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Final, TypeVar

import trio

from aether_trio.concurrency.events import AutoResetEvent
from aether_trio.storage.base import Abandoned, Database, ProgramFactory
from aether_trio.storage.migrations import SQLITE, upgrade
from aether_trio.storage.sqlite.commit_groups import GroupTransactions, JobKind, SqliteJob
from aether_trio.storage.sqlite.connection import (
    Synchronous,
    connect_checkpointer,
    connect_reader,
    connect_writer,
    setup_error,
)
from aether_trio.storage.sqlite.inline import WriteQueue
from aether_trio.storage.sqlite.kernel_sync import KernelSync, open_kernel_sync
from aether_trio.storage.sqlite.statements import drive
from aether_trio.storage.sqlite.threads import CheckpointThread, DatabaseThread, Item, ReaderThread, WriterThread
from aether_trio.storage.sqlite.wal import WriteAheadLog

T = TypeVar("T")

QUEUE_PROGRAMS: Final = 1024  # waiting programs; further callers wait for room
READERS: Final = 2


@dataclass(frozen=True, slots=True)
class SqliteStatistics:
    """The counters of a SQLite database's writer since it was opened.

    `queued` includes the group that is being committed. `failing` is true from a group that the
    machine did not take (a full disk, a lock) until the next one that it took.
    """

    groups: int
    programs: int
    rows: int
    largest_group: int
    queued: int
    failed_groups: int
    failing: bool
    last_error: str


class SqliteDatabase(Database):
    """A Database over one SQLite file, made by `open_sqlite`."""

    shared = False

    def __init__(self, name: str, path: Path | None) -> None:
        self.name = name
        self.path = path
        self._writes: SimpleQueue[Item] = SimpleQueue()
        self._reads: SimpleQueue[Item] = SimpleQueue()
        self._room = trio.Semaphore(QUEUE_PROGRAMS)
        self._closed = False
        self._failed = AutoResetEvent()
        self._writer: WriterThread | None = None
        self._queue: WriteQueue | None = None
        self._readers: list[DatabaseThread] = []
        self._inline: sqlite3.Connection | None = None
        self._log: WriteAheadLog | None = None
        self._kernel_sync: KernelSync | None = None
        self._kernel_sync_ended = trio.Event()
        self._kernel_sync_scope = trio.CancelScope()
        self._checkpointer: CheckpointThread | None = None

    async def run(self, program: ProgramFactory[T], abandoned: Abandoned[T] | None = None) -> T:
        job = await self._admit(program, JobKind.WRITE, abandoned)
        self._open_queue.put(job)
        result: T = await job.outcome()
        return result

    async def run_small(
        self, program: ProgramFactory[T], abandoned: Abandoned[T] | None = None, *, gathered: bool = False
    ) -> T:
        """Run a small program on the trio thread, for a third of the CPU."""
        job = await self._admit(program, JobKind.WRITE, abandoned)
        queue = self._open_queue
        if queue.put_small(job):
            if not gathered:
                await trio.lowlevel.cancel_shielded_checkpoint()
            queue.turn()
        result: T = await job.outcome()
        return result

    async def read(self, program: ProgramFactory[T]) -> T:
        job = await self._admit(program, JobKind.READ)
        if self.path is None:
            self._open_queue.put(job)
        else:
            self._reads.put(job)
        result: T = await job.outcome()
        await self._open_queue.wait_durable()
        return result

    async def read_small(self, program: ProgramFactory[T]) -> T:
        """Read a few rows by key on the trio thread: 10 µs, not 100 µs on a reader thread."""
        connection = self._inline
        if connection is None:
            return await self.read(program)
        if self._closed:
            raise trio.ClosedResourceError(f"the {self.name} database is closed")
        await trio.lowlevel.checkpoint()
        try:
            cursor = connection.cursor()
            cursor.execute("BEGIN")
            try:
                result = drive(cursor, program)
            finally:
                cursor.execute("ROLLBACK")
        except sqlite3.Error:
            # Locked, or the disk fails: a reader waits for the lock, and raises the usual error.
            return await self.read(program)
        await self._open_queue.wait_durable()
        return result

    def statistics(self) -> SqliteStatistics:
        writer = self._writer
        assert writer is not None, "the database is not open"
        counted = writer.statistics
        return SqliteStatistics(
            groups=counted.groups,
            programs=counted.programs,
            rows=counted.rows,
            largest_group=counted.largest_group,
            queued=QUEUE_PROGRAMS - self._room.value,
            failed_groups=counted.failed_groups,
            failing=counted.failing,
            last_error=counted.last_error,
        )

    async def wait_failed(self) -> None:
        """Wait for a group that the machine did not take. For one task at a time."""
        await self._failed.wait()

    @property
    def _open_queue(self) -> WriteQueue:
        assert self._queue is not None, "the database is not open"
        return self._queue

    async def _admit(
        self, program: ProgramFactory[Any], kind: JobKind, abandoned: Abandoned[Any] | None = None
    ) -> SqliteJob:
        """Wait for room for one more program."""
        await trio.lowlevel.checkpoint_if_cancelled()
        try:
            self._room.acquire_nowait()
        except trio.WouldBlock:
            await self._room.acquire()
        if self._closed:
            self._room.release()
            raise trio.ClosedResourceError(f"the {self.name} database is closed")
        return SqliteJob(program, kind, abandoned)

    def _deliver(self, jobs: Sequence[SqliteJob]) -> None:
        """Wake the callers of a finished group. Runs in the trio thread, once per group."""
        if self._writer is not None and self._writer.statistics.failing:
            self._failed.set()
        for job in jobs:
            self._room.release()
            job.answer()

    def _start(self, connections: _Connections) -> None:
        groups = GroupTransactions(connections.writer)
        self._log = log = connections.log
        self._queue = queue = WriteQueue(groups, self._writes, self._deliver, log)
        self._writer = WriterThread(f"{self.name}-writer", self._writes, queue.answered, groups, log)
        self._writer.start()
        if log is not None:
            assert connections.checkpointer is not None
            queue.checkpointer = self._checkpointer = CheckpointThread(
                f"{self.name}-checkpointer", connections.checkpointer, queue.copied
            )
        queue.kernel_sync = self._kernel_sync = connections.kernel_sync
        if self._kernel_sync is not None:
            trio.lowlevel.spawn_system_task(self._report_syncs, self._kernel_sync, name=f"{self.name}-sync")
        self._inline = connections.inline
        for number, connection in enumerate(connections.readers):
            reader = ReaderThread(f"{self.name}-reader-{number}", self._reads, self._deliver, connection)
            reader.start()
            self._readers.append(reader)

    async def _report_syncs(self, sync: KernelSync) -> None:
        with self._kernel_sync_scope:
            await sync.run(self._open_queue.synced)
        self._kernel_sync_ended.set()

    async def _stop(self) -> None:
        """Refuse new programs, finish the accepted ones, and end the threads."""
        assert self._writer is not None
        self._closed = True
        if self._inline is not None:
            self._inline.close()
        with trio.CancelScope(shield=True):
            if self._checkpointer is not None:
                await self._checkpointer.stop()
            for _ in self._readers:
                self._reads.put(None)
            for reader in self._readers:
                await reader.ended()
            await self._open_queue.stop()
            await self._writer.ended()
            if self._kernel_sync is not None:
                self._kernel_sync_scope.cancel()
                await self._kernel_sync_ended.wait()
                self._kernel_sync.close()
            if self._log is not None:
                self._log.close()


@dataclass(frozen=True, slots=True)
class _Connections:
    writer: sqlite3.Connection
    readers: list[sqlite3.Connection]
    inline: sqlite3.Connection | None = None
    checkpointer: sqlite3.Connection | None = None
    log: WriteAheadLog | None = None
    kernel_sync: KernelSync | None = None


@asynccontextmanager
async def open_sqlite(
    path: Path | str | None, *, readers: int = READERS, name: str = "scratch", synchronous: Synchronous = "FULL"
) -> AsyncIterator[SqliteDatabase]:
    """Open a SQLite file, update its schema, and serve it until the block ends.

    The file is created if it is missing. `name` is the logical database: the names of migrations.py
    have a schema, other names none. `path=None` keeps the data in memory. Raises StorageSetupError,
    whose text names the file and says what to do. Leaving the block commits the accepted programs.
    """
    file = None if path is None else Path(path)
    connections = await trio.to_thread.run_sync(_open_connections, file, name, synchronous, readers)
    database = SqliteDatabase(name, file)
    database._start(connections)
    try:
        yield database
    finally:
        await database._stop()


def _open_connections(path: Path | None, name: str, synchronous: Synchronous, readers: int) -> _Connections:
    with ExitStack() as opened:
        try:
            writer = opened.enter_context(closing(connect_writer(path, synchronous)))
            cursor = writer.cursor()
            cursor.execute("BEGIN IMMEDIATE")
            drive(cursor, lambda: upgrade(name, SQLITE, str(path or "in memory")))
            cursor.execute("COMMIT")
            if path is None:
                opened.pop_all()
                return _Connections(writer, [])
            is_synced = synchronous in {"FULL", "EXTRA"}
            if is_synced:
                synchronous = "NORMAL"  # which syncs checkpoints; the engine sees to commits
            connections = [opened.enter_context(closing(connect_reader(path))) for _ in range(readers)]
            inline = opened.enter_context(closing(connect_reader(path, busy_timeout_s=0.0)))
            checkpointer = opened.enter_context(closing(connect_checkpointer(path, synchronous)))
            log = WriteAheadLog(path, is_synced=is_synced)
            kernel_sync = open_kernel_sync(log.descriptor) if is_synced else None
            opened.pop_all()
            return _Connections(writer, connections, inline, checkpointer, log, kernel_sync)
        except (OSError, sqlite3.Error) as exc:
            raise setup_error(path, exc) from exc
