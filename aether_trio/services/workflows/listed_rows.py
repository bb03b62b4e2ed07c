"""Reads pages of tables that are listed: each part along an index, then merged."""

from __future__ import annotations

from collections.abc import Sequence

from aether_trio.storage.base import Fetch, Program, Row, Value


def rows_by_id(
    select: str, workspaces: Sequence[str], limit: int, behind: tuple[str, str] | None = None
) -> Program[list[Row]]:
    """Read rows by workspace and id, behind a (workspace, id) if given.

    `select` ends with a condition; its $1 is a workspace. The table has an index of both columns.
    """
    found: list[Row] = []
    for workspace in sorted(set(workspaces)):
        if behind is not None and workspace < behind[0]:
            continue
        after = behind[1] if behind is not None and workspace == behind[0] else ""
        rows: list[Row] = yield Fetch(f"{select} AND id > $2 ORDER BY id LIMIT $3", (workspace, after, limit))
        found += rows
        if len(found) >= limit:
            return found[:limit]
    return found


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
