"""Scenarios 74, 75, 77 to 81, 85, 90: a task between assignment and end."""

from __future__ import annotations

import time

from scitrera_aether_client import Credentials
from scitrera_aether_client.proto import aether_pb2 as pb

from tests.helpers.forwarder import Forwarder
from tests.helpers.rules import let_agents_manage
from tests.helpers.sdk import LIMIT_S, World, eventually, in_asyncio
from tests.interop.tasks import steps
from tests.interop.tasks.steps import SELF

FIXED = pb.BACKOFF_STRATEGY_FIXED
INPUT = pb.WAIT_REASON_INPUT


@in_asyncio
async def test_74_the_creator_hears_of_it(world: World) -> None:
    creator, worker = await world.open(world.agent("c", impl=f"{world.impl}-c"), world.agent("w"))
    done = await steps.running(creator, worker, world)
    update = await steps.notice(creator, done, "running")
    assert (update.kind, update.recipient, update.workspace) == (pb.PROGRESS_KIND_TASK, creator.topic, world.ws)
    assert update.metadata["status"] == "running"
    await steps.op(worker, "complete", done)
    await steps.notice(creator, done, "completed")
    broken = await steps.running(creator, worker, world)
    await steps.op(worker, "fail", broken, "boom")
    assert "boom" in (await steps.notice(creator, broken, "failed")).summary
    await worker.barrier()
    assert [one.state for one in worker.progress._queue if one.task_id in (done, broken)] == []  # type: ignore[attr-defined]


@in_asyncio
async def test_75_progress_of_a_task_is_an_event(world: World) -> None:
    creator, worker = await world.open(world.agent("c", impl=f"{world.impl}-c"), world.agent("w"))
    task_id = await steps.running(creator, worker, world)
    subscription = await creator.client.subscribe_to_task(task_id, timeout=LIMIT_S)
    assert subscription.success
    await worker.client.report_progress(task_id, state="half", completion=0.5, summary="half-way", metadata={"a": "b"})
    event = await steps.event(creator, "progress", task_id)
    assert (event.progress.state, event.progress.progress, event.progress.message) == ("half", 0.5, "half-way")
    assert dict(event.progress.metadata) == {"a": "b"}
    assert (event.subscription_id, event.workspace) == (subscription.subscription_id, world.ws)
    # What is reported before the end comes before it.
    await worker.client.report_progress(task_id, state="nearly", completion=0.9)
    await steps.op(worker, "complete", task_id)
    kinds = [(await creator.take(box=creator.task_events)).WhichOneof("event") for _ in range(2)]
    assert kinds == ["progress", "status_changed"]


@in_asyncio
async def test_77_a_failure_is_final_and_a_retry_is_a_new_assignment(world: World) -> None:
    creator, worker = await world.open(world.agent("c", impl=f"{world.impl}-c"), world.agent("w"))
    task_id = await steps.running(creator, worker, world, retry_policy=pb.RetryPolicy(max_attempts=1))
    failed = await steps.op(worker, "fail", task_id, "boom")
    assert (failed.status, failed.error, failed.attempt) == (pb.TASK_STATUS_FAILED, "boom", 1)
    again = await steps.op(creator, "retry", task_id)
    assert (again.status, again.error) == (pb.TASK_STATUS_QUEUED, "")
    given = await steps.assignment(worker, task_id)
    assert given.assigned_to == worker.topic
    await steps.op(worker, "claim", task_id)
    await steps.op(worker, "complete", task_id)


@in_asyncio
async def test_78_a_policy_tries_again_and_gives_up(world: World) -> None:
    creator, worker = await world.open(world.agent("c", impl=f"{world.impl}-c"), world.agent("w"))
    policy = pb.RetryPolicy(max_attempts=3, backoff=FIXED, initial_delay_ms=1000)
    task_id = await steps.running(creator, worker, world, retry_policy=policy)
    for attempt in (1, 2):
        failed_at = time.monotonic()
        shown = await steps.op(worker, "fail", task_id, f"try {attempt}")
        assert (shown.status, shown.attempt, shown.max_attempts) == (pb.TASK_STATUS_FAILED, attempt, 3)
        await steps.assignment(worker, task_id)
        assert time.monotonic() - failed_at > 0.9
        await steps.op(worker, "claim", task_id)
    last = await steps.op(worker, "fail", task_id, "try 3")
    assert (last.status, last.attempt, last.error) == (pb.TASK_STATUS_FAILED, 3, "try 3")
    assert await steps.status(creator, task_id) == pb.TASK_STATUS_FAILED
    assert worker.assignments.empty()


