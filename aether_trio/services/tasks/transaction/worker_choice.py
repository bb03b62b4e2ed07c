"""Chooses the worker of a waiting task, and the next task of a worker with room.

    a task waits        reserve_worker ──▶ its target, or the least busy worker of its pool:
                                           one statement finds it and counts the task
    a worker has room   _release ──▶ does a task wait for it? ──▶ fill_worker: the first tasks of
                                           its queues

The current assignment is in the task's row. `task_attempts` has former assignments, and current
ones that the node of the worker has yet to send. Cost: a few statements by key or by the first row
of an index, however many tasks wait.

Invariant for programs that run interleaved (`Database.run_keyed`): a worker is freed when no
program waits for the answer whether its task has one (`late`), and one that has none writes its
task before it waits for another row. `_RELEASE` names `tasks`, so it sees each such task.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Final

from aether_trio.model.tasks import Mode, Move, MoveStep, StoredStatus, TaskRow
from aether_trio.model.tasks.status import TERMINAL
from aether_trio.model.tasks.task import AGENT_STARTUP
from aether_trio.model.tasks.waiting_queue import pool_queue
from aether_trio.services.tasks.protobuf import may_start_target
from aether_trio.services.tasks.transaction import task_rows
from aether_trio.services.tasks.transaction.interface import Context, NewAssignment, Transaction
from aether_trio.services.tasks.transaction.workers import WORKER_FIELDS, Worker, find_workers, read_worker
from aether_trio.storage.base import Deferred, Execute, Fetch, FetchOne, Program, Row, placeholders

COLLECT_PAGE: Final = 100
MAX_SERVICES: Final = 1_000
"""Services of one implementation among which one is looked for that may serve a workspace."""
AGAIN_PAGE: Final = 200
"""Tasks whose assignments one transaction sends again; those of one worker stay together."""

_ROOM: Final = "live = live {0} 1, free = CASE WHEN live {0} 1 < capacity THEN 1 ELSE 0 END"
_MORE: Final = f"UPDATE task_workers SET {_ROOM.format('+')}, turn = $1 WHERE"  # noqa: S608
_HOLD: Final = f"{_MORE} identity = $2 RETURNING {WORKER_FIELDS}"
_TAKE: Final = f"{_MORE} identity = $2 AND live < capacity RETURNING {WORKER_FIELDS}"
_OF_POOL: Final = """(SELECT identity FROM task_workers
    WHERE pooled = 1 AND free = 1 AND workspace = {0} AND implementation = $4 ORDER BY live, turn LIMIT 1)"""
_TAKE_OF_POOL: Final = f"""{_MORE.replace("$1", "$2")} identity = COALESCE(
    {_OF_POOL.format("$3")}, {_OF_POOL.format("''")})
    RETURNING CAST($1 AS TEXT), {WORKER_FIELDS}"""
_SERVICES: Final = """SELECT identity FROM task_workers
    WHERE pooled = 1 AND free = 1 AND workspace = '' AND implementation = $1 ORDER BY live, turn LIMIT $2"""
_LESS: Final = f"UPDATE task_workers SET {_ROOM.format('-')} WHERE identity = $1 AND live > 0"  # noqa: S608
# By the index: of an EXISTS, PostgreSQL reads all rows and hashes them.
_WAITS: Final = """(SELECT 1 FROM tasks WHERE queue = {0} AND queue <> ''
        ORDER BY priority DESC, order_us LIMIT 1) IS NOT NULL"""
_RELEASE: Final = f"""{_LESS} RETURNING {WORKER_FIELDS}, CASE
    WHEN {_WAITS.format("task_workers.identity")} THEN 1
    WHEN pooled = 0 THEN 0
    WHEN workspace = '' THEN 1
    WHEN {_WAITS.format("'pool::' || task_workers.workspace || '::' || task_workers.implementation")} THEN 1
    ELSE 0 END"""

_QUEUED: Final = "queue = $1 AND queue <> '' ORDER BY priority DESC, order_us LIMIT 1"
_ALSO_QUEUED: Final = _QUEUED.replace("$1", "$2")
_POOLED: Final = """target_implementation = $2 AND queue <> '' AND mode = 'pool'
    ORDER BY priority DESC, order_us LIMIT 1"""

_TO_PUSH: Final = """INSERT INTO task_attempts (task_id, epoch, worker, node, pushed, assigned_ms, started_ms)
    VALUES ($1, $2, $3, $4, 0, $5, $6)"""
_TAKE_UP: Final = """UPDATE task_attempts SET pushed = 1 WHERE node = $1 AND pushed = 0 AND (task_id, epoch) IN (
    SELECT task_id, epoch FROM task_attempts WHERE node = $1 AND pushed = 0 ORDER BY task_id, epoch LIMIT $2)
    RETURNING task_id, epoch"""
_OVER: Final = """INSERT INTO task_attempts (task_id, epoch, worker, node, pushed, assigned_ms, started_ms, ended_ms, outcome)
    VALUES ($1, $2, $3, $4, 1, $5, $6, $7, $8) ON CONFLICT (task_id, epoch) DO UPDATE
    SET started_ms = excluded.started_ms, ended_ms = excluded.ended_ms, outcome = excluded.outcome, pushed = 1"""


def reserve_worker(tx: Transaction, task: TaskRow) -> Program[Worker | None]:
    """Find a worker with room for a waiting task and count the task, in one statement."""
    turn = tx.context.now_ms * 1000
    worker: Worker | None
    if task.mode is Mode.POOL:
        # One statement: between two, another program could free a worker and not see this task.
        args = task.task_id, turn, task.workspace, task.target_implementation
        found: list[Row] = yield FetchOne(_TAKE_OF_POOL, args)
        worker = Worker._make(found[0][1:]) if found else None
        if worker is not None and not worker.workspace and not tx.context.may_serve(worker.identity, task.workspace):
            yield Execute(_LESS, (worker.identity,))
            worker = yield from _take_service(tx, task)
        return worker
    if task.mode is Mode.SELF_ASSIGN:
        # The task takes no room, but is not assigned while its creator has none.
        worker = yield from tx.find_worker(task.queue)
        return worker if worker is not None and worker.has_room else None
    worker = read_worker((yield Fetch(_TAKE, (turn, task.queue))))
    if worker is None and may_start_target(task) and (yield from tx.find_worker(task.queue)) is None:
        tx.effects.absent_targets.append(task.target)
    return worker


def _take_service(tx: Transaction, task: TaskRow) -> Program[Worker | None]:
    """Find a service with room that may serve a task's workspace."""
    found: list[Row] = yield Fetch(_SERVICES, (task.target_implementation, MAX_SERVICES))
    for (identity,) in found:
        if tx.context.may_serve(identity, task.workspace):
            worker = read_worker((yield Fetch(_TAKE, (tx.context.now_ms * 1000, identity))))
            if worker is not None:
                return worker
    return None


