"""Partitions of a PostgreSQL table by time: retention drops whole tables.

A partitioned table has a column `ts_ms`. Its writer makes the partition for now before it writes,
unless it knows that the partition exists. There is no default partition: its rows would have to be
searched whenever another one is made. The catalog is the only list of partitions; one process at a
time changes it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from typing import Final

from aether_trio.storage.base import Database, Execute, Fetch, Program, Row

SHARE_OF_AGE: Final = 8
"""A row is kept an eighth of its age longer at most; a query looks into some ten tables."""

SHORTEST_S: Final = 60.0
UNLIMITED_S: Final = 30 * 24 * 3600.0
"""The length of a partition when rows are kept for ever."""

EXACT_COUNT_BYTES: Final = 64 * 1024 * 1024
"""Dropped rows are counted up to this size; beyond it the planner's estimate is taken."""

_LOCK: Final = "SELECT pg_advisory_xact_lock(hashtextextended('aether partitions ' || current_schema(), 0))"
_LIST: Final = (
    "SELECT c.relname, pg_get_expr(c.relpartbound, c.oid) FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid "
    "WHERE i.inhparent = $1::text::regclass"
)
_BOUNDS: Final = re.compile(r"FROM \('(-?\d+)'\) TO \('(-?\d+)'\)")


@dataclass(frozen=True, slots=True, order=True)
class Partition:
    """A table of the rows with lower_ms <= ts_ms < upper_ms."""

    lower_ms: int
    upper_ms: int
    table: str


def partition_length_ms(age_s: float) -> int:
    """Return the length of a partition if rows are kept for `age_s` (0: ever)."""
    return int(1000 * (max(age_s / SHARE_OF_AGE, SHORTEST_S) if age_s else UNLIMITED_S))


@dataclass(frozen=True, slots=True)
class PartitionedTable:
    """A table that PostgreSQL partitions by its column `ts_ms`."""

    name: str

    def partitions(self) -> Program[list[Partition]]:
        """List all partitions of the table, the oldest first."""
        rows: list[Row] = yield Fetch(_LIST, (self.name,))
        found = []
        for table, text in rows:
            bounds = _BOUNDS.search(text)
            assert bounds is not None, text
            found.append(Partition(int(bounds[1]), int(bounds[2]), table))
        return sorted(found)

    def ensure(self, now_ms: int, length: int) -> Program[Partition]:
        """Return the partition for rows of `now_ms`; make it if there is none."""
        yield Fetch(_LOCK)
        existing = yield from self.partitions()
        lower = now_ms // length * length
        upper = lower + length
        for one in existing:
            if one.lower_ms <= now_ms < one.upper_ms:
                return one
            if one.upper_ms <= now_ms:
                lower = max(lower, one.upper_ms)
            else:
                upper = min(upper, one.lower_ms)
        made = Partition(lower, upper, f"{self.name}_{lower}".replace("-", "before_"))
        # ATTACH lets other nodes read and append; CREATE TABLE ... PARTITION OF would wait.
        yield Execute(f"CREATE TABLE {made.table} (LIKE {self.name} INCLUDING ALL)")
        yield Execute(f"ALTER TABLE {self.name} ATTACH PARTITION {made.table} FOR VALUES FROM ({lower}) TO ({upper})")
        return made

    def drop(self, table: str) -> Program[int]:
        """Drop a partition, unless another node has; return about how many rows went."""
        yield Fetch(_LOCK)
        if not any(one.table == table for one in (yield from self.partitions())):
            return 0
        # Readers and writers queue behind this statement while it waits: give up soon, try later.
        yield Execute("SET LOCAL lock_timeout = '1s'")
        [[size, estimate]] = yield Fetch(
            "SELECT pg_table_size(oid), reltuples FROM pg_class WHERE oid = $1::text::regclass", (table,)
        )
        count = int(max(estimate, 0))
        if size <= EXACT_COUNT_BYTES:
            [[count]] = yield Fetch(f"SELECT count(*) FROM {table}")  # noqa: S608
        yield Execute(f"DROP TABLE {table}")
        return count

    async def drop_older(self, database: Database, oldest_ms: int) -> int:
        """Drop partitions of rows before `oldest_ms`; return about how many went."""
        gone = 0
        for one in await database.read(self.partitions):
            if one.upper_ms <= oldest_ms:
                gone += await database.run(partial(self.drop, one.table))
        return gone


class PartitionKeeper:
    """Makes the partitions that one writer of a partitioned table needs."""

    def __init__(self, database: Database, table: PartitionedTable, length: int) -> None:
        self._database = database
        self._table = table
        self._length = length
        self._known: Partition | None = None

    async def ensure(self, now_ms: int) -> None:
        """Make the partition for `now_ms` if unknown. Raises StorageUnavailable."""
        known = self._known
        if known is None or not known.lower_ms <= now_ms < known.upper_ms:
            self._known = await self._database.run(lambda: self._table.ensure(now_ms, self._length))

    def doubt(self) -> None:
        """Have `ensure` read the catalog again, as a partition may have been dropped."""
        self._known = None
