"""`agent.rules`: manages access rules, fallback levels and recorded decisions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

from aether_trio.client.operations.access_explanation import AccessExplanations
from aether_trio.client.operations.groups import Groups
from aether_trio.client.operations.principals import AccessLevel, Authorization
from aether_trio.client.operations.records import Seconds, Wire, from_time, read
from aether_trio.wire.pb import aether_pb2 as pb

_Op = pb.ACLOperation


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessRule:
    """A rule: this principal has this access level to that resource."""

    rule_id: str
    principal_type: str
    principal_id: str
    resource_type: str
    resource_id: str
    access_level: AccessLevel
    granted_by: str
    granted_at: Seconds
    expires_at: Seconds
    """None: never."""
    reason: str


@dataclass(frozen=True, slots=True)
class RulePage:
    """A page of access rules, and how many there are in all."""

    rules: tuple[AccessRule, ...]
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FallbackPolicy:
    """The access level in a category, such as "user_workspace", if no rule applies."""

    policy_id: str
    category: Annotated[str, Wire("rule_category")]
    access_level: Annotated[AccessLevel, Wire("fallback_access_level")]
    updated_by: str
    updated_at: Seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedDecision:
    """A decision on an access, as the gateway has recorded it."""

    audit_id: int
    timestamp: Seconds
    decision: str
    access_level: AccessLevel
    principal_type: str
    principal_id: str
    resource_type: str
    resource_id: str
    operation: str
    workspace: str
    rule_id: str
    fallback_applied: bool
    gateway_id: str
    session_id: str
    metadata: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class DecisionPage:
    """A page of recorded decisions, and how many there are in all."""

    decisions: tuple[RecordedDecision, ...]
    total: int


class Rules(Groups, AccessExplanations):
    """Manages access rules, fallback levels and recorded decisions."""

    async def list(
        self,
        *,
        principal_type: str = "",
        principal_id: str = "",
        resource_type: str = "",
        resource_id: str = "",
        limit: int = 0,
        offset: int = 0,
    ) -> RulePage:
        """List the access rules that fit every filter given."""
        wanted = pb.ACLRuleFilter(
            principal_type=principal_type,
            principal_id=principal_id,
            resource_type=resource_type,
            resource_id=resource_id,
            limit=limit,
            offset=offset,
        )
        answer = await self._do(_Op(op=_Op.LIST_RULES, rule_filter=wanted))
        return RulePage(tuple(read(AccessRule, one) for one in answer.rules), answer.total_rules)

    async def get(self, rule_id: str) -> AccessRule:
        """Return one access rule. Raises Refused if there is none."""
        return read(AccessRule, (await self._do(_Op(op=_Op.GET_RULE, rule_id=rule_id))).rule)

    async def grant(
        self,
        principal_type: str,
        principal_id: str,
        resource_type: str,
        resource_id: str,
        access_level: AccessLevel,
        *,
        reason: str = "",
        granted_by: str = "",
        expires_at: datetime | None = None,
        authorization: Authorization | None = None,
    ) -> AccessRule:
        """Add an access rule; it replaces one for the same principal and resource."""
        request = pb.ACLGrantRequest(
            principal_type=principal_type,
            principal_id=principal_id,
            resource_type=resource_type,
            resource_id=resource_id,
            access_level=access_level,
            granted_by=granted_by,
            reason=reason,
            expires_at=from_time(expires_at),
        )
        answer = await self._do(_Op(op=_Op.GRANT, grant_request=request), authorization=authorization)
        return read(AccessRule, answer.rule)

    async def revoke(self, rule_id: str, *, authorization: Authorization | None = None) -> str:
        """Remove the access rule with this id; return the gateway's words.

        They name the nodes that have not confirmed it, if there are any.
        """
        return (await self._do(_Op(op=_Op.REVOKE, rule_id=rule_id), authorization=authorization)).message

    async def revoke_matching(
        self,
        principal_type: str,
        principal_id: str,
        resource_type: str,
        resource_id: str,
        *,
        authorization: Authorization | None = None,
    ) -> str:
        """Remove the rule for this principal and resource; return the gateway's words."""
        wanted = pb.ACLRuleFilter(
            principal_type=principal_type,
            principal_id=principal_id,
            resource_type=resource_type,
            resource_id=resource_id,
        )
        return (await self._do(_Op(op=_Op.REVOKE, rule_filter=wanted), authorization=authorization)).message

    async def fallback(self, category: str) -> FallbackPolicy:
        """Return the default access level of a category, such as "user_workspace"."""
        answer = await self._do(_Op(op=_Op.GET_FALLBACK_POLICY, rule_category=category))
        return read(FallbackPolicy, answer.fallback_policy)

    async def set_fallback(
        self,
        category: str,
        access_level: AccessLevel,
        *,
        updated_by: str = "",
        authorization: Authorization | None = None,
    ) -> FallbackPolicy:
        """Set the default access level of a category, such as "user_workspace"."""
        request = pb.ACLSetFallbackRequest(
            rule_category=category, fallback_access_level=access_level, updated_by=updated_by
        )
        op = _Op(op=_Op.SET_FALLBACK_POLICY, rule_category=category, fallback_request=request)
        return read(FallbackPolicy, (await self._do(op, authorization=authorization)).fallback_policy)

    async def decisions(
        self,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        principal_type: str = "",
        principal_id: str = "",
        resource_type: str = "",
        resource_id: str = "",
        decision: str = "",
        workspace: str = "",
        limit: int = 0,
        offset: int = 0,
    ) -> DecisionPage:
        """List recorded access decisions that fit every filter. Times are aware."""
        wanted = pb.ACLAuditFilter(
            start_time=from_time(since),
            end_time=from_time(until),
            principal_type=principal_type,
            principal_id=principal_id,
            resource_type=resource_type,
            resource_id=resource_id,
            decision=decision,
            workspace=workspace,
            limit=limit,
            offset=offset,
        )
        answer = await self._do(_Op(op=_Op.QUERY_AUDIT, audit_filter=wanted))
        return DecisionPage(
            tuple(read(RecordedDecision, one) for one in answer.audit_entries), answer.total_audit_entries
        )

    async def forget_expired(self) -> int:
        """Remove access rules that have expired; return how many."""
        return (await self._do(_Op(op=_Op.CLEANUP_EXPIRED))).cleanup_result.deleted_count

    async def forget_decisions(self, *, older_than_days: int) -> int:
        """Remove access decisions older than `older_than_days`; return how many."""
        op = _Op(op=_Op.CLEANUP_AUDIT_LOGS, retention_days=older_than_days)
        return (await self._do(op)).cleanup_result.deleted_count