def release_reservation(tx: Transaction, task: TaskRow, worker: Worker) -> Program[None]:
    """Undo `reserve_worker`: the worker was not assigned the task.

    A program that ran interleaved may have found no room meanwhile, and its task waits.
    """
    if task.mode is not Mode.SELF_ASSIGN:
        yield from _release(tx, worker.identity)


def assign_waiting(tx: Transaction, task: TaskRow) -> Program[None]:
    """Assign a waiting task to a worker that has room, if there is one."""
    worker = yield from reserve_worker(tx, task)
    if worker is not None:
        given = yield from tx.apply(task, Move.ASSIGN, tx.facts(worker.identity), reserved=worker)
        assert isinstance(given, MoveStep)


def fill_worker(tx: Transaction, worker: Worker) -> Program[None]:
    """Assign a worker the first tasks of its queues, as many as it has room for."""
    room = worker.capacity - worker.live
    while room > 0:
        task = yield from _first_for(tx, worker)
        if task is None:
            return
        given = yield from tx.apply(task, Move.ASSIGN, tx.facts(worker.identity))
        assert isinstance(given, MoveStep)
        room -= bool(given.after.holder)  # a task that it has assigned to itself takes no room


def fill_service(tx: Transaction, identity: str) -> Program[None]:
    """Assign a service waiting tasks of workspaces that it may serve from now on."""
    worker = yield from tx.find_worker(identity)
    if worker is not None and worker.pooled:
        yield from fill_worker(tx, worker)


def _first_for(tx: Transaction, worker: Worker) -> Program[TaskRow | None]:
    barred: list[str] = []
    while True:
        found = yield from _next_for(worker, barred)
        task = min(found, key=lambda task: (-task.priority, task.order_us), default=None)
        if task is None or not may_not_serve(tx.context, worker.identity, worker.workspace, task):
            return task
        barred.append(task.workspace)


def may_not_serve(context: Context, identity: str, workspace: str, task: TaskRow) -> bool:
    """Return whether a participant is in no workspace and barred from a pool's task."""
    return task.mode is Mode.POOL and not workspace and not context.may_serve(identity, task.workspace)


def _next_for(worker: Worker, barred: Sequence[str]) -> Program[list[TaskRow]]:
    """Read the first tasks of a worker's queues, but for pools of `barred` workspaces."""
    if not worker.pooled:
        found = yield from task_rows.select(_QUEUED, (worker.identity,))
    elif worker.workspace:
        queue = pool_queue(worker.workspace, worker.implementation)
        found = yield from task_rows.select_either(_QUEUED, _ALSO_QUEUED, (worker.identity, queue))
    else:
        pooled = _POOLED
        if barred:
            pooled = pooled.replace("$2", f"$2 AND workspace NOT IN ({placeholders(len(barred), first=3)})")
        found = yield from task_rows.select_either(_QUEUED, pooled, (worker.identity, worker.implementation, *barred))
    return found


