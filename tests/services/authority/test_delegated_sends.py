"""Messages in another's name, whose route is remembered while it holds.

A service of no workspace sends to an agent of a workspace that it may not enter itself. What lets
it is a grant of ann's, and ann's right. `find` counts how often the grant was looked up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import count
from typing import Any

import pytest
import trio

from aether_trio.delivery.router import MAX_ENCODED_BYTES, MAX_TARGETS, RouteCount, Router, Sender
from aether_trio.gateway.core import Core
from aether_trio.model.access import AccessLevel
from aether_trio.model.access.rules import Lock, Member
from aether_trio.services.access import records
from aether_trio.services.authority.known_grants import KnownGrants
from aether_trio.session.session import Session
from aether_trio.testing.memory import MemoryLink
from aether_trio.wire.framing import Send
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import World, agent, barrier, connect, service, switch_to, user
from tests.services.authority.people import (
    LASTS_S,
    GrantOp,
    acting_for,
    allow,
    delegated,
    derive,
    exchange,
    forbid,
    grant_op,
    session_of,
)

BOB = "ag::prod::bob::1"
DELEGATE = ("service", "sv::s::1")
PLANNER = ("agent", "ag::prod::planner::1")
READWRITE = AccessLevel.READWRITE

pytestmark = pytest.mark.parametrize("way", ["message", "frame"])


class Scene:
    """Ann, her delegate, the agent to whom it sends, and how it does."""

    def __init__(self, core: Core, way: str, ann: MemoryLink, delegate: MemoryLink, bob: MemoryLink) -> None:
        self.core, self.way = core, way
        self.ann, self.delegate, self.bob = ann, delegate, bob
        self.rule_id = self.grant_id = self.root_id = ""
        self._numbers = count(1)

    @property
    def session(self) -> Session:
        session = self.core.registry.holder(DELEGATE[1])
        assert session is not None
        return session

    @property
    def sender(self) -> Sender:
        return self.session.sender

    def context(self) -> pb.AuthorizationContext:
        return acting_for("ann", self.grant_id)

    async def send(self, payload: bytes, *, to: str = BOB, way: str = "", **rest: Any) -> None:
        """Send in ann's name, unless `rest` says otherwise, and wait until it is handled."""
        message = pb.SendMessage(**{"authorization": self.context(), **rest})
        if (way or self.way) == "message":
            message.target_topic, message.payload = to, payload
            self.delegate.send(pb.UpstreamMessage(send=message))
        else:
            self.frame(payload, to, message.SerializeToString())
        await barrier(self.delegate, self.bob)

    def frame(self, payload: bytes, to: str, extra: bytes) -> None:
        frame = Send(next(self._numbers), to, payload, 0, extra)
        self.delegate.send(frame)  # type: ignore[arg-type]  # as a client on the framed transport

    def arrived(self) -> list[pb.IncomingMessage]:
        """What has arrived since the last call, taken."""
        found = [one.msg for one in self.bob.waiting("msg")]
        self.bob._downstream.clear()
        return found

    async def delivers(self, payload: bytes, **rest: Any) -> bool:
        """Send, and return whether it has arrived, in ann's name."""
        await self.send(payload, **rest)
        arrived = self.arrived()
        assert [one.payload for one in arrived] in ([], [payload])
        assert all(one.on_behalf_subject.principal_id == "ann" for one in arrived)
        return bool(arrived)


@asynccontextmanager
async def scene(world: World, way: str, **limits: int) -> AsyncIterator[Scene]:
    """A closed gateway on which the delegate may send in ann's name."""
    async with (
        world.open(access={"default": "closed"}, limits=limits) as core,
        connect(core, user("ann", "w1")) as ann,
        connect(core, service("s", "1")) as delegate,
        connect(core, agent("prod", "bob", "1")) as bob,
    ):
        made = Scene(core, way, ann, delegate, bob)
        made.rule_id = await allow(core, "user:ann", "workspace:prod", READWRITE)
        made.grant_id = await delegated(core, ann, DELEGATE)
        made.root_id = (await grant_op(ann, GrantOp.GET, grant_id=made.grant_id)).grant.root_grant_id
        yield made


