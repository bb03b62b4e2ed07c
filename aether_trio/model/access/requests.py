"""Decides the life of authority requests: agents ask, people narrow and approve.

    PENDING ──▶ APPROVED (a root grant is made) | DENIED | EXPIRED | CANCELLED

The requester is always the caller. The approver is the target subject, or may exchange grants for
him, and is never the requester; a request that names no subject is for the authority of its
approver. The approver may narrow each part of the wish, and never widens it: narrowing an unlimited
wish narrows it, and an approval that leaves nothing of a part is refused.

Times are Unix ms. In the reference an agent may name any requester, decide a request that it has
routed to itself, and an empty intersection of scopes permits everything.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

from aether_trio.model.access.grants import (
    Audience,
    AuthorityGrant,
    GrantError,
    GrantProblem,
    GrantScope,
    GrantTerms,
    PrincipalKey,
    check_audience,
    new_root,
)
from aether_trio.model.access.levels import AccessLevel

PENDING_MS: Final = 30 * 60 * 1000
"""How long a request waits for its decision."""
MAX_DURATION_S: Final = 3600
REQUEST_NOT_FOUND: Final = "authority request not found"
ALREADY_RESOLVED: Final = "authority request already resolved"


class RequestStatus(enum.Enum):
    """The state of an authority request; the value is stored and shown."""

    PENDING = "pending"
    APPROVED = "approved"
    DENIED = "denied"
    EXPIRED = "expired"
    CANCELLED = "cancelled"

    @property
    def wire(self) -> int:
        """The number of this AuthorityRequestStatus, and of the event that leads to it."""
        return _NUMBERS[self]

    @classmethod
    def from_wire(cls, number: int) -> RequestStatus | None:
        """Return the status with a number of the protocol; None for any other."""
        return next((status for status, wire in _NUMBERS.items() if wire == number), None)


_NUMBERS: Final = {status: number for number, status in enumerate(RequestStatus, 1)}


class ResolveError(ValueError):
    """A change of an authority request that is refused."""


class Route(NamedTuple):
    """Who is asked: one principal, or all who hold a capability."""

    principal: PrincipalKey | None = None
    capability: str = ""


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """An authority request as stored, with its decision."""

    request_id: str
    requester: PrincipalKey
    subject: PrincipalKey | None
    """Whose authority is asked for; None: that of the approver."""
    wish: GrantScope
    duration_s: int
    audience: Audience
    route: Route
    created_ms: int
    expires_ms: int
    reason: str = ""
    task_id: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    status: RequestStatus = RequestStatus.PENDING
    resolved_ms: int = 0
    grant_id: str = ""
    """The grant that an approval has made."""
    resolved_by: PrincipalKey | None = None
    resolution_reason: str = ""

    @property
    def failure(self) -> str:
        """The error of a task that waited for this request, when it was not approved."""
        return f"authority request {self.status.value}: {self.resolution_reason}"


AS_REQUESTED: Final = GrantScope(AccessLevel.NONE)
"""The scope of an approval that narrows nothing; the level of an approval is separate."""


@dataclass(frozen=True, slots=True)
class Approval:
    """What an approver gives: None, empty or 0 leaves a part as it was requested."""

    level: AccessLevel | None = None
    scope: GrantScope = AS_REQUESTED
    duration_s: int = 0
    hops: int = 0
    reason: str = ""


def new_request(
    request_id: str,
    *,
    requester: PrincipalKey,
    subject: PrincipalKey | None,
    wish: GrantScope,
    duration_s: int,
    audience: Audience,
    route: Route,
    now_ms: int,
    reason: str = "",
    task_id: str = "",
    metadata: Mapping[str, str] | None = None,
) -> RequestRecord:
    """Make a pending request. Raises GrantError or ResolveError."""
    wish.check()
    check_audience(audience)
    if duration_s <= 0:
        raise ResolveError("requested_duration_seconds must be positive")
    if (route.principal is None) == (not route.capability):
        raise ResolveError("routing_target names one principal, or one capability")
    return RequestRecord(
        request_id,
        requester,
        subject,
        wish,
        min(duration_s, MAX_DURATION_S),
        audience,
        route,
        now_ms,
        now_ms + PENDING_MS,
        reason,
        task_id,
        metadata or {},
    )


def may_decide(request: RequestRecord, caller: PrincipalKey, *, may_exchange: bool, holds_route: bool) -> bool:
    """Return whether a participant may approve or deny a request.

    `may_exchange`: it may exchange grants for the request's subject. `holds_route`: it holds the
    capability to which the request is routed.
    """
    if caller == request.requester:
        return False
    if caller == request.subject:
        return True
    if caller != request.route.principal and not (request.route.capability and holds_route):
        return False
    return request.subject is None or may_exchange


def may_see(request: RequestRecord, caller: PrincipalKey, *, holds_route: bool) -> bool:
    """Return whether a participant may see a request."""
    if caller in (request.requester, request.subject, request.route.principal):
        return True
    return bool(request.route.capability) and holds_route


def approve(
    request: RequestRecord, approval: Approval, *, approver: PrincipalKey, grant_id: str, now_ms: int
) -> tuple[RequestRecord, AuthorityGrant]:
    """Approve a request; return it and its grant. Raises GrantError or ResolveError."""
    after = _resolved(request, RequestStatus.APPROVED, approver, approval.reason, now_ms)
    if approval.level is AccessLevel.NONE:
        raise GrantError(GrantProblem.INVALID, "nothing of the requested access level is left")
    scope = request.wish.narrowed(replace(approval.scope, level=approval.level or AccessLevel.NONE))
    if approval.duration_s < 0:
        raise GrantError(GrantProblem.INVALID, "granted_duration_seconds is negative")
    duration_s = min(request.duration_s, approval.duration_s or request.duration_s, MAX_DURATION_S)
    end_ms = now_ms + duration_s * 1000
    terms = GrantTerms(scope, request.audience, end_ms, end_ms, approval.hops, True, approval.reason)
    terms = replace(terms, metadata={"authority_request_id": request.request_id})
    grant = new_root(
        grant_id,
        subject=request.subject or approver,
        delegate=request.requester,
        issued_by=approver,
        terms=terms,
        now_ms=now_ms,
    )
    return replace(after, grant_id=grant_id), grant


def deny(request: RequestRecord, *, approver: PrincipalKey, reason: str, now_ms: int) -> RequestRecord:
    """Deny a request. Raises ResolveError."""
    return _resolved(request, RequestStatus.DENIED, approver, reason, now_ms)


def cancel(request: RequestRecord, *, caller: PrincipalKey, reason: str, now_ms: int) -> RequestRecord:
    """Withdraw a request, as only its requester may. Raises ResolveError."""
    if caller != request.requester:
        raise ResolveError(REQUEST_NOT_FOUND)
    return _resolved(request, RequestStatus.CANCELLED, caller, reason, now_ms)


def expire(request: RequestRecord, now_ms: int) -> RequestRecord:
    """End a request that no one has decided in time. Raises ResolveError."""
    if request.status is not RequestStatus.PENDING or now_ms < request.expires_ms:
        raise ResolveError(ALREADY_RESOLVED)
    return replace(
        request, status=RequestStatus.EXPIRED, resolved_ms=now_ms, resolution_reason="it was not decided in time"
    )


def _resolved(
    request: RequestRecord, status: RequestStatus, by: PrincipalKey, reason: str, now_ms: int
) -> RequestRecord:
    if request.status is not RequestStatus.PENDING or now_ms >= request.expires_ms:
        raise ResolveError(ALREADY_RESOLVED)
    return replace(request, status=status, resolved_ms=now_ms, resolved_by=by, resolution_reason=reason)
