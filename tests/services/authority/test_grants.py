"""Grants over the wire: exchanged, derived, used, renewed, revoked."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from aether_trio.gateway.core import Core
from aether_trio.model.access import AccessLevel
from aether_trio.model.access.rules import Lock
from aether_trio.services.access import records
from aether_trio.testing.memory import MemoryLink
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import World, agent, connect, errors, orchestrator, service, user
from tests.services.authority.people import (
    EXCHANGE,
    LASTS_S,
    GrantOp,
    acting_for,
    allow,
    delegated,
    derive,
    exchange,
    forbid,
    grant_op,
    resolve,
    session_of,
    terms,
)

PLANNER = ("agent", "ag::prod::planner::1")
HELPER = ("agent", "ag::prod::helper::1")


def planner(**init: Any) -> pb.UpstreamMessage:
    return agent("prod", "planner", "1", **init)


async def kv(peer: MemoryLink, context: pb.AuthorizationContext | None, key: str = "k") -> str:
    """Read a key of ann's; why it is refused, "" if it is not."""
    op = pb.KVOperation(
        op=pb.KVOperation.GET, scope=pb.KVOperation.USER_SHARED, user_id="ann", key=key, request_id="kv"
    )
    if context is not None:
        op.authorization.CopyFrom(context)
    peer.send(pb.UpstreamMessage(kv_op=op))
    await trio.sleep(0.1)
    refused = ""
    while peer.waiting("kv") or peer.waiting("error"):
        message = await peer.receive_message()
        refused = message.error.message or refused
    return refused


# -- root grants -----------------------------------------------------------------------------------


async def test_a_user_exchanges_a_grant_on_himself(core: Core) -> None:
    async with connect(core, user("ann", "w1")) as ann:
        session_id = session_of(core, "us::ann::w1")
        answered = await exchange(core, ann, workspace_scope=["prod"], reason="for the planner", metadata={"x": "y"})
        grant = answered.grant
        assert answered.success
        assert grant.grant_id == grant.root_grant_id
        assert (grant.subject, grant.delegate, grant.issued_by) == (grant.root_subject,) * 3
        assert (grant.subject.principal_type, grant.subject.principal_id) == ("user", "ann")
        assert (grant.audience_type, grant.audience_id) == ("session", session_id)
        assert (grant.max_access_level, grant.access_level_name) == (20, "READWRITE")
        assert dict(grant.metadata) == {"x": "y", "exchange_mode": "self"}
        assert (grant.workspace_scope, grant.reason, grant.revoked) == (["prod"], "for the planner", False)


@pytest.mark.parametrize("hello", [planner(), service("s", "1")])
async def test_only_users_exchange_without_a_source_session(core: Core, hello: pb.UpstreamMessage) -> None:
    async with connect(core, hello) as peer:
        answered = await exchange(core, peer)
        assert (answered.success, "only a user exchanges" in answered.error) == (False, True)
        assert errors(peer)[-1].code == "ERR_PERMISSION_DENIED"


async def test_a_service_with_the_capability_exchanges_from_a_users_live_session(core: Core) -> None:
    rule = await allow(core, "service:sv::portal::1", f"capability:{EXCHANGE}")
    async with connect(core, user("ann", "w1")), connect(core, service("portal", "1")) as portal:
        source = session_of(core, "us::ann::w1")
        grant = (await exchange(core, portal, source_session_id=source)).grant
        assert grant.subject.principal_id == "ann"
        assert grant.delegate.principal_id == "sv::portal::1"
        assert grant.valid_while_audience_active
        assert (grant.audience_type, grant.audience_id) == ("session", source)
        assert dict(grant.metadata) == {"exchange_mode": "trusted_exchange", "source_session_id": source}
        assert (await resolve(portal, grant.grant_id, "ann")).ok
        await forbid(core, rule)
        assert "no live session" in (await exchange(core, portal, source_session_id=source)).error
        assert "no live session" in (await exchange(core, portal, source_session_id="made-up")).error


