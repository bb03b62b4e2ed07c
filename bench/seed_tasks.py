"""Copy one waiting task a hundred thousand times in the gateway's database.

Through the protocol a million tasks would take longer than everything else the bench does. What is
written is what the gateway writes, as the row that is copied is its own; ids begin with a moment,
one after another, and go on by chance, as its ids do.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from time import time
from typing import Final

BUSY_SECONDS: Final = 60.0
_FRESH: Final = ("task_id", "root_task_id", "order_us")
"""Columns that differ from the copied row's."""


def seed_sqlite(data_dir: Path, task_id: str, count: int) -> None:
    """Copy a task into the data directory of a running gateway."""
    with closing(sqlite3.connect(data_dir / "tasks.db", timeout=BUSY_SECONDS, isolation_level=None)) as database:
        columns = [row[1] for row in database.execute("PRAGMA table_info(tasks)")]
        database.execute(
            f"INSERT INTO tasks ({', '.join(columns)}) "
            "WITH RECURSIVE counted(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM counted WHERE n < ?), numbers(n, id) AS "
            "(SELECT n, printf('%012x-', ? + n / 2) || lower(hex(randomblob(10))) FROM counted) "
            f"SELECT {_values(columns)} FROM numbers, tasks WHERE task_id = ?",
            (count, _first_ms(count), task_id),
        )


def seed_postgres(dsn: str, task_id: str, count: int) -> None:
    asyncio.run(_seed_postgres(dsn, task_id, count))


async def _seed_postgres(dsn: str, task_id: str, count: int) -> None:
    import asyncpg

    connection = await asyncpg.connect(dsn)
    try:
        schema, *_ = await connection.fetchrow(
            "SELECT table_schema FROM information_schema.tables WHERE table_name = 'tasks'"
        )
        found = await connection.fetch(
            "SELECT column_name FROM information_schema.columns WHERE table_schema = $1 AND table_name = 'tasks'",
            schema,
        )
        columns = [row[0] for row in found]
        await connection.execute(
            f'INSERT INTO "{schema}".tasks ({", ".join(columns)}) '
            f"SELECT {_values(columns)} FROM (SELECT n, lpad(to_hex($3::bigint + n / 2), 12, '0') || '-' || "
            "replace(gen_random_uuid()::text, '-', '') AS id FROM generate_series(1, $1) AS n) "
            f'AS numbers, "{schema}".tasks WHERE task_id = $2',
            count,
            task_id,
            _first_ms(count),
            timeout=None,
        )
        await connection.execute(f'ANALYZE "{schema}".tasks')
    finally:
        await connection.close()


def _first_ms(count: int) -> int:
    """The first copy's time: two were made in each millisecond until now."""
    return int(time() * 1000) - count // 2


def _values(columns: Sequence[str]) -> str:
    fresh = dict(zip(_FRESH, ("id", "id", "order_us + n"), strict=True))
    return ", ".join(fresh.get(column, column) for column in columns)
