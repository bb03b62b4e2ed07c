"""Scenario 108: requests to a workflow engine that is connected to the gateway."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from scitrera_aether_client.proto import aether_pb2 as pb

from tests.helpers.gateway import GatewayProcess
from tests.helpers.sdk import SyncWorld, World, answered, declined, in_asyncio, raw_stream

Op = pb.WorkflowOperation


def test_108_a_without_an_engine_the_answer_is_no_at_once(own_gateway: Callable[..., GatewayProcess]) -> None:
    with SyncWorld(own_gateway(extra_args=["--set", "workflow.engine=external"]).address) as world:
        a = world.agent("a").open()
        before = time.monotonic()
        answer = declined(a.client.workflow_op(Op(op=Op.LIST_RULES), timeout=30), "no engine is connected")
        assert time.monotonic() - before < 20
        assert answer.error == "workflow engine not connected"


@in_asyncio
async def test_108_r_an_operation_reaches_the_engine_and_its_answer_the_caller(world: World) -> None:
    a, b = await world.open(world.agent("a"), world.agent("b"))
    async with raw_stream(world.target, workflow_engine=pb.WorkflowEngineIdentity()) as engine:
        await engine.expect("connection_ack")
        asked = a.client.list_schedules(world.ws, timeout=30), b.client.workflow_op(Op(op=Op.LIST_RULES), timeout=30)
        tasks = [asyncio.create_task(one) for one in asked]
        ops = {op.op: op for op in [await engine.expect("workflow_op") for _ in tasks]}
        assert ops[Op.LIST_SCHEDULES].workspace == world.ws
        actors = {name: op.request_context.actor.principal_id for name, op in ops.items()}
        assert actors == {Op.LIST_SCHEDULES: a.topic, Op.LIST_RULES: b.topic}
        for name in (Op.LIST_RULES, Op.LIST_SCHEDULES):
            response = pb.WorkflowResponse(success=True, data=b"[%d]" % name, request_id=ops[name].request_id)
            await engine.send(workflow_response=response)
        answers = [answered(await task, "the engine answers") for task in tasks]
        assert [one.data for one in answers] == [b"[%d]" % Op.LIST_SCHEDULES, b"[%d]" % Op.LIST_RULES]


@in_asyncio
async def test_108_r_the_engine_and_its_callers_are_on_different_nodes(three_gateways: list[GatewayProcess]) -> None:
    one, two, three = (node.address for node in three_gateways)
    async with World(f"{one},{two}") as world, raw_stream(three, workflow_engine=pb.WorkflowEngineIdentity()) as engine:
        a, b = await world.open(world.agent("a"), world.agent("b"))
        await engine.expect("connection_ack")
        second = world.engine(auto_reconnect=True)
        await second.refused_with("ALREADY_EXISTS")
        asked = [peer.client.workflow_op(Op(op=Op.GET_RULE, id=peer.topic), timeout=30) for peer in (a, b)]
        tasks = [asyncio.create_task(one) for one in asked]
        for _ in tasks:
            op = await engine.expect("workflow_op")
            assert op.request_context.actor.principal_id == op.id
            response = pb.WorkflowResponse(success=True, data=op.id.encode(), request_id=op.request_id)
            await engine.send(workflow_response=response)
        answers = [answered(await task, "the engine answers") for task in tasks]
        assert [one.data for one in answers] == [a.topic.encode(), b.topic.encode()]
