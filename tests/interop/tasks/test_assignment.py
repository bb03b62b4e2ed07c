"""Scenarios 68 to 70, 76, 86, 89, 92: tasks are created and assigned."""

from __future__ import annotations

import asyncio
import uuid

from scitrera_aether_client.proto import aether_pb2 as pb

from tests.helpers.sdk import LIMIT_S, Peer, World, in_asyncio
from tests.interop.tasks import steps
from tests.interop.tasks.steps import SELF, TARGETED


@in_asyncio
async def test_68_a_task_for_oneself(world: World) -> None:
    (me,) = await world.open(world.agent("me"))
    response = await steps.ask(me, world, "own", mode=SELF)
    assert (response.success, response.status, response.assigned_to) == (True, "assigned", me.topic)
    shown = await steps.task(me, response.task_id)
    assert (shown.creator_actor_id, shown.assigned_to) == (me.topic, me.topic)
    assert (shown.status, shown.task_type, shown.workspace) == (pb.TASK_STATUS_QUEUED, "own", world.ws)
    assert (shown.root_task_id, shown.priority) == (response.task_id, pb.TASK_PRIORITY_NORMAL)
    assert (await steps.op(me, "claim", response.task_id)).status == pb.TASK_STATUS_RUNNING
    assert (await steps.op(me, "complete", response.task_id)).status == pb.TASK_STATUS_COMPLETED
    # A worker is not assigned what it has given to itself.
    assert me.assignments.empty()


@in_asyncio
async def test_69_a_pool_task_with_an_idle_worker(world: World) -> None:
    creator, worker = await world.open(world.agent("c", impl=f"{world.impl}-c"), world.agent("w"))
    task_id = await steps.create(
        creator, world, payload=b"\x00do", metadata={"k": "v"}, task_class=pb.TASK_CLASS_BATCH, context_id="ctx"
    )
    given = await steps.assignment(worker, task_id)
    assert (given.task_type, given.payload, dict(given.metadata)) == ("work", b"\x00do", {"k": "v"})
    assert (given.assigned_to, given.target_implementation, given.workspace) == (worker.topic, world.impl, world.ws)
    assert given.task_class == pb.TASK_CLASS_BATCH
    assert given.assigned_at > 1_600_000_000
    assert (await steps.op(worker, "claim", task_id)).status == pb.TASK_STATUS_RUNNING
    assert (await steps.op(worker, "claim", task_id)).status == pb.TASK_STATUS_RUNNING
    done = await steps.op(worker, "complete", task_id)
    assert (done.status, done.context_id) == (pb.TASK_STATUS_COMPLETED, "ctx")
    shown = await steps.task(creator, task_id)
    assert (shown.status, shown.assigned_to) == (pb.TASK_STATUS_COMPLETED, worker.topic)
    assert shown.completed_at >= shown.started_at >= shown.created_at > 0
    assert (await steps.op(worker, "complete", task_id)).status == pb.TASK_STATUS_COMPLETED


@in_asyncio
async def test_70_what_waits_is_assigned_by_priority_then_in_order(world: World) -> None:
    (creator,) = await world.open(world.agent("c", impl=f"{world.impl}-c"))
    low = await steps.create(creator, world, priority=pb.TASK_PRIORITY_LOW)
    first = await steps.create(creator, world)
    second = await steps.create(creator, world)
    high = await steps.create(creator, world, priority=pb.TASK_PRIORITY_HIGH)
    assert await steps.status(creator, first) == pb.TASK_STATUS_QUEUED
    (worker,) = await world.open(world.agent("w"))
    got = [(await steps.assignment(worker)).task_id for _ in range(4)]
    assert got == [high, first, second, low]


@in_asyncio
async def test_76_each_task_goes_to_one_worker_and_evenly(world: World) -> None:
    creator, one, two = await world.open(world.agent("c", impl=f"{world.impl}-c"), world.agent("w1"), world.agent("w2"))
    aside = world.service("s", consumes_pool_tasks=False)
    await world.open(aside)
    for worker in (one, two):  # what is for it alone shows that each is known to be there
        mine = await steps.create(creator, world, mode=TARGETED, target_agent_id=worker.topic)
        await steps.assignment(worker, mine)
        await steps.op(worker, "complete", mine)
    ids = [await steps.create(creator, world) for _ in range(20)]

    async def work(worker: Peer) -> list[str]:
        done = []
        for _ in range(10):
            given = await steps.assignment(worker)
            await steps.op(worker, "claim", given.task_id)
            done.append(given.task_id)
        return done

    left, right = await asyncio.gather(work(one), work(two))
    assert sorted(left + right) == sorted(ids)
    await aside.barrier()
    assert aside.assignments.empty()


