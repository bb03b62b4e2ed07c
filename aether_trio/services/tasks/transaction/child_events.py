"""Write events of child tasks to their parent's event log, without contention.

    a child's transaction ──▶ a separate row in task_child_events
                          ──▶ collected: numbered in the parent's log, a page at a time

One transaction counts the events in the parent's row, writes them to its log and deletes the rows,
so the log has each once. Where several nodes share the database, collecting transactions lock the
parents' rows first (`Database.separate_queue`): of two serializable ones, one would fail, as a
child reads its parent's row. An event of the parent itself collects in its own transaction.

Invariants: the events of one child keep their order, as a row gets its id when its transaction has
seen the earlier ones. The parent's log has what its children did before each event of the parent
(`TaskTransaction.collect_child_events`), its end included. A locking transaction waits for a
parent's row only while it holds no lock.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter
from typing import Final, NamedTuple

from aether_trio.model.tasks.status import StoredStatus, is_final
from aether_trio.services.tasks.transaction.interface import LeftEvent, Transaction
from aether_trio.storage.base import Deferred, Execute, Fetch, Program, Row
from aether_trio.wire.pb import aether_pb2 as pb

PAGE: Final = 200
SMALL_PAGE: Final = 50
"""The same while the event loop waits: a millisecond."""
GATHER_S: Final = 0.1
"""Seconds between two collecting transactions; events added meanwhile share the next."""
UNWATCHED_S: Final = 1.0
"""How long events of parents without a subscriber wait at least: most ends of parents take theirs
along, and would conflict with the transaction that moves them."""
ALL: Final = 2**63 - 1
"""A number of a row behind all others."""

INSERT: Final = "INSERT INTO task_child_events (task_id, at_ms, event) VALUES ($1, $2, $3)"

_PARENT: Final = "workspace, creator, assigned_to, status, next_retry_ms, has_children"
_LOAD: Final = f"SELECT {_PARENT}, 1 FROM tasks WHERE task_id = $1"  # noqa: S608
_LOAD_SHARED: Final = (
    f"SELECT {_PARENT}, (SELECT COUNT(*) FROM task_watchers WHERE task_id = $1) FROM tasks WHERE task_id = $1"  # noqa: S608
)

_LOCK: Final = """SELECT task_id, parent_task_id FROM tasks WHERE task_id = ANY($1::text[]) ORDER BY task_id
    FOR NO KEY UPDATE"""
_TAKE: Final = """DELETE FROM task_child_events WHERE task_id = ANY($1::text[]) AND id <= $2
    RETURNING id, task_id, at_ms, event"""
_TAKE_FOR: Final = """DELETE FROM task_child_events WHERE id IN (
    SELECT id FROM task_child_events WHERE task_id = $1 ORDER BY id LIMIT $2) RETURNING id, at_ms, event"""
_DELETE_READ: Final = "DELETE FROM task_child_events WHERE id <= $1 AND task_id = $2"
_COUNT: Final = """UPDATE tasks SET events = events + taken.number
    FROM unnest($1::text[], $2::bigint[]) AS taken (task_id, number) WHERE tasks.task_id = taken.task_id
    RETURNING tasks.task_id, events"""


class Parent(NamedTuple):
    """The columns that a new child task reads of its parent; `watchers` counts nodes."""

    workspace: str
    creator: str
    assigned_to: str
    status: StoredStatus
    next_retry_ms: int
    has_children: int
    watchers: int

    @property
    def is_final(self) -> bool:
        """Whether the parent has ended and is not retried."""
        return is_final(self.status, self.next_retry_ms)


class Collected(NamedTuple):
    """The last row's id of a collected page of child tasks' events, 0 if none follows."""

    last: int
    locked: frozenset[str] = frozenset()
    """Parents that other transactions had locked: their events are still to be collected."""


def load_parent(tx: Transaction, task_id: str) -> Program[Parent | None]:
    """Load the parent of a new child task; None if there is none."""
    found: list[Row] = yield Fetch(_LOAD_SHARED if tx.context.shared else _LOAD, (task_id,))
    if not found:
        return None
    parent = Parent._make(found[0])
    if parent.has_children:
        tx.known_parents.add(task_id)
    if not parent.watchers:
        tx.unwatched.add(task_id)
    return parent._replace(status=StoredStatus(parent.status))


def mark_parent(tx: Transaction, task_id: str) -> Program[None]:
    """Write in a task's row that it has children."""
    tx.row_changes(task_id)
    yield Execute("UPDATE tasks SET has_children = 1 WHERE task_id = $1 AND has_children = 0", (task_id,))


def add(tx: Transaction, event: pb.TaskEvent) -> Program[None]:
    """Insert a child's event for its parent's log; it is collected after the commit."""
    yield Deferred("task_child_events", INSERT, insert_args(event))
    tx.effects.child_events.add(event.task_id)


def insert_args(event: pb.TaskEvent) -> tuple[str, int, bytes]:
    """Return the arguments of the statement INSERT for a child's event."""
    return event.task_id, event.emitted_at_unix_ms, event.SerializeToString()


def newest() -> Program[int]:
    """Return the number of the newest row; 0: there is none."""
    rows: list[Row] = yield Fetch("SELECT MAX(id) FROM task_child_events")
    return rows[0][0] or 0


