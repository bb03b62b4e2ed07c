"""The threads behind an open SQLite file: one writes in groups, a few read.

    trio tasks ──put──▶ SimpleQueue ──▶ writer:  BEGIN IMMEDIATE · program · program · … · COMMIT
         ▲                                                                                  │
         └───────────────── one run_sync_soon per group, not one per program ◀──────────────┘

While a group waits for its fsync, the next one gathers (group commit). A group is run by
commit_groups.py; one that ran in the trio thread (inline.py) arrives as an OpenGroup.

Invariants: a job is answered exactly once, after the COMMIT that contains it; an error of the
environment fails the whole group and leaves no transaction open; a group that may be in the file
after a crash, though its COMMIT failed, is overwritten before it is refused, or is CommitUnknown;
the threads end only when they are told to.
"""

from __future__ import annotations

import sqlite3
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Final

import trio

from aether_trio.storage.base import CommitUnknown, StorageUnavailable
from aether_trio.storage.sqlite.commit_groups import GroupTransactions, SqliteJob
from aether_trio.storage.sqlite.connection import is_environment, may_be_durable, primary_code
from aether_trio.storage.sqlite.statements import drive

MAX_GROUP: Final = 512  # programs a commit: bounds how long the first of them waits for the last
WAL_CHECK_GROUPS: Final = 64  # groups between two checks of the size of the write-ahead log
# readers that never leave a gap can keep the log from being reused
WAL_LIMIT_BYTES: Final = 64 * 1024 * 1024

Deliver = Callable[[Sequence["SqliteJob"]], None]


class OpenGroup:
    """A group whose programs have run, for the writer thread to commit."""

    __slots__ = ("jobs", "rows")

    def __init__(self, jobs: list[SqliteJob], rows: int) -> None:
        self.jobs = jobs
        self.rows = rows


Item = SqliteJob | OpenGroup | None
"""An item of a thread's queue; None ends the thread."""


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
                    self._hand_over(partial(self._deliver, jobs))
                if last:
                    return
        finally:
            self._close()
            self._hand_over(self._ended.set)

    def _hand_over(self, call: Callable[[], None]) -> None:
        try:
            self._trio.run_sync_soon(call)
        except trio.RunFinishedError:
            # the run ended without closing the database: no caller is left
            pass

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
        self, name: str, queue: SimpleQueue[Item], deliver: Deliver, groups: GroupTransactions, path: Path | None
    ) -> None:
        super().__init__(name, queue, deliver)
        self._groups = groups
        self._connection = groups.connection
        self._run_elsewhere: OpenGroup | None = None
        self._wal = None if path is None else Path(f"{path}-wal")
        # Counters, read by statistics() in the trio thread; each is a single reference.
        self.groups = 0
        self.programs = 0
        self.rows = 0
        self.largest_group = 0
        self.failed_groups = 0
        self.failing = False
        self.last_error = ""

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
        commit, self._run_elsewhere = self._run_elsewhere, None
        if commit is not None:
            self._write(jobs, commit)
            return
        writes = [job for job in jobs if not job.is_read]
        if writes:
            self._write(writes)
        reads = [job for job in jobs if job.is_read]
        if reads:  # only in memory, where there is no second connection to read from
            cursor = self._groups.cursor
            cursor.execute("PRAGMA query_only=ON")
            for job in reads:
                read_job(self._connection, cursor, job)
            cursor.execute("PRAGMA query_only=OFF")

    def _write(self, jobs: list[SqliteJob], commit: OpenGroup | None = None) -> None:
        before = self._connection.total_changes if commit is None else commit.rows
        committing = False
        try:
            if commit is None:
                self._groups.run(jobs, patient=True)
            committing = True
            self._groups.commit()
        except Exception as exc:
            self._groups.rollback()
            if not is_environment(exc):
                raise
            self.failed_groups += 1
            self.failing = True
            self.last_error = f"{type(exc).__name__}: {exc}"
            known = not (committing and may_be_durable(exc)) or self._groups.overwrite()
            self._fail(jobs, exc, StorageUnavailable if known else CommitUnknown)
            return
        self.failing = False
        self.groups += 1
        self.programs += len(jobs)
        self.rows += self._connection.total_changes - before
        self.largest_group = max(self.largest_group, len(jobs))
        if self._wal is not None and self.groups % WAL_CHECK_GROUPS == 0:
            self._bound_wal(self._wal)

    def _bound_wal(self, wal: Path) -> None:
        """Cut a long write-ahead log; waits for readers, at most BUSY_TIMEOUT_S."""
        try:
            if wal.stat().st_size > WAL_LIMIT_BYTES:
                with self._groups.patience():
                    self._groups.cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        except (OSError, sqlite3.Error) as exc:
            self.last_error = f"checkpoint: {exc}"

    def _close(self) -> None:
        self._connection.close()


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
