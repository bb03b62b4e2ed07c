"""Workers of the SDK's blocking client do tasks without CLAIM."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from scitrera_aether_client.proto import aether_pb2 as pb

from tests.helpers.forwarder import Forwarder
from tests.helpers.sdk import LIMIT_S, POLL_S, SyncPeer, SyncWorld, World, answered, declined, in_asyncio
from tests.interop.tasks import steps


def create(creator: SyncPeer, world: SyncWorld) -> str:
    """Create a task with a class and a long grace window; give its id."""
    request_id = uuid.uuid4().hex
    wanted = pb.CreateTaskRequest(
        request_id=request_id,
        task_type="work",
        workspace=world.ws,
        assignment_mode=pb.POOL,
        target_implementation=world.impl,
        task_class=pb.TASK_CLASS_BATCH,
    )
    made = creator.client._send_sync_op(pb.UpstreamMessage(create_task=wanted), request_id, LIMIT_S)
    assert made is not None
    assert made.success, made.error_message
    return str(made.task_id)


def given(worker: SyncPeer) -> str:
    return str(worker.take(worker.assignments).task_id)


def shown(creator: SyncPeer, task_id: str, good: Callable[[Any], bool]) -> Any:
    """A task as it is shown once it is as it should be."""
    deadline = time.monotonic() + LIMIT_S
    while True:
        task = answered(creator.client.get_task(task_id, timeout=LIMIT_S), "get_task").task
        if good(task):
            return task
        assert time.monotonic() < deadline, task
        time.sleep(POLL_S)


@pytest.mark.parametrize("reports", [True, False], ids=["reported", "given"])
def test_a_worker_that_is_cut_keeps_its_task_and_completes_it(gateway: str, reports: bool) -> None:
    first, *_ = addresses = gateway.split(",")
    with Forwarder(first) as way, SyncWorld(first) as world:
        creator = world.agent("c", impl=f"{world.impl}-c").open()
        worker = world.agent("w1", auto_reconnect=True, max_retries=0, initial_backoff=0.1, max_backoff=0.5)
        worker.target = way.address
        worker.open()
        task_id = create(creator, world)
        assert given(worker) == task_id
        if reports:
            worker.client.report_progress(task_id, completion=0.1)
            worker.barrier()
            shown(creator, task_id, lambda task: task.status == pb.TASK_STATUS_RUNNING)
        other = world.agent("w2")
        other.target = addresses[-1]
        other.open()
        session_id = worker.session_id
        worker.connected.clear()
        way.refuse()
        shown(creator, task_id, lambda task: task.disconnected_at > 0)
        marker = create(creator, world)
        assert given(other) == marker, "the worker that is there is given what is new, and nothing of the other one"
        way.accept()
        shown(creator, task_id, lambda task: task.disconnected_at == 0)
        assert worker.connected.wait(LIMIT_S)
        worker.barrier()
        assert worker.session_id != session_id
        if reports:
            assert worker.assignments.empty(), "it has begun, and is not told again"
        answered(worker.client.complete_task(task_id, timeout=LIMIT_S), "complete")
        done = shown(creator, task_id, lambda task: task.status == pb.TASK_STATUS_COMPLETED)
        assert (done.assigned_to, done.attempt) == (worker.topic, 0)
        answered(other.client.complete_task(marker, timeout=LIMIT_S), "complete")
        other.barrier()
        assert other.assignments.empty()


def test_progress_of_a_task_that_was_cancelled_is_an_error_for_its_worker(gateway: str) -> None:
    with SyncWorld(gateway.rsplit(",", maxsplit=1)[-1]) as world:
        creator = world.agent("c", impl=f"{world.impl}-c").open()
        worker = world.agent("w").open()
        task_id = create(creator, world)
        assert given(worker) == task_id
        worker.client.report_progress(task_id, completion=0.1, request_id="before")
        worker.barrier()
        shown(creator, task_id, lambda task: task.status == pb.TASK_STATUS_RUNNING)
        answered(creator.client.cancel_task(task_id, "not wanted", timeout=LIMIT_S), "cancel")
        for request_id in ("after", ""):
            worker.client.report_progress(task_id, completion=0.5, request_id=request_id)
            error = worker.take(worker.errors)
            assert (error.code, error.request_id) == ("ERR_INVALID_ARGUMENT", request_id)
            assert "has ended: it is cancelled" in error.message
        assert worker.client.is_running
        late = declined(worker.client.complete_task(task_id, timeout=LIMIT_S), "complete")
        assert "cancelled" in late.error


@in_asyncio
async def test_the_asyncio_client_hears_of_a_cancellation_as_well(world: World) -> None:
    creator, worker = await world.open(world.agent("c", impl=f"{world.impl}-c"), world.agent("w"))
    task_id = await steps.create(creator, world)
    await steps.assignment(worker, task_id)
    await worker.client.report_progress(task_id, completion=0.1)
    # Until it is written: the creator may be connected to another node.
    await steps.reaches(creator, task_id, pb.TASK_STATUS_RUNNING)
    await steps.op(creator, "cancel", task_id)
    await worker.client.report_progress(task_id, completion=0.5, request_id="after")
    error = await worker.error("ERR_INVALID_ARGUMENT")
    assert error.request_id == "after"
    assert "has ended: it is cancelled" in error.message