async def test_the_narrow_capability_is_for_one_subject_in_one_workspace(core: Core) -> None:
    await allow(core, "service:sv::portal::1", f"capability:{EXCHANGE}/_no_workspace/ann")
    async with (
        connect(core, user("ann", "w1")),
        connect(core, user("bob", "w1")),
        connect(core, service("portal", "1")) as portal,
    ):
        of_ann, of_bob = session_of(core, "us::ann::w1"), session_of(core, "us::bob::w1")
        assert (await exchange(core, portal, source_session_id=of_ann)).success
        assert not (await exchange(core, portal, source_session_id=of_bob)).success


async def test_a_grant_from_a_session_ends_with_the_session(core: Core) -> None:
    await allow(core, "service:sv::portal::1", f"capability:{EXCHANGE}")
    async with connect(core, service("portal", "1")) as portal:
        async with connect(core, user("ann", "w1")):
            grant = (await exchange(core, portal, source_session_id=session_of(core, "us::ann::w1"))).grant
        while (await resolve(portal, grant.grant_id, "ann")).ok:
            await trio.sleep(0.1)
        assert "audience" in (await resolve(portal, grant.grant_id, "ann")).error


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"max_access_level": 0}, "max_access_level"),
        ({"max_access_level": 15}, "invalid access level"),
        ({"expires_at": 0}, "expires_at"),
        ({"expires_at": -1}, "expires_at"),
        ({"expires_at": 2**62}, "expires_at"),
        ({"renewable_until": 1}, "renewable_until"),
        ({"may_delegate": True}, "remaining_hops"),
        ({"remaining_hops": 1}, "may_delegate"),
        ({"may_delegate": True, "remaining_hops": 99}, "remaining_hops"),
        ({"workspace_scope": ["["]}, "bad pattern"),
        ({"workspace_scope": ["x" * 300]}, "256 bytes"),
        ({"workspace_scope": [str(number) for number in range(65)]}, "at most 64"),
        ({"workspace_scope": ["a\x00b"]}, "control character"),
        ({"operation_scope": ["*" * 17]}, "bad pattern"),
        ({"reason": "x" * 5000}, "reason"),
        ({"reason": "a\x00b"}, "control character"),
        ({"metadata": {str(number): "" for number in range(65)}}, "metadata"),
        ({"audience_type": "agent", "audience_id": "ag::prod::planner::1"}, "audience"),
        ({"audience_type": "session", "audience_id": "another"}, "audience"),
        ({"audience_type": "task", "audience_id": "another"}, "audience"),
        ({"audience_type": "planet"}, "audience"),
        ({"source_session_id": "x" * 1000}, "source_session_id"),
        ({"resource_scope": [pb.ACLAuthorityGrantResourceScopeEntry(patterns=["x"])]}, "resource type"),
    ],
    ids=str,
)
async def test_what_a_client_says_is_checked(core: Core, fields: dict[str, Any], text: str) -> None:
    async with connect(core, user("ann", "w1")) as ann:
        answered = await exchange(core, ann, **fields)
        assert not answered.success
        assert text in answered.error
        assert errors(ann)[-1].request_id == answered.request_id


async def test_a_batch_makes_what_it_can_and_tells_of_the_rest(core: Core) -> None:
    async with connect(core, user("ann", "w1")) as ann:
        good = pb.AuthorityGrantExchangeRequest(**terms(core))
        bad = pb.AuthorityGrantExchangeRequest(**terms(core, max_access_level=0))
        batch = pb.AuthorityGrantBatchExchangeRequest(requests=[good, bad, good])
        answered = await grant_op(ann, GrantOp.BATCH_EXCHANGE, batch_exchange_request=batch)
        assert (answered.success, len(answered.grants), answered.total) == (True, 2, 2)
        assert answered.error.startswith("request 1: ")
        batch.stop_on_first_error = True
        answered = await grant_op(ann, GrantOp.BATCH_EXCHANGE, batch_exchange_request=batch)
        assert (len(answered.grants), answered.message) == (1, "stopped at request 1")
        batch = pb.AuthorityGrantBatchExchangeRequest(requests=[bad])
        answered = await grant_op(ann, GrantOp.BATCH_EXCHANGE, batch_exchange_request=batch)
        assert not answered.success


