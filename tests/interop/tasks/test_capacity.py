"""Capacity of workers, checkpoints they may load, dead letters: no scenarios."""

from __future__ import annotations

import time

from scitrera_aether_client.proto import aether_pb2 as pb

from tests.helpers.sdk import LIMIT_S, World, answered, in_asyncio
from tests.interop.tasks import steps


@in_asyncio
async def test_the_next_worker_may_load_what_the_last_one_has_saved(world: World) -> None:
    creator, first = await world.open(world.agent("c", impl=f"{world.impl}-c"), world.agent("w1"))
    task_id = await steps.running(creator, first, world)
    answered(await first.client.checkpoint_save(b"state", key="half", timeout=LIMIT_S), "save")
    asleep = pb.WaitSpec(
        reason=pb.WAIT_REASON_HIBERNATION,
        scheduled_wake_unix_ms=time.time_ns() // 1_000_000 + 1000,
        hibernation=pb.HibernationDescriptor(checkpoint_key="half"),
    )
    await steps.op(first, "pause", task_id, asleep)
    await first.close()
    (second,) = await world.open(world.agent("w2"))
    given = await steps.assignment(second, task_id)
    loaded = answered(await second.client.checkpoint_load(given.checkpoint_key, timeout=LIMIT_S), "load")
    assert loaded.data == b"state"
    other = answered(await creator.client.checkpoint_load("half", timeout=LIMIT_S), "load")
    assert other.data == b""
    await steps.op(second, "claim", task_id)
    await steps.op(second, "complete", task_id)


@in_asyncio
async def test_a_task_that_is_late_for_the_last_time_is_a_dead_letter_and_may_be_tried_again(world: World) -> None:
    creator, worker = await world.open(world.agent("c", impl=f"{world.impl}-c"), world.agent("w"))
    policy = pb.RetryPolicy(max_attempts=1)
    task_id = await steps.running(creator, worker, world, retry_policy=policy, metadata={"start_to_close_ms": "200"})
    shown = await steps.reaches(creator, task_id, pb.TASK_STATUS_FAILED)
    assert shown.metadata["_dead_letter"] == "true"
    assert "start_to_close" in shown.error
    assert "dlq" in await steps.refused(worker, "complete", task_id)
    assert (await steps.op(creator, "retry", task_id)).attempt == 0
    await steps.assignment(worker, task_id)
