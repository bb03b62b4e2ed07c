"""A decision whose commit is not answered is made once, and answered as made."""

from __future__ import annotations

import pytest

from aether_trio.gateway.core import Core
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import World, agent, connect, user
from tests.services.authority.people import Decision, GrantOp, RequestOp, asked, decide, delegated, grant_op, request_op

PLANNER = ("agent", "ag::prod::planner::1")
APPROVED, DENIED = pb.AUTHORITY_REQUEST_STATUS_APPROVED, pb.AUTHORITY_REQUEST_STATUS_DENIED


@pytest.mark.parametrize("decision", [Decision.APPROVE, Decision.DENY], ids=["approve", "deny"])
async def test_a_decision_whose_commit_is_not_answered(
    core: Core, world: World, decision: Decision.Decision.ValueType
) -> None:
    async with connect(core, agent("prod", "planner", "1")) as asker, connect(core, user("ann", "w1")) as ann:
        request_id = await asked(asker)
        world.databases["tasks"].unanswered_writes = 1
        decided = await decide(ann, request_id, decision)
        assert decided.success, decided.error
        found = await request_op(ann, RequestOp.GET, request_id=request_id)
        assert found.request.status == (APPROVED if decision == Decision.APPROVE else DENIED)


async def test_a_revocation_whose_commit_is_not_answered(core: Core, world: World) -> None:
    async with connect(core, agent("prod", "planner", "1")), connect(core, user("ann", "w1")) as ann:
        grant_id = await delegated(core, ann, PLANNER)
        world.databases["tasks"].side.unanswered_writes = 1
        await grant_op(ann, GrantOp.REVOKE, grant_id=grant_id)
        again = await grant_op(ann, GrantOp.REVOKE, grant_id=grant_id)
        assert again.success
        assert again.grant.revoked
