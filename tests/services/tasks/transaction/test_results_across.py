"""Results, answers and states on two nodes: what one has written the other shows."""

from __future__ import annotations

import json

import trio

from aether_trio.testing.memory import MemoryLink
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import agent, barrier, connect, message_to
from tests.helpers.engines import PostgresEngine
from tests.services.agents.test_across import two_nodes
from tests.services.tasks.peers import Op, answer, begin, create, get, operate, report

LIMIT_S = 300.0
Checkpoint = pb.CheckpointOperation


async def checkpoint(peer: MemoryLink, op: int, key: str, data: bytes = b"") -> pb.CheckpointResponse:
    request = Checkpoint(op=Checkpoint.OpType.ValueType(op), key=key, data=data, request_id=f"{op}{key}")
    peer.send(pb.UpstreamMessage(checkpoint_op=request))
    response: pb.CheckpointResponse = await answer(peer, "checkpoint", request.request_id)
    return response


async def test_a_report_on_one_node_and_a_complete_on_another(postgres_engine: PostgresEngine) -> None:
    with trio.fail_after(LIMIT_S):
        async with two_nodes(postgres_engine) as (one, two), connect(two, agent("w", "c", "1")) as creator:
            task_id = (await create(creator)).task_id
            async with connect(one, agent("w", "i", "1")) as worker:
                await begin(worker, task_id)
                worker.send(report(task_id, metadata={"result": "[1]"}))
                await barrier(worker)
                saved = await checkpoint(worker, Checkpoint.SAVE, f"_task:{task_id}@1", b"half")
                assert saved.success, saved.error
            async with connect(two, agent("w", "i", "1")) as worker:
                assert (await checkpoint(worker, Checkpoint.LOAD, f"_task:{task_id}@1")).data == b"half"
                done = await operate(worker, Op.COMPLETE, task_id)
                assert done.success, done.error
            for node in (one, two):
                async with connect(node, agent("w", "c", "2" if node is one else "3")) as reader:
                    assert (await get(reader, task_id)).metadata["_result"] == "[1]"


async def test_a_question_on_one_node_is_answered_on_another(postgres_engine: PostgresEngine) -> None:
    with trio.fail_after(LIMIT_S):
        async with (
            two_nodes(postgres_engine) as (one, two),
            connect(one, agent("w", "i", "1")) as worker,
            connect(two, agent("w", "c", "1")) as person,
        ):
            task_id = (await create(person)).task_id
            await begin(worker, task_id)
            wait = pb.WaitSpec(reason=pb.WAIT_REASON_INPUT, input_match={"_form": '{"question": "Pay?"}'})
            assert (await operate(worker, Op.PAUSE, task_id, wait_spec=wait)).success
            named = (await get(person, task_id)).wait_spec.input_match["question_id"]
            document = json.dumps({"metadata": {"decision": "reject", "question_id": named}})
            person.send(message_to(f"tk::w::{task_id}::input", document.encode()))
            while (task := await get(worker, task_id)).status != pb.TASK_STATUS_RUNNING:
                await trio.sleep(0.01)
            assert json.loads(task.metadata["_input"])["by"] == "ag::w::c::1"
