"""What happens to a worker's tasks as its session begins or ends (tasks.md 1.12).

A worker that connects is assigned what waits for it. A client that resumes a session goes on with
what it had. A client that starts anew has lost its memory, so the tasks that it was running wait
for their grace window, unless it touches them again. When a worker's session ends, tasks that it
had begun wait for their grace window; the others are assigned to other workers at once.

Only a client that claims shows which tasks it has not begun. If the session of a client that never
claims breaks, all its tasks wait for their grace window. Such a client is presumed to work in
order: an attempt fails of the tasks that it reported on, or else of the first that it was assigned,
and of the others a delivery is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from aether_trio.model.tasks import Mode, Move, StoredStatus, TaskRow
from aether_trio.model.tasks.status import HELD
from aether_trio.model.tasks.task import AGENT_STARTUP
from aether_trio.model.tasks.transitions import MAX_DELIVERIES
from aether_trio.services.tasks.transaction import orchestrators, startup, task_rows, tokens, worker_choice
from aether_trio.services.tasks.transaction.task_transaction import TaskTransaction
from aether_trio.services.tasks.transaction.workers import WORKER_FIELDS, Worker
from aether_trio.storage.base import Execute, Fetch, Program, Row, Value

EXCUSE_PAGE: Final = 100
RETURN_MS: Final = 60_000
"""How long workers have for their return to a gateway that was away, at most."""
REMEMBER: Final = """INSERT INTO task_memories (identity, since_ms) VALUES ($1, $2)
    ON CONFLICT (identity) DO UPDATE SET since_ms = excluded.since_ms"""
_JOIN: Final = f"""INSERT INTO task_workers ({WORKER_FIELDS}, free, turn) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
    ON CONFLICT (identity) DO UPDATE SET session_id = excluded.session_id, node = excluded.node, pooled = excluded.pooled,
    live = excluded.live, capacity = excluded.capacity, since_ms = excluded.since_ms, claims = excluded.claims, free = excluded.free,
    turn = excluded.turn"""  # noqa: S608
_MARK_SENT: Final = "UPDATE task_attempts SET node = $3, pushed = 1 WHERE task_id = $1 AND epoch = $2"
_NODES: Final = """WITH RECURSIVE named (node) AS (
        SELECT MIN(node) FROM {0}
        UNION ALL SELECT (SELECT MIN(t.node) FROM {0} t WHERE t.node > named.node) FROM named WHERE named.node IS NOT NULL
    ) SELECT node FROM named WHERE node IS NOT NULL"""
"""By the index, from one name to the next: there are few names, and many rows."""
_NAMED_IN: Final = ("task_workers", "task_outbox", "task_watchers", "task_sessions")
JOIN_IDLE: Final = _JOIN.replace(
    "$9,",
    """CASE CAST($9 AS BIGINT) WHEN 0 THEN coalesce((SELECT m.since_ms FROM task_memories m WHERE m.identity = $1), 0)
    ELSE CAST($9 AS BIGINT) END,""",
)
"""The join of a worker without a task; without `since_ms`, reads it from `task_memories`."""


@dataclass(slots=True, eq=False)
class WorkerJoined:
    """A worker's session that begins: the queued write that `join` makes of it.

    `resumed`: its client continues an earlier session. `task_id`: its token is for this task.
    `rejoined`: it joined before, and its node has a new lease since. The worker's node is the one
    that writes the row.
    """

    worker: Worker
    resumed: bool
    task_id: str = ""
    token: bytes = b""
    """The hash of that token."""
    lineage: tuple[str, ...] = ()
    """The tasks whose end ends the session."""
    rejoined: bool = False
    has_ended: Callable[[], bool] = lambda: False
    """Whether the session has ended: a late join must not replace a later session's row."""
    only_if_busy: bool = False
    """Whether the session takes no tasks of others, and has a row only if it holds a task."""

    def __call__(self, tx: TaskTransaction) -> Program[None]:
        return join(tx, self)

    @property
    def identity(self) -> str:
        return self.worker.identity

    @property
    def by_token(self) -> bool:
        return bool(self.task_id)


@dataclass(slots=True, eq=False)
class WorkerLeft:
    """A worker's ended session; `clean`: by its client, `by_gateway`: by the gateway."""

    identity: str
    session_id: str
    clean: bool
    by_gateway: bool = False
    by_token: bool = False
    """Whether a task token let it in."""

    def __call__(self, tx: TaskTransaction) -> Program[None]:
        return leave(tx, self)