@in_asyncio
async def test_79_cancel_and_reject(world: World) -> None:
    creator, worker = await world.open(world.agent("c", impl=f"{world.impl}-c"), world.agent("w"))
    waiting = await steps.create(creator, world, target_implementation=f"{world.impl}-none")
    assert (await steps.op(creator, "cancel", waiting)).status == pb.TASK_STATUS_CANCELLED
    working = await steps.running(creator, worker, world)
    assert (await steps.op(creator, "cancel", working)).status == pb.TASK_STATUS_CANCELLED
    assert "cancelled" in await steps.refused(worker, "complete", working)
    done = await steps.running(creator, worker, world)
    await steps.op(worker, "complete", done)
    assert "completed" in await steps.refused(creator, "cancel", done)
    declined = await steps.create(creator, world)
    await steps.assignment(worker, declined)
    shown = await steps.op(worker, "reject", declined, "not mine")
    assert (shown.status, shown.error) == (pb.TASK_STATUS_REJECTED, "not mine")


@in_asyncio
async def test_80_pauses_end_by_a_word_by_time_and_by_other_tasks(world: World) -> None:
    creator, worker = await world.open(world.agent("c", impl=f"{world.impl}-c"), world.agent("w"))
    task_id = await steps.running(creator, worker, world)
    for reason, status in (
        (pb.WAIT_REASON_INPUT, pb.TASK_STATUS_WAITING_INPUT),
        (pb.WAIT_REASON_AUTHORITY, pb.TASK_STATUS_WAITING_AUTHORITY),
    ):
        paused = await steps.op(worker, "pause", task_id, pb.WaitSpec(reason=reason, authority_request_id="r"))
        assert (paused.status, paused.wait_spec.reason) == (status, reason)
        assert paused.paused_at > 0
        assert (await steps.op(creator, "resume", task_id)).status == pb.TASK_STATUS_RUNNING

    wake_ms = time.time_ns() // 1_000_000 + 300
    await steps.op(worker, "pause", task_id, pb.WaitSpec(reason=INPUT, scheduled_wake_unix_ms=wake_ms))
    await steps.reaches(creator, task_id, pb.TASK_STATUS_RUNNING)

    first = await steps.create(creator, world, mode=SELF)
    second = await steps.create(creator, world, mode=SELF)
    missing = await worker.client.wait_for_task(task_id, [first, "no-such-task"], timeout=LIMIT_S)
    assert not missing.success
    assert "no-such-task" in missing.error
    waiting = await worker.client.wait_for_task(task_id, [first, second], timeout=LIMIT_S)
    assert waiting.task.status == pb.TASK_STATUS_WAITING_DEPENDENCY
    assert list(waiting.task.depends_on) == [first, second]
    await steps.op(creator, "complete", first)
    assert await steps.status(creator, task_id) == pb.TASK_STATUS_WAITING_DEPENDENCY
    await steps.op(creator, "fail", second, "no")
    assert await steps.status(creator, task_id) == pb.TASK_STATUS_RUNNING

    third, fourth = [await steps.create(creator, world, mode=SELF) for _ in range(2)]
    await worker.client.wait_for_task(task_id, [third, fourth], wake_on_any=True, timeout=LIMIT_S)
    await steps.op(creator, "complete", fourth)
    assert await steps.status(creator, task_id) == pb.TASK_STATUS_RUNNING

    await steps.op(worker, "pause", task_id, pb.WaitSpec(reason=INPUT, timeout_ms=200))
    assert (await steps.reaches(creator, task_id, pb.TASK_STATUS_FAILED)).error == "wait timeout"


@in_asyncio
async def test_81_hibernation(world: World) -> None:
    creator, worker = await world.open(world.agent("c", impl=f"{world.impl}-c"), world.agent("w"))
    task_id = await steps.running(creator, worker, world)
    asleep = pb.WaitSpec(
        reason=pb.WAIT_REASON_HIBERNATION,
        scheduled_wake_unix_ms=time.time_ns() // 1_000_000 + 500,
        hibernation=pb.HibernationDescriptor(checkpoint_key="half", resume_session_id="s-1"),
    )
    assert "half" in await steps.refused(worker, "pause", task_id, asleep)
    assert await steps.status(creator, task_id) == pb.TASK_STATUS_RUNNING
    saved = await worker.client.checkpoint_save(b"state", key="half", timeout=LIMIT_S)
    assert saved.success
    assert (await steps.op(worker, "pause", task_id, asleep)).status == pb.TASK_STATUS_HIBERNATED
    given = await steps.assignment(worker, task_id)
    assert (given.checkpoint_key, given.resume_session_id) == ("half", "s-1")
    assert given.metadata["_hibernation_checkpoint_key"] == "half"
    assert time.time_ns() // 1_000_000 >= asleep.scheduled_wake_unix_ms
    await steps.op(worker, "claim", task_id)
    await steps.op(worker, "complete", task_id)


