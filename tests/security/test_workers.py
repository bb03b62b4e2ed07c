"""Only its workers work on a task, and a worker's checkpoints are its own."""

from __future__ import annotations

import pytest

from aether_trio.gateway.core import Core
from aether_trio.testing.memory import MemoryLink
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import agent, barrier, connect, let_manage, orchestrator, service, switch_to, task, user
from tests.services.agents.cast import cast, launch
from tests.services.tasks.peers import Op, create, get, given, operate

NOT_FOUND = "task not found"
WORK = (Op.CLAIM, Op.COMPLETE, Op.FAIL, Op.PAUSE, Op.REJECT)
OUTSIDERS = {
    "another implementation": agent("w", "other", "1"),
    "another workspace": agent("v", "i", "1"),
    "a task of another implementation": task("w", "other", "1"),
    "a service of another implementation": service("other", "1"),
    "a user": user("u", "1"),
}
INPUT = pb.WaitSpec(reason=pb.WAIT_REASON_INPUT)


async def work(peer: MemoryLink, op: Op.OpType.ValueType, task_id: str) -> pb.TaskOperationResponse:
    fields = {"wait_spec": INPUT} if op == Op.PAUSE else {}
    return await operate(peer, op, task_id, **fields)


# -- who works on a task of a pool -----------------------------------------------------------------


@pytest.mark.parametrize("who", OUTSIDERS)
@pytest.mark.parametrize("state", ["pending", "assigned", "running", "waiting"])
async def test_an_outsider_of_a_pool_does_no_work_of_it(core: Core, who: str, state: str, creator: MemoryLink) -> None:
    async with connect(core, OUTSIDERS[who]) as outsider:
        if who == "a user":
            outsider.send(switch_to("w"))
        pool = "empty" if state == "pending" else "i"
        async with connect(core, agent("w", "i", "9")) as worker:
            await barrier(worker, outsider)
            task_id = (await create(creator, target_implementation=pool)).task_id
            if state in ("running", "waiting"):
                assert (await operate(worker, Op.CLAIM, task_id)).success
            if state == "waiting":
                assert (await operate(worker, Op.PAUSE, task_id, wait_spec=INPUT)).success
            before = await get(creator, task_id)
            for op in WORK:
                answer = await work(outsider, op, task_id)
                assert not answer.success
                assert not answer.HasField("task")
                assert answer.error == NOT_FOUND
            assert await get(creator, task_id) == before


@pytest.mark.parametrize("hello", [agent("w", "i", "2"), task("w", "i", "2"), service("i", "2")])
@pytest.mark.parametrize("end", [Op.COMPLETE, Op.FAIL, Op.REJECT])
async def test_a_pool_worker_takes_what_waits(
    core: Core, hello: pb.UpstreamMessage, end: Op.OpType.ValueType, creator: MemoryLink
) -> None:
    task_id = (await create(creator)).task_id
    async with connect(core, hello) as worker:
        await barrier(worker)
        if end != Op.REJECT:
            assert (await operate(worker, Op.CLAIM, task_id)).success
        assert (await operate(worker, end, task_id)).success


async def test_a_worker_of_the_pool_does_not_end_what_another_one_has(core: Core, creator: MemoryLink) -> None:
    async with connect(core, agent("w", "i", "1")) as worker, connect(core, task("w", "i", "2")) as peer:
        await barrier(worker, peer)
        task_id = (await create(creator)).task_id
        assert given(worker) == [task_id]
        for op in WORK:
            assert (await work(peer, op, task_id)).error == NOT_FOUND
        assert (await operate(worker, Op.CLAIM, task_id)).success
        for op in WORK:
            assert (await work(peer, op, task_id)).error == NOT_FOUND
        assert (await operate(worker, Op.COMPLETE, task_id)).success


async def test_its_creator_ends_a_task_of_a_pool_and_is_not_given_it(creator: MemoryLink) -> None:
    task_id = (await create(creator)).task_id
    assert (await operate(creator, Op.CLAIM, task_id)).error == "the task is for workers of i"
    assert (await operate(creator, Op.COMPLETE, task_id)).success
    assert (await get(creator, task_id)).assigned_to == ""


async def test_the_target_of_a_task_may_decline_it(core: Core, creator: MemoryLink) -> None:
    async with connect(core, agent("w", "i", "1")) as worker, connect(core, agent("w", "i", "2")) as peer:
        await barrier(worker, peer)
        made = await create(creator, assignment_mode=pb.TARGETED, target_agent_id="ag::w::i::1")
        for op in WORK:
            assert (await work(peer, op, made.task_id)).error == NOT_FOUND
        assert (await operate(worker, Op.REJECT, made.task_id)).success


