"""Deletes old rows of absent participants and of resolved dead letters.

| rows | deleted |
|---|---|
| `task_memories` | when the participant is not connected and its client began MEMORY_MS ago |
| open `task_dead_letters` of workflows | the oldest beyond a number, with their tasks |
| `task_dead_letters` that are resolved | `resolved_ms` later, with their tasks, if these are still dead |

Clients choose the names, so every table with such a key needs an age at which its rows are deleted.
What else falls due of a task is in due.py.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import structlog

from aether_trio.model.tasks import StoredStatus
from aether_trio.model.tasks.task import WorkflowPart
from aether_trio.services.tasks.transaction import task_rows
from aether_trio.services.tasks.transaction.startup import forget_start
from aether_trio.services.tasks.transaction.task_transaction import TaskTransaction
from aether_trio.storage.base import Execute, Fetch, Program, Row, placeholders

logger = structlog.get_logger("aether.tasks")

MEMORY_MS: Final = 30 * 86_400_000
"""A participant that was away for so long holds no task, so its begin may be forgotten."""

PAGE: Final = 200

INTERVAL_S: Final = 600.0
"""Seconds between two sweeps, which only give back space."""


_LETTERS: Final = """FROM task_dead_letters d JOIN tasks t ON t.task_id = d.task_id
    WHERE d.resolved_ms = 0 AND t.status = 'dlq' AND t.workflow = $1"""
"""The open ones of workflows."""


def forget_memories(tx: TaskTransaction) -> Program[int]:
    """Delete a page of `task_memories` of long absent participants; return how many."""
    count: int = yield Execute(
        "DELETE FROM task_memories WHERE identity IN ("
        "SELECT m.identity FROM task_memories m WHERE m.since_ms < $1 "
        "AND NOT EXISTS (SELECT 1 FROM task_workers w WHERE w.identity = m.identity) ORDER BY m.since_ms LIMIT $2)",
        (tx.context.now_ms - MEMORY_MS, PAGE),
    )
    return count


class LetterAge(NamedTuple):
    """Where an open dead letter is among all, the oldest first."""

    buried_ms: int
    task_id: str


NO_LETTER: Final = LetterAge(0, "")
"""Older than all."""


def first_beyond(kept: int) -> Program[LetterAge]:
    """Find the newest dead letter of workflows that is not among this many newer ones."""
    found: list[Row] = yield Fetch(
        f"SELECT d.buried_ms, d.task_id {_LETTERS} ORDER BY d.buried_ms DESC, d.task_id DESC LIMIT 1 OFFSET $2",
        (int(WorkflowPart.EVENT), kept),
    )
    return LetterAge(*found[0]) if found else NO_LETTER


def forget_workflow_letters(tx: TaskTransaction, after: LetterAge, newest: LetterAge) -> Program[LetterAge | None]:
    """Delete a page of dead letters of workflows behind `after` and up to `newest`.

    Return the last one, None if there are no more.
    """
    found: list[Row] = yield Fetch(
        f"SELECT d.buried_ms, d.task_id {_LETTERS} AND d.buried_ms >= $2 AND d.buried_ms <= $3 "
        "AND (d.buried_ms > $2 OR d.task_id > $4) AND (d.buried_ms < $3 OR d.task_id <= $5) "
        "ORDER BY d.buried_ms, d.task_id LIMIT $6",
        (int(WorkflowPart.EVENT), after.buried_ms, newest.buried_ms, after.task_id, newest.task_id, PAGE),
    )
    if found:
        ids = [task_id for _, task_id in found]
        yield Execute(f"DELETE FROM task_dead_letters WHERE task_id IN ({placeholders(len(ids))})", ids)  # noqa: S608
        yield from task_rows.delete_all(ids)
        kept = tx.context.limits.workflow_letters
        logger.warning(
            "old dead letters of workflows are deleted, as there are too many", kept=kept, deleted=len(found)
        )
    return LetterAge(*found[-1]) if len(found) == PAGE else None


def forget_resolved(tx: TaskTransaction) -> Program[int]:
    """Delete a page of long resolved dead letters with their tasks; return how many."""
    keep_ms = tx.context.limits.resolved_ms
    if not keep_ms:
        return 0
    found: list[Row] = yield Fetch(
        "SELECT task_id FROM task_dead_letters WHERE resolved_ms > 0 AND resolved_ms < $1 ORDER BY resolved_ms LIMIT $2",
        (tx.context.now_ms - keep_ms, PAGE),
    )
    for (task_id,) in found:
        yield Execute("DELETE FROM task_dead_letters WHERE task_id = $1", (task_id,))
        task = yield from task_rows.load(task_id)
        if task is not None and task.status is StoredStatus.DLQ:
            yield from task_rows.delete(task_id)
            yield from forget_start(task)
            yield from tx.wake_dependents(task_id)
    return len(found)
