"""Copy a waiting execution a hundred thousand times in a gateway's database.

Whatever row of whatever table names the execution or its step's task is copied, with new ids; so
what is written is what the gateway has written. Ids begin with a moment, as its ids do. What a copy
waits for is never there: its key is another one, and its due moment lies in the future.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from time import time
from typing import Any, Final

BUSY_SECONDS: Final = 60.0
_LATER: Final = ("order_us", "due_ms")
"""Columns in which copies differ by their numbers, where they are not 0."""


def seed_sqlite(data_dir: Path, names: Sequence[str], count: int, kind: int) -> None:
    """Copy the rows of an execution and of the task of its step, if it has one.

    `kind` makes the ids of different executions different. No gateway may run on the directory.
    """
    with closing(sqlite3.connect(data_dir / "tasks.db", timeout=BUSY_SECONDS, isolation_level=None)) as database:
        database.execute("PRAGMA cache_size = -200000")
        database.execute("BEGIN")
        for (table,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            found = database.execute(f"PRAGMA table_info({table})").fetchall()
            columns = [(row[1], row[2].upper()) for row in found if (row[2].upper(), row[5]) != ("INTEGER", 1)]
            texts = [name for name, of in columns if of == "TEXT"]
            where = " OR ".join(f"{name} IN ({_marks(names, '?')})" for name in texts)
            if (
                not where
                or not database.execute(f"SELECT 1 FROM {table} WHERE {where}", [*names] * len(texts)).fetchone()
            ):
                continue
            made = [name for name, _ in columns]
            values = ", ".join(_value(name, name in texts, names, kind, _SQLITE) for name in made)
            database.execute(f"CREATE TEMP TABLE copied AS SELECT * FROM {table} WHERE {where}", [*names] * len(texts))
            database.execute(
                f"WITH RECURSIVE counted(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM counted WHERE n < {int(count)}) "
                f"INSERT INTO {table} ({', '.join(made)}) SELECT {values} FROM counted, copied"
            )
            database.execute("DROP TABLE copied")
        database.execute("COMMIT")
        database.execute("PRAGMA optimize")


def seed_postgres(dsn: str, names: Sequence[str], count: int, kind: int) -> None:
    """Do the same on PostgreSQL; the gateway may run."""
    asyncio.run(_seed_postgres(dsn, names, count, kind))


async def _seed_postgres(dsn: str, names: Sequence[str], count: int, kind: int) -> None:
    import asyncpg

    connection = await asyncpg.connect(dsn)
    try:
        found = await connection.fetch(
            "SELECT table_schema, table_name, column_name, data_type, is_identity FROM information_schema.columns "
            "WHERE table_schema = (SELECT table_schema FROM information_schema.tables WHERE table_name = 'tasks') "
            "ORDER BY table_name, ordinal_position"
        )
        schema = found[0][0]
        tables: dict[str, list[Any]] = {}
        for row in found:
            tables.setdefault(row[1], []).append(row)
        for table, rows in tables.items():
            texts = [row[2] for row in rows if row[3] == "text"]
            where = " OR ".join(f"{name} = ANY($1)" for name in texts)
            place = f'"{schema}"."{table}"'
            if not where or not await connection.fetch(f"SELECT 1 FROM {place} WHERE {where} LIMIT 1", list(names)):
                continue
            made = [row[2] for row in rows if row[4] == "NO"]
            values = ", ".join(_value(name, name in texts, names, kind, _POSTGRES) for name in made)
            await connection.execute(
                f"INSERT INTO {place} ({', '.join(made)}) SELECT {values} "
                f"FROM generate_series(1, {int(count)}) AS counted(n), {place} WHERE {where}",
                list(names),
                timeout=None,
            )
            await connection.execute(f"ANALYZE {place}")
    finally:
        await connection.close()


_SQLITE: Final = "printf('%08x-%04x-7{kind:03x}-8{part:03x}-%012x', ({ms} + n / 2) / 65536, ({ms} + n / 2) % 65536, n)"
_POSTGRES: Final = (
    "lpad(to_hex((({ms} + n / 2) / 65536)::bigint), 8, '0') || '-' || lpad(to_hex((({ms} + n / 2) % 65536)::bigint), "
    "4, '0') || '-7{kind:03x}-8{part:03x}-' || lpad(to_hex(n), 12, '0')"
)


def _value(name: str, is_text: bool, names: Sequence[str], kind: int, id_of: str) -> str:
    """Return what a copy has in a column."""
    if name == "value_hash":
        return f"CASE {name} WHEN '' THEN '' ELSE substr({id_of.format(ms=0, kind=kind, part=0)}, 1, 36) END"
    if is_text:
        first_ms = int(time() * 1000) - 10_000_000
        ids = (id_of.format(ms=first_ms, kind=kind, part=part) for part in range(len(names)))
        cases = " ".join(f"WHEN '{old}' THEN {new}" for old, new in zip(names, ids, strict=True))
        return f"CASE {name} {cases} ELSE {name} END"
    if name in _LATER:
        return f"CASE {name} WHEN 0 THEN 0 ELSE {name} + n END"
    return name


def _marks(names: Sequence[str], mark: str) -> str:
    return ", ".join(mark for _ in names)
