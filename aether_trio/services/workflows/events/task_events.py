"""Events of tasks: one was created, or its status has changed.

    transaction that changes the task ─▶ `task_outbox` ─▶ topic of the engine ─▶ intake.py

The event is written in the transaction of the change, so there is one for each change, and none for
what was undone. The log may have copies of it, with one `event_id`, which the intake knows.

Its source is the participant that has caused the change, or the task's own topic where the gateway
has. It has the causes of the task (`_hops`), so that a rule which creates tasks at the end of tasks
is stopped. Starts of agents, and the dead letters of events and messages, have no such events.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from aether_trio.model.identity import Identity, IdentityError
from aether_trio.model.limits import KIB
from aether_trio.model.tasks import StoredStatus, TaskRow
from aether_trio.model.tasks.result import ResultKind
from aether_trio.model.tasks.task import AGENT_STARTUP, WorkflowPart
from aether_trio.model.topics import EVENT_INTAKE, task_topic
from aether_trio.model.workflows.hops import decode
from aether_trio.model.workflows.sources import ATTEMPT_FAILED, CREATED, TASK_EVENTS
from aether_trio.services.tasks.transaction.dead_messages import DEAD_MESSAGE
from aether_trio.services.tasks.transaction.interface import Transaction
from aether_trio.services.workflows.events.taken_events import HOPS, MAX_EVENT_BYTES, is_deep
from aether_trio.storage.base import Deferred, Fetch, Program, Row
from aether_trio.wire.delivery import delivery_prefix, delivery_suffix, encode_delivery
from aether_trio.wire.pb import aether_pb2 as pb

GATEWAY_AGENT: Final = "orchestrator"
"""The source agent of what the gateway has caused, as of completion events."""
RESULT_BYTES: Final = 64 * KIB
"""A larger result is left out of the event."""
_SUFFIX: Final = " moved"
"""Behind the task's id, in `task_outbox`: the completion event of the task has the id alone."""
_NONE: Final[tuple[str, ...]] = ()


def names_of(before: TaskRow | None, task: TaskRow) -> tuple[str, ...]:
    """Return the names of a task's event; `before` is None for a new task."""
    if task.workflow & WorkflowPart.EVENT or task.task_type in (AGENT_STARTUP, DEAD_MESSAGE):
        return _NONE
    if before is None:
        return (CREATED,)
    if task.status is StoredStatus.FAILED and task.next_retry_ms:
        return (ATTEMPT_FAILED,)
    return TASK_EVENTS[task.status]


def write(tx: Transaction, task: TaskRow, names: Sequence[str], by: str) -> Program[None]:
    """Write a task's event; `by`: the identity that has caused it, "": the gateway."""
    spec = pb.CreateTaskRequest.FromString(task.spec)
    wanted = spec.completion_event
    if wanted.enabled and task.is_final and (not wanted.on_statuses or task.status.wire in wanted.on_statuses):
        # That event has this name already.
        asked = wanted.event_name or f"task.{task.status.value}"
        names = [name for name in names if name != asked]
        if not names:
            return
    event: dict[str, Any] = {
        "source_agent": _agent(by),
        "source_principal": by,
        "workspace": task.workspace,
        "event_names": list(names),
        "event_id": f"{task.task_id}.{task.events}.moved",
        "data": _data(tx, task, dict(spec.metadata)),
    }
    if task.workflow & (WorkflowPart.RUN | WorkflowPart.FUNCTION):
        rows: list[Row] = yield Fetch("SELECT hops FROM workflow_executions WHERE execution_id = $1", (task.task_id,))
        if rows and rows[0][0]:
            event[HOPS] = list(decode(rows[0][0]))
    yield Deferred(
        "task_outbox",
        "INSERT INTO task_outbox (task_id, number, node, topic, frame) VALUES ($1, $2, $3, $4, $5)",
        (task.task_id + _SUFFIX, task.events, tx.context.node, EVENT_INTAKE, _frame(task, event)),
    )
    tx.effects.outbox = True


def _data(tx: Transaction, task: TaskRow, metadata: dict[str, str]) -> dict[str, Any]:
    data: dict[str, Any] = {
        "task_id": task.task_id,
        "task_type": task.task_type,
        "status": task.status.value,
        "error": task.error,
        "error_type": task.error_type,
        "assigned_to": task.assigned_to,
        "creator": task.creator,
        "correlation_id": task.correlation_id,
        "root_task_id": task.root_task_id,
        "parent_task_id": task.parent_task_id,
        "attempt": task.retry_count,
        "metadata": metadata,
    }
    result = tx.results.get(task.task_id)
    if result is not None and result.kind is ResultKind.JSON and len(result.data) <= RESULT_BYTES:
        value = json.loads(result.data)
        if not is_deep([[value]]):  # two levels down, as in the event
            data["result"] = value
    return data


def _frame(task: TaskRow, event: dict[str, Any]) -> bytes:
    payload = json.dumps(event, separators=(",", ":")).encode()
    if len(payload) > MAX_EVENT_BYTES:
        # What the event is too large for can be read from the task.
        data = event["data"]
        hops = data["metadata"].get(HOPS)
        event["data"] = data | {"metadata": {HOPS: hops} if hops else {}, "truncated": True}
        event["data"].pop("result", None)
        payload = json.dumps(event, separators=(",", ":")).encode()
    return encode_delivery(
        delivery_prefix(task_topic(task.workspace, task.task_id, "events")),
        payload,
        delivery_suffix(pb.EVENT, task.workspace),
    )


def _agent(by: str) -> str:
    if not by:
        return GATEWAY_AGENT
    try:
        return Identity.parse(by, strict=False).implementation or GATEWAY_AGENT
    except IdentityError:
        return GATEWAY_AGENT
