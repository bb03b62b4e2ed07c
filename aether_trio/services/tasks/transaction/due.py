"""Handles due deadlines, retries and timeouts of tasks, and finds the next one.

model/tasks/timed_transitions.py says what falls due when. The transaction that reads a due row and
writes it does the move: the transaction of another node runs again then, and finds a later moment.
On a shared database, rows that another node has locked are skipped.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from aether_trio.model.tasks import MoveStep, StoredStatus, TaskRow
from aether_trio.model.tasks.task import AGENT_STARTUP
from aether_trio.model.tasks.timed_transitions import Due, happening, move_of, next_due
from aether_trio.services.tasks.transaction import startup, task_rows
from aether_trio.services.tasks.transaction.sessions import restarted_grace
from aether_trio.services.tasks.transaction.task_transaction import TaskTransaction
from aether_trio.storage.base import Execute, Fetch, Program, Row

PAGE: Final = 100
FORGET_PAGE: Final = 500
REFUSED_MS: Final = 60_000
LEAST_EXCUSE_MS: Final = 1_000
"""So that a very short limit does not fall due again and again while a heartbeat waits."""

_DUE: Final = "due_ms > 0 AND due_ms <= $1 ORDER BY due_ms LIMIT $2"


class Outage(NamedTuple):
    """When the database was unavailable (Unix ms): from its last answer to the next."""

    since_ms: int
    until_ms: int


NO_OUTAGE: Final = Outage(0, 0)


class Heartbeat(NamedTuple):
    """A participant's report on a task or, if `task_id` is empty, its connection."""

    identity: str
    task_id: str = ""


class SilenceExcuse(NamedTuple):
    """Why a worker may seem silent: an outage, or heartbeats that are not yet written."""

    in_outage: Outage = NO_OUTAGE
    heartbeats: frozenset[Heartbeat] = frozenset()

    def excuses(self, task: TaskRow) -> bool:
        """Return whether the outage or an unwritten heartbeat explains a worker's silence."""
        if self.in_outage.since_ms <= task.due_ms <= self.in_outage.until_ms:
            return True
        name = task.assigned_to
        wanted = (Heartbeat(name), Heartbeat(name, task.task_id), Heartbeat(task.target))
        return not self.heartbeats.isdisjoint(wanted)


NO_EXCUSE: Final = SilenceExcuse()


def fire(
    tx: TaskTransaction,
    *,
    shared: bool,
    excuse: SilenceExcuse = NO_EXCUSE,
    one: bool = False,
    looked: list[str] | None = None,
) -> Program[int]:
    """Handle a page of due tasks, or one.

    Those that the `excuse` covers are given more time, and `looked` the ids of the tasks.
    """
    now_ms = tx.context.now_ms
    found = yield from task_rows.select(
        _DUE + (" FOR UPDATE SKIP LOCKED" if shared else ""), (now_ms, 1 if one else PAGE)
    )
    handled = 0
    for seen in found:
        if tx.is_full:
            break
        handled += 1
        if looked is not None:
            looked.append(seen.task_id)
        # Load it again: the move of another task of the page may have changed it.
        task = yield from task_rows.load(seen.task_id)
        due = happening(task, tx.context.limits, now_ms) if task is not None else None
        if task is None:
            continue
        if due is None:
            yield from task_rows.save(task, task.changed({"due_ms": next_due(task, tx.context.limits)}))
        elif excuse.excuses(task) and (changes := _put_off(task, due, now_ms)):
            yield from tx.write(task, task.changed(changes), "")
        elif (
            due is Due.FORGET
            and task.workflow
            and (again_ms := (yield from tx.context.workflows.forget_part(tx, task)))
        ):
            yield from task_rows.save(task, task.changed({"due_ms": now_ms + again_ms}))
        elif due is Due.FORGET:
            yield from task_rows.delete(task.task_id)
            if task.workflow:
                yield from tx.context.workflows.forgotten(task)
            yield from startup.forget_start(task)
            yield from tx.wake_dependents(task.task_id)
        else:
            if due is Due.SCHEDULE_TO_START and task.task_type == AGENT_STARTUP:
                task = yield from startup.ask_others(tx, task)
            present = yield from tx.worker_is_present(task)
            move, facts = move_of(task, due, tx.facts(present=present))
            if not isinstance((yield from tx.apply(task, move, facts)), MoveStep):
                # A moment without an allowed move must not be due for ever.
                yield from task_rows.save(task, task.changed({"due_ms": now_ms + REFUSED_MS}))
    yield Execute(
        "DELETE FROM task_keys WHERE key_hash IN (SELECT key_hash FROM task_keys WHERE expires_ms <= $1 LIMIT $2)",
        (now_ms, FORGET_PAGE),
    )
    expired = (
        "SELECT hash FROM task_tokens WHERE expires_ms > 0 AND expires_ms <= $1 ORDER BY expires_ms, hash LIMIT $2"
    )
    for table in ("task_descents", "task_tokens"):
        yield Execute(f"DELETE FROM {table} WHERE hash IN ({expired})", (now_ms, FORGET_PAGE))  # noqa: S608
    return handled


def put_off(tx: TaskTransaction, task_id: str) -> Program[None]:
    """Have a task looked at again in a minute, as its moment could not be handled."""
    task = yield from task_rows.load(task_id)
    if task is not None and task.due_ms:
        yield from task_rows.save(task, task.changed({"due_ms": tx.context.now_ms + REFUSED_MS}))


def _put_off(task: TaskRow, due: Due, now_ms: int) -> Mapping[str, Any]:
    """Return the changes that give a task with a silent worker more time; else none."""
    match due:
        case Due.GRACE_OVER if not task.process_ended:
            return restarted_grace(task, now_ms + max(LEAST_EXCUSE_MS - task.grace_ms, 0))
        case Due.HEARTBEAT:
            return {"excused_ms": now_ms + max(task.heartbeat_timeout_ms, LEAST_EXCUSE_MS)}
        case Due.SCHEDULE_TO_START if task.status is StoredStatus.STARTING:
            return {"excused_ms": now_ms + task.schedule_to_start_ms}
    return _NO_SILENCE


_NO_SILENCE: Final[Mapping[str, Any]] = MappingProxyType({})


_MOMENTS: Final = (
    ("due_ms", "tasks"),
    ("expires_ms", "task_keys"),
    ("expires_ms", "task_tokens"),
    ("due_ms", "workflow_timers"),
)


def next_moment() -> Program[int]:
    """Return when the next task, key, token or workflow is due (Unix ms), or 0."""
    moments = []
    for column, table in _MOMENTS:
        found: list[Row] = yield Fetch(f"SELECT MIN({column}) FROM {table} WHERE {column} > 0")  # noqa: S608
        if found[0][0] is not None:
            moments.append(found[0][0])
    return min(moments, default=0)
