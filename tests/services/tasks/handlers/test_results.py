"""A task has a result: what COMPLETE carries, or a progress report before it."""

from __future__ import annotations

import base64
import json
from itertools import count

import pytest
import trio

from aether_trio.gateway.core import Core
from aether_trio.model.tasks.result import MAX_RESULT_BYTES
from aether_trio.services.tasks.transaction import task_rows
from aether_trio.session.init_connection import ASSIGNMENTS
from aether_trio.testing.memory import MemoryLink
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import World, agent, barrier, connect, deadlock_is_an_error
from tests.services.tasks.peers import Op, answer, create, get, listed, operate, own, report

DONE = pb.TASK_STATUS_COMPLETED


async def complete(peer: MemoryLink, task_id: str, **result: str) -> pb.TaskOperationResponse:
    return await operate(peer, Op.COMPLETE, task_id, wait_spec=pb.WaitSpec(input_match=result))


async def shown(peer: MemoryLink, task_id: str) -> dict[str, str]:
    """The result that a GET shows."""
    task = await get(peer, task_id)
    return {name: text for name, text in task.metadata.items() if name.startswith("_result")}


@pytest.mark.parametrize(
    ("given", "size"),
    [
        ({"result": '{"sum": 3}'}, 10),
        ({"result": "null"}, 4),
        ({"result": '"\N{SNOWMAN}"'}, 5),
        ({"result": "[" * 100 + "]" * 100}, 200),
        ({"result_base64": base64.b64encode(b"\0\xff").decode()}, 2),
        ({"result_base64": ""}, 0),
        ({"result": json.dumps("x" * (MAX_RESULT_BYTES - 2))}, MAX_RESULT_BYTES),
        ({"result_base64": base64.b64encode(b"\0" * MAX_RESULT_BYTES).decode()}, MAX_RESULT_BYTES),
    ],
    ids=["object", "null", "snowman", "deep", "bytes", "empty", "largest text", "largest bytes"],
)
async def test_a_complete_with_a_result_survives_a_restart(world: World, given: dict[str, str], size: int) -> None:
    async with deadlock_is_an_error():
        async with world.open() as core, connect(core, agent("w", "c", "1")) as peer:
            task_id = await own(peer)
            done = await complete(peer, task_id, **given)
            assert done.success, done.error
        async with world.open() as core, connect(core, agent("w", "c", "1")) as peer:
            [(name, text)] = given.items()
            assert await shown(peer, task_id) == {f"_{name}": text, "_result_bytes": str(size)}
            [task] = await listed(peer)
            assert dict(task.metadata) == {"_result_bytes": str(size)}, "a list has no results"


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"result": "1", "result_base64": ""}, "one result"),
        ({"result": "plain"}, "not JSON"),
        ({"result": "NaN"}, "not JSON"),
        ({"result": "[" * 100_000}, "not JSON"),
        ({"result": '"\0"'}, "not JSON"),
        ({"result": "[1, -1e999]"}, "not JSON"),
        ({"result": "[" * 101 + "]" * 101}, "nested deeper than 100"),
        ({"result": '{"a":' * 101 + "1" + "}" * 101}, "nested deeper than 100"),
        ({"result": json.dumps("x" * (MAX_RESULT_BYTES - 1))}, "result_checkpoint"),
        ({"result_base64": base64.b64encode(b"\0" * (MAX_RESULT_BYTES + 1)).decode()}, "result_checkpoint"),
        ({"result_base64": "a"}, "not base64"),
        ({"result_checkpoint": ""}, "key of a checkpoint"),
        ({"result_checkpoint": "k" * 257}, "key of a checkpoint"),
        ({"result_checkpoint": "k"}, "not found: save it"),
    ],
)
async def test_a_bad_result_is_refused_and_the_task_goes_on(core: Core, given: dict[str, str], why: str) -> None:
    async with connect(core, agent("w", "c", "1")) as peer:
        task_id = await own(peer)
        refused = await complete(peer, task_id, **given)
        assert not refused.success
        assert why in refused.error
        assert (await get(peer, task_id)).status == pb.TASK_STATUS_RUNNING


