"""Makes the tasks by which executions ask people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from aether_trio.model.tasks import StoredStatus, TaskRow, Wait
from aether_trio.model.tasks.task import WorkflowPart
from aether_trio.services.tasks.transaction.interface import Transaction
from aether_trio.services.workflows.actions.performer import new_row
from aether_trio.services.workflows.executions.execution_rows import ExecutionRow
from aether_trio.wire.pb import aether_pb2 as pb

QUESTION: Final = "workflow_question"
"""The type of these tasks."""


def new_question(
    tx: Transaction, row: ExecutionRow, task_id: str, wait: Wait, metadata: Mapping[str, str], part: WorkflowPart
) -> TaskRow:
    """Return the row of a question of an execution, which is not written yet.

    It is a child that waits for its answer and that no worker has.
    """
    request = pb.CreateTaskRequest(
        task_type=QUESTION,
        assignment_mode=pb.POOL,
        target_implementation=row.workflow_id,
        workspace=row.workspace,
        root_task_id=row.root_id,
        correlation_id=row.correlation_id,
        metadata=metadata,
    )
    task = new_row(tx, request, task_id, row.workspace, row.owner, row.execution_id)
    task.status, task.paused_ms = StoredStatus.WAITING_INPUT, tx.context.now_ms
    task.wait = wait.named(0, task_id).to_json()
    task.workflow = WorkflowPart.QUESTION | part
    return task
