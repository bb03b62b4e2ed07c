"""A deadline counts no time before a retry, in a wait, or without a gateway."""

from __future__ import annotations

import pytest
import trio

from aether_trio.gateway.core import Core
from aether_trio.model.clock import VirtualClock
from aether_trio.services.tasks.handlers.dead_letters import DeadLetters
from aether_trio.testing.memory import MemoryLink
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import World, agent, barrier, connect, deadlock_is_an_error
from tests.services.agents.cast import SetClock
from tests.services.tasks.peers import Op, create, get, operate

INPUT = pb.WaitSpec(reason=pb.WAIT_REASON_INPUT)
LONG_S = 600
SHORTER = {"interactive_ttl_s": LONG_S, "pool_ttl_s": LONG_S}
"""For hours by default, each of which is seconds of looking on PostgreSQL."""


async def status(peer: MemoryLink, task_id: str) -> pb.TaskStatus.ValueType:
    return (await get(peer, task_id)).status


async def begin(worker: MemoryLink, task_id: str) -> None:
    await barrier(worker)
    assert (await operate(worker, Op.CLAIM, task_id)).success


async def sleep_until(worker: MemoryLink, task_id: str, wake_ms: int) -> None:
    save = pb.CheckpointOperation(op=pb.CheckpointOperation.SAVE, key="k", data=b"x", request_id="save")
    worker.send(pb.UpstreamMessage(checkpoint_op=save))
    assert (await worker.next("checkpoint")).checkpoint.success
    asleep = pb.WaitSpec(
        reason=pb.WAIT_REASON_HIBERNATION,
        hibernation=pb.HibernationDescriptor(checkpoint_key="k"),
        scheduled_wake_unix_ms=wake_ms,
    )
    assert (await operate(worker, Op.PAUSE, task_id, wait_spec=asleep)).success


@pytest.mark.parametrize("by", ["retry", "requeue"])
async def test_schedule_to_close_counts_from_when_it_was_taken_up_again(core: Core, by: str) -> None:
    async with connect(core, agent("w", "c", "1")) as creator:
        task_id = (await create(creator, metadata={"schedule_to_close_ms": "60000"})).task_id
        for _ in range(2):
            await trio.sleep(59)
            assert await status(creator, task_id) == pb.TASK_STATUS_QUEUED
            await trio.sleep(2)
            assert await status(creator, task_id) == pb.TASK_STATUS_FAILED
            if by == "retry":
                assert (await operate(creator, Op.RETRY, task_id)).success
            else:
                assert await DeadLetters(core.tasks.engine).requeue(task_id, "a person")
        assert await status(creator, task_id) == pb.TASK_STATUS_QUEUED


async def test_a_retry_of_the_policy_takes_no_longer_than_schedule_to_close(core: Core) -> None:
    policy = pb.RetryPolicy(max_attempts=9, backoff=pb.BACKOFF_STRATEGY_FIXED, initial_delay_ms=10_000)
    async with connect(core, agent("w", "c", "1")) as creator, connect(core, agent("w", "i", "1")) as worker:
        task_id = (await create(creator, retry_policy=policy, metadata={"schedule_to_close_ms": "60000"})).task_id
        await begin(worker, task_id)
        await trio.sleep(30)
        assert (await operate(worker, Op.FAIL, task_id)).success
        await trio.sleep(31)
        assert "schedule_to_close" in (await get(creator, task_id)).error


async def test_an_old_interactive_task_can_be_tried_again(world: World) -> None:
    async with world.open(tasks=SHORTER) as core, connect(core, agent("w", "c", "1")) as creator:
        task_id = (await create(creator, task_class=pb.TASK_CLASS_INTERACTIVE)).task_id
        for _ in range(2):
            await trio.sleep(LONG_S - 5)
            assert await status(creator, task_id) == pb.TASK_STATUS_QUEUED
            await trio.sleep(10)
            assert await status(creator, task_id) == pb.TASK_STATUS_CANCELLED
            assert (await operate(creator, Op.RETRY, task_id)).success
        assert await status(creator, task_id) == pb.TASK_STATUS_QUEUED


@pytest.mark.parametrize("asleep", [True, False])
async def test_an_interactive_task_that_waited_long_goes_on(world: World, asleep: bool) -> None:
    async with (
        world.open(tasks=SHORTER) as core,
        connect(core, agent("w", "c", "1")) as creator,
        connect(core, agent("w", "i", "1")) as worker,
    ):
        task_id = (await create(creator, task_class=pb.TASK_CLASS_INTERACTIVE)).task_id
        await begin(worker, task_id)
        if asleep:
            await sleep_until(worker, task_id, 0)
        else:
            assert (await operate(worker, Op.PAUSE, task_id, wait_spec=INPUT)).success
        await trio.sleep(3 * LONG_S)
        assert (await operate(creator, Op.RESUME, task_id)).success
        await trio.sleep(60)
        assert await status(creator, task_id) == (pb.TASK_STATUS_QUEUED if asleep else pb.TASK_STATUS_RUNNING)
        assert (await operate(worker, Op.COMPLETE, task_id)).success


