"""A task that a loop or a block was cancelled on is never left RUNNING in the hands of a client that goes on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

import anyio
import pytest
import trio

from aether_trio.client import AgentClient, JobEnd
from aether_trio.client.operations import TaskStatus
from aether_trio.client.work import bench, held
from aether_trio.client.work.held import STOPPED
from aether_trio.wire import framing
from aether_trio.wire.pb import aether_pb2 as pb
from tests.client.gateways import open_test_gateway, run_on
from tests.client.peer import Line, open_peer
from tests.client.work.shop import (
    LIMIT_S,
    assignment,
    info,
    looked_up,
    moved,
    one_of,
    open_shop,
    order,
    worker,
)

BACKENDS = ["trio", "asyncio"]
Op = pb.TaskOperation
QUEUED, RUNNING, COMPLETED, FAILED, HIBERNATED = 1, 2, 3, 4, 9


@pytest.fixture(autouse=True)
def unwatched(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine must not make a task old enough to be subscribed to."""
    monkeypatch.setattr(bench, "WATCH_AFTER_S", 3600.0)


# -- with a gateway


async def cancelled_by_its_last_line(address: str) -> None:
    async with open_shop(address) as (boss, one):
        task_id = await order(boss)
        job = await one_of(one)
        with anyio.CancelScope() as scope:
            async with job:
                scope.cancel()
        assert scope.cancelled_caught
        assert job.end is JobEnd.COMPLETED
        assert (await boss.tasks.get(task_id)).status is TaskStatus.COMPLETED


async def cancelled_behind_its_last_line(address: str) -> None:
    """The first error is what the task has failed with, and the cancellation goes on."""
    async with open_shop(address) as (boss, one):
        task_id = await order(boss)
        job = await one_of(one)
        with anyio.CancelScope() as scope:
            async with job:
                scope.cancel()
                raise ValueError("x")
        assert scope.cancelled_caught
        assert (await boss.tasks.get(task_id)).error == "ValueError: x"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "body", [cancelled_by_its_last_line, cancelled_behind_its_last_line], ids=lambda body: body.__name__
)
async def test_cancelled(backend: str, body: Callable[[str], Awaitable[None]]) -> None:
    async with open_test_gateway() as gateway:
        await run_on(backend, partial(body), f"aether://{gateway.address}")


# -- at a certain moment, with a scripted one


class Shift:
    """A client whose first piece of work is cancelled by `cancel`, and which lives on until `leave`."""

    def __init__(self, work: Callable[[AgentClient], Awaitable[None]]) -> None:
        self.leave = trio.Event()
        self.cancelled = trio.Event()
        self.scope = trio.CancelScope()
        self.cancel = self.scope.cancel
        self._work = work

    async def run(self, address: str) -> None:
        async with worker(address, close_timeout=0.1) as one:
            with self.scope:
                await self._work(one)
            self.cancelled.set()
            await self.leave.wait()


async def one_block(one: AgentClient) -> None:
    async with await one_of(one):
        pass


async def failing_block(one: AgentClient) -> None:
    async with await one_of(one):
        raise ValueError("x")


async def asked(line: Line, kind: int) -> pb.TaskOperation:
    op = (await line.asked()).task_op
    assert op.op == kind, op
    return op


@pytest.mark.parametrize(
    ("work", "kind", "end"),
    [(one_block, Op.COMPLETE, COMPLETED), (failing_block, Op.FAIL, FAILED)],
    ids=["complete", "fail"],
)
@pytest.mark.parametrize("arrived", [False, True])
async def test_a_cancellation_while_the_last_word_is_under_way(
    work: Callable[[AgentClient], Awaitable[None]], kind: int, end: int, *, arrived: bool
) -> None:
    """What was said and not answered is looked up, and said again only if it has not arrived."""
    with trio.fail_after(LIMIT_S):
        async with open_peer() as peer, trio.open_nursery() as nursery:
            shift = Shift(work)
            nursery.start_soon(shift.run, peer.address)
            line = await peer.accept()
            await line.tell(**assignment())
            await moved(line, Op.CLAIM, RUNNING)
            first = await asked(line, kind)
            shift.cancel()
            await looked_up(line, info(end if arrived else RUNNING))
            if not arrived:
                again = await moved(line, kind, end)
                assert again.reason == first.reason
            await shift.cancelled.wait()
            shift.leave.set()
            await line.end()


