"""Makes one statement of a program's deferred writes, to save round trips.

    INSERT INTO a …; UPDATE b …  ──▶  WITH w1 AS (INSERT INTO a …), w2 AS (UPDATE b … RETURNING 1)
                                      SELECT (SELECT COUNT(*) FROM w2)

The parts of such a statement see one snapshot and run in no certain order. So parts write different
rows, as the first arguments of each name them (`Deferred.key`). Several rows of one INSERT are one
part, in their order.

Programs of one kind have one statement, and share its round trip. The server plans each statement
once for a connection, so a statement is used when it has come COMMON times.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Final, NamedTuple

from aether_trio.storage.base import Deferred, Value

MOST_ROWS: Final = 8
"""Rows of one text that are merged."""
COMMON: Final = 3
KEPT_SHAPES: Final = 2_000
"""Shapes that are counted; then all of them are forgotten."""
MOST_BYTES: Final = 15 * 1024
"""Size of a statement's text up to which asyncpg keeps it prepared."""

_INSERT: Final = re.compile(r"(?P<head>\s*INSERT INTO .* VALUES )\((?P<row>[^()]*)\)(?P<tail>.*)", re.DOTALL)
_PARAMETER: Final = re.compile(r"\$(\d+)")

RowName = tuple[Value, ...]
"""A table, and the arguments that name a row of it."""


class WriteBatch(NamedTuple):
    """Deferred writes of one text; `returns_row`: each of them has to find its row."""

    table: str
    sql: str
    rows: list[Sequence[Value]]
    returns_row: bool
    key: int = 1

    @property
    def names(self) -> set[RowName]:
        """The rows that are written."""
        return {(self.table, *row[: self.key]) for row in self.rows}


class MergedWrites(NamedTuple):
    """A statement that does several writes of a program, with its arguments.

    Its row has, of each part that is to find its rows, how many it has found; `counts` has how many
    there should be.
    """

    sql: str
    args: Sequence[Value]
    counts: tuple[int, ...]


Shape = tuple[tuple[str, int, int, bool], ...]
"""Of each part: its text, its rows, the parameters of a row, and whether rows are counted."""


def in_batches(writes: Iterable[Deferred]) -> list[WriteBatch]:
    """Put writes of one text together; those of one row keep their order."""
    batches: list[WriteBatch] = []
    for write in writes:
        for batch in reversed(batches):
            if batch.sql == write.sql:
                batch.rows.append(write.args)
                break
            if batch.table == write.table and any(row[: batch.key] == write.args[: batch.key] for row in batch.rows):
                batches.append(_batch(write))
                break
        else:
            batches.append(_batch(write))
    return batches


def _batch(write: Deferred) -> WriteBatch:
    return WriteBatch(write.table, write.sql, [write.args], write.returns_row, write.key)


class WriteMerger:
    """Merges the writes of programs whose shapes come often."""

    def __init__(self) -> None:
        self._seen: dict[Shape, int] = {}

    def merge(self, batches: Sequence[WriteBatch]) -> list[MergedWrites] | None:
        """Merge a program's writes, to be done in this order; None: not to be merged."""
        found: list[MergedWrites] = []
        together: list[WriteBatch] = []
        rows: set[RowName] = set()
        for batch in _parts(batches):
            names = batch.names
            if len(batch.rows) > 1 and not _may_merge(batch, names):
                return None
            if rows & names:
                found.append(_merged(together))
                together, rows = [], set()
            together.append(batch)
            rows |= names
        found.append(_merged(together))
        shape = tuple((one.sql, len(one.rows), len(one.rows[0]), one.returns_row) for one in batches)
        if len(self._seen) >= KEPT_SHAPES:
            self._seen.clear()
        times = self._seen[shape] = self._seen.get(shape, 0) + 1
        return found if times >= COMMON and all(one.sql for one in found) else None


def _parts(batches: Sequence[WriteBatch]) -> Iterator[WriteBatch]:
    """Split batches of UPDATE and DELETE into single rows."""
    for batch in batches:
        if len(batch.rows) == 1 or _INSERT.fullmatch(batch.sql):
            yield batch
        else:
            for row in batch.rows:
                yield batch._replace(rows=[row])


def _may_merge(batch: WriteBatch, names: set[RowName]) -> bool:
    insert = _INSERT.fullmatch(batch.sql)
    if insert is None or len(batch.rows) > MOST_ROWS:
        return False
    # What may meet a row that is there may do so once in a statement.
    return len(names) == len(batch.rows) or "CONFLICT" not in insert["tail"]


def _merged(batches: Sequence[WriteBatch]) -> MergedWrites:
    shape = tuple((one.sql, len(one.rows), len(one.rows[0]), one.returns_row) for one in batches)
    args = [value for batch in batches for row in batch.rows for value in row]
    return MergedWrites(_text(shape), args, tuple(len(one.rows) for one in batches if one.returns_row))


@lru_cache(maxsize=KEPT_SHAPES)
def _text(shape: Shape) -> str:
    """Write the statement of a shape; "" if asyncpg would not keep it prepared."""
    parts, counts, first = [], [], 0
    for number, (sql, rows, width, counted) in enumerate(shape, 1):
        part = _renumbered(sql, first)
        if rows > 1:
            insert = _INSERT.fullmatch(sql)
            assert insert is not None
            values = ", ".join(f"({_renumbered(insert['row'], first + width * row)})" for row in range(rows))
            part = f"{insert['head']}{values}{insert['tail']}"
        parts.append(f"w{number} AS ({part})")
        if counted:
            counts.append(f"(SELECT COUNT(*) FROM w{number})")  # noqa: S608
        first += rows * width
    text = f"WITH {', '.join(parts)} SELECT {', '.join(counts) or '1'}"
    return text if len(text) <= MOST_BYTES else ""


def _renumbered(sql: str, first: int) -> str:
    return _PARAMETER.sub(lambda found: f"${int(found[1]) + first}", sql)
