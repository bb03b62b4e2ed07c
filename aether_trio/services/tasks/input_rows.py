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


def keep(task_id: str, offset: int, metadata: Metadata) -> Program[bool]:
    """Keep an input for a later wait; False when the task has no room for it."""
    encoded = json.dumps(dict(metadata), separators=(",", ":")).encode()
    [[count, size]] = yield Fetch(
        "SELECT COUNT(*), COALESCE(SUM(LENGTH(metadata)), 0) FROM task_inputs WHERE task_id = $1", (task_id,)
    )
    if count >= KEPT_INPUTS or size + len(encoded) > KEPT_BYTES:
        return False
    yield Execute(
        "INSERT INTO task_inputs (task_id, log_offset, metadata) VALUES ($1, $2, $3)", (task_id, offset, encoded)
    )
    return True


def use(task_id: str, offset: int) -> Program[None]:
    """Delete the input that a wait has taken."""
    yield Execute("DELETE FROM task_inputs WHERE task_id = $1 AND log_offset = $2", (task_id, offset))


def forget(task_id: str) -> Program[None]:
    """Delete all of a task."""
    yield Execute("DELETE FROM task_inputs WHERE task_id = $1", (task_id,))
