"""What an intruder tries with grants and authority requests, by name."""

from __future__ import annotations

import pytest
import trio

from aether_trio.gateway.core import Core
from aether_trio.model.access import AccessLevel
from aether_trio.services.authority import requests
from aether_trio.testing.memory import MemoryLink
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import agent, connect, errors, user
from tests.services.authority.people import (
    EXCHANGE,
    GrantOp,
    RequestOp,
    acting_for,
    allow,
    ask,
    asked,
    decide,
    delegated,
    derive,
    exchange,
    grant_op,
    request_op,
    resolve,
    user_ref,
)
from tests.services.tasks.peers import create, get

NOT_FOUND = "authority request not found"
PLANNER = ("agent", "ag::prod::planner::1")
HELPER = ("agent", "ag::prod::helper::1")
PLANNER_REF = pb.PrincipalRef(principal_type="agent", principal_id=PLANNER[1])
DEPLOY = "capability/approve/deploy"


def planner() -> pb.UpstreamMessage:
    return agent("prod", "planner", "1")


def helper() -> pb.UpstreamMessage:
    return agent("prod", "helper", "1")


async def write_key(peer: MemoryLink, context: pb.AuthorizationContext) -> tuple[bool, str]:
    """Write a key of ann's by a grant: (whether it was written, the code)."""
    op = pb.KVOperation(
        op=pb.KVOperation.PUT, scope=pb.KVOperation.USER_SHARED, user_id="ann", key="k", value=b"x", request_id="put"
    )
    op.authorization.CopyFrom(context)
    peer.send(pb.UpstreamMessage(kv_op=op))
    await trio.sleep(0.1)
    code, written = "", False
    while peer.waiting("kv") or peer.waiting("error"):
        message = await peer.receive_message()
        code = message.error.code or code
        written = written or message.kv.success
    return written, code


# -- ERR_PERMISSION_DENIED -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wider",
    [
        {"max_access_level": 30},
        {"workspace_scope": []},
        {"workspace_scope": ["*"]},
        {"workspace_scope": ["prod", "test"]},
        {"workspace_scope": ["_subject_workspaces"]},
        {"operation_scope": []},
        {"operation_scope": ["kv_[a-z]*"]},
        {"expires_at": 2_000_000_000},
        {"renewable_until": 2_000_000_000},
        {"may_delegate": True, "remaining_hops": 2},
    ],
    ids=str,
)
async def test_child_wider(core: Core, wider: dict[str, object]) -> None:
    scope = {"workspace_scope": ["prod"], "operation_scope": ["kv_read*"], "max_access_level": 20}
    async with connect(core, user("ann", "w1")) as ann, connect(core, planner()) as intruder:
        parent = await delegated(core, ann, PLANNER, hops=2, **scope)
        assert (await derive(intruder, parent, HELPER, **scope)).success
        refused = await derive(intruder, parent, HELPER, **{**scope, **wider})
        assert not refused.success
        assert errors(intruder)[-1].code == "ERR_PERMISSION_DENIED"


async def test_derive_races_revoke(core: Core) -> None:
    async with connect(core, user("ann", "w1")) as ann, connect(core, planner()) as intruder:
        parent = await delegated(core, ann, PLANNER, hops=1)
        async with trio.open_nursery() as nursery:
            results: list[pb.AuthorityGrantResponse] = []

            async def pass_on() -> None:
                results.append(await derive(intruder, parent, HELPER))

            for _ in range(5):
                nursery.start_soon(pass_on)
            assert (await grant_op(ann, GrantOp.REVOKE, grant_id=parent)).success
        assert len(results) == 5
        late = await derive(intruder, parent, HELPER)
        assert (late.success, errors(intruder)[-1].code) == (False, "ERR_PERMISSION_DENIED")
        async with connect(core, helper()) as accomplice:
            for one in results:
                if one.success:
                    assert not (await resolve(accomplice, one.grant.grant_id, "ann")).ok


async def test_resolved_by_client(core: Core) -> None:
    await allow(core, "user:ann", "kv_scope:user-shared/ann", AccessLevel.READWRITE)
    async with connect(core, user("ann", "w1")) as ann, connect(core, planner()) as intruder:
        grant_id = await delegated(core, ann, PLANNER, max_access_level=10)
        context = acting_for("ann", grant_id)
        assert await write_key(intruder, context) == (False, "ERR_PERMISSION_DENIED")
        context.resolved.max_access_level = 50
        context.resolved.workspace_scope.append("*")
        assert await write_key(intruder, context) == (False, "ERR_PERMISSION_DENIED")


