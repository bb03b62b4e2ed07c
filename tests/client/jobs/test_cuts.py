"""Cuts, refusals and repetitions of work, against a scripted gateway."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from aether_trio.client import AgentClient, Job, JobEnd, Refused
from aether_trio.client.jobs import job as job_module
from aether_trio.client.jobs import manager
from aether_trio.client.operations import StatusChanged, TaskEvent, TaskStatus
from aether_trio.wire import framing
from aether_trio.wire.pb import aether_pb2 as pb
from tests.client.jobs.shop import (
    asked,
    assignment,
    found,
    info,
    looked_up,
    moved,
    one_of,
    refused,
    scripted_worker,
    subscribed,
)
from tests.client.peer import Peer

Op = pb.TaskOperation
QUEUED, RUNNING, COMPLETED, FAILED, CANCELLED, WAITING_INPUT = 1, 2, 3, 4, 5, 6
ANOTHER = "ag::w::bench::2"

pytestmark = pytest.mark.usefixtures("unwatched")


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_module, "PAUSE_S", 0.001)
    monkeypatch.setattr(job_module, "LATE_PAUSE_S", 0.001)


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


@pytest.mark.parametrize(
    ("task", "end"),
    [
        pytest.param(info(COMPLETED), JobEnd.COMPLETED, id="arrived"),
        pytest.param(info(RUNNING), JobEnd.COMPLETED, id="not arrived"),
        pytest.param(info(RUNNING, assigned_to=ANOTHER), JobEnd.LOST, id="another's"),
        pytest.param(info(QUEUED), JobEnd.LOST, id="queued"),
        pytest.param(info(COMPLETED, assigned_to=ANOTHER), JobEnd.LOST, id="done by another"),
        pytest.param(None, JobEnd.LOST, id="gone"),
        pytest.param(info(CANCELLED), JobEnd.CANCELLED, id="cancelled"),
        pytest.param(info(FAILED, error="did not reconnect"), JobEnd.FAILED, id="failed"),
    ],
)
async def test_a_complete_whose_answer_was_cut_off_is_looked_up(task: pb.TaskInfo | None, end: JobEnd) -> None:
    """It is said again only if it has not arrived and the task is still ours."""
    body = Ended()
    async with scripted_worker(body) as peer:
        await moved(peer, Op.CLAIM, RUNNING)
        await asked(peer, Op.COMPLETE)
        await peer.cut()
        await looked_up(peer, task)
        if task == info(RUNNING):
            await moved(peer, Op.COMPLETE, COMPLETED)
        assert not any(isinstance(one, framing.Envelope) for one in await peer.line.end())
    assert body.end is end


async def test_a_fail_whose_answer_was_lost_is_not_said_twice() -> None:
    """It would cost a second attempt."""

    async def fail(one: AgentClient) -> None:
        with pytest.raises(ValueError, match="x"):
            async with await one_of(one):
                raise ValueError("x")

    async with scripted_worker(fail) as peer:
        await moved(peer, Op.CLAIM, RUNNING)
        assert (await asked(peer, Op.FAIL)).reason == "ValueError: x"
        await peer.cut()
        await looked_up(peer, info(QUEUED))  # the retry is under way


class Raising:
    """A client whose block raises `kind` of error, and that lives until `leave`."""

    def __init__(self, kind: type[Exception], work: Callable[[Job], Awaitable[None]] | None = None) -> None:
        self.body = Ended(work)
        self.raised = ""
        self.over = trio.Event()
        self.leave = trio.Event()
        self._kind = kind

    async def __call__(self, one: AgentClient) -> None:
        with pytest.raises(self._kind) as caught:
            await self.body(one)
        self.raised = str(caught.value)
        self.over.set()
        await self.leave.wait()


async def refused_often(peer: Peer, kind: int, count: int, why: str = "not now") -> None:
    """A last move is refused so many times, and the task looked up after each."""
    for number in range(count):
        await refused(peer, kind, f"{why} ({number})")
        await looked_up(peer, info(RUNNING))


async def test_a_complete_that_is_refused_again_and_again_becomes_a_fail() -> None:
    """The client lives on, so no gateway takes the task back."""
    body = Raising(Refused)
    async with scripted_worker(body) as peer:
        await moved(peer, Op.CLAIM, RUNNING)
        await refused_often(peer, Op.COMPLETE, job_module.REFUSALS)
        assert "COMPLETE was refused: Refused: " in (await moved(peer, Op.FAIL, FAILED)).reason
        await body.over.wait()
        body.leave.set()
    assert f"not now ({job_module.REFUSALS - 1})" in body.raised


async def test_a_refused_result_is_raised_also_when_the_failure_is_an_event_before_it_is_an_answer() -> None:
    jobs: list[Job] = []

    async def work(job: Job) -> None:
        jobs.append(job)
        await job.complete("much")

    body = Raising(Refused, work)
    changed = StatusChanged(from_status=TaskStatus.RUNNING, to_status=TaskStatus.FAILED, reason="COMPLETE was refused")
    event = TaskEvent(
        task_id="t1", emitted_at=None, workspace="w", parent_task_id="", subscription_id="s", event=changed
    )
    async with scripted_worker(body) as peer:
        await moved(peer, Op.CLAIM, RUNNING)
        await refused_often(peer, Op.COMPLETE, job_module.REFUSALS)
        await asked(peer, Op.FAIL)
        jobs[0].heard(event)
        await body.over.wait()
        body.leave.set()
    assert f"not now ({job_module.REFUSALS - 1})" in body.raised
    assert jobs[0].end is JobEnd.FAILED


@pytest.mark.parametrize("error", [None, ValueError("x")], ids=["well", "raising"])
async def test_a_fail_that_is_refused_is_said_behind_the_block_until_it_is_taken(error: Exception | None) -> None:
    async def work(job: Job) -> None:
        if error is not None:
            raise error

    body = Raising(Refused if error is None else ValueError, work)
    async with scripted_worker(body) as peer:
        await moved(peer, Op.CLAIM, RUNNING)
        if error is None:
            await refused_often(peer, Op.COMPLETE, job_module.REFUSALS)
        await refused_often(peer, Op.FAIL, job_module.REFUSALS)
        await body.over.wait()
        await refused_often(peer, Op.FAIL, 2 * job_module.REFUSALS)
        await moved(peer, Op.FAIL, FAILED)
        body.leave.set()


async def test_what_is_over_when_its_complete_was_refused_is_left_alone() -> None:
    body = Ended()
    async with scripted_worker(body) as peer:
        await moved(peer, Op.CLAIM, RUNNING)
        await refused_often(peer, Op.COMPLETE, job_module.REFUSALS - 1)
        await refused(peer, Op.COMPLETE, "for the last time")
        await looked_up(peer, info(QUEUED))
    assert body.end is JobEnd.LOST


async def test_a_task_that_is_let_go_of_is_failed_though_that_is_refused_at_first() -> None:
    leave = trio.Event()

    async def body(one: AgentClient) -> None:
        await one_of(one)
        await leave.wait()

    async with scripted_worker(body) as peer:
        await moved(peer, Op.CLAIM, RUNNING)
        await looked_up(peer, info(RUNNING))
        await refused_often(peer, Op.FAIL, 2 * job_module.REFUSALS)
        assert (await moved(peer, Op.FAIL, FAILED)).reason == manager.LET_GO
        leave.set()


@pytest.mark.parametrize(
    "why",
    [
        "ERR_CIRCUIT_OPEN: the gateway's storage does not answer: away",
        "ERR_OUTCOME_UNKNOWN: the answer to a COMMIT was lost",
    ],
)
async def test_a_gateway_whose_storage_is_away_is_asked_until_it_is_back(why: str) -> None:
    body = Ended()
    async with scripted_worker(body) as peer:
        await moved(peer, Op.CLAIM, RUNNING)
        await refused_often(peer, Op.COMPLETE, 2 * job_module.REFUSALS, why)
        await moved(peer, Op.COMPLETE, COMPLETED)
    assert body.end is JobEnd.COMPLETED


# -- CLAIM


async def test_a_claim_that_is_refused_is_passed_over() -> None:
    body = Ended()
    async with scripted_worker(body) as peer:
        await refused(peer, Op.CLAIM, "this assignment is over")
        await peer.line.tell(**assignment("t2"))
        assert (await moved(peer, Op.CLAIM, RUNNING)).task_id == "t2"
        await moved(peer, Op.COMPLETE, COMPLETED)
    assert body.end is JobEnd.COMPLETED


@pytest.mark.parametrize("was_cut", [False, True], ids=["refused", "cut"])
async def test_a_claim_that_the_gateway_has_not_made_is_said_again_while_the_task_is_ours(was_cut: bool) -> None:
    """No other worker is given the task that this one lets fall."""
    body = Ended()
    async with scripted_worker(body) as peer:
        if was_cut:
            await asked(peer, Op.CLAIM)
            await peer.cut()
        else:
            await refused(peer, Op.CLAIM, "the gateway's storage does not answer: no room on this disk")
            await looked_up(peer, info(RUNNING))
        await moved(peer, Op.CLAIM, RUNNING)
        await moved(peer, Op.COMPLETE, COMPLETED)
    assert (body.end, body.blocks) == (JobEnd.COMPLETED, 1)


async def test_what_waits_is_forgotten_at_a_cut() -> None:
    """The gateway says again what is still this worker's."""
    seen: list[str] = []

    async def body(one: AgentClient) -> None:
        async for job in one.work():
            async with job:
                seen.append(job.id)
            if job.id == "t3":
                return

    async with scripted_worker(body) as peer:
        await moved(peer, Op.CLAIM, RUNNING)
        op = await asked(peer, Op.COMPLETE)
        await peer.line.tell(**assignment("t2"))
        await trio.testing.wait_all_tasks_blocked()
        await peer.cut()
        await looked_up(peer, info(COMPLETED, op.task_id))
        await peer.line.tell(**assignment("t3"))
        assert (await moved(peer, Op.CLAIM, RUNNING)).task_id == "t3"
        await moved(peer, Op.COMPLETE, COMPLETED)
    assert seen == ["t1", "t3"]


