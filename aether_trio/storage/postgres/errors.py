"""What an exception from asyncpg means for the database programs that ran.

A table leads from its SQLSTATE to what to do next (PostgreSQL manual, appendix A). An error that is
not in the table is the fault of the program (a constraint, bad SQL, a value out of range), and is
raised to its caller as it is.
"""

from __future__ import annotations

import enum
from typing import Any, Final

import asyncpg
from asyncpg.exceptions import InvalidCachedStatementError, OutdatedSchemaCacheError, ProtocolError

from aether_trio.storage.base import StorageUnavailable
from aether_trio.storage.errors import StorageSetupError
from aether_trio.storage.postgres.hosts import is_misread, where


class FencedError(StorageUnavailable):
    """Raised when nothing was written because this node's lease had ended."""


FENCED: Final = "AE001"
"""The SQLSTATE that the fence raises (storage/schema/cluster.py); PostgreSQL has no such class."""


class PostgresFault(enum.Enum):
    """The kinds of PostgreSQL errors, by what the engine does next."""

    PROGRAM = "the program's own: raise it to the caller"
    CONFLICT = "another transaction was first: roll back, run again"
    SLOW = "a limit on time was reached: roll back, fail the program that ran alone"
    SERVER = "the server cannot do it now: roll back, fail the group"
    CONNECTION = "the connection is lost: close it, run again on another"
    FENCED = "this node may not write: roll back, fail the group"


_BY_STATE: Final = {
    "0A000": PostgresFault.PROGRAM,
    "25006": PostgresFault.CONNECTION,  # read-only: it was the primary once
    "25P02": PostgresFault.SERVER,  # in a failed transaction: the error before it has said why
    # idle in transaction for too long: this process was stopped for a while
    "25P03": PostgresFault.CONNECTION,
    "25P04": PostgresFault.CONNECTION,  # transaction timeout, which ends the session
    # a prepared statement that the server forgot: a pooler changed servers under us
    "26000": PostgresFault.CONNECTION,
    "40001": PostgresFault.CONFLICT,
    "40P01": PostgresFault.CONFLICT,  # deadlock
    "40003": PostgresFault.CONNECTION,  # completion unknown
    "55P03": PostgresFault.SLOW,  # lock timeout
    "57014": PostgresFault.SLOW,  # statement timeout, or an operator's pg_cancel_backend
    "57P04": PostgresFault.CONNECTION,  # the database was dropped
    "57P05": PostgresFault.CONNECTION,  # idle for too long
    FENCED: PostgresFault.FENCED,
}
_BY_CLASS: Final = {
    "08": PostgresFault.CONNECTION,
    "53": PostgresFault.SERVER,  # out of disk, memory, connections
    "57": PostgresFault.CONNECTION,  # shut down by an operator, crashed, starting
    "58": PostgresFault.SERVER,  # a system error outside of PostgreSQL: I/O
    "F0": PostgresFault.SERVER,
    "XX": PostgresFault.SERVER,  # an internal error or damaged data
}

NUMBERED: Final = frozenset({"task_events_pkey", "workflow_history_pkey"})
"""Keys with a number that a program counts in a row which it writes up to its commit.

When another transaction has taken the number meanwhile, the server says so by the key, before the
row is written: it may be one that is not SERIALIZABLE, or of another connection.
"""

_ADVICE: Final = {
    "28": "refuses this user. Check user, password and pg_hba.conf",
    "3D": "has no such database. Create it, or name another in the URL",
    "42501": "lacks a right for this role. Let it own its database, or create the schema for it",
    "42704": "does not know a setting that the URL names behind its ?",
    "22023": "does not accept a setting that the URL names behind its ?",
    "53100": "has no room left on its disk. Make some",
    "53200": "is out of memory",
    "53300": "has no connection left. Raise its max_connections: a node has up to 22 (docs/operations.md)",
    "57P03": "does not take connections now: it starts, ends, or is a standby that may not be read",
}
"""What to do about an error, by SQLSTATE or by its class."""

_MISREAD: Final = (
    "the PostgreSQL URL is not read as it was meant: in a user name or password write %40 for @, %2F for /, %3A for :, %3F for ?, "
    "%23 for # and %25 for %."
)


def fault(exc: BaseException, connection: Any) -> PostgresFault:
    """Classify an exception that was raised while `connection` ran something."""
    if isinstance(exc, (InvalidCachedStatementError, OutdatedSchemaCacheError)):
        return PostgresFault.CONNECTION  # another node has migrated: a new connection prepares anew
    if connection.is_closed():
        return PostgresFault.CONNECTION
    if isinstance(exc, asyncpg.CheckViolationError) and not exc.constraint_name:
        return PostgresFault.SERVER  # no partition for the row: it has just been dropped
    if isinstance(exc, asyncpg.UniqueViolationError) and exc.constraint_name in NUMBERED:
        return PostgresFault.CONFLICT
    if isinstance(exc, asyncpg.PostgresError):
        state = exc.sqlstate or ""
        return _BY_STATE.get(state) or _BY_CLASS.get(state[:2], PostgresFault.PROGRAM)
    if isinstance(exc, (OSError, asyncpg.InternalClientError)):
        return PostgresFault.CONNECTION
    if isinstance(exc, MemoryError):
        return PostgresFault.SERVER
    return PostgresFault.PROGRAM


def is_outage(exc: BaseException) -> bool:
    """Whether a failed attempt to connect or migrate may succeed later.

    No person has to do anything then: as when it has lost a deadlock to another node.
    """
    if isinstance(exc, asyncpg.PostgresError):
        return (exc.sqlstate or "")[:2] in {"08", "40", "53", "57", "58"}
    if isinstance(exc, asyncpg.InterfaceError):
        # closed between two statements; else the URL makes no sense
        return not isinstance(exc, ValueError)
    if isinstance(exc, asyncpg.InternalClientError):
        # cut between two of asyncpg's steps; else this is no PostgreSQL
        return not isinstance(exc, ProtocolError)
    return isinstance(exc, (OSError, TimeoutError, asyncpg.TargetServerAttributeNotMatched))


def describe(exc: BaseException) -> str:
    """Describe an exception in one line; some exceptions have no text but their names."""
    text = str(exc).split("\n", 1)[0]
    return f"{type(exc).__name__}: {text}" if text else type(exc).__name__


def explain(exc: BaseException) -> str:
    """Describe a server's error, and say what to do about it where that is known."""
    state = getattr(exc, "sqlstate", None) or ""
    advice = _ADVICE.get(state)
    return f"the server {advice} ({describe(exc)})" if advice else describe(exc)


def setup_error(dsn: str, exc: BaseException) -> StorageSetupError:
    """Make the error for a person: which server, what is wrong, what to do."""
    if is_misread(dsn):
        return StorageSetupError(_MISREAD)
    if isinstance(exc, ValueError):  # asyncpg's ClientConfigurationError is one
        return StorageSetupError(f"the PostgreSQL URL of {where(dsn)} cannot be used: {str(exc).rstrip('.')}.")
    state = getattr(exc, "sqlstate", None) or ""
    if isinstance(exc, asyncpg.TargetServerAttributeNotMatched):
        advice = "is a standby. Name the primary in the URL (as HOST,HOST if they change places), or promote it"
    else:
        otherwise = "cannot be used" if state else "cannot be reached. Check that it runs, and the URL"
        advice = _ADVICE.get(state) or _ADVICE.get(state[:2], otherwise)
    return StorageSetupError(f"the PostgreSQL server {where(dsn)} {advice} ({describe(exc)}).")