# -- derived grants --------------------------------------------------------------------------------


async def test_a_delegate_passes_on_less_and_others_nothing(core: Core) -> None:
    async with (
        connect(core, user("ann", "w1")) as ann,
        connect(core, planner()) as agent_,
        connect(core, agent("prod", "helper", "1")) as helper,
    ):
        grant_id = await delegated(core, ann, PLANNER, hops=1, workspace_scope=["prod", "test"])
        child = await derive(agent_, grant_id, HELPER, max_access_level=10, workspace_scope=["prod"])
        assert child.success, child.error
        assert child.grant.parent_grant_id == grant_id
        assert child.grant.subject.principal_id == "ann"
        assert child.grant.remaining_hops == 0
        wider = await derive(agent_, grant_id, HELPER)
        assert "broaden" in wider.error
        assert errors(agent_)[-1].code == "ERR_PERMISSION_DENIED"
        # Who does not see a grant does not learn that there is one.
        assert (await derive(helper, grant_id, HELPER)).error == "authority grant not found"
        assert "delegated further" in (await derive(helper, child.grant.grant_id, PLANNER)).error


async def test_a_grant_for_a_target_is_derived_once(core: Core) -> None:
    target = pb.PrincipalRef(principal_type="agent", principal_id=HELPER[1])
    async with connect(core, user("ann", "w1")) as ann, connect(core, planner()) as agent_:
        grant_id = await delegated(core, ann, PLANNER, hops=1, workspace_scope=["prod"])
        wanted = pb.AuthorityGrantDeriveForTargetRequest(parent_grant_id=grant_id, target=target, max_access_level=20)
        first, second = [
            await grant_op(agent_, GrantOp.DERIVE_FOR_TARGET, derive_for_target_request=wanted) for _ in range(2)
        ]
        assert first.success, first.error
        assert (first.grant.workspace_scope, first.grant.audience_type) == (["prod"], "agent")
        assert second.grant.grant_id == first.grant.grant_id
        assert second.message == "existing authority grant reused"
        wanted.max_access_level = 10
        third = await grant_op(agent_, GrantOp.DERIVE_FOR_TARGET, derive_for_target_request=wanted)
        assert third.grant.grant_id != first.grant.grant_id
        assert (await grant_op(ann, GrantOp.REVOKE, grant_id=first.grant.grant_id)).success
        wanted.max_access_level = 20
        fourth = await grant_op(agent_, GrantOp.DERIVE_FOR_TARGET, derive_for_target_request=wanted)
        assert fourth.grant.grant_id not in (first.grant.grant_id, third.grant.grant_id)
        wanted.expires_at = fourth.grant.expires_at - 60
        shorter = await grant_op(agent_, GrantOp.DERIVE_FOR_TARGET, derive_for_target_request=wanted)
        assert shorter.grant.expires_at == wanted.expires_at
        again = await grant_op(agent_, GrantOp.DERIVE_FOR_TARGET, derive_for_target_request=wanted)
        assert again.grant.grant_id == shorter.grant.grant_id


# -- seeing, renewing ------------------------------------------------------------------------------


