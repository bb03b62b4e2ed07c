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

from typing import Final

import structlog

from aether_trio.model.tasks import StoredStatus
from aether_trio.model.tasks.task import WorkflowPart
from aether_trio.services.tasks.transaction import task_rows
from aether_trio.services.tasks.transaction.startup import forget_start
from aether_trio.services.tasks.transaction.task_transaction import TaskTransaction
from aether_trio.storage.base import Execute, Fetch, Program, Row

logger = structlog.get_logger("aether.tasks")

MEMORY_MS: Final = 30 * 86_400_000
"""A participant that was away for so long holds no task, so its begin may be forgotten."""

PAGE: Final = 200

INTERVAL_S: Final = 600.0
"""Seconds between two sweeps, which only give back space."""


def forget_memories(tx: TaskTransaction) -> Program[int]:
    """Delete a page of `task_memories` of long absent participants; return how many."""
    count: int = yield Execute(
        "DELETE FROM task_memories WHERE identity IN ("
        "SELECT m.identity FROM task_memories m WHERE m.since_ms < $1 "
        "AND NOT EXISTS (SELECT 1 FROM task_workers w WHERE w.identity = m.identity) ORDER BY m.since_ms LIMIT $2)",
        (tx.context.now_ms - MEMORY_MS, PAGE),
    )
    return count


def forget_workflow_letters(tx: TaskTransaction) -> Program[int]:
    """Delete a page of the oldest dead letters of workflows beyond their number."""
    keep = tx.context.limits.workflow_letters
    found: list[Row] = yield Fetch(
        "SELECT d.task_id FROM task_dead_letters d JOIN tasks t ON t.task_id = d.task_id "
        "WHERE d.resolved_ms = 0 AND t.status = 'dlq' AND t.workflow = $1 ORDER BY d.buried_ms DESC LIMIT $2 OFFSET $3",
        (int(WorkflowPart.EVENT), PAGE, keep),
    )
    for (task_id,) in found:
        yield Execute("DELETE FROM task_dead_letters WHERE task_id = $1", (task_id,))
        yield from task_rows.delete(task_id)
    if found:
        logger.warning(
            "old dead letters of workflows are deleted, as there are too many", kept=keep, deleted=len(found)
        )
    return len(found)


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
