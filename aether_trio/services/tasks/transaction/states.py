"""States that workers save in the middle of tasks, for the next attempt.

Its key is `_task:TASK_ID`. Unlike other checkpoints a state belongs to the task: its current worker
alone saves and loads it, under any identity, and it is deleted with the task.
`tasks.checkpoint_key` names it once there is one, so that the next worker is told of it.
"""

from __future__ import annotations

from typing import Final

from aether_trio.model.tasks import TaskRow
from aether_trio.services.tasks.transaction.interface import LargeError
from aether_trio.services.tasks.transaction.results import SMALL_BYTES
from aether_trio.storage.base import Deferred, Fetch, Program, Row

PREFIX: Final = "_task:"
_WRITE: Final = """INSERT INTO task_states (task_id, data, saved_s) VALUES ($1, $2, $3)
    ON CONFLICT (task_id) DO UPDATE SET data = excluded.data, saved_s = excluded.saved_s"""


def key_of(task_id: str) -> str:
    """Return the checkpoint key of a task's state."""
    return f"{PREFIX}{task_id}"


def has_state(task: TaskRow) -> bool:
    """Return whether a task's worker, or a former one, has saved a state."""
    return task.checkpoint_key == key_of(task.task_id)


def write(task_id: str, data: bytes, saved_s: int, *, small: bool = False) -> Program[None]:
    """Write the state of a task. `small`: raise LargeError if it is long."""
    if small and len(data) > SMALL_BYTES:
        raise LargeError
    yield Deferred("task_states", _WRITE, (task_id, data, saved_s))


def load(task_id: str) -> Program[tuple[bytes, int] | None]:
    """Read the state of a task, and when it was saved (Unix seconds)."""
    rows: list[Row] = yield Fetch("SELECT data, saved_s FROM task_states WHERE task_id = $1", (task_id,))
    return (bytes(rows[0][0]), rows[0][1]) if rows else None
