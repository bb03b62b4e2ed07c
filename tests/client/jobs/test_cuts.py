"""Cuts, restarts and repetitions in the middle of work: what is in doubt is looked up, and what is
somebody else's is let go.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

import anyio
import pytest
import trio

from aether_trio.client import AgentClient, Job, JobEnd, Refused
from aether_trio.client.jobs import job as job_module
from aether_trio.client.jobs import manager
from aether_trio.client.operations import TaskStatus
from aether_trio.devtools.fault_proxy import FaultProxy, open_fault_proxy
from aether_trio.wire import framing
from aether_trio.wire.pb import aether_pb2 as pb
from tests.client.gateways import agent, open_test_gateway
from tests.client.jobs.shop import (
    LIMIT_S,
    assignment,
    info,
    known,
    looked_up,
    moved,
    one_of,
    order,
    refused,
    subscribed,
    wait_for,
    worker,
)
from tests.client.peer import Line, Peer, open_peer
from tests.helpers.gateway import open_gateway_process

Op = pb.TaskOperation
RUNNING, QUEUED, COMPLETED, FAILED, CANCELLED = 2, 1, 3, 4, 5

Body = Callable[[AgentClient], Awaitable[None]]


@pytest.fixture
def unwatched(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine must not make a task old enough to be subscribed to."""
    monkeypatch.setattr(manager, "WATCH_AFTER_S", 3600.0)


@asynccontextmanager
async def scripted(body: Body) -> AsyncIterator[tuple[Peer, Line]]:
    """A worker with this body, which has been let in and given task "t1"."""
    with trio.fail_after(LIMIT_S):
        async with open_peer() as peer, trio.open_nursery() as nursery:

            async def run() -> None:
                async with worker(peer.address, close_timeout=0.1) as one:
                    await body(one)

            nursery.start_soon(run)
            line = await peer.accept()
            await line.tell(**assignment())
            yield peer, line


async def cut(peer: Peer, line: Line) -> Line:
    """End the connection hard; the next one."""
    await trio.aclose_forcefully(line.stream)
    return await peer.accept("s2")


class Ended:
    """A body that does one task and remembers how it ended."""

    def __init__(self, work: Callable[[Job], Awaitable[None]] | None = None) -> None:
        self.end: JobEnd | None = None
        self.blocks = 0
        self._work = work

    async def __call__(self, one: AgentClient) -> None:
        async with await one_of(one) as job:
            self.blocks += 1
            if self._work is not None:
                await self._work(job)
        self.end = job.end


# -- COMPLETE and FAIL


@pytest.mark.usefixtures("unwatched")
async def test_a_complete_whose_answer_was_lost_is_looked_up() -> None:
    body = Ended()
    async with scripted(body) as (peer, first):
        line = first
        await moved(line, Op.CLAIM, RUNNING)
        assert (await line.asked()).task_op.op == Op.COMPLETE
        line = await cut(peer, line)
        await looked_up(line, info(COMPLETED))
        assert [one for one in await line.end() if isinstance(one, framing.Envelope)] == []
    assert body.end is JobEnd.COMPLETED


@pytest.mark.usefixtures("unwatched")
async def test_a_complete_that_did_not_arrive_is_said_again() -> None:
    body = Ended()
    async with scripted(body) as (peer, first):
        line = first
        await moved(line, Op.CLAIM, RUNNING)
        assert (await line.asked()).task_op.op == Op.COMPLETE
        line = await cut(peer, line)
        await looked_up(line, info(RUNNING))
        await moved(line, Op.COMPLETE, COMPLETED)
        await line.end()
    assert body.end is JobEnd.COMPLETED