async def test_what_is_no_result_counts_for_the_bound_of_a_request(core: Core) -> None:
    async with connect(core, agent("w", "c", "1")) as peer:
        task_id = await own(peer)
        long = "x" * 300 * 1024
        assert "without its content" in (await complete(peer, task_id, other=long)).error
        paused = await operate(peer, Op.PAUSE, task_id, wait_spec=pb.WaitSpec(reason=1, input_match={"result": long}))
        assert "without its content" in paused.error


async def test_a_repeated_complete_is_the_same_one_if_its_result_is(core: Core) -> None:
    async with connect(core, agent("w", "c", "1")) as peer:
        task_id = await own(peer)
        assert (await complete(peer, task_id, result="1")).success
        assert (await complete(peer, task_id, result="1")).success
        assert (await operate(peer, Op.COMPLETE, task_id)).success
        assert "another result" in (await complete(peer, task_id, result="2")).error
        assert (await shown(peer, task_id))["_result"] == "1"


async def test_a_complete_whose_commit_was_not_answered_has_its_result(core: Core, world: World) -> None:
    async with connect(core, agent("w", "c", "1")) as peer:
        task_id = await own(peer)
        world.databases["tasks"].unanswered_writes = 1
        done = await complete(peer, task_id, result="1")
        assert done.success, done.error
        assert (await shown(peer, task_id))["_result"] == "1"


@pytest.mark.parametrize(("text", "kept"), [("[1]", "[1]"), ("as words", '"as words"'), ("", '""')])
async def test_the_result_of_a_report_is_that_of_the_completed_task(core: Core, text: str, kept: str) -> None:
    """The published SDK has no parameter for a result of COMPLETE."""
    async with connect(core, agent("w", "c", "1")) as peer:
        task_id = await own(peer)
        peer.send(report(task_id, metadata={"result": "0"}))
        peer.send(report(task_id, metadata={"result": text}))
        peer.send(report(task_id))
        await barrier(peer)
        assert await shown(peer, task_id) == {}, "a task that runs has no result"
        assert (await operate(peer, Op.COMPLETE, task_id)).success
        assert (await shown(peer, task_id))["_result"] == kept


async def test_a_result_of_complete_replaces_that_of_a_report(core: Core) -> None:
    async with connect(core, agent("w", "c", "1")) as peer:
        task_id = await own(peer)
        peer.send(report(task_id, metadata={"result": "0"}))
        assert (await complete(peer, task_id, result="1")).success
        assert await shown(peer, task_id) == {"_result": "1", "_result_bytes": "1"}


async def test_the_report_of_a_failed_attempt_is_no_result_of_the_next(core: Core) -> None:
    async with connect(core, agent("w", "c", "1")) as creator, connect(core, agent("w", "i", "1")) as worker:
        policy = pb.RetryPolicy(max_attempts=2, backoff=pb.BACKOFF_STRATEGY_FIXED)
        task_id = (await create(creator, retry_policy=policy)).task_id
        assert (await operate(worker, Op.CLAIM, task_id)).success
        worker.send(report(task_id, metadata={"result": "0"}))
        assert (await operate(worker, Op.FAIL, task_id)).success
        while (await get(creator, task_id)).status != pb.TASK_STATUS_QUEUED:
            await trio.sleep(1)
        while not (await get(creator, task_id)).assigned_to:
            await trio.sleep(1)
        assert (await operate(worker, Op.COMPLETE, task_id)).success
        assert await shown(creator, task_id) == {}