async def test_what_could_not_be_said_in_time_is_said_behind_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client lives on, so no gateway takes the task back: it must be told, and the task is not taken anew before."""
    monkeypatch.setattr(held, "LAST_WORDS_S", 0.01)
    with trio.fail_after(LIMIT_S):
        async with open_peer() as peer, trio.open_nursery() as nursery:

            async def work(one: AgentClient) -> None:
                async with await one_of(one):
                    shift.cancel()
                    await trio.sleep_forever()

            shift = Shift(work)
            nursery.start_soon(shift.run, peer.address)
            line = await peer.accept()
            await line.tell(**assignment())
            await moved(line, Op.CLAIM, RUNNING)
            assert (await asked(line, Op.FAIL)).reason == STOPPED
            await shift.cancelled.wait()
            await trio.aclose_forcefully(line.stream)
            line = await peer.accept("s2")
            await line.tell(**assignment())
            await looked_up(line, info(RUNNING))
            assert (await moved(line, Op.FAIL, FAILED)).reason == STOPPED
            shift.leave.set()
            await line.end()


async def test_a_task_whose_claim_was_cancelled_is_another_loops() -> None:
    with trio.fail_after(LIMIT_S):
        async with open_peer() as peer, trio.open_nursery() as nursery:
            ends: list[JobEnd | None] = []

            async def work(one: AgentClient) -> None:
                jobs = one.work(concurrency=2)
                async with trio.open_nursery() as loops:

                    async def loop() -> None:
                        async with await anext(jobs) as job:
                            pass
                        ends.append(job.end)

                    with trio.CancelScope() as first:
                        loops.start_soon(cancel_when_told, first)
                        await anext(jobs)
                    await loop()

            async def cancel_when_told(scope: trio.CancelScope) -> None:
                await cancelled.wait()
                scope.cancel()

            cancelled = trio.Event()
            shift = Shift(work)
            nursery.start_soon(shift.run, peer.address)
            line = await peer.accept()
            await line.tell(**assignment())
            await asked(line, Op.CLAIM)
            cancelled.set()
            await moved(line, Op.CLAIM, RUNNING)
            await moved(line, Op.COMPLETE, COMPLETED)
            await shift.cancelled.wait()
            shift.leave.set()
            await line.end()
            assert ends == [JobEnd.COMPLETED]


@pytest.mark.parametrize("status", [RUNNING, QUEUED])
async def test_a_task_whose_claim_was_cancelled_and_that_no_loop_takes(
    monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    """Claimed, it fails; not claimed, it waits as before for a loop of this client."""
    monkeypatch.setattr(bench, "UNTAKEN_S", 0.01)
    with trio.fail_after(LIMIT_S):
        async with open_peer() as peer, trio.open_nursery() as nursery:

            async def work(one: AgentClient) -> None:
                clients.append(one)
                await one_of(one)

            clients: list[AgentClient] = []
            shift = Shift(work)
            nursery.start_soon(shift.run, peer.address)
            line = await peer.accept()
            await line.tell(**assignment())
            await asked(line, Op.CLAIM)
            shift.cancel()
            await looked_up(line, info(status))
            if status == RUNNING:
                assert (await moved(line, Op.FAIL, FAILED)).reason == STOPPED
            else:
                nursery.start_soon(one_block, clients[0])
                await moved(line, Op.CLAIM, RUNNING)
                await moved(line, Op.COMPLETE, COMPLETED)
            await shift.cancelled.wait()
            shift.leave.set()
            await line.end()


@pytest.mark.parametrize("task", [None, info(RUNNING, assigned_to="ag::w::bench::2")], ids=["gone", "another's"])
async def test_a_task_whose_claim_was_cancelled_and_that_is_not_ours_any_more(
    monkeypatch: pytest.MonkeyPatch, task: pb.TaskInfo | None
) -> None:
    """It is left alone, and worked on when it is assigned anew."""
    monkeypatch.setattr(bench, "UNTAKEN_S", 0.01)
    with trio.fail_after(LIMIT_S):
        async with open_peer() as peer, trio.open_nursery() as nursery:

            async def work(one: AgentClient) -> None:
                clients.append(one)
                await one_of(one)

            clients: list[AgentClient] = []
            shift = Shift(work)
            nursery.start_soon(shift.run, peer.address)
            line = await peer.accept()
            await line.tell(**assignment())
            await asked(line, Op.CLAIM)
            shift.cancel()
            await shift.cancelled.wait()
            await looked_up(line, task)
            await line.tell(**assignment(payload=b"anew"))
            nursery.start_soon(one_block, clients[0])
            await moved(line, Op.CLAIM, RUNNING)
            await moved(line, Op.COMPLETE, COMPLETED)
            shift.leave.set()
            await line.end()


@pytest.mark.parametrize("loop", [False, True], ids=["no loop", "another loop"])
async def test_a_task_whose_claim_was_cancelled_just_before_a_cut(
    monkeypatch: pytest.MonkeyPatch, *, loop: bool
) -> None:
    """The claim has arrived, so no gateway tells of the task again."""
    monkeypatch.setattr(bench, "UNTAKEN_S", LIMIT_S if loop else 0.01)
    with trio.fail_after(LIMIT_S):
        async with open_peer() as peer, trio.open_nursery() as nursery:

            async def work(one: AgentClient) -> None:
                clients.append(one)
                await one_of(one)

            clients: list[AgentClient] = []
            shift = Shift(work)
            nursery.start_soon(shift.run, peer.address)
            line = await peer.accept()
            await line.tell(**assignment())
            await asked(line, Op.CLAIM)
            shift.cancel()
            await shift.cancelled.wait()
            await trio.aclose_forcefully(line.stream)
            line = await peer.accept()
            if loop:
                nursery.start_soon(one_block, clients[0])
                await moved(line, Op.CLAIM, RUNNING)
                await moved(line, Op.COMPLETE, COMPLETED)
            else:
                await looked_up(line, info(RUNNING))
                assert (await moved(line, Op.FAIL, FAILED)).reason == STOPPED
            shift.leave.set()
            await line.end()


async def test_a_task_that_is_assigned_anew_after_its_claim_was_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The new assignment waits for a loop, however long it is: the old one is none any more."""
    monkeypatch.setattr(bench, "UNTAKEN_S", 0.01)
    with trio.fail_after(LIMIT_S):
        async with open_peer() as peer, trio.open_nursery() as nursery:

            async def work(one: AgentClient) -> None:
                clients.append(one)
                await one_of(one)

            clients: list[AgentClient] = []
            shift = Shift(work)
            nursery.start_soon(shift.run, peer.address)
            line = await peer.accept()
            await line.tell(**assignment())
            await asked(line, Op.CLAIM)
            shift.cancel()
            await line.tell(**assignment(payload=b"anew"))
            await shift.cancelled.wait()
            statistics = Op(op=Op.CLAIM, task_id="another")
            nursery.start_soon(clients[0].request, pb.UpstreamMessage(task_op=statistics))
            await trio.sleep(0.1)
            await moved(line, Op.CLAIM, RUNNING)  # that of "another": nothing was asked about the old one
            found: list[bytes] = []

            async def block() -> None:
                async with await one_of(clients[0]) as job:
                    found.append(job.payload)

            nursery.start_soon(block)
            await moved(line, Op.CLAIM, RUNNING)
            await moved(line, Op.COMPLETE, COMPLETED)
            assert found == [b"anew"]
            shift.leave.set()
            await line.end()


async def test_a_cancelled_hibernation_that_has_arrived_is_left_asleep() -> None:
    with trio.fail_after(LIMIT_S):
        async with open_peer() as peer, trio.open_nursery() as nursery:

            async def work(one: AgentClient) -> None:
                async with await one_of(one) as job:
                    await job.hibernate(b"s")

            shift = Shift(work)
            nursery.start_soon(shift.run, peer.address)
            line = await peer.accept()
            await line.tell(**assignment())
            await moved(line, Op.CLAIM, RUNNING)
            save = (await line.asked()).checkpoint_op
            await line.tell(checkpoint=pb.CheckpointResponse(success=True, request_id=save.request_id))
            await asked(line, Op.PAUSE)
            shift.cancel()
            await looked_up(line, info(HIBERNATED))
            await shift.cancelled.wait()
            shift.leave.set()
            assert [one for one in await line.end() if isinstance(one, framing.Envelope)] == []
