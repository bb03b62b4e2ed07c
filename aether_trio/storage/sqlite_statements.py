"""From portable statements to SQLite calls: parameter translation, bulk inserts, and the loop that drives a program.

Portable SQL writes `$1`; SQLite would take that for a *named* parameter. Each text is translated once to bare `?` plus,
when a parameter is used twice or out of order, the order in which the arguments must be given.

`ExecuteMany` of a plain INSERT is folded into multi-row VALUES. That is not about SQLite, which would insert row by row
just as fast: every step of a statement gives up and takes back the interpreter lock, and when the event loop is busy each
of these costs a thread switch. 64 rows a step make that a small matter.
"""

from __future__ import annotations

import itertools
import re
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, TypeVar

from aether_trio.storage.base import Execute, ExecuteMany, Fetch, Program, Statement, Value

T = TypeVar("T")

BULK_ROWS: Final = (64, 8)  # rows a step; two sizes only, so that the statement cache holds both
SQL_CACHE: Final = 1024  # distinct statement texts; they are constants of the program, so this is never reached

_TOKEN: Final = re.compile(r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|--[^\n]*|\$(\d+)""")
_PLAIN_INSERT: Final = re.compile(
    r"(\s*INSERT\s+INTO\s+[^()']+?(?:\([^()']*\))?\s*VALUES\s*)(\([?,\s]*\))(\s*(?:ON\s+CONFLICT\b[^?]*)?)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Compiled:
    """One statement text as SQLite wants it. `order` is None when the arguments are used as they come."""

    text: str
    order: tuple[int, ...] | None
    bulk: tuple[str, ...] | None  # the text for each size in BULK_ROWS, for inserts that can be folded

    def arrange(self, args: Sequence[Value]) -> Sequence[Value]:
        return args if self.order is None else [args[i] for i in self.order]


@lru_cache(maxsize=SQL_CACHE)
def compile_sql(sql: str) -> Compiled:
    """Translate `$n` outside of quotes and comments."""
    used: list[int] = []

    def replace(match: re.Match[str]) -> str:
        if match[1] is None:
            return match[0]
        used.append(int(match[1]) - 1)
        return "?"

    text = _TOKEN.sub(replace, sql)
    order = None if used == list(range(len(used))) else tuple(used)
    return Compiled(text, order, _bulk_texts(text) if order is None and used else None)


def _bulk_texts(text: str) -> tuple[str, ...] | None:
    match = _PLAIN_INSERT.fullmatch(text)
    if match is None or "RETURNING" in text.upper():
        return None
    head, row, tail = match.groups()
    return tuple(f"{head}{','.join([row] * size)}{tail}" for size in BULK_ROWS)


def run_statement(cursor: sqlite3.Cursor, statement: Statement) -> Any:
    """Run one statement; return what its program is to be sent."""
    kind = type(statement)
    if kind is Fetch:
        compiled = compile_sql(statement.sql)
        return cursor.execute(compiled.text, compiled.arrange(statement.args)).fetchall()  # type: ignore[union-attr]
    if kind is Execute:
        compiled = compile_sql(statement.sql)
        return max(cursor.execute(compiled.text, compiled.arrange(statement.args)).rowcount, 0)  # type: ignore[union-attr]
    if isinstance(statement, ExecuteMany):
        return _run_many(cursor, statement)
    raise TypeError(f"a program yields Fetch, Execute or ExecuteMany, not {statement!r}")


def _run_many(cursor: sqlite3.Cursor, statement: ExecuteMany) -> None:
    compiled = compile_sql(statement.sql)
    rows = statement.rows if isinstance(statement.rows, Sequence) else list(statement.rows)
    if compiled.bulk is None:
        cursor.executemany(compiled.text, rows if compiled.order is None else map(compiled.arrange, rows))
        return
    done = 0
    for size, text in zip(BULK_ROWS, compiled.bulk, strict=True):
        while len(rows) - done >= size:
            cursor.execute(text, list(itertools.chain.from_iterable(rows[done : done + size])))
            done += size
    if done < len(rows):
        cursor.executemany(compiled.text, rows[done:])


def drive(cursor: sqlite3.Cursor, factory: Callable[[], Program[T]]) -> T:
    """Run a program to its end inside whatever transaction is open; return its result.

    A statement that fails ends the program: it is closed, not told, because on an engine that aborts the whole
    transaction at the first error there would be nothing left for it to do.
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