@pytest.mark.parametrize(
    ("found", "end"),
    [
        (info(RUNNING, assigned_to="ag::w::bench::2"), JobEnd.LOST),
        (info(QUEUED), JobEnd.LOST),
        (info(COMPLETED, assigned_to="ag::w::bench::2"), JobEnd.LOST),
        (None, JobEnd.LOST),
        (info(CANCELLED), JobEnd.CANCELLED),
        (info(FAILED, error="did not reconnect"), JobEnd.FAILED),
    ],
)
@pytest.mark.usefixtures("unwatched")
async def test_what_is_not_ours_any_more_is_let_go(found: pb.TaskInfo | None, end: JobEnd) -> None:
    body = Ended()
    async with scripted(body) as (peer, first):
        line = first
        await moved(line, Op.CLAIM, RUNNING)
        assert (await line.asked()).task_op.op == Op.COMPLETE
        line = await cut(peer, line)
        await looked_up(line, found)
        await line.end()
    assert body.end is end


@pytest.mark.usefixtures("unwatched")
async def test_a_fail_whose_answer_was_lost_is_not_said_twice() -> None:
    """It would cost a second attempt."""

    async def fail(job: Job) -> None:
        raise ValueError("x")

    body = Ended(fail)

    async def survive(one: AgentClient) -> None:
        with pytest.raises(ValueError, match="x"):
            await body(one)

    async with scripted(survive) as (peer, first):
        line = first
        await moved(line, Op.CLAIM, RUNNING)
        assert (await line.asked()).task_op.reason == "ValueError: x"
        line = await cut(peer, line)
        await looked_up(line, info(QUEUED))  # the retry is under way
        await line.end()


class Raising:
    """A client whose block ends with `kind` of error, and which lives on until `leave`."""

    def __init__(self, kind: type[Exception], work: Callable[[Job], Awaitable[None]] | None = None) -> None:
        self.body = Ended(work)
        self.raised: list[str] = []
        self.over = trio.Event()
        self.leave = trio.Event()
        self._kind = kind

    async def __call__(self, one: AgentClient) -> None:
        with pytest.raises(self._kind) as caught:
            await self.body(one)
        self.raised.append(str(caught.value))
        self.over.set()
        await self.leave.wait()


async def refused_often(line: Line, kind: int, count: int) -> None:
    """A last move is refused so many times, and the task looked up after each."""
    for number in range(count):
        await refused(line, kind, f"not now ({number})")
        await looked_up(line, info(RUNNING))


