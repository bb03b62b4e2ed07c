"""Makes task and row of a new execution, of a graph or a durable function."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, NamedTuple

from aether_trio.model.errors import RequestError
from aether_trio.model.tasks import Reason, StoredStatus, TaskRow, Wait
from aether_trio.model.tasks.task import WorkflowPart
from aether_trio.model.workflows.definition import Json
from aether_trio.model.workflows.forks import KeptPart
from aether_trio.model.workflows.hops import Hops, encode
from aether_trio.services.tasks.transaction.interface import ChangeRefused, Transaction
from aether_trio.services.workflows.actions.performer import Actions, new_row
from aether_trio.services.workflows.executions.execution_rows import ExecutionRow
from aether_trio.services.workflows.stored.definitions import StoredDefinition
from aether_trio.wire.pb import aether_pb2 as pb

RUN: Final = "workflow_run"
"""The type of the task that is an execution."""


QUEUED: Final = "queued"
"""The status of an execution that flow control lets wait."""


class ForkOf(NamedTuple):
    """Of which execution a new one is a fork, from which step, and what it keeps."""

    origin: str
    step: str
    kept: KeptPart


@dataclass(frozen=True, slots=True)
class Begin:
    """What a new execution is told: by whom it is started, and with which input."""

    input: Json
    creator: str
    correlation_id: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    hops: Hops = ()  # what has led to it, and its workflow; () if it was started by a client
    origin: str = ""  # the schedule that starts it
    instead_of: str = ""  # the execution of the same workflow whose place it takes
    continues: ExecutionRow | None = None  # the one with whose work it goes on
    signals: tuple[tuple[str, Json, str], ...] = ()  # (name, data, by): not taken by that one
    fork: ForkOf | None = None
    written: bytes = b""  # the input as JSON if it is large: transactions do not write it then


class StartRefused(ChangeRefused):
    """An execution cannot be started; the text says why."""


class StartDropped(StartRefused):
    """Flow control drops a start, as its document says."""


class ExecutionPosition(NamedTuple):
    """Where a new execution is: its id, and the step above whose work it is, if any.

    `part`: what it is to the execution above. `place`: metadata of its task that say which step.
    """

    task_id: str
    parent: ExecutionRow | None = None
    depth: int = 0
    part: WorkflowPart = WorkflowPart.NONE
    place: Mapping[str, str] = MappingProxyType({})
    queued: bool = False
    """Whether it waits until flow control lets it begin."""


def new_execution(
    tx: Transaction,
    actions: Actions,
    stored: StoredDefinition,
    workspace: str,
    begin: Begin,
    position: ExecutionPosition,
    trigger: bytes,
    *,
    worker: str = "",
    kind: str = "graph",
    state: bytes,
) -> tuple[TaskRow, ExecutionRow]:
    """Make the task and the row of an execution; `trigger` is its encoded input.

    `worker`: the implementation that works on the task itself. Raises StartRefused.
    """
    parent = position.parent
    request = pb.CreateTaskRequest(
        task_type=RUN,
        assignment_mode=pb.POOL,
        target_implementation=worker or stored.id,
        correlation_id=begin.correlation_id or ("" if parent is None else parent.correlation_id),
        root_task_id="" if parent is None else parent.root_id,
        metadata={**begin.metadata, **position.place, "workflow_id": stored.id, "version": str(stored.version)},
        payload=trigger,
    )
    try:
        actions.check_size(request, workspace)
        above = "" if parent is None else parent.execution_id
        task = new_row(tx, request, position.task_id, workspace, begin.creator, above)
    except (RequestError, ValueError) as error:
        raise StartRefused(str(error)) from None
    row = ExecutionRow(
        task.task_id,
        workspace,
        stored.workspace,
        stored.id,
        stored.version,
        stored.owner,
        QUEUED if position.queued else "running",
        state,
        trigger,
        parent_id=task.parent_task_id,
        root_id=task.root_task_id,
        correlation_id=task.correlation_id,
        depth=position.depth,
        started_ms=tx.context.now_ms,
        hops=encode(begin.hops),
        kind=kind,
    )
    if position.queued:
        task.status, task.paused_ms = StoredStatus.WAITING_DEPENDENCY, tx.context.now_ms
        task.wait = Wait(reason=Reason.DEPENDENCY).to_json()
    return task, row
