"""Ask a core for access administration, and for verdicts."""

from __future__ import annotations

from itertools import count
from typing import Any

from aether_trio.testing.memory import MemoryLink
from aether_trio.wire.pb import aether_pb2 as pb

Op = pb.ACLOperation
READ, READWRITE, MANAGE, ADMIN, SUPERADMIN = 10, 20, 30, 40, 50

_numbers = count(1)


async def acl(peer: MemoryLink, op: Op.OpType.ValueType, **fields: Any) -> pb.ACLResponse:
    """Perform one operation; return its typed answer."""
    request_id = f"acl-{next(_numbers)}"
    peer.send(pb.UpstreamMessage(acl_op=Op(op=op, request_id=request_id, **fields)))
    answer = (await peer.next("acl")).acl
    assert answer.request_id == request_id
    return answer


async def done(peer: MemoryLink, op: Op.OpType.ValueType, **fields: Any) -> pb.ACLResponse:
    answer = await acl(peer, op, **fields)
    assert answer.success, answer.error
    return answer


async def refused(peer: MemoryLink, op: Op.OpType.ValueType, **fields: Any) -> str:
    """The text of a refusal, with its code; an ErrorResponse with the code follows."""
    answer = await acl(peer, op, **fields)
    assert not answer.success
    error = (await peer.next("error")).error
    assert error.request_id == answer.request_id
    assert answer.error == f"{error.code}: {error.message}"
    return answer.error


async def grant(
    peer: MemoryLink, principal: tuple[str, str], resource: tuple[str, str], level: int, **fields: Any
) -> pb.ACLRuleInfo:
    answer = await done(peer, Op.GRANT, grant_request=rule(principal, resource, level, **fields))
    return answer.rule


def rule(principal: tuple[str, str], resource: tuple[str, str], level: int, **fields: Any) -> pb.ACLGrantRequest:
    return pb.ACLGrantRequest(
        principal_type=principal[0],
        principal_id=principal[1],
        resource_type=resource[0],
        resource_id=resource[1],
        access_level=level,
        **fields,
    )


def wanted(principal: tuple[str, str], resource: tuple[str, str]) -> pb.ACLRuleFilter:
    return pb.ACLRuleFilter(
        principal_type=principal[0], principal_id=principal[1], resource_type=resource[0], resource_id=resource[1]
    )


async def may(peer: MemoryLink, resource: tuple[str, str], level: int, **fields: Any) -> bool:
    """Whether the gateway says that this participant may."""
    request_id = f"check-{next(_numbers)}"
    access = pb.ResourceAccessRequest(
        resource_type=resource[0], resource_id=resource[1], operation="x", required_access_level=level, **fields
    )
    peer.send(pb.UpstreamMessage(access_check=pb.AccessCheckOperation(request_id=request_id, access=access)))
    answer = (await peer.next("access_check_response")).access_check_response
    assert (answer.request_id, answer.success) == (request_id, True), answer.error
    return answer.decision.allowed