async def test_subject_issuer_and_delegate_see_a_grant_and_others_do_not(core: Core) -> None:
    async with (
        connect(core, user("ann", "w2")) as ann,
        connect(core, user("bob", "w1")) as bob,
        connect(core, planner()) as agent_,
    ):
        grant_id = await delegated(core, ann, PLANNER)
        for peer in (ann, agent_):
            assert (await grant_op(peer, GrantOp.GET, grant_id=grant_id)).success
        for op in (GrantOp.GET, GrantOp.RENEW, GrantOp.REVOKE):
            assert (await grant_op(bob, op, grant_id=grant_id)).error == "authority grant not found"
        assert (await grant_op(bob, GrantOp.GET, grant_id="no\x00ne")).error.startswith("grant_id contains")


async def test_lists_show_who_acts_for_me_and_for_whom_i_act(core: Core) -> None:
    async with connect(core, user("ann", "w1")) as ann, connect(core, planner()) as agent_:
        first = await delegated(core, ann, PLANNER, hops=1)
        second = (await derive(agent_, first, HELPER)).grant.grant_id
        mine = await grant_op(agent_, GrantOp.LIST_MY_GRANTS)
        assert ([one.grant_id for one in mine.grants], mine.total) == ([first], 1)
        on_me = await grant_op(ann, GrantOp.LIST_GRANTS_ON_ME)
        assert on_me.total == 3
        page = pb.AuthorityGrantListRequest(limit=1, offset=1)
        on_me = await grant_op(ann, GrantOp.LIST_GRANTS_ON_ME, list_request=page)
        assert (len(on_me.grants), on_me.total) == (1, 3)
        filtered = pb.AuthorityGrantListRequest(audience_type="agent", audience_id=HELPER[1])
        on_me = await grant_op(ann, GrantOp.LIST_GRANTS_ON_ME, list_request=filtered)
        assert [one.grant_id for one in on_me.grants] == [second]
        await grant_op(ann, GrantOp.REVOKE, grant_id=first)
        assert (await grant_op(ann, GrantOp.LIST_GRANTS_ON_ME, list_request=filtered)).total == 0
        filtered.include_revoked = True
        assert (await grant_op(ann, GrantOp.LIST_GRANTS_ON_ME, list_request=filtered)).grants[0].revoked


async def test_a_renewal_is_cut_at_the_window(core: Core) -> None:
    async with connect(core, user("ann", "w1")) as ann:
        grant = (await exchange(core, ann)).grant
        request = pb.ACLRenewAuthorityGrantRequest(extend_seconds=10 * LASTS_S)
        after = await grant_op(ann, GrantOp.RENEW, grant_id=grant.grant_id, renew_request=request)
        assert after.grant.expires_at == grant.renewable_until
        assert after.grant.renewed_at > 0
        request = pb.ACLRenewAuthorityGrantRequest(expires_at=grant.renewable_until + 1)
        refused = await grant_op(ann, GrantOp.RENEW, grant_id=grant.grant_id, renew_request=request)
        assert "cannot be renewed" in refused.error


async def test_a_renewed_grant_outlives_its_first_end_and_not_its_window(core: Core) -> None:
    async with connect(core, user("ann", "w1")) as ann, connect(core, planner()) as agent_:
        grant_id = await delegated(core, ann, PLANNER)
        root_id = (await grant_op(agent_, GrantOp.GET, grant_id=grant_id)).grant.root_grant_id
        assert (await resolve(agent_, grant_id, "ann")).ok
        request = pb.ACLRenewAuthorityGrantRequest(extend_seconds=LASTS_S)
        for one in (root_id, grant_id):
            assert (await grant_op(ann, GrantOp.RENEW, grant_id=one, renew_request=request)).success
        await trio.sleep(1.5 * LASTS_S)
        assert (await resolve(agent_, grant_id, "ann")).ok
        await trio.sleep(LASTS_S)
        assert (await resolve(agent_, grant_id, "ann")).error == "authority grant has expired"


# -- using -----------------------------------------------------------------------------------------


