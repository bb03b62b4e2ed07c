"""What the coming and going of sessions means to tasks; parts of a program each (reference: tasks.md 1.12, 2.4).

A worker that comes is given what waits for it. One that comes back (its client names the session before) goes on with what it had; one
that comes anew has lost its memory, so what it was running waits for its grace window, unless it touches the task again. One that goes
leaves what it had begun to its grace window, and what it had not to others, at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from aether_trio.model.tasks import Mode, Move, Status, Task
from aether_trio.model.tasks.task import AGENT_STARTUP
from aether_trio.services.tasks import handing, rows, startups, tokens
from aether_trio.services.tasks.rows import WORKER_FIELDS, Worker
from aether_trio.services.tasks.transaction import Push, Work
from aether_trio.storage.base import Execute, Fetch, Program, Row, Value

REMEMBER: Final = """INSERT INTO task_memories (identity, since_ms) VALUES ($1, $2)
    ON CONFLICT (identity) DO UPDATE SET since_ms = excluded.since_ms"""
_JOIN: Final = f"""INSERT INTO task_workers ({WORKER_FIELDS}, free, turn) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
    ON CONFLICT (identity) DO UPDATE SET session_id = excluded.session_id, node = excluded.node, pooled = excluded.pooled,
    live = excluded.live, capacity = excluded.capacity, since_ms = excluded.since_ms, free = excluded.free, turn = excluded.turn"""  # noqa: S608
_TOLD: Final = "UPDATE task_attempts SET node = $3, pushed = 1 WHERE task_id = $1 AND epoch = $2"
_NODES: Final = """WITH RECURSIVE named (node) AS (
        SELECT MIN(node) FROM {0}
        UNION ALL SELECT (SELECT MIN(t.node) FROM {0} t WHERE t.node > named.node) FROM named WHERE named.node IS NOT NULL
    ) SELECT node FROM named WHERE node IS NOT NULL"""
"""By the index, from one name to the next: there are few names, and any number of rows."""
_NAMED_IN: Final = ("task_workers", "task_outbox", "task_watchers", "task_sessions")
JOIN_CALMLY: Final = _JOIN.replace(
    "$9,",
    """CASE CAST($9 AS BIGINT) WHEN 0 THEN coalesce((SELECT m.since_ms FROM task_memories m WHERE m.identity = $1), 0)
    ELSE CAST($9 AS BIGINT) END,""",
)
"""Of a worker without a task. Since when it remembers is looked up if it is not given."""


@dataclass(frozen=True, slots=True)
class Joined:
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


@dataclass(frozen=True, slots=True)
class Left:
    """A session that is over. `clean`: its client has ended its stream, and meant it. `by_gateway`: the client is not to blame."""

    identity: str
    session_id: str
    clean: bool
    by_gateway: bool = False
    let_in: bool = False
    """Whether a token has let it in."""


def join(work: Work, joined: Joined) -> Program[None]:
    """A session begins. Nothing, if it is over by now: its end would not be either, if another one has come meanwhile."""
    if joined.over():
        return
    worker = joined.worker._replace(node=work.context.node)
    if joined.lineage:
        if not joined.again and (yield from tokens.is_revoked(joined.token)):  # while it was being let in
            work.outlived.append((worker.node, worker.session_id))
            return
        yield from tokens.used(joined.token)
        yield from tokens.let_in(joined.lineage, worker.session_id, worker.identity, worker.node)
    now_ms = work.context.now_ms
    since_ms = yield from _memory(work, worker.identity, back=joined.back)
    if joined.task_id:
        yield from _attach(work, worker.identity, joined.task_id)
    held = yield from rows.select("holder = $1 AND holder <> '' ORDER BY order_us", (worker.identity,))
    live = sum(task.task_type != AGENT_STARTUP for task in held)
    yield Execute(_JOIN, worker_row(worker, live, since_ms, now_ms))
    for task in held:
        if task.status is Status.RUNNING:
            missed = task.task_id != joined.task_id and task.heartbeat_ms < since_ms
            yield from mark(work, task, missing=missed)
        elif joined.again:
            yield from _push_untold(work, worker, task)
        elif task.status is Status.ASSIGNED:
            # It may not have been told, or not have heard.
            yield from _push(work, worker, task)
            yield Execute(_TOLD, (task.task_id, task.epoch, worker.node))
    current = yield from work.find_worker(worker.identity)
    if current is not None:
        yield from handing.give(work, current)


def _push(work: Work, worker: Worker, task: Task) -> Program[None]:
    payload = yield from rows.payload_of(task.task_id)
    work.pushes.append(Push(task, worker, payload))


def _push_untold(work: Work, worker: Worker, task: Task) -> Program[None]:
    """Tell a worker what another node has given it while its own was taken for dead."""
    if task.status in (Status.ASSIGNED, Status.STARTING):
        untold: int = yield Execute(f"{_TOLD} AND pushed = 0", (task.task_id, task.epoch, worker.node))
        if untold:
            yield from _push(work, worker, task)


def _memory(work: Work, identity: str, *, back: bool) -> Program[int]:
    """Since when the client of this session remembers. One that is back may have come, anew, after another of its name was lost."""
    if back:
        found: list[Row] = yield Fetch("SELECT since_ms FROM task_memories WHERE identity = $1", (identity,))
        return found[0][0] if found else 0
    yield Execute(REMEMBER, (identity, work.context.now_ms))
    return work.context.now_ms


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
        int(live < worker.capacity),
        now_ms * 1000,
    )


def _attach(work: Work, identity: str, task_id: str) -> Program[None]:
    task = yield from rows.load(task_id)
    if task is not None and task.task_type == AGENT_STARTUP:
        yield from startups.attach(work, task, identity)
    elif task is not None:
        yield from work.make(task, Move.ATTACH, work.facts(identity))


def mark(work: Work, task: Task, *, missing: bool) -> Program[None]:
    """Say of a running task that its worker is missing, or that it is there; a session that is missed longer keeps its first moment."""
    if missing == bool(task.disconnected_ms) or (missing and not task.grace_ms):
        return
    yield from work.write(task, task.changed({"disconnected_ms": work.context.now_ms if missing else 0}), "")


def leave(work: Work, left: Left) -> Program[None]:
    """A session has ended. Nothing more, if its identity has another one by now."""
    if left.let_in:
        yield from tokens.let_go(left.session_id)
    found: list[Row] = yield Fetch("SELECT session_id FROM task_workers WHERE identity = $1", (left.identity,))
    if not found or found[0][0] != left.session_id:
        return
    yield Execute("DELETE FROM task_workers WHERE identity = $1", (left.identity,))
    held = yield from rows.select("holder = $1 AND holder <> '' ORDER BY order_us", (left.identity,))
    for task in held:
        if left.clean and task.attached:
            facts = work.facts(left.identity, caller_epoch=task.epoch)
            yield from work.make(task, Move.COMPLETE, facts)
        elif task.status is Status.RUNNING and task.task_type == AGENT_STARTUP:
            yield from startups.lost(work, task, by_gateway=left.by_gateway)
        elif task.status is Status.RUNNING:
            yield from mark(work, task, missing=True)
        elif task.mode is not Mode.SELF_ASSIGN:
            yield from work.make(task, Move.UNASSIGN, work.facts())


def touched(work: Work, identity: str, task_id: str) -> Program[Task | None]:
    """A worker shows that it is at work on a task; the task, if it is its."""
    task = yield from rows.load(task_id)
    if task is None or task.assigned_to != identity or task.status is not Status.RUNNING:
        return None
    if task.heartbeat_timeout_ms or task.disconnected_ms:
        after = task.changed({"heartbeat_ms": work.context.now_ms, "disconnected_ms": 0})
        yield from work.write(task, after, "")
        return after
    return task


def named_nodes() -> Program[list[str]]:
    """Every node that rows are kept of."""
    names: dict[str, None] = {}
    for table in _NAMED_IN:
        rows_found: list[Row] = yield Fetch(_NODES.format(table))
        names.update(dict.fromkeys(node for (node,) in rows_found))
    return list(names)


def recover(work: Work, node: str, page: int) -> Program[int]:
    """A node is gone: its sessions have ended, uncleanly; how many of them, a page at most."""
    found: list[Row] = yield Fetch(
        "SELECT identity, session_id FROM task_workers WHERE node = $1 ORDER BY identity LIMIT $2", (node, page)
    )
    for identity, session_id in found:
        yield from leave(work, Left(identity, session_id, clean=False, by_gateway=True))
        yield from startups.left(identity, session_id)
        if (yield from startups.was_started(identity)):
            work.let_go.append(identity)
    yield Execute("DELETE FROM task_sessions WHERE node = $1", (node,))
    yield Execute("UPDATE task_outbox SET node = $2 WHERE node = $1", (node, work.context.node))
    yield Execute("DELETE FROM task_watchers WHERE node = $1", (node,))
    work.outbox = True
    return len(found)
