"""What the coming and going of sessions means to tasks; parts of a program each (reference: tasks.md 1.12, 2.4).

A worker that comes is given what waits for it. One that comes back (its client names the session before) goes on with what it had; one
that comes anew has lost its memory, so what it was running waits for its grace window, unless it touches the task again. One that goes
leaves what it had begun to its grace window, and what it had not to others, at once. Only a client that claims shows what it has not begun:
of one that never has, and whose session breaks, what it was given waits for its grace window as well. It is taken to work in order: an attempt
fails of what it reported on, or else of the first that it was given, and of the others a delivery is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from aether_trio.model.tasks import Mode, Move, Status, Task
from aether_trio.model.tasks.status import HELD
from aether_trio.model.tasks.table import MAX_DELIVERIES
from aether_trio.model.tasks.task import AGENT_STARTUP
from aether_trio.services.tasks.transaction import assignment, startup, task_rows, tokens
from aether_trio.services.tasks.transaction.interface import NewAssignment
from aether_trio.services.tasks.transaction.task_transaction import TaskTransaction
from aether_trio.services.tasks.transaction.workers import WORKER_FIELDS, Worker
from aether_trio.storage.base import Execute, Fetch, Program, Row, Value

EXCUSE_PAGE: Final = 100
RETURN_MS: Final = 60_000
"""For coming back to a gateway that was away, at most: a missing report counts afterwards, however long the grace window is."""
REMEMBER: Final = """INSERT INTO task_memories (identity, since_ms) VALUES ($1, $2)
    ON CONFLICT (identity) DO UPDATE SET since_ms = excluded.since_ms"""
_JOIN: Final = f"""INSERT INTO task_workers ({WORKER_FIELDS}, free, turn) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
    ON CONFLICT (identity) DO UPDATE SET session_id = excluded.session_id, node = excluded.node, pooled = excluded.pooled,
    live = excluded.live, capacity = excluded.capacity, since_ms = excluded.since_ms, claims = excluded.claims, free = excluded.free,
    turn = excluded.turn"""  # noqa: S608
_TOLD: Final = "UPDATE task_attempts SET node = $3, pushed = 1 WHERE task_id = $1 AND epoch = $2"
_NODES: Final = """WITH RECURSIVE named (node) AS (
        SELECT MIN(node) FROM {0}
        UNION ALL SELECT (SELECT MIN(t.node) FROM {0} t WHERE t.node > named.node) FROM named WHERE named.node IS NOT NULL
    ) SELECT node FROM named WHERE node IS NOT NULL"""
"""By the index, from one name to the next: there are few names, and any number of rows."""
_NAMED_IN: Final = ("task_workers", "task_outbox", "task_watchers", "task_sessions")
JOIN_IDLE: Final = _JOIN.replace(
    "$9,",
    """CASE CAST($9 AS BIGINT) WHEN 0 THEN coalesce((SELECT m.since_ms FROM task_memories m WHERE m.identity = $1), 0)
    ELSE CAST($9 AS BIGINT) END,""",
)
"""Of a worker without a task. Since when it remembers is looked up if it is not given."""


@dataclass(frozen=True, slots=True)
class WorkerJoined:
    """A session that may be given work. `back`: its client continues an earlier one. `task_id`: its token is for this task.

    `again`: it has joined before, and its node was taken for dead since. The worker's node is the one that writes it.
    """

    worker: Worker
    back: bool
    task_id: str = ""
    token: bytes = b""
    """The hash of that token."""
    lineage: tuple[str, ...] = ()
    """The tasks that it may not outlive."""
    again: bool = False
    over: Callable[[], bool] = lambda: False
    """Whether it has ended by now: written late, as storage was away, it would take the place of one that came after it, on another node."""
    guest: bool = False
    """It takes no work, and matters only if it has some of its own in hand."""


@dataclass(frozen=True, slots=True)
class WorkerLeft:
    """A session that is over. `clean`: its client has ended its stream, and meant it. `by_gateway`: the client is not to blame."""

    identity: str
    session_id: str
    clean: bool
    by_gateway: bool = False
    let_in: bool = False
    """Whether a token has let it in."""


def join(tx: TaskTransaction, joined: WorkerJoined) -> Program[None]:
    """A session begins. Nothing, if it is over by now: its end would not be either, if another one has come meanwhile."""
    if joined.over():
        return
    worker = joined.worker._replace(node=tx.context.node)
    if joined.lineage:
        if not joined.again and (yield from tokens.is_revoked(joined.token)):  # while it was being let in
            tx.effects.sessions_to_end.append((worker.node, worker.session_id))
            return
        yield from tokens.mark_used(joined.token)
        yield from tokens.add_session(joined.lineage, worker.session_id, worker.identity, worker.node)
    now_ms = tx.context.now_ms
    since_ms = yield from _memory(tx, worker.identity, back=joined.back)
    if joined.task_id:
        yield from _attach(tx, worker.identity, joined)
    held, kept = yield from _hands(worker.identity)
    if joined.guest and not held and not kept:
        return
    live = sum(task.task_type != AGENT_STARTUP for task in held)
    before = (yield from tx.find_worker(worker.identity)) if held else None
    silent = before is not None and not before.claims
    first = _begun(held) if silent else None
    yield Execute(_JOIN, worker_row(worker, live, since_ms, now_ms))
    for task in held:
        if task.status is Status.RUNNING:
            missed = task.task_id != joined.task_id and task.heartbeat_ms < since_ms
            yield from mark_disconnected(tx, task, missing=missed)
        elif joined.again:
            yield from _push_untold(tx, worker, task)
        elif task.status is Status.ASSIGNED:
            silently = silent or bool(task.disconnected_ms)
            begun = bool(task.begun) or task is first
            yield from _give_again(tx, worker, task, back=joined.back, silent=silently, begun=begun)
    for task in kept:
        missed = task.status is Status.RUNNING and task.heartbeat_ms < since_ms
        yield from mark_disconnected(tx, task, missing=missed)
    current = yield from tx.find_worker(worker.identity)
    if current is not None:
        yield from assignment.fill_worker(tx, current)


def _hands(identity: str) -> Program[tuple[list[Task], list[Task]]]:
    """What a participant was given and has not ended, and what it has assigned to itself; in the order in which it was given them."""
    found = yield from task_rows.select_either(
        "holder = $1 AND holder <> ''", "keeper = $1 AND keeper <> ''", (identity,)
    )
    found.sort(key=lambda task: (task.assigned_ms, -task.priority, task.order_us))
    return [task for task in found if task.holder], [task for task in found if task.keeper]


def _begun(held: Sequence[Task]) -> Task | None:
    """Of what a client has that does not say when it begins, the one that it is taken to have begun without a report; None if it has reported.

    It works in the order in which it was given them, as the published clients do; `held` has it.
    """
    if any(
        task.status is Status.RUNNING and task.task_type != AGENT_STARTUP and not task.disconnected_ms for task in held
    ):
        return None
    return next((task for task in held if task.status is Status.ASSIGNED), None)


def _give_again(
    tx: TaskTransaction, worker: Worker, task: Task, *, back: bool, silent: bool, begun: bool
) -> Program[None]:
    """Tell a worker what it has not begun: it may not have been told, or not have heard.

    `silent`: its session before was of a client that does not say when it begins, and is taken to have `begun` this one. A new client does
    not know what that one did.
    """
    if silent and not back and not begun:
        yield from tx.apply(task, Move.UNASSIGN, tx.facts(lost=not task.excused_ms))
        return
    if silent and not back:
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
    yield from _push(tx, worker, told)
    yield Execute(_TOLD, (task.task_id, task.epoch, worker.node))


def _push(tx: TaskTransaction, worker: Worker, task: Task) -> Program[None]:
    payload = yield from tx.payload_of(task.task_id)
    tx.effects.assignments.append(NewAssignment(task, worker, payload))


def _push_untold(tx: TaskTransaction, worker: Worker, task: Task) -> Program[None]:
    """Tell a worker what another node has given it while its own was taken for dead."""
    if task.status in (Status.ASSIGNED, Status.STARTING):
        untold: int = yield Execute(f"{_TOLD} AND pushed = 0", (task.task_id, task.epoch, worker.node))
        if untold:
            yield from _push(tx, worker, task)


def _memory(tx: TaskTransaction, identity: str, *, back: bool) -> Program[int]:
    """Since when the client of this session remembers. One that is back may have come, anew, after another of its name was lost."""
    if back:
        found: list[Row] = yield Fetch("SELECT since_ms FROM task_memories WHERE identity = $1", (identity,))
        return found[0][0] if found else 0
    yield Execute(REMEMBER, (identity, tx.context.now_ms))
    return tx.context.now_ms


def worker_row(worker: Worker, live: int, since_ms: int, now_ms: int) -> tuple[Value, ...]:
    """What joining writes of a worker that has so many live tasks."""
    return (
        worker.identity,
        worker.session_id,
        worker.node,
        worker.workspace,
        worker.implementation,
        int(worker.pooled),
        live,
        worker.capacity,
        since_ms,
        int(worker.claims),
        int(live < worker.capacity),
        now_ms * 1000,
    )


def _attach(tx: TaskTransaction, identity: str, joined: WorkerJoined) -> Program[None]:
    task = yield from task_rows.load(joined.task_id)
    if task is not None and task.task_type == AGENT_STARTUP:
        yield from startup.attach(tx, task, identity, joined.token)
    elif task is not None:
        yield from tx.apply(task, Move.ATTACH, tx.facts(identity))


def mark_disconnected(
    tx: TaskTransaction, task: Task, *, missing: bool, by_gateway: bool = False, begun: bool = False
) -> Program[None]:
    """Say of a task that its worker is missing, or that it is there; a session that is missed longer keeps its first moment.

    `begun`: the worker is taken to have begun it, without a word. `by_gateway`: its gateway is gone, so the worker can show no sign
    of life before it is back. When it is back, or has come anew and knows nothing of the task, one is expected again.
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