async def test_an_agent_reads_what_its_subject_may_while_the_grant_is_valid(core: Core) -> None:
    await allow(core, "user:ann", "kv_scope:user-shared/ann", AccessLevel.READ)
    async with connect(core, user("ann", "w1")) as ann, connect(core, planner()) as agent_:
        assert await kv(agent_, None) != ""
        grant_id = await delegated(core, ann, PLANNER)
        assert await kv(agent_, acting_for("ann", grant_id)) == ""
        assert (await grant_op(ann, GrantOp.REVOKE, grant_id=grant_id)).success
        assert "revoked" in await kv(agent_, acting_for("ann", grant_id))


async def test_the_limits_of_a_grant_hold(core: Core) -> None:
    await allow(core, "user:ann", "kv_scope:user-shared/ann", AccessLevel.READWRITE)
    async with connect(core, user("ann", "w1")) as ann, connect(core, planner()) as agent_:
        narrow = await delegated(core, ann, PLANNER, operation_scope=["send_*"])
        assert "operation" in await kv(agent_, acting_for("ann", narrow))
        for context, text in (
            (acting_for("bob", narrow), "another subject"),
            (acting_for("ann", "made-up"), "not found"),
        ):
            assert text in await kv(agent_, context)


async def test_a_message_is_sent_on_behalf_until_the_grant_is_revoked(core: Core) -> None:
    async with (
        connect(core, user("ann", "w1")) as ann,
        connect(core, planner()) as agent_,
        connect(core, agent("prod", "helper", "1")) as helper,
    ):
        grant_id = await delegated(core, ann, PLANNER)
        message = pb.SendMessage(target_topic=HELPER[1], payload=b"1", authorization=acting_for("ann", grant_id))
        agent_.send(pb.UpstreamMessage(send=message))
        arrived = (await helper.next("msg")).msg
        assert (arrived.payload, arrived.on_behalf_subject.principal_id) == (b"1", "ann")
        assert (await grant_op(ann, GrantOp.REVOKE, grant_id=grant_id)).success
        agent_.send(pb.UpstreamMessage(send=message))
        agent_.send(pb.UpstreamMessage(send=pb.SendMessage(target_topic=HELPER[1], payload=b"2")))
        assert (await helper.next("msg")).msg.payload == b"2"
        assert "revoked" in errors(agent_)[-1].message


@pytest.mark.parametrize("pattern", ["us::ann::*", "user:ann", "ag::prod::planner::*"])
async def test_a_lock_takes_the_grants_along_that_came_through_who_is_locked(core: Core, pattern: str) -> None:
    await allow(core, "user:ann", "kv_scope:user-shared/ann", AccessLevel.READ)
    async with (
        connect(core, user("ann", "w1")) as ann,
        connect(core, planner()) as agent_,
        connect(core, agent("prod", "helper", "1")) as helper,
    ):
        parent = await delegated(core, ann, PLANNER, hops=1)
        child = (await derive(agent_, parent, HELPER)).grant.grant_id
        assert await kv(helper, acting_for("ann", child)) == ""
        lock = Lock("lock-1", pattern, "stolen", "user:root", 1, 0)
        await core.changes.commit(lambda draft: records.put_lock(draft, lock))
        assert "is locked (stolen)" in await kv(helper, acting_for("ann", child))
        assert "is locked (stolen)" in (await resolve(helper, child, "ann")).error


# -- revocation ------------------------------------------------------------------------------------


