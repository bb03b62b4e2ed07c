"""A lock takes tokens and grants along: those that rest on the locked principal."""

from __future__ import annotations

from aether_trio.gateway.core import Core
from aether_trio.model.errors import Status
from aether_trio.testing.memory import MemoryLink
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import World, agent, barrier, connect, errors, message_to, orchestrator, payloads, user
from tests.services.access.acl import ADMIN, MANAGE, READ, READWRITE, Op, done, grant, may, refused, rule
from tests.services.authority.people import acting_for, delegated


async def token_of(peer: MemoryLink) -> str:
    request = pb.TokenCreateRequest(name="t", principal_type="agent")
    op = pb.TokenOperation(op=pb.TokenOperation.CREATE, create_request=request, request_id="t")
    peer.send(pb.UpstreamMessage(token_op=op))
    answer = (await peer.next("token")).token
    assert answer.success, answer.error
    return str(answer.plaintext_token)


async def test_a_lock_of_the_maker_ends_sessions_by_his_tokens(closed: Core) -> None:
    async with connect(closed, orchestrator("o", "1")) as admin, connect(closed, user("admin", "1")) as maker:
        secret = await token_of(maker)
        hello = agent("red", "ann", "1", credentials={"api_key": secret})
        async with connect(closed, hello) as peer:
            lock = await grant(admin, ("user", "admin"), ("lock", "*"), 0)
            assert (await peer.wait_end()).status is Status.UNAUTHENTICATED
            assert (await maker.wait_end()).status is Status.UNAUTHENTICATED
        async with connect(closed, hello, wait_ack=False) as refusal:
            assert (await refusal.wait_end()).status is Status.UNAUTHENTICATED
        await done(admin, Op.REVOKE, rule_id=lock.rule_id)
        async with connect(closed, hello) as again:
            await barrier(again)


async def test_a_lock_of_the_subject_voids_what_acts_for_him(closed: Core) -> None:
    async with (
        connect(closed, orchestrator("o", "1")) as admin,
        connect(closed, user("eve", "1")) as eve,
        connect(closed, agent("red", "ann", "1")) as ann,
        connect(closed, agent("blue", "bob", "1")) as bob,
    ):
        await grant(admin, ("user", "eve"), ("workspace", "blue"), READWRITE)
        grant_id = await delegated(closed, eve, ("agent", "ag::red::ann::1"))

        async def act(payload: bytes) -> None:
            message = message_to("ag::blue::bob::1", payload)
            message.send.authorization.CopyFrom(acting_for("eve", grant_id))
            ann.send(message)
            await barrier(ann, bob)

        await act(b"1")
        assert payloads(bob) == [b"1"]
        assert bob.waiting("msg")[0].msg.on_behalf_subject.principal_id == "eve"
        lock = await grant(admin, ("user", "eve"), ("lock", "*"), 0, reason="gone")
        await act(b"2")
        assert payloads(bob) == [b"1"]
        assert "eve is locked (gone)" in errors(ann)[-1].message
        await done(admin, Op.REVOKE, rule_id=lock.rule_id)


async def test_a_lock_is_for_others_than_its_maker(world: World) -> None:
    async with world.open(access={"default": "closed"}) as core, connect(core, user("admin", "1")) as root:
        for pattern in ("admin", "us::*", "us::admin::*", "*"):
            text = await refused(root, Op.GRANT, grant_request=rule(("user", pattern), ("lock", "*"), 0))
            assert "lock you out" in text, pattern
        await barrier(root)


async def test_a_token_administers_no_more_than_its_maker(closed: Core) -> None:
    """Its holder may come as an agent with more rights."""
    async with connect(closed, orchestrator("o", "1")) as admin, connect(closed, user("mia", "1")) as mia:
        await grant(admin, ("user", "mia"), ("admin", "admin/tokens"), ADMIN)
        await grant(admin, ("user", "mia"), ("workspace", "*"), MANAGE)
        await grant(admin, ("agent", "ag::red::root::1"), ("admin", "admin/*"), ADMIN)
        secret = await token_of(mia)
        hello = agent("red", "root", "1", credentials={"api_key": secret})
        async with connect(closed, hello) as peer:
            assert not await may(peer, ("admin", "admin/acl"), READ)
            assert await may(peer, ("admin", "admin/tokens"), ADMIN)
        async with connect(closed, agent("red", "root", "1")) as itself:
            assert await may(itself, ("admin", "admin/acl"), ADMIN)