async def test_grant_above_own(core: Core) -> None:
    await allow(core, "user:ann", "kv_scope:user-shared/ann", AccessLevel.READ)
    async with connect(core, user("ann", "w1")) as ann, connect(core, planner()) as intruder:
        grant_id = await delegated(core, ann, PLANNER, max_access_level=50)
        assert await write_key(intruder, acting_for("ann", grant_id)) == (False, "ERR_PERMISSION_DENIED")
        session = core.registry.holder("us::ann::w1")
        assert session is not None
        session.cap = AccessLevel.READ
        assert "credential" in (await exchange(core, ann)).error
        assert errors(ann)[-1].code == "ERR_PERMISSION_DENIED"


async def test_a_stolen_grant(core: Core) -> None:
    await allow(core, "user:ann", "kv_scope:user-shared/ann", AccessLevel.READWRITE)
    async with connect(core, user("ann", "w1")) as ann, connect(core, helper()) as intruder:
        grant_id = await delegated(core, ann, PLANNER)
        assert await write_key(intruder, acting_for("ann", grant_id)) == (False, "ERR_PERMISSION_DENIED")


async def test_a_child_outlives_the_session_of_its_parent(core: Core) -> None:
    async with connect(core, planner()) as intruder, connect(core, helper()) as accomplice:
        async with connect(core, user("ann", "w1")) as ann:
            bound = {"may_delegate": True, "remaining_hops": 2, "valid_while_audience_active": True}
            root = (await exchange(core, ann, **bound)).grant
            assert root.audience_type == "session"
            middle = await derive(ann, root.grant_id, PLANNER, may_delegate=True, remaining_hops=1)
            last = await derive(intruder, middle.grant.grant_id, HELPER)
            assert (await resolve(intruder, middle.grant.grant_id, "ann")).ok
            assert (await resolve(accomplice, last.grant.grant_id, "ann")).ok
        await trio.sleep(3)
        assert not (await resolve(intruder, middle.grant.grant_id, "ann")).ok
        assert not (await resolve(accomplice, last.grant.grant_id, "ann")).ok
        assert not (await derive(intruder, middle.grant.grant_id, HELPER)).success


# -- not found -------------------------------------------------------------------------------------


@pytest.mark.parametrize("subject", [None, user_ref("ann"), PLANNER_REF], ids=["none", "other", "itself"])
async def test_self_approval(core: Core, subject: pb.PrincipalRef | None) -> None:
    await allow(core, "agent:" + PLANNER[1], f"capability:{EXCHANGE}")
    await allow(core, "agent:" + PLANNER[1], f"capability:{DEPLOY}")
    async with connect(core, planner()) as intruder:
        for route in (
            pb.AuthorityRequestRoutingTarget(principal=PLANNER_REF),
            pb.AuthorityRequestRoutingTarget(capability=DEPLOY),
        ):
            request_id = await asked(intruder, routing_target=route, target_subject=subject)
            assert (await decide(intruder, request_id)).error == NOT_FOUND


async def test_request_as_other(core: Core) -> None:
    other = pb.PrincipalRef(principal_type="agent", principal_id=HELPER[1])
    route = pb.AuthorityRequestRoutingTarget(principal=PLANNER_REF)
    async with connect(core, planner()) as intruder, connect(core, helper()) as victim:
        request_id = await asked(intruder, requesting_actor=other, routing_target=route, target_subject=None)
        assert (await decide(intruder, request_id)).error == NOT_FOUND
        assert (await request_op(victim, RequestOp.CANCEL, request_id=request_id)).error == NOT_FOUND


async def test_claimed_capability(core: Core) -> None:
    route = pb.AuthorityRequestRoutingTarget(capability=DEPLOY)
    async with connect(core, planner()) as agent_, connect(core, user("eve", "w1")) as intruder:
        request_id = await asked(agent_, routing_target=route, target_subject=None)
        claimed = pb.AuthorityRequestListFilter(matching_capabilities=[DEPLOY])
        assert (await request_op(intruder, RequestOp.LIST_PENDING, list_filter=claimed)).total_count == 0
        assert (await request_op(intruder, RequestOp.GET, request_id=request_id)).error == NOT_FOUND
        assert (await decide(intruder, request_id)).error == NOT_FOUND
        await trio.sleep(1)
        assert intruder.waiting("authority_request_event") == []


# -- refused ---------------------------------------------------------------------------------------


async def test_narrowed_to_nothing(core: Core) -> None:
    async with connect(core, planner()) as agent_, connect(core, user("ann", "w1")) as ann:
        request_id = await asked(agent_, desired_workspace_scope=["prod"])
        # The reference makes this a grant for every workspace.
        refused = await decide(ann, request_id, granted_workspace_scope=["test"])
        assert "nothing of the requested workspace_scope is left" in refused.error
        assert (await grant_op(agent_, GrantOp.LIST_MY_GRANTS)).total == 0


