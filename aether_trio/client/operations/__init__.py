"""All operations of the protocol, for the client: one namespace for each family, bound to whatever can make a request.

    await agent.kv.put("greeting", b"hello", scope=Scope.WORKSPACE)
    task = await agent.tasks.create("summarize", payload, pool="summarizer")

NAMESPACES is the list; `Operations` is the mixin that gives a client these attributes. What a gateway does not serve yet raises
NotImplementedByGateway. Here are the values that the operations take, their enums, and what they raise or hand out beyond
aether_trio.client's; what they return is described where each family is, such as aether_trio.client.operations.kv.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, cast

from aether_trio.client.operations.access import Access, AccessRequest, Continuation, ContinuationScope
from aether_trio.client.operations.agents import Registration, Registry, ResourceSchema
from aether_trio.client.operations.audit import Audit
from aether_trio.client.operations.checkpoints import Checkpoints
from aether_trio.client.operations.enums import (
    AuthorityRequestEventType,
    AuthorityRequestStatus,
    BackoffStrategy,
    ContinuationMode,
    HealthCheckStatus,
    HealthStatus,
    PrincipalType,
    ProgressKind,
    ProxyFailure,
    ScheduleLifetime,
    Scope,
    TargetOfflinePolicy,
    TaskAssignmentMode,
    TaskClass,
    TaskPriority,
    TaskStatus,
    TunnelEnd,
    TunnelProtocol,
    WaitReason,
)
from aether_trio.client.operations.gateway import Gateway
from aether_trio.client.operations.grant_cache import GrantCache
from aether_trio.client.operations.grant_values import Derivation, DeriveForTarget, Exchange
from aether_trio.client.operations.grants import Grants
from aether_trio.client.operations.kv import Kv, Place
from aether_trio.client.operations.namespace import Namespace
from aether_trio.client.operations.principals import AccessLevel, Authorization, Principal, ResourceScope, on_behalf_of
from aether_trio.client.operations.progress import Progress, ProgressUpdate, Step
from aether_trio.client.operations.proxy import Proxy, ProxyFailed, StreamedResponse
from aether_trio.client.operations.proxy_service import ProxiedRequest
from aether_trio.client.operations.requests import AuthorityRequests, RequestEvent, Route, Wish
from aether_trio.client.operations.rules import Rules
from aether_trio.client.operations.sessions import Sessions
from aether_trio.client.operations.task_events import ChildChanged, StatusChanged, TaskEvent, TaskProgressed
from aether_trio.client.operations.task_values import CompletionEvent, Hibernation, RetryPolicy, WaitSpec
from aether_trio.client.operations.tasks import Tasks
from aether_trio.client.operations.tokens import Tokens
from aether_trio.client.operations.tunnels import Tunnel, TunnelClosed, Tunnels
from aether_trio.client.operations.workflow import ScheduleScope, Workflow
from aether_trio.client.operations.workspaces import Workspace, Workspaces

if TYPE_CHECKING:
    from aether_trio.client.requester import Requester

__all__ = [
    "NAMESPACES",
    "AccessLevel",
    "AccessRequest",
    "AuthorityRequestEventType",
    "AuthorityRequestStatus",
    "Authorization",
    "BackoffStrategy",
    "ChildChanged",
    "CompletionEvent",
    "Continuation",
    "ContinuationMode",
    "ContinuationScope",
    "Derivation",
    "DeriveForTarget",
    "Exchange",
    "GrantCache",
    "HealthCheckStatus",
    "HealthStatus",
    "Hibernation",
    "Operations",
    "Place",
    "Principal",
    "PrincipalType",
    "ProgressKind",
    "ProgressUpdate",
    "ProxiedRequest",
    "ProxyFailed",
    "ProxyFailure",
    "Registration",
    "RequestEvent",
    "ResourceSchema",
    "ResourceScope",
    "RetryPolicy",
    "Route",
    "ScheduleLifetime",
    "ScheduleScope",
    "Scope",
    "StatusChanged",
    "Step",
    "StreamedResponse",
    "TargetOfflinePolicy",
    "TaskAssignmentMode",
    "TaskClass",
    "TaskEvent",
    "TaskPriority",
    "TaskProgressed",
    "TaskStatus",
    "Tunnel",
    "TunnelClosed",
    "TunnelEnd",
    "TunnelProtocol",
    "WaitReason",
    "WaitSpec",
    "Wish",
    "Workspace",
    "on_behalf_of",
]

NAMESPACES: Final[Mapping[str, type[Namespace]]] = MappingProxyType(
    {
        "access": Access,
        "audit": Audit,
        "authority_requests": AuthorityRequests,
        "checkpoints": Checkpoints,
        "gateway": Gateway,
        "grants": Grants,
        "kv": Kv,
        "progress": Progress,
        "proxy": Proxy,
        "registry": Registry,
        "rules": Rules,
        "sessions": Sessions,
        "tasks": Tasks,
        "tokens": Tokens,
        "tunnels": Tunnels,
        "workflow": Workflow,
        "workspaces": Workspaces,
    }
)
"""By the name of the attribute."""


class Operations:
    """What makes a Requester a client with namespaces. They hold nothing, and are made anew each time."""

    @property
    def access(self) -> Access:
        """May I do this to that? And messages that are delivered only if I may."""
        return Access(cast("Requester", self))

    @property
    def audit(self) -> Audit:
        """The audit log."""
        return Audit(cast("Requester", self))

    @property
    def authority_requests(self) -> AuthorityRequests:
        """Ask somebody for authority, and decide what was asked."""
        return AuthorityRequests(cast("Requester", self))

    @property
    def checkpoints(self) -> Checkpoints:
        """What this participant saves for its next life."""
        return Checkpoints(cast("Requester", self))

    @property
    def gateway(self) -> Gateway:
        """The gateway process itself."""
        return Gateway(cast("Requester", self))

    @property
    def grants(self) -> Grants:
        """Authority to act for others."""
        return Grants(cast("Requester", self))

    @property
    def kv(self) -> Kv:
        """The key-value store."""
        return Kv(cast("Requester", self))

    @property
    def progress(self) -> Progress:
        """Tell others how far something has come."""
        return Progress(cast("Requester", self))

    @property
    def proxy(self) -> Proxy:
        """HTTP to services behind the gateway, and the answering side of it."""
        return Proxy(cast("Requester", self))

    @property
    def registry(self) -> Registry:
        """The registered agent implementations, and starting one."""
        return Registry(cast("Requester", self))

    @property
    def rules(self) -> Rules:
        """Access rules, groups and roles."""
        return Rules(cast("Requester", self))

    @property
    def sessions(self) -> Sessions:
        """Who is connected."""
        return Sessions(cast("Requester", self))

    @property
    def tasks(self) -> Tasks:
        """Tasks: create, find, follow, and move them through their states."""
        return Tasks(cast("Requester", self))

    @property
    def tokens(self) -> Tokens:
        """API tokens."""
        return Tokens(cast("Requester", self))

    @property
    def tunnels(self) -> Tunnels:
        """Bytes to a service behind the gateway."""
        return Tunnels(cast("Requester", self))

    @property
    def workflow(self) -> Workflow:
        """The workflow engine."""
        return Workflow(cast("Requester", self))

    @property
    def workspaces(self) -> Workspaces:
        """Workspaces; for a user, moving between them."""
        return Workspaces(cast("Requester", self))
