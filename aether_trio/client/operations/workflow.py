"""`agent.workflow`: sends requests to the workflow engine, or answers them as it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeAlias

from aether_trio.client.operations.enums import ScheduleLifetime
from aether_trio.client.operations.namespace import Namespace
from aether_trio.client.operations.principals import Authorization, ResourceScope, authorization_context
from aether_trio.client.operations.records import Seconds, write
from aether_trio.wire.pb import aether_pb2 as pb

_Op = pb.WorkflowOperation
_Kind: TypeAlias = pb.WorkflowOperation.OpType.ValueType


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleScope:
    """The authority that a schedule needs when it fires; times in whole seconds."""

    max_access_level: int
    workspace_scope: tuple[str, ...] = ()
    resource_scope: tuple[ResourceScope, ...] = ()
    operation_scope: tuple[str, ...] = ()
    expires_at: Seconds = None
    renewable_until: Seconds = None
    required_task_authority_hops: int = 0
    lifetime_mode: ScheduleLifetime = ScheduleLifetime.SOURCE_BOUND
    policy_version: int = 1


@dataclass(frozen=True, slots=True)
class WorkflowAnswer:
    """The answer of the workflow engine: a JSON document, and the total of a list."""

    data: bytes
    message: str
    total: int


class Workflow(Namespace):
    """Sends requests to the workflow engine, through the gateway."""

    async def list_rules(self, workspace: str = "") -> WorkflowAnswer:
        """List the engine's rules: which action follows which event."""
        return await self._do(_Op.LIST_RULES, workspace=workspace)

    async def get_rule(self, rule_id: str, *, workspace: str = "") -> WorkflowAnswer:
        """Return one rule of the workflow engine."""
        return await self._do(_Op.GET_RULE, rule_id, workspace=workspace)

    async def create_rule(self, data: bytes, *, workspace: str = "") -> WorkflowAnswer:
        """Create a rule of the workflow engine."""
        return await self._do(_Op.CREATE_RULE, data=data, workspace=workspace)

    async def update_rule(self, rule_id: str, data: bytes, *, workspace: str = "") -> WorkflowAnswer:
        """Replace a rule of the workflow engine."""
        return await self._do(_Op.UPDATE_RULE, rule_id, data=data, workspace=workspace)

    async def delete_rule(self, rule_id: str, *, workspace: str = "") -> WorkflowAnswer:
        """Delete a rule of the workflow engine."""
        return await self._do(_Op.DELETE_RULE, rule_id, workspace=workspace)

    async def list_workflows(self, workspace: str = "") -> WorkflowAnswer:
        """List the workflows."""
        return await self._do(_Op.LIST_WORKFLOWS, workspace=workspace)

    async def get_workflow(self, workflow_id: str, *, workspace: str = "") -> WorkflowAnswer:
        """Return one workflow."""
        return await self._do(_Op.GET_WORKFLOW, workflow_id, workspace=workspace)

    async def create_workflow(self, data: bytes, *, workspace: str = "") -> WorkflowAnswer:
        """Create a workflow."""
        return await self._do(_Op.CREATE_WORKFLOW, data=data, workspace=workspace)

    async def delete_workflow(self, workflow_id: str, *, workspace: str = "") -> WorkflowAnswer:
        """Delete a workflow."""
        return await self._do(_Op.DELETE_WORKFLOW, workflow_id, workspace=workspace)

    async def list_schedules(self, workspace: str) -> WorkflowAnswer:
        """List the schedules of one workspace."""
        return await self._do(_Op.LIST_SCHEDULES, workspace=_exact(workspace))

    async def create_schedule(
        self,
        schedule_id: str,
        data: bytes,
        *,
        workspace: str,
        authority: ScheduleScope | None = None,
        authorization: Authorization | None = None,
    ) -> WorkflowAnswer:
        """Create a schedule in one workspace; "" and "*" raise ValueError."""
        op = _Op(op=_Op.CREATE_SCHEDULE, id=schedule_id, data=data, workspace=_exact(workspace))
        return await self._send(op, authority, authorization)

    async def upsert_schedule(
        self,
        schedule_id: str,
        data: bytes,
        *,
        workspace: str,
        authority: ScheduleScope | None = None,
        authorization: Authorization | None = None,
    ) -> WorkflowAnswer:
        """Create a schedule, or replace the one with this id."""
        op = _Op(op=_Op.UPSERT_SCHEDULE, id=schedule_id, data=data, workspace=_exact(workspace))
        return await self._send(op, authority, authorization)

    async def delete_schedule(self, schedule_id: str, *, workspace: str) -> WorkflowAnswer:
        """Delete a schedule."""
        return await self._do(_Op.DELETE_SCHEDULE, schedule_id, workspace=_exact(workspace))

    async def list_executions(self, workspace: str = "", *, status: str = "") -> WorkflowAnswer:
        """List the executions of workflows, running and ended, by status if given."""
        return await self._do(_Op.LIST_EXECUTIONS, workspace=workspace, status=status)

    async def get_execution(self, execution_id: str, *, workspace: str = "") -> WorkflowAnswer:
        """Return one execution of a workflow."""
        return await self._do(_Op.GET_EXECUTION, execution_id, workspace=workspace)

    async def cancel_execution(self, execution_id: str, *, workspace: str = "") -> WorkflowAnswer:
        """Cancel an execution of a workflow."""
        return await self._do(_Op.CANCEL_EXECUTION, execution_id, workspace=workspace)

    async def list_state_machines(self, workspace: str = "") -> WorkflowAnswer:
        """List the state machines."""
        return await self._do(_Op.LIST_STATE_MACHINES, workspace=workspace)

    async def get_state_machine(self, machine_id: str, *, workspace: str = "") -> WorkflowAnswer:
        """Return one state machine."""
        return await self._do(_Op.GET_STATE_MACHINE, machine_id, workspace=workspace)

    async def create_state_machine(self, data: bytes, *, workspace: str = "") -> WorkflowAnswer:
        """Create a state machine."""
        return await self._do(_Op.CREATE_STATE_MACHINE, data=data, workspace=workspace)

    async def delete_state_machine(self, machine_id: str, *, workspace: str = "") -> WorkflowAnswer:
        """Delete a state machine."""
        return await self._do(_Op.DELETE_STATE_MACHINE, machine_id, workspace=workspace)

    async def list_instances(self, machine_id: str = "", *, workspace: str = "", status: str = "") -> WorkflowAnswer:
        """List the instances of a state machine, or of all."""
        return await self._do(_Op.LIST_SM_INSTANCES, machine_id, workspace=workspace, status=status)

    async def get_instance(self, instance_id: str, *, workspace: str = "") -> WorkflowAnswer:
        """Return one instance of a state machine."""
        return await self._do(_Op.GET_SM_INSTANCE, instance_id, workspace=workspace)

    async def create_instance(self, machine_id: str, data: bytes = b"", *, workspace: str = "") -> WorkflowAnswer:
        """Start an instance of a state machine."""
        return await self._do(_Op.CREATE_SM_INSTANCE, machine_id, data=data, workspace=workspace)

    async def send_event(
        self, instance_id: str, event: str, data: bytes = b"", *, workspace: str = ""
    ) -> WorkflowAnswer:
        """Send an event to an instance of a state machine."""
        return await self._do(_Op.SEND_SM_EVENT, instance_id, event, data=data, workspace=workspace)

    async def list_joins(self, workspace: str = "", *, status: str = "") -> WorkflowAnswer:
        """List the joins, which wait until several events have come together."""
        return await self._do(_Op.LIST_JOINS, workspace=workspace, status=status)

    async def get_join(self, join_id: str, key: str = "", *, workspace: str = "") -> WorkflowAnswer:
        """Return one join, which waits until several events have come together."""
        return await self._do(_Op.GET_JOIN, join_id, key, workspace=workspace)

    async def cancel_join(self, join_id: str, key: str = "", *, workspace: str = "") -> WorkflowAnswer:
        """Cancel a join, which waits for several events."""
        return await self._do(_Op.CANCEL_JOIN, join_id, key, workspace=workspace)

    @asynccontextmanager
    async def requests(self, *, capacity: int = 1024) -> AsyncIterator[AsyncIterator[pb.WorkflowOperation]]:
        """Yield requests to this workflow engine in the block; `respond` answers them."""
        with self._feed("workflow_op", capacity=capacity) as feed:
            yield feed

    async def respond(
        self, request_id: str, data: bytes = b"", *, error: str = "", message: str = "", total: int = 0
    ) -> None:
        """Answer a request to the workflow engine, which the caller is."""
        answer = pb.WorkflowResponse(
            success=not error, error=error, message=message, data=data, total_count=total, request_id=request_id
        )
        await self._tell_confirmed("workflow_response", answer)

    async def _do(
        self,
        kind: _Kind,
        about: str = "",
        second: str = "",
        *,
        data: bytes = b"",
        workspace: str = "",
        status: str = "",
    ) -> WorkflowAnswer:
        op = _Op(op=kind, id=about, secondary_id=second, workspace=workspace, data=data, status_filter=status)
        return await self._send(op)

    async def _send(
        self,
        op: pb.WorkflowOperation,
        authority: ScheduleScope | None = None,
        authorization: Authorization | None = None,
    ) -> WorkflowAnswer:
        if authority is not None:
            write(authority, op.schedule_authority_scope)
        context = authorization_context(authorization)
        if context is not None:
            op.authorization.CopyFrom(context)
        answer: pb.WorkflowResponse = await self._ask("workflow_op", op)
        return WorkflowAnswer(answer.data, answer.message, answer.total_count)


def _exact(workspace: str) -> str:
    if workspace in {"", "*"}:
        raise ValueError(f"a schedule belongs to one workspace, and {workspace!r} names none; give its id")
    return workspace
