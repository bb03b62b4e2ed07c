"""Inputs that were taken over from the log and that no wait has used yet: rows by task and number in the log.

Each is used once, by the wait that takes it, in the transaction that ends the wait. A task's `input_offset` is the number of the last one that
was taken over, so what is read from the log again is known. They go with the end of the task.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

from aether_trio.model.limits import KIB
from aether_trio.storage.base import Execute, Fetch, Program, Row

KEPT_INPUTS: Final = 256
"""Of one task. What comes while so many wait is dropped, unless the task waits for just that."""
KEPT_BYTES: Final = 256 * KIB
"""Of the metadata of the inputs of one task."""

Metadata = Mapping[str, str]


def kept(task_id: str) -> Program[list[tuple[int, Metadata]]]:
    """(number in the log, metadata) of a task's inputs that were not used, oldest first."""
    found: list[Row] = yield Fetch(
        "SELECT log_offset, metadata FROM task_inputs WHERE task_id = $1 ORDER BY log_offset", (task_id,)
    )
    return [(offset, json.loads(metadata)) for offset, metadata in found]


class Room:
    """What a task has kept, in one transaction."""

    def __init__(self, count: int, size: int) -> None:
        self._count = count
        self._size = size

    def take(self, metadata: Metadata) -> bool:
        """Count one more input; False when there is no room for it."""
        size = self._size + len(_encoded(metadata))
        if self._count >= KEPT_INPUTS or size > KEPT_BYTES:
            return False
        self._count, self._size = self._count + 1, size
        return True


def room(task_id: str) -> Program[Room]:
    """How much a task has kept."""
    [[count, size]] = yield Fetch(
        "SELECT COUNT(*), COALESCE(SUM(LENGTH(metadata)), 0) FROM task_inputs WHERE task_id = $1", (task_id,)
    )
    return Room(count, size)


def keep(task_id: str, offset: int, metadata: Metadata) -> Program[None]:
    """Keep an input for a later wait. There is `Room` for it."""
    yield Execute(
        "INSERT INTO task_inputs (task_id, log_offset, metadata) VALUES ($1, $2, $3)",
        (task_id, offset, _encoded(metadata)),
    )


def _encoded(metadata: Metadata) -> bytes:
    return json.dumps(dict(metadata), separators=(",", ":")).encode()


def use(task_id: str, offset: int) -> Program[None]:
    """Delete the input that a wait has taken."""
    yield Execute("DELETE FROM task_inputs WHERE task_id = $1 AND log_offset = $2", (task_id, offset))


def forget(task_id: str) -> Program[None]:
    """Delete all of a task."""
    yield Execute("DELETE FROM task_inputs WHERE task_id = $1", (task_id,))