@pytest.mark.usefixtures("unwatched")
async def test_a_complete_that_is_refused_again_and_again_becomes_a_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client lives on, so no gateway takes the task back."""
    monkeypatch.setattr(job_module, "PAUSE_S", 0.001)
    monkeypatch.setattr(job_module, "LATE_PAUSE_S", 0.001)
    body = Raising(Refused)
    async with scripted(body) as (_, line):
        await moved(line, Op.CLAIM, RUNNING)
        await refused_often(line, Op.COMPLETE, job_module.REFUSALS)
        assert "COMPLETE was refused: Refused: " in (await moved(line, Op.FAIL, FAILED)).reason
        await body.over.wait()
        body.leave.set()
        await line.end()
    (raised,) = body.raised
    assert f"not now ({job_module.REFUSALS - 1})" in raised


@pytest.mark.parametrize("error", [None, ValueError("x")], ids=["well", "raising"])
@pytest.mark.usefixtures("unwatched")
async def test_a_fail_that_is_refused_is_said_behind_the_block_until_it_is_taken(
    monkeypatch: pytest.MonkeyPatch, error: Exception | None
) -> None:
    monkeypatch.setattr(job_module, "PAUSE_S", 0.001)
    monkeypatch.setattr(job_module, "LATE_PAUSE_S", 0.001)

    async def work(job: Job) -> None:
        if error is not None:
            raise error

    body = Raising(Refused if error is None else ValueError, work)
    async with scripted(body) as (_, line):
        await moved(line, Op.CLAIM, RUNNING)
        if error is None:
            await refused_often(line, Op.COMPLETE, job_module.REFUSALS)
        await refused_often(line, Op.FAIL, job_module.REFUSALS)
        await body.over.wait()
        await refused_often(line, Op.FAIL, 2 * job_module.REFUSALS)
        await moved(line, Op.FAIL, FAILED)
        body.leave.set()
        await line.end()


@pytest.mark.usefixtures("unwatched")
async def test_what_is_over_when_its_complete_was_refused_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_module, "PAUSE_S", 0.001)
    monkeypatch.setattr(job_module, "LATE_PAUSE_S", 0.001)
    body = Ended()
    async with scripted(body) as (_, line):
        await moved(line, Op.CLAIM, RUNNING)
        await refused_often(line, Op.COMPLETE, job_module.REFUSALS - 1)
        await refused(line, Op.COMPLETE, "for the last time")
        await looked_up(line, info(QUEUED))
        await line.end()
    assert body.end is JobEnd.LOST


@pytest.mark.usefixtures("unwatched")
async def test_a_task_that_is_let_go_of_is_failed_though_that_is_refused_at_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(job_module, "PAUSE_S", 0.001)
    monkeypatch.setattr(job_module, "LATE_PAUSE_S", 0.001)
    leave = trio.Event()

    async def body(one: AgentClient) -> None:
        await one_of(one)
        await leave.wait()

    async with scripted(body) as (_, line):
        await moved(line, Op.CLAIM, RUNNING)
        await looked_up(line, info(RUNNING))
        await refused_often(line, Op.FAIL, 2 * job_module.REFUSALS)
        assert (await moved(line, Op.FAIL, FAILED)).reason == manager.LET_GO
        leave.set()
        await line.end()


@pytest.mark.usefixtures("unwatched")
async def test_a_gateway_whose_storage_is_away_is_asked_until_it_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_module, "PAUSE_S", 0.001)
    monkeypatch.setattr(job_module, "LATE_PAUSE_S", 0.001)
    body = Ended()
    async with scripted(body) as (_, line):
        await moved(line, Op.CLAIM, RUNNING)
        for _ in range(2 * job_module.REFUSALS):
            await refused(line, Op.COMPLETE, "ERR_CIRCUIT_OPEN: the gateway's storage does not answer: away")
            await looked_up(line, info(RUNNING))
        await moved(line, Op.COMPLETE, COMPLETED)
        await line.end()
    assert body.end is JobEnd.COMPLETED


# -- CLAIM


@pytest.mark.usefixtures("unwatched")
async def test_a_claim_that_is_refused_is_passed_over() -> None:
    body = Ended()
    async with scripted(body) as (_, line):
        await refused(line, Op.CLAIM, "this assignment is over")
        await line.tell(**assignment("t2"))
        op = await moved(line, Op.CLAIM, RUNNING)
        assert op.task_id == "t2"
        await moved(line, Op.COMPLETE, COMPLETED)
        await line.end()
    assert body.end is JobEnd.COMPLETED


@pytest.mark.usefixtures("unwatched")
async def test_a_claim_that_the_gateway_could_not_make_is_said_again_while_the_task_is_ours() -> None:
    """What a worker is given and lets fall, nobody else is given."""
    body = Ended()
    async with scripted(body) as (_, line):
        await refused(line, Op.CLAIM, "the gateway's storage does not answer: no room on this disk")
        await looked_up(line, info(RUNNING))
        await moved(line, Op.CLAIM, RUNNING)
        await moved(line, Op.COMPLETE, COMPLETED)
        await line.end()
    assert body.end is JobEnd.COMPLETED


@pytest.mark.usefixtures("unwatched")
async def test_a_claim_that_was_cut_is_said_again() -> None:
    body = Ended()
    async with scripted(body) as (peer, first):
        line = first
        assert (await line.asked()).task_op.op == Op.CLAIM
        line = await cut(peer, line)
        await moved(line, Op.CLAIM, RUNNING)
        await moved(line, Op.COMPLETE, COMPLETED)
        await line.end()
    assert (body.end, body.blocks) == (JobEnd.COMPLETED, 1)


@pytest.mark.usefixtures("unwatched")
async def test_what_waits_is_forgotten_at_a_cut() -> None:
    """The gateway says again what is still this worker's."""
    seen: list[str] = []

    async def body(one: AgentClient) -> None:
        async for job in one.work():
            async with job:
                seen.append(job.id)
            if job.id == "t3":
                return

    async with scripted(body) as (peer, first):
        line = first
        await moved(line, Op.CLAIM, RUNNING)
        op = (await line.asked()).task_op
        await line.tell(**assignment("t2"))
        await trio.testing.wait_all_tasks_blocked()
        line = await cut(peer, line)
        await looked_up(line, info(COMPLETED, op.task_id))
        await line.tell(**assignment("t3"))
        assert (await moved(line, Op.CLAIM, RUNNING)).task_id == "t3"
        await moved(line, Op.COMPLETE, COMPLETED)
        await line.end()
    assert seen == ["t1", "t3"]


