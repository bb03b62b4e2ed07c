"""The threads behind an open SQLite file: a writer, readers, a checkpointer.

    trio tasks ──put──▶ SimpleQueue ──▶ writer:  BEGIN IMMEDIATE · program · program · … · COMMIT
         ▲                                                                                  │
         └───────────────── one run_sync_soon per group, not one per program ◀──────────────┘

While a group waits for the disk, the next one gathers (group commit). A group is run by
commit_groups.py. Small groups run and commit in the trio thread (inline.py); those that fail there,
or need a thread for the sync, arrive as an OpenGroup.

Invariants: a job is answered exactly once, after the sync of the COMMIT that contains it; an error
of the environment fails the whole group and leaves no transaction open; a group that may be in the
file after a crash, though its COMMIT failed, is overwritten before it is refused, or is
CommitUnknown; the threads end only when they are told to.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from enum import Enum
from functools import partial
from queue import Empty, SimpleQueue
from typing import Final

import trio

from aether_trio.storage.base import CommitUnknown, StorageUnavailable
from aether_trio.storage.sqlite.commit_groups import GroupTransactions, JobKind, SqliteJob
from aether_trio.storage.sqlite.connection import is_environment, may_be_durable, primary_code
from aether_trio.storage.sqlite.statements import drive
from aether_trio.storage.sqlite.wal import WriteAheadLog

MAX_GROUP: Final = 512  # programs a commit: bounds how long the first of them waits for the last

Deliver = Callable[[Sequence["SqliteJob"]], None]


class OpenGroup:
    """A group that has run in the trio thread, for the writer thread to end.

    `failure` is what its COMMIT raised. With `committed` only the sync is missing; `errno` is that
    of a sync that has failed already.
    """

    __slots__ = ("committed", "errno", "failure", "jobs", "rows")

    def __init__(
        self,
        jobs: list[SqliteJob],
        rows: int,
        *,
        failure: Exception | None = None,
        committed: bool = False,
        errno: int = 0,
    ) -> None:
        self.jobs = jobs
        self.rows = rows
        """The connection's `total_changes` before the group."""
        self.failure = failure
        self.committed = committed
        self.errno = errno


Item = SqliteJob | OpenGroup | None
"""An item of a thread's queue; None ends the thread."""


def _in_trio(token: trio.lowlevel.TrioToken, call: Callable[[], None]) -> None:
    # A run that ended without closing the database has no caller left.
    with contextlib.suppress(trio.RunFinishedError):
        token.run_sync_soon(call)


class _Stage(Enum):
    """How far the writer thread has got with a group."""

    RUN = 0
    COMMIT = 1
    SYNC = 2


class DatabaseThread(ABC):
    """A thread that takes database jobs from a queue until it is stopped."""

    def __init__(self, name: str, queue: SimpleQueue[Item], deliver: Deliver) -> None:
        self._queue = queue
        self._deliver = deliver
        self._trio = trio.lowlevel.current_trio_token()
        self._ended = trio.Event()
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    async def ended(self) -> None:
        await self._ended.wait()

    def _main(self) -> None:
        try:
            while True:
                jobs, last = self._collect()
                if jobs:
                    try:
                        self._process(jobs)
                    except Exception as exc:
                        # a defect of the thread: answer, so that no caller waits for ever
                        self._fail(jobs, exc)
                    _in_trio(self._trio, partial(self._deliver, jobs))
                if last:
                    return
        finally:
            self._close()
            _in_trio(self._trio, self._ended.set)

    def _fail(
        self, jobs: Sequence[SqliteJob], exc: BaseException, kind: type[StorageUnavailable] = StorageUnavailable
    ) -> None:
        for job in jobs:
            job.error = kind(f"{self._thread.name}: {exc}")
            job.error.__cause__ = exc

    @abstractmethod
    def _collect(self) -> tuple[list[SqliteJob], bool]: ...

    @abstractmethod
    def _process(self, jobs: list[SqliteJob]) -> None: ...

    @abstractmethod
    def _close(self) -> None: ...


