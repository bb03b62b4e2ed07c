"""Schema changes on PostgreSQL: the same programs as on SQLite, on a connection of their own, one node at a time.

The lock is an advisory lock of the transaction that migrates. Under READ COMMITTED each statement sees what the node before us has
committed, so whoever comes second finds nothing left to do.
"""

from __future__ import annotations

from typing import Any, Final

from aether_trio.storage.migrations import POSTGRES, upgrade
from aether_trio.storage.postgres.connections import PostgresLimits, connect
from aether_trio.storage.postgres.hosts import where
from aether_trio.storage.postgres.statements import Job, drive
from aether_trio.storage.schema import commit_marks

LOCK_S: Final = 600  # for another node's migration of a large table
_LOCK: Final = "SELECT pg_advisory_xact_lock(hashtextextended($1, 0))"
_EXISTS: Final = "SELECT 1 FROM pg_catalog.pg_namespace WHERE nspname = $1"
_TURN_EXISTS: Final = "SELECT 1 FROM pg_catalog.pg_tables WHERE schemaname = $1 AND tablename = $2"


def turn_table(name: str) -> str:
    """The table that whoever has the turn of a logical database has locked. It has no rows."""
    return f"turn_{name}"


async def migrate(dsn: str, schema: str, name: str, limits: PostgresLimits) -> int:
    """Bring the logical database `name` up to date; returns how many migrations were applied. An asyncio function."""
    connection = await connect(dsn, "writer", schema, limits)
    try:
        await connection.execute(
            f"BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL lock_timeout = '{LOCK_S}s'; "
            "SET LOCAL statement_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = 0"
        )
        await connection.execute(_LOCK, f"aether migrations {schema}")
        # Not IF NOT EXISTS, which asks for the right to create one even when there is nothing to create.
        if not await connection.fetch(_EXISTS, schema):
            await connection.execute(f"CREATE SCHEMA {schema}")
        await drive(connection, _job("marks", where(dsn)))
        await connection.execute(commit_marks.FORGET, commit_marks.FORGET_MS)
        if not await connection.fetch(_TURN_EXISTS, schema, turn_table(name)):
            await connection.execute(f"CREATE TABLE {turn_table(name)} ()")
        applied: int = await drive(connection, _job(name, where(dsn)))
        await connection.execute("COMMIT")
        await connection.close(timeout=limits.connect_s)
        return applied
    finally:
        connection.terminate()


def _job(name: str, place: str) -> Job:
    def program() -> Any:
        return upgrade(name, POSTGRES, place)

    return Job(program)