# -- the same task twice


@pytest.mark.usefixtures("unwatched")
async def test_an_assignment_that_comes_twice_is_one_block() -> None:
    again = trio.Event()

    async def work(job: Job) -> None:
        await again.wait()

    body = Ended(work)
    async with scripted(body) as (_, line):
        await moved(line, Op.CLAIM, RUNNING)
        await line.tell(**assignment())
        await looked_up(line, info(RUNNING))
        again.set()
        await moved(line, Op.COMPLETE, COMPLETED)
        await line.end()
    assert (body.end, body.blocks) == (JobEnd.COMPLETED, 1)


@pytest.mark.usefixtures("unwatched")
async def test_a_task_that_is_assigned_anew_ends_the_old_block_before_the_new_one_begins() -> None:
    ends: list[JobEnd | None] = []
    payloads: list[str] = []
    open_blocks = 0

    async def body(one: AgentClient) -> None:
        nonlocal open_blocks
        async with trio.open_nursery() as nursery:

            async def work(job: Job, last: bool) -> None:
                nonlocal open_blocks
                async with job:
                    open_blocks += 1
                    assert open_blocks == 1
                    payloads.append(job.text)
                    try:
                        if not last:
                            await trio.sleep_forever()
                    finally:
                        open_blocks -= 1
                ends.append(job.end)

            jobs = one.work(concurrency=2)
            nursery.start_soon(work, await anext(jobs), False)
            nursery.start_soon(work, await anext(jobs), True)

    async with scripted(body) as (_, line):
        await moved(line, Op.CLAIM, RUNNING)
        await line.tell(**assignment(payload=b"second"))
        await looked_up(line, info(QUEUED))
        await moved(line, Op.CLAIM, RUNNING)
        await moved(line, Op.COMPLETE, COMPLETED)
        await line.end()
    assert payloads == ["p", "second"]
    assert ends == [JobEnd.LOST, JobEnd.COMPLETED]


@pytest.mark.usefixtures("unwatched")
async def test_a_pause_that_was_cut_is_looked_up() -> None:
    async def work(job: Job) -> None:
        await job.wait_for_input()

    body = Ended(work)
    async with scripted(body) as (peer, first):
        line = first
        await moved(line, Op.CLAIM, RUNNING)
        await subscribed(line)
        await looked_up(line, info(RUNNING))
        assert (await line.asked()).task_op.op == Op.PAUSE
        line = await cut(peer, line)
        # The pause is looked up, and the task subscribed to again.
        asked = [await line.asked(), await line.asked()]
        kinds = {one.WhichOneof("payload"): one for one in asked}
        query, op = kinds["task_query"].task_query, kinds["task_subscription_op"].task_subscription_op
        await line.tell(task_query=pb.TaskQueryResponse(success=True, task=info(6), request_id=query.request_id))
        await line.tell(
            task_subscription_response=pb.TaskSubscriptionOperationResponse(
                success=True, client_request_id=op.client_request_id, subscription_id="s2"
            )
        )
        await looked_up(line, info(6))
        changed = pb.TaskStatusChangedEvent(from_status=pb.TASK_STATUS_WAITING_INPUT, to_status=pb.TASK_STATUS_RUNNING)
        await line.tell(task_event=pb.TaskEvent(task_id="t1", subscription_id="s2", status_changed=changed))
        await looked_up(line, info(RUNNING))
        await moved(line, Op.COMPLETE, COMPLETED)
        await line.end()
    assert body.end is JobEnd.COMPLETED


