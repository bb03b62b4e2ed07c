"""A deadline counts no time before a requeue, and its limits are settings.

tests/tasks/test_regressions.py has retries, waits and gateways that were away.
"""

from __future__ import annotations

import trio

from aether_trio.gateway.core import Core
from aether_trio.services.tasks.handlers.dead_letters import DeadLetters
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import World, agent, connect
from tests.services.agents.cast import SetClock
from tests.services.tasks.peers import Op, create, get, operate


async def test_schedule_to_close_counts_from_the_requeue_of_a_dead_letter(core: Core) -> None:
    async with connect(core, agent("w", "c", "1")) as creator:
        task_id = (await create(creator, metadata={"schedule_to_close_ms": "60000"})).task_id
        for _ in range(2):
            await trio.sleep(59)
            assert (await get(creator, task_id)).status == pb.TASK_STATUS_QUEUED
            await trio.sleep(2)
            assert (await get(creator, task_id)).status == pb.TASK_STATUS_FAILED
            assert await DeadLetters(core.tasks.engine).requeue(task_id, "a person")
        assert (await get(creator, task_id)).status == pb.TASK_STATUS_QUEUED


async def test_an_interactive_task_is_cancelled_after_the_time_of_the_settings(world: World) -> None:
    async with world.open(tasks={"interactive_ttl_s": 600}) as core, connect(core, agent("w", "c", "1")) as creator:
        task_id = (await create(creator, task_class=pb.TASK_CLASS_INTERACTIVE)).task_id
        for after_s, status in ((595, pb.TASK_STATUS_QUEUED), (10, pb.TASK_STATUS_CANCELLED)):
            await trio.sleep(after_s)
            assert (await get(creator, task_id)).status == status


async def test_a_clock_that_is_set_back_gives_no_more_time(world: World) -> None:
    clock = SetClock(trio.current_time)
    async with world.open(clock=clock) as core, connect(core, agent("w", "c", "1")) as creator:
        metadata = {"start_to_close_ms": "60000"}
        more = {"metadata": metadata, "retry_policy": pb.RetryPolicy(max_attempts=1)}
        task_id = (await create(creator, assignment_mode=pb.SELF_ASSIGN, **more)).task_id
        clock.ahead_ms = 7_200_000
        assert (await operate(creator, Op.CLAIM, task_id)).success
        clock.ahead_ms = 0
        wait = pb.WaitSpec(reason=pb.WAIT_REASON_INPUT)
        assert (await operate(creator, Op.PAUSE, task_id, wait_spec=wait)).success
        assert (await operate(creator, Op.RESUME, task_id)).success
        await trio.sleep(50)
        assert (await get(creator, task_id)).status == pb.TASK_STATUS_RUNNING
        await trio.sleep(20)
        assert "start_to_close" in (await get(creator, task_id)).error
