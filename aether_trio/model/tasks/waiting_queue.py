"""The queue where a task waits for its assignment: a pool's or a participant's."""

from __future__ import annotations

from typing import Final

from aether_trio.model.tasks.status import StoredStatus
from aether_trio.model.tasks.task import AGENT_STARTUP, NO_WORKER, Mode, TaskRow

POOL: Final = "pool::"
"""What the names of the queues of pools begin with."""


def pool_queue(workspace: str, implementation: str) -> str:
    """Return the name of a pool's queue; it begins with "pool", as no identity does."""
    return f"{POOL}{workspace}::{implementation}"


def queue_of(task: TaskRow) -> str:
    """Return the pool's queue or the identity where a task waits; "" if it does not."""
    if task.status is not StoredStatus.PENDING:
        return ""
    if task.workflow & NO_WORKER:
        return ""
    if task.task_type == AGENT_STARTUP:
        return ""  # the table orchestrator_profiles decides who is assigned a start
    if task.mode is Mode.POOL:
        return pool_queue(task.workspace, task.target_implementation)
    return task.target if task.mode is Mode.TARGETED else task.creator