def return_ms(task: Task) -> int:
    """How long its worker has for coming back to a gateway that was away."""
    return min(task.grace_ms, RETURN_MS)


def restarted_grace(task: Task, now_ms: int) -> dict[str, int]:
    """The worker of this task, which is missing, could not come back so far: its grace begins now."""
    return {"disconnected_ms": now_ms, "excused_ms": now_ms + return_ms(task)}


def restart_graces(tx: TaskTransaction, before_ms: int) -> Program[int]:
    """No gateway was there: those who are missing since then have their grace from now on. How many, a page at most."""
    page = 0
    for column in ("holder", "keeper"):
        found = yield from task_rows.select(
            f"{column} <> '' AND disconnected_ms > 0 AND disconnected_ms < $1 ORDER BY {column}, task_id LIMIT $2",
            (before_ms, EXCUSE_PAGE),
        )
        now_ms = max(tx.context.now_ms, before_ms)  # or a clock that was set back meanwhile has them found again
        for task in found:
            yield from tx.write(task, task.changed(restarted_grace(task, now_ms)), "")
        page = max(page, len(found))
    return page


def leave(tx: TaskTransaction, left: WorkerLeft) -> Program[None]:
    """A session has ended. Nothing more, if its identity has another one by now."""
    if left.let_in:
        yield from tokens.remove_session(left.session_id)
    found: list[Row] = yield Fetch("SELECT session_id, claims FROM task_workers WHERE identity = $1", (left.identity,))
    if not found or found[0][0] != left.session_id:
        return
    yield Execute("DELETE FROM task_workers WHERE identity = $1", (left.identity,))
    silent = not found[0][1] and not left.clean
    held, kept = yield from _hands(left.identity)
    first = _begun(held) if silent else None
    for task in held:
        if left.clean and task.attached:
            facts = tx.facts(left.identity, caller_epoch=task.epoch)
            yield from tx.apply(task, Move.COMPLETE, facts)
        elif task.status is Status.RUNNING and task.task_type == AGENT_STARTUP:
            yield from startup.agent_lost(tx, task, by_gateway=left.by_gateway)
        elif task.status is Status.RUNNING or (silent and task.status is Status.ASSIGNED):
            yield from mark_disconnected(tx, task, missing=True, by_gateway=left.by_gateway, begun=task is first)
        elif task.mode is not Mode.SELF_ASSIGN:
            counts = task.status is Status.ASSIGNED or not left.clean
            yield from tx.apply(task, Move.UNASSIGN, tx.facts(lost=counts and not left.by_gateway))
    for task in kept:
        if task.status in HELD:
            yield from mark_disconnected(tx, task, missing=True, by_gateway=left.by_gateway)


