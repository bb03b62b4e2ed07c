"""Tasks that wait for authority, and tasks that are done on behalf of a user."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from aether_trio.gateway.core import Core
from aether_trio.services.authority import store
from aether_trio.services.authority.endings import GrantEndings
from aether_trio.testing.memory import MemoryLink
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import World, agent, connect, user
from tests.services.authority.people import (
    Decision,
    GrantOp,
    RequestOp,
    acting_for,
    allow,
    asked,
    decide,
    delegated,
    derive,
    exchange,
    grant_op,
    request_op,
    resolve,
)
from tests.services.tasks.peers import Op, create, get, operate, own

PLANNER = ("agent", "ag::prod::planner::1")
WORKER = ("agent", "ag::prod::worker::1")


def planner() -> pb.UpstreamMessage:
    return agent("prod", "planner", "1")


def worker(specifier: str = "1") -> pb.UpstreamMessage:
    return agent("prod", "worker", specifier)


def authority_wait(request_id: str) -> pb.WaitSpec:
    return pb.WaitSpec(reason=pb.WAIT_REASON_AUTHORITY, authority_request_id=request_id)


async def status(peer: MemoryLink, task_id: str) -> str:
    return pb.TaskStatus.Name((await get(peer, task_id)).status).removeprefix("TASK_STATUS_")


async def on_behalf(
    peer: MemoryLink, grant_id: str, mode: pb.TaskAssignmentMode.ValueType = pb.TARGETED, **fields: Any
) -> pb.CreateTaskResponse:
    """What becomes of a task for ann."""
    if mode == pb.TARGETED:
        fields = {"target_agent_id": WORKER[1], "target_offline_policy": pb.TARGET_OFFLINE_POLICY_QUEUE, **fields}
    fields = {"target_implementation": "worker", "authorization": acting_for("ann", grant_id), **fields}
    return await create(peer, assignment_mode=mode, **fields)


async def grant_of(peer: MemoryLink, grant_id: str) -> pb.ACLAuthorityGrantInfo:
    answered = await grant_op(peer, GrantOp.GET, grant_id=grant_id)
    assert answered.success, answered.error
    return answered.grant


async def given(peer: MemoryLink) -> pb.TaskAssignment:
    return (await peer.next("task_assignment")).task_assignment


# -- waits -----------------------------------------------------------------------------------------


async def test_a_task_goes_on_when_its_request_is_approved(core: Core) -> None:
    async with connect(core, planner()) as agent_, connect(core, user("ann", "w1")) as ann:
        task_id = await own(agent_, workspace="prod")
        request_id = await asked(agent_, task_id=task_id)
        assert (await operate(agent_, Op.PAUSE, task_id, wait_spec=authority_wait(request_id))).success
        assert await status(agent_, task_id) == "WAITING_AUTHORITY"
        assert (await decide(ann, request_id)).success
        assert await status(agent_, task_id) == "RUNNING"
        assert (await operate(agent_, Op.COMPLETE, task_id)).success


@pytest.mark.parametrize("end", ["denied", "cancelled", "expired"])
async def test_a_task_fails_when_its_request_is_not_approved(core: Core, end: str) -> None:
    async with connect(core, planner()) as agent_, connect(core, user("ann", "w1")) as ann:
        task_id = await own(agent_, workspace="prod")
        request_id = await asked(agent_)
        await operate(agent_, Op.PAUSE, task_id, wait_spec=authority_wait(request_id))
        if end == "denied":
            await decide(ann, request_id, Decision.DENY, reason="too wide")
        elif end == "cancelled":
            await request_op(agent_, RequestOp.CANCEL, request_id=request_id, reason="too wide")
        else:
            await trio.sleep(1801)
        while await status(agent_, task_id) != "FAILED":
            await trio.sleep(0.1)
        text = (await get(agent_, task_id)).error
        assert text == f"authority request {end}: " + ("it was not decided in time" if end == "expired" else "too wide")


async def test_a_wait_for_what_is_decided_already_ends_at_once(core: Core) -> None:
    async with connect(core, planner()) as agent_, connect(core, user("ann", "w1")) as ann:
        first, second = await own(agent_, workspace="prod"), await own(agent_, workspace="prod")
        approved, denied = await asked(agent_), await asked(agent_)
        await decide(ann, approved)
        await decide(ann, denied, Decision.DENY)
        for task_id, request_id, word in ((first, approved, "RUNNING"), (second, denied, "FAILED")):
            paused = await operate(agent_, Op.PAUSE, task_id, wait_spec=authority_wait(request_id))
            assert paused.success, paused.error
            assert await status(agent_, task_id) == word


async def test_a_request_of_others_and_one_that_does_not_exist_move_no_task(core: Core) -> None:
    async with (
        connect(core, planner()) as agent_,
        connect(core, worker()) as other,
        connect(core, user("ann", "w1")) as ann,
    ):
        task_id = await own(agent_, workspace="prod")
        of_other = await asked(other)
        for request_id in (of_other, "made-up"):
            assert (await operate(agent_, Op.PAUSE, task_id, wait_spec=authority_wait(request_id))).success
        await operate(agent_, Op.PAUSE, task_id, wait_spec=authority_wait(of_other))
        await decide(ann, of_other)
        await trio.sleep(5)
        assert await status(agent_, task_id) == "WAITING_AUTHORITY"


async def test_a_task_that_waits_for_something_else_meanwhile_is_not_moved(core: Core) -> None:
    async with connect(core, planner()) as agent_, connect(core, user("ann", "w1")) as ann:
        task_id = await own(agent_, workspace="prod")
        request_id = await asked(agent_, task_id=task_id)
        await operate(agent_, Op.PAUSE, task_id, wait_spec=authority_wait(request_id))
        await operate(agent_, Op.RESUME, task_id)
        await operate(agent_, Op.PAUSE, task_id, wait_spec=pb.WaitSpec(reason=pb.WAIT_REASON_INPUT))
        assert (await decide(ann, request_id, Decision.DENY)).success
        assert await status(agent_, task_id) == "WAITING_INPUT"


async def test_followers_of_a_task_see_its_requests(core: Core) -> None:
    async with connect(core, planner()) as agent_, connect(core, user("ann", "w1")) as ann:
        task_id = await own(agent_, workspace="prod")
        subscribe = pb.TaskSubscriptionOperation(
            op=pb.TaskSubscriptionOperation.SUBSCRIBE, task_id=task_id, client_request_id="s"
        )
        agent_.send(pb.UpstreamMessage(task_subscription_op=subscribe))
        await agent_.next("task_subscription_response")
        request_id = await asked(agent_, task_id=task_id)
        await decide(ann, request_id)
        seen = []
        while len(seen) < 2:
            told = (await agent_.next("task_event")).task_event
            if told.HasField("authority_request"):
                seen.append(told.authority_request.event)
        assert [one.event_type for one in seen] == [
            pb.AuthorityRequestEvent.AUTHORITY_REQUEST_EVENT_CREATED,
            pb.AuthorityRequestEvent.AUTHORITY_REQUEST_EVENT_APPROVED,
        ]
        assert seen[1].request.request_id == request_id


async def test_a_decision_wakes_a_task_after_a_restart(world: World) -> None:
    async with world.open() as core, connect(core, planner()) as agent_:
        task_id = await own(agent_, workspace="prod")
        request_id = await asked(agent_, task_id=task_id)
        await operate(agent_, Op.PAUSE, task_id, wait_spec=authority_wait(request_id))
    async with world.open() as core, connect(core, user("ann", "w1")) as ann, connect(core, planner()) as agent_:
        assert (await decide(ann, request_id)).success
        assert await status(agent_, task_id) == "RUNNING"


async def test_a_grant_for_a_task_ends_with_the_task(core: Core) -> None:
    async with connect(core, planner()) as agent_, connect(core, user("ann", "w1")) as ann:
        session = core.registry.holder(PLANNER[1])
        assert session is not None
        task_id = session.task_id = await own(agent_, workspace="prod")
        request_id = await asked(agent_, task_id=task_id, audience_type="task", audience_id=task_id)
        grant_id = (await decide(ann, request_id)).request.granted_grant_id
        assert (await resolve(agent_, grant_id, "ann")).ok
        assert (await operate(agent_, Op.COMPLETE, task_id)).success
        assert (await resolve(agent_, grant_id, "ann")).error == "authority grant was revoked"
        told = (await agent_.next("authority_grant_revocation")).authority_grant_revocation
        assert told.grant_id == grant_id
        late = await asked(agent_, audience_type="task", audience_id=task_id)
        assert "has ended" in (await decide(ann, late)).error


# -- tasks on behalf of a user ---------------------------------------------------------------------


async def test_a_worker_acts_for_the_user_until_its_task_ends(core: Core) -> None:
    async with (
        connect(core, planner()) as agent_,
        connect(core, worker()) as helper,
        connect(core, user("ann", "w1")) as ann,
    ):
        parent = await delegated(core, ann, PLANNER, hops=1, workspace_scope=["prod"])
        created = await on_behalf(agent_, parent, metadata={"authority_grant_id": "forged", "mine": "1"})
        assert created.success, created.error_message
        assignment = await given(helper)
        grant = await grant_of(helper, created.authority_grant_id)
        assert (grant.parent_grant_id, grant.delegate.principal_id) == (parent, WORKER[1])
        assert (grant.workspace_scope, grant.remaining_hops) == (["prod"], 0)
        assert assignment.authorization == acting_for("ann", grant.grant_id)
        assert assignment.metadata["authority_grant_id"] == grant.grant_id
        assert (assignment.metadata["subject_id"], assignment.metadata["mine"]) == ("ann", "1")
        shown = await get(agent_, created.task_id)
        assert (shown.authority_mode, shown.subject_type, shown.subject_id) == ("on_behalf_of", "user", "ann")
        assert (shown.root_authority_grant_id, shown.parent_authority_grant_id) == (grant.root_grant_id, parent)
        assert (await resolve(helper, grant.grant_id, "ann")).ok
        await operate(helper, Op.CLAIM, created.task_id)
        assert (await operate(helper, Op.COMPLETE, created.task_id)).success
        assert (await resolve(helper, grant.grant_id, "ann")).error == "authority grant was revoked"
        # Never what is above it.
        assert (await resolve(agent_, parent, "ann")).ok


async def test_metadata_cannot_say_for_whom_a_task_is(core: Core) -> None:
    async with connect(core, planner()) as agent_:
        forged = {"subject_id": "ann", "authority_mode": "on_behalf_of", "creator_actor_id": "x", "mine": "1"}
        created = await create(agent_, metadata=forged)
        shown = await get(agent_, created.task_id)
        given = {name: text for name, text in shown.metadata.items() if not name.startswith("_")}
        assert given == {"mine": "1"}
        assert (shown.authority_mode, shown.subject_id) == ("", "")


async def test_each_worker_of_a_pool_has_a_grant_as_long_as_it_has_the_task(core: Core) -> None:
    async with connect(core, planner()) as agent_, connect(core, user("ann", "w1")) as ann:
        parent = await delegated(core, ann, PLANNER, hops=2)
        created = await on_behalf(agent_, parent, pb.POOL)
        assert created.success, created.error_message
        anchor = created.authority_grant_id
        async with connect(core, worker()) as first:
            assignment = await given(first)
            delivered = assignment.authorization.grant_id
            assert delivered != anchor
            grant = await grant_of(first, delivered)
            assert (grant.parent_grant_id, grant.delegate.principal_id) == (anchor, WORKER[1])
            assert (await resolve(first, delivered, "ann")).ok
        async with connect(core, worker("2")) as second:
            again = (await given(second)).authorization.grant_id
            assert again not in (anchor, delivered)
            assert (await resolve(second, again, "ann")).ok
            assert (await grant_of(ann, delivered)).revoked
            assert not (await grant_of(ann, anchor)).revoked
            await operate(second, Op.CLAIM, created.task_id)
            assert (await operate(second, Op.FAIL, created.task_id, reason="x")).success
            assert (await resolve(second, again, "ann")).error == "authority grant was revoked"
            assert (await grant_of(ann, anchor)).revoked


@pytest.mark.parametrize(
    ("hops", "mode", "required", "made"),
    [
        (0, pb.TARGETED, 0, False),
        (1, pb.TARGETED, 0, True),
        (1, pb.TARGETED, 1, False),
        (2, pb.TARGETED, 1, True),
        (1, pb.POOL, 0, False),
        (2, pb.POOL, 0, True),
        (2, pb.POOL, 4_000_000_000, False),
    ],
)
async def test_a_task_needs_hops_for_its_worker(
    core: Core, hops: int, mode: pb.TaskAssignmentMode.ValueType, required: int, made: bool
) -> None:
    async with connect(core, planner()) as agent_, connect(core, user("ann", "w1")) as ann:
        parent = await delegated(core, ann, PLANNER, hops=hops)
        created = await on_behalf(agent_, parent, mode, required_downstream_authority_hops=required)
        assert created.success is made
        if not made:
            assert (created.error_code, "hops" in created.error_message) == ("ERR_PERMISSION_DENIED", True)


async def test_an_intermediary_goes_on_below_a_grant_without_hops(core: Core) -> None:
    await allow(core, "agent:ag::prod::planner::1", "capability:capability/authority_intermediary")
    async with connect(core, planner()) as agent_, connect(core, user("ann", "w1")) as ann:
        parent = await delegated(core, ann, PLANNER)
        created = await on_behalf(agent_, parent)
        assert created.success, created.error_message
        grant = await grant_of(ann, created.authority_grant_id)
        assert (grant.remaining_hops, grant.metadata["authority_intermediary_reroot"]) == (1, "true")
        # It still is below it: a revocation ends it.
        await grant_op(ann, GrantOp.REVOKE, grant_id=parent)
        assert (await grant_of(ann, grant.grant_id)).revoked


async def test_a_revocation_ends_the_tasks_that_rest_on_the_grant(core: Core) -> None:
    async with (
        connect(core, planner()) as agent_,
        connect(core, worker()) as helper,
        connect(core, user("ann", "w1")) as ann,
    ):
        parent = await delegated(core, ann, PLANNER, hops=2)
        targeted = (await on_behalf(agent_, parent)).task_id
        await given(helper)
        await operate(helper, Op.CLAIM, targeted)
        pooled = (await on_behalf(agent_, parent, pb.POOL, target_implementation="none")).task_id
        other = (await create(agent_)).task_id
        assert (await grant_op(ann, GrantOp.REVOKE, grant_id=parent)).success
        for task_id in (targeted, pooled):
            assert await status(agent_, task_id) == "CANCELLED"
            assert "was revoked" in (await get(agent_, task_id)).error
        assert await status(agent_, other) != "CANCELLED"


async def test_a_revocation_is_answered_though_the_ends_of_its_tasks_take_long(
    core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound, calls = GrantEndings._end, 0

    async def hung_once(self: GrantEndings, grant_id: str) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            await trio.sleep_forever()
        await sound(self, grant_id)

    async with connect(core, planner()) as agent_, connect(core, user("ann", "w1")) as ann:
        parent = await delegated(core, ann, PLANNER, hops=1)
        task_id = (await on_behalf(agent_, parent)).task_id
        monkeypatch.setattr(GrantEndings, "_end", hung_once)
        assert (await grant_op(ann, GrantOp.REVOKE, grant_id=parent)).success
        while await status(agent_, task_id) != "CANCELLED":
            await trio.sleep(1)
        assert calls > 1


@pytest.mark.parametrize("problem", ["revoked", "expired", "another", "stolen"])
async def test_no_task_is_created_on_behalf_without_a_valid_grant(core: Core, problem: str) -> None:
    async with (
        connect(core, planner()) as agent_,
        connect(core, worker()) as helper,
        connect(core, user("ann", "w1")) as ann,
    ):
        parent = await delegated(core, ann, PLANNER, hops=1)
        peer = agent_
        if problem == "revoked":
            await grant_op(ann, GrantOp.REVOKE, grant_id=parent)
        elif problem == "expired":
            await trio.sleep(1000)
        elif problem == "stolen":
            peer = helper
        else:
            parent = "made-up"
        created = await on_behalf(peer, parent)
        assert (created.success, created.error_code) == (False, "ERR_PERMISSION_DENIED")


async def test_the_task_of_a_session_passes_its_authority_on(core: Core) -> None:
    async with (
        connect(core, planner()) as agent_,
        connect(core, worker()) as helper,
        connect(core, user("ann", "w1")) as ann,
    ):
        parent = await delegated(core, ann, PLANNER, hops=2)
        outer = await on_behalf(agent_, parent)
        await given(helper)
        session = core.registry.holder(WORKER[1])
        assert session is not None
        session.task_id = outer.task_id
        inner = await create(helper, assignment_mode=pb.SELF_ASSIGN)
        assert (await get(helper, inner.task_id)).subject_id == "ann"
        grant = await grant_of(ann, inner.authority_grant_id)
        assert (grant.parent_grant_id, grant.remaining_hops) == (outer.authority_grant_id, 0)
        last = await derive(helper, inner.authority_grant_id, PLANNER)
        assert "delegated further" in last.error


async def test_a_limited_credential_passes_on_its_own_reach_only(core: Core) -> None:
    async with connect(core, planner()) as agent_, connect(core, user("ann", "w1")) as ann:
        parent = await delegated(core, ann, PLANNER, hops=1)
        session = core.registry.holder(PLANNER[1])
        assert session is not None
        session.reaches_everything = False
        session.allows_workspace = lambda workspace: workspace == "prod"
        created = await on_behalf(agent_, parent)
        assert (await grant_of(ann, created.authority_grant_id)).workspace_scope == ["prod"]
        refused = await derive(agent_, parent, WORKER)
        assert "credential" in refused.error


@pytest.mark.parametrize("others", [0, 3])
async def test_tasks_of_a_revoked_grant_end_though_its_node_did_not_live_to_do_it(
    world: World, others: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "FORGET_PAGE", 2)  # who revokes much hides no revocation of another
    async with world.open() as core, connect(core, planner()) as agent_, connect(core, user("ann", "w1")) as ann:
        parent = await delegated(core, ann, PLANNER, hops=1)
        task_id = (await on_behalf(agent_, parent)).task_id
        # The revocation alone, as by a node that is killed right after its commit.
        now_ms = core.clock.now_ms()
        await core.tasks.engine.database.run(lambda: store.revoke(parent, now_ms))
        for name in (*(f"!{number}" for number in range(others)), parent):
            await core.tasks.engine.database.run(lambda name=name: store.note_ending(name, now_ms - 3600_000))  # type: ignore[misc]
        world.fail()
    async with world.open() as core, connect(core, planner()) as agent_:
        while await status(agent_, task_id) != "CANCELLED":
            await trio.sleep(1)


async def test_what_has_ended_long_ago_is_deleted(core: Core) -> None:
    database = core.tasks.engine.database
    async with connect(core, planner()) as agent_, connect(core, user("ann", "w1")) as ann:
        grant_id = await delegated(core, ann, PLANNER)
        pending, done = await asked(agent_), await asked(agent_)
        await decide(ann, done, Decision.DENY)
        now_ms = core.clock.now_ms()
        assert await database.run(lambda: store.forget_grants(now_ms)) == 0
        later_ms = now_ms + 3600_000
        assert await database.run(lambda: store.forget_grants(later_ms)) == 2
        assert await database.run(lambda: store.forget_requests(later_ms)) == 1
        assert await database.fetch("SELECT 1 FROM authority_lineage") == []
        assert "not found" in (await grant_op(ann, GrantOp.GET, grant_id=grant_id)).error
        assert (await request_op(agent_, RequestOp.GET, request_id=pending)).success


async def test_an_issuer_has_a_bounded_number_of_live_grants(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "MAX_GRANTS_OF", 2)
    async with connect(core, user("ann", "w1")) as ann:
        await delegated(core, ann, PLANNER)
        refused = await exchange(core, ann)
        assert "at most 2 live grants" in refused.error
        await trio.sleep(1000)
        assert (await exchange(core, ann)).success


async def test_a_task_of_a_revoked_grant_is_not_tried_again(core: Core) -> None:
    async with (
        connect(core, planner()) as agent_,
        connect(core, user("ann", "w1")) as ann,
        connect(core, worker()) as helper,
    ):
        for revoked in (False, True):
            parent = await delegated(core, ann, PLANNER, hops=2)
            task = await on_behalf(agent_, parent)
            await given(helper)
            if revoked:
                assert (await grant_op(ann, GrantOp.REVOKE, grant_id=parent)).success
            else:
                assert (await operate(agent_, Op.CANCEL, task.task_id)).success
            assert await status(agent_, task.task_id) == "CANCELLED"
            again = await operate(agent_, Op.RETRY, task.task_id)
            assert again.success is not revoked, again
            assert await status(agent_, task.task_id) == ("CANCELLED" if revoked else "QUEUED")
            if not revoked:
                await given(helper)
