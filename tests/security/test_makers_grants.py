"""Grants that are made with a token: they give no more than its makers have."""

from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import count
from typing import Final

import pytest

from aether_trio.gateway.core import Core
from aether_trio.testing.memory import MemoryLink
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import World, agent, connect, deadlock_is_an_error
from tests.security.intruders import CLOSED, EVE, RED, administrator, eve
from tests.security.test_credentials_tokens import create as create_token
from tests.security.test_makers import ACL, BOSS
from tests.services.access.acl import ADMIN, MANAGE, READWRITE, grant
from tests.services.authority.people import answer, asked, decide, derive

_numbers = count(1)
BOSS_REF: Final = pb.PrincipalRef(principal_type="agent", principal_id=BOSS[1])


@pytest.fixture
async def core(world: World) -> AsyncIterator[Core]:
    async with deadlock_is_an_error(), world.open(**CLOSED) as opened:
        yield opened


@pytest.fixture
async def admin(core: Core) -> AsyncIterator[MemoryLink]:
    async with administrator(core) as link:
        await grant(link, BOSS, ACL, ADMIN)
        await grant(link, BOSS, RED, ADMIN)
        await grant(link, EVE, ("admin", "admin/tokens"), ADMIN)
        await grant(link, EVE, RED, MANAGE)
        yield link


async def may_for_boss(peer: MemoryLink, grant_id: str, resource: tuple[str, str], level: int) -> bool:
    context = pb.AuthorizationContext(authority_mode="on_behalf_of", subject=BOSS_REF, grant_id=grant_id)
    asked_for = pb.ResourceAccessRequest(
        resource_type=resource[0], resource_id=resource[1], operation="look", required_access_level=level
    )
    op = pb.AccessCheckOperation(request_id=f"check-{next(_numbers)}", access=asked_for, authorization=context)
    peer.send(pb.UpstreamMessage(access_check=op))
    answered = await answer(peer, "access_check_response", op.request_id)
    assert answered.success, answered.error
    return bool(answered.decision.allowed)


async def test_an_approval_by_a_token_gives_no_more_than_its_maker_has(core: Core, admin: MemoryLink) -> None:
    async with eve(core) as intruder:
        text, _ = await create_token(intruder, workspace_patterns=["red"])
        request_id = await asked(
            intruder,
            target_subject=BOSS_REF,
            routing_target=pb.AuthorityRequestRoutingTarget(principal=BOSS_REF),
            requested_access_level=pb.ACCESS_LEVEL_ADMIN,
            desired_workspace_scope=["red"],
        )
        async with connect(core, agent("red", "boss", "1", credentials={"api_key": text})) as accomplice:
            approved = await decide(accomplice, request_id, may_delegate=True, remaining_hops=1)
        assert approved.success, approved.error
        grant_id = approved.request.granted_grant_id
        assert not await may_for_boss(intruder, grant_id, RED, ADMIN)
        assert await may_for_boss(intruder, grant_id, RED, READWRITE)
        child = await derive(intruder, grant_id, EVE, max_access_level=40, workspace_scope=["red"])
        assert child.success, child.error
        assert not await may_for_boss(intruder, child.grant.grant_id, RED, ADMIN)
        await grant(admin, EVE, RED, ADMIN)
        assert await may_for_boss(intruder, grant_id, RED, ADMIN)


async def test_an_approval_by_a_credential_of_its_own_is_not_bounded(core: Core, admin: MemoryLink) -> None:
    async with eve(core) as asker:
        request_id = await asked(
            asker,
            target_subject=BOSS_REF,
            routing_target=pb.AuthorityRequestRoutingTarget(principal=BOSS_REF),
            requested_access_level=pb.ACCESS_LEVEL_ADMIN,
            desired_workspace_scope=["red"],
        )
        text, _ = await create_token(admin, workspace_patterns=["red"])
        async with connect(core, agent("red", "boss", "1", credentials={"api_key": text})) as boss:
            approved = await decide(boss, request_id)
        assert approved.success, approved.error
        assert await may_for_boss(asker, approved.request.granted_grant_id, RED, ADMIN)