def record_heartbeat(tx: TaskTransaction, identity: str, task_id: str) -> Program[Task | None]:
    """A worker shows that it is at work on a task; the task, if it is its."""
    task = yield from task_rows.load(task_id)
    if task is None or task.assigned_to != identity:
        return None
    if task.status is Status.ASSIGNED:
        yield from tx.apply(task, Move.CLAIM, tx.facts(identity, caller_epoch=task.epoch))
        return (yield from task_rows.load(task_id))
    if task.status is not Status.RUNNING:
        return None
    if task.heartbeat_timeout_ms or task.disconnected_ms:
        after = task.changed({"heartbeat_ms": tx.context.now_ms, "disconnected_ms": 0, "excused_ms": 0})
        yield from tx.write(task, after, "")
        return after
    return task


def nodes_with_rows() -> Program[list[str]]:
    """Every node that rows are kept of."""
    names: dict[str, None] = {}
    for table in _NAMED_IN:
        rows_found: list[Row] = yield Fetch(_NODES.format(table))
        names.update(dict.fromkeys(node for (node,) in rows_found))
    return list(names)


def end_sessions_of(tx: TaskTransaction, node: str, page: int) -> Program[int]:
    """A node is gone: its sessions have ended, uncleanly; how many of them, a page at most."""
    found: list[Row] = yield Fetch(
        "SELECT identity, session_id FROM task_workers WHERE node = $1 ORDER BY identity LIMIT $2", (node, page)
    )
    for identity, session_id in found:
        yield from leave(tx, WorkerLeft(identity, session_id, clean=False, by_gateway=True))
        yield from startup.orchestrator_left(identity, session_id)
        if (yield from startup.was_started(identity)):
            tx.effects.lost_agents.append(identity)
    yield Execute("DELETE FROM task_sessions WHERE node = $1", (node,))
    yield Execute("UPDATE task_outbox SET node = $2 WHERE node = $1", (node, tx.context.node))
    yield Execute("DELETE FROM task_watchers WHERE node = $1", (node,))
    tx.effects.outbox = True
    return len(found)
