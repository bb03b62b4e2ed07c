"""Test that a task ends that was handed out and whose block never begins."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import anyio
import anyio.to_thread
import pytest

from aether_trio.client import AgentClient, Job, JobEnd, SyncJob, connect_sync
from aether_trio.client.jobs import manager
from aether_trio.client.jobs.job import STOPPED
from aether_trio.client.operations import TaskStatus
from aether_trio.client.operations.task_values import WaitSpec
from tests.client.gateways import QUICK, in_a_thread
from tests.client.jobs.shop import LIMIT_S, one_of, order, ordered, wait_for, wait_until_over, with_shop


@contextmanager
def without_the_collector() -> Iterator[None]:
    """Free at once what the block lets go of, and not when the collector runs."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@with_shop()
async def test_let_go_of(boss: AgentClient, one: AgentClient) -> None:
    task_id = await order(boss)
    with without_the_collector():
        await one_of(one)
        task = await wait_for(boss, task_id, TaskStatus.FAILED)
    assert task.error == manager.LET_GO


@with_shop()
async def test_let_go_of_when_it_is_listened_to(boss: AgentClient, one: AgentClient) -> None:
    task_id = await order(boss)
    with without_the_collector():
        job = await one_of(one)
        await job.watched.wait()
        del job
        task = await wait_for(boss, task_id, TaskStatus.FAILED)
    assert task.error == manager.LET_GO
    assert one._WorkerMethods__manager._watches == {}  # type: ignore[attr-defined]


@with_shop()
async def test_let_go_of_by_a_loop_that_goes_on(boss: AgentClient, one: AgentClient) -> None:
    """It is not one of `concurrency` any more."""
    ids = [await order(boss, str(number)) for number in range(3)]
    jobs = one.work()
    assert (await anext(jobs)).id in ids
    assert (await anext(jobs)).id in ids
    async with await anext(jobs) as job:
        pass
    assert job.end is JobEnd.COMPLETED
    ids.remove(job.id)
    for task_id in ids:
        await wait_for(boss, task_id, TaskStatus.FAILED)


@with_shop()
async def test_let_go_of_when_it_was_taken_away(boss: AgentClient, one: AgentClient) -> None:
    await order(boss)
    jobs = one.work()
    job = await anext(jobs)
    await boss.tasks.cancel(job.id)
    while job.end is None:
        await anyio.sleep(0.01)
    del job
    task_id = await order(boss)
    async with await anext(jobs) as job:
        assert job.id == task_id


@with_shop()
async def test_let_go_of_while_it_stands_still(boss: AgentClient, one: AgentClient) -> None:
    """An operator has paused it before its block began."""
    job = await ordered(boss, one)
    task_id = job.id
    await one.tasks.pause(task_id, WaitSpec())
    del job
    assert (await wait_for(boss, task_id, TaskStatus.FAILED)).error == manager.LET_GO


@with_shop(backends=["asyncio"])
async def test_a_child_that_is_cancelled_before_its_first_step(boss: AgentClient, one: AgentClient) -> None:
    task_id = await order(boss)

    async def handle(job: Job) -> None:
        async with job:
            raise AssertionError("it has begun")

    child = asyncio.create_task(handle(await one_of(one)))
    child.cancel()
    await asyncio.wait([child])
    del child
    gc.collect()
    await wait_for(boss, task_id, TaskStatus.FAILED)


@with_shop(backends=["asyncio"])
async def test_let_go_of_in_a_thread_with_another_kind_of_loop(boss: AgentClient, one: AgentClient) -> None:
    """Another loop may collect the garbage: that of a blocking client, for one."""
    task_id = await order(boss)
    kept = [await one_of(one)]

    async def let_go() -> None:
        kept.clear()

    thread = threading.Thread(target=partial(anyio.run, let_go, backend="trio"))
    thread.start()
    assert (await wait_for(boss, task_id, TaskStatus.FAILED)).error == manager.LET_GO
    await anyio.to_thread.run_sync(thread.join)