async def test_approved_twice(core: Core) -> None:
    async with (
        connect(core, planner()) as agent_,
        connect(core, user("ann", "w1")) as one,
        connect(core, user("ann", "w2")) as other,
    ):
        request_id = await asked(agent_)
        answers: list[pb.AuthorityRequestOperationResponse] = []

        async def approve(window: MemoryLink) -> None:
            answers.append(await decide(window, request_id))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(approve, one)
            nursery.start_soon(approve, other)
        assert sorted(answer.success for answer in answers) == [False, True]
        assert [answer.error for answer in answers if not answer.success] == ["authority request already resolved"]
        assert (await grant_op(agent_, GrantOp.LIST_MY_GRANTS)).total == 1


# -- a flood ---------------------------------------------------------------------------------------


async def test_requests_too_large_for_one_answer_leave_the_list_readable(core: Core) -> None:
    large = {
        "reason": "r" * 4096,
        "metadata": {f"{number}": "m" * 240 for number in range(64)},
        "desired_workspace_scope": [f"{number:03}{'w' * 250}" for number in range(64)],
        "desired_resource_scope": [
            pb.AuthorityRequestResourceScopeEntry(resource_type=f"{number:03}{'t' * 250}") for number in range(64)
        ],
    }
    async with connect(core, user("ann", "w1")) as ann, connect(core, planner()) as intruder:
        for _ in range(100):
            await asked(intruder, **large)
        found: list[str] = []
        while len(found) < 100:
            wanted = pb.AuthorityRequestListFilter(limit=1000, offset=len(found))
            listed = await request_op(ann, RequestOp.LIST_PENDING, list_filter=wanted)
            assert listed.success, listed.error
            assert listed.total_count == 100
            assert listed.requests
            found += [one.request_id for one in listed.requests]
        assert len(set(found)) == 100


async def test_requests_that_one_may_not_decide_hide_no_other(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "MAX_LISTED", 10)
    async with connect(core, user("ann", "w1")) as ann, connect(core, planner()) as intruder:
        wanted = await asked(intruder)
        for _ in range(20):
            await asked(intruder, target_subject=user_ref("bob"))  # she may not decide
        listed = await request_op(ann, RequestOp.LIST_PENDING)
        assert [one.request_id for one in listed.requests] == [wanted]


# -- no effect -------------------------------------------------------------------------------------


async def test_forged_subject(core: Core) -> None:
    await allow(core, "user:ann", "kv_scope:user-shared/ann", AccessLevel.READWRITE)
    async with connect(core, user("eve", "w1")) as eve, connect(core, planner()) as intruder:
        grant_id = await delegated(core, eve, PLANNER)
        for name in ("ann", "eve"):  # hers is not the key, and the grant is not ann's
            assert await write_key(intruder, acting_for(name, grant_id)) == (False, "ERR_PERMISSION_DENIED")
        forged = {"subject_type": "user", "subject_id": "ann", "authority_mode": "on_behalf_of"}
        task = await get(intruder, (await create(intruder, metadata=forged)).task_id)
        assert (task.subject_id, forged.keys() & task.metadata.keys()) == ("", set())


async def test_markup_of_a_requester_is_text(core: Core) -> None:
    async with connect(core, planner()) as agent_, connect(core, user("ann", "w1")) as ann:
        words = "<b onclick=x>approve</b>\n"
        request_id = await asked(agent_, reason=words)
        found = await request_op(ann, RequestOp.GET, request_id=request_id)
        assert found.request.reason == words  # shown as text; docs/browser.md
        assert "control character" in (await ask(agent_, reason="\x1b[2J")).error


async def test_reason_markup(core: Core) -> None:
    """It is an agent's words, no more; tests/browser shows what a page makes of it."""
    words = "<script>window.ran=1</script> [ok](javascript:1) \u202eevorppa\u2066"
    async with connect(core, planner()) as intruder, connect(core, user("ann", "w1")) as approver:
        refused = await ask(intruder, reason="\x1b[2J")
        assert not refused.success
        assert refused.request.request_id == ""
        request_id = await asked(intruder, reason=words)
        shown = (await request_op(approver, RequestOp.GET, request_id=request_id)).request
        assert (shown.reason, shown.requesting_actor.principal_id) == (words, PLANNER[1])
        assert shown.requested_access_level == pb.ACCESS_LEVEL_READWRITE