@pytest.fixture
def find(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The grants that were looked up."""
    looked_up: list[str] = []
    original = KnownGrants.find

    def counting(self: KnownGrants, actor: Any, context: pb.AuthorizationContext) -> Any:
        looked_up.append(context.grant_id)
        return original(self, actor, context)

    monkeypatch.setattr(KnownGrants, "find", counting)
    return looked_up


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Callable[[Core], Counter[RouteCount]]:
    """Messages in ann's name by what they are counted under, from the start."""
    messages = Counter[RouteCount]()
    take = Router.take_counts

    def taking(self: Router, *, all_routes: bool) -> list[RouteCount]:
        counts = take(self, all_routes=all_routes)
        for one in counts:
            if one.grant_id:
                messages[replace(one, messages=0, payload_bytes=0)] += one.messages
                assert one.payload_bytes == (0 if one.refusal else one.messages), "all payloads are one byte"
        return counts

    def counted(core: Core) -> Counter[RouteCount]:
        core.router.take_counts(all_routes=True)
        return messages

    monkeypatch.setattr(Router, "take_counts", taking)
    return counted


async def remembered(one: Scene, find: list[str]) -> None:
    """Send until the route is remembered."""
    assert await one.delivers(b"first")
    find.clear()
    assert await one.delivers(b"second")
    assert find == []


async def test_a_grant_is_looked_up_for_the_first_message_of_many(
    world: World, way: str, find: list[str], counted: Callable[[Core], Counter[RouteCount]]
) -> None:
    async with scene(world, way) as one:
        assert await one.delivers(b"x")
        find.clear()
        for taken in (3, 5):
            for number in range(2):
                assert await one.delivers(b"%d" % number)
            ((route, messages),) = counted(one.core).items()
            assert (route.target, route.grant_id, route.subject) == (BOB, one.grant_id, ("user", "ann"))
            assert messages == taken
        assert find == []
        # In the delegate's own name nothing is remembered of it.
        await one.send(b"own", authorization=pb.AuthorizationContext())
        assert one.arrived() == []


async def test_what_is_refused_on_a_remembered_route_is_counted_for_the_subject(
    world: World, way: str, find: list[str], counted: Callable[[Core], Counter[RouteCount]]
) -> None:
    async with scene(world, way, payload_bytes=10) as one:
        for _ in range(2):
            assert await one.delivers(b"x")
        find.clear()
        assert not await one.delivers(b"x" * 11)
        assert find == []
        (refused,) = [route for route in counted(one.core) if route.refusal]
        assert (refused.refusal, refused.target) == ("ERR_PAYLOAD_TOO_LARGE", BOB)
        assert (refused.grant_id, refused.subject) == (one.grant_id, ("user", "ann"))


# -- what ends it ----------------------------------------------------------------------------------


async def revoke(one: Scene) -> None:
    assert (await grant_op(one.ann, GrantOp.REVOKE, grant_id=one.grant_id)).success


async def revoke_root(one: Scene) -> None:
    assert (await grant_op(one.ann, GrantOp.REVOKE, grant_id=one.root_id)).success


async def expire(one: Scene) -> None:
    await trio.sleep(LASTS_S + 1)


async def lose_right(one: Scene) -> None:
    await forbid(one.core, one.rule_id)


async def lower_right(one: Scene) -> None:
    await allow(one.core, "user:ann", "workspace:prod", AccessLevel.READ)


async def lock_subject(one: Scene) -> None:
    lock = Lock("lock-1", "us::ann::*", "stolen", "user:root", 1, 0)
    await one.core.changes.commit(lambda draft: records.put_lock(draft, lock))


async def lose_credential(one: Scene) -> None:
    one.session.renew(one.session.admission._replace(allows_workspace=lambda workspace: workspace != "prod"))


async def lower_credential(one: Scene) -> None:
    one.session.renew(one.session.admission._replace(cap=AccessLevel.READ))


@pytest.mark.parametrize(
    "change",
    [revoke, revoke_root, expire, lose_right, lower_right, lock_subject, lose_credential, lower_credential],
)
async def test_a_route_ends_with_what_it_rests_on(
    world: World, way: str, find: list[str], change: Callable[[Scene], Awaitable[None]]
) -> None:
    async with scene(world, way) as one:
        await remembered(one, find)
        await change(one)
        assert not await one.delivers(b"late")
        assert not await one.delivers(b"later")
        refused = one.core.router.statistics().refused
        assert refused == {("", "ERR_PERMISSION_DENIED"): 2}


async def test_a_route_ends_with_a_membership(world: World, way: str, find: list[str]) -> None:
    """Ann has the right by a group, for a minute; nothing changes when it is over."""
    async with scene(world, way) as one:
        core = one.core
        await forbid(core, one.rule_id)
        await allow(core, "group:staff", "workspace:prod", READWRITE)
        member = Member("group", "staff", "user", "ann", "user:root", 1, core.clock.now_ms() + 60_000)
        await core.changes.commit(lambda draft: records.put_member(draft, member))
        await remembered(one, find)
        await trio.sleep(61)
        assert not await one.delivers(b"late")


async def test_a_route_ends_with_a_fallback(world: World, way: str, find: list[str]) -> None:
    async with scene(world, way) as one:
        core = one.core
        await forbid(core, one.rule_id)
        await core.changes.commit(lambda draft: records.put_fallback(draft, "user_workspace", READWRITE, "user:root"))
        await remembered(one, find)
        await core.changes.commit(
            lambda draft: records.put_fallback(draft, "user_workspace", AccessLevel.READ, "user:root")
        )
        assert not await one.delivers(b"late")


async def test_a_route_ends_with_a_delegate_between(world: World, way: str, find: list[str]) -> None:
    async with scene(world, way) as one, connect(one.core, agent("prod", "planner", "1")) as planner:
        parent = await delegated(one.core, one.ann, PLANNER, hops=1)
        one.grant_id = (await derive(planner, parent, DELEGATE)).grant.grant_id
        await remembered(one, find)
        lock = Lock("lock-1", PLANNER[1], "stolen", "user:root", 1, 0)
        await one.core.changes.commit(lambda draft: records.put_lock(draft, lock))
        assert not await one.delivers(b"late")


async def test_a_grant_that_needs_a_session_is_looked_up_each_time(world: World, way: str, find: list[str]) -> None:
    async with scene(world, way) as one:
        async with connect(one.core, user("ann", "w2")) as window:
            bound = {"may_delegate": True, "remaining_hops": 1, "valid_while_audience_active": True}
            root = (await exchange(one.core, window, **bound)).grant
            one.grant_id = (await derive(window, root.grant_id, DELEGATE)).grant.grant_id
            for number in range(3):
                find.clear()
                assert await one.delivers(b"%d" % number)
                assert find
        await trio.sleep(3)
        assert not await one.delivers(b"late")


async def test_a_renewed_grant_outlives_its_first_end(world: World, way: str, find: list[str]) -> None:
    async with scene(world, way) as one:
        await remembered(one, find)
        request = pb.ACLRenewAuthorityGrantRequest(extend_seconds=LASTS_S)
        for grant_id in (one.root_id, one.grant_id):
            assert (await grant_op(one.ann, GrantOp.RENEW, grant_id=grant_id, renew_request=request)).success
        await remembered(one, find)
        await trio.sleep(1.5 * LASTS_S)
        assert await one.delivers(b"in its second time")
        await trio.sleep(LASTS_S)
        assert not await one.delivers(b"late")


async def test_the_workspace_of_a_message_is_that_of_its_sender_now(world: World, way: str, find: list[str]) -> None:
    async with scene(world, way) as one, connect(one.core, user("cy", "w")) as cy:
        for workspace in ("red", "blue"):
            await allow(one.core, "user:cy", f"workspace:{workspace}", READWRITE)
        mine = {"audience_type": "session", "audience_id": session_of(one.core, "us::cy::w")}
        one.grant_id = await delegated(one.core, one.ann, ("user", "cy"), **mine)
        one.delegate, found = cy, []
        for workspace in ("red", "blue", "red"):
            cy.send(switch_to(workspace))
            await barrier(cy)
            for _ in range(2):
                await one.send(b"x")
            found.append([arrived.workspace for arrived in one.arrived()])
        assert found == [["red", "red"], ["blue", "blue"], ["red", "red"]]


# -- what is decided for each message --------------------------------------------------------------


async def test_a_condition_is_checked_for_each_message(world: World, way: str, find: list[str]) -> None:
    async with scene(world, way) as one:
        await remembered(one, find)
        access = pb.ResourceAccessRequest(resource_type="workspace", resource_id="prod", required_access_level=20)
        for _ in range(2):
            await one.send(b"checked", checked_access=access)
            (arrived,) = one.arrived()
            assert arrived.access_receipt.allowed
            assert arrived.access_receipt.subject.principal_id == "ann"
        assert find
        access.resource_id = "blue"
        assert not await one.delivers(b"no", checked_access=access)
        assert await one.delivers(b"yes")


async def test_a_continuation_is_made_for_each_message(world: World, way: str, find: list[str]) -> None:
    async with scene(world, way) as one:
        one.grant_id = await delegated(one.core, one.ann, DELEGATE, hops=1)
        await remembered(one, find)
        wish = pb.AuthorityContinuationRequest(
            scope_mode=pb.AuthorityContinuationRequest.SCOPE_MODE_INHERIT_PARENT, binding_id="b1"
        )
        for _ in range(2):
            await one.send(b"go on", authority_continuation=wish)
            (arrived,) = one.arrived()
            assert arrived.forwarded_authorization.binding_id == "b1"
        assert find
        wish.scope_mode = pb.AuthorityContinuationRequest.SCOPE_MODE_UNSPECIFIED
        assert not await one.delivers(b"no", authority_continuation=wish)
        assert await one.delivers(b"yes")
        assert not one.bob.waiting("msg")


async def test_another_workspace_is_asked_for_by_name(world: World, way: str, find: list[str]) -> None:
    async with scene(world, way) as one:
        await remembered(one, find)
        assert not await one.delivers(b"no", app_workspace="blue")
        for _ in range(2):
            await one.send(b"about", app_workspace="prod")
            assert [arrived.workspace for arrived in one.arrived()] == ["prod"]
        assert await one.delivers(b"yes")


async def test_another_grant_and_another_subject_have_routes_of_their_own(
    world: World, way: str, find: list[str]
) -> None:
    async with scene(world, way) as one:
        await remembered(one, find)
        assert not await one.delivers(b"forged", authorization=acting_for("eve", one.grant_id))
        assert not await one.delivers(b"made up", authorization=acting_for("ann", "made-up"))
        context = one.context()
        context.authority_mode = "as"
        assert not await one.delivers(b"unknown mode", authorization=context)
        assert not await one.delivers(b"elsewhere", to="ag::blue::eve::1")


async def test_a_context_in_place_of_a_frames_extra_says_nothing(world: World, way: str, find: list[str]) -> None:
    """Bytes that mean one thing as a context, and another one as `extra`."""
    async with scene(world, way) as one:
        await remembered(one, find)
        assert await one.delivers(b"first", way="message")
        assert await one.delivers(b"second", way="message")
        one.frame(b"own", BOB, one.context().SerializeToString())
        await barrier(one.delegate, one.bob)
        assert one.arrived() == []


# -- bounds ----------------------------------------------------------------------------------------


async def test_one_context_in_unlimited_encodings_takes_bounded_memory(
    world: World, way: str, counted: Callable[[Core], Counter[RouteCount]]
) -> None:
    async with scene(world, way) as one:
        plain = one.context().SerializeToString()
        for number in range(MAX_TARGETS + 50):
            # A field that the protocol does not know is kept in what protobuf encodes again.
            odd = pb.AuthorizationContext.FromString(plain + b"\xf8\x7f" + bytes((number % 128 | 128, number // 128)))
            if way == "message":
                message = pb.SendMessage(target_topic=BOB, payload=b"x", authorization=odd)
                one.delegate.send(pb.UpstreamMessage(send=message))
            else:
                one.frame(b"x", BOB, pb.SendMessage(authorization=odd).SerializeToString())
            if number % 100 == 0:
                await barrier(one.delegate)
        await barrier(one.delegate, one.bob)
        assert len(one.arrived()) == MAX_TARGETS + 50
        assert len(one.sender.delegated) <= MAX_TARGETS + 1
        assert len({id(route) for route in one.sender.delegated.values()}) == 1
        assert list(counted(one.core).values()) == [MAX_TARGETS + 50]


async def test_a_long_encoding_is_not_remembered(world: World, way: str) -> None:
    async with scene(world, way) as one:
        context = one.context()
        context.resolved.audience_id = "x" * MAX_ENCODED_BYTES
        for _ in range(2):
            assert await one.delivers(b"x", authorization=context)
        assert [key for key in one.sender.delegated if not isinstance(key[1], str)] == []


async def test_many_targets_are_remembered_up_to_a_bound_and_all_are_counted(
    world: World, way: str, counted: Callable[[Core], Counter[RouteCount]]
) -> None:
    async with scene(world, way) as one:
        for number in range(MAX_TARGETS):
            to = f"ag::prod::bob::{number % 700}"
            message = pb.SendMessage(authorization=one.context())
            if way == "message":
                message.target_topic, message.payload = to, b"x"
                one.delegate.send(pb.UpstreamMessage(send=message))
            else:
                one.frame(b"x", to, message.SerializeToString())
        await barrier(one.delegate)
        assert len(one.sender.delegated) <= MAX_TARGETS + 1
        counts = counted(one.core)
        assert counts.total() == MAX_TARGETS
        assert len(counts) == len({route.target for route in counts}) == 700