async def test_a_revocation_ends_the_tree_and_all_windows_hear_of_it(core: Core) -> None:
    async with (
        connect(core, user("ann", "w1")) as ann,
        connect(core, user("ann", "w2")) as ann_2,
        connect(core, user("bob", "w1")) as bob_1,
        connect(core, user("bob", "w2")) as bob_2,
        connect(core, planner()) as agent_,
        connect(core, agent("prod", "helper", "1")) as helper,
    ):
        top = await delegated(core, ann, PLANNER, hops=2)
        middle = (await derive(agent_, top, HELPER, may_delegate=True, remaining_hops=1)).grant.grant_id
        window = await derive(helper, middle, ("user", "bob"), audience_type="session", audience_id="s")
        assert window.success, window.error
        answered = await grant_op(ann, GrantOp.REVOKE, grant_id=top)
        assert answered.success
        assert answered.grant.revoked
        told = (await helper.next("authority_grant_revocation")).authority_grant_revocation
        assert (told.grant_id, told.cascade) == (middle, True)
        told = (await agent_.next("authority_grant_revocation")).authority_grant_revocation
        assert (told.grant_id, told.cascade, told.revoked_at > 0) == (top, False, True)
        for peer in (bob_1, bob_2):
            told = (await peer.next("authority_grant_revocation")).authority_grant_revocation
            assert told.grant_id == window.grant.grant_id
        for peer in (ann, ann_2):  # whose list of grants on her is shorter now
            told = (await peer.next("authority_grant_revocation")).authority_grant_revocation
            assert (told.grant_id, told.cascade) == (top, False)
        assert (await resolve(helper, middle, "ann")).error == "authority grant was revoked"
        again = await grant_op(ann, GrantOp.REVOKE, grant_id=top)
        assert again.success
        await trio.sleep(1)
        for peer in (agent_, ann, ann_2):
            assert peer.waiting("authority_grant_revocation") == []


async def test_a_subject_that_is_its_own_delegate_hears_once(core: Core) -> None:
    async with connect(core, user("ann", "w1")) as ann:
        own = (await exchange(core, ann)).grant.grant_id
        assert (await grant_op(ann, GrantOp.REVOKE, grant_id=own)).success
        assert (await ann.next("authority_grant_revocation")).authority_grant_revocation.grant_id == own
        await trio.sleep(1)
        assert ann.waiting("authority_grant_revocation") == []


async def test_grants_and_revocations_outlive_the_gateway(world: World) -> None:
    async with world.open() as core, connect(core, user("ann", "w1")) as ann:
        kept = await delegated(core, ann, PLANNER)
        gone = await delegated(core, ann, PLANNER)
        await grant_op(ann, GrantOp.REVOKE, grant_id=gone)
    async with world.open() as core, connect(core, planner()) as agent_:
        assert (await resolve(agent_, kept, "ann")).ok
        assert not (await resolve(agent_, gone, "ann")).ok


# -- resolving -------------------------------------------------------------------------------------


async def test_delegates_enforcers_and_the_permitted_resolve_a_grant(core: Core) -> None:
    delegate = pb.PrincipalRef(principal_type="agent", principal_id=PLANNER[1])
    async with (
        connect(core, user("ann", "w1")) as ann,
        connect(core, planner()) as agent_,
        connect(core, service("proxy", "1")) as proxy,
        connect(core, orchestrator("o", "1")) as operator,
    ):
        grant_id = await delegated(core, ann, PLANNER, workspace_scope=["_subject_workspaces"])
        answered = await resolve(agent_, grant_id, "ann")
        assert answered.ok, answered.error
        assert answered.authority.grant.workspace_scope == ["*"]
        assert answered.authority.grant.max_access_level == 20
        refused = await resolve(proxy, grant_id, "ann", actor=delegate)
        assert (refused.ok, refused.error, refused.HasField("authority")) == (False, "not authorized", False)
        assert (await resolve(proxy, "made-up", "ann", actor=delegate)).error == "not authorized"
        assert (await resolve(operator, grant_id, "ann", actor=delegate)).ok
        await allow(core, "service:sv::proxy::1", "capability:capability/resolve_authority", AccessLevel.READ)
        assert (await resolve(proxy, grant_id, "ann", actor=delegate)).ok
        assert "another subject" in (await resolve(proxy, grant_id, "bob", actor=delegate)).error
        assert "another delegate" in (await resolve(proxy, grant_id, "ann")).error
        fields = {"actor": delegate, "audience_type": "task", "audience_id": "t"}
        assert "audience" in (await resolve(proxy, grant_id, "ann", **fields)).error
