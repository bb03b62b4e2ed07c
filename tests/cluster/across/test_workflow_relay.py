"""Operations reach the workflow engine of another node, and answers return."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from aether_trio.model.limits import MIB
from aether_trio.services.workflows.engine import remote_engine
from aether_trio.services.workflows.engine.relay import ENGINE_ENDED, NOT_CONNECTED, TIMED_OUT
from aether_trio.wire.pb import aether_pb2 as pb
from tests.cluster.across.fabric import NEVER_S, Fabric, Gateway, Participant, join, until
from tests.cluster.across.leases import declare_dead, without_lease
from tests.helpers.core import agent, barrier, user, workflow_engine
from tests.helpers.engines import PostgresEngine

Op = pb.WorkflowOperation


def asks(request_id: str, **fields: Any) -> pb.UpstreamMessage:
    return pb.UpstreamMessage(workflow_op=Op(op=Op.LIST_RULES, request_id=request_id, **fields))


def says(op: Op, data: bytes = b"") -> pb.UpstreamMessage:
    response = pb.WorkflowResponse(request_id=op.request_id, success=True, data=data)
    return pb.UpstreamMessage(workflow_response=response)


async def reached(engine: Participant) -> Op:
    return (await engine.next("workflow_op")).workflow_op


async def answered(peer: Participant) -> pb.WorkflowResponse:
    return (await peer.next("workflow_response")).workflow_response


async def rows(gateway: Gateway) -> int:
    [[count]] = await gateway.core.workflows.relay._remote._database.fetch(  # type: ignore[union-attr]
        "SELECT COUNT(*) FROM workflow_relays"
    )
    return int(count)


async def test_an_operation_reaches_the_engine_of_another_node(fabric: Fabric) -> None:
    one, two, three = await fabric.start_many(3)
    caller, other = await one.join(agent("w", "a", "1")), await two.join(user("u", "1"))
    caller.send(asks("none"))
    assert (await answered(caller)).error == NOT_CONNECTED
    engine = await three.join(workflow_engine())
    caller.send(asks("same", id="first", data=b"x" * MIB), asks("same", id="second"))
    other.send(asks("same", id="third"))
    ops = {op.id: op for op in [await reached(engine) for _ in range(3)]}
    assert ops["first"].data == b"x" * MIB
    assert ops["first"].request_context.actor.principal_id == "ag::w::a::1"
    assert ops["first"].request_context.actor_session_id == caller.ack.session_id
    assert ops["third"].request_context.actor.principal_id == "u"
    engine.send(says(ops["second"], b"2"), says(ops["third"], b"3"), says(ops["first"], b"1" * MIB))
    engine.send(says(ops["second"], b"again"))
    found = {one.data for one in [await answered(caller) for _ in range(2)]}
    assert found == {b"1" * MIB, b"2"}
    answer = await answered(other)
    assert (answer.success, answer.data, answer.request_id) == (True, b"3", "same")
    await barrier(engine, caller, other)
    assert not caller.waiting("workflow_response")
    with trio.fail_after(60):
        while await rows(one):
            await trio.sleep(0.05)


async def test_lost_notifications_make_it_slow_and_not_wrong(fabric: Fabric, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_engine, "ASK_AGAIN_S", 0.05)
    one, two = await fabric.start_many(2)
    caller, engine = await one.join(agent("w", "a", "1")), await two.join(workflow_engine())
    one.lose_notifications()
    caller.send(asks("mine"))
    op = await reached(engine)
    await trio.sleep(0.5)  # the asking node repeats its notification all the time
    engine.send(says(op, b"1"))
    assert (await answered(caller)).data == b"1"
    assert not engine.waiting("workflow_op")


@pytest.mark.parametrize("how", ["finish", "cut"])
async def test_the_end_of_the_engine_ends_what_waits_on_other_nodes(
    fabric: Fabric, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_engine, "ASK_AGAIN_S", NEVER_S)
    one, two = await fabric.start_many(2)
    caller, engine = await one.join(agent("w", "a", "1")), await two.join(workflow_engine())
    caller.send(asks("mine"))
    op = await reached(engine)
    getattr(engine, how)()
    assert (await answered(caller)).error == ENGINE_ENDED
    successor = await one.join(workflow_engine())
    successor.send(says(op, b"not its own"))
    caller.send(asks("next"))
    successor.send(says(await reached(successor), b"next"))
    assert (await answered(caller)).data == b"next"


async def test_the_death_of_the_engines_node_ends_them_too(
    fabric: Fabric, postgres_engine: PostgresEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_engine, "ASK_AGAIN_S", NEVER_S)
    one, two = await fabric.start_many(2)
    caller, engine = await one.join(agent("w", "a", "1")), await two.join(workflow_engine())
    caller.send(asks("mine"))
    await reached(engine)
    async with without_lease(two, postgres_engine, aware=False):
        await declare_dead(two, by=one)
        assert (await answered(caller)).error == ENGINE_ENDED
        caller.send(asks("next"))
        assert (await answered(caller)).error == NOT_CONNECTED


async def test_an_engine_that_does_not_answer_costs_the_callers_time_only(
    fabric: Fabric, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aether_trio.services.workflows.engine.relay.ANSWER_S", 0.5)
    one, two = await fabric.start_many(2)
    caller, engine = await one.join(agent("w", "a", "1")), await two.join(workflow_engine())
    caller.send(asks("mine"))
    op = await reached(engine)
    assert (await answered(caller)).error == TIMED_OUT
    engine.send(says(op, b"late"))
    await barrier(engine, caller)
    assert not caller.waiting("workflow_response")
    await until(
        lambda: one.core.workflows.relay.statistics().pending == two.core.workflows.relay.statistics().pending == 0
    )


async def test_a_caller_that_leaves_leaves_nothing_behind(fabric: Fabric) -> None:
    one, two = await fabric.start_many(2)
    engine = await two.join(workflow_engine())
    async with join(one, agent("w", "a", "1")) as caller:
        caller.send(asks("mine"))
        op = await reached(engine)
    assert one.core.workflows.relay.statistics().pending == 0
    engine.send(says(op, b"too late"))
    await barrier(engine)
    with trio.fail_after(60):
        while await rows(two):
            await trio.sleep(0.05)
