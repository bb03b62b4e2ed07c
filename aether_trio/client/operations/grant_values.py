"""Values of authority grants and of requests for them; times in whole seconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from aether_trio.client.operations.principals import AccessLevel, Principal, ResourceScope
from aether_trio.client.operations.records import Seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantExchange:
    """A request for a root grant, with which others may act for a user."""

    max_access_level: AccessLevel
    expires_at: Seconds
    renewable_until: Seconds
    """Not before `expires_at`."""
    audience_type: str
    """session, task, agent or service."""
    audience_id: str
    source_session_id: str = ""
    """The user's live session; "" if the caller is the user."""
    workspace_scope: tuple[str, ...] = ()
    resource_scope: tuple[ResourceScope, ...] = ()
    operation_scope: tuple[str, ...] = ()
    valid_while_audience_active: bool = False
    """True: ends with the audience, at the latest."""
    may_delegate: bool = False
    """Goes with `remaining_hops` of 1 or more."""
    remaining_hops: int = 0
    reason: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Derivation:
    """A request for a narrower grant, derived from one that the caller holds."""

    parent_grant_id: str
    delegate: Principal
    max_access_level: AccessLevel
    audience_type: str = ""
    audience_id: str = ""
    workspace_scope: tuple[str, ...] = ()
    resource_scope: tuple[ResourceScope, ...] = ()
    operation_scope: tuple[str, ...] = ()
    valid_while_audience_active: bool = False
    expires_at: Seconds = None
    renewable_until: Seconds = None
    may_delegate: bool = False
    remaining_hops: int = 0
    reason: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeriveForTarget:
    """A request for a derived grant for a participant that is to be called."""

    parent_grant_id: str
    target: Principal
    max_access_level: AccessLevel
    audience_type: str = ""
    audience_id: str = ""
    operation_scope: tuple[str, ...] = ()
    expires_at: Seconds = None
    renewable_until: Seconds = None
    may_delegate: bool = False
    remaining_hops: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """An authority grant: who may act for whom, with all limits."""

    grant_id: str
    root_grant_id: str
    subject: Principal | None
    delegate: Principal | None
    """Who may use it."""
    issued_by: Principal | None
    root_subject: Principal | None
    """Whose rights they were at the beginning of the chain."""
    parent_grant_id: str
    may_delegate: bool
    remaining_hops: int
    """How often it may still be passed on."""
    workspace_scope: tuple[str, ...]
    resource_scope: tuple[ResourceScope, ...]
    operation_scope: tuple[str, ...]
    max_access_level: AccessLevel
    audience_type: str
    audience_id: str
    valid_while_audience_active: bool
    expires_at: Seconds
    renewable_until: Seconds
    renewed_at: Seconds
    revoked: bool
    revoked_at: Seconds
    reason: str
    metadata: Mapping[str, str]
    created_at: Seconds


@dataclass(frozen=True, slots=True)
class GrantPage:
    """A page of authority grants, and how many there are in all."""

    grants: tuple[Grant, ...]
    total: int
    ask_again_s: int
    """After how many seconds to ask again; 0 for no advice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShortGrant:
    """The limits of an authority grant, for a service that enforces them."""

    grant_id: str
    subject_type: str
    subject_id: str
    root_subject_type: str
    root_subject_id: str
    audience_type: str
    audience_id: str
    max_access_level: AccessLevel
    workspace_scope: tuple[str, ...]
    expires_at: Seconds
    revoked: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedGrant:
    """What an authority grant allows: who uses it, for whom, within which limits."""

    actor: Principal | None
    subject: Principal | None
    grant: ShortGrant | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Revocation:
    """Notice that an authority grant was revoked."""

    grant_id: str
    root_grant_id: str
    reason: str
    revoked_at: Seconds
    cascade: bool
    """It went because one above it did, or took those below along."""
