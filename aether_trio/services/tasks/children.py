"""A parent's log tells of its children, without a row that all of them write.

    a child's transaction ──▶ a row of its own in task_child_events ──▶ taken up: numbered in the parent's log, a page at a time

A child leaves its event in its own transaction, by an insert. Some node takes it up soon after that, in one transaction that counts it in
the parent's row, writes it to the parent's log and deletes what was left: so it is in the log once, whatever ends in between.

Invariants: the events of one child keep their order (the id of a row is given when its transaction has seen the ones before); the parent's
log has what its children had done before each event of its own (`Work.take_up`), its end among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Final

from aether_trio.storage.base import Aside, Execute, Fetch, Program, Row
from aether_trio.wire.pb import aether_pb2 as pb

if TYPE_CHECKING:
    from aether_trio.services.tasks.transaction import Work

PAGE: Final = 200
GATHER_S: Final = 0.05
"""Between two transactions that take up: what comes meanwhile shares the next one."""


def mark(task_id: str) -> Program[None]:
    """Note in a task's row that it has children."""
    yield Execute("UPDATE tasks SET has_children = 1 WHERE task_id = $1 AND has_children = 0", (task_id,))


def leave(work: Work, event: pb.TaskEvent) -> Program[None]:
    """Leave an event for the log of the task that it names."""
    yield Aside(
        "task_child_events",
        "INSERT INTO task_child_events (task_id, at_ms, event) VALUES ($1, $2, $3)",
        (event.task_id, event.emitted_at_unix_ms, event.SerializeToString()),
    )
    work.parents.add(event.task_id)


def take_up(work: Work) -> Program[int]:
    """Take up a page of what was left, the oldest first; how many events."""
    found: list[Row] = yield Fetch(
        "SELECT id, task_id, at_ms, event FROM task_child_events ORDER BY id LIMIT $1", (PAGE,)
    )
    if found:
        for task_id, left in groupby(sorted(found, key=itemgetter(1)), key=itemgetter(1)):
            yield from _number(work, task_id, [(at_ms, event) for _, _, at_ms, event in left])
        yield Execute("DELETE FROM task_child_events WHERE id <= $1", (found[-1][0],))
    return len(found)


def take_up_of(work: Work, task_id: str) -> Program[int]:
    """Take up a page of what was left for one task; how many events."""
    found: list[Row] = yield Fetch(
        "SELECT id, at_ms, event FROM task_child_events WHERE task_id = $1 ORDER BY id LIMIT $2", (task_id, PAGE)
    )
    if found:
        work.look_at(len(found))
        yield from _number(work, task_id, [(at_ms, event) for _, at_ms, event in found])
        yield Execute("DELETE FROM task_child_events WHERE task_id = $1 AND id <= $2", (task_id, found[-1][0]))
    return len(found)


def _number(work: Work, task_id: str, left: Sequence[tuple[int, bytes]]) -> Program[None]:
    found: list[Row] = yield Fetch(
        "UPDATE tasks SET events = events + $2 WHERE task_id = $1 RETURNING events, parent_task_id",
        (task_id, len(left)),
    )
    if not found:  # the parent was deleted
        return
    last, above = found[0]
    events = []
    for at_ms, encoded in left:
        event = pb.TaskEvent.FromString(encoded)
        event.parent_task_id = above
        events.append((at_ms, event.SerializeToString()))
    yield from work.record_all(task_id, last - len(left) + 1, events)
