"""Tokens that let in others than their makers: they may no more than these."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

import pytest

from aether_trio.gateway.core import Core
from aether_trio.model.errors import Status
from aether_trio.testing.memory import MemoryLink
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import World, agent, connect, deadlock_is_an_error, user
from tests.security.intruders import CLOSED, EVE, RED, administrator, eve, key
from tests.security.test_credentials_tokens import create as create_token
from tests.services.access.acl import ADMIN, MANAGE, READ, READWRITE, Op, done, grant, may, refused, rule, wanted
from tests.services.tasks.peers import create

BOSS: Final = ("agent", "ag::red::boss::1")
ACL: Final = ("admin", "admin/acl")
PURGE: Final = ("capability", "capability/kv_purge_identity")


@pytest.fixture
async def core(world: World) -> AsyncIterator[Core]:
    async with deadlock_is_an_error(), world.open(**CLOSED) as opened:
        yield opened


@pytest.fixture
async def admin(core: Core) -> AsyncIterator[MemoryLink]:
    async with administrator(core) as link:
        await grant(link, BOSS, ACL, ADMIN)
        await grant(link, BOSS, PURGE, ADMIN)
        await grant(link, BOSS, RED, ADMIN)
        yield link


def red(name: str, **credentials: str) -> pb.UpstreamMessage:
    return agent("red", name, "1", credentials=credentials)


async def task_token(peer: MemoryLink, name: str) -> str:
    made = await create(peer, target_identity=f"ag::red::{name}::1", workspace="red")
    assert made.success, made.error_message
    return str(made.task_token)


async def test_a_task_token_keeps_the_level_of_its_creators_credential(core: Core, admin: MemoryLink) -> None:
    await grant(admin, EVE, RED, ADMIN)
    await grant(admin, ("agent", "ag::red::ann::1"), RED, ADMIN)
    text, _ = await create_token(admin, workspace_patterns=["red"], scopes=["connect", "level:MANAGE"])
    async with connect(core, red("ann", api_key=text)) as first:
        token = await task_token(first, "eve")
        async with connect(core, red("eve", task_token=token)) as second:
            assert not await may(second, RED, ADMIN)
            assert await may(second, RED, MANAGE)
            token = await task_token(second, "boss")
            async with connect(core, red("boss", task_token=token)) as third:
                assert not await may(third, RED, ADMIN)


async def test_an_api_token_makes_no_administrator_of_its_maker(core: Core, admin: MemoryLink) -> None:
    await grant(admin, EVE, ("admin", "admin/tokens"), ADMIN)
    await grant(admin, EVE, RED, MANAGE)
    async with eve(core) as intruder:
        text, _ = await create_token(intruder, workspace_patterns=["red"])
    async with connect(core, red("boss", api_key=text)) as intruder:
        token = await task_token(intruder, "boss")
        for resource, level in ((ACL, READ), (PURGE, READ), (RED, ADMIN)):
            assert not await may(intruder, resource, level), resource
        assert await may(intruder, RED, MANAGE)
    async with connect(core, red("boss", task_token=token)) as intruder:
        for resource, level in ((ACL, READ), (PURGE, READ), (RED, ADMIN)):
            assert not await may(intruder, resource, level), resource


async def test_a_task_token_makes_no_administrator_of_its_creator(core: Core, admin: MemoryLink) -> None:
    worker = ("agent", "ag::red::worker::1")
    await grant(admin, EVE, RED, MANAGE)
    await grant(admin, worker, RED, MANAGE)
    async with eve(core) as creator:
        token = await task_token(creator, "boss")
        async with connect(core, red("boss", task_token=token)) as intruder:
            for resource, level in ((ACL, READ), (PURGE, READ), (RED, ADMIN)):
                assert not await may(intruder, resource, level), resource
        token = await task_token(creator, "worker")
        async with connect(core, red("worker", task_token=token)) as second:
            token = await task_token(second, "boss")
            async with connect(core, red("boss", task_token=token)) as intruder:
                for principal in (EVE, worker):
                    assert not await may(intruder, ACL, READ)
                    await grant(admin, principal, ACL, READWRITE)
                assert await may(intruder, ACL, READWRITE)
                assert not await may(intruder, ACL, ADMIN)


async def test_a_lock_of_the_creator_takes_the_task_token_along(core: Core, admin: MemoryLink) -> None:
    await grant(admin, EVE, RED, MANAGE)
    async with eve(core) as creator:
        token = await task_token(creator, "worker")
    async with connect(core, red("worker", task_token=token)) as worker:
        await done(admin, Op.GRANT, grant_request=rule(("", EVE[1]), ("lock", "*"), 0))
        assert (await worker.wait_end()).status is Status.UNAUTHENTICATED
    async with connect(core, red("worker", task_token=token), wait_ack=False) as worker:
        assert (await worker.wait_end()).status is Status.UNAUTHENTICATED


async def test_a_right_of_all_agents_is_no_right_of_the_maker_of_a_token(core: Core, admin: MemoryLink) -> None:
    await grant(admin, ("user", "clerk"), ("admin", "admin/tokens"), ADMIN)
    await grant(admin, ("user", "clerk"), RED, READ)
    everyone = ("wildcard", "_any_agent")
    async with connect(core, user("clerk", "w", credentials=key("all"))) as clerk:
        text, _ = await create_token(clerk, workspace_patterns=["red"])
    for resource in (RED, ("workspace", "*")):
        given = await grant(admin, everyone, resource, MANAGE)
        async with connect(core, red("x", api_key=text)) as intruder:
            assert not await may(intruder, RED, MANAGE)
            assert await may(intruder, RED, READWRITE)
        await done(admin, Op.REVOKE, rule_id=given.rule_id)
    await grant(admin, everyone, ACL, READ)
    async with connect(core, red("x", api_key=text)) as intruder:
        assert not await may(intruder, ACL, READ)


async def test_a_token_gives_no_pattern_that_its_maker_has_not(core: Core, admin: MemoryLink) -> None:
    """Where a pattern is given, what the maker has over all of it counts."""
    await grant(admin, EVE, ("admin", "admin/tokens"), ADMIN)
    await grant(admin, EVE, ACL, ADMIN)
    await grant(admin, EVE, PURGE, ADMIN)
    await grant(admin, EVE, ("workspace", "*"), READ)
    await grant(admin, BOSS, ("workspace", "*"), ADMIN)
    async with eve(core, tenant="all") as intruder:
        text, _ = await create_token(intruder, workspace_patterns=["*"])
    async with connect(core, red("boss", api_key=text)) as boss:
        for resource in (RED, ("workspace", "re*"), ("workspace", "*")):
            assert "than you have" in await refused(boss, Op.GRANT, grant_request=rule(EVE, resource, MANAGE))
        await grant(boss, ("agent", "ag::red::ann::1"), ("workspace", "re*"), READWRITE)
        ban = await grant(admin, EVE, ("workspace", "b*"), 0)
        await done(admin, Op.REVOKE, rule_filter=wanted(EVE, ("workspace", "*")))
        await grant(admin, ("agent", "ag::re?::*"), ("workspace", "blue"), ADMIN)
        await grant(admin, EVE, ("workspace", "blue"), 0)
        assert "another administrator" in await refused(boss, Op.REVOKE, rule_filter=wanted(EVE, ("workspace", "blue")))
        await done(boss, Op.REVOKE, rule_id=ban.rule_id)


async def test_a_token_opens_no_workspace_for_longer_than_its_maker_may_enter(core: Core, admin: MemoryLink) -> None:
    await grant(admin, ("user", "clerk"), ("admin", "admin/tokens"), ADMIN)
    soon = core.clock.now_ms() // 1000 + 2 * 3600
    await grant(admin, ("user", "clerk"), RED, READ, expires_at=soon)
    async with connect(core, user("clerk", "w", credentials=key("all"))) as clerk:
        for hours in (0, 3):
            asked = pb.TokenCreateRequest(
                name="ci", principal_type="agent", workspace_patterns=["red"], expires_in_hours=hours
            )
            operation = pb.TokenOperation(op=pb.TokenOperation.CREATE, request_id="r", create_request=asked)
            clerk.send(pb.UpstreamMessage(token_op=operation))
            assert "for longer" in (await clerk.next("token")).token.error
        await create_token(clerk, workspace_patterns=["red"], expires_in_hours=1)
