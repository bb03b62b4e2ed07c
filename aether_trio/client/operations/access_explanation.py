"""`agent.rules.explain`: why a principal may, or may not, access a resource."""

from __future__ import annotations

from dataclasses import dataclass

from aether_trio.client.operations.namespace import Namespace
from aether_trio.client.operations.principals import AccessLevel, Principal, principal_ref
from aether_trio.client.operations.records import read
from aether_trio.wire.pb import aether_pb2 as pb


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleContribution:
    """One access rule that counted in a verdict."""

    subject: str
    """The principal, group or role the rule is about."""
    rule_id: str
    access_level: AccessLevel
    resource: str
    expired: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessExplanation:
    """Why an access is allowed or denied, with each rule that counted."""

    principal: str
    subjects: tuple[str, ...]
    """The principal, its groups and its roles."""
    contributions: tuple[RuleContribution, ...]
    allowed: bool
    decision: str
    effective_access_level: AccessLevel
    fallback_applied: bool
    reason: str


class AccessExplanations(Namespace):
    """Asks why the gateway allows or denies an access; a part of `agent.rules`."""

    async def explain(
        self, principal: Principal | str, resource_type: str, resource_id: str, required_level: AccessLevel
    ) -> AccessExplanation:
        """Explain why `principal` may, or may not, have this access to a resource."""
        op = pb.ACLOperation(
            op=pb.ACLOperation.EXPLAIN_ACCESS,
            principal=principal_ref(principal),
            resource_type=resource_type,
            resource_id=resource_id,
            required_level=required_level,
        )
        answer: pb.ACLResponse = await self._ask("acl_op", op)
        return read(AccessExplanation, answer.explanation)
