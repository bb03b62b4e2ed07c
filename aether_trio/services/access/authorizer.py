"""Decides whether an identity may perform an operation on a resource.

Today DevAuthorizer answers, which has no rules; rules, roles and grants come later behind the same
Protocol. What the protocol fixes without rules (which kinds use KV, which sender may address which
topic) is in model/permissions.py and in the services.

`check` and its named forms may wait for a database. `check_send` and `may_credit_metrics` are on
the message path and never wait; the router caches their answers by sender and target.

Resource types and ids are the reference's (security.md 2.4, 2.8): `workspace`/name, `kv_key`/key,
`kv_scope`/scope name, `admin`/`admin/<category>`, `capability`/`capability/<name>`.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from aether_trio.model.access import AccessLevel
from aether_trio.model.errors import Code, RequestError
from aether_trio.model.identity import Identity, Kind
from aether_trio.model.text import shown
from aether_trio.model.topics import Topic
from aether_trio.wire.pb import aether_pb2 as pb


class Admin(enum.StrEnum):
    """Resource ids of the administrative categories, for access checks."""

    SESSIONS = "admin/sessions"
    WORKSPACES = "admin/workspaces"
    AGENTS = "admin/agents"
    ACL = "admin/acl"
    TOKENS = "admin/tokens"
    AUDIT = "admin/audit"


class Capability(enum.StrEnum):
    """Resource ids of single permissions; each comment names the access level."""

    KV_PURGE_IDENTITY = "capability/kv_purge_identity"  # MANAGE
    METRIC_CREDIT = "capability/metric_credit"  # ADMIN
    QUERY_CONNECTIONS = "capability/query_connections"  # READ
    RESOLVE_AUTHORITY = "capability/resolve_authority"  # READ
    EXCHANGE_AUTHORITY_GRANTS = "capability/exchange_authority_grants"  # MANAGE
    MINT_USER_TOKENS = "capability/mint_user_tokens"  # MANAGE
    EVENT_BROADCAST = "capability/event_broadcast"  # READWRITE
    METRIC_BROADCAST = "capability/metric_broadcast"  # READWRITE
    AUDIT_SUBMIT = "capability/audit_submit"  # READ


@dataclass(frozen=True, slots=True)
class AccessDecision:
    """The answer to an access check; `reason` is the client's error text."""

    allowed: bool
    reason: str = ""


ALLOWED: Final = AccessDecision(True)


@dataclass(frozen=True, slots=True)
class Authority:
    """On whose behalf a client's operation runs; without a grant id: its own."""

    grant_id: str = ""
    subject: str = ""

    @property
    def is_direct(self) -> bool:
        return not self.grant_id


DIRECT: Final = Authority()


class Reach(Protocol):
    """What a client's credential reaches, whatever access rules say; a Session is one."""

    allows_workspace: Callable[[str], bool]  # whether the credential reaches this workspace

    def reaches(self, identity: Identity, workspace: str = "") -> bool:
        """Whether the credential reaches a participant, and a workspace that it is in."""


class _Everywhere:
    """Reaches all participants and workspaces: for calls by parts of the gateway."""

    def __init__(self) -> None:
        self.allows_workspace: Callable[[str], bool] = lambda workspace: True

    def reaches(self, identity: Identity, workspace: str = "") -> bool:
        return True


EVERYWHERE: Final[Reach] = _Everywhere()


class Authorizer(Protocol):
    """Answers access checks, and refuses when it cannot find out."""

    async def check(
        self,
        identity: Identity,
        operation: str,
        resource_type: str,
        resource_id: str,
        workspace: str,
        level: AccessLevel,
        authority: Authority = DIRECT,
    ) -> AccessDecision:
        """Whether `identity` may do `operation` (for the audit) at `level` to a resource."""

    async def check_workspace(
        self, identity: Identity, workspace: str, level: AccessLevel = AccessLevel.READ, operation: str = "connect"
    ) -> AccessDecision:
        """Whether `identity` may enter (or, at other levels, use) a workspace."""

    async def check_admin(
        self, identity: Identity, category: str, level: AccessLevel = AccessLevel.ADMIN, operation: str = "admin"
    ) -> AccessDecision:
        """Whether `identity` may administer the resource "admin/" + `category`."""

    async def check_query_connections(self, identity: Identity) -> AccessDecision:
        """Whether `identity` may ask if another participant is connected."""

    async def check_kv(
        self,
        identity: Identity,
        scope: str,
        key: str,
        workspace: str,
        level: AccessLevel,
        authority: Authority = DIRECT,
    ) -> AccessDecision:
        """Whether `identity` may use `key` in the shared KV scope, such as "global"."""

    async def authority(self, identity: Identity, context: pb.AuthorizationContext | None) -> Authority:
        """Resolve an authorization context. Raises RequestError(PERMISSION_DENIED)."""

    def check_send(self, identity: Identity, topic: Topic, *, workspace: str, declared_workspace: str) -> str | None:
        """Return why `identity` may not send to `topic`, or None. Never waits.

        The sender is in `workspace`. An event or a metric claims to be about `declared_workspace`,
        which is another one if the sender broadcasts there.
        """

    def check_send_authority(self, identity: Identity, context: pb.AuthorizationContext) -> str | None:
        """Return why a message's authorization context is refused, or None. Never waits."""

    def may_credit_metrics(self, identity: Identity) -> bool:
        """Whether `identity` may report negative quantities. Never waits."""


