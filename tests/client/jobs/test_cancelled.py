"""Test that a client keeps no task whose loop or block was cancelled."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

import anyio
import pytest
import trio

from aether_trio.client import AgentClient, Job, JobEnd
from aether_trio.client.jobs import job as job_module
from aether_trio.client.jobs import manager
from aether_trio.client.jobs.job import STOPPED
from aether_trio.client.operations import TaskStatus
from aether_trio.wire import framing
from aether_trio.wire.pb import aether_pb2 as pb
from tests.client.gateways import run_on
from tests.client.jobs.shop import (
    LIMIT_S,
    asked,
    assignment,
    info,
    looked_up,
    moved,
    one_of,
    ordered,
    scripted_worker,
    wait_until_over,
    with_shop,
    worker,
)
from tests.client.peer import Peer, open_peer

BACKENDS = ["trio", "asyncio"]
Op = pb.TaskOperation
Work = Callable[[AgentClient], Awaitable[None]]
QUEUED, RUNNING, COMPLETED, FAILED, HIBERNATED = 1, 2, 3, 4, 9


pytestmark = pytest.mark.usefixtures("unwatched")


# -- with a gateway


@with_shop()
async def test_cancelled_by_its_last_line(boss: AgentClient, one: AgentClient) -> None:
    job = await ordered(boss, one)
    with anyio.CancelScope() as scope:
        async with job:
            scope.cancel()
    assert scope.cancelled_caught
    assert job.end is JobEnd.COMPLETED
    assert (await boss.tasks.get(job.id)).status is TaskStatus.COMPLETED


@with_shop()
async def test_cancelled_behind_its_last_line(boss: AgentClient, one: AgentClient) -> None:
    """The first error is what the task has failed with, and the cancellation goes on."""
    job = await ordered(boss, one)
    with anyio.CancelScope() as scope:
        async with job:
            scope.cancel()
            raise ValueError("x")
    assert scope.cancelled_caught
    assert (await boss.tasks.get(job.id)).error == "ValueError: x"


# -- at a certain moment, with a scripted one


class Shift:
    """A client whose first work is cancelled by `cancel`, and that lives until `end`."""

    client: AgentClient
    peer: Peer
    nursery: trio.Nursery

    def __init__(self, work: Work) -> None:
        self.cancelled = trio.Event()
        self._leave = trio.Event()
        self._scope = trio.CancelScope()
        self.cancel = self._scope.cancel
        self._work = work

    async def __call__(self, one: AgentClient) -> None:
        self.client = one
        with self._scope:
            await self._work(one)
        self.cancelled.set()
        await self._leave.wait()

    async def does(self, work: Work) -> None:
        """Let the client do this as well, with a task that it claims and completes."""
        self.nursery.start_soon(work, self.client)
        await moved(self.peer, Op.CLAIM, RUNNING)
        await moved(self.peer, Op.COMPLETE, COMPLETED)

    async def end(self) -> list[framing.Event]:
        """Let the client leave; give what it has said that the test has not read."""
        await self.cancelled.wait()
        self._leave.set()
        return await self.peer.line.end()


@asynccontextmanager
async def open_shift(work: Work) -> AsyncIterator[tuple[Shift, Peer]]:
    """Let a client in that does `work`, and give it a task; it leaves with the block."""
    shift = Shift(work)
    async with scripted_worker(shift) as shift.peer, trio.open_nursery() as shift.nursery:
        yield shift, shift.peer
        await shift.end()


async def one_block(one: AgentClient) -> None:
    async with await one_of(one):
        pass


async def failing_block(one: AgentClient) -> None:
    async with await one_of(one):
        raise ValueError("x")


async def one_claim(one: AgentClient) -> None:
    await one_of(one)


@pytest.mark.parametrize(
    ("work", "kind", "end"),
    [(one_block, Op.COMPLETE, COMPLETED), (failing_block, Op.FAIL, FAILED)],
    ids=["complete", "fail"],
)
@pytest.mark.parametrize("arrived", [False, True])
async def test_a_cancellation_while_the_end_is_under_way(work: Work, kind: int, end: int, *, arrived: bool) -> None:
    """An unanswered move is looked up, and repeated only if it has not arrived."""
    async with open_shift(work) as (shift, peer):
        await moved(peer, Op.CLAIM, RUNNING)
        first = await asked(peer, kind)
        shift.cancel()
        await looked_up(peer, info(end if arrived else RUNNING))
        if not arrived:
            again = await moved(peer, kind, end)
            assert again.reason == first.reason


async def cancelled_twice(work: Callable[[Job], Awaitable[None]], heard: threading.Event, address: str) -> None:
    """By asyncio itself, whose cancellations no shield of anyio's holds off."""
    async with worker(address, close_timeout_s=0.1) as one:
        job = await one_of(one)
        child = asyncio.create_task(work(job))
        while not job.entered:
            await asyncio.sleep(0.005)
        for _ in range(2):
            while not heard.is_set():
                await asyncio.sleep(0.005)
            heard.clear()
            child.cancel()
        await asyncio.wait([child])
        assert child.cancelled()
        await wait_until_over(job)
        assert job.end is JobEnd.FAILED


