"""Opens one SQLite file, and tells failures of the machine from a program's."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Final, Literal

from aether_trio.storage.data_dir_lock import keep_private
from aether_trio.storage.errors import StorageSetupError

Synchronous = Literal["OFF", "NORMAL", "FULL", "EXTRA"]

MINIMUM_VERSION: Final = (3, 35, 0)  # RETURNING
# "AtTr" in the file header, so that a database of another application is refused
APPLICATION_ID: Final = 0x41745472
# for another process that writes; short, because all senders wait behind it
BUSY_TIMEOUT_S: Final = 0.5
CACHED_STATEMENTS: Final = 256
WRITER_CACHE_KIB: Final = 8192
READER_CACHE_KIB: Final = 2048
WAL_KEEP_BYTES: Final = 32 * 1024 * 1024

_ENVIRONMENT: Final = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_NOTADB,
    }
)

_ADVICE: Final = {
    sqlite3.SQLITE_NOTADB: "is not a SQLite database. Move it away to start empty, or restore it from a backup",
    sqlite3.SQLITE_CORRUPT: "is damaged. Restore it from a backup, or salvage it with `sqlite3 FILE .recover`",
    sqlite3.SQLITE_BUSY: "is locked by another process. Close whatever has it open and start again",
    sqlite3.SQLITE_LOCKED: "is locked by another process. Close whatever has it open and start again",
    sqlite3.SQLITE_FULL: "cannot grow: the disk is full. Make room and start again",
    sqlite3.SQLITE_IOERR: "cannot be read or written: the disk failed or is full. Check it and start again",
    sqlite3.SQLITE_READONLY: "is read-only. Make the file and its directory writable for this user",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened. Check that its directory exists and is writable for this user",
    sqlite3.SQLITE_PERM: "cannot be opened. Check that its directory exists and is writable for this user",
}


def primary_code(exc: BaseException) -> int:
    """Return the primary result code (sqlite.org/rescode.html) of an error, or 0."""
    return (getattr(exc, "sqlite_errorcode", None) or 0) & 0xFF


def is_environment(exc: BaseException) -> bool:
    """Whether the machine failed (disk, lock, memory), and not the program."""
    return isinstance(exc, MemoryError) or (isinstance(exc, sqlite3.Error) and primary_code(exc) in _ENVIRONMENT)


def may_be_durable(exc: BaseException) -> bool:
    """Whether a COMMIT that failed so may be in the file after a crash."""
    code = getattr(exc, "sqlite_errorcode", None) or 0
    return isinstance(exc, sqlite3.Error) and code & 0xFF == sqlite3.SQLITE_IOERR and code != sqlite3.SQLITE_IOERR_WRITE


def setup_error(path: Path | None, exc: BaseException) -> StorageSetupError:
    """Make the error for a person: the file, what is wrong with it, what to do."""
    advice = _ADVICE.get(primary_code(exc), "cannot be used")
    return StorageSetupError(f"the database {path or 'in memory'} {advice} ({exc}).")


def connect_writer(path: Path | None, synchronous: Synchronous) -> sqlite3.Connection:
    """Open (and create) a SQLite file for writing. Raises StorageSetupError."""
    if sqlite3.sqlite_version_info < MINIMUM_VERSION:
        wanted = ".".join(map(str, MINIMUM_VERSION))
        raise StorageSetupError(f"SQLite {sqlite3.sqlite_version} is too old: this needs {wanted} or newer.")
    connection = None
    try:
        if path is not None:
            keep_private(path)
        connection = _connect(path)
        _check_owner(connection, path)
        _set_journal(connection, path, synchronous)
        connection.execute(f"PRAGMA cache_size=-{WRITER_CACHE_KIB}")
        # Some builds wipe deleted rows page by page by default, at twice the write cost.
        connection.execute("PRAGMA secure_delete=FAST").fetchall()
        return connection
    except OSError as exc:
        raise StorageSetupError(
            f"the database {path} cannot be opened ({exc.strerror}). Check that its directory exists and is writable for this user."
        ) from exc
    except (sqlite3.Error, StorageSetupError) as exc:
        if connection is not None:
            connection.close()
        raise (exc if isinstance(exc, StorageSetupError) else setup_error(path, exc)) from exc


def connect_reader(path: Path, *, busy_timeout_s: float = BUSY_TIMEOUT_S) -> sqlite3.Connection:
    """Open a read-only connection to a file that connect_writer has prepared."""
    connection = None
    try:
        connection = _connect(path, busy_timeout_s)
        connection.execute(f"PRAGMA cache_size=-{READER_CACHE_KIB}")
        connection.execute("PRAGMA query_only=ON")
        return connection
    except sqlite3.Error as exc:
        if connection is not None:
            connection.close()
        raise setup_error(path, exc) from exc


def connect_checkpointer(path: Path, synchronous: Synchronous) -> sqlite3.Connection:
    """Open a connection to a file that connect_writer has prepared, for checkpoints."""
    connection = _connect(path, 0.0)
    connection.execute(f"PRAGMA synchronous={synchronous}")
    connection.execute("PRAGMA wal_autocheckpoint=0").fetchall()
    return connection


def _connect(path: Path | None, busy_timeout_s: float = BUSY_TIMEOUT_S) -> sqlite3.Connection:
    connection = sqlite3.connect(
        ":memory:" if path is None else path,
        timeout=busy_timeout_s,
        # transactions are opened and closed by the writer, never by the sqlite3 module
        isolation_level=None,
        check_same_thread=False,  # opened in one thread, used by exactly one other
        cached_statements=CACHED_STATEMENTS,
    )
    try:
        connection.execute("PRAGMA foreign_keys=ON")
        # savepoint journals must not spill into files
        connection.execute("PRAGMA temp_store=MEMORY")
    except BaseException:
        connection.close()
        raise
    return connection


def _check_owner(connection: sqlite3.Connection, path: Path | None) -> None:
    """Refuse a file of another application before anything in it is changed."""
    (owner,) = connection.execute("PRAGMA application_id").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if owner == APPLICATION_ID:
        return
    if owner or tables:
        raise StorageSetupError(
            f"the database {path} belongs to another application. Move it away, or choose another with --data-dir."
        )
    connection.execute(f"PRAGMA application_id={APPLICATION_ID}")


def _set_journal(connection: sqlite3.Connection, path: Path | None, synchronous: Synchronous) -> None:
    connection.execute(f"PRAGMA synchronous={synchronous}")
    if path is None:
        return
    (mode,) = connection.execute("PRAGMA journal_mode=WAL").fetchone()
    if mode != "wal":
        raise StorageSetupError(
            f"the file system of {path} cannot hold a write-ahead log (a network share?). Use a local directory."
        )
    connection.execute("PRAGMA wal_autocheckpoint=0").fetchall()  # wal.py says when
    connection.execute(f"PRAGMA journal_size_limit={WAL_KEEP_BYTES}").fetchall()
