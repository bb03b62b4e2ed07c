"""Authority requests over the wire: asked, narrowed, decided once, expired."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from aether_trio.gateway.core import Core
from aether_trio.model.access import AccessLevel
from aether_trio.services.authority import store
from aether_trio.testing.memory import MemoryLink
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import World, agent, connect, errors, service, user
from tests.services.authority.people import (
    EXCHANGE,
    Decision,
    GrantOp,
    RequestOp,
    allow,
    ask,
    asked,
    decide,
    forbid,
    grant_op,
    request_op,
    resolve,
    user_ref,
)

PLANNER = pb.PrincipalRef(principal_type="agent", principal_id="ag::prod::planner::1")
DEPLOY = "capability/approve/deploy"
TO_DEPLOY = pb.AuthorityRequestRoutingTarget(capability=DEPLOY)

Event = pb.AuthorityRequestEvent


def planner(specifier: str = "1") -> pb.UpstreamMessage:
    return agent("prod", "planner", specifier)


async def event(peer: MemoryLink) -> pb.AuthorityRequestEvent:
    return (await peer.next("authority_request_event")).authority_request_event


async def test_an_agent_asks_a_user_approves_less_and_both_hear_of_it(core: Core) -> None:
    async with (
        connect(core, planner()) as agent_,
        connect(core, user("ann", "w1")) as ann,
        connect(core, user("ann", "w2")) as elsewhere,
    ):
        request = (await ask(agent_, desired_workspace_scope=["prod", "test"], metadata={"run": "7"})).request
        assert (request.status, request.requesting_actor) == (pb.AUTHORITY_REQUEST_STATUS_PENDING, PLANNER)
        assert (request.audience_type, request.audience_id) == ("agent", PLANNER.principal_id)
        assert request.expires_at - request.created_at == 1800
        for peer in (agent_, ann, elsewhere):
            told = await event(peer)
            assert (told.event_type, told.request) == (Event.AUTHORITY_REQUEST_EVENT_CREATED, request)
        answered = await decide(
            ann,
            request.request_id,
            granted_workspace_scope=["prod"],
            granted_access_level=pb.ACCESS_LEVEL_READ,
            granted_duration_seconds=60,
            reason="for now",
        )
        assert answered.success, answered.error
        assert answered.request.status == pb.AUTHORITY_REQUEST_STATUS_APPROVED
        assert answered.request.resolved_by == user_ref("ann")
        for peer in (agent_, ann, elsewhere):
            told = await event(peer)
            assert (told.event_type, told.request) == (Event.AUTHORITY_REQUEST_EVENT_APPROVED, answered.request)
        grant = (await grant_op(agent_, GrantOp.GET, grant_id=answered.request.granted_grant_id)).grant
        assert (grant.subject, grant.delegate, grant.issued_by) == (user_ref("ann"), PLANNER, user_ref("ann"))
        assert (grant.workspace_scope, grant.max_access_level) == (["prod"], 10)
        assert grant.expires_at - grant.created_at == 60
        assert grant.valid_while_audience_active
        assert (await resolve(agent_, grant.grant_id, "ann")).ok


async def test_a_request_is_decided_once(core: Core) -> None:
    async with connect(core, planner()) as agent_, connect(core, user("ann", "w1")) as ann:
        request_id = await asked(agent_)
        assert (await decide(ann, request_id, Decision.DENY, reason="no")).success
        again = await decide(ann, request_id)
        assert (again.success, again.error) == (False, "authority request already resolved")
        assert errors(ann)[-1].request_id == again.client_request_id
        assert (await request_op(agent_, RequestOp.CANCEL, request_id=request_id)).error == again.error
        found = (await request_op(agent_, RequestOp.GET, request_id=request_id)).request
        assert (found.status, found.resolution_reason) == (pb.AUTHORITY_REQUEST_STATUS_DENIED, "no")


async def test_only_the_requester_cancels(core: Core) -> None:
    async with connect(core, planner()) as agent_, connect(core, user("ann", "w1")) as ann:
        request_id = await asked(agent_)
        assert "not found" in (await request_op(ann, RequestOp.CANCEL, request_id=request_id)).error
        cancelled = await request_op(agent_, RequestOp.CANCEL, request_id=request_id, reason="not needed")
        assert (cancelled.request.status, cancelled.request.resolution_reason) == (
            pb.AUTHORITY_REQUEST_STATUS_CANCELLED,
            "not needed",
        )


async def test_the_requester_is_who_asks_and_never_approves(core: Core) -> None:
    await allow(core, "agent:ag::prod::planner::1", f"capability:{EXCHANGE}")
    me = pb.AuthorityRequestRoutingTarget(principal=PLANNER)
    other = pb.PrincipalRef(principal_type="agent", principal_id="ag::prod::planner::2")
    async with connect(core, planner()) as agent_, connect(core, planner("2")) as another:
        for wish in ({}, {"target_subject": None}, {"target_subject": PLANNER}, {"requesting_actor": other}):
            answered = await ask(agent_, routing_target=me, **wish)
            assert answered.request.requesting_actor == PLANNER
            refused = await decide(agent_, answered.request.request_id)
            assert refused.error == "authority request not found"
        # The one that was named is no party to it.
        found = await request_op(another, RequestOp.GET, request_id=answered.request.request_id)
        assert found.error == "authority request not found"


async def test_a_capability_routes_to_its_holders_who_may_exchange(core: Core) -> None:
    async with (
        connect(core, planner()) as agent_,
        connect(core, user("boss", "w1")) as boss,
        connect(core, user("bob", "w1")) as bob,
    ):
        await allow(core, "user:boss", f"capability:{DEPLOY}")
        request_id = await asked(agent_, routing_target=TO_DEPLOY, desired_workspace_scope=["prod"])
        assert (await event(boss)).request.request_id == request_id
        await trio.sleep(1)
        assert bob.waiting("authority_request_event") == []
        assert (await decide(boss, request_id)).error == "authority request not found"
        rule = await allow(core, "user:boss", f"capability:{EXCHANGE}/prod/ann")
        mine = {"list_filter": pb.AuthorityRequestListFilter(matching_capabilities=[DEPLOY])}
        listed = await request_op(boss, RequestOp.LIST_PENDING, **mine)
        assert [one.request_id for one in listed.requests] == [request_id]
        assert (await request_op(bob, RequestOp.LIST_PENDING, **mine)).total_count == 0
        await forbid(core, rule)
        assert (await request_op(boss, RequestOp.LIST_PENDING, **mine)).total_count == 0
        await allow(core, "user:boss", f"capability:{EXCHANGE}")
        answered = await decide(boss, request_id)
        assert answered.success, answered.error
        grant = (await grant_op(agent_, GrantOp.GET, grant_id=answered.request.granted_grant_id)).grant
        assert (grant.subject, grant.issued_by) == (user_ref("ann"), user_ref("boss"))


async def test_a_request_for_no_subject_is_for_the_approvers_authority(core: Core) -> None:
    await allow(core, "user:boss", f"capability:{DEPLOY}")
    async with connect(core, planner()) as agent_, connect(core, user("boss", "w1")) as boss:
        request_id = await asked(agent_, routing_target=TO_DEPLOY, target_subject=None)
        answered = await decide(boss, request_id, may_delegate=True, remaining_hops=2)
        grant = (await grant_op(agent_, GrantOp.GET, grant_id=answered.request.granted_grant_id)).grant
        assert (grant.subject, grant.remaining_hops) == (user_ref("boss"), 2)


async def test_who_was_asked_without_the_right_to_exchange_cannot_approve(core: Core) -> None:
    to_bob = pb.AuthorityRequestRoutingTarget(principal=user_ref("bob"))
    async with (
        connect(core, planner()) as agent_,
        connect(core, user("ann", "w1")) as ann,
        connect(core, user("bob", "w1")) as bob,
    ):
        request_id = await asked(agent_, routing_target=to_bob)
        assert (await event(bob)).request.request_id == request_id
        assert (await decide(bob, request_id)).error == "authority request not found"
        assert (await request_op(bob, RequestOp.LIST_PENDING)).total_count == 0
        assert (await request_op(ann, RequestOp.LIST_PENDING)).total_count == 1
        assert (await decide(ann, request_id)).success


@pytest.mark.parametrize(
    "granted",
    [
        {"granted_workspace_scope": ["dev"]},
        {"granted_operation_scope": ["send_message"]},
        {"granted_access_level": pb.ACCESS_LEVEL_NONE},
        {"granted_resource_scope": [pb.AuthorityRequestResourceScopeEntry(resource_type="admin")]},
    ],
    ids=str,
)
async def test_an_approval_that_leaves_nothing_is_refused_and_leaves_the_request(
    core: Core, granted: dict[str, Any]
) -> None:
    async with connect(core, planner()) as agent_, connect(core, user("ann", "w1")) as ann:
        request_id = await asked(
            agent_,
            desired_workspace_scope=["prod"],
            desired_operation_scope=["kv_*"],
            desired_resource_scope=[pb.AuthorityRequestResourceScopeEntry(resource_type="kv_key", patterns=["a*"])],
        )
        refused = await decide(ann, request_id, **granted)
        assert (refused.success, "left" in refused.error) == (False, True)
        assert (await decide(ann, request_id)).success


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"requested_duration_seconds": 0}, "requested_duration_seconds"),
        ({"requested_duration_seconds": -1}, "requested_duration_seconds"),
        ({"requested_access_level": pb.ACCESS_LEVEL_UNSPECIFIED}, "requested_access_level"),
        ({"requested_access_level": pb.ACCESS_LEVEL_NONE}, "max_access_level"),
        ({"routing_target": None}, "routing_target"),
        ({"target_subject": pb.PrincipalRef(principal_type="user")}, "target_subject"),
        ({"target_subject": pb.PrincipalRef(principal_type="role", principal_id="x")}, "principal type"),
        ({"target_subject": pb.PrincipalRef(principal_type="agent", principal_id="us::a::b")}, "not of type agent"),
        ({"desired_workspace_scope": ["["]}, "bad pattern"),
        ({"desired_workspace_scope": ["a\x00"]}, "control character"),
        ({"reason": "x" * 5000}, "reason"),
        ({"task_id": "made-up"}, "task not found"),
        ({"task_id": "x" * 2000}, "task_id"),
        ({"audience_type": "agent", "audience_id": "ag::prod::other::1"}, "audience"),
    ],
    ids=str,
)
async def test_what_a_requester_says_is_checked(core: Core, fields: dict[str, Any], text: str) -> None:
    async with connect(core, planner()) as agent_:
        refused = await ask(agent_, **fields)
        assert not refused.success
        assert text in refused.error


async def test_a_participant_has_a_bounded_number_of_pending_requests(
    core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "MAX_PENDING_OF", 2)
    async with connect(core, planner()) as agent_:
        first = await asked(agent_)
        await asked(agent_)
        assert "wait for a decision" in (await ask(agent_)).error
        await request_op(agent_, RequestOp.CANCEL, request_id=first)
        assert (await ask(agent_)).success


async def test_a_request_expires_after_half_an_hour_and_all_hear_of_it(world: World) -> None:
    async with world.open() as core, connect(core, planner()) as agent_:
        first = await asked(agent_)
    async with world.open() as core, connect(core, planner()) as agent_, connect(core, user("ann", "w1")) as ann:
        second = await asked(agent_)
        await event(ann)
        began = trio.current_time()
        told = [await event(ann), await event(ann)]
        assert {one.request.request_id for one in told} == {first, second}
        assert {one.event_type for one in told} == {Event.AUTHORITY_REQUEST_EVENT_EXPIRED}
        assert 1500 <= trio.current_time() - began <= 1900
        assert (await decide(ann, first)).error == "authority request already resolved"


async def test_filters_of_the_list(core: Core) -> None:
    async with connect(core, planner()) as agent_, connect(core, user("ann", "w1")) as ann:
        prod = await asked(agent_, desired_workspace_scope=["prod"])
        test = await asked(agent_, desired_workspace_scope=["test"])
        await decide(ann, test, Decision.DENY)

        async def listed(**wanted: Any) -> list[str]:
            found = await request_op(ann, RequestOp.LIST_PENDING, list_filter=pb.AuthorityRequestListFilter(**wanted))
            assert found.success, found.error
            return [one.request_id for one in found.requests]

        assert await listed() == [prod]
        assert await listed(workspace="test") == []
        assert await listed(status=pb.AUTHORITY_REQUEST_STATUS_DENIED) == [test]
        assert await listed(offset=1) == []
        assert (await request_op(agent_, RequestOp.LIST_PENDING)).total_count == 0


async def test_a_credential_of_less_reach_approves_no_more(core: Core) -> None:
    async with connect(core, planner()) as agent_, connect(core, user("ann", "w1")) as ann:
        request_id = await asked(agent_, requested_access_level=pb.ACCESS_LEVEL_MANAGE)
        session = core.registry.holder("us::ann::w1")
        assert session is not None
        session.cap = AccessLevel.READ
        assert "your credential gives READ at most" in (await decide(ann, request_id)).error
        assert (await decide(ann, request_id, granted_access_level=pb.ACCESS_LEVEL_READ)).success


async def test_a_service_hears_of_requests_for_its_capability(core: Core) -> None:
    await allow(core, "service:sv::office::1", f"capability:{DEPLOY}")
    async with connect(core, planner()) as agent_, connect(core, service("office", "1")) as office:
        request_id = await asked(agent_, routing_target=TO_DEPLOY, target_subject=None)
        assert (await event(office)).request.request_id == request_id
        assert (await request_op(office, RequestOp.GET, request_id=request_id)).success
        await request_op(agent_, RequestOp.CANCEL, request_id=request_id)
        assert (await event(office)).event_type == Event.AUTHORITY_REQUEST_EVENT_CANCELLED