@pytest.mark.parametrize("hello", [orchestrator("o", "9"), agent("w", "other", "1"), user("u", "1")])
async def test_an_operator_cancels_and_retries(core: Core, hello: pb.UpstreamMessage, creator: MemoryLink) -> None:
    async with connect(core, hello) as operator:
        task_id = (await create(creator)).task_id
        if not hello.init.HasField("orchestrator"):
            for op in (Op.CANCEL, Op.RETRY, *WORK):
                assert (await work(operator, op, task_id)).error == NOT_FOUND
            let_manage(core, "agent", "user")
        for op in (Op.CANCEL, Op.RETRY, Op.COMPLETE):
            assert (await operate(operator, op, task_id)).success
        assert not (await operate(operator, Op.CLAIM, task_id)).success


async def test_no_worker_takes_a_start(core: Core) -> None:
    async with cast(core, manage=False) as (starter, asker):
        starter.finish()
        await starter.wait_end()
        async with connect(core, orchestrator("o", "2")) as admin, connect(core, agent("w", "echo", "2")) as peer:
            start = await launch(admin, "1")
            for op in WORK:
                assert (await work(peer, op, start)).error == NOT_FOUND
                assert (await work(asker, op, start)).error == NOT_FOUND
            assert (
                await operate(admin, Op.CLAIM, start)
            ).error == "an agent's start is assigned to an orchestrator only"
            assert (await get(asker, start)).status == pb.TASK_STATUS_QUEUED


# -- what a worker has saved -----------------------------------------------------------------------


async def checkpoint(peer: MemoryLink, op: pb.CheckpointOperation.OpType.ValueType, **fields: object) -> bytes:
    asked = pb.CheckpointOperation(op=op, key="private", request_id="k", **fields)
    peer.send(pb.UpstreamMessage(checkpoint_op=asked))
    answer = (await peer.next("checkpoint")).checkpoint
    assert answer.success, answer.error
    data: bytes = answer.data
    return data


def asleep(key: str) -> pb.WaitSpec:
    return pb.WaitSpec(reason=pb.WAIT_REASON_HIBERNATION, hibernation=pb.HibernationDescriptor(checkpoint_key=key))


@pytest.mark.parametrize("who", ["creator", "orchestrator"])
async def test_only_its_worker_lets_a_task_hibernate(core: Core, who: str, creator: MemoryLink) -> None:
    async with connect(core, orchestrator("o", "9")) as admin, connect(core, agent("w", "i", "1")) as worker:
        await checkpoint(worker, pb.CheckpointOperation.SAVE, data=b"secret")
        task_id = (await create(creator)).task_id
        assert (await operate(worker, Op.CLAIM, task_id)).success
        intruder = creator if who == "creator" else admin
        # The same whether the worker has such a checkpoint or not.
        for key in ("private", "none"):
            answer = await operate(intruder, Op.PAUSE, task_id, wait_spec=asleep(key))
            assert answer.error.startswith("only the worker of a task can hibernate it")
        # Nor is another key put in the place of the one that it sleeps with.
        assert "save it before" in (await operate(worker, Op.PAUSE, task_id, wait_spec=asleep("none"))).error
        assert (await operate(worker, Op.PAUSE, task_id, wait_spec=asleep("private"))).success
        assert not (await operate(intruder, Op.PAUSE, task_id, wait_spec=asleep("other"))).success


async def test_the_next_worker_reads_what_the_last_one_left_and_no_other_kind(core: Core, creator: MemoryLink) -> None:
    let_manage(core)
    made = await create(creator, target_identity="ag::w::spy::1")
    async with connect(core, agent("w", "i", "1")) as worker:
        await checkpoint(worker, pb.CheckpointOperation.SAVE, data=b"state")
        assert (await operate(worker, Op.CLAIM, made.task_id)).success
        assert (await operate(worker, Op.PAUSE, made.task_id, wait_spec=asleep("private"))).success
    # A token lets in whom the creator likes; that is no worker of the pool.
    spy_hello = agent("w", "spy", "1", credentials={"token": made.task_token})
    assert (await operate(creator, Op.RESUME, made.task_id)).success
    async with connect(core, spy_hello) as spy:
        await barrier(spy)
        assert (await get(creator, made.task_id)).assigned_to == "ag::w::spy::1"
        assert await checkpoint(spy, pb.CheckpointOperation.LOAD) == b""
        spy.cut()
    made = await create(creator)
    async with connect(core, agent("w", "i", "1")) as worker:
        await barrier(worker)
        assert (await operate(worker, Op.CLAIM, made.task_id)).success
        assert (await operate(worker, Op.PAUSE, made.task_id, wait_spec=asleep("private"))).success
    assert (await operate(creator, Op.RESUME, made.task_id)).success
    async with connect(core, agent("w", "i", "2")) as following:
        await following.next("task_assignment")
        assert await checkpoint(following, pb.CheckpointOperation.LOAD) == b"state"