def join(tx: TaskTransaction, joined: WorkerJoined) -> Program[None]:
    """Write that a worker's session has begun, unless it has ended; assign it tasks."""
    if joined.has_ended():
        if joined.task_id:
            yield from _attach_ended(tx, joined)
        return
    worker = joined.worker._replace(node=tx.context.node)
    if joined.lineage:
        if not joined.rejoined and (
            yield from tokens.is_revoked(joined.token)
        ):  # revoked while the session was being let in
            tx.effects.sessions_to_end.append((worker.node, worker.session_id))
            return
        yield from tokens.mark_used(joined.token)
        yield from tokens.add_session(joined.lineage, worker.session_id, worker.identity, worker.node)
    now_ms = tx.context.now_ms
    since_ms = yield from _remembers_since(tx, worker.identity, resumed=joined.resumed)
    if joined.task_id:
        yield from _attach(tx, worker.identity, joined)
    held, kept = yield from _tasks_of(worker.identity)
    if joined.only_if_busy and not held and not kept:
        return
    live = sum(task.task_type != AGENT_STARTUP for task in held)
    before = (yield from tx.find_worker(worker.identity)) if held else None
    silent = before is not None and not before.claims
    first = _presumed_begun(held) if silent else None
    yield Execute(_JOIN, worker_row(worker, live, since_ms, now_ms))
    for task in held:
        if task.status is StoredStatus.RUNNING:
            missed = task.task_id != joined.task_id and task.heartbeat_ms < since_ms
            yield from mark_disconnected(tx, task, missing=missed)
        elif joined.rejoined:
            yield from _send_if_unsent(tx, worker, task)
        elif task.status is StoredStatus.ASSIGNED:
            silently = silent or bool(task.disconnected_ms)
            begun = bool(task.begun) or task is first
            yield from _send_again(tx, worker, task, resumed=joined.resumed, silent=silently, begun=begun)
    for task in kept:
        missed = task.status is StoredStatus.RUNNING and task.heartbeat_ms < since_ms
        yield from mark_disconnected(tx, task, missing=missed)
    current = yield from tx.find_worker(worker.identity)
    if current is not None:
        yield from worker_choice.fill_worker(tx, current)


def _tasks_of(identity: str) -> Program[tuple[list[TaskRow], list[TaskRow]]]:
    """Return the live tasks that a participant was assigned, and those it created."""
    found = yield from task_rows.select_either(
        "holder = $1 AND holder <> ''", "keeper = $1 AND keeper <> ''", (identity,)
    )
    found.sort(key=lambda task: (task.assigned_ms, -task.priority, task.order_us))
    return [task for task in found if task.holder], [task for task in found if task.keeper]


def _presumed_begun(held: Sequence[TaskRow]) -> TaskRow | None:
    """Return the task that a client which never sends CLAIM is presumed to have begun.

    None if it has reported on one. `held` is in the order of assignments, in which it works.
    """
    if any(
        task.status is StoredStatus.RUNNING and task.task_type != AGENT_STARTUP and not task.disconnected_ms
        for task in held
    ):
        return None
    return next((task for task in held if task.status is StoredStatus.ASSIGNED), None)


def _send_again(
    tx: TaskTransaction, worker: Worker, task: TaskRow, *, resumed: bool, silent: bool, begun: bool
) -> Program[None]:
    """Send a worker again a task that it has not begun, or give the task back.

    `silent`: its former session was of a client that never claims; `begun`: that client is presumed
    to have begun this task. A new client does not know what the former client did.
    """
    if silent and not resumed and not begun:
        yield from tx.apply(task, Move.UNASSIGN, tx.facts(lost=not task.excused_ms))
        return
    if silent and not resumed:
        text = f"worker {worker.identity} was given the task and never heard of again"
        yield from tx.apply(task, Move.LOSE, tx.facts(reason=text, error_type="WORKER_LOST"))
        return
    counts = begun and not task.excused_ms
    if counts and task.deliveries + 1 >= MAX_DELIVERIES:
        yield from tx.apply(task, Move.UNASSIGN, tx.facts(lost=True))
        return
    told = task.changed({"disconnected_ms": 0, "excused_ms": 0, "begun": 0, "deliveries": task.deliveries + counts})
    if silent:
        yield from tx.write(task, told, "")
    yield from worker_choice.send(tx, told, worker)
    yield Execute(_MARK_SENT, (task.task_id, task.epoch, worker.node))


