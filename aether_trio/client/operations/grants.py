"""`agent.grants`: manages grants, which let one participant act for another."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import TypeAlias

from aether_trio.client.operations.grant_cache import MAX_AGE_S, GrantCache
from aether_trio.client.operations.grant_values import (
    Derivation,
    DeriveForTarget,
    Grant,
    GrantExchange,
    GrantPage,
    ResolvedGrant,
    Revocation,
)
from aether_trio.client.operations.namespace import Namespace
from aether_trio.client.operations.principals import Principal, principal_ref
from aether_trio.client.operations.records import from_time, read, write
from aether_trio.client.operations.streams import ConvertedFeed
from aether_trio.wire.pb import aether_pb2 as pb

_Op = pb.AuthorityGrantOperation
_Kind: TypeAlias = pb.AuthorityGrantOperation.OpType.ValueType


class Grants(Namespace):
    """Manages authority grants, which let one participant act for another."""

    async def exchange(self, request: GrantExchange) -> Grant:
        """Create a root grant: it gives some of a user's rights to an audience."""
        answer = await self._do(
            _Op(op=_Op.EXCHANGE, exchange_request=write(request, pb.AuthorityGrantExchangeRequest()))
        )
        return read(Grant, answer.grant)

    async def batch_exchange(
        self, requests: Sequence[GrantExchange], *, stop_on_first_error: bool = False
    ) -> tuple[Grant, ...]:
        """Create several root grants in one request; return them in the same order."""
        batch = pb.AuthorityGrantBatchExchangeRequest(
            requests=[write(one, pb.AuthorityGrantExchangeRequest()) for one in requests],
            stop_on_first_error=stop_on_first_error,
        )
        answer = await self._do(_Op(op=_Op.BATCH_EXCHANGE, batch_exchange_request=batch))
        return tuple(read(Grant, one) for one in answer.grants)

    async def derive(self, request: Derivation) -> Grant:
        """Derive a narrower grant, for another principal, from one that the caller holds."""
        answer = await self._do(_Op(op=_Op.DERIVE, derive_request=write(request, pb.AuthorityGrantDeriveRequest())))
        return read(Grant, answer.grant)

    async def derive_for_target(self, request: DeriveForTarget) -> Grant:
        """Derive a grant for a participant that is to be called, or find a fitting one."""
        derive = write(request, pb.AuthorityGrantDeriveForTargetRequest())
        answer = await self._do(_Op(op=_Op.DERIVE_FOR_TARGET, derive_for_target_request=derive))
        return read(Grant, answer.grant)

    async def get(self, grant_id: str) -> Grant:
        """Return one grant. Raises Refused if there is none that the caller may see."""
        return read(Grant, (await self._do(_Op(op=_Op.GET, grant_id=grant_id))).grant)

    async def renew(
        self, grant_id: str, *, expires_at: datetime | None = None, extend_by: timedelta | None = None
    ) -> Grant:
        """Renew a grant, at most to `renewable_until`: by `extend_by`, or to `expires_at`."""
        extend_s = 0 if extend_by is None else int(extend_by.total_seconds())
        request = pb.ACLRenewAuthorityGrantRequest(
            grant_id=grant_id, expires_at=from_time(expires_at), extend_seconds=extend_s
        )
        return read(Grant, (await self._do(_Op(op=_Op.RENEW, grant_id=grant_id, renew_request=request))).grant)

    async def revoke(self, grant_id: str, *, workflow_schedule_id: str = "") -> str:
        """Revoke a grant, and all that were derived from it; return the gateway's words.

        They name the nodes that have not confirmed it, if there are any.
        """
        op = _Op(op=_Op.REVOKE, grant_id=grant_id, workflow_schedule_id=workflow_schedule_id)
        return (await self._do(op)).message

    async def list_mine(
        self,
        *,
        audience_type: str = "",
        audience_id: str = "",
        include_revoked: bool = False,
        limit: int = 0,
        offset: int = 0,
    ) -> GrantPage:
        """List the grants that the caller may use, as their delegate."""
        return await self._list(_Op.LIST_MY_GRANTS, audience_type, audience_id, include_revoked, limit, offset)

    async def list_on_me(
        self,
        *,
        audience_type: str = "",
        audience_id: str = "",
        include_revoked: bool = False,
        limit: int = 0,
        offset: int = 0,
    ) -> GrantPage:
        """List the grants with which others act for the caller."""
        return await self._list(_Op.LIST_GRANTS_ON_ME, audience_type, audience_id, include_revoked, limit, offset)

    async def resolve(
        self,
        grant_id: str,
        *,
        actor: Principal | str,
        subject: Principal | str,
        audience_type: str = "",
        audience_id: str = "",
    ) -> ResolvedGrant:
        """Return what a grant lets `actor` do for `subject`, or raise Refused if invalid."""
        request = pb.ResolveAuthorityRequest(
            actor=principal_ref(actor),
            grant_id=grant_id,
            subject=principal_ref(subject),
            audience_type=audience_type,
            audience_id=audience_id,
        )
        answer: pb.ResolveAuthorityResponse = await self._ask("resolve_authority_request", request)
        return read(ResolvedGrant, answer.authority)

    @asynccontextmanager
    async def revocations(self, *, capacity: int = 1024) -> AsyncIterator[AsyncIterator[Revocation]]:
        """Yield revocations of grants of the caller, or on it, while the block lasts."""
        with self._feed("authority_grant_revocation", capacity=capacity) as feed:
            yield ConvertedFeed(feed, lambda message: read(Revocation, message))

    @asynccontextmanager
    async def cached(self, *, max_age_s: float = MAX_AGE_S) -> AsyncIterator[GrantCache]:
        """Yield a cache for `resolve`, which hears of revocations while the block lasts."""
        with self._exchange_feed(
            "authority_grant_revocation", match=lambda gone: True, capacity=256, lossy=True
        ) as news:
            yield GrantCache(self.resolve, news, max_age_s)

    async def _list(
        self, kind: _Kind, audience_type: str, audience_id: str, include_revoked: bool, limit: int, offset: int
    ) -> GrantPage:
        wanted = pb.AuthorityGrantListRequest(
            audience_type=audience_type,
            audience_id=audience_id,
            include_revoked=include_revoked,
            limit=limit,
            offset=offset,
        )
        answer = await self._do(_Op(op=kind, list_request=wanted))
        return GrantPage(tuple(read(Grant, one) for one in answer.grants), answer.total, answer.cache_hint_ttl_seconds)

    async def _do(self, op: pb.AuthorityGrantOperation) -> pb.AuthorityGrantResponse:
        answer: pb.AuthorityGrantResponse = await self._ask("authority_grant_op", op)
        return answer
