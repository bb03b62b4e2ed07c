"""Grants of tasks are renewed while the tasks live, and within all limits."""

from __future__ import annotations

import pytest
import trio

from aether_trio.gateway.core import Core
from aether_trio.services.authority import store
from aether_trio.services.authority.renewal import LOOK_S
from aether_trio.testing.memory import MemoryLink
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import connect, user
from tests.services.authority.people import (
    LASTS_S,
    GrantOp,
    allow,
    delegated,
    derive,
    exchange,
    grant_op,
    made,
    resolve,
)
from tests.services.authority.test_tasks import PLANNER, WORKER, given, grant_of, on_behalf, planner, worker
from tests.services.tasks.peers import Op, operate, own

LEASE_S = LASTS_S


async def renew(peer: MemoryLink, grant_id: str) -> None:
    """Renew a grant, and what is above it, by one more lease."""
    above = (await grant_of(peer, grant_id)).parent_grant_id
    if above:
        await renew(peer, above)
    answered = await grant_op(
        peer,
        GrantOp.RENEW,
        grant_id=grant_id,
        renew_request=pb.ACLRenewAuthorityGrantRequest(grant_id=grant_id, extend_seconds=LEASE_S),
    )
    assert answered.success, answered.error


async def test_the_grant_of_a_live_task_follows_that_of_its_creator(core: Core) -> None:
    async with (
        connect(core, planner()) as agent_,
        connect(core, worker()) as helper,
        connect(core, user("ann", "w1")) as ann,
    ):
        parent = await delegated(core, ann, PLANNER, hops=2)
        targeted = await on_behalf(agent_, parent)
        pooled = await on_behalf(agent_, parent, pb.POOL)
        grants = [(await given(helper)).authorization.grant_id for _ in range(2)]
        assert pooled.success, pooled.error_message
        assert targeted.authority_grant_id in grants
        assert len(set(grants)) == 2
        before = await grant_of(ann, parent)
        await renew(ann, parent)
        await trio.sleep(LEASE_S / 2)
        for grant_id in grants:
            assert (await grant_of(ann, grant_id)).expires_at == before.expires_at
        await trio.sleep(LEASE_S)
        above = await grant_of(ann, parent)
        assert above.expires_at > before.expires_at
        for grant_id in grants:
            renewed = await grant_of(ann, grant_id)
            assert before.expires_at < renewed.expires_at <= above.expires_at
            assert (await resolve(helper, grant_id, "ann")).ok
        # No one may renew what is above any further, so it is over for all.
        await trio.sleep(LEASE_S)
        for grant_id in grants:
            assert (await resolve(helper, grant_id, "ann")).error == "authority grant has expired"


async def test_the_grant_of_a_task_that_has_ended_is_not_renewed(core: Core) -> None:
    async with (
        connect(core, planner()) as agent_,
        connect(core, worker()) as helper,
        connect(core, user("ann", "w1")) as ann,
    ):
        parent = await delegated(core, ann, PLANNER, hops=1)
        created = await on_behalf(agent_, parent)
        await given(helper)
        before = await grant_of(ann, created.authority_grant_id)
        await renew(ann, parent)
        await operate(helper, Op.CLAIM, created.task_id)
        assert (await operate(helper, Op.COMPLETE, created.task_id)).success
        await trio.sleep(LEASE_S)
        after = await grant_of(ann, created.authority_grant_id)
        assert (after.revoked, after.expires_at) == (True, before.expires_at)


async def test_a_root_grant_for_a_task_lasts_to_its_last_moment(core: Core) -> None:
    async with connect(core, planner()) as agent_, connect(core, user("ann", "w1")) as ann:
        session = core.registry.holder(PLANNER[1])
        window = core.registry.holder("us::ann::w1")
        assert session is not None
        assert window is not None
        task_id = session.task_id = window.task_id = await own(agent_, workspace="prod")
        root = await made(await exchange(core, ann, audience_type="task", audience_id=task_id))
        await trio.sleep(1.5 * LEASE_S)
        renewed = await grant_of(ann, root.grant_id)
        assert root.expires_at < renewed.expires_at <= root.renewable_until
        await trio.sleep(LEASE_S)
        assert (await grant_of(ann, root.grant_id)).expires_at == root.renewable_until
        await allow(core, "user:ann", "admin:admin/audit")
        await core.audit.writer.flush()
        ann.send(pb.UpstreamMessage(audit_query=pb.AuditQuery(request_id="q", operation="authority_grant_renew")))
        rows = (await ann.next("audit_response")).audit_response.entries
        assert {(one.actor_type, one.actor_id, one.authority_grant_id, one.subject_id) for one in rows} == {
            ("task", task_id, root.grant_id, "ann")
        }


async def test_what_a_worker_has_passed_on_is_not_renewed(core: Core) -> None:
    async with (
        connect(core, planner()) as agent_,
        connect(core, worker()) as helper,
        connect(core, user("ann", "w1")) as ann,
    ):
        parent = await delegated(core, ann, PLANNER, hops=2)
        created = await on_behalf(agent_, parent)
        own_grant = (await given(helper)).authorization.grant_id
        info = await grant_of(ann, own_grant)
        passed = await made(
            await derive(
                helper,
                own_grant,
                ("agent", "ag::prod::friend::1"),
                expires_at=info.expires_at,
                renewable_until=info.renewable_until,
                metadata={"task_id": created.task_id},
            )
        )
        await renew(ann, parent)
        await trio.sleep(LEASE_S + 2 * LOOK_S)
        assert (await grant_of(ann, own_grant)).expires_at > info.expires_at
        assert (await grant_of(ann, passed.grant_id)).expires_at == info.expires_at
        assert WORKER[1] == info.delegate.principal_id


async def test_grants_that_cannot_be_renewed_keep_no_other_from_it(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their subject or a neighbour may make as many of them as he likes."""
    monkeypatch.setattr(store, "RENEW_PAGE", 5)
    async with (
        connect(core, planner()) as agent_,
        connect(core, worker()) as helper,
        connect(core, user("ann", "w1")) as ann,
    ):
        above = await delegated(core, ann, PLANNER, hops=3)
        parent = (await made(await derive(agent_, above, PLANNER, may_delegate=True, remaining_hops=2))).grant_id
        assert (await on_behalf(agent_, parent)).success
        grant_id = (await given(helper)).authorization.grant_id
        before = await grant_of(ann, parent)
        await renew(ann, parent)
        not_renewed = await delegated(core, ann, PLANNER, hops=2)
        for _ in range(12):
            assert (await on_behalf(agent_, not_renewed)).success
        await trio.sleep(1.1 * LEASE_S)
        assert (await grant_of(ann, grant_id)).expires_at > before.expires_at
        assert (await resolve(helper, grant_id, "ann")).ok