async def test_a_late_report_of_an_earlier_assignment_is_not_one_of_the_next(core: Core) -> None:
    """Neither its result nor its heartbeat, though the same worker has the task again."""
    asks = pb.ExtensionDeclaration(uri=ASSIGNMENTS)
    hello = agent("w", "i", "1", extensions=[asks])
    async with connect(core, agent("w", "c", "1")) as creator, connect(core, hello) as worker:
        task_id = (await create(creator)).task_id
        first = (await worker.next("task_assignment")).task_assignment.metadata["_assignment"]
        assert (await operate(creator, Op.FAIL, task_id, reason="too slow")).success
        assert (await operate(creator, Op.RETRY, task_id)).success
        second = (await worker.next("task_assignment")).task_assignment.metadata["_assignment"]
        worker.send(report(task_id, metadata={"result": "1", "_assignment": first}))
        assert "assigned anew" in (await worker.next("error")).error.message
        await barrier(worker)
        assert (await get(creator, task_id)).status != pb.TASK_STATUS_RUNNING
        worker.send(report(task_id, metadata={"result": "2", "_assignment": second}))
        worker.send(report(task_id, metadata={"result": "3", "_assignment": "nonsense"}))
        assert "assigned anew" in (await worker.next("error")).error.message
        assert (await get(creator, task_id)).status == pb.TASK_STATUS_RUNNING
        assert (await operate(worker, Op.COMPLETE, task_id)).success
        assert (await shown(creator, task_id))["_result"] == "2"


async def test_a_bad_result_in_a_report_is_told_to_its_worker(core: Core) -> None:
    async with connect(core, agent("w", "c", "1")) as peer:
        task_id = await own(peer)
        peer.send(report(task_id, metadata={"result": "1", "result_base64": ""}))
        while not (told := peer.waiting("error")):
            await trio.sleep(0.01)
        assert "one result" in told[0].error.message


async def test_a_result_may_be_the_key_of_a_checkpoint(core: Core) -> None:
    async with connect(core, agent("w", "c", "1")) as peer:
        task_id = await own(peer)
        save = pb.CheckpointOperation(op=pb.CheckpointOperation.SAVE, key="big", data=b"x", request_id="s")
        peer.send(pb.UpstreamMessage(checkpoint_op=save))
        assert (await answer(peer, "checkpoint", "s")).success
        assert (await complete(peer, task_id, result_checkpoint="big")).success
        assert (await shown(peer, task_id))["_result_checkpoint"] == "big"


async def test_a_checkpoint_that_is_not_there_is_no_empty_result(core: Core) -> None:
    """Named by a report, which is not checked, or deleted after the task's end."""
    async with connect(core, agent("w", "c", "1")) as peer:
        number = count(1)

        async def checkpoint(op: str, key: str, data: bytes = b"") -> pb.CheckpointResponse:
            request_id = f"c{next(number)}"
            asked = pb.CheckpointOperation(
                op=pb.CheckpointOperation.OpType.Value(op), key=key, data=data, request_id=request_id
            )
            peer.send(pb.UpstreamMessage(checkpoint_op=asked))
            found: pb.CheckpointResponse = await answer(peer, "checkpoint", request_id)
            return found

        reported = await own(peer)
        peer.send(report(reported, metadata={"result_checkpoint": "never saved"}))
        await barrier(peer)
        assert (await operate(peer, Op.COMPLETE, reported)).success
        deleted = await own(peer)
        assert (await checkpoint("SAVE", "big")).success
        assert (await complete(peer, deleted, result_checkpoint="big")).success
        assert (await checkpoint("LOAD", f"_result:{deleted}")).success, "it is empty, and it is there"
        assert (await checkpoint("DELETE", "big")).success
        for task_id, key in ((reported, "never saved"), (deleted, "big")):
            found = await checkpoint("LOAD", f"_result:{task_id}")
            assert not found.success
            assert f"the checkpoint '{key}' of ag::w::c::1, which is not there" in found.error


async def checkpoint_op(peer: MemoryLink, op: str, key: str, data: bytes = b"") -> pb.CheckpointResponse:
    asked = pb.CheckpointOperation(op=pb.CheckpointOperation.OpType.Value(op), key=key, data=data, request_id=key)
    peer.send(pb.UpstreamMessage(checkpoint_op=asked))
    found: pb.CheckpointResponse = await answer(peer, "checkpoint", key)
    return found