@in_asyncio
async def test_76_a_service_takes_from_the_pools_of_every_workspace(world: World) -> None:
    creator, other = await world.open(
        world.agent("c", impl=f"{world.impl}-c"), world.agent("o", ws=f"{world.ws}-2", impl=f"{world.impl}-c")
    )
    before = await steps.create(creator, world)
    aside, worker = world.service("s0", consumes_pool_tasks=False), world.service("s1")
    await world.open(aside, worker)
    assert (await steps.assignment(worker)).task_id == before
    after = await steps.create(other, world, workspace=f"{world.ws}-2")
    given = await steps.assignment(worker)
    assert (given.task_id, given.workspace) == (after, f"{world.ws}-2")
    await steps.op(worker, "claim", after)
    await steps.op(worker, "complete", after)
    await aside.barrier()
    assert aside.assignments.empty()


@in_asyncio
async def test_86_a_target_that_is_online_and_one_that_is_not(world: World) -> None:
    creator, target = await world.open(world.agent("c", impl=f"{world.impl}-c"), world.agent("t"))
    response = await steps.ask(creator, world, "aimed", target_agent_id=target.topic, mode=TARGETED, payload=b"p")
    assert (response.success, response.status, response.assigned_to) == (True, "assigned", target.topic)
    given = await steps.assignment(target, response.task_id)
    assert (given.payload, given.assigned_to) == (b"p", target.topic)

    late = f"ag::{world.ws}::{world.impl}::late"
    rejected = await steps.ask(
        creator,
        world,
        "aimed",
        target_agent_id=late,
        mode=TARGETED,
        target_offline_policy=pb.TARGET_OFFLINE_POLICY_REJECT,
    )
    assert (rejected.success, rejected.error_code) == (False, "ERR_TASK_CREATE_FAILED")
    await creator.error("ERR_TASK_CREATE_FAILED")
    queued = await steps.create(
        creator,
        world,
        mode=TARGETED,
        target_agent_id=late,
        target_offline_policy=pb.TARGET_OFFLINE_POLICY_QUEUE,
        payload=b"for later",
    )
    assert await steps.status(creator, queued) == pb.TASK_STATUS_QUEUED
    (worker,) = await world.open(world.agent("late"))
    given = await steps.assignment(worker)
    assert (given.task_id, given.payload, given.assigned_to) == (queued, b"for later", late)


@in_asyncio
async def test_89_an_unknown_target(world: World) -> None:
    (creator,) = await world.open(world.agent("c"))
    response = await steps.ask(
        creator, world, "aimed", target_agent_id=f"ag::{world.ws}::absent-{world.run}::x", mode=TARGETED
    )
    assert (response.success, response.error_code) == (False, "ERR_TASK_CREATE_FAILED")
    await creator.error("ERR_TASK_CREATE_FAILED")


@in_asyncio
async def test_92_an_idempotency_key_and_a_payload_that_is_too_large(world: World) -> None:
    (creator,) = await world.open(world.agent("c"))

    async def request(**fields: object) -> pb.CreateTaskResponse:
        message = pb.CreateTaskRequest(
            task_type="t",
            workspace=world.ws,
            request_id=uuid.uuid4().hex,
            **fields,  # type: ignore[arg-type]
        )
        upstream = pb.UpstreamMessage(create_task=message)
        return await creator.client._send_sync_op(upstream, message.request_id, LIMIT_S)

    key = f"key-{world.run}"
    first = await request(idempotency_key=key, assignment_mode=SELF)
    again = await request(idempotency_key=key, assignment_mode=SELF)
    assert first.success
    assert (again.success, again.task_id, again.status) == (True, first.task_id, "")
    large = await request(payload=b"x" * (512 * 1024 + 1), assignment_mode=SELF)
    assert (large.success, large.error_code) == (False, "TASK_PAYLOAD_TOO_LARGE")
    await creator.error("TASK_PAYLOAD_TOO_LARGE")
    fits = await request(payload=b"x" * (512 * 1024), assignment_mode=SELF)
    assert fits.success