async def for_ever(job: Job) -> None:
    async with job:
        await asyncio.sleep(3600)


async def failing(job: Job) -> None:
    async with job:
        raise ValueError("x")


@pytest.mark.parametrize(("work", "reason"), [(for_ever, STOPPED), (failing, "ValueError: x")])
async def test_a_second_cancellation_while_the_end_is_sent(work: Callable[[Job], Awaitable[None]], reason: str) -> None:
    """The client lives on, so it must tell the gateway, behind the block."""
    heard = threading.Event()
    with trio.fail_after(LIMIT_S):
        async with open_peer() as peer, trio.open_nursery() as nursery:
            nursery.start_soon(run_on, "asyncio", partial(cancelled_twice, work, heard), peer.address)
            line = await peer.accept()
            await line.tell(**assignment())
            await moved(peer, Op.CLAIM, RUNNING)
            if work is for_ever:
                heard.set()
            await asked(peer, Op.FAIL)
            heard.set()
            if work is failing:
                # The lookup of the first cancellation.
                assert (await line.asked()).HasField("task_query")
                heard.set()
            await looked_up(peer, info(RUNNING))
            assert (await moved(peer, Op.FAIL, FAILED)).reason == reason
            await line.end()


async def test_what_could_not_be_said_in_time_is_said_behind_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client lives on, so it must tell the gateway, and not take the task before."""
    monkeypatch.setattr(job_module, "LAST_WORDS_S", 0.01)

    async def work(one: AgentClient) -> None:
        async with await one_of(one):
            shift.cancel()
            await trio.sleep_forever()

    async with open_shift(work) as (shift, peer):
        await moved(peer, Op.CLAIM, RUNNING)
        assert (await asked(peer, Op.FAIL)).reason == STOPPED
        await shift.cancelled.wait()
        await peer.cut()
        await peer.line.tell(**assignment())
        await looked_up(peer, info(RUNNING))
        assert (await moved(peer, Op.FAIL, FAILED)).reason == STOPPED


@pytest.mark.parametrize("concurrency", [1, 2])
async def test_a_task_whose_claim_was_cancelled_is_the_next_ones(concurrency: int) -> None:
    ends: list[tuple[str, JobEnd | None]] = []
    first = trio.CancelScope()

    async def work(one: AgentClient) -> None:
        jobs = one.work(concurrency=concurrency)
        with first:
            await anext(jobs)
        async with await anext(jobs) as job:
            pass
        ends.append((job.id, job.end))

    async with open_shift(work) as (_shift, peer):
        await asked(peer, Op.CLAIM)
        first.cancel()
        await moved(peer, Op.CLAIM, RUNNING)
        await moved(peer, Op.COMPLETE, COMPLETED)
    assert ends == [("t1", JobEnd.COMPLETED)]


@pytest.mark.parametrize("status", [RUNNING, QUEUED])
async def test_a_task_of_a_cancelled_claim_that_no_loop_takes(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    """A claimed task fails; another one waits for a loop of this client."""
    monkeypatch.setattr(manager, "UNTAKEN_S", 0.01)
    async with open_shift(one_claim) as (shift, peer):
        await asked(peer, Op.CLAIM)
        shift.cancel()
        await looked_up(peer, info(status))
        if status == RUNNING:
            assert (await moved(peer, Op.FAIL, FAILED)).reason == STOPPED
        else:
            await shift.does(one_block)


@pytest.mark.parametrize("task", [None, info(RUNNING, assigned_to="ag::w::bench::2")], ids=["gone", "another's"])
async def test_a_task_whose_claim_was_cancelled_and_that_is_not_ours_any_more(
    monkeypatch: pytest.MonkeyPatch, task: pb.TaskInfo | None
) -> None:
    """It is left alone, and worked on when it is assigned anew."""
    monkeypatch.setattr(manager, "UNTAKEN_S", 0.01)
    async with open_shift(one_claim) as (shift, peer):
        await asked(peer, Op.CLAIM)
        shift.cancel()
        await shift.cancelled.wait()
        await looked_up(peer, task)
        await peer.line.tell(**assignment(payload=b"anew"))
        await shift.does(one_block)


@pytest.mark.parametrize("loop", [False, True], ids=["no loop", "another loop"])
async def test_a_task_whose_claim_was_cancelled_before_a_cut(monkeypatch: pytest.MonkeyPatch, *, loop: bool) -> None:
    """The claim has arrived, so no gateway tells of the task again."""
    monkeypatch.setattr(manager, "UNTAKEN_S", LIMIT_S if loop else 0.01)
    async with open_shift(one_claim) as (shift, peer):
        await asked(peer, Op.CLAIM)
        shift.cancel()
        await shift.cancelled.wait()
        await peer.cut()
        if loop:
            await shift.does(one_block)
        else:
            await looked_up(peer, info(RUNNING))
            assert (await moved(peer, Op.FAIL, FAILED)).reason == STOPPED


async def test_a_task_that_is_assigned_anew_after_its_claim_was_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The new assignment waits for a loop without a limit."""
    monkeypatch.setattr(manager, "UNTAKEN_S", 0.01)
    found: list[bytes] = []

    async def block(one: AgentClient) -> None:
        async with await one_of(one) as job:
            found.append(job.payload)

    async with open_shift(one_claim) as (shift, peer):
        await asked(peer, Op.CLAIM)
        shift.cancel()
        await peer.line.tell(**assignment(payload=b"anew"))
        await shift.cancelled.wait()
        another = pb.UpstreamMessage(task_op=Op(op=Op.CLAIM, task_id="another"))
        shift.nursery.start_soon(shift.client.request, another)
        await trio.sleep(0.1)
        # The claim of "another": nothing was asked about the old one.
        await moved(peer, Op.CLAIM, RUNNING)
        await shift.does(block)
    assert found == [b"anew"]


