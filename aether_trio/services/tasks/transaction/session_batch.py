"""Sessions that come and go in a crowd, most of which have nothing to do with tasks: a few statements for all of them merge.

    group of errands ──▶ runs of joins and leaves of different identities ──▶ one look: who has something, or something waits for?
                                                                     those ──▶ one by one (sessions.py)
                                                                the others ──▶ two statements for all that come, one for all that go

An errand of an identity that has several in a group, and whatever else is in it, is done in its place.

Invariants: what one identity does takes effect in the order in which it did it; what is true at the look is true at the commit, as
both are in one transaction.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

from aether_trio.model.tasks.task import pool_queue
from aether_trio.services.tasks.transaction import sessions
from aether_trio.services.tasks.transaction.sessions import WorkerJoined, WorkerLeft
from aether_trio.services.tasks.transaction.task_transaction import Mutation, TaskTransaction
from aether_trio.storage.base import ExecuteMany, Fetch, Program, Row, placeholders, rounded_up

LEAST: Final = 2
"""Fewer are done one by one."""

_HELD: Final = "EXISTS (SELECT 1 FROM tasks WHERE holder = name AND holder <> '')"
_KEPT: Final = "EXISTS (SELECT 1 FROM tasks WHERE keeper = name AND keeper <> '')"
_QUEUED: Final = "EXISTS (SELECT 1 FROM tasks WHERE queue = name AND queue <> '')"
_POOLED: Final = "EXISTS (SELECT 1 FROM tasks WHERE target_implementation = name AND queue <> '' AND mode = 'pool')"


class Join:
    """The errand of a session that begins."""

    __slots__ = ("joined",)

    def __init__(self, joined: WorkerJoined) -> None:
        self.joined = joined

    @property
    def identity(self) -> str:
        """Whose it is."""
        return self.joined.worker.identity

    @property
    def by_token(self) -> bool:
        """Whether it is the session of a task."""
        return bool(self.joined.task_id)

    def __call__(self, tx: TaskTransaction) -> Program[None]:
        """See sessions.join."""
        return sessions.join(tx, self.joined)


class Leave:
    """The errand of a session that has ended."""

    __slots__ = ("left",)

    def __init__(self, left: WorkerLeft) -> None:
        self.left = left

    @property
    def identity(self) -> str:
        """Whose it is."""
        return self.left.identity

    @property
    def by_token(self) -> bool:
        """Whether a token has let it in."""
        return self.left.let_in

    def __call__(self, tx: TaskTransaction) -> Program[None]:
        """See sessions.leave."""
        return sessions.leave(tx, self.left)


def merge(group: Sequence[Mutation]) -> list[Mutation]:
    """The same errands, of which those that can be are done merge."""
    merged: list[Mutation] = []
    run: list[Join | Leave] = []
    for mutation in group:
        if isinstance(mutation, Join | Leave):
            run.append(mutation)
        else:
            merged += _merge(run)
            run = []
            merged.append(mutation)
    return merged + _merge(run)


def _merge(run: Sequence[Join | Leave]) -> list[Mutation]:
    counts = Counter(mutation.identity for mutation in run)
    crowd = [one for one in run if counts[one.identity] == 1 and not one.by_token]
    if len(crowd) < LEAST:
        return list(run)
    alone = set(run) - set(crowd)
    return [lambda tx: _crowd(tx, crowd), *(one for one in run if one in alone)]


def _crowd(tx: TaskTransaction, crowd: Sequence[Join | Leave]) -> Program[None]:
    busy = yield from _busy(crowd)
    memories = yield from _memories([one.identity for one in crowd if isinstance(one, Join) and one.joined.back])
    now_ms = tx.context.now_ms
    fresh, come, gone = [], [], []
    for one in crowd:
        if one.identity in busy:
            continue
        if isinstance(one, Leave):
            gone.append((one.identity, one.left.session_id))
            continue
        if one.joined.over() or one.joined.guest:
            continue
        since_ms = memories.get(one.identity, 0) if one.joined.back else now_ms
        worker = one.joined.worker._replace(node=tx.context.node)
        come.append(sessions.worker_row(worker, 0, since_ms, now_ms))
        if not one.joined.back:
            fresh.append((one.identity, now_ms))
    if fresh:
        yield ExecuteMany(sessions.REMEMBER, fresh)
    if come:
        yield ExecuteMany(sessions.JOIN_IDLE, come)
    if gone:
        yield ExecuteMany("DELETE FROM task_workers WHERE identity = $1 AND session_id = $2", gone)
    for one in crowd:
        if one.identity in busy:
            yield from one(tx)


def _busy(crowd: Sequence[Join | Leave]) -> Program[set[str]]:
    """The identities that have something in hand, or for whom something waits."""
    owners: dict[str, set[str]] = {}
    implementations: dict[str, set[str]] = {}
    for one in crowd:
        if isinstance(one, Leave):
            continue
        worker = one.joined.worker
        owners.setdefault(worker.identity, set()).add(worker.identity)
        if worker.pooled and worker.workspace:
            owners.setdefault(pool_queue(worker.workspace, worker.implementation), set()).add(worker.identity)
        elif worker.pooled:
            implementations.setdefault(worker.implementation, set()).add(worker.identity)
    found = set((yield from _which([_HELD, _KEPT], [one.identity for one in crowd])))
    for condition, by_name in ((_QUEUED, owners), (_POOLED, implementations)):
        for name in (yield from _which([condition], list(by_name))):
            found |= by_name[name]
    return found


def _memories(names: Sequence[str]) -> Program[dict[str, int]]:
    """Since when the clients of these remember; what a paused task of theirs waits for may come."""
    if not names:
        return {}
    some = rounded_up(names, 16)
    sql = f"SELECT identity, since_ms FROM task_memories WHERE identity IN ({placeholders(len(some))})"  # noqa: S608
    rows: list[Row] = yield Fetch(sql, some)
    return dict(rows)


def _which(conditions: Sequence[str], names: Sequence[str]) -> Program[list[str]]:
    """Those for which one of these conditions on `name` holds. Their number is rounded up, so that there are few different statements."""
    if not names:
        return []
    some = rounded_up(names, 16)
    values = ", ".join(f"(CAST(${number} AS TEXT))" for number in range(1, len(some) + 1))
    found = " UNION ".join(f"SELECT name FROM given WHERE {condition}" for condition in conditions)  # noqa: S608
    sql = f"WITH given (name) AS (VALUES {values}) {found}"
    rows: list[Row] = yield Fetch(sql, some)
    return [row[0] for row in rows]