# -- kept, and never begun


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """A task is taken as not begun at once, or after the given times."""
    unbegun, untaken = getattr(request, "param", (0.01, LIMIT_S))
    monkeypatch.setattr(manager, "WATCH_AFTER_S", 0.01)
    monkeypatch.setattr(manager, "UNBEGUN_S", unbegun)
    monkeypatch.setattr(manager, "UNTAKEN_S", untaken)


@pytest.mark.usefixtures("limits")
@with_shop()
async def test_kept_while_another_loop_asks(boss: AgentClient, one: AgentClient) -> None:
    kept = await ordered(boss, one)
    async with await one_of(one) as job:
        assert job.id == kept.id
    assert (kept.end, job.end) == (JobEnd.LOST, JobEnd.COMPLETED)
    async with kept:
        await anyio.sleep_forever()  # too late: this block is cancelled
    assert (await boss.tasks.get(kept.id)).status is TaskStatus.COMPLETED


@pytest.mark.usefixtures("limits")
@with_shop()
async def test_kept_while_the_same_loop_asks(boss: AgentClient, one: AgentClient) -> None:
    """The kept task does not count in the loop."""
    await order(boss)
    jobs = one.work()
    kept = await anext(jobs)
    async with await anext(jobs) as job:
        assert job.id == kept.id
    assert job.end is JobEnd.COMPLETED


@pytest.mark.parametrize("limits", [(0.01, 0.01)], ids=["no time"], indirect=True)
@pytest.mark.usefixtures("limits")
@with_shop()
async def test_kept_while_no_loop_asks(boss: AgentClient, one: AgentClient) -> None:
    kept = await ordered(boss, one)
    task = await wait_for(boss, kept.id, TaskStatus.FAILED)
    assert (kept.end, task.error) == (JobEnd.LOST, STOPPED)


@pytest.mark.usefixtures("limits")
@with_shop()
async def test_begun_late_and_ended_later(boss: AgentClient, one: AgentClient) -> None:
    """A block that ends late takes the task from no other block."""
    kept = await ordered(boss, one)
    async with await one_of(one) as job:
        async with kept:
            await anyio.sleep_forever()
        await job.progress(0.5)
        with anyio.move_on_after(0.05) as scope:
            await one_of(one)
        assert scope.cancelled_caught, "the task is in hand, and no loop is given it"
    assert (job.id, job.end) == (kept.id, JobEnd.COMPLETED)


@pytest.mark.parametrize("limits", [(1.0, LIMIT_S)], ids=["a second"], indirect=True)
@pytest.mark.usefixtures("limits")
@with_shop()
async def test_kept_and_ended_by_an_operator(boss: AgentClient, one: AgentClient) -> None:
    """The worker knows the end at once, and takes the task when it comes anew."""
    kept = await ordered(boss, one)
    await boss.tasks.cancel(kept.id)
    assert await wait_until_over(kept) in {JobEnd.CANCELLED, JobEnd.LOST}
    await boss.tasks.retry(kept.id)
    async with await one_of(one) as job:
        assert job.id == kept.id
    assert job.end is JobEnd.COMPLETED


# -- in a script that blocks


@in_a_thread
def test_in_a_script(address: str) -> None:
    boss = connect_sync(address, workspace="w", implementation="boss", specifier="1", retry=QUICK)
    worker = connect_sync(address, workspace="w", implementation="bench", specifier="1", retry=QUICK)
    with boss as creator, worker as one, without_the_collector():

        def failed(task_id: str) -> str:
            while (task := creator.tasks.get(task_id)).status is not TaskStatus.FAILED:
                pass
            return str(task.error)

        def breaks() -> str:
            made = creator.tasks.create("job", pool="bench")
            for _ in one.work(timeout=LIMIT_S):
                break
            return str(made.task_id)

        assert failed(breaks()) == manager.LET_GO
        jobs = one.work(timeout=LIMIT_S)
        task_id = creator.tasks.create("job", pool="bench").task_id
        kept: SyncJob | None = next(jobs)
        assert kept is not None
        assert kept.id == task_id
        kept = None
        assert failed(task_id) == manager.LET_GO