async def test_a_cancelled_hibernation_that_has_arrived_is_left_asleep() -> None:
    async def work(one: AgentClient) -> None:
        async with await one_of(one) as job:
            await job.hibernate(b"s")

    async with open_shift(work) as (shift, peer):
        await moved(peer, Op.CLAIM, RUNNING)
        save = (await peer.line.asked()).checkpoint_op
        await peer.line.tell(checkpoint=pb.CheckpointResponse(success=True, request_id=save.request_id))
        await asked(peer, Op.PAUSE)
        shift.cancel()
        await looked_up(peer, info(HIBERNATED))
        assert [one for one in await shift.end() if isinstance(one, framing.Envelope)] == []


@pytest.mark.parametrize("status", [RUNNING, HIBERNATED])
async def test_a_hibernation_whose_answer_a_cut_has_taken(status: int) -> None:
    """It is said again, as the same one, if it has not arrived."""
    ends: list[JobEnd | None] = []

    async def work(one: AgentClient) -> None:
        async with await one_of(one) as job:
            await job.hibernate(b"s")
        ends.append(job.end)

    async with open_shift(work) as (shift, peer):
        await moved(peer, Op.CLAIM, RUNNING)
        save = (await peer.line.asked()).checkpoint_op
        await peer.line.tell(checkpoint=pb.CheckpointResponse(success=True, request_id=save.request_id))
        said = await asked(peer, Op.PAUSE)
        await peer.cut()
        await looked_up(peer, info(status))
        if status == RUNNING:
            assert (await moved(peer, Op.PAUSE, HIBERNATED)).request_id == said.request_id
        assert [one for one in await shift.end() if isinstance(one, framing.Envelope)] == []
    assert ends == [JobEnd.HIBERNATED]
