"""Copies the databases of a data directory as they were at one moment.

    BEGIN IMMEDIATE on each file ──▶ no transaction is open anywhere ──▶ a read transaction on each
    file begins ──▶ ROLLBACK: writers go on ──▶ each copy reads its snapshot

A gateway commits to each database separately, and may be killed between two commits; it is made
for that. While all write locks are held no commit is under way, so the three snapshots together
are what a gateway would have left that was killed at this moment: no task without the message that
it came with, and no position beyond its log.

The locks are those of SQLite, so this works in another process, beside a running gateway and
without one. A gateway's writers wait for them: not for longer than HOLD_S, after which they are
given back, and asked for again after a pause. Each pause is longer than the one before, so that
another program which keeps a lock does not cost the writers of the other files more than a tenth of
their time. The process is not stopped by its terminal (Ctrl-Z) while it has locks. A snapshot keeps
the write-ahead log from being cut until its copy has ended.
"""

from __future__ import annotations

import random
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote

from aether_trio.storage.errors import StorageSetupError
from aether_trio.storage.sqlite.connection import APPLICATION_ID, primary_code, setup_error

HOLD_S: Final = 0.1
"""How long the first locks may be held while the last ones are waited for."""
GIVE_UP_S: Final = 60.0
POLL_S: Final = 0.0005
PAUSE_S: Final = 0.02
MAX_PAUSE_S: Final = 1.0
"""The longest pause between two attempts: each is twice as long as the one before."""
STEP_PAGES: Final = 1024
"""Pages between two reports: 4 MiB."""
_BUSY: Final = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
_STOPS: Final = frozenset({signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU})

Progress = Callable[[int, int], None]
"""`progress(copied, all)`, in pages."""


@dataclass(frozen=True, slots=True)
class Snapshots:
    """A read transaction on each file: what was committed before `at_ms` (Unix ms)."""

    connections: Mapping[str, sqlite3.Connection]
    at_ms: int


@contextmanager
def open_snapshots(files: Mapping[str, Path]) -> Iterator[Snapshots]:
    """Open a read transaction on each file, all of one moment, until the block ends.

    Locks are asked for in the order of `files`. Raises StorageSetupError.
    """
    with ExitStack() as opened:
        lockers = {name: opened.enter_context(closing(_connect(file))) for name, file in files.items()}
        readers = {name: opened.enter_context(closing(_connect(file))) for name, file in files.items()}
        with _no_writer(lockers, files):
            at_ms = time.time_ns() // 1_000_000
            for name, reader in readers.items():
                try:
                    reader.execute("BEGIN")
                    reader.execute("SELECT count(*) FROM sqlite_master").fetchall()
                except sqlite3.Error as error:
                    raise setup_error(files[name], error) from error
        for locker in lockers.values():
            locker.close()
        yield Snapshots(readers, at_ms)


def copy_snapshot(snapshot: sqlite3.Connection, target: Path, progress: Progress) -> None:
    """Copy a snapshot into a new file, which is one file without a write-ahead log.

    `target` exists and is empty. Raises sqlite3.Error.
    """
    with closing(sqlite3.connect(target, isolation_level=None)) as copy:
        # The caller syncs the file when it is complete.
        copy.execute("PRAGMA synchronous=OFF")
        copy.execute("PRAGMA journal_mode=OFF").fetchall()
        copy.execute("PRAGMA locking_mode=EXCLUSIVE").fetchall()
        snapshot.backup(copy, pages=STEP_PAGES, progress=lambda _status, left, total: progress(total - left, total))
    with closing(sqlite3.connect(target, isolation_level=None)) as copy:
        copy.execute("PRAGMA journal_mode=DELETE").fetchall()


def _connect(file: Path) -> sqlite3.Connection:
    """Open an existing file of ours, which is not made if it is missing."""
    connection = None
    try:
        connection = sqlite3.connect(
            f"file:{quote(str(file.absolute()))}?mode=rw", uri=True, isolation_level=None, timeout=1.0
        )
        (owner,) = connection.execute("PRAGMA application_id").fetchone()
        connection.execute("PRAGMA busy_timeout=0").fetchall()
        connection.execute("PRAGMA wal_autocheckpoint=0").fetchall()
    except sqlite3.Error as error:
        if connection is not None:
            connection.close()
        raise setup_error(file, error) from error
    if owner != APPLICATION_ID:
        connection.close()
        raise StorageSetupError(f"the database {file} belongs to another application.")
    return connection


@contextmanager
def _no_writer(lockers: Mapping[str, sqlite3.Connection], files: Mapping[str, Path]) -> Iterator[None]:
    """Hold the write locks of all files in the block."""
    deadline = time.monotonic() + GIVE_UP_S
    pause_s = PAUSE_S
    with ExitStack() as held:
        while True:
            held.enter_context(_not_stopped())
            busy = _take_all(lockers, files)
            if busy is None:
                break
            held.close()
            if time.monotonic() > deadline:
                raise StorageSetupError(
                    f"the database {files[busy]} was written to for {GIVE_UP_S:g} s without a pause. "
                    "Close what else has it open, and try again."
                )
            time.sleep(pause_s * (0.75 + random.random() / 2))  # noqa: S311  # no secret
            pause_s = min(2 * pause_s, MAX_PAUSE_S)
        try:
            yield
        finally:
            _give_back(lockers)


@contextmanager
def _not_stopped() -> Iterator[None]:
    """Let no terminal stop this thread in the block: writers would wait."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _take_all(lockers: Mapping[str, sqlite3.Connection], files: Mapping[str, Path]) -> str | None:
    """Take all locks, or none; return the name of the one that was not to be had."""
    until = time.monotonic() + HOLD_S
    for name, locker in lockers.items():
        while True:
            try:
                locker.execute("BEGIN IMMEDIATE")
                break
            except sqlite3.OperationalError as error:
                if primary_code(error) not in _BUSY:
                    _give_back(lockers)
                    raise setup_error(files[name], error) from error
            if time.monotonic() > until:
                _give_back(lockers)
                return name
            time.sleep(POLL_S)
    return None


def _give_back(lockers: Mapping[str, sqlite3.Connection]) -> None:
    for locker in lockers.values():
        if locker.in_transaction:
            locker.execute("ROLLBACK")
