"""Opens one connection to PostgreSQL, with the limits that hold on it.

There are four kinds:

* *writer*: SERIALIZABLE transactions, because a program reads, decides and writes without locks.
* *appender*: READ COMMITTED, for a database whose programs lock the rows on which they decide
  (`LOCKING`): nodes that append to one topic come one after another instead of failing each other.
* *reader*: REPEATABLE READ, READ ONLY transactions, each on one snapshot.
* *look*: asks about the other connections (stalls.py).

The isolation is a default of the session, so that a single statement needs no BEGIN. The server
holds every limit on time too: a node that is stopped (SIGSTOP) or cut off in the middle of a
transaction keeps its locks no longer than `idle_in_transaction_s`.
"""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Literal

import asyncpg

from aether_trio.storage.errors import StorageSetupError
from aether_trio.storage.postgres.errors import is_outage
from aether_trio.storage.postgres.hosts import each_host, first_to_succeed
from aether_trio.storage.postgres.lost_commits import IdentifiedConnection, ServerProcess

Kind = Literal["writer", "appender", "reader", "look"]

LOCKING: Final = frozenset({"log"})
"""Logical databases whose programs lock the rows they decide on: READ COMMITTED is enough."""

_ISOLATION: Final = {
    "writer": "serializable",
    "appender": "read committed",
    "reader": "repeatable read",
    "look": "read committed",
}

PLANNED_ONCE: Final = {"plan_cache_mode": "force_generic_plan", "enable_seqscan": "off"}
"""Settings for statements that find all rows by key: planned anew, each would cost twice as much; a
plan that was made when the tables were empty would read tens of thousands of topics."""

_SESSION_NOW: Final = """
    SELECT current_setting('search_path'), current_setting('default_transaction_isolation'), pid, backend_start
    FROM pg_stat_activity WHERE pid = pg_backend_pid()
"""

BY_INDEX: Final = {"enable_seqscan": "off"}
"""Settings for serializable programs: a scan of a whole table, which is the plan for a table of
a few pages, conflicts with every row that another transaction adds to it."""

MINIMUM_VERSION: Final = 14  # client_connection_check_interval, in_hot_standby
# texts are constants of the program; the log's INSERT has one for each number of rows
CACHED_STATEMENTS: Final = 512
SCHEMA: Final = re.compile(r"[a-z_][a-z0-9_]{0,50}")


@dataclass(frozen=True, slots=True)
class PostgresLimits:
    """Limits of one process's connections to its PostgreSQL server; times in seconds.

    `writers`, `appenders` and `readers` bound its connections; a node of a cluster has some more
    (docs/operations.md). A caller waits at most `patience_s` for a connection, and gets
    StorageUnavailable at once when the server has been away for longer than that.
    """

    writers: int = 4
    appenders: int = 2
    readers: int = 4
    keep: int = 1
    """Connections of each kind that stay open while they are idle."""
    idle_s: float = 120.0
    patience_s: float = 5.0
    connect_s: float = 5.0
    statement_s: float = 15.0
    lock_s: float = 5.0
    idle_in_transaction_s: float = 5.0
    transaction_s: float = 30.0
    """From BEGIN to the answer to COMMIT; then the connection is cut, as something is stuck."""
    slow_s: float = 2.0
    """After that time in use, another connection asks whether the server waits for this one."""
    look_s: float = 1.0
    """Between two such questions."""
    silence_s: float = 10.0
    """A connection ends when TCP has not been answered for that long."""


async def connect(dsn: str, kind: Kind, schema: str, limits: PostgresLimits) -> Any:
    """Connect to the primary of a URL. Raises StorageSetupError or asyncpg's errors."""
    return await first_to_succeed([partial(_connect, one, kind, schema, limits) for one in each_host(dsn)], is_outage)


async def _connect(dsn: str, kind: Kind, schema: str, limits: PostgresLimits) -> Any:
    connection = await asyncpg.connect(
        dsn,
        timeout=limits.connect_s,
        # A reader is read-only by its own default, which "read-write" would take for a standby.
        target_session_attrs="primary",
        statement_cache_size=CACHED_STATEMENTS,
        max_cached_statement_lifetime=0,
        connection_class=IdentifiedConnection,
        server_settings=_session(kind, schema, limits),
    )
    try:
        _check(connection)
        await _check_session(connection, kind, schema, limits)
        _watch_peer(connection, limits.silence_s)
    except BaseException:
        connection.terminate()
        raise
    return connection


def _session(kind: Kind, schema: str, limits: PostgresLimits) -> dict[str, str]:
    def ms(seconds: float) -> str:
        return str(int(seconds * 1000))

    return {
        "application_name": f"aether-{kind}",
        "search_path": schema,
        "default_transaction_isolation": _ISOLATION[kind],
        "default_transaction_read_only": "on" if kind == "reader" else "off",
        "statement_timeout": ms(limits.statement_s),
        "lock_timeout": ms(limits.lock_s),
        "idle_in_transaction_session_timeout": ms(limits.idle_in_transaction_s),
        # ms; the server ends a query whose client has gone
        "client_connection_check_interval": "2000",
        "tcp_user_timeout": ms(limits.silence_s),
        "tcp_keepalives_idle": "5",
        "tcp_keepalives_interval": "2",
        "tcp_keepalives_count": "3",
        "jit": "off",  # every statement is small
        **(PLANNED_ONCE if kind == "appender" else {}),
        **(BY_INDEX if kind == "writer" else {}),
    }


def _check(connection: Any) -> None:
    version = connection.get_server_version()
    if version.major < MINIMUM_VERSION:
        raise StorageSetupError(f"PostgreSQL {version.major} is too old: this needs {MINIMUM_VERSION} or newer.")
    encoding = connection.get_settings().server_encoding
    if encoding != "UTF8":
        raise StorageSetupError(f"the database has the encoding {encoding}. Create it with ENCODING 'UTF8'.")


async def _check_session(connection: Any, kind: Kind, schema: str, limits: PostgresLimits) -> None:
    """Refuse a connection through a pooler. Raises StorageSetupError.

    A pooler may drop the settings of a session, or give each transaction another session. Then
    locks of a session, isolation and LISTEN do not hold, and no statement fails of that.
    """
    found = await connection.fetchrow(_SESSION_NOW, timeout=limits.connect_s)
    if found is None or tuple(found)[:2] != (schema, _ISOLATION[kind]):
        raise StorageSetupError(
            "something between this gateway and PostgreSQL, probably a pooler, does not keep the settings of a session. "
            "Locks, transactions and notifications would not work through it: connect to PostgreSQL itself."
        )
    connection.backend = ServerProcess(*tuple(found)[2:])


def _watch_peer(connection: Any, silence_s: float) -> None:
    """Have the kernel notice a server that vanished without closing the connection."""
    # asyncpg has no public way to its socket.
    raw = connection._transport.get_extra_info("socket")
    if raw is None or raw.family == socket.AF_UNIX:
        return
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 2), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, option):
            raw.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(silence_s * 1000))
