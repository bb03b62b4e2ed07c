"""A task that was handed out and whose block never begins ends: it is not RUNNING for as long as
the client lives.
"""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial

import anyio
import anyio.to_thread
import pytest
import trio

from aether_trio.client import Job, JobEnd, SyncJob, connect_sync
from aether_trio.client.jobs import manager
from aether_trio.client.jobs.job import STOPPED
from aether_trio.client.operations import TaskStatus
from tests.client.gateways import QUICK, open_test_gateway, run_on
from tests.client.jobs.shop import LIMIT_S, one_of, open_shop, order, wait_for, wait_until_over

BACKENDS = ["trio", "asyncio"]


@contextmanager
def without_the_collector() -> Iterator[None]:
    """What is let go of here must be free at once, and not when the collector comes by."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


async def let_go_of(address: str) -> None:
    async with open_shop(address) as (boss, one):
        task_id = await order(boss)
        with without_the_collector():
            await one_of(one)
            task = await wait_for(boss, task_id, TaskStatus.FAILED)
        assert task.error == manager.LET_GO


async def let_go_of_when_it_is_listened_to(address: str) -> None:
    async with open_shop(address) as (boss, one):
        task_id = await order(boss)
        with without_the_collector():
            job = await one_of(one)
            await job.watched.wait()
            del job
            task = await wait_for(boss, task_id, TaskStatus.FAILED)
        assert task.error == manager.LET_GO
        assert one._Works__manager._watches == {}  # type: ignore[attr-defined]


async def let_go_of_by_a_loop_that_goes_on(address: str) -> None:
    """It is not one of `concurrency` any more."""
    async with open_shop(address) as (boss, one):
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


async def let_go_of_when_it_was_taken_away(address: str) -> None:
    async with open_shop(address) as (boss, one):
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


async def let_go_of_while_it_stands_still(address: str) -> None:
    """An operator has paused it before its block began."""
    from aether_trio.client.operations.task_values import WaitSpec

    async with open_shop(address) as (boss, one):
        task_id = await order(boss)
        job = await one_of(one)
        await one.tasks.pause(job.id, WaitSpec())
        del job
        assert (await wait_for(boss, task_id, TaskStatus.FAILED)).error == manager.LET_GO


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "body",
    [
        let_go_of,
        let_go_of_when_it_is_listened_to,
        let_go_of_by_a_loop_that_goes_on,
        let_go_of_when_it_was_taken_away,
        let_go_of_while_it_stands_still,
    ],
    ids=lambda body: body.__name__,
)
async def test_let_go_of(backend: str, body: Callable[[str], Awaitable[None]]) -> None:
    async with open_test_gateway() as gateway:
        await run_on(backend, body, f"aether://{gateway.address}")


async def cancelled_before_its_first_step(address: str) -> None:
    async with open_shop(address) as (boss, one):
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


async def test_a_child_that_is_cancelled_before_its_first_step() -> None:
    async with open_test_gateway() as gateway:
        await run_on("asyncio", cancelled_before_its_first_step, f"aether://{gateway.address}")


async def let_go_of_in_a_thread_with_another_kind_of_loop(address: str) -> None:
    """Which may be what collects the garbage: that of a client of the blocking form, for one."""
    async with open_shop(address) as (boss, one):
        task_id = await order(boss)
        kept = [await one_of(one)]

        async def let_go() -> None:
            kept.clear()

        stranger = threading.Thread(target=partial(anyio.run, let_go, backend="trio"))
        stranger.start()
        assert (await wait_for(boss, task_id, TaskStatus.FAILED)).error == manager.LET_GO
        await anyio.to_thread.run_sync(stranger.join)


async def test_let_go_of_in_a_thread_with_another_kind_of_loop() -> None:
    async with open_test_gateway() as gateway:
        await run_on("asyncio", let_go_of_in_a_thread_with_another_kind_of_loop, f"aether://{gateway.address}")


# -- kept, and never begun


async def kept_while_another_loop_asks(address: str) -> None:
    async with open_shop(address) as (boss, one):
        task_id = await order(boss)
        kept = await one_of(one)
        async with await one_of(one) as job:
            assert job.id == task_id
        assert (kept.end, job.end) == (JobEnd.LOST, JobEnd.COMPLETED)
        async with kept:
            await anyio.sleep_forever()  # too late: this block is cancelled
        assert (await boss.tasks.get(task_id)).status is TaskStatus.COMPLETED


async def kept_while_the_same_loop_asks(address: str) -> None:
    """Its place in the loop is free."""
    async with open_shop(address) as (boss, one):
        await order(boss)
        jobs = one.work()
        kept = await anext(jobs)
        async with await anext(jobs) as job:
            assert job.id == kept.id
        assert job.end is JobEnd.COMPLETED


async def kept_while_no_loop_asks(address: str) -> None:
    async with open_shop(address) as (boss, one):
        task_id = await order(boss)
        kept = await one_of(one)
        task = await wait_for(boss, task_id, TaskStatus.FAILED)
        assert (kept.end, task.error) == (JobEnd.LOST, STOPPED)


async def begun_late_and_ended_later(address: str) -> None:
    """What ends late puts nothing down that is another block's."""
    async with open_shop(address) as (boss, one):
        task_id = await order(boss)
        kept = await one_of(one)
        async with await one_of(one) as job:
            async with kept:
                await anyio.sleep_forever()
            await job.progress(0.5)
            with anyio.move_on_after(0.05) as scope:
                await one_of(one)
            assert scope.cancelled_caught, "the task is in hand, and no loop is given it"
        assert (job.id, job.end) == (task_id, JobEnd.COMPLETED)