@in_asyncio
async def test_85_a_worker_that_is_cut_off_and_comes_back(gateway: str) -> None:
    with Forwarder(gateway.split(",", maxsplit=1)[0]) as way:
        async with World(gateway) as world:
            worker = world.agent("w", auto_reconnect=True)
            worker.target = way.address
            (creator,) = await world.open(world.agent("c", impl=f"{world.impl}-c"))
            await worker.open()
            task_id = await steps.running(creator, worker, world)
            way.refuse()
            shown = await eventually(
                lambda: steps.task(creator, task_id), lambda one: one.disconnected_at > 0, "missed"
            )
            assert (shown.status, shown.grace_window_ms) == (pb.TASK_STATUS_RUNNING, 30_000)
            way.accept()
            # The SDK reconnects, and names the session that it continues.
            await eventually(lambda: steps.task(creator, task_id), lambda one: one.disconnected_at == 0, "back")
            await worker.online()
            assert (await steps.op(worker, "complete", task_id)).status == pb.TASK_STATUS_COMPLETED
            assert worker.assignments.empty()


@in_asyncio
async def test_85_what_was_not_begun_goes_to_another_worker_at_once(world: World) -> None:
    creator, first = await world.open(world.agent("c", impl=f"{world.impl}-c"), world.agent("w1"))
    # It claims what it begins, so what it has not claimed it has not begun.
    await steps.op(first, "complete", await steps.running(creator, first, world))
    task_id = await steps.create(creator, world)
    await steps.assignment(first, task_id)
    (second,) = await world.open(world.agent("w2"))
    await first.close()
    assert (await steps.assignment(second)).task_id == task_id
    await steps.op(second, "claim", task_id)
    (again,) = await world.open(world.agent("w1"))
    assert "over" in await steps.refused(again, "complete", task_id)
    await steps.op(second, "complete", task_id)


@in_asyncio
async def test_90_a_task_token(world: World) -> None:
    (creator,) = await world.open(world.agent("c", impl=f"{world.impl}-c"))
    owner = f"ag::{world.ws}::{world.impl}::w"
    refused = await steps.ask(creator, world, mode=SELF, target_identity=owner)
    assert not refused.task_token, "a creator that may not manage the workspace issues no tokens for it"
    await let_agents_manage(world.address, world.ws)
    response = await steps.ask(creator, world, mode=SELF, target_identity=owner)
    assert response.task_token
    credentials = Credentials({"token": response.task_token})
    other = world.agent("other", credentials=credentials)
    await other.connect()
    await other.refused()
    worker = world.agent("w", credentials=credentials)
    await worker.open()
    shown = await steps.reaches(creator, response.task_id, pb.TASK_STATUS_RUNNING)
    assert shown.assigned_to == owner
    await steps.notice(creator, response.task_id, "running")
    await steps.op(worker, "complete", response.task_id)
    await worker.close()
    again = world.agent("w", credentials=credentials)
    await again.connect()
    await again.refused()


@in_asyncio
async def test_80_an_input_that_matches_wakes_the_task(world: World) -> None:
    creator, worker = await world.open(world.agent("c", impl=f"{world.impl}-c"), world.agent("w"))
    task_id = await steps.running(creator, worker, world)
    wait = pb.WaitSpec(reason=INPUT, input_match={"form": "7"})
    await steps.op(worker, "pause", task_id, wait)
    transport = f"tk::{world.ws}::{task_id}::input"
    await creator.send(transport, b"not json")
    await creator.send(transport, b'{"metadata": {"form": "8"}}')
    await creator.barrier()
    assert await steps.status(creator, task_id) == pb.TASK_STATUS_WAITING_INPUT
    await creator.send(transport, b'{"metadata": {"form": "7", "more": "x"}}')
    await steps.reaches(creator, task_id, pb.TASK_STATUS_RUNNING)