@pytest.mark.parametrize("begun", [True, False])
@pytest.mark.parametrize("key", ["private", "_task:{0}"])
async def test_a_creator_reads_no_checkpoint_of_the_worker(core: Core, key: str, begun: bool) -> None:
    async with connect(core, agent("w", "c", "1")) as creator, connect(core, agent("w", "c", "2")) as worker:
        made = await create(creator, assignment_mode=pb.TARGETED, target_agent_id="ag::w::c::2")
        key = key.format(made.task_id)
        if begun:
            assert (await operate(worker, Op.CLAIM, made.task_id)).success
        await worker.next("task_assignment")
        assert (await checkpoint_op(worker, "SAVE", key, b"secret")).success
        refused = await complete(creator, made.task_id, result_checkpoint=key)
        assert "only the worker" in refused.error
        assert not (await checkpoint_op(creator, "LOAD", f"_result:{made.task_id}")).data
        assert (await complete(creator, made.task_id, result="1")).success


@pytest.mark.parametrize("prefix", ["_task:", "_result:"])
@pytest.mark.parametrize("op", ["SAVE", "LOAD", "DELETE"])
async def test_a_long_key_is_looked_up_nowhere(core: Core, prefix: str, op: str) -> None:
    async with connect(core, agent("w", "c", "1")) as peer:
        asked = pb.CheckpointOperation(
            op=pb.CheckpointOperation.OpType.Value(op), key=prefix + "x" * 1_000_000, request_id="long"
        )
        peer.send(pb.UpstreamMessage(checkpoint_op=asked))
        refused = await answer(peer, "checkpoint", "long")
        assert (refused.success, "at most 256 bytes" in refused.error) == (False, True)


async def test_a_former_worker_reads_no_checkpoint_of_the_next_one(core: Core) -> None:
    policy = pb.RetryPolicy(max_attempts=2, backoff=pb.BACKOFF_STRATEGY_FIXED)
    async with connect(core, agent("w", "boss", "1")) as boss:
        async with connect(core, agent("w", "c", "1")) as former:
            made = await create(boss, target_implementation="c", retry_policy=policy)
            task_id = (await former.next("task_assignment")).task_assignment.task_id
            assert task_id == made.task_id
            former.send(report(task_id, metadata={"result_checkpoint": "private"}))
            await barrier(former)
            assert (await operate(former, Op.FAIL, task_id)).success
        async with connect(core, agent("w", "c", "2")) as worker:
            assert (await checkpoint_op(worker, "SAVE", "private", b"secret")).success
            await worker.next("task_assignment")
            assert (await operate(worker, Op.COMPLETE, task_id)).success
            assert await shown(worker, task_id) == {}
            assert "another result" in (await complete(worker, task_id, result_checkpoint="private")).error
        async with connect(core, agent("w", "c", "1")) as former:
            assert not (await checkpoint_op(former, "LOAD", f"_result:{task_id}")).data


async def test_who_may_not_see_the_task_sees_no_result(core: Core) -> None:
    async with connect(core, agent("w", "c", "1")) as peer, connect(core, agent("other", "c", "1")) as outsider:
        task_id = await own(peer)
        assert (await complete(peer, task_id, result="1")).success
        query = pb.TaskQuery(op=pb.TaskQuery.GET, task_id=task_id, request_id="g")
        outsider.send(pb.UpstreamMessage(task_query=query))
        assert (await answer(outsider, "task_query", "g")).error == "task not found"


async def test_the_result_is_deleted_with_its_task(core: Core, world: World) -> None:
    async with connect(core, agent("w", "c", "1")) as peer:
        task_id = await own(peer)
        assert (await complete(peer, task_id, result="1")).success
        await core.tasks.engine.perform(lambda tx: task_rows.delete(task_id))
        assert world.databases["tasks"].query("SELECT COUNT(*) FROM task_results") == [(0,)]


async def test_a_creator_sets_no_metadata_of_the_gateway(core: Core) -> None:
    async with connect(core, agent("w", "c", "1")) as peer:
        metadata = {"_result": "1", "_outcome": "retry", "own": "kept"}
        task_id = (await create(peer, metadata=metadata)).task_id
        found = dict((await get(peer, task_id)).metadata)
        assert found.pop("_queued_because") == "no worker of the pool i is connected to the workspace w"
        assert found == {"own": "kept"}