# -- the same task twice


async def test_an_assignment_that_comes_twice_is_one_block() -> None:
    again = trio.Event()

    async def work(job: Job) -> None:
        await again.wait()

    body = Ended(work)
    async with scripted_worker(body) as peer:
        await moved(peer, Op.CLAIM, RUNNING)
        await peer.line.tell(**assignment())
        await looked_up(peer, info(RUNNING))
        again.set()
        await moved(peer, Op.COMPLETE, COMPLETED)
    assert (body.end, body.blocks) == (JobEnd.COMPLETED, 1)


async def test_a_task_that_is_assigned_anew_ends_the_old_block_before_the_new_one_begins() -> None:
    ends: list[JobEnd | None] = []
    payloads: list[str] = []
    open_blocks = 0

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

    async def body(one: AgentClient) -> None:
        async with trio.open_nursery() as nursery:
            jobs = one.work(concurrency=2)
            nursery.start_soon(work, await anext(jobs), False)
            nursery.start_soon(work, await anext(jobs), True)

    async with scripted_worker(body) as peer:
        await moved(peer, Op.CLAIM, RUNNING)
        await peer.line.tell(**assignment(payload=b"second"))
        await looked_up(peer, info(QUEUED))
        await moved(peer, Op.CLAIM, RUNNING)
        await moved(peer, Op.COMPLETE, COMPLETED)
    assert payloads == ["p", "second"]
    assert ends == [JobEnd.LOST, JobEnd.COMPLETED]