def _send_if_unsent(tx: TaskTransaction, worker: Worker, task: TaskRow) -> Program[None]:
    """Send a worker a task that another node assigned while its node had no lease."""
    if task.status in (StoredStatus.ASSIGNED, StoredStatus.STARTING):
        untold: int = yield Execute(f"{_MARK_SENT} AND pushed = 0", (task.task_id, task.epoch, worker.node))
        if untold:
            yield from worker_choice.send(tx, task, worker)


def _remembers_since(tx: TaskTransaction, identity: str, *, resumed: bool) -> Program[int]:
    """Return when (Unix ms) a session's client began; it remembers tasks since then.

    A client that resumes may have started anew after another client of its name was lost.
    """
    if resumed:
        found: list[Row] = yield Fetch("SELECT since_ms FROM task_memories WHERE identity = $1", (identity,))
        return found[0][0] if found else 0
    yield Execute(REMEMBER, (identity, tx.context.now_ms))
    return tx.context.now_ms


def worker_row(worker: Worker, live: int, since_ms: int, now_ms: int) -> tuple[Value, ...]:
    """Return the SQL arguments of a worker's join; `live` is its number of live tasks."""
    numbers = int(worker.pooled), live, worker.capacity, since_ms, int(worker.claims), int(live < worker.capacity)
    return (*worker[:5], *numbers, now_ms * 1000)


def _attach(tx: TaskTransaction, identity: str, joined: WorkerJoined) -> Program[None]:
    task = yield from task_rows.load(joined.task_id)
    if task is not None and task.task_type == AGENT_STARTUP:
        yield from startup.attach(tx, task, identity, joined.token)
    elif task is not None:
        yield from tx.apply(task, Move.ATTACH, tx.facts(identity))


def _attach_ended(tx: TaskTransaction, joined: WorkerJoined) -> Program[None]:
    """Write that the agent of a start has connected, and left before that was written.

    Otherwise an agent that fails at once would count as one that could not be started.
    """
    task = yield from task_rows.load(joined.task_id)
    if task is None or task.task_type != AGENT_STARTUP or task.status is not StoredStatus.STARTING:
        return
    is_back = (yield from tx.find_worker(joined.identity)) is not None
    if is_back or task.target != joined.identity or (yield from tokens.is_revoked(joined.token)):
        return
    yield from startup.attach(tx, task, joined.identity, joined.token)
    task = (yield from task_rows.load(joined.task_id)) or task
    yield from startup.agent_lost(tx, task, by_gateway=False)


def mark_disconnected(
    tx: TaskTransaction, task: TaskRow, *, missing: bool, by_gateway: bool = False, begun: bool = False
) -> Program[None]:
    """Write that a task's worker is missing, or that it is back.

    A worker that is missing longer keeps its first moment. `begun`: the worker is presumed to have
    begun the task. `by_gateway`: its gateway has ended, so no heartbeat can come before the worker
    is back. When it is back, or has started anew and does not know the task, heartbeats are due
    again.
    """
    now_ms = tx.context.now_ms
    expected_ms = now_ms + task.heartbeat_timeout_ms
    changes: dict[str, int] = {}
    if missing != bool(task.disconnected_ms) and (task.grace_ms or not missing):
        changes["disconnected_ms"] = now_ms if missing else 0
        if missing and by_gateway:
            changes["excused_ms"] = now_ms + return_ms(task)
        elif task.excused_ms:
            changes["excused_ms"] = expected_ms
    elif missing and not by_gateway and task.excused_ms > expected_ms:
        changes["excused_ms"] = expected_ms
    if begun and not task.begun:
        changes["begun"] = 1
    if changes:
        yield from tx.write(task, task.changed(changes), "")


def return_ms(task: TaskRow) -> int:
    """Return how long a task's worker has to return to a gateway that was away."""
    return min(task.grace_ms, RETURN_MS)


def restarted_grace(task: TaskRow, now_ms: int) -> dict[str, int]:
    """Return changes that begin a task's grace window anew, as its gateway was away."""
    return {"disconnected_ms": now_ms, "excused_ms": now_ms + return_ms(task)}


def restart_graces(tx: TaskTransaction, before_ms: int) -> Program[int]:
    """Begin a page of missing workers' grace windows anew; return how many tasks."""
    page = 0
    for column in ("holder", "keeper"):
        found = yield from task_rows.select(
            f"{column} <> '' AND disconnected_ms > 0 AND disconnected_ms < $1 ORDER BY {column}, task_id LIMIT $2",
            (before_ms, EXCUSE_PAGE),
        )
        # After a clock was set back, the next page must not find these again.
        now_ms = max(tx.context.now_ms, before_ms)
        for task in found:
            yield from tx.write(task, task.changed(restarted_grace(task, now_ms)), "")
        page = max(page, len(found))
    return page


