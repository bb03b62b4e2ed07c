"""Runs a group of programs in one SQLite transaction, or each in a savepoint.

Savepoints would cost each program two more statements, and programs that raise are rare. So a group
is first run without. When a program raises, the group is rolled back and run again with each
program in its own SAVEPOINT. Programs are pure (base.py), so they may run again, and the failing
one leaves no trace in the others' commit.

`run` and `commit` may be called in different threads, one after the other: programs run where that
is cheapest (threads.py, inline.py).

Invariant: after `run` raises, no transaction is open.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from enum import Enum
from typing import Any

from aether_trio.storage.base import Abandoned, ProgramFactory
from aether_trio.storage.jobs import DatabaseJob
from aether_trio.storage.sqlite.connection import BUSY_TIMEOUT_S, is_environment, primary_code
from aether_trio.storage.sqlite.statements import drive


class JobKind(Enum):
    """What a SqliteJob is."""

    READ = 0
    WRITE = 1
    CHECKPOINT = 2


class SqliteJob(DatabaseJob):
    """One database program on its way through a thread, then its result.

    A CHECKPOINT has no caller and its program is not run.
    """

    __slots__ = ("kind",)

    def __init__(self, factory: ProgramFactory[Any], kind: JobKind, abandoned: Abandoned[Any] | None = None) -> None:
        super().__init__(factory, abandoned)
        self.kind = kind


class _GroupSpoiledError(Exception):
    """Raised when a program raised in a group that has no savepoints."""


class GroupStatistics:
    """Counts the groups of a database, by whichever thread has the connection."""

    def __init__(self) -> None:
        self.groups = 0
        self.programs = 0
        self.rows = 0
        self.largest_group = 0
        self.failed_groups = 0
        self.failing = False
        self.last_error = ""

    def committed(self, programs: int, rows: int) -> None:
        """Count a durable group."""
        self.failing = False
        self.groups += 1
        self.programs += programs
        self.rows += rows
        self.largest_group = max(self.largest_group, programs)

    def failed(self, error: Exception) -> None:
        """Count a group that the machine did not take."""
        self.failing = True
        self.failed_groups += 1
        self.last_error = f"{type(error).__name__}: {error}"


class GroupTransactions:
    """Runs and commits groups on `connection`, the only one that writes to the file."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self.statistics = GroupStatistics()
        self._synced_commits: bool | None = None
        self.cursor = connection.cursor()
        self.cursor.execute("PRAGMA busy_timeout=0").fetchall()

    def run(self, jobs: Sequence[SqliteJob], *, patient: bool) -> None:
        """Run a group up to its COMMIT; each job gets its result or error.

        Raises an error of the environment. `patient` waits for other processes' locks.
        """
        try:
            try:
                self._attempt(jobs, isolated=False, patient=patient)
            except _GroupSpoiledError:
                self.rollback()
                self._attempt(jobs, isolated=True, patient=patient)
        except BaseException:
            self.rollback()
            raise

    def _attempt(self, jobs: Sequence[SqliteJob], *, isolated: bool, patient: bool) -> None:
        cursor = self.cursor
        self._begin(patient=patient)
        for job in jobs:
            if isolated:
                cursor.execute("SAVEPOINT program")
            job.error = None  # of a run before this one
            try:
                job.value = drive(cursor, job.factory)
            except Exception as exc:
                if is_environment(exc):
                    raise
                if len(jobs) == 1:
                    self.rollback()
                    job.error = exc
                    return
                if not isolated:
                    raise _GroupSpoiledError from exc
                job.error = exc
                cursor.execute("ROLLBACK TO program")
            if isolated:
                cursor.execute("RELEASE program")

    def _begin(self, *, patient: bool) -> None:
        try:
            self.cursor.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as exc:
            if not patient or primary_code(exc) != sqlite3.SQLITE_BUSY:
                raise
            with self.patience():
                self.cursor.execute("BEGIN IMMEDIATE")

    def patience(self) -> _Patience:
        """Wait for locks of other processes in a `with` block, at most BUSY_TIMEOUT_S."""
        return _Patience(self.cursor)

    @property
    def is_open(self) -> bool:
        """Whether a transaction is open."""
        return self.connection.in_transaction

    def sync_commits(self, wanted: bool) -> None:
        """Have each COMMIT sync the write-ahead log, or leave that to the caller (wal.py).

        Only while no transaction is open; cheap when nothing changes.
        """
        if wanted is not self._synced_commits:
            self.cursor.execute(f"PRAGMA synchronous={'FULL' if wanted else 'NORMAL'}")
            self._synced_commits = wanted

    def commit(self) -> bool:
        """Commit the transaction; return whether one was open."""
        if not self.is_open:
            return False
        self.cursor.execute("COMMIT")
        return True

    def overwrite(self) -> bool:
        """Commit an empty transaction in a failed one's place; return whether it did.

        Once it is synced, the failed one never will be durable, because the next transaction begins
        in the write-ahead log where the failed one began. `user_version`, which is not used, is
        written unchanged so that there is a write.
        """
        try:
            self._begin(patient=True)
            ((version,),) = self.cursor.execute("PRAGMA user_version").fetchall()
            self.cursor.execute(f"PRAGMA user_version={version}").fetchall()
            self.cursor.execute("COMMIT")
        except sqlite3.Error:
            self.rollback()
            return False
        return True

    def rollback(self) -> None:
        """Roll back the transaction, unless SQLite did (full disk, I/O error)."""
        if self.is_open:
            self.cursor.execute("ROLLBACK")


class _Patience:
    def __init__(self, cursor: sqlite3.Cursor) -> None:
        self._cursor = cursor

    def __enter__(self) -> None:
        self._cursor.execute(f"PRAGMA busy_timeout={round(BUSY_TIMEOUT_S * 1000)}").fetchall()

    def __exit__(self, *exc: object) -> None:
        self._cursor.execute("PRAGMA busy_timeout=0").fetchall()