# Without rules all is open, except acts of one participant on all others (core.md 4.3).
_NEED_RULES: Final = frozenset(
    {
        *Admin,
        Capability.KV_PURGE_IDENTITY,
        Capability.METRIC_CREDIT,
        Capability.QUERY_CONNECTIONS,
        Capability.RESOLVE_AUTHORITY,
        Capability.EXCHANGE_AUTHORITY_GRANTS,
        Capability.MINT_USER_TOKENS,
    }
)
_WORK: Final = "task_work"
"""The operation of a client that acts as another identity's worker: only system kinds may."""
# System kinds need no rule for these (core.md section 10; sdk.md section 5 for tokens).
_SYSTEM_KINDS: Final = frozenset({Kind.WORKFLOW_ENGINE, Kind.ORCHESTRATOR})
_SYSTEM_HOLDS: Final = frozenset({*Admin, Capability.QUERY_CONNECTIONS, Capability.RESOLVE_AUTHORITY})
_NO_RULES: Final = "acting on behalf of others needs access rules, and none are configured"


def _context_problem(context: pb.AuthorizationContext) -> str | None:
    """Return why an authorization context is refused without access rules, or None."""
    mode = context.authority_mode
    if mode in {"", "direct"}:
        if context.grant_id or context.HasField("subject"):
            return "a direct operation carries no subject and no grant; did you mean on_behalf_of?"
        return None
    if mode == "on_behalf_of":
        return _NO_RULES
    return f"unknown authority_mode {shown(mode)}: expected direct or on_behalf_of"


class DevAuthorizer:
    """Allows what the reference gateway does without an ACL service, and `granted`."""

    def __init__(self, granted: frozenset[str] = frozenset()) -> None:
        self._granted = granted

    async def check(
        self,
        identity: Identity,
        operation: str,
        resource_type: str,
        resource_id: str,
        workspace: str,
        level: AccessLevel,
        authority: Authority = DIRECT,
    ) -> AccessDecision:
        if not authority.is_direct:
            return AccessDecision(False, _NO_RULES)
        if operation == _WORK and identity.kind not in _SYSTEM_KINDS:
            return AccessDecision(False, f"{operation} needs an access rule, and this gateway has no rules")
        if self._holds(identity, resource_id):
            return ALLOWED
        why = f"{operation} needs {resource_id} at {level.name}, which this gateway has granted to no identity"
        return AccessDecision(False, why)

    async def check_workspace(
        self, identity: Identity, workspace: str, level: AccessLevel = AccessLevel.READ, operation: str = "connect"
    ) -> AccessDecision:
        return await self.check(identity, operation, "workspace", workspace, workspace, level)

    async def check_admin(
        self, identity: Identity, category: str, level: AccessLevel = AccessLevel.ADMIN, operation: str = "admin"
    ) -> AccessDecision:
        return await self.check(identity, operation, "admin", Admin(f"admin/{category}"), "", level)

    async def check_query_connections(self, identity: Identity) -> AccessDecision:
        query = Capability.QUERY_CONNECTIONS
        return await self.check(identity, "connection_status", "capability", query, "", AccessLevel.READ)

    async def check_kv(
        self,
        identity: Identity,
        scope: str,
        key: str,
        workspace: str,
        level: AccessLevel,
        authority: Authority = DIRECT,
    ) -> AccessDecision:
        return ALLOWED if authority.is_direct else AccessDecision(False, _NO_RULES)

    async def authority(self, identity: Identity, context: pb.AuthorizationContext | None) -> Authority:
        if context is None:
            return DIRECT
        if (why := _context_problem(context)) is not None:
            raise RequestError(Code.PERMISSION_DENIED, why)
        return DIRECT

    def check_send(self, identity: Identity, topic: Topic, *, workspace: str, declared_workspace: str) -> str | None:
        return None

    def check_send_authority(self, identity: Identity, context: pb.AuthorizationContext) -> str | None:
        return _context_problem(context)

    def may_credit_metrics(self, identity: Identity) -> bool:
        return self._holds(identity, Capability.METRIC_CREDIT)

    def _holds(self, identity: Identity, resource_id: str) -> bool:
        if resource_id not in _NEED_RULES or resource_id in self._granted:
            return True
        return identity.kind in _SYSTEM_KINDS and resource_id in _SYSTEM_HOLDS
