"""Test in virtual time how long the manager of jobs waits for what."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager
from typing import Any, cast

import pytest
import trio
from trio.testing import MockClock

from aether_trio.client import JobEnd, Refused
from aether_trio.client.errors import AetherError, ClientClosed
from aether_trio.client.feeds import Feed, Feeds
from aether_trio.client.jobs import Jobs, manager
from aether_trio.client.jobs.job import STOPPED
from aether_trio.client.jobs.manager import LET_GO, UNBEGUN_S, UNTAKEN_S, JobManager
from aether_trio.client.jobs.worker import FORGOTTEN_S
from aether_trio.client.requester import Requester
from aether_trio.wire.pb import aether_pb2 as pb
from tests.client.jobs.shop import assignment, info

Op = pb.TaskOperation
RUNNING, FAILED, CANCELLED = 2, 4, 5


class Gateway:
    """Answers at once; `said` are moves: (virtual time, task, move, reason)."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.feeds = Feeds()
        self.said: list[tuple[float, str, int, str]] = []
        self.status: dict[str, int] = {}
        self.looks_refused = 0
        """How many looks at a task are refused, for a reason that does not say that it passes."""
        self.claims = trio.Event()
        """Set when claims are answered."""
        self.claims.set()
        self.claiming = 0
        self.ending: AetherError | None = None
        self._clock = clock

    def give(self, task_id: str) -> None:
        self.feeds.publish("task_assignment", assignment(task_id)["task_assignment"])

    async def request(self, message: pb.UpstreamMessage, **_: object) -> Any:
        await trio.lowlevel.checkpoint()
        match message.WhichOneof("payload"):
            case "task_op":
                return await self._move(message.task_op)
            case "task_query":
                if self.looks_refused:
                    self.looks_refused -= 1
                    raise Refused("ERR_NOT_NOW", "not now")
                task_id = message.task_query.task_id
                return pb.TaskQueryResponse(success=True, task=info(self.status[task_id], task_id))
        return pb.TaskSubscriptionOperationResponse(success=True, subscription_id="s")

    async def _move(self, op: pb.TaskOperation) -> pb.TaskOperationResponse:
        if op.op == Op.CLAIM:
            self.claiming += 1
            await self.claims.wait()
            self.status[op.task_id] = RUNNING
        else:
            self.said.append((self._clock(), op.task_id, op.op, op.reason))
            self.status[op.task_id] = {Op.FAIL: FAILED, Op.COMPLETE: 3}[op.op]
        return pb.TaskOperationResponse(success=True, task=info(self.status[op.task_id], op.task_id))

    def open_feed(self, *cases: str, **options: Any) -> AbstractContextManager[Feed[Any]]:
        return self.feeds.opened(Feed(1024, lossy=False, match=options.get("match")), *cases)


@asynccontextmanager
async def open_bench() -> AsyncIterator[tuple[Gateway, JobManager]]:
    began = trio.current_time()
    gateway = Gateway(lambda: trio.current_time() - began)
    async with trio.open_nursery() as nursery:
        opened = JobManager(cast("Requester", gateway), gateway.feeds, nursery.start_soon, lambda: gateway.ending)
        gateway.give("t1")
        yield gateway, opened
        gateway.ending = ClientClosed()
        nursery.cancel_scope.cancel()


async def test_what_is_let_go_of_fails_while_the_loop_waits_for_room(autojump_clock: MockClock) -> None:
    """The loop has looked which tasks keep it waiting, and holds none of them."""
    async with open_bench() as (gateway, opened), trio.open_nursery() as nursery:
        gateway.give("t2")
        jobs = Jobs(opened, 1)
        job = await anext(jobs)
        nursery.start_soon(anext, jobs)
        await trio.sleep(FORGOTTEN_S + 1)
        assert gateway.said == []
        del job
        await trio.sleep(1)
        assert ("t1", Op.FAIL, LET_GO) in [one[1:] for one in gateway.said]


async def test_what_is_let_go_of_fails_though_it_cannot_be_looked_up_at_once(autojump_clock: MockClock) -> None:
    async with open_bench() as (gateway, opened):
        jobs = Jobs(opened, 1)
        gateway.looks_refused = 3
        job = await anext(jobs)
        del job
        await trio.sleep(60)
        assert [one[1:] for one in gateway.said] == [("t1", Op.FAIL, LET_GO)]
        gateway.give("t1")  # it is tried again, and nothing keeps it from the next loop
        async with await anext(jobs):
            pass
        assert gateway.said[-1][1:3] == ("t1", Op.COMPLETE)


async def test_a_task_is_listened_to_though_it_cannot_be_looked_up_at_once(autojump_clock: MockClock) -> None:
    async with open_bench() as (gateway, opened):
        gateway.looks_refused = 3
        async with await anext(Jobs(opened, 1)) as job:
            await job.watched.wait()
            gateway.status["t1"] = CANCELLED
            changed = pb.TaskStatusChangedEvent(from_status=RUNNING, to_status=CANCELLED)
            event = pb.TaskEvent(task_id="t1", subscription_id="s", status_changed=changed)
            gateway.feeds.publish("task_event", event)
            await trio.sleep(600)
        assert job.end is JobEnd.CANCELLED


async def test_a_claim_that_is_cancelled_again_waits_for_a_loop_as_long_as_before(autojump_clock: MockClock) -> None:
    async with open_bench() as (gateway, opened):
        gateway.claims = trio.Event()
        jobs = Jobs(opened, 1)
        for _ in range(3):
            with trio.move_on_after(UNTAKEN_S / 2):
                await anext(jobs)
        assert gateway.claiming == 3
        gateway.status["t1"] = RUNNING
        await trio.sleep(3 * UNTAKEN_S)
        cancelled_last = 3 * UNTAKEN_S / 2
        assert gateway.said == [(cancelled_last + UNTAKEN_S, "t1", Op.FAIL, STOPPED)]


async def test_a_block_that_cannot_begin_in_another_loop_has_not_begun(autojump_clock: MockClock) -> None:
    async with open_bench() as (gateway, opened):
        jobs = Jobs(opened, 1)
        job = await anext(jobs)
        raised: list[Exception] = []

        async def begin() -> None:
            try:
                await job.__aenter__()
            except RuntimeError as error:
                raised.append(error)

        thread = threading.Thread(target=lambda: asyncio.run(begin()))
        thread.start()
        thread.join()
        assert len(raised) == 1
        with trio.fail_after(2 * UNBEGUN_S):
            async with await anext(jobs) as again:
                pass
        assert (job.end, again.end, again.id) == (JobEnd.LOST, JobEnd.COMPLETED, "t1")
        assert gateway.said[0][0] == pytest.approx(UNBEGUN_S + manager.WATCH_AFTER_S)
