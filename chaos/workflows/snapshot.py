"""Copies the tables of a run, of whichever engine, into a SQLite database."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, Final, TypeVar

from aether_trio.devtools.process_cluster import SCHEMA
from aether_trio.storage.base import Execute, Fetch, Program
from chaos.tasks.place import Alone, Place

T = TypeVar("T")

PAGE: Final = 5_000
_TABLES: Final = f"""SELECT c.table_name, c.column_name, c.data_type FROM information_schema.columns c
    JOIN information_schema.tables t USING (table_schema, table_name)
    WHERE c.table_schema = '{SCHEMA}' AND t.table_type = 'BASE TABLE'
    AND (c.table_name LIKE 'workflow%' OR c.table_name LIKE 'task%') ORDER BY c.table_name, c.ordinal_position"""


class Snapshot:
    """A copy of the tables of tasks and workflows."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self.database = database

    def close(self) -> None:
        """Close the copy."""
        self.database.close()

    def rows(self, sql: str, *args: Any) -> list[tuple[Any, ...]]:
        """Return the rows of a query, with `?` for its arguments."""
        return self.database.execute(sql, args).fetchall()

    def tables(self) -> list[str]:
        """Return the names of all tables."""
        return [name for (name,) in self.rows("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")]

    def run(self, program: Callable[[], Program[T]]) -> T:
        """Run a program in portable SQL; what it writes stays here."""
        running = program()
        answer: Any = None
        while True:
            try:
                statement = running.send(answer)
            except StopIteration as done:
                found: T = done.value
                return found
            assert isinstance(statement, Fetch | Execute), f"{statement} is not needed for reading"
            args = {str(number): value for number, value in enumerate(statement.args, start=1)}
            cursor = self.database.execute(statement.sql, args)
            answer = cursor.fetchall() if isinstance(statement, Fetch) else cursor.rowcount


class Kept(Alone):
    """A file of `take` as a place of which tables can be read."""

    def __init__(self, file: Path) -> None:
        self._file = file

    async def sql(self, text: str) -> list[list[str]]:
        with closing(sqlite3.connect(self._file)) as connection:
            return [["" if value is None else str(value) for value in row] for row in connection.execute(text)]


async def take(place: Place, file: Path) -> None:
    """Copy the tables into a file; nothing may be written to them meanwhile."""
    with closing(sqlite3.connect(file)) as copy:
        if isinstance(place, Alone):
            with closing(sqlite3.connect(place.node.data / "tasks.db")) as source:
                source.backup(copy)
        else:
            await _copy(place, copy)
        copy.commit()


async def _copy(place: Place, copy: sqlite3.Connection) -> None:
    columns: dict[str, dict[str, str]] = {}
    for table, column, kind in await place.sql(_TABLES):
        columns.setdefault(table, {})[column] = kind
    for table, kinds in columns.items():
        copy.execute(f"CREATE TABLE {table} ({', '.join(kinds)})")
        offset = 0
        while True:
            # One column without any sign that psql gives a meaning.
            page = await place.sql(
                f"SELECT encode(convert_to(row_to_json(t)::text, 'UTF8'), 'hex') FROM {table} t "
                f"ORDER BY ctid LIMIT {PAGE} OFFSET {offset}"
            )
            for (line,) in page:
                row = json.loads(bytes.fromhex(line))
                values = [_value(row[name], kind) for name, kind in kinds.items()]
                copy.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(values))})", values)
            if len(page) < PAGE:
                break
            offset += PAGE
    _index(copy)


def _value(value: Any, kind: str) -> Any:
    if kind == "bytea" and value is not None:
        return bytes.fromhex(value.removeprefix("\\x"))
    return int(value) if isinstance(value, bool) else value


def _index(copy: sqlite3.Connection) -> None:
    for table in ("workflow_history", "workflow_steps"):
        copy.execute(f"CREATE INDEX {table}_by_execution ON {table} (execution_id)")
