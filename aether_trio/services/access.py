"""The one seam through which every question of permission goes.

A service asks "may this identity do this, at this level, to this resource?" and gets a Decision. Today the answer comes
from DevAuthorizer, which has no rules; rules, roles and grants come later behind the same Protocol. What the protocol
fixes regardless of rules (who may use KV at all, which sender may address which topic) is not asked here: it is in
model/permissions.py and in the services.

Two speeds. `check` and its named forms may wait for a database. `check_send` and `may_credit_metrics` are asked on the message
path and never wait; the router remembers their answers per sender and target.

Resource types and ids are the reference's (security.md 2.4, 2.8): `workspace`/name, `kv_key`/key, `kv_scope`/scope name,
`admin`/`admin/<category>`, `capability`/`capability/<name>`.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from aether_trio.model.access import AccessLevel
from aether_trio.model.errors import AetherError, Code
from aether_trio.model.identity import Identity, Kind
from aether_trio.model.text import shown
from aether_trio.model.topics import Topic
from aether_trio.wire.pb import aether_pb2 as pb


class Admin(enum.StrEnum):
    """Administrative categories; the value is the resource id."""

    SESSIONS = "admin/sessions"
    WORKSPACES = "admin/workspaces"
    AGENTS = "admin/agents"
    ACL = "admin/acl"
    TOKENS = "admin/tokens"
    AUDIT = "admin/audit"


class Capability(enum.StrEnum):
    """Single powers; the value is the resource id. The comment is the level that is asked for."""

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
class Decision:
    """The answer. `reason` is a sentence for the client when it is no, and never names what it may not see."""

    allowed: bool
    reason: str = ""


ALLOWED: Final = Decision(True)


@dataclass(frozen=True, slots=True)
class Authority:
    """On whose behalf an operation runs. `grant_id` empty: on the caller's own."""

    grant_id: str = ""
    subject: str = ""

    @property
    def is_direct(self) -> bool:
        return not self.grant_id


DIRECT: Final = Authority()


class Reach(Protocol):
    """What a caller's credential is good for, whatever rules say: the part of a Session that services ask.

    Asked about each workspace that an operation touches, named by the client or found.
    """

    allows_workspace: Callable[[str], bool]
    """Whether it reaches this workspace."""

    def reaches(self, identity: Identity, workspace: str = "") -> bool:
        """Whether it reaches a participant, which may be in a workspace that its identity does not name."""
        ...


class _Everywhere:
    """The reach of a caller that is a part of the gateway."""

    def __init__(self) -> None:
        self.allows_workspace: Callable[[str], bool] = lambda workspace: True

    def reaches(self, identity: Identity, workspace: str = "") -> bool:
        """See Reach."""
        return True


EVERYWHERE: Final[Reach] = _Everywhere()


class Authorizer(Protocol):
    """All questions. An implementation must answer no when it cannot find out (fail closed)."""

    async def check(
        self,
        identity: Identity,
        operation: str,
        resource_type: str,
        resource_id: str,
        workspace: str,
        level: AccessLevel,
        authority: Authority = DIRECT,
    ) -> Decision:
        """Whether `identity` may do `operation` (its name in the audit trail) to the resource at `level`."""
        ...

    async def check_workspace(
        self, identity: Identity, workspace: str, level: AccessLevel = AccessLevel.READ, operation: str = "connect"
    ) -> Decision:
        """Whether `identity` may enter (or, at other levels, use) a workspace."""
        ...

    async def check_admin(
        self, identity: Identity, category: str, level: AccessLevel = AccessLevel.ADMIN, operation: str = "admin"
    ) -> Decision:
        """Whether `identity` may administer a category: one of Admin's, without its "admin/"."""
        ...

    async def check_query_connections(self, identity: Identity) -> Decision:
        """Whether `identity` may ask if another participant is connected. Everyone may ask about itself."""
        ...

    async def check_kv(
        self,
        identity: Identity,
        scope: str,
        key: str,
        workspace: str,
        level: AccessLevel,
        authority: Authority = DIRECT,
    ) -> Decision:
        """Whether `identity` may touch `key` in the shared scope `scope` ("global", "user-shared", …)."""
        ...

    async def authority(self, identity: Identity, context: pb.AuthorizationContext | None) -> Authority:
        """Resolve a client's authorization context. Raises AetherError(PERMISSION_DENIED) when it does not hold."""
        ...

    def check_send(self, identity: Identity, topic: Topic, *, workspace: str, declared_workspace: str) -> str | None:
        """Why `identity`, now in `workspace`, may not send to `topic`; None when it may. Never waits.

        `declared_workspace` is what an event or metric claims to be about; it differs from the sender's own when the
        sender broadcasts into another one.
        """
        ...

    def check_send_authority(self, identity: Identity, context: pb.AuthorizationContext) -> str | None:
        """`authority` for a message: why `context` does not hold; None when it does. Never waits."""
        ...

    def may_credit_metrics(self, identity: Identity) -> bool:
        """Whether `identity` may report negative quantities. Never waits."""
        ...


