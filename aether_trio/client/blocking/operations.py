"""The namespaces of a blocking client, as attributes."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, Generic, TypeVar

from aether_trio.client.blocking import namespaces as names
from aether_trio.client.blocking.bridge import Blocking
from aether_trio.client.operations import Operations

T = TypeVar("T", bound=Operations)

NAMESPACES: Final[Mapping[str, type[names.SyncNamespace[Any]]]] = MappingProxyType(
    {
        "access": names.SyncAccess,
        "audit": names.SyncAudit,
        "authority_requests": names.SyncAuthorityRequests,
        "checkpoints": names.SyncCheckpoints,
        "gateway": names.SyncGateway,
        "grants": names.SyncGrants,
        "kv": names.SyncKv,
        "progress": names.SyncProgress,
        "proxy": names.SyncProxy,
        "registry": names.SyncRegistry,
        "rules": names.SyncRules,
        "sessions": names.SyncSessions,
        "tasks": names.SyncTasks,
        "tokens": names.SyncTokens,
        "tunnels": names.SyncTunnels,
        "workflow": names.SyncWorkflow,
        "workspaces": names.SyncWorkspaces,
    }
)
"""By the name of the attribute."""


class SyncOperations(Blocking[T], Generic[T]):
    """What makes a blocking client one with namespaces."""

    @property
    def access(self) -> names.SyncAccess:
        """See operations.Access."""
        return names.SyncAccess(self._bridge, self._target.access)

    @property
    def audit(self) -> names.SyncAudit:
        """See operations.Audit."""
        return names.SyncAudit(self._bridge, self._target.audit)

    @property
    def authority_requests(self) -> names.SyncAuthorityRequests:
        """See operations.AuthorityRequests."""
        return names.SyncAuthorityRequests(self._bridge, self._target.authority_requests)

    @property
    def checkpoints(self) -> names.SyncCheckpoints:
        """See operations.Checkpoints."""
        return names.SyncCheckpoints(self._bridge, self._target.checkpoints)

    @property
    def gateway(self) -> names.SyncGateway:
        """See operations.Gateway."""
        return names.SyncGateway(self._bridge, self._target.gateway)

    @property
    def grants(self) -> names.SyncGrants:
        """See operations.Grants."""
        return names.SyncGrants(self._bridge, self._target.grants)

    @property
    def kv(self) -> names.SyncKv:
        """See operations.Kv."""
        return names.SyncKv(self._bridge, self._target.kv)

    @property
    def progress(self) -> names.SyncProgress:
        """See operations.Progress."""
        return names.SyncProgress(self._bridge, self._target.progress)

    @property
    def proxy(self) -> names.SyncProxy:
        """See operations.Proxy."""
        return names.SyncProxy(self._bridge, self._target.proxy)

    @property
    def registry(self) -> names.SyncRegistry:
        """See operations.Registry."""
        return names.SyncRegistry(self._bridge, self._target.registry)

    @property
    def rules(self) -> names.SyncRules:
        """See operations.Rules."""
        return names.SyncRules(self._bridge, self._target.rules)

    @property
    def sessions(self) -> names.SyncSessions:
        """See operations.Sessions."""
        return names.SyncSessions(self._bridge, self._target.sessions)

    @property
    def tasks(self) -> names.SyncTasks:
        """See operations.Tasks."""
        return names.SyncTasks(self._bridge, self._target.tasks)

    @property
    def tokens(self) -> names.SyncTokens:
        """See operations.Tokens."""
        return names.SyncTokens(self._bridge, self._target.tokens)

    @property
    def tunnels(self) -> names.SyncTunnels:
        """See operations.Tunnels."""
        return names.SyncTunnels(self._bridge, self._target.tunnels)

    @property
    def workflow(self) -> names.SyncWorkflow:
        """See operations.Workflow."""
        return names.SyncWorkflow(self._bridge, self._target.workflow)

    @property
    def workspaces(self) -> names.SyncWorkspaces:
        """See operations.Workspaces."""
        return names.SyncWorkspaces(self._bridge, self._target.workspaces)
