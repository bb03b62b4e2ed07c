"""Workers that never claim keep their tasks; a task that kills them is given up."""

from __future__ import annotations

import pytest
import trio

from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import World, agent, barrier, connect, deadlock_is_an_error
from tests.services.tasks.peers import Op, create, get, given, operate, own, report

TWICE = pb.RetryPolicy(max_attempts=2, backoff=pb.BACKOFF_STRATEGY_FIXED, initial_delay_ms=100)


@pytest.mark.parametrize("claims", [True, False])
async def test_a_task_that_is_never_begun_is_given_a_bounded_number_of_times(world: World, claims: bool) -> None:
    """Also with workers that claim: a task may kill them before they do."""
    async with deadlock_is_an_error(), world.open() as core, connect(core, agent("w", "c", "1")) as creator:
        task_id = (await create(creator)).task_id
        deliveries = 0
        for _ in range(40):
            async with connect(core, agent("w", "i", "1")) as worker:
                await barrier(worker)
                deliveries += len(given(worker))
                if claims:
                    assert (await operate(worker, Op.COMPLETE, await own(worker))).success
            await trio.sleep(1)
        task = await get(creator, task_id)
        assert (deliveries, task.status) == (16, pb.TASK_STATUS_FAILED)
        assert "given 16 times and never begun" in task.error


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("policy", [TWICE, None])
async def test_a_task_that_kills_its_workers_costs_those_behind_it_no_attempt(
    world: World, policy: pb.RetryPolicy | None, same: bool
) -> None:
    """The worker works in order, reports only ends, and dies of the third task."""
    async with deadlock_is_an_error(), world.open() as core, connect(core, agent("w", "c", "1")) as creator:
        tasks = [(await create(creator, retry_policy=policy)).task_id for _ in range(6)]
        poison = tasks[2]
        begun = []
        for number in range(12):
            async with connect(core, agent("w", "i", "1" if same else str(number))) as worker:
                await trio.sleep(60)
                for task_id in given(worker):
                    begun.append(task_id)
                    if task_id == poison:
                        break
                    assert (await operate(worker, Op.COMPLETE, task_id)).success
                worker.cut()
            await trio.sleep(1)
        shown = [await get(creator, task_id) for task_id in tasks]
        assert begun.count(poison) == (2 if policy else 3)
        assert [task.status == pb.TASK_STATUS_COMPLETED for task in shown] == [task_id != poison for task_id in tasks]
        assert [task.attempt for task in shown if task.task_id != poison] == [0] * 5
        assert "never heard of again" in shown[2].error


async def test_what_is_told_again_comes_in_the_order_in_which_it_was_given(world: World) -> None:
    """The worker may not have been sent it; the first one counts as begun."""
    async with deadlock_is_an_error(), world.open() as core, connect(core, agent("w", "c", "1")) as creator:
        older = (await create(creator)).task_id
        urgent = (await create(creator, priority=pb.TASK_PRIORITY_HIGH)).task_id
        for before in ("", "before"):
            async with connect(core, agent("w", "i", "1", resume_session_id=before)) as worker:
                await barrier(worker)
                assert given(worker) == [urgent, older]
                worker.cut()
            await trio.sleep(60 if before else 1)
        assert [(await get(creator, task_id)).attempt for task_id in (urgent, older)] == [1, 0]


async def test_a_worker_that_is_cut_often_keeps_what_it_has_not_begun(world: World) -> None:
    async with deadlock_is_an_error(), world.open() as core, connect(core, agent("w", "c", "1")) as creator:
        tasks = [(await create(creator)).task_id for _ in range(3)]
        for before in ("", *["before"] * 20):
            async with connect(core, agent("w", "i", "1", resume_session_id=before)) as worker:
                await barrier(worker)
                if not before:
                    worker.send(report(tasks[0]))
                    await barrier(worker)
                worker.cut()
            await trio.sleep(10 if before else 0)
        async with connect(core, agent("w", "i", "1", resume_session_id="before")) as worker:
            for task_id in tasks:
                assert (await operate(worker, Op.COMPLETE, task_id)).success


@pytest.mark.parametrize("back", [True, False])
async def test_what_kills_the_worker_of_several_at_once_is_given_a_bounded_number_of_times(
    world: World, back: bool
) -> None:
    """The gateway cannot know which one it was.

    An attempt of the first is counted, and a delivery of each.
    """
    async with deadlock_is_an_error(), world.open() as core, connect(core, agent("w", "c", "1")) as creator:
        tasks = [(await create(creator)).task_id for _ in range(3)]
        deliveries = dict.fromkeys(tasks, 0)
        for _ in range(80):
            async with connect(core, agent("w", "i", "1", resume_session_id="before" if back else "")) as worker:
                await barrier(worker)
                for task_id in given(worker):
                    deliveries[task_id] += 1
                worker.cut()
            await trio.sleep(1)
        assert {(await get(creator, task_id)).status for task_id in tasks} == {pb.TASK_STATUS_FAILED}
        assert max(deliveries.values()) <= (48 if back else 16)
