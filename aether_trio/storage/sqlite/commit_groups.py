"""A group of programs in one transaction: all of them, or each for itself when one of them raises.

A group is first run without savepoints: programs that raise are rare, savepoints would cost every program two more
statements. When one does raise, the group is rolled back and run again with each program in its own SAVEPOINT; programs
are pure (base.py), so running them again is allowed, and the failing one then leaves no trace in the others' commit.

`run` and `commit` may be called in different threads, one after the other: programs are run where that is cheapest, and
whoever waits for the disk is the writer's thread (sqlite_threads.py, sqlite_inline.py).

Invariant: after `run` raises, no transaction is open.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

import trio

from aether_trio.storage.base import ProgramFactory
from aether_trio.storage.sqlite.connection import BUSY_TIMEOUT_S, is_environment, primary_code
from aether_trio.storage.sqlite.statements import drive


class Job:
    """One program on its way through a thread, and then its result."""

    __slots__ = ("error", "factory", "is_read", "task", "value")

    def __init__(self, factory: ProgramFactory[Any], *, is_read: bool) -> None:
        self.factory = factory
        self.is_read = is_read
        self.task: trio.lowlevel.Task | None = None
        self.value: Any = None
        self.error: Exception | None = None

    def forget(self, _raise_cancel: Any) -> trio.lowlevel.Abort:
        """The caller was cancelled: the job goes on, nobody is told."""
        self.task = None
        return trio.lowlevel.Abort.SUCCEEDED


class _SpoiledError(Exception):
    """A program raised in a group that has no savepoints."""


class Groups:
    """See the module docstring. `connection` is the only one that writes."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self.cursor = connection.cursor()
        self.cursor.execute("PRAGMA busy_timeout=0").fetchall()

    def run(self, jobs: Sequence[Job], *, patient: bool) -> None:
        """Everything but the COMMIT; results and errors are the jobs'. Raises what the environment does to the whole group.

        While another process writes to the file, `patient` waits for it, at most BUSY_TIMEOUT_S.
        """
        try:
            try:
                self._attempt(jobs, isolated=False, patient=patient)
            except _SpoiledError:
                self.rollback()
                self._attempt(jobs, isolated=True, patient=patient)
        except BaseException:
            self.rollback()
            raise

    def _attempt(self, jobs: Sequence[Job], *, isolated: bool, patient: bool) -> None:
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
                    raise _SpoiledError from exc
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
        """`with` this, locks of other processes are waited for, at most BUSY_TIMEOUT_S; else they are errors at once."""
        return _Patience(self.cursor)

    @property
    def is_open(self) -> bool:
        """Whether there is something to commit."""
        return self.connection.in_transaction

    def commit(self) -> None:
        """Make durable what was run, if it was not all rolled back. Blocks for the disk."""
        if self.is_open:
            self.cursor.execute("COMMIT")

    def overwrite(self) -> bool:
        """Commit nothing in the place of what could not be committed; whether that is durable, so that the other never will be.

        The next transaction begins in the write-ahead log where the failed one began. The version of a database that has none is written
        as it is, so that there is something to write.
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
        """Leave the transaction, which SQLite may have left by itself (full disk, I/O error)."""
        if self.is_open:
            self.cursor.execute("ROLLBACK")


class _Patience:
    def __init__(self, cursor: sqlite3.Cursor) -> None:
        self._cursor = cursor

    def __enter__(self) -> None:
        self._cursor.execute(f"PRAGMA busy_timeout={round(BUSY_TIMEOUT_S * 1000)}").fetchall()

    def __exit__(self, *exc: object) -> None:
        self._cursor.execute("PRAGMA busy_timeout=0").fetchall()
