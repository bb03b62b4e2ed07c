"""Schema changes on PostgreSQL: the same migrations, by one node at a time.

They run on a separate connection. An advisory lock of the transaction that migrates keeps other
nodes waiting. Under READ COMMITTED each statement sees what the node before has committed, so the
second node has no migration left to apply.
"""

from __future__ import annotations

from typing import Any, Final

from aether_trio.storage.migrations import POSTGRES, upgrade
from aether_trio.storage.postgres.connections import PostgresLimits, connect
from aether_trio.storage.postgres.hosts import where
from aether_trio.storage.postgres.statements import PostgresJob, drive
from aether_trio.storage.schema import commit_marks

LOCK_S: Final = 600  # for another node's migration of a large table
_LOCK: Final = "SELECT pg_advisory_xact_lock(hashtextextended($1, 0))"
_EXISTS: Final = "SELECT 1 FROM pg_catalog.pg_namespace WHERE nspname = $1"
_TURN_EXISTS: Final = "SELECT 1 FROM pg_catalog.pg_tables WHERE schemaname = $1 AND tablename = $2"


def turn_table(name: str) -> str:
    """Return the table whose lock lets one node at a time write a database."""
    return f"turn_{name}"


async def migrate(dsn: str, schema: str, name: str, limits: PostgresLimits) -> int:
    """Bring a logical database up to date (asyncio); return how many migrations ran."""
    connection = await connect(dsn, "writer", schema, limits)
    try:
        await connection.execute(
            f"BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL lock_timeout = '{LOCK_S}s'; "
            "SET LOCAL statement_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = 0"
        )
        await connection.execute(_LOCK, f"aether migrations {schema}")
        # Not IF NOT EXISTS, which needs the right to create a schema even when the schema exists.
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


def _job(name: str, place: str) -> PostgresJob:
    def program() -> Any:
        return upgrade(name, POSTGRES, place)

    return PostgresJob(program)