async def kept_and_ended_by_somebody(address: str) -> None:
    """What is told of it is known before its time is over.

    It is not in hand then, when it is assigned anew.
    """
    async with open_shop(address) as (boss, one):
        task_id = await order(boss)
        kept = await one_of(one)
        await boss.tasks.cancel(task_id)
        assert await wait_until_over(kept) in {JobEnd.CANCELLED, JobEnd.LOST}
        await boss.tasks.retry(task_id)
        async with await one_of(one) as job:
            assert job.id == task_id
        assert job.end is JobEnd.COMPLETED


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "body",
    [
        kept_and_ended_by_somebody,
        kept_while_another_loop_asks,
        kept_while_the_same_loop_asks,
        kept_while_no_loop_asks,
        begun_late_and_ended_later,
    ],
    ids=lambda body: body.__name__,
)
async def test_kept(monkeypatch: pytest.MonkeyPatch, backend: str, body: Callable[[str], Awaitable[None]]) -> None:
    monkeypatch.setattr(manager, "WATCH_AFTER_S", 0.01)
    monkeypatch.setattr(manager, "UNBEGUN_S", 1.0 if body is kept_and_ended_by_somebody else 0.01)
    monkeypatch.setattr(manager, "UNTAKEN_S", LIMIT_S if body is not kept_while_no_loop_asks else 0.01)
    async with open_test_gateway() as gateway:
        await run_on(backend, body, f"aether://{gateway.address}")


# -- in a script that blocks


def in_a_script(address: str) -> None:
    def client(implementation: str) -> object:
        return connect_sync(address, workspace="w", implementation=implementation, specifier="1", retry=QUICK)

    with client("boss") as boss, client("bench") as one:  # type: ignore[attr-defined]

        def failed(task_id: str) -> str:
            while (task := boss.tasks.get(task_id)).status is not TaskStatus.FAILED:
                pass
            return str(task.error)

        def breaks() -> str:
            made = boss.tasks.create("job", pool="bench")
            for _ in one.work(timeout=LIMIT_S):
                break
            return str(made.task_id)

        with without_the_collector():
            assert failed(breaks()) == manager.LET_GO
            jobs = one.work(timeout=LIMIT_S)
            task_id = boss.tasks.create("job", pool="bench").task_id
            kept: SyncJob | None = next(jobs)
            assert kept is not None
            assert kept.id == task_id
            kept = None
            assert failed(task_id) == manager.LET_GO


async def test_in_a_script() -> None:
    async with open_test_gateway() as gateway:
        with trio.fail_after(LIMIT_S):
            await trio.to_thread.run_sync(partial(in_a_script, f"aether://{gateway.address}"), abandon_on_cancel=True)
