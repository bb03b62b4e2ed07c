"""Grants and requests on two nodes: one decides, and it is in force on both."""

from __future__ import annotations

import trio

from aether_trio.testing.memory import MemoryLink
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import agent, connect, service, user
from tests.helpers.engines import PostgresEngine
from tests.services.agents.test_across import two_nodes
from tests.services.authority.people import (
    EXCHANGE,
    Decision,
    GrantOp,
    allow,
    asked,
    decide,
    delegated,
    derive,
    exchange,
    grant_op,
    resolve,
    session_of,
)
from tests.services.authority.test_tasks import authority_wait, status
from tests.services.tasks.peers import Op, operate, own

LIMIT_S = 300.0
PLANNER = ("agent", "ag::prod::planner::1")
HELPER = ("agent", "ag::prod::helper::1")


def planner() -> pb.UpstreamMessage:
    return agent("prod", "planner", "1")


async def event(peer: MemoryLink) -> pb.AuthorityRequestEvent:
    return (await peer.next("authority_request_event")).authority_request_event


async def test_an_answered_revocation_is_in_force_on_every_node_and_heard_there(
    postgres_engine: PostgresEngine,
) -> None:
    with trio.fail_after(LIMIT_S):
        async with (
            two_nodes(postgres_engine) as (one, two),
            connect(one, user("ann", "w1")) as ann,
            connect(two, planner()) as agent_,
            connect(two, agent("prod", "helper", "1")) as helper,
        ):
            for _ in range(5):
                parent = await delegated(one, ann, PLANNER, hops=1)
                child = (await derive(agent_, parent, HELPER)).grant.grant_id
                assert (await resolve(helper, child, "ann")).ok  # it is in the memory of that node
                assert (await grant_op(ann, GrantOp.REVOKE, grant_id=parent)).success
                assert (await resolve(helper, child, "ann")).error == "authority grant was revoked"
                for peer, grant_id in ((agent_, parent), (helper, child)):
                    told = (await peer.next("authority_grant_revocation")).authority_grant_revocation
                    assert told.grant_id == grant_id


async def test_a_request_is_heard_decided_and_ended_on_other_nodes(postgres_engine: PostgresEngine) -> None:
    with trio.fail_after(LIMIT_S):
        async with (
            two_nodes(postgres_engine) as (one, two),
            connect(one, planner()) as agent_,
            connect(two, user("ann", "w1")) as ann,
        ):
            task_id = await own(agent_, workspace="prod")
            request_id = await asked(agent_, task_id=task_id)
            assert (await event(ann)).request.request_id == request_id
            assert (await operate(agent_, Op.PAUSE, task_id, wait_spec=authority_wait(request_id))).success
            assert (await decide(ann, request_id)).success
            await event(agent_)
            assert (await event(agent_)).event_type == pb.AuthorityRequestEvent.AUTHORITY_REQUEST_EVENT_APPROVED
            assert await status(agent_, task_id) == "RUNNING"


async def test_one_of_two_decisions_on_two_nodes_counts(postgres_engine: PostgresEngine) -> None:
    with trio.fail_after(LIMIT_S):
        async with (
            two_nodes(postgres_engine) as (one, two),
            connect(one, planner()) as agent_,
            connect(one, user("ann", "w1")) as here,
            connect(two, user("ann", "w2")) as there,
        ):
            for _ in range(5):
                request_id = await asked(agent_)
                answers: list[pb.AuthorityRequestOperationResponse] = []

                async def say(
                    window: MemoryLink,
                    decision: Decision.Decision.ValueType,
                    request_id: str = request_id,
                    answers: list[pb.AuthorityRequestOperationResponse] = answers,
                ) -> None:
                    answers.append(await decide(window, request_id, decision))

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(say, here, Decision.APPROVE)
                    nursery.start_soon(say, there, Decision.DENY)
                assert sorted(answer.success for answer in answers) == [False, True]


async def test_waits_and_decisions_at_the_same_moment_meet(postgres_engine: PostgresEngine) -> None:
    with trio.fail_after(LIMIT_S):
        async with (
            two_nodes(postgres_engine) as (one, two),
            connect(one, planner()) as agent_,
            connect(two, user("ann", "w1")) as ann,
        ):
            for _ in range(8):
                task_id = await own(agent_, workspace="prod")
                request_id = await asked(agent_, task_id=task_id)

                async def pause(task_id: str = task_id, request_id: str = request_id) -> None:
                    await operate(agent_, Op.PAUSE, task_id, wait_spec=authority_wait(request_id))

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(pause)
                    nursery.start_soon(decide, ann, request_id)
                assert await status(agent_, task_id) == "RUNNING"


async def test_a_grant_from_a_session_on_another_node_ends_with_it(postgres_engine: PostgresEngine) -> None:
    with trio.fail_after(LIMIT_S):
        async with two_nodes(postgres_engine) as (one, two), connect(one, service("portal", "1")) as portal:
            await allow(one, "service:sv::portal::1", f"capability:{EXCHANGE}")
            async with connect(two, user("ann", "w1")):
                source = session_of(two, "us::ann::w1")
                grant = (await exchange(one, portal, source_session_id=source)).grant
                assert (await resolve(portal, grant.grant_id, "ann")).ok
            while (await resolve(portal, grant.grant_id, "ann")).ok:
                await trio.sleep(0.1)