# Without rules everything is open, except what would let one participant act on all others (core.md 4.3).
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
"""To do the part of another one's worker (services/tasks/handlers/permissions.py). Without rules only the system may."""
# The two kinds that run the system hold these by being what they are (core.md section 10; sdk.md section 5 for tokens).
_SYSTEM_KINDS: Final = frozenset({Kind.WORKFLOW_ENGINE, Kind.ORCHESTRATOR})
_SYSTEM_HOLDS: Final = frozenset({*Admin, Capability.QUERY_CONNECTIONS, Capability.RESOLVE_AUTHORITY})


_NO_RULES: Final = "acting on behalf of others needs access rules, and none are configured"


def _context_problem(context: pb.AuthorizationContext) -> str | None:
    """What is wrong with an authorization context where there are no grants; None when it is a direct one."""
    mode = context.authority_mode
    if mode in {"", "direct"}:
        if context.grant_id or context.HasField("subject"):
            return "a direct operation carries no subject and no grant; did you mean on_behalf_of?"
        return None
    if mode == "on_behalf_of":
        return _NO_RULES
    return f"unknown authority_mode {shown(mode)}: expected direct or on_behalf_of"


class DevAuthorizer:
    """No rules: allows what the reference allows when no ACL service is configured, and nothing that fails closed there.

    `granted` are capabilities and admin categories that everyone holds; tests and demonstrations use it.
    """

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
    ) -> Decision:
        if not authority.is_direct:
            return Decision(False, _NO_RULES)
        if operation == _WORK and identity.kind not in _SYSTEM_KINDS:
            return Decision(False, f"{operation} needs a rule")
        if self._holds(identity, resource_id):
            return ALLOWED
        return Decision(False, f"{operation} needs {resource_id} at {level.name}, which nobody has been granted")

    async def check_workspace(
        self, identity: Identity, workspace: str, level: AccessLevel = AccessLevel.READ, operation: str = "connect"
    ) -> Decision:
        return await self.check(identity, operation, "workspace", workspace, workspace, level)

    async def check_admin(
        self, identity: Identity, category: str, level: AccessLevel = AccessLevel.ADMIN, operation: str = "admin"
    ) -> Decision:
        return await self.check(identity, operation, "admin", Admin(f"admin/{category}"), "", level)

    async def check_query_connections(self, identity: Identity) -> Decision:
        return await self.check(
            identity, "connection_status", "capability", Capability.QUERY_CONNECTIONS, "", AccessLevel.READ
        )

    async def check_kv(
        self,
        identity: Identity,
        scope: str,
        key: str,
        workspace: str,
        level: AccessLevel,
        authority: Authority = DIRECT,
    ) -> Decision:
        return await self.check(identity, "kv", "kv_scope", scope, workspace, level, authority)

    async def authority(self, identity: Identity, context: pb.AuthorizationContext | None) -> Authority:
        if context is None:
            return DIRECT
        why = _context_problem(context)
        if why is not None:
            raise AetherError(Code.PERMISSION_DENIED, why)
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
