"""What services ask before they do something: the Authorizer, and its vocabulary.

`check` and its named forms may wait for a database. `check_send` and `may_credit_metrics` are on
the message path and never wait; the router keeps their answers with the sender's route until access
data change.

Resource types and ids are the reference's (security.md 2.4, 2.8): `workspace`/name, `kv_key`/key,
`kv_scope`/scope name, `admin`/`admin/<category>`, `capability`/`capability/<name>`.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from aether_trio.model.access import AccessLevel
from aether_trio.model.errors import Code, RequestError
from aether_trio.model.identity import Identity
from aether_trio.model.text import shown
from aether_trio.model.topics import Topic
from aether_trio.session.init_connection import EVERYTHING, Reached
from aether_trio.wire.pb import aether_pb2 as pb


class Admin(enum.StrEnum):
    """Resource ids of the administrative categories, for access checks."""

    SESSIONS = "admin/sessions"
    WORKSPACES = "admin/workspaces"
    AGENTS = "admin/agents"
    ACL = "admin/acl"
    TOKENS = "admin/tokens"
    AUDIT = "admin/audit"
    QUOTAS = "admin/quotas"


class Capability(enum.StrEnum):
    """Resource ids of single permissions; each comment names the access level."""

    CREATE_WORKSPACE = "capability/create_workspace"  # READ
    KV_PURGE_IDENTITY = "capability/kv_purge_identity"  # MANAGE
    METRIC_CREDIT = "capability/metric_credit"  # ADMIN
    QUERY_CONNECTIONS = "capability/query_connections"  # READ
    RESOLVE_AUTHORITY = "capability/resolve_authority"  # READ
    EXCHANGE_AUTHORITY_GRANTS = "capability/exchange_authority_grants"  # MANAGE
    AUTHORITY_INTERMEDIARY = "capability/authority_intermediary"  # MANAGE
    MINT_USER_TOKENS = "capability/mint_user_tokens"  # MANAGE
    EVENT_BROADCAST = "capability/event_broadcast"  # READWRITE
    METRIC_BROADCAST = "capability/metric_broadcast"  # READWRITE
    AUDIT_SUBMIT = "capability/audit_submit"  # READ


class Reach(Protocol):
    """What a client's credential reaches, whatever access rules say; a Session is one."""

    allows_workspace: Callable[[str], bool]  # whether the credential reaches this workspace

    def reaches(self, identity: Identity, workspace: str = "") -> bool:
        """Whether the credential reaches a participant, and a workspace that it is in."""


class Actor(Reach, Protocol):
    """A participant that asks for something; a Session is one."""

    identity: Identity
    session_id: str
    task_id: str
    """Of the task whose token it showed; "" for none."""
    cap: AccessLevel
    """The highest level that its credential gives, whatever rules say."""
    groups: tuple[str, ...]
    """Groups that its credential names, beside those of which it is a member."""
    makers: tuple[str, ...]
    """The principals "type:id" that have made its API token, or that of its task's creator."""
    creators: tuple[str, ...]
    """The principals "type:id" that have created the tasks whose tokens let it in."""
    reaches_everything: bool
    """Whether its credential reaches all workspaces."""
    accepted: Reached
    """What its credentials reach, as patterns."""


class GatewayActor:
    """A participant without a credential's bounds: for calls by parts of the gateway."""

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        self.session_id = ""
        self.task_id = ""
        self.cap = AccessLevel.SUPERADMIN
        self.groups: tuple[str, ...] = ()
        self.makers: tuple[str, ...] = ()
        self.creators: tuple[str, ...] = ()
        self.reaches_everything = True
        self.accepted = EVERYTHING
        self.allows_workspace: Callable[[str], bool] = lambda workspace: True

    def reaches(self, identity: Identity, workspace: str = "") -> bool:
        return True


class ActiveGrant(Protocol):
    """A grant that its holder may use now, with the limits of all its lineage."""

    @property
    def grant_id(self) -> str: ...
    @property
    def root_grant_id(self) -> str: ...
    @property
    def subject(self) -> tuple[str, str]:
        """The principal in whose name it is used: (type, canonical id)."""

    @property
    def root_subject(self) -> tuple[str, str]: ...
    @property
    def passed_by(self) -> Sequence[tuple[str, str]]:
        """The principals that have made and passed on the grants of its lineage."""

    @property
    def makers(self) -> Sequence[str]:
        """The principals "type:id" that have made the tokens by which grants were made."""

    @property
    def max_level(self) -> AccessLevel: ...
    @property
    def expires_ms(self) -> int: ...
    def refusal(self, operation: str, workspace: str, resource_type: str, resource_id: str) -> str | None:
        """Say why the grant does not permit an operation, as a sentence; None if it does."""


@dataclass(frozen=True, slots=True)
class Authority:
    """On whose behalf a client's operation runs; without a grant: its own."""

    grant: ActiveGrant | None = None

    @property
    def is_direct(self) -> bool:
        return self.grant is None

    @property
    def grant_id(self) -> str:
        return "" if self.grant is None else self.grant.grant_id

    @property
    def subject(self) -> tuple[str, str]:
        """The principal in whose name it is: (type, id); ("", "") for the actor's own."""
        return ("", "") if self.grant is None else self.grant.subject


DIRECT: Final = Authority()


class GrantMissing(Exception):
    """Raised when a grant is not in memory: load it, and ask again."""

    def __init__(self, grant_id: str) -> None:
        super().__init__(grant_id)
        self.grant_id = grant_id