@pytest.mark.parametrize("asleep", [True, False])
async def test_start_to_close_counts_work_alone(world: World, asleep: bool) -> None:
    async with (
        world.open(tasks=SHORTER) as core,
        connect(core, agent("w", "c", "1")) as creator,
        connect(core, agent("w", "i", "1")) as worker,
    ):
        policy = pb.RetryPolicy(max_attempts=1)
        metadata = {"start_to_close_ms": "60000"}
        task_id = (await create(creator, metadata=metadata, retry_policy=policy)).task_id
        await begin(worker, task_id)
        await trio.sleep(40)
        if asleep:
            await sleep_until(worker, task_id, 0)
        else:
            assert (await operate(worker, Op.PAUSE, task_id, wait_spec=INPUT)).success
        await trio.sleep(LONG_S)
        assert (await operate(creator, Op.RESUME, task_id)).success
        if asleep:
            await trio.sleep(LONG_S / 2)
            await begin(worker, task_id)
        await trio.sleep(15)
        assert await status(creator, task_id) == pb.TASK_STATUS_RUNNING
        await trio.sleep(10)
        task = await get(creator, task_id)
        assert task.status == pb.TASK_STATUS_FAILED
        assert "start_to_close" in task.error


async def test_a_clock_that_is_set_back_gives_no_more_time(world: World) -> None:
    clock = SetClock(trio.current_time)
    async with world.open(clock=clock) as core, connect(core, agent("w", "c", "1")) as creator:
        metadata = {"start_to_close_ms": "60000"}
        more = {"metadata": metadata, "retry_policy": pb.RetryPolicy(max_attempts=1)}
        task_id = (await create(creator, assignment_mode=pb.SELF_ASSIGN, **more)).task_id
        clock.ahead_ms = 7_200_000
        assert (await operate(creator, Op.CLAIM, task_id)).success
        clock.ahead_ms = 0
        assert (await operate(creator, Op.PAUSE, task_id, wait_spec=INPUT)).success
        assert (await operate(creator, Op.RESUME, task_id)).success
        await trio.sleep(50)
        assert (await get(creator, task_id)).status == pb.TASK_STATUS_RUNNING
        await trio.sleep(20)
        assert "start_to_close" in (await get(creator, task_id)).error


async def test_start_to_close_begins_anew_with_each_attempt(core: Core) -> None:
    policy = pb.RetryPolicy(max_attempts=9, backoff=pb.BACKOFF_STRATEGY_FIXED, initial_delay_ms=10)
    metadata = {"start_to_close_ms": "60000"}
    async with connect(core, agent("w", "c", "1")) as creator, connect(core, agent("w", "i", "1")) as worker:
        task_id = (await create(creator, retry_policy=policy, metadata=metadata)).task_id
        for _ in range(3):
            await begin(worker, task_id)
            await trio.sleep(25)
            assert (await operate(worker, Op.PAUSE, task_id, wait_spec=INPUT)).success
            assert (await operate(creator, Op.RESUME, task_id)).success
            await trio.sleep(25)
            assert await status(creator, task_id) == pb.TASK_STATUS_RUNNING
            assert (await operate(worker, Op.FAIL, task_id)).success
            await trio.sleep(1)


@pytest.mark.parametrize("killed", [True, False])
@pytest.mark.parametrize("metadata", [{}, {"heartbeat_timeout_ms": "5000"}, {"start_to_close_ms": "100000"}])
async def test_workers_can_return_to_a_gateway_that_was_away(
    world: World, killed: bool, metadata: dict[str, str]
) -> None:
    async with deadlock_is_an_error():
        clock = VirtualClock(trio.current_time)
        async with (
            world.open(clock=clock) as core,
            connect(core, agent("w", "c", "1")) as creator,
            connect(core, agent("w", "i", "1"), wait_ack=False) as worker,
        ):
            session_id = (await worker.next("connection_ack")).connection_ack.session_id
            task_id = (await create(creator, metadata=metadata)).task_id
            await begin(worker, task_id)
            for database in world.databases.values():
                database.failing = killed
        await trio.sleep(600)
        async with world.open(clock=clock) as core, connect(core, agent("w", "c", "1")) as creator:
            await trio.sleep(20)
            assert await status(creator, task_id) == pb.TASK_STATUS_RUNNING
            async with connect(core, agent("w", "i", "1", resume_session_id=session_id)) as worker:
                await trio.sleep(3)
                assert (await operate(worker, Op.COMPLETE, task_id)).success


@pytest.mark.parametrize("returns", [True, False])
async def test_after_its_return_a_worker_is_expected_to_report_again(world: World, returns: bool) -> None:
    async with deadlock_is_an_error():
        clock = VirtualClock(trio.current_time)
        async with (
            world.open(clock=clock) as core,
            connect(core, agent("w", "c", "1")) as creator,
            connect(core, agent("w", "i", "1"), wait_ack=False) as worker,
        ):
            session_id = (await worker.next("connection_ack")).connection_ack.session_id
            task_id = (await create(creator, metadata={"heartbeat_timeout_ms": "5000"})).task_id
            await begin(worker, task_id)
            for database in world.databases.values():
                database.failing = True
        await trio.sleep(600)
        async with world.open(clock=clock) as core, connect(core, agent("w", "c", "1")) as creator:
            if returns:
                async with connect(core, agent("w", "i", "1", resume_session_id=session_id)):
                    await trio.sleep(4)
                    assert await status(creator, task_id) == pb.TASK_STATUS_RUNNING
                    await trio.sleep(2)
                    assert "(heartbeat)" in (await get(creator, task_id)).error
            else:
                await trio.sleep(31)
                assert await status(creator, task_id) == pb.TASK_STATUS_FAILED
