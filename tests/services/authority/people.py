"""Participants that exchange grants and decide requests, over links in memory."""

from __future__ import annotations

from itertools import count
from typing import Any, Final

import trio

from aether_trio.gateway.core import Core
from aether_trio.model.access import AccessLevel
from aether_trio.model.access.rules import Rule
from aether_trio.services.access import records
from aether_trio.services.access.changes import Committed
from aether_trio.testing.memory import MemoryLink
from aether_trio.wire.pb import aether_pb2 as pb

GrantOp = pb.AuthorityGrantOperation
RequestOp = pb.AuthorityRequestOperation
Decision = pb.ResolveAuthorityRequestPayload

EXCHANGE: Final = "capability/exchange_authority_grants"
LASTS_S: Final = 900

_numbers = count(1)


async def allow(
    core: Core,
    principal: str,
    resource: str,
    level: AccessLevel = AccessLevel.MANAGE,
) -> str:
    """Make a rule of "type:id" on "type:id"; return its id."""
    rule_id = f"rule-{next(_numbers)}"
    principal_type, _, principal_id = principal.partition(":")
    resource_type, _, resource_id = resource.partition(":")
    rule = Rule(rule_id, principal_type, principal_id, resource_type, resource_id, level, "test", 1, 0, "")
    committed: Committed[Any] = await core.changes.commit(lambda draft: records.put_rule(draft, rule))
    assert committed.result is not None
    return str(committed.result.rule_id)


async def forbid(core: Core, rule_id: str) -> None:
    """Delete a rule."""
    await core.changes.commit(lambda draft: records.delete_rules(draft, [rule_id]))


async def answer(peer: MemoryLink, case: str, request_id: str) -> Any:
    """The typed answer to a request; other messages stay."""
    while True:
        for one in peer.waiting(case):
            payload = getattr(one, case)
            if request_id in (getattr(payload, "request_id", ""), getattr(payload, "client_request_id", "")):
                return payload
        if peer.ended is not None:
            raise peer.ended
        await trio.sleep(0.001)


def session_of(core: Core, identity: str) -> str:
    """The id of a connected participant's session."""
    session = core.registry.holder(identity)
    assert session is not None
    return session.session_id


# -- grants ----------------------------------------------------------------------------------------


async def grant_op(
    peer: MemoryLink, op: GrantOp.OpType.ValueType = GrantOp.EXCHANGE, **fields: Any
) -> pb.AuthorityGrantResponse:
    """The answer to an operation on grants."""
    request_id = f"grant-{next(_numbers)}"
    peer.send(pb.UpstreamMessage(authority_grant_op=GrantOp(op=op, request_id=request_id, **fields)))
    found: pb.AuthorityGrantResponse = await answer(peer, "authority_grant", request_id)
    return found


def terms(core: Core, **fields: Any) -> dict[str, Any]:
    """What an exchange asks for: READWRITE for LASTS_S, renewable for two of these."""
    now_s = core.clock.now_ms() // 1000
    return {"max_access_level": 20, "expires_at": now_s + LASTS_S, "renewable_until": now_s + 2 * LASTS_S, **fields}


async def exchange(core: Core, peer: MemoryLink, **fields: Any) -> pb.AuthorityGrantResponse:
    return await grant_op(peer, exchange_request=pb.AuthorityGrantExchangeRequest(**terms(core, **fields)))


async def derive(peer: MemoryLink, parent: str, delegate: tuple[str, str], **fields: Any) -> pb.AuthorityGrantResponse:
    kind, name = delegate
    fields = {"max_access_level": 20, "audience_type": kind, "audience_id": name, **fields}
    request = pb.AuthorityGrantDeriveRequest(
        parent_grant_id=parent, delegate=pb.PrincipalRef(principal_type=kind, principal_id=name), **fields
    )
    return await grant_op(peer, GrantOp.DERIVE, derive_request=request)


async def made(answered: pb.AuthorityGrantResponse) -> pb.ACLAuthorityGrantInfo:
    assert answered.success, answered.error
    return answered.grant


async def delegated(core: Core, window: MemoryLink, delegate: tuple[str, str], **fields: Any) -> str:
    """A grant by which a user lets a participant act for him; its id."""
    hops = fields.pop("hops", 0)
    scope = {
        name: fields.pop(name) for name in ("workspace_scope", "operation_scope", "max_access_level") if name in fields
    }
    root = await exchange(core, window, may_delegate=True, remaining_hops=hops + 1, **scope)
    assert root.success, root.error
    level = scope.pop("max_access_level", 20)
    child = await derive(
        window,
        root.grant.grant_id,
        delegate,
        max_access_level=level,
        may_delegate=hops > 0,
        remaining_hops=hops,
        **scope,
        **fields,
    )
    assert child.success, child.error
    return child.grant.grant_id


def acting_for(user_id: str, grant_id: str) -> pb.AuthorizationContext:
    subject = pb.PrincipalRef(principal_type="user", principal_id=user_id)
    return pb.AuthorizationContext(authority_mode="on_behalf_of", subject=subject, grant_id=grant_id)


async def resolve(peer: MemoryLink, grant_id: str, user_id: str, **fields: Any) -> pb.ResolveAuthorityResponse:
    request_id = f"resolve-{next(_numbers)}"
    request = pb.ResolveAuthorityRequest(
        request_id=request_id,
        grant_id=grant_id,
        subject=pb.PrincipalRef(principal_type="user", principal_id=user_id),
        **fields,
    )
    peer.send(pb.UpstreamMessage(resolve_authority_request=request))
    found: pb.ResolveAuthorityResponse = await answer(peer, "resolve_authority_response", request_id)
    return found


# -- requests --------------------------------------------------------------------------------------


async def request_op(
    peer: MemoryLink, op: RequestOp.OpType.ValueType, **fields: Any
) -> pb.AuthorityRequestOperationResponse:
    """The answer to an operation on authority requests."""
    request_id = f"request-{next(_numbers)}"
    peer.send(pb.UpstreamMessage(authority_request_op=RequestOp(op=op, client_request_id=request_id, **fields)))
    found: pb.AuthorityRequestOperationResponse = await answer(peer, "authority_request_response", request_id)
    return found


def user_ref(user_id: str) -> pb.PrincipalRef:
    return pb.PrincipalRef(principal_type="user", principal_id=user_id)


async def ask(peer: MemoryLink, **fields: Any) -> pb.AuthorityRequestOperationResponse:
    """Ask ann for READWRITE for ten minutes, unless said otherwise."""
    wish: dict[str, Any] = {
        "target_subject": user_ref("ann"),
        "routing_target": pb.AuthorityRequestRoutingTarget(principal=user_ref("ann")),
        "requested_access_level": pb.ACCESS_LEVEL_READWRITE,
        "requested_duration_seconds": 600,
        "reason": "to deploy",
        **fields,
    }
    wish = {name: value for name, value in wish.items() if value is not None}
    return await request_op(peer, RequestOp.CREATE, create=pb.CreateAuthorityRequestPayload(**wish))


async def asked(peer: MemoryLink, **fields: Any) -> str:
    """The id of a new request."""
    answered = await ask(peer, **fields)
    assert answered.success, answered.error
    return answered.request.request_id


async def decide(
    peer: MemoryLink,
    request_id: str,
    decision: Decision.Decision.ValueType = Decision.APPROVE,
    **fields: Any,
) -> pb.AuthorityRequestOperationResponse:
    return await request_op(
        peer, RequestOp.RESOLVE, request_id=request_id, resolve=Decision(decision=decision, **fields)
    )