class GrantSource(Protocol):
    """Finds grants that participants name in an authorization context."""

    def find(self, actor: Actor, context: pb.AuthorizationContext) -> ActiveGrant:
        """Return a grant that the actor may use now. Never waits.

        Raises GrantMissing if it is not in memory, RequestError if the actor may not use it.
        """

    def holds(self, grant: ActiveGrant) -> bool:
        """Return whether an actor may still use a grant that `find` has found for it.

        False also where `find` is to be asked each time.
        """

    async def load(self, grant_id: str) -> None:
        """Read a grant and its lineage into memory. Raises StorageUnavailable."""


class NoGrants:
    """The GrantSource of a gateway without grants."""

    def find(self, actor: Actor, context: pb.AuthorizationContext) -> ActiveGrant:
        raise RequestError(Code.PERMISSION_DENIED, f"no grant {shown(context.grant_id)} is known to this gateway")

    def holds(self, grant: ActiveGrant) -> bool:
        return False

    async def load(self, grant_id: str) -> None:
        """Do nothing: there are no grants."""


@dataclass(frozen=True, slots=True)
class AccessDecision:
    """The answer to an access check; `reason` is the client's error text if it is no."""

    allowed: bool
    reason: str = ""
    level: AccessLevel = AccessLevel.NONE
    """The level that the participant has, in the subject's name if not in its own."""
    rule_id: str = ""
    is_fallback: bool = False
    until_ms: int = 0
    """When it may change by the expiry of something; 0: never."""
    resource: tuple[str, str] = ("", "")
    """(resource type, resource id) of what decided, for the audit."""


@dataclass(frozen=True, slots=True)
class AccessQuestion:
    """One access that is asked about: an operation on a resource, at a level."""

    operation: str
    resource_type: str
    resource_id: str
    workspace: str
    level: AccessLevel


class Authorizer(Protocol):
    """Answers access checks, and refuses when it cannot find out."""

    async def check(
        self,
        actor: Actor,
        operation: str,
        resource_type: str,
        resource_id: str,
        workspace: str,
        level: AccessLevel,
        authority: Authority = DIRECT,
    ) -> AccessDecision:
        """Whether `actor` may do `operation` (for the audit) at `level` to a resource."""

    async def check_workspace(
        self,
        actor: Actor,
        workspace: str,
        level: AccessLevel = AccessLevel.READ,
        operation: str = "connect",
        authority: Authority = DIRECT,
    ) -> AccessDecision:
        """Whether `actor` may enter (or, at other levels, use) a workspace."""

    async def check_admin(
        self,
        actor: Actor,
        category: str,
        level: AccessLevel = AccessLevel.ADMIN,
        operation: str = "admin",
        authority: Authority = DIRECT,
    ) -> AccessDecision:
        """Whether `actor` may administer the resource "admin/" + `category`."""

    async def check_query_connections(self, actor: Actor) -> AccessDecision:
        """Whether `actor` may ask if another participant is connected."""

    async def check_kv(
        self,
        actor: Actor,
        scope: str,
        key: str,
        workspace: str,
        user_id: str,
        level: AccessLevel,
        authority: Authority = DIRECT,
        *,
        exclusive: bool = False,
    ) -> AccessDecision:
        """Whether `actor` may use `key` in a KV scope, such as "global".

        `workspace` and `user_id` are those of the place, "" for none. `exclusive`: the scope is the
        actor's own, of which only the workspace is asked.
        """

    async def authority(self, actor: Actor, context: pb.AuthorizationContext | None) -> Authority:
        """Resolve an authorization context. Raises RequestError(PERMISSION_DENIED)."""

    def check_send(
        self,
        actor: Actor,
        topic: Topic,
        *,
        workspace: str,
        declared_workspace: str,
        authority: Authority = DIRECT,
    ) -> AccessDecision:
        """Whether `actor` may send to `topic`. Never waits.

        The sender is in `workspace`. An event or a metric claims to be about `declared_workspace`,
        which is another one if the sender broadcasts there.
        """

    def check_app_workspace(self, actor: Actor, workspace: str, authority: Authority = DIRECT) -> AccessDecision:
        """Whether a message of `actor` may name a workspace that it is about. Never waits."""

    def send_authority(self, actor: Actor, context: pb.AuthorizationContext) -> Authority:
        """Resolve a message's authorization context. Never waits. Raises RequestError."""

    def holds(self, authority: Authority) -> bool:
        """Whether what `send_authority` returned is still so. Never waits."""

    def may_credit_metrics(self, actor: Actor) -> bool:
        """Whether `actor` may report negative quantities. Never waits."""


@dataclass(slots=True)
class DecisionCount:
    """How often a decision was made again; its maker may count further ones here."""

    times: int = 0
    is_open: bool = True
    """Whether it is still read; else the decision is to be reported anew."""


class DecisionSink(Protocol):
    """Records access decisions for the audit. Never waits."""

    def decided(
        self, actor: Actor, access: AccessQuestion, decision: AccessDecision, authority: Authority, *, times: int = 1
    ) -> DecisionCount:
        """Note that a decision was made, `times` times; return the count of the same ones."""

    def receipt(
        self, actor: Actor, access: AccessQuestion, decision: AccessDecision, authority: Authority, correlation: str
    ) -> str:
        """Record a decision of which its asker gets a receipt; return the decision's id.

        Raises RequestError if it cannot be recorded.
        """


class NoDecisions:
    """A DecisionSink that records nothing."""

    def decided(
        self, actor: Actor, access: AccessQuestion, decision: AccessDecision, authority: Authority, *, times: int = 1
    ) -> DecisionCount:
        return DecisionCount()

    def receipt(
        self, actor: Actor, access: AccessQuestion, decision: AccessDecision, authority: Authority, correlation: str
    ) -> str:
        return ""