@pytest.mark.usefixtures("unwatched")
async def test_a_pause_that_is_said_again_is_the_same_one() -> None:
    """The input that it waited for may have come meanwhile, which only the gateway knows."""

    async def work(job: Job) -> None:
        await job.wait_for_input()

    body = Ended(work)
    async with scripted(body) as (peer, first):
        line = first
        await moved(line, Op.CLAIM, RUNNING)
        await subscribed(line)
        await looked_up(line, info(RUNNING))
        said = (await line.asked()).task_op
        assert said.op == Op.PAUSE
        line = await cut(peer, line)
        asked = [await line.asked(), await line.asked()]
        kinds = {one.WhichOneof("payload"): one for one in asked}
        query, op = kinds["task_query"].task_query, kinds["task_subscription_op"].task_subscription_op
        await line.tell(task_query=pb.TaskQueryResponse(success=True, task=info(RUNNING), request_id=query.request_id))
        await line.tell(
            task_subscription_response=pb.TaskSubscriptionOperationResponse(
                success=True, client_request_id=op.client_request_id, subscription_id="s2"
            )
        )
        again, looked = None, 0
        # The task is looked up for the subscription, too, before or after that.
        while again is None:
            one = await line.asked()
            if one.WhichOneof("payload") == "task_op":
                again = one.task_op
            else:
                looked += 1
                told = pb.TaskQueryResponse(success=True, task=info(RUNNING), request_id=one.task_query.request_id)
                await line.tell(task_query=told)
        assert again.op == Op.PAUSE
        assert again.request_id == said.request_id
        response = pb.TaskOperationResponse(success=True, task=info(RUNNING, "t1"), request_id=again.request_id)
        await line.tell(task_op=response)
        while (one := await line.asked()).WhichOneof("payload") == "task_query":
            told = pb.TaskQueryResponse(success=True, task=info(RUNNING), request_id=one.task_query.request_id)
            await line.tell(task_query=told)
        assert one.task_op.op == Op.COMPLETE
        told = pb.TaskOperationResponse(success=True, task=info(COMPLETED), request_id=one.task_op.request_id)
        await line.tell(task_op=told)
        await line.end()
    assert body.end is JobEnd.COMPLETED


# -- real gateways


@asynccontextmanager
async def behind_a_proxy() -> AsyncIterator[tuple[AgentClient, AgentClient, FaultProxy, str]]:
    """(creator, worker, the proxy between the worker and the gateway, the gateway's own address)."""
    with trio.fail_after(LIMIT_S):
        async with open_test_gateway() as gateway, open_fault_proxy(gateway.address) as proxy:
            direct = f"aether://{gateway.address}"
            async with agent(direct, "boss") as boss, worker(f"aether://{proxy.address}") as one:
                yield boss, one, proxy, direct


async def test_a_block_outlives_a_cut() -> None:
    async with behind_a_proxy() as (boss, one, proxy, _):
        await known(boss, one)
        ids = [await order(boss, str(number)) for number in range(3)]
        seen = []
        async for job in one.work():
            async with job:
                seen.append(job.text)
                connections = one.connections
                proxy.cut_all()
                while one.connections == connections:
                    await trio.sleep(0.005)
                await job.progress(0.5)
            assert job.end is JobEnd.COMPLETED
            if len(seen) == 3:
                break
        assert seen == ["0", "1", "2"]
        for task_id in ids:
            assert (await boss.tasks.get(task_id)).status is TaskStatus.COMPLETED


