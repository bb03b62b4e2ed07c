"""Writes the joins and leaves of many workers' sessions with a few SQL statements.

    group of mutations ──▶ runs of joins and leaves of different identities
        ──▶ one query: which identities hold tasks, or have tasks that wait for them?
                those ──▶ one by one (sessions.py)
                the others ──▶ two statements for all joins, one for all leaves

Invariants: what one identity does takes effect in its order. What the query finds is true at the
commit, as both are in one transaction.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

from aether_trio.model.tasks.waiting_queue import pool_queue
from aether_trio.services.tasks.transaction import sessions
from aether_trio.services.tasks.transaction.sessions import WorkerJoined, WorkerLeft
from aether_trio.services.tasks.transaction.task_transaction import Mutation, TaskTransaction
from aether_trio.storage.base import ExecuteMany, Fetch, Program, Row, placeholders, rounded_up

MIN_BATCH: Final = 2
"""Fewer are written one by one."""

_HELD: Final = "EXISTS (SELECT 1 FROM tasks WHERE holder = name AND holder <> '')"
_KEPT: Final = "EXISTS (SELECT 1 FROM tasks WHERE keeper = name AND keeper <> '')"
_QUEUED: Final = "EXISTS (SELECT 1 FROM tasks WHERE queue = name AND queue <> '')"
_POOLED: Final = "EXISTS (SELECT 1 FROM tasks WHERE target_implementation = name AND queue <> '' AND mode = 'pool')"


def merge(group: Sequence[Mutation]) -> list[Mutation]:
    """Combine the joins and leaves among queued writes of tasks to a few statements."""
    merged: list[Mutation] = []
    run: list[WorkerJoined | WorkerLeft] = []
    for mutation in group:
        if isinstance(mutation, WorkerJoined | WorkerLeft):
            run.append(mutation)
        else:
            merged += _merge(run)
            run = []
            merged.append(mutation)
    return merged + _merge(run)


def _merge(run: Sequence[WorkerJoined | WorkerLeft]) -> list[Mutation]:
    run = _without_the_ended(run)
    counts = Counter(mutation.identity for mutation in run)
    batch = [one for one in run if counts[one.identity] == 1 and not one.by_token]
    if len(batch) < MIN_BATCH:
        return list(run)
    singles = set(run) - set(batch)
    return [lambda tx: _write_batch(tx, batch), *(one for one in run if one in singles)]


def _without_the_ended(run: Sequence[WorkerJoined | WorkerLeft]) -> Sequence[WorkerJoined | WorkerLeft]:
    """Leave out the joins of ended sessions, and leaves that have no row to delete.

    Neither would write anything: `join` returns for a session that has ended, unless it is that of
    a started agent, and `leave` for one without a row.
    """
    ended: dict[tuple[str, str], bool] = {}
    """By identity and session: whether it may have joined before, in an earlier transaction."""
    for one in run:
        if isinstance(one, WorkerJoined) and one.has_ended() and not one.by_token:
            key = one.identity, one.worker.session_id
            ended[key] = one.rejoined or one.resumed or ended.get(key, False)
    if not ended:
        return run
    kept: list[WorkerJoined | WorkerLeft] = []
    for one in run:
        if isinstance(one, WorkerJoined):
            if (one.identity, one.worker.session_id) not in ended:
                kept.append(one)
        elif one.by_token or ended.get((one.identity, one.session_id), True):
            kept.append(one)
    return kept


def _write_batch(tx: TaskTransaction, batch: Sequence[WorkerJoined | WorkerLeft]) -> Program[None]:
    busy = yield from _busy(batch)
    memories = yield from _memories([one.identity for one in batch if isinstance(one, WorkerJoined) and one.resumed])
    now_ms = tx.context.now_ms
    fresh, joining, gone = [], [], []
    for one in batch:
        if one.identity in busy:
            continue
        if isinstance(one, WorkerLeft):
            gone.append((one.identity, one.session_id))
            continue
        if one.has_ended() or one.only_if_busy:
            continue
        since_ms = memories.get(one.identity, 0) if one.resumed else now_ms
        worker = one.worker._replace(node=tx.context.node)
        joining.append(sessions.worker_row(worker, 0, since_ms, now_ms))
        if not one.resumed:
            fresh.append((one.identity, now_ms))
    if fresh:
        yield ExecuteMany(sessions.REMEMBER, fresh)
    if joining:
        yield ExecuteMany(sessions.JOIN_IDLE, joining)
    if gone:
        yield ExecuteMany("DELETE FROM task_workers WHERE identity = $1 AND session_id = $2", gone)
    for one in batch:
        if one.identity in busy:
            yield from one(tx)


def _busy(batch: Sequence[WorkerJoined | WorkerLeft]) -> Program[set[str]]:
    """Find the identities that hold tasks, or for which tasks wait."""
    owners: dict[str, set[str]] = {}
    implementations: dict[str, set[str]] = {}
    for one in batch:
        if isinstance(one, WorkerLeft):
            continue
        worker = one.worker
        owners.setdefault(worker.identity, set()).add(worker.identity)
        if worker.pooled and worker.workspace:
            owners.setdefault(pool_queue(worker.workspace, worker.implementation), set()).add(worker.identity)
        elif worker.pooled:
            implementations.setdefault(worker.implementation, set()).add(worker.identity)
    found = set((yield from _which([_HELD, _KEPT], [one.identity for one in batch])))
    for condition, by_name in ((_QUEUED, owners), (_POOLED, implementations)):
        for name in (yield from _which([condition], list(by_name))):
            found |= by_name[name]
    return found


def _memories(names: Sequence[str]) -> Program[dict[str, int]]:
    """Read from `task_memories` when the current clients of these identities began."""
    if not names:
        return {}
    some = rounded_up(names, 16)
    sql = f"SELECT identity, since_ms FROM task_memories WHERE identity IN ({placeholders(len(some))})"  # noqa: S608
    rows: list[Row] = yield Fetch(sql, some)
    return dict(rows)


def _which(conditions: Sequence[str], names: Sequence[str]) -> Program[list[str]]:
    """Return the names (of identities or queues) for which an SQL condition holds."""
    if not names:
        return []
    some = rounded_up(names, 16)
    values = ", ".join(f"(CAST(${number} AS TEXT))" for number in range(1, len(some) + 1))
    found = " UNION ".join(f"SELECT name FROM given WHERE {condition}" for condition in conditions)  # noqa: S608
    sql = f"WITH given (name) AS (VALUES {values}) {found}"
    rows: list[Row] = yield Fetch(sql, some)
    return [row[0] for row in rows]