def leave(tx: TaskTransaction, left: WorkerLeft) -> Program[None]:
    """Write that a worker's latest session has ended; give back or suspend its tasks."""
    if left.by_token:
        yield from tokens.remove_session(left.session_id)
    found: list[Row] = yield Fetch("SELECT session_id, claims FROM task_workers WHERE identity = $1", (left.identity,))
    if not found or found[0][0] != left.session_id:
        return
    yield Execute("DELETE FROM task_workers WHERE identity = $1", (left.identity,))
    silent = not found[0][1] and not left.clean
    held, kept = yield from _tasks_of(left.identity)
    first = _presumed_begun(held) if silent else None
    for task in held:
        if task.task_type == AGENT_STARTUP and task.status is StoredStatus.RUNNING and left.clean and task.attached:
            yield from startup.agent_left(tx, task, left.identity)
        elif left.clean and task.attached:
            facts = tx.facts(left.identity, caller_epoch=task.epoch)
            yield from tx.apply(task, Move.COMPLETE, facts)
        elif task.status is StoredStatus.RUNNING and task.task_type == AGENT_STARTUP:
            yield from startup.agent_lost(tx, task, by_gateway=left.by_gateway)
        elif task.status is StoredStatus.RUNNING or (silent and task.status is StoredStatus.ASSIGNED):
            yield from mark_disconnected(tx, task, missing=True, by_gateway=left.by_gateway, begun=task is first)
        elif task.mode is not Mode.SELF_ASSIGN:
            counts = task.status is StoredStatus.ASSIGNED or not left.clean
            yield from tx.apply(task, Move.UNASSIGN, tx.facts(lost=counts and not left.by_gateway))
    for task in kept:
        if task.status in HELD:
            yield from mark_disconnected(tx, task, missing=True, by_gateway=left.by_gateway)
    if left.by_token:
        yield from startup.agent_gone(tx, left.identity)


def record_heartbeat(tx: TaskTransaction, identity: str, task_id: str, number: str = "") -> Program[TaskRow | None]:
    """Write that a worker is at work on a task; return the task if the worker has it.

    With the `number` of an assignment: if the worker has the task by that assignment.
    """
    task = yield from task_rows.load(task_id)
    if task is None or task.assigned_to != identity or (number and number != str(task.epoch)):
        return None
    if task.status is StoredStatus.ASSIGNED:
        yield from tx.apply(task, Move.CLAIM, tx.facts(identity, caller_epoch=task.epoch))
        return (yield from task_rows.load(task_id))
    if task.status is not StoredStatus.RUNNING:
        return None
    if task.heartbeat_timeout_ms or task.disconnected_ms:
        after = task.changed({"heartbeat_ms": tx.context.now_ms, "disconnected_ms": 0, "excused_ms": 0})
        yield from tx.write(task, after, "")
        return after
    return task


def nodes_with_rows() -> Program[list[str]]:
    """Return the names of all nodes that rows of the tasks' tables have."""
    names: dict[str, None] = {}
    for table in _NAMED_IN:
        rows_found: list[Row] = yield Fetch(_NODES.format(table))
        names.update(dict.fromkeys(node for (node,) in rows_found))
    return list(names)


def end_sessions_of(tx: TaskTransaction, node: str, page: int) -> Program[int]:
    """End a page of the worker sessions of an ended node; return how many."""
    found: list[Row] = yield Fetch(
        "SELECT identity, session_id FROM task_workers WHERE node = $1 ORDER BY identity LIMIT $2", (node, page)
    )
    for identity, session_id in found:
        yield from leave(tx, WorkerLeft(identity, session_id, clean=False, by_gateway=True))
        yield from orchestrators.leave(identity, session_id)
        if (yield from startup.was_started(identity)):
            tx.effects.lost_agents.append(identity)
    yield Execute("DELETE FROM task_sessions WHERE node = $1", (node,))
    yield Execute("UPDATE task_outbox SET node = $2 WHERE node = $1", (node, tx.context.node))
    yield Execute("DELETE FROM task_watchers WHERE node = $1", (node,))
    tx.effects.outbox = True
    return len(found)
