"""Rows of task inputs copied from the topic log that no wait has used yet.

The wait that takes an input deletes its row in the same transaction. The end of a task deletes all.
The input that ended the latest wait is kept in `task_used_inputs`, for the task's worker.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final, NamedTuple

from aether_trio.model.limits import KIB
from aether_trio.model.tasks import TaskRow
from aether_trio.storage.base import Execute, Fetch, Program, Row

KEPT_INPUTS: Final = 256
"""Inputs kept for one task; a further one is dropped unless the task waits for it."""
KEPT_BYTES: Final = 256 * KIB
"""Size of the metadata and payloads of the inputs kept for one task."""

Metadata = Mapping[str, str]


class TaskInput(NamedTuple):
    """An input of a task: number in the log, metadata, sender's identity, payload."""

    offset: int
    metadata: Metadata
    sender: str = ""
    payload: bytes = b""


def kept(task_id: str) -> Program[list[TaskInput]]:
    """Return a task's unused inputs, oldest first."""
    found: list[Row] = yield Fetch(
        "SELECT log_offset, metadata, sender, payload FROM task_inputs WHERE task_id = $1 ORDER BY log_offset",
        (task_id,),
    )
    return [
        TaskInput(offset, json.loads(metadata), sender, bytes(payload)) for offset, metadata, sender, payload in found
    ]


class Room:
    """Counts the unused inputs of a task within one transaction, up to its limits."""

    def __init__(self, count: int, size: int) -> None:
        self._count = count
        self._size = size

    def take(self, one: TaskInput) -> bool:
        """Count one more input of the task; return False if it is over a limit."""
        size = self._size + len(_encoded(one.metadata)) + len(one.payload)
        if self._count >= KEPT_INPUTS or size > KEPT_BYTES:
            return False
        self._count, self._size = self._count + 1, size
        return True


def room(task_id: str) -> Program[Room]:
    """Read number and size of a task's unused inputs."""
    [[count, size]] = yield Fetch(
        "SELECT COUNT(*), COALESCE(SUM(LENGTH(metadata) + LENGTH(payload)), 0) FROM task_inputs WHERE task_id = $1",
        (task_id,),
    )
    return Room(count, size)


def keep(task_id: str, one: TaskInput) -> Program[None]:
    """Insert an input of a task for a later wait; `Room` has counted it."""
    yield Execute(
        "INSERT INTO task_inputs (task_id, log_offset, metadata, sender, payload) VALUES ($1, $2, $3, $4, $5)",
        (task_id, one.offset, _encoded(one.metadata), one.sender, one.payload),
    )


def _encoded(metadata: Metadata) -> bytes:
    return json.dumps(dict(metadata), separators=(",", ":")).encode()


def use(task_id: str, offset: int) -> Program[None]:
    """Delete an input of a task that a wait has taken."""
    yield Execute("DELETE FROM task_inputs WHERE task_id = $1 AND log_offset = $2", (task_id, offset))


def note_used(task: TaskRow, one: TaskInput) -> Program[None]:
    """Write that an input ended the latest wait of a task."""
    yield Execute(
        "INSERT INTO task_used_inputs (task_id, pause_key, sender, metadata, payload) VALUES ($1, $2, $3, $4, $5) "
        "ON CONFLICT (task_id) DO UPDATE SET pause_key = excluded.pause_key, sender = excluded.sender, "
        "metadata = excluded.metadata, payload = excluded.payload",
        (task.task_id, task.pause_key, one.sender, _encoded(one.metadata), one.payload),
    )


def used(task: TaskRow) -> Program[TaskInput | None]:
    """Read the input that ended the latest wait of a task; None if none did."""
    found: list[Row] = yield Fetch(
        "SELECT metadata, sender, payload FROM task_used_inputs WHERE task_id = $1 AND pause_key = $2",
        (task.task_id, task.pause_key),
    )
    return TaskInput(0, json.loads(found[0][0]), found[0][1], bytes(found[0][2])) if found else None


def forget(task_id: str) -> Program[None]:
    """Delete all unused inputs of a task."""
    yield Execute("DELETE FROM task_inputs WHERE task_id = $1", (task_id,))
