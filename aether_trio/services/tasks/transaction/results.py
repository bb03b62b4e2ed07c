"""Results of tasks: written with COMPLETE, or before it by a progress report.

`tasks.result_bytes` says whether there is one, so that only tasks with a result need a further
statement. A report's result is the task's once the task is completed; a new assignment voids it.
"""

from __future__ import annotations

from typing import Final

from aether_trio.model.limits import KIB
from aether_trio.model.tasks import StoredStatus, TaskRow
from aether_trio.model.tasks.result import NO_RESULT, ResultKind, TaskResult
from aether_trio.services.tasks.transaction.interface import LargeError
from aether_trio.storage.base import Deferred, Fetch, Program, Row

SMALL_BYTES: Final = 16 * KIB
"""A longer result is not written while the event loop waits."""
_WRITE: Final = """INSERT INTO task_results (task_id, kind, data) VALUES ($1, $2, $3)
    ON CONFLICT (task_id) DO UPDATE SET kind = excluded.kind, data = excluded.data"""


def write(task_id: str, result: TaskResult, *, small: bool = False) -> Program[None]:
    """Write the result of a task. `small`: raise LargeError if it is long."""
    if small and len(result.data) > SMALL_BYTES:
        raise LargeError
    yield Deferred("task_results", _WRITE, (task_id, result.kind.value, result.data))


def load(task: TaskRow) -> Program[TaskResult | None]:
    """Read the result of a task that is completed, and has one.

    The row of a report stays when a new assignment voids its result.
    """
    if task.status is not StoredStatus.COMPLETED or task.result_bytes == NO_RESULT:
        return None
    rows: list[Row] = yield Fetch("SELECT kind, data FROM task_results WHERE task_id = $1", (task.task_id,))
    return TaskResult(ResultKind(rows[0][0]), bytes(rows[0][1])) if rows else None