@pytest.mark.parametrize("watched", [False, True])
async def test_what_happened_while_the_worker_was_away_is_found_when_it_is_back(*, watched: bool) -> None:
    async with behind_a_proxy() as (boss, one, proxy, _):
        task_id = await order(boss)
        job = await one_of(one)
        async with job:
            if watched:
                await job.watched.wait()
            proxy.cut_all()
            await boss.tasks.cancel(task_id)
            await boss.tasks.retry(task_id)
            await trio.sleep_forever()
        assert job.end in (JobEnd.LOST, JobEnd.CANCELLED)
        async with await one_of(one) as again:
            assert again.id == task_id
        assert (await boss.tasks.get(task_id)).status is TaskStatus.COMPLETED


async def test_a_task_that_went_to_another_worker_meanwhile() -> None:
    async with behind_a_proxy() as (boss, one, proxy, direct):
        task_id = await order(boss)
        job = await one_of(one)
        async with worker(direct, "2") as two:
            async with job:
                proxy.target = tuple  # the first one cannot come back
                proxy.cut_all()
                while (await boss.tasks.get(task_id)).disconnected_at is None:
                    await trio.sleep(0.005)
                await boss.tasks.cancel(task_id)
                await boss.tasks.retry(task_id)
                other = await one_of(two)
                assert other.id == task_id
                proxy.target = direct.removeprefix("aether://")
                await trio.sleep_forever()
            assert job.end in (JobEnd.LOST, JobEnd.CANCELLED)
            async with other:
                pass
            assert other.end is JobEnd.COMPLETED
            assert (await boss.tasks.get(task_id)).assigned_to == two.topic


@pytest.mark.crash
async def test_a_gateway_that_is_killed_in_the_middle_of_work() -> None:
    """Every task is done, those in hand go on, and none is done twice whose COMPLETE was answered."""
    with trio.fail_after(300):
        async with open_gateway_process() as gateway:
            address = f"aether://{gateway.address}"
            async with (
                agent(address, "boss", connect_timeout=LIMIT_S) as boss,
                worker(address, connect_timeout=LIMIT_S) as one,
            ):
                ids = [await order(boss, str(number)) for number in range(40)]
                done: list[str] = []
                killed = trio.Event()

                async def handle(job: Job) -> None:
                    if len(done) >= 10 and not killed.is_set():
                        killed.set()
                        connections = one.connections
                        await trio.to_thread.run_sync(gateway.kill)
                        await trio.to_thread.run_sync(gateway.restart)
                        while one.connections == connections:
                            await trio.sleep(0.01)
                    await anyio.sleep(0.002)
                    done.append(job.text)

                async with trio.open_nursery() as nursery:

                    async def run() -> None:
                        await one.run_tasks(handle, concurrency=4)

                    nursery.start_soon(run)
                    for task_id in ids:
                        await wait_for(boss, task_id, TaskStatus.COMPLETED)
                    nursery.cancel_scope.cancel()
                assert killed.is_set()
                assert sorted(done, key=int) == [str(number) for number in range(40)]


@pytest.mark.crash
async def test_inputs_that_were_accepted_wake_their_tasks_though_the_gateway_is_killed() -> None:
    with trio.fail_after(300):
        async with open_gateway_process() as gateway:
            address = f"aether://{gateway.address}"
            async with (
                agent(address, "boss", connect_timeout=LIMIT_S) as boss,
                worker(address, connect_timeout=LIMIT_S, worker_tasks=20) as one,
            ):
                ids = [await order(boss, str(number)) for number in range(20)]

                async def handle(job: Job) -> None:
                    await job.wait_for_input({"n": "1"})
                    await job.wait_for_input({"n": "2"})

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(partial(one.run_tasks, handle, concurrency=20))
                    for task_id in ids:
                        await wait_for(boss, task_id, TaskStatus.WAITING_INPUT)
                    for number in ("2", "1"):
                        for task_id in ids:
                            await boss.send_input(task_id, {"n": number})
                    await trio.to_thread.run_sync(gateway.kill)
                    await trio.to_thread.run_sync(gateway.restart)
                    for task_id in ids:
                        await wait_for(boss, task_id, TaskStatus.COMPLETED)
                    nursery.cancel_scope.cancel()
