"""Operations of the gateway as methods of a client, one namespace for each family.

    await agent.kv.put("greeting", b"hello", scope=Scope.WORKSPACE)
    task = await agent.tasks.create("summarize", payload, pool="summarizer")

This package exports the values and enums that the operations take; what they return is in the
module of each family. An operation that the gateway does not serve raises NotImplementedByGateway.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Generic, Self, TypeVar, cast, overload

from aether_trio.client.operations.access_checks import Access, AccessRequest, Continuation, ContinuationScope
from aether_trio.client.operations.access_rules import Rules
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
    PrincipalKind,
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
from aether_trio.client.operations.gateway import GatewayQueries
from aether_trio.client.operations.grant_cache import GrantCache
from aether_trio.client.operations.grant_values import Derivation, DeriveForTarget, GrantExchange
from aether_trio.client.operations.grants import Grants
from aether_trio.client.operations.kv import KeyPlace, Kv
from aether_trio.client.operations.namespace import Namespace
from aether_trio.client.operations.principals import AccessLevel, Authorization, Principal, ResourceScope, on_behalf_of
from aether_trio.client.operations.progress import Progress, ProgressStep, ProgressUpdate
from aether_trio.client.operations.proxy import Proxy, ProxyFailed, StreamedResponse
from aether_trio.client.operations.proxy_service import ProxiedRequest
from aether_trio.client.operations.requests import AuthorityRequests, AuthorityRoute, AuthorityWish, RequestEvent
from aether_trio.client.operations.sessions import Sessions
from aether_trio.client.operations.task_events import ChildChanged, StatusChanged, TaskEvent, TaskProgressed
from aether_trio.client.operations.task_values import (
    Answer,
    CompletionEvent,
    Hibernation,
    Input,
    Question,
    RetryPolicy,
    Task,
    WaitSpec,
)
from aether_trio.client.operations.tasks import Tasks
from aether_trio.client.operations.tokens import Tokens
from aether_trio.client.operations.topics import Topics
from aether_trio.client.operations.tunnels import Tunnel, TunnelClosed, Tunnels
from aether_trio.client.operations.workflow import ScheduleScope, Workflow
from aether_trio.client.operations.workspaces import Workspace, Workspaces

if TYPE_CHECKING:
    from aether_trio.client.requester import Requester

__all__ = [
    "NAMESPACES", "AccessLevel", "AccessRequest", "Answer", "AuthorityRequestEventType", "AuthorityRequestStatus",
    "AuthorityRoute", "AuthorityWish", "Authorization", "BackoffStrategy", "ChildChanged", "CompletionEvent",
    "Continuation", "ContinuationMode", "ContinuationScope", "Derivation", "DeriveForTarget", "GrantCache",
    "GrantExchange", "HealthCheckStatus", "HealthStatus", "Hibernation", "Input", "KeyPlace", "Operations", "Principal",
    "PrincipalKind", "ProgressKind", "ProgressStep", "ProgressUpdate", "ProxiedRequest", "ProxyFailed",
    "ProxyFailure", "Question", "Registration", "RequestEvent", "ResourceSchema", "ResourceScope", "RetryPolicy",
    "ScheduleLifetime", "ScheduleScope", "Scope", "StatusChanged", "StreamedResponse", "TargetOfflinePolicy",
    "Task", "TaskAssignmentMode", "TaskClass", "TaskEvent", "TaskPriority", "TaskProgressed", "TaskStatus", "Tunnel",
    "TunnelClosed", "TunnelEnd", "TunnelProtocol", "WaitReason", "WaitSpec", "Workspace", "on_behalf_of",
]  # fmt: skip

N = TypeVar("N", bound=Namespace)


class NamespaceAttribute(Generic[N]):
    """Descriptor: makes a client's namespace, such as `kv`, when it is read."""

    def __init__(self, namespace: type[N]) -> None:
        self.namespace = namespace
        self.__doc__ = namespace.__doc__

    @overload
    def __get__(self, client: None, owner: type) -> Self: ...
    @overload
    def __get__(self, client: Operations, owner: type) -> N: ...
    def __get__(self, client: Operations | None, owner: type) -> Self | N:
        return self if client is None else self.namespace(cast("Requester", client))


class Operations:
    """Mixin that gives a client its namespaces; their blocking form is generated."""

    access = NamespaceAttribute(Access)
    audit = NamespaceAttribute(Audit)
    authority_requests = NamespaceAttribute(AuthorityRequests)
    checkpoints = NamespaceAttribute(Checkpoints)
    gateway = NamespaceAttribute(GatewayQueries)
    grants = NamespaceAttribute(Grants)
    kv = NamespaceAttribute(Kv)
    progress = NamespaceAttribute(Progress)
    proxy = NamespaceAttribute(Proxy)
    registry = NamespaceAttribute(Registry)
    rules = NamespaceAttribute(Rules)
    sessions = NamespaceAttribute(Sessions)
    tasks = NamespaceAttribute(Tasks)
    tokens = NamespaceAttribute(Tokens)
    topics = NamespaceAttribute(Topics)
    tunnels = NamespaceAttribute(Tunnels)
    workflow = NamespaceAttribute(Workflow)
    workspaces = NamespaceAttribute(Workspaces)


NAMESPACES: Final[Mapping[str, type[Namespace]]] = MappingProxyType(
    {name: one.namespace for name, one in vars(Operations).items() if isinstance(one, NamespaceAttribute)}
)
"""The class of each namespace, by the name of its attribute."""