def collect(tx: Transaction, up_to: int) -> Program[Collected]:
    """Move the oldest page of child tasks' events to their parents' logs (one node).

    Only rows up to a number.
    """
    page = SMALL_PAGE if tx.context.small else PAGE
    found: list[Row] = yield Fetch(
        "SELECT id, task_id, at_ms, event FROM task_child_events WHERE id <= $1 ORDER BY id LIMIT $2", (up_to, page)
    )
    if found:
        for task_id, left in groupby(sorted(found, key=itemgetter(1)), key=itemgetter(1)):
            yield from _number(tx, task_id, [(at_ms, event) for _, _, at_ms, event in left])
        yield Execute("DELETE FROM task_child_events WHERE id <= $1", (found[-1][0],))
    return Collected(found[-1][0] if len(found) == page else 0)


def collect_locking(tx: Transaction, after: int, up_to: int, without: frozenset[str]) -> Program[Collected]:
    """Move a page of child tasks' events to the logs of parents that are not locked.

    The page begins after the row `after`; only parents with subscribers have rows behind `up_to`
    moved. Skips the parents `without`, as earlier events of theirs are not collected.
    """
    found: list[Row] = yield Fetch(
        "SELECT id, task_id FROM task_child_events WHERE id > $1 "
        "AND (id <= $2 OR task_id IN (SELECT task_id FROM task_watchers)) ORDER BY id LIMIT $3",
        (after, up_to, PAGE),
    )
    locked: frozenset[str] = frozenset()
    names = sorted({task_id for _, task_id in found} - without)
    if names:
        parents: dict[str, str] = dict((yield Fetch(f"{_LOCK} SKIP LOCKED", (names,))))
        missing = [task_id for task_id in names if task_id not in parents]
        if missing:  # deleted, or locked
            there: list[Row] = yield Fetch("SELECT task_id FROM tasks WHERE task_id = ANY($1::text[])", (missing,))
            locked = frozenset(task_id for (task_id,) in there)
        yield from _take(tx, parents, [name for name in names if name not in locked], found[-1][0])
    return Collected(found[-1][0] if len(found) == PAGE else 0, locked)


def collect_for_locking(tx: Transaction, task_id: str) -> Program[int]:
    """Lock a task and move a page of its children's events to its log."""
    parents: dict[str, str] = dict((yield Fetch(_LOCK, ([task_id],))))
    found: list[Row] = yield Fetch(
        "SELECT id FROM task_child_events WHERE task_id = $1 ORDER BY id LIMIT $2", (task_id, PAGE)
    )
    if found:
        yield from _take(tx, parents, [task_id], found[-1][0])
    return len(found)


def _take(tx: Transaction, parents: dict[str, str], names: Sequence[str], last: int) -> Program[None]:
    """Append child tasks' events up to the row `last` to the logs of these parents.

    `parents` has those that are locked, with their parents; events of other tasks are deleted.
    """
    rows: list[Row] = yield Fetch(_TAKE, (names, last))
    left: dict[str, list[tuple[int, bytes]]] = {}
    for _, task_id, at_ms, event in sorted(rows):
        if task_id in parents:
            left.setdefault(task_id, []).append((at_ms, event))
    if left:
        counts = [len(events) for events in left.values()]
        numbers: dict[str, int] = dict((yield Fetch(_COUNT, (list(left), counts))))
        first = {task_id: numbers[task_id] - len(events) + 1 for task_id, events in left.items()}
        yield from tx.record_events({name: (first[name], as_logged(left[name], parents[name])) for name in left})


def take(tx: Transaction, task_id: str, parent_task_id: str) -> Program[list[tuple[int, bytes]]]:
    """Take the oldest page of events of a task's children; its own parent is given.

    The caller writes them to the task's log, and counts them in its row.
    """
    found: list[Row] = yield Fetch(_TAKE_FOR, (task_id, PAGE))
    if found:
        tx.charge(len(found))
    return as_logged([(at_ms, event) for _, at_ms, event in sorted(found)], parent_task_id)


def take_read(task_id: str, parent_task_id: str, left: Sequence[LeftEvent]) -> Program[list[tuple[int, bytes]]]:
    """Take all events of a task's children, which this transaction has read."""
    if left:
        # Not the parent's id is first, as a transaction may insert rows with it meanwhile.
        yield Deferred("task_child_events", _DELETE_READ, (left[-1].id, task_id))
    return as_logged([(one.at_ms, one.event) for one in left], parent_task_id)


def collect_for(tx: Transaction, task_id: str) -> Program[int]:
    """Move a page of child events to the log of a task that this transaction writes."""
    found: list[Row] = yield Fetch(_TAKE_FOR, (task_id, PAGE))
    if found:
        tx.charge(len(found))
        yield from _number(tx, task_id, [(at_ms, event) for _, at_ms, event in sorted(found)])
    return len(found)


def _number(tx: Transaction, task_id: str, left: Sequence[tuple[int, bytes]]) -> Program[None]:
    tx.row_changes(task_id)
    found: list[Row] = yield Fetch(
        "UPDATE tasks SET events = events + $2 WHERE task_id = $1 RETURNING events, parent_task_id",
        (task_id, len(left)),
    )
    if not found:  # the parent was deleted
        return
    last, above = found[0]
    yield from tx.record_events({task_id: (last - len(left) + 1, as_logged(left, above))})


def as_logged(left: Sequence[tuple[int, bytes]], parent_task_id: str) -> list[tuple[int, bytes]]:
    """Return events (time, event) as they are in the log of a task with this parent."""
    if not parent_task_id:
        return list(left)
    events = []
    for at_ms, encoded in left:
        event = pb.TaskEvent.FromString(encoded)
        event.parent_task_id = parent_task_id
        events.append((at_ms, event.SerializeToString()))
    return events
