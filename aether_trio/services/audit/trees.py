"""The rows of audit trees: begins a tree, appends rows, and deletes the oldest.

All of this is programs for the logical database "tasks". The first statement that appends raises
the size of the tree and so locks it; a change and its audit row are one transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from aether_trio.model.access.merkle import Frontier
from aether_trio.model.audit import (
    GATEWAY_ID,
    LEAF_BITS,
    TEXTS,
    AuditEvent,
    AuditRecord,
    EventType,
    audit_id,
    leaf_bytes,
    place_of,
    record_of,
)
from aether_trio.storage.base import Execute, ExecuteMany, Fetch, Program, Row, Value, placeholders
from aether_trio.storage.partitions import PartitionedTable

AUDIT_LOG: Final = PartitionedTable("audit_log")
"""PostgreSQL only: tables by time."""

COLUMNS: Final = ("audit_id", "at_ms", "ts_ms", "success", *TEXTS, "leaf_hash")
TEXT_COLUMNS: Final = slice(4, 4 + len(TEXTS))
LEAF_HASH: Final = len(COLUMNS) - 1

_INSERT: Final = f"INSERT INTO audit_log ({', '.join(COLUMNS)}) VALUES ({placeholders(len(COLUMNS))})"  # noqa: S608
_GROW: Final = """UPDATE audit_trees SET size = size + $2 WHERE origin = $1
    RETURNING tree, size, frontier, last_ms, node"""
_GROWN: Final = "UPDATE audit_trees SET frontier = $2, last_ms = $3 WHERE tree = $1"

RETENTION_PAGE: Final = 5000
"""Rows that retention deletes in one transaction."""


def row_leaf(row: Row) -> bytes:
    """Return the hash of a row's leaf, computed from its columns (COLUMNS).

    Raises TypeError or struct.error for columns of other types than the table's.
    """
    return sha256(b"\0" + leaf_bytes(row[1], row[2], row[3], row[TEXT_COLUMNS])).digest()


class TreeMissing(Exception):
    """Raised when the database has lost the tree to which this node appends."""


@dataclass(frozen=True, slots=True)
class AuditTree:
    """The tree of one signing key; `origin` is its name in signed heads."""

    number: int
    origin: str
    node: str
    public_key: bytes


def begin_tree(node: str, origin: str, public_key: bytes, now_ms: int) -> Program[AuditTree]:
    """Find the tree of a public key, or begin one with this origin.

    For a queue that is `locking`: nodes that begin at once get different numbers.
    """
    while True:
        rows: list[Row] = yield Fetch(
            "SELECT tree, origin, node, public_key FROM audit_trees WHERE public_key = $1", (public_key,)
        )
        if rows:
            return AuditTree(*rows[0])
        [[number]] = yield Fetch("SELECT COALESCE(MAX(tree) + 1, 0) FROM audit_trees")
        yield Execute(
            "INSERT INTO audit_trees (tree, origin, node, public_key, began_ms, frontier, floor_frontier) "
            "VALUES ($1, $2, $3, $4, $5, $6, $6) ON CONFLICT (tree) DO NOTHING",
            (number, origin, node, public_key, now_ms, b""),
        )


def append(tree: str, events: Sequence[AuditEvent], now_ms: int) -> Program[list[int]]:
    """Append events to the tree with this origin; return the ids of their rows."""
    return (yield from append_records(tree, [record_of(event) for event in events], now_ms))


def append_records(tree: str, records: Sequence[AuditRecord], now_ms: int) -> Program[list[int]]:
    """Append records to the tree with this origin; return the ids of their rows.

    Raises TreeMissing.
    """
    if not records:
        return []
    grown: list[Row] = yield Fetch(_GROW, (tree, len(records)))
    if not grown:
        raise TreeMissing(f"the database has no audit tree {tree}: it was deleted")
    number, size, frontier, last_ms, node = grown[0]
    first = size - len(records)
    ts_ms = max(now_ms, last_ms)
    rows: list[Sequence[Value]] = []
    leaves: list[bytes] = []
    for leaf, (at_ms, success, texts, _) in enumerate(records, first):
        happened_ms = min(at_ms, ts_ms)
        if not texts[GATEWAY_ID]:
            texts = (*texts[:GATEWAY_ID], node, *texts[GATEWAY_ID + 1 :])  # noqa: PLW2901
        hashed = sha256(b"\0" + leaf_bytes(happened_ms, ts_ms, success, texts)).digest()
        leaves.append(hashed)
        rows.append((audit_id(number, leaf), happened_ms, ts_ms, success, *texts, hashed))
    yield ExecuteMany(_INSERT, rows)
    grown_frontier = Frontier.decode(first, frontier).extend(leaves)
    yield Execute(_GROWN, (number, grown_frontier.encode(), ts_ms))
    return [int(str(row[0])) for row in rows]


def _oldest(number: int, floor: int, before_ms: int) -> Program[list[bytes]]:
    """Read the leaf hashes of the next rows of a tree that are too old."""
    rows: list[Row] = yield Fetch(
        "SELECT audit_id, ts_ms, leaf_hash FROM audit_log WHERE audit_id >= $1 AND audit_id < $2 "
        "ORDER BY audit_id LIMIT $3",
        (audit_id(number, floor), number + 1 << LEAF_BITS, RETENTION_PAGE),
    )
    hashes: list[bytes] = []
    for row_id, ts_ms, leaf in rows:
        # Behind a gap nothing is deleted: what is there is evidence.
        if ts_ms >= before_ms or place_of(row_id)[1] != floor + len(hashes):
            break
        hashes.append(leaf)
    return hashes


def forget_page(
    number: int,
    before_ms: int,
    writes_to: AuditTree,
    now_ms: int,
    sign: Callable[[str, int, bytes], str],
    *,
    keeps_rows: bool,
) -> Program[int]:
    """Forget a page of a tree's rows from before `before_ms`; return how many.

    The tree keeps a frontier that stands for them, and a row in the tree `writes_to` says so. It
    has the note that `sign(origin, rows in all, their root)` makes: without that anyone who can
    write to the database could say that retention has deleted rows. With `keeps_rows` they are
    deleted later, with their partition.
    """
    for one in sorted({number, writes_to.number}):  # in one order on all nodes: no deadlock
        yield Execute("UPDATE audit_trees SET size = size WHERE tree = $1", (one,))
    found: list[Row] = yield Fetch(
        "SELECT origin, floor_size, floor_frontier FROM audit_trees WHERE tree = $1", (number,)
    )
    if not found:
        return 0
    origin, floor, frontier = found[0]
    hashes = yield from _oldest(number, floor, before_ms)
    if not hashes:
        return 0
    risen = Frontier.decode(floor, frontier).extend(hashes)
    yield Execute(
        "UPDATE audit_trees SET floor_size = $2, floor_frontier = $3 WHERE tree = $1",
        (number, risen.size, risen.encode()),
    )
    if not keeps_rows:
        yield Execute(
            "DELETE FROM audit_log WHERE audit_id >= $1 AND audit_id < $2",
            (audit_id(number, floor), audit_id(number, risen.size)),
        )
    event = AuditEvent(
        at_ms=now_ms,
        event_type=EventType.ADMIN,
        operation="audit_retention",
        resource_type="audit_tree",
        resource_id=origin,
        metadata={
            "rows": len(hashes),
            "kept_from": risen.size,
            "root": risen.root().hex(),
            "before_ms": before_ms,
            "note": sign(origin, risen.size, risen.root()),
        },
    )
    yield from append(writes_to.origin, [event], now_ms)
    return len(hashes)