def update_workers(
    tx: Transaction, before: TaskRow, after: TaskRow, *, push: bool, reserved: Worker | None
) -> Program[None]:
    """Count a changed task for its new worker instead of its former one, and send it."""
    worker = reserved
    if before.assigned_to and (after.epoch != before.epoch or not after.assigned_to):
        yield from _over(tx, before, after)
    if after.task_type == AGENT_STARTUP:
        # A start keeps its orchestrator and its agent from no other task.
        worker = (yield from tx.find_worker(after.holder)) if after.holder != before.holder else None
    elif after.holder != before.holder:
        if before.holder:
            yield from _release(tx, before.holder)
        if after.holder and reserved is None:
            worker = read_worker((yield Fetch(_HOLD, (tx.context.now_ms * 1000, after.holder))))
    if push and after.epoch != before.epoch:
        if worker is None:
            worker = yield from tx.find_worker(after.assigned_to)  # an owner's task, tried again
        if worker is not None:
            yield from _push(tx, after, worker)


def _release(tx: Transaction, identity: str) -> Program[None]:
    found: list[Row] = yield FetchOne(_RELEASE, (identity,), late=True, reads=task_rows.QUEUES)
    for *row, waits in found:
        worker = read_worker([tuple(row)])
        if waits and tx.context.shared:  # programs that ran interleaved may have assigned it others
            worker = yield from tx.find_worker(identity)
        if waits and worker is not None:
            yield from fill_worker(tx, worker)


def _push(tx: Transaction, task: TaskRow, worker: Worker) -> Program[None]:
    """Have a task sent to its worker by this node, or by the node of the worker."""
    if worker.node == tx.context.node:
        yield from send(tx, task, worker)
        return
    row = task.task_id, task.epoch, task.assigned_to, worker.node, task.assigned_ms, task.started_ms
    yield Deferred("task_attempts", _TO_PUSH, row)
    tx.effects.assignments.append(NewAssignment(task, worker, b""))


def send(tx: Transaction, task: TaskRow, worker: Worker) -> Program[None]:
    """Have a task sent to its worker, with its payload, after the commit."""
    payload = yield from tx.payload_of(task.task_id)
    tx.effects.assignments.append(NewAssignment(task, worker, payload))


def _over(tx: Transaction, before: TaskRow, after: TaskRow) -> Program[None]:
    """Write the end and outcome of a task's former assignment to `task_attempts`."""
    if before.status in TERMINAL or before.status is StoredStatus.HIBERNATED:  # it ended then
        ended_ms, outcome = before.updated_ms, before.status.value
    else:
        ended_ms = tx.context.now_ms
        outcome = after.status.value if after.epoch == before.epoch else "reassigned"
    assigned = before.task_id, before.epoch, before.assigned_to, tx.context.node, before.assigned_ms, before.started_ms
    yield Deferred("task_attempts", _OVER, (*assigned, ended_ms, outcome))


def send_of_other_nodes(tx: Transaction) -> Program[int]:
    """Send this node's workers a page of other nodes' assignments; return its size."""
    found: list[Row] = yield Fetch(_TAKE_UP, (tx.context.node, COLLECT_PAGE))
    if not found:
        return 0
    epochs: dict[str, int] = dict(sorted(found))  # the latest assignment of each task
    given = [
        (task, payload)
        for task, payload in (yield from task_rows.load_with_payloads(list(epochs)))
        if task.epoch == epochs[task.task_id] and task.status in (StoredStatus.ASSIGNED, StoredStatus.STARTING)
    ]
    given.sort(key=lambda one: one[0].task_id)
    workers = yield from find_workers(sorted({task.assigned_to for task, _ in given}))
    for task, payload in given:
        if worker := workers.get(task.assigned_to):
            known = (yield from tx.payload_of(task.task_id)) if payload is None else payload
            tx.effects.assignments.append(NewAssignment(task, worker, known))
    return len(found)


def send_again(tx: Transaction, after: str = "") -> Program[None]:
    """Send this node's workers again a page of assigned tasks that have not begun."""
    found: list[Row] = yield Fetch(
        f"SELECT {WORKER_FIELDS} FROM task_workers WHERE node = $1 AND identity > $2 ORDER BY identity LIMIT $3",  # noqa: S608
        (tx.context.node, after, AGAIN_PAGE),
    )
    for row in found:
        worker = read_worker([row])
        assert worker is not None
        after = worker.identity
        held = yield from task_rows.select(
            "holder = $1 AND holder <> '' AND status IN ('assigned', 'starting') ORDER BY order_us", (worker.identity,)
        )
        for task in held:
            yield from send(tx, task, worker)
        if len(tx.effects.assignments) >= AGAIN_PAGE:
            break
    if (found and after != found[-1][0]) or len(found) == AGAIN_PAGE:
        tx.effects.follow_ups.append(partial(send_again, after=after))
