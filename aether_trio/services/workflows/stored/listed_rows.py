"""Reads pages of tables that are listed: each part along an index, then merged.

A page of an answer has PAGE_BYTES, or one row, so not many more are read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from aether_trio.model.limits import MIB
from aether_trio.storage.base import Fetch, Program, Row, Value

PAGE_BYTES: Final = 1 * MIB
ROWS_AT_ONCE: Final = 32
"""Rows of one statement: they may have a mebibyte each."""


def rows_by_id(
    select: str, workspaces: Sequence[str], limit: int, behind: tuple[str, str] | None = None
) -> Program[list[Row]]:
    """Read rows by workspace and id, behind a (workspace, id) if given.

    `select` begins with both, and ends with a condition; its $1 is a workspace. The table has an
    index of both columns.
    """
    found: list[Row] = []
    for workspace in sorted(set(workspaces)):
        if behind is not None and workspace < behind[0]:
            continue
        after = behind[1] if behind is not None and workspace == behind[0] else ""

        def part(last: Row | None, count: int, workspace: str = workspace, after: str = after) -> Program[list[Row]]:
            args = (workspace, after if last is None else last[1], count)
            rows: list[Row] = yield Fetch(f"{select} AND id > $2 ORDER BY id LIMIT $3", args)
            return rows

        found += yield from page_of_rows(part, limit - len(found))
        if len(found) >= limit or (len(found) > 1 and _size(found) > PAGE_BYTES):
            break
    return found


def page_of_rows(part: Callable[[Row | None, int], Program[list[Row]]], limit: int) -> Program[list[Row]]:
    """Read rows, up to a limit, or those of a page and at least one more.

    `part(last, count)` reads as many rows behind the last one.
    """
    found: list[Row] = []
    size = 0
    while True:
        count = min(ROWS_AT_ONCE, limit - len(found))
        rows = yield from part(found[-1] if found else None, count)
        found += rows
        size += _size(rows)
        if len(rows) < count or len(found) >= limit or (len(found) > 1 and size > PAGE_BYTES):
            return found


def _size(rows: Sequence[Row]) -> int:
    return sum(len(value) for row in rows for value in row if isinstance(value, (str, bytes, memoryview)))


def values_of(table: str, column: str, where: str, args: Sequence[Value]) -> Program[list[str]]:
    """List the different texts of a column that follows those of `where` in an index."""
    found = [""]
    while True:
        rows: list[Row] = yield Fetch(
            f"SELECT {column} FROM {table} WHERE {where} AND {column} > ${len(args) + 1} "  # noqa: S608
            f"ORDER BY {column} LIMIT 1",
            (*args, found[-1]),
        )
        if not rows:
            return found[1:]
        found.append(rows[0][0])