class WriterThread(DatabaseThread):
    """The thread that commits groups of programs to a SQLite file."""

    def __init__(
        self,
        name: str,
        queue: SimpleQueue[Item],
        deliver: Deliver,
        groups: GroupTransactions,
        log: WriteAheadLog | None,
    ) -> None:
        super().__init__(name, queue, deliver)
        self.statistics = groups.statistics
        self._groups = groups
        self._connection = groups.connection
        self._log = log
        self._run_elsewhere: OpenGroup | None = None

    def _collect(self) -> tuple[list[SqliteJob], bool]:
        item = self._queue.get()
        if isinstance(item, OpenGroup):
            self._run_elsewhere = item
            return item.jobs, False
        jobs: list[SqliteJob] = []
        try:
            while item is not None:
                assert isinstance(item, SqliteJob)
                jobs.append(item)
                if len(jobs) == MAX_GROUP:
                    return jobs, False
                item = self._queue.get_nowait()
        except Empty:
            return jobs, False
        return jobs, True

    def _process(self, jobs: list[SqliteJob]) -> None:
        open_group, self._run_elsewhere = self._run_elsewhere, None
        if open_group is not None:
            self._write(jobs, open_group)
            return
        writes = [job for job in jobs if job.kind is JobKind.WRITE]
        if writes:
            self._write(writes)
        reads = [job for job in jobs if job.kind is JobKind.READ]
        if reads:  # only in memory, where there is no second connection to read from
            cursor = self._groups.cursor
            cursor.execute("PRAGMA query_only=ON")
            for job in reads:
                read_job(self._connection, cursor, job)
            cursor.execute("PRAGMA query_only=OFF")
        if len(writes) + len(reads) < len(jobs):
            self._checkpoint()

    def _write(self, jobs: list[SqliteJob], group: OpenGroup | None = None) -> None:
        log, groups = self._log, self._groups
        before = self._connection.total_changes if group is None else group.rows
        stage = _Stage.RUN
        try:
            if group is None:
                if log is not None:
                    if log.broken:
                        self._repair(log)
                    if log.is_synced:
                        # One call that waits for the disk without Python's lock, not two.
                        groups.sync_commits(True)
                groups.run(jobs, patient=True)
            stage = _Stage.COMMIT
            if log is not None:
                log.unsynced = log.is_synced
            if group is None or not group.committed:
                if group is not None and group.failure is not None:
                    raise group.failure
                if groups.commit() and log is not None:
                    log.restarts = False
            stage = _Stage.SYNC
            if log is not None and group is not None:
                self._make_durable(log, group.errno)
        except Exception as exc:
            groups.rollback()
            if not is_environment(exc):
                raise
            groups.statistics.failed(exc)
            known = stage is _Stage.RUN or (stage is _Stage.COMMIT and (not may_be_durable(exc) or self._overwrite()))
            self._fail(jobs, exc, StorageUnavailable if known else CommitUnknown)
        else:
            groups.statistics.committed(len(jobs), self._connection.total_changes - before)
        finally:
            if log is not None:
                log.unsynced = False

    def _make_durable(self, log: WriteAheadLog, failed: int) -> None:
        """Sync the log; if that fails, or has failed with this errno, repair it."""
        try:
            if failed:
                raise OSError(failed, os.strerror(failed))
            log.sync()
        except OSError as error:
            log.broken = True
            self._groups.statistics.last_error = f"sync: {error}"
            self._repair(log)

    def _repair(self, log: WriteAheadLog) -> None:
        with self._groups.patience():
            log.repair(self._groups.cursor)

    def _overwrite(self) -> bool:
        """Overwrite a group whose COMMIT failed; return whether that is durable."""
        if not self._groups.overwrite():
            return False
        try:
            if self._log is not None:
                self._make_durable(self._log, 0)
        except sqlite3.Error:
            return False
        return True

    def _checkpoint(self) -> None:
        """Copy the rest of the write-ahead log, or cut a long one; waits for readers then."""
        log, cursor = self._log, self._groups.cursor
        assert log is not None
        try:
            if log.is_too_long:
                with self._groups.patience():
                    ((busy, pages, copied),) = cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
                if busy:
                    log.note_kept()
            else:
                ((_, pages, copied),) = cursor.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
            log.note_checkpoint(pages, copied)
        except (OSError, sqlite3.Error) as exc:
            self._groups.statistics.last_error = f"checkpoint: {exc}"

    def _close(self) -> None:
        self._connection.close()


class CheckpointThread:
    """A thread that copies most of the write-ahead log, while the writer goes on."""

    def __init__(self, name: str, connection: sqlite3.Connection, when_copied: Callable[[], None]) -> None:
        """`when_copied` is called in the trio thread after each checkpoint, or an attempt."""
        self._connection = connection
        self._when_copied = when_copied
        self._wanted: SimpleQueue[bool] = SimpleQueue()
        self._trio = trio.lowlevel.current_trio_token()
        self._ended = trio.Event()
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)
        self._thread.start()

    def start_checkpoint(self) -> None:
        """Begin a checkpoint. Never blocks."""
        self._wanted.put(True)

    async def stop(self) -> None:
        """End the thread after the checkpoint that it is at."""
        self._wanted.put(False)
        await self._ended.wait()

    def _main(self) -> None:
        try:
            while self._wanted.get():
                # The writer thread tries again, and reports what fails there too.
                with contextlib.suppress(sqlite3.Error):
                    self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
                _in_trio(self._trio, self._when_copied)
        finally:
            self._connection.close()
            _in_trio(self._trio, self._ended.set)


class ReaderThread(DatabaseThread):
    """A thread that runs reads, each on its own connection and snapshot."""

    def __init__(self, name: str, queue: SimpleQueue[Item], deliver: Deliver, connection: sqlite3.Connection) -> None:
        super().__init__(name, queue, deliver)
        self._connection = connection
        self._cursor = connection.cursor()

    def _collect(self) -> tuple[list[SqliteJob], bool]:
        job = self._queue.get()  # one at a time, as the other readers share the queue
        return ([job], False) if isinstance(job, SqliteJob) else ([], True)

    def _process(self, jobs: list[SqliteJob]) -> None:
        for job in jobs:
            read_job(self._connection, self._cursor, job)

    def _close(self) -> None:
        self._connection.close()


def read_job(connection: sqlite3.Connection, cursor: sqlite3.Cursor, job: SqliteJob) -> None:
    """Run one read-only program on one snapshot; put result or error into the job."""
    try:
        cursor.execute("BEGIN")
        job.value = drive(cursor, job.factory)
        cursor.execute("COMMIT")
    except Exception as exc:
        if connection.in_transaction:
            cursor.execute("ROLLBACK")
        # Code 8 (read-only) from a reader: the program tried to write; the machine did not fail.
        job.error = exc
        if is_environment(exc) and primary_code(exc) != sqlite3.SQLITE_READONLY:
            job.error = StorageUnavailable(str(exc))
            job.error.__cause__ = exc
