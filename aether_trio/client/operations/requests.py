"""`agent.authority_requests`: asks principals for authority, and decides requests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Annotated

from aether_trio.client.operations.enums import AuthorityRequestEventType, AuthorityRequestStatus
from aether_trio.client.operations.namespace import Namespace
from aether_trio.client.operations.principals import AccessLevel, Principal, ResourceScope
from aether_trio.client.operations.records import Level, Seconds, Wire, read, write
from aether_trio.client.operations.streams import ConvertedFeed
from aether_trio.wire.pb import aether_pb2 as pb

_Op = pb.AuthorityRequestOperation
_Decision = pb.ResolveAuthorityRequestPayload


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthorityRoute:
    """Who decides a request for authority: one principal, or one capability."""

    principal: Principal | None = None
    capability: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthorityWish:
    """The authority that a new request asks for."""

    target_subject: Principal
    requested_access_level: Level
    requested_duration_s: Annotated[int, Wire("requested_duration_seconds")]
    """Positive; capped at an hour."""
    route: Annotated[AuthorityRoute, Wire("routing_target")]
    workspace_scope: Annotated[tuple[str, ...], Wire("desired_workspace_scope")] = ()
    resource_scope: Annotated[tuple[ResourceScope, ...], Wire("desired_resource_scope")] = ()
    operation_scope: Annotated[tuple[str, ...], Wire("desired_operation_scope")] = ()
    requesting_actor: Principal | None = None
    """None: the caller."""
    audience_type: str = ""
    audience_id: str = ""
    reason: str = ""
    task_id: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthorityRequest:
    """A request for authority, with its state and its decision."""

    request_id: str
    status: AuthorityRequestStatus
    requesting_actor: Principal | None
    target_subject: Principal | None
    workspace_scope: Annotated[tuple[str, ...], Wire("desired_workspace_scope")]
    resource_scope: Annotated[tuple[ResourceScope, ...], Wire("desired_resource_scope")]
    operation_scope: Annotated[tuple[str, ...], Wire("desired_operation_scope")]
    requested_access_level: Level
    requested_duration_s: Annotated[int, Wire("requested_duration_seconds")]
    audience_type: str
    audience_id: str
    route: Annotated[AuthorityRoute | None, Wire("routing_target")]
    reason: str
    task_id: str
    metadata: Mapping[str, str]
    created_at: Seconds
    expires_at: Seconds
    resolved_at: Seconds
    granted_grant_id: str
    """The grant that approval made."""
    resolved_by: Principal | None
    resolution_reason: str


@dataclass(frozen=True, slots=True)
class AuthorityRequestPage:
    """A page of requests for authority, and how many there are in all."""

    requests: tuple[AuthorityRequest, ...]
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestEvent:
    """A change of a request for authority: created, approved, denied and so on."""

    event_type: AuthorityRequestEventType
    request: AuthorityRequest
    emitted_at: Seconds


def request_event(message: pb.AuthorityRequestEvent) -> RequestEvent:
    """Convert a received protobuf AuthorityRequestEvent to a RequestEvent."""
    return read(RequestEvent, message)


class AuthorityRequests(Namespace):
    """Asks principals for authority, and decides such requests."""

    async def create(self, wish: AuthorityWish) -> AuthorityRequest:
        """Create a request for authority; `events` tells its decision."""
        payload = write(wish, pb.CreateAuthorityRequestPayload())
        return await self._one(_Op(op=_Op.CREATE, create=payload))

    async def get(self, request_id: str) -> AuthorityRequest:
        """Return one request. Raises Refused if there is none that the caller may see."""
        return await self._one(_Op(op=_Op.GET, request_id=request_id))

    async def list_pending(
        self,
        *,
        status: AuthorityRequestStatus = AuthorityRequestStatus.UNSPECIFIED,
        workspace: str = "",
        matching_capabilities: Sequence[str] = (),
        limit: int = 0,
        offset: int = 0,
    ) -> AuthorityRequestPage:
        """List the requests for authority that the caller may decide."""
        wanted = pb.AuthorityRequestListFilter(
            status=pb.AuthorityRequestStatus.ValueType(status),
            workspace=workspace,
            limit=limit,
            offset=offset,
            matching_capabilities=matching_capabilities,
        )
        answer = await self._do(_Op(op=_Op.LIST_PENDING, list_filter=wanted))
        return AuthorityRequestPage(tuple(read(AuthorityRequest, one) for one in answer.requests), answer.total_count)

    async def approve(
        self,
        request_id: str,
        *,
        workspace_scope: Sequence[str] = (),
        resource_scope: Sequence[ResourceScope] = (),
        operation_scope: Sequence[str] = (),
        access_level: AccessLevel | None = None,
        duration: timedelta | None = None,
        may_delegate: bool = False,
        remaining_hops: int = 0,
        reason: str = "",
    ) -> AuthorityRequest:
        """Approve a request, by default as asked for; `duration` in whole seconds."""
        decision = _Decision(
            decision=_Decision.APPROVE,
            granted_workspace_scope=workspace_scope,
            granted_resource_scope=[write(one, pb.AuthorityRequestResourceScopeEntry()) for one in resource_scope],
            granted_operation_scope=operation_scope,
            granted_access_level=pb.AccessLevel.ValueType(0 if access_level is None else access_level.wire),
            granted_duration_seconds=0 if duration is None else int(duration.total_seconds()),
            reason=reason,
            may_delegate=may_delegate,
            remaining_hops=remaining_hops,
        )
        return await self._one(_Op(op=_Op.RESOLVE, request_id=request_id, resolve=decision))

    async def deny(self, request_id: str, *, reason: str = "") -> AuthorityRequest:
        """Deny a request for authority."""
        decision = _Decision(decision=_Decision.DENY, reason=reason)
        return await self._one(_Op(op=_Op.RESOLVE, request_id=request_id, resolve=decision))

    async def cancel(self, request_id: str, *, reason: str = "") -> AuthorityRequest:
        """Withdraw a request for authority that the caller has made."""
        return await self._one(_Op(op=_Op.CANCEL, request_id=request_id, reason=reason))

    @asynccontextmanager
    async def events(self, *, capacity: int = 1024) -> AsyncIterator[AsyncIterator[RequestEvent]]:
        """Yield changes of authority requests that concern the caller, in the block."""
        with self._feed("authority_request_event", capacity=capacity) as feed:
            yield ConvertedFeed(feed, request_event)

    async def _one(self, op: pb.AuthorityRequestOperation) -> AuthorityRequest:
        return read(AuthorityRequest, (await self._do(op)).request)

    async def _do(self, op: pb.AuthorityRequestOperation) -> pb.AuthorityRequestOperationResponse:
        answer: pb.AuthorityRequestOperationResponse = await self._ask("authority_request_op", op)
        return answer
