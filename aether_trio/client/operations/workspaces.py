"""`agent.workspaces`: manages workspaces, and moves a user's window to another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from aether_trio.client.operations.enums import PrincipalKind
from aether_trio.client.operations.namespace import Namespace
from aether_trio.client.operations.records import Seconds, Wire, read, write
from aether_trio.wire.pb import aether_pb2 as pb

_Op = pb.WorkspaceOperation


@dataclass(frozen=True, slots=True, kw_only=True)
class Workspace:
    """A workspace. The gateway fills in the times and the counters."""

    workspace_id: str
    display_name: str = ""
    description: str = ""
    tenant_id: str = ""
    created_at: Seconds = None
    updated_at: Seconds = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    active_agents: int = 0
    active_tasks: int = 0
    active_users: int = 0
    total_messages: int = 0


@dataclass(frozen=True, slots=True)
class WorkspacePage:
    """A page of workspaces, and how many there are in all."""

    workspaces: tuple[Workspace, ...]
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowNode:
    """One participant in the graph of a workspace's messages."""

    id: str
    label: str
    principal_type: Annotated[PrincipalKind, Wire("type")]
    status: str
    implementation: str
    specifier: str
    topic: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowEdge:
    """Messages from one participant to another in the graph, by their node ids."""

    source: Annotated[str, Wire("from")]
    target: Annotated[str, Wire("to")]
    label: str
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageFlow:
    """The graph of which participants of a workspace send to which."""

    workspace_id: str
    nodes: tuple[FlowNode, ...]
    edges: tuple[FlowEdge, ...]
    updated_at: Seconds


class Workspaces(Namespace):
    """Manages workspaces, and moves a user's window to another."""

    async def switch(self, workspace: str) -> None:
        """Move this user's window to a workspace; "" leaves all. Raises PermissionDenied."""
        await self._tell_confirmed("switch_workspace", pb.SwitchWorkspace(new_workspace_id=workspace))

    async def list(self, *, tenant_id: str = "", limit: int = 0, offset: int = 0) -> WorkspacePage:
        """List the workspaces of this tenant, or all."""
        wanted = pb.WorkspaceFilter(tenant_id=tenant_id, limit=limit, offset=offset)
        answer = await self._do(_Op(op=_Op.LIST, filter=wanted))
        return WorkspacePage(tuple(read(Workspace, one) for one in answer.workspaces), answer.total_count)

    async def get(self, workspace_id: str) -> Workspace:
        """Return one workspace. Raises Refused if there is none with this id."""
        return read(Workspace, (await self._do(_Op(op=_Op.GET, workspace_id=workspace_id))).workspace)

    async def create(self, workspace: Workspace) -> Workspace:
        """Create a workspace; return it as it was stored."""
        return await self._write(_Op.CREATE, workspace)

    async def update(self, workspace: Workspace) -> Workspace:
        """Change the workspace with this id; return it as it is stored now."""
        return await self._write(_Op.UPDATE, workspace)

    async def delete(self, workspace_id: str) -> None:
        """Delete a workspace."""
        await self._do(_Op(op=_Op.DELETE, workspace_id=workspace_id))

    async def message_flow(self, workspace_id: str) -> MessageFlow:
        """Return the graph of which participants of a workspace send to which."""
        answer = await self._do(_Op(op=_Op.GET_MESSAGE_FLOW, workspace_id=workspace_id))
        return read(MessageFlow, answer.message_flow)

    async def _write(self, kind: pb.WorkspaceOperation.OpType.ValueType, workspace: Workspace) -> Workspace:
        op = _Op(op=kind, workspace_id=workspace.workspace_id, workspace=write(workspace, pb.WorkspaceInfo()))
        return read(Workspace, (await self._do(op)).workspace)

    async def _do(self, op: pb.WorkspaceOperation) -> pb.WorkspaceResponse:
        answer: pb.WorkspaceResponse = await self._ask("workspace_op", op)
        return answer
