"""A message passes its sender's delegated authority on to its receiver, narrowed."""

from __future__ import annotations

from typing import Any

import pytest

from aether_trio.gateway.core import Core
from aether_trio.model.access import AccessLevel
from aether_trio.testing.memory import MemoryLink
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import World, agent, barrier, connect, errors, message_to, service, user
from tests.services.authority.people import acting_for, allow, delegated, grant_op

ANN, BOB = "ag::red::ann::1", "ag::red::bob::1"
Wish = pb.AuthorityContinuationRequest
INHERIT, ATTENUATE = Wish.SCOPE_MODE_INHERIT_PARENT, Wish.SCOPE_MODE_ATTENUATE


def passing_on(target: str, grant_id: str, **wish: Any) -> pb.UpstreamMessage:
    message = message_to(target, b"go on")
    message.send.authorization.CopyFrom(acting_for("eve", grant_id))
    message.send.authority_continuation.CopyFrom(Wish(**{"scope_mode": INHERIT, **wish}))
    return message


async def forwarded(sender: MemoryLink, receiver: MemoryLink, message: pb.UpstreamMessage) -> pb.ForwardedAuthorization:
    sender.send(message)
    await barrier(sender, receiver)
    return (await receiver.next("msg")).msg.forwarded_authorization


async def acts(peer: MemoryLink, grant_id: str, workspace: str) -> bool:
    """Whether a participant may act for eve in a workspace."""
    access = pb.ResourceAccessRequest(resource_type="workspace", resource_id=workspace, required_access_level=20)
    op = pb.AccessCheckOperation(request_id="c", access=access, authorization=acting_for("eve", grant_id))
    peer.send(pb.UpstreamMessage(access_check=op))
    answer = (await peer.next("access_check_response")).access_check_response
    return answer.success and answer.decision.allowed


async def test_the_receiver_goes_on_in_the_name_of_the_subject(world: World) -> None:
    async with (
        world.open(access={"default": "closed"}) as core,
        connect(core, user("eve", "1")) as eve,
        connect(core, agent("red", "ann", "1")) as ann,
        connect(core, agent("red", "bob", "1")) as bob,
    ):
        for workspace in ("red", "blue", "green"):
            await allow(core, "user:eve", f"workspace:{workspace}", AccessLevel.READWRITE)
        grant_id = await delegated(core, eve, ("agent", ANN), hops=2, workspace_scope=["blue", "green", "red"])
        whole = await forwarded(ann, bob, passing_on(BOB, grant_id, binding_id="b1"))
        assert (whole.delivery_target, whole.binding_id) == (BOB, "b1")
        assert whole.authorization.subject.principal_id == "eve"
        assert not await acts(bob, grant_id, "blue"), "the sender's own grant is not the receiver's"
        assert await acts(bob, whole.authorization.grant_id, "blue")
        assert not await acts(ann, whole.authorization.grant_id, "blue")
        less = await forwarded(
            ann,
            bob,
            passing_on(
                BOB,
                grant_id,
                scope_mode=ATTENUATE,
                scope=pb.AuthorityContinuationScope(workspace_scope=["green", "yellow"], max_access_level=20),
            ),
        )
        assert list(less.scope.workspace_scope) == ["green"]
        assert await acts(bob, less.authorization.grant_id, "green")
        assert not await acts(bob, less.authorization.grant_id, "blue")
        revoked = await grant_op(eve, pb.AuthorityGrantOperation.REVOKE, grant_id=whole.root_grant_id)
        assert revoked.success
        assert not await acts(bob, less.authorization.grant_id, "green")


@pytest.mark.parametrize(
    ("target", "wish", "words"),
    [
        ("ga::red", {}, "one agent or service instance"),
        ("us::eve::1", {}, "one agent or service instance"),
        (BOB, {"scope_mode": 0}, "scope_mode"),
        (BOB, {"scope": pb.AuthorityContinuationScope(max_access_level=10)}, "goes with ATTENUATE"),
        (BOB, {"binding_id": "x" * 300}, "binding_id"),
        (BOB, {"scope_mode": ATTENUATE, "scope": pb.AuthorityContinuationScope(workspace_scope=["x"])}, "nothing"),
        ("ag::blue::far::1", {}, "workspace"),
    ],
)
async def test_a_wish_that_cannot_be_met_delivers_nothing(
    world: World, target: str, wish: dict[str, Any], words: str
) -> None:
    async with (
        world.open(access={"default": "closed"}) as core,
        connect(core, user("eve", "1")) as eve,
        connect(core, agent("red", "ann", "1")) as ann,
        connect(core, agent("red", "bob", "1")) as bob,
    ):
        await allow(core, "user:eve", "workspace:red", AccessLevel.READWRITE)
        grant_id = await delegated(core, eve, ("agent", ANN), hops=1, workspace_scope=["red"])
        ann.send(passing_on(target, grant_id, **wish))
        await barrier(ann, bob)
        (error,) = errors(ann)
        assert words in error.message
        assert bob.waiting("msg") == []
        assert eve.waiting("msg") == []


async def test_a_message_whose_checked_access_is_denied_makes_no_grant(world: World) -> None:
    async with (
        world.open(access={"default": "closed"}) as core,
        connect(core, user("eve", "1")) as eve,
        connect(core, agent("red", "ann", "1")) as ann,
        connect(core, agent("red", "bob", "1")) as bob,
    ):
        await allow(core, "user:eve", "workspace:red", AccessLevel.READWRITE)
        grant_id = await delegated(core, eve, ("agent", ANN), hops=1, workspace_scope=["red"])
        for asked, code in (
            (pb.ResourceAccessRequest(resource_type="admin", resource_id="admin/acl"), "ERR_PERMISSION_DENIED"),
            (pb.ResourceAccessRequest(resource_type="workspace"), "ERR_INVALID_ARGUMENT"),
        ):
            message = passing_on(BOB, grant_id)
            message.send.checked_access.CopyFrom(asked)
            ann.send(message)
            await barrier(ann, bob)
            assert errors(ann)[-1].code == code
        assert bob.waiting("msg") == []
        held = await grant_op(bob, pb.AuthorityGrantOperation.LIST_MY_GRANTS)
        assert list(held.grants) == []
        message = passing_on(BOB, grant_id)
        message.send.checked_access.CopyFrom(pb.ResourceAccessRequest(resource_type="workspace", resource_id="red"))
        ann.send(message)
        await barrier(ann, bob)
        delivered = (await bob.next("msg")).msg
        assert delivered.access_receipt.allowed
        assert delivered.forwarded_authorization.authorization.grant_id


async def test_without_a_grant_or_without_hops_nothing_is_passed_on(world: World) -> None:
    async with (
        world.open(access={"default": "closed"}) as core,
        connect(core, user("eve", "1")) as eve,
        connect(core, agent("red", "ann", "1")) as ann,
        connect(core, agent("red", "bob", "1")) as bob,
        connect(core, service("s", "1")),
    ):
        await allow(core, "user:eve", "workspace:red", AccessLevel.READWRITE)
        last = await delegated(core, eve, ("agent", ANN))
        direct = message_to(BOB, b"direct")
        direct.send.authority_continuation.scope_mode = INHERIT
        ann.send(direct, passing_on(BOB, last))
        await barrier(ann, bob)
        assert len(errors(ann)) == 2
        assert bob.waiting("msg") == []
        assert isinstance(core, Core)
