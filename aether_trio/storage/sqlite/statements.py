"""Translates portable statements to SQLite calls, and runs programs.

Portable SQL writes `$1`, which SQLite would take for a *named* parameter. Each text is translated
once to `?` and, when a parameter is used twice or out of order, the order in which the arguments
must be given.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, TypeVar

from aether_trio.storage.base import Argument, Deferred, Execute, ExecuteMany, Fetch, Program, Statement

T = TypeVar("T")

# distinct statement texts; they are constants of the program, so this is never reached
SQL_CACHE: Final = 1024

_TOKEN: Final = re.compile(r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|--[^\n]*|\$(\d+)""")


@dataclass(frozen=True, slots=True)
class Compiled:
    """One statement text for SQLite; `order` None: the arguments keep their order."""

    text: str
    order: tuple[int, ...] | None

    def arrange(self, args: Sequence[Argument]) -> Sequence[Argument]:
        return args if self.order is None else [args[i] for i in self.order]


@lru_cache(maxsize=SQL_CACHE)
def compile_sql(sql: str) -> Compiled:
    """Translate `$n` outside of quotes and comments to `?`."""
    used: list[int] = []

    def replace(match: re.Match[str]) -> str:
        if match[1] is None:
            return match[0]
        used.append(int(match[1]) - 1)
        return "?"

    text = _TOKEN.sub(replace, sql)
    order = None if used == list(range(len(used))) else tuple(used)
    return Compiled(text, order)


def run_statement(cursor: sqlite3.Cursor, statement: Statement) -> Any:
    """Run one statement on a SQLite cursor; return what its program is sent."""
    if isinstance(statement, Fetch):
        compiled = compile_sql(statement.sql)
        return cursor.execute(compiled.text, compiled.arrange(statement.args)).fetchall()
    if isinstance(statement, Execute):
        compiled = compile_sql(statement.sql)
        return max(cursor.execute(compiled.text, compiled.arrange(statement.args)).rowcount, 0)
    if isinstance(statement, Deferred):  # there is no round trip to save here
        compiled = compile_sql(statement.sql)
        cursor.execute(compiled.text, compiled.arrange(statement.args))
        return None
    if isinstance(statement, ExecuteMany):
        compiled = compile_sql(statement.sql)
        rows = statement.rows if compiled.order is None else map(compiled.arrange, statement.rows)
        cursor.executemany(compiled.text, rows)
        return None
    raise TypeError(f"cannot run {statement!r}: a database program yields Fetch, Execute, ExecuteMany or Deferred")


def drive(cursor: sqlite3.Cursor, factory: Callable[[], Program[T]]) -> T:
    """Run a program to its end inside the open transaction; return its result.

    A statement that fails ends the program, as on PostgreSQL it aborts the transaction.
    """
    program = factory()
    try:
        statement = next(program)
        while True:
            result = run_statement(cursor, statement)
            statement = program.send(result)
    except StopIteration as stop:
        value: T = stop.value
        return value
    finally:
        program.close()