# -- PAUSE


async def paused_and_cut(peer: Peer, status: int) -> pb.TaskOperation:
    """Cut a worker off that pauses its task, which has this status afterwards."""
    await moved(peer, Op.CLAIM, RUNNING)
    await subscribed(peer)
    await looked_up(peer, info(RUNNING))
    pause = await asked(peer, Op.PAUSE)
    await peer.cut()
    # The pause is looked up, and the task subscribed to again, in either order.
    kinds = {one.WhichOneof("payload"): one for one in [await peer.line.asked(), await peer.line.asked()]}
    await found(peer, kinds["task_query"].task_query, info(status))
    await subscribed(peer, kinds["task_subscription_op"].task_subscription_op, "s2")
    return pause


async def test_a_pause_that_was_cut_is_looked_up() -> None:
    body = Ended(Job.wait_for_input)
    async with scripted_worker(body) as peer:
        await paused_and_cut(peer, WAITING_INPUT)
        await looked_up(peer, info(WAITING_INPUT))
        changed = pb.TaskStatusChangedEvent(from_status=pb.TASK_STATUS_WAITING_INPUT, to_status=pb.TASK_STATUS_RUNNING)
        await peer.line.tell(task_event=pb.TaskEvent(task_id="t1", subscription_id="s2", status_changed=changed))
        await looked_up(peer, info(RUNNING))
        await moved(peer, Op.COMPLETE, COMPLETED)
    assert body.end is JobEnd.COMPLETED


async def test_a_pause_with_an_unknown_outcome_is_said_again() -> None:
    body = Ended(Job.wait_for_input)
    async with scripted_worker(body) as peer:
        await moved(peer, Op.CLAIM, RUNNING)
        await subscribed(peer)
        await looked_up(peer, info(RUNNING))
        why = "ERR_OUTCOME_UNKNOWN: the answer to a COMMIT was lost"
        said = await asked(peer, Op.PAUSE)
        await peer.line.tell(task_op=pb.TaskOperationResponse(error=why, request_id=said.request_id))
        await looked_up(peer, info(RUNNING))
        again = await asked(peer, Op.PAUSE)
        assert again.request_id == said.request_id
        told = pb.TaskOperationResponse(success=True, task=info(RUNNING), request_id=again.request_id)
        await peer.line.tell(task_op=told)  # the input was there
        while (one := await peer.line.asked()).HasField("task_query"):
            await found(peer, one.task_query, info(RUNNING))
        assert one.task_op.op == Op.COMPLETE
        done = pb.TaskOperationResponse(success=True, task=info(COMPLETED), request_id=one.task_op.request_id)
        await peer.line.tell(task_op=done)
    assert body.end is JobEnd.COMPLETED


async def test_a_pause_that_is_said_again_is_the_same_one() -> None:
    """The input may have come meanwhile, which only the gateway knows."""

    async def next_move(peer: Peer, kind: int, status: int) -> pb.TaskOperation:
        """As `moved`; the task may be looked up for the subscription before that."""
        while (one := await peer.line.asked()).HasField("task_query"):
            await found(peer, one.task_query, info(RUNNING))
        assert one.task_op.op == kind
        told = pb.TaskOperationResponse(success=True, task=info(status), request_id=one.task_op.request_id)
        await peer.line.tell(task_op=told)
        return one.task_op

    body = Ended(Job.wait_for_input)
    async with scripted_worker(body) as peer:
        said = await paused_and_cut(peer, RUNNING)
        assert (await next_move(peer, Op.PAUSE, RUNNING)).request_id == said.request_id
        await next_move(peer, Op.COMPLETE, COMPLETED)
    assert body.end is JobEnd.COMPLETED
