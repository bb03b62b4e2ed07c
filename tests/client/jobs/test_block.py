"""A task is a block: how it is left is what becomes of the task, and what becomes of the task ends
the block. On trio and asyncio.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from functools import partial

import anyio
import pytest

from aether_trio.client import (
    AetherError,
    InvalidArgument,
    Job,
    JobEnd,
    NotImplementedByGateway,
    PayloadTooLarge,
    Refused,
    TaskOver,
)
from aether_trio.client.jobs import job as job_module
from aether_trio.client.jobs.job import REASON_CHARS, STOPPED, describe
from aether_trio.client.operations import TaskStatus
from aether_trio.client.operations.task_values import RetryPolicy
from tests.client.gateways import open_test_gateway, run_on
from tests.client.jobs.shop import one_of, open_shop, order, wait_for, wait_until_over

BACKENDS = ["trio", "asyncio"]
everywhere = pytest.mark.parametrize("backend", BACKENDS)


async def left_well(address: str) -> None:
    async with open_shop(address) as (boss, one):
        task_id = await order(boss, "hello", metadata={"size": "3"})
        job = await one_of(one)
        assert (job.id, job.type, job.text, job.payload) == (task_id, "job", "hello", b"hello")
        assert (dict(job.metadata), job.creator, job.attempt, job.end) == ({"size": "3"}, boss.topic, 1, None)
        assert (await boss.tasks.get(task_id)).status is TaskStatus.RUNNING
        async with job as same:
            assert same is job
            assert "open" in repr(job)
        assert job.end is JobEnd.COMPLETED
        assert (await boss.tasks.get(task_id)).status is TaskStatus.COMPLETED
        with pytest.raises(RuntimeError, match="one block"):
            await job.__aenter__()
        with pytest.raises(TaskOver):
            await job.progress(1)


async def left_by_an_exception(address: str) -> None:
    async with open_shop(address) as (boss, one):
        task_id = await order(boss)
        job = await one_of(one)
        with pytest.raises(ValueError, match="too small"):
            async with job:
                raise ValueError("it is too small")
        assert (job.end, job.reason) == (JobEnd.FAILED, "ValueError: it is too small")
        task = await boss.tasks.get(task_id)
        assert (task.status, task.error) == (TaskStatus.FAILED, "ValueError: it is too small")

        task_id = await order(boss)
        job = await one_of(one)
        with pytest.raises(ExceptionGroup) as caught:
            async with job, anyio.create_task_group():
                raise ValueError("one of many")
        assert caught.group_contains(ValueError)
        assert (await boss.tasks.get(task_id)).error == "ValueError: one of many"


async def left_by_a_cancellation(address: str) -> None:
    async with open_shop(address) as (boss, one):
        task_id = await order(boss)
        job = await one_of(one)
        with anyio.CancelScope() as scope:
            async with job:
                scope.cancel()
                await anyio.sleep_forever()
        assert scope.cancelled_caught
        assert job.end is JobEnd.FAILED
        assert (await boss.tasks.get(task_id)).error == STOPPED


async def left_by_ctrl_c(address: str) -> None:
    async with open_shop(address) as (boss, one):
        task_id = await order(boss)
        job = await one_of(one)
        with pytest.raises(KeyboardInterrupt):
            async with job:
                raise KeyboardInterrupt
        assert (job.end, job.reason) == (JobEnd.FAILED, STOPPED)
        assert (await boss.tasks.get(task_id)).error == STOPPED


async def cancelled_by_the_gateway(address: str) -> None:
    async with open_shop(address) as (boss, one):
        task_id = await order(boss)
        job = await one_of(one)
        async with anyio.create_task_group() as group, job:
            group.start_soon(boss.tasks.cancel, task_id)
            await anyio.sleep_forever()
        assert job.end is JobEnd.CANCELLED
        assert (await boss.tasks.get(task_id)).status is TaskStatus.CANCELLED


async def cancelled_before_its_block(address: str) -> None:
    async with open_shop(address) as (boss, one):
        task_id = await order(boss)
        job = await one_of(one)
        await boss.tasks.cancel(task_id)
        await wait_until_over(job)
        async with job:
            await anyio.sleep_forever()
        assert job.end is JobEnd.CANCELLED


async def cancelled_too_shortly_to_be_heard(address: str) -> None:
    """What the gateway says at the end is what it is."""
    async with open_shop(address) as (boss, one):
        task_id = await order(boss)
        job = await one_of(one)
        async with job:
            await boss.tasks.cancel(task_id)
        assert job.end is JobEnd.CANCELLED
        task_id = await order(boss)
        job = await one_of(one)
        with pytest.raises(ValueError, match="x"):
            async with job:
                await boss.tasks.cancel(task_id)
                raise ValueError("x")
        assert job.end is JobEnd.CANCELLED


async def past_its_deadline(address: str) -> None:
    async with open_shop(address) as (boss, one):
        await order(boss, metadata={"start_to_close_ms": "300"}, retry_policy=RetryPolicy(max_attempts=50))
        job = await one_of(one)
        async with job:
            await anyio.sleep_forever()
        assert job.end is JobEnd.FAILED
        assert "start_to_close" in job.reason
        again = job
        # Where it is slow, the next attempts may take too long as well.
        while again.end is not JobEnd.COMPLETED:
            before, again = again, await one_of(one)
            assert again.id == job.id
            assert again.attempt > before.attempt
            async with again:
                pass


async def failing_on_purpose(address: str) -> None:
    async with open_shop(address) as (boss, one):
        task_id = await order(boss)
        job = await one_of(one)
        async with job:
            await job.fail("no paper")
            raise AssertionError("behind the end")
        assert (job.end, job.reason) == (JobEnd.FAILED, "no paper")
        assert (await boss.tasks.get(task_id)).error == "no paper"


class Silent(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


async def failing_with_a_text_that_cannot_be_sent(address: str) -> None:
    async with open_shop(address) as (boss, one):
        for error, reason in (
            (OSError(os.fsdecode(b"no file \xff")), "OSError: no file �"),
            (Silent(), "Silent"),
        ):
            task_id = await order(boss)
            with pytest.raises(type(error)):
                async with await one_of(one):
                    raise error
            assert (await boss.tasks.get(task_id)).error == reason
        task_id = await order(boss)
        async with await one_of(one) as job:
            await job.fail("\ud800")
        assert (await boss.tasks.get(task_id)).error == "�"


async def a_remark_that_cannot_be_sent(address: str) -> None:
    async with open_shop(address) as (boss, one):
        task_id = await order(boss)
        async with await one_of(one) as job:
            job.remark = "\ud800"
        assert (await boss.tasks.get(task_id)).status is TaskStatus.COMPLETED
        for remark, kind in (("x" * 2**25, PayloadTooLarge), (5, TypeError)):
            task_id = await order(boss)
            job = await one_of(one)
            with pytest.raises(kind):
                async with job:
                    job.remark = remark  # type: ignore[assignment]
            assert job.end is JobEnd.FAILED
            assert f"COMPLETE was refused: {kind.__name__}" in (await boss.tasks.get(task_id)).error


async def progress_is_told(address: str) -> None:
    async with open_shop(address) as (boss, one):
        task_id = await order(boss)
        job = await one_of(one)
        async with boss.tasks.follow(task_id) as events, job:
            await job.progress(0.5, "half of it", metadata={"page": "3"})
            event = await anext(events)
            happening = event.event
            assert (happening.state, happening.progress, happening.message, dict(happening.metadata)) == (  # type: ignore[union-attr]
                "running",
                0.5,
                "half of it",
                {"page": "3"},
            )


async def a_remark_is_told(address: str) -> None:
    async with open_shop(address) as (boss, one):
        task_id = await order(boss)
        job = await one_of(one)
        async with boss.tasks.follow(task_id) as events:
            async with job:
                job.remark = "3 pages"
            happening = (await anext(events)).event
            assert (happening.to_status, happening.reason) == (TaskStatus.COMPLETED, "3 pages")  # type: ignore[union-attr]


async def asleep_and_awake(address: str) -> None:
    async with open_shop(address) as (boss, one):
        task_id = await order(boss)
        job = await one_of(one)
        async with job:
            assert await job.load() is None
            await job.hibernate(b"page 3", until=datetime.now(UTC) + timedelta(milliseconds=100))
            raise AssertionError("behind the end")
        assert job.end is JobEnd.HIBERNATED
        again = await one_of(one)
        assert (again.id, again.attempt) == (task_id, 1)
        async with again:
            left = await again.load()
            assert left is not None
            assert left.data == b"page 3"
        assert again.end is JobEnd.COMPLETED


async def put_to_sleep_from_outside(address: str) -> None:
    from aether_trio.client.operations.task_values import Hibernation

    async with open_shop(address) as (boss, one):
        task_id = await order(boss)
        job = await one_of(one)
        async with anyio.create_task_group() as group, job:
            await one.checkpoints.save(b"s", key="k")
            group.start_soon(one.tasks.hibernate, task_id, Hibernation(checkpoint_key="k"))
            await anyio.sleep_forever()
        assert job.end is JobEnd.HIBERNATED


async def refused_inside(address: str) -> None:
    """A refusal of a call is the program's to see; the task is still its."""
    async with open_shop(address) as (boss, one):
        await order(boss)
        job = await one_of(one)
        async with job:
            with pytest.raises(Refused, match="not found"):
                await job.wait_for_tasks(["none"])
        assert job.end is JobEnd.COMPLETED


ASKS: list[Callable[[Job], Awaitable[object]]] = [
    lambda job: job.progress(0.5),
    lambda job: job.wait_for_input(),
    lambda job: job.wait_for_authority("r"),
    lambda job: job.hibernate(),
    lambda job: job.load(),
    lambda job: job.fail("x"),
]


async def asked_again_and_again(address: str) -> None:
    """A program that takes every error for one that passes is still cancelled, whatever it asks."""
    async with open_shop(address) as (boss, one):
        for ask in ASKS:
            await order(boss)
            job = await one_of(one)
            times = 0
            async with job:
                with anyio.CancelScope(shield=True):
                    await boss.tasks.cancel(job.id)
                    await wait_until_over(job)
                while times < 1000:
                    times += 1
                    with contextlib.suppress(AetherError):
                        await ask(job)
            assert (job.end, times) == (JobEnd.CANCELLED, 1)


async def asked_behind_its_block(address: str) -> None:
    async with open_shop(address) as (boss, one):
        await order(boss)
        async with await one_of(one) as job:
            pass
        for ask in ASKS:
            with pytest.raises(TaskOver, match="completed"):
                await ask(job)


async def put_to_sleep_by_another_task(address: str) -> None:
    """It is told what the block is not."""
    async with open_shop(address) as (boss, one):
        await order(boss)
        job = await one_of(one)
        told: list[JobEnd] = []

        async def outside() -> None:
            try:
                await job.hibernate()
            except TaskOver as over:
                told.append(over.end)

        async with anyio.create_task_group() as group, job:
            group.start_soon(outside)
            await anyio.sleep_forever()
        assert (job.end, told) == (JobEnd.HIBERNATED, [JobEnd.HIBERNATED])


async def left_because_it_is_over(address: str) -> None:
    """That is swallowed, alone or in a group.

    Of another task it is an error as others are.
    """
    async with open_shop(address) as (boss, one):
        for grouped in (False, True):
            await order(boss)
            async with await one_of(one) as job:
                with anyio.CancelScope(shield=True):
                    await boss.tasks.cancel(job.id)
                    await wait_until_over(job)
                    try:
                        await job.progress(1)
                    except TaskOver as over:
                        raise (ExceptionGroup("of children", [over]) if grouped else over) from None
            assert job.end is JobEnd.CANCELLED
        await order(boss)
        another = TaskOver("another", JobEnd.LOST, "")
        job = await one_of(one)
        with pytest.raises(TaskOver) as caught:
            async with job:
                raise another
        assert caught.value is another
        assert job.end is JobEnd.FAILED


@everywhere
@pytest.mark.parametrize(
    "body",
    [
        asked_again_and_again,
        left_because_it_is_over,
        asked_behind_its_block,
        put_to_sleep_by_another_task,
        left_well,
        left_by_an_exception,
        left_by_a_cancellation,
        left_by_ctrl_c,
        cancelled_by_the_gateway,
        cancelled_before_its_block,
        cancelled_too_shortly_to_be_heard,
        past_its_deadline,
        failing_on_purpose,
        failing_with_a_text_that_cannot_be_sent,
        a_remark_that_cannot_be_sent,
        progress_is_told,
        a_remark_is_told,
        asleep_and_awake,
        put_to_sleep_from_outside,
        refused_inside,
    ],
    ids=lambda body: body.__name__,
)
async def test_block(monkeypatch: pytest.MonkeyPatch, backend: str, body: object) -> None:
    monkeypatch.setattr(job_module, "PAUSE_S", 0.01)
    async with open_test_gateway() as gateway:
        await run_on(backend, body, f"aether://{gateway.address}")  # type: ignore[arg-type]


# -- waits


async def waits_for_input(address: str) -> None:
    async with open_shop(address) as (boss, one):
        task_id = await order(boss)
        job = await one_of(one)
        async with anyio.create_task_group() as group, job:
            group.start_soon(resume_when_waiting, boss, task_id)
            await job.wait_for_input()
            assert (await boss.tasks.get(task_id)).status is TaskStatus.RUNNING
            group.start_soon(resume_when_waiting, boss, task_id)
            await job.wait_for_input()
        assert job.end is JobEnd.COMPLETED


async def resume_when_waiting(boss: object, task_id: str) -> None:
    await wait_for(boss, task_id, TaskStatus.WAITING_INPUT)  # type: ignore[arg-type]
    await boss.tasks.resume(task_id)  # type: ignore[attr-defined]


async def waits_for_a_certain_input(address: str) -> None:
    async with open_shop(address) as (boss, one):
        task_id = await order(boss)
        job = await one_of(one)
        async with anyio.create_task_group() as group, job:

            async def answer() -> None:
                await wait_for(boss, task_id, TaskStatus.WAITING_INPUT)
                await boss.send_input(task_id)
                await boss.send_input(task_id, {"approved": "no", "by": "ann"})
                assert (await boss.tasks.get(task_id)).status is TaskStatus.WAITING_INPUT
                await boss.send_input(task_id, {"approved": "yes", "by": "ann"})

            group.start_soon(answer)
            await job.wait_for_input({"approved": "yes"})
        assert job.end is JobEnd.COMPLETED
        with pytest.raises(InvalidArgument):
            await boss.send_input("a::b")


async def uses_an_input_that_came_before(address: str) -> None:
    async with open_shop(address) as (boss, one):
        task_id = await order(boss)
        job = await one_of(one)
        async with job:
            await boss.send_input(task_id, {"page": "2"})
            await boss.send_input(task_id, {"page": "1"})
            until = datetime.now(UTC) + timedelta(milliseconds=300)
            await job.wait_until(until)
            assert datetime.now(UTC) >= until
            await job.wait_for_input({"page": "1"})
            await job.wait_for_input()
        assert job.end is JobEnd.COMPLETED


async def waits_in_vain(address: str) -> None:
    async with open_shop(address) as (boss, one):
        await order(boss)
        job = await one_of(one)
        async with job:
            await job.wait_for_input(timeout=0.2)
            raise AssertionError("behind the end")
        assert (job.end, job.reason) == (JobEnd.FAILED, "wait timeout")


async def waits_for_tasks(address: str) -> None:
    async with open_shop(address) as (boss, one):
        await order(boss, "first")
        job = await one_of(one)
        async with job:
            others = [(await boss.tasks.create("other")).task_id for _ in range(2)]

            async def end(task_id: str) -> None:
                await wait_for(boss, job.id, TaskStatus.WAITING_DEPENDENCY)
                await boss.tasks.complete(task_id)

            async with anyio.create_task_group() as group:
                group.start_soon(end, others[0])
                await job.wait_for_tasks(others, any_of_them=True)
            async with anyio.create_task_group() as group:
                group.start_soon(end, others[1])
                await job.wait_for_tasks(others)
            await job.wait_for_tasks(others)  # all have ended: it goes on at once
        assert job.end is JobEnd.COMPLETED


async def waits_until(address: str) -> None:
    async with open_shop(address) as (boss, one):
        await order(boss)
        job = await one_of(one)
        async with job:
            until = datetime.now(UTC) + timedelta(milliseconds=300)
            await job.wait_until(until)
            assert datetime.now(UTC) >= until
        assert job.end is JobEnd.COMPLETED


async def gives_a_wait_up(address: str) -> None:
    async with open_shop(address) as (boss, one):
        task_id = await order(boss)
        job = await one_of(one)
        async with job:
            async with anyio.create_task_group() as group:
                group.start_soon(job.wait_for_input)
                await wait_for(boss, task_id, TaskStatus.WAITING_INPUT)
                with pytest.raises(RuntimeError, match="waits already"):
                    await job.wait_for_input()
                group.cancel_scope.cancel()
            assert (await boss.tasks.get(task_id)).status is TaskStatus.RUNNING
        assert job.end is JobEnd.COMPLETED


async def waits_for_no_authority(address: str) -> None:
    async with open_shop(address) as (boss, one):
        task_id = await order(boss)
        job = await one_of(one)
        async with job:
            with pytest.raises(NotImplementedByGateway, match="authority"):
                await job.wait_for_authority("r", timeout=30)
            assert (await boss.tasks.get(task_id)).status is TaskStatus.RUNNING
        assert job.end is JobEnd.COMPLETED


async def cancelled_while_it_waits(address: str) -> None:
    async with open_shop(address) as (boss, one):
        task_id = await order(boss)
        job = await one_of(one)
        async with anyio.create_task_group() as group:

            async def cancel() -> None:
                await wait_for(boss, task_id, TaskStatus.WAITING_INPUT)
                await boss.tasks.cancel(task_id)

            group.start_soon(cancel)
            async with job:
                await job.wait_for_input()
                raise AssertionError("behind the end")
        assert job.end is JobEnd.CANCELLED


@everywhere
@pytest.mark.parametrize(
    "body",
    [
        waits_for_input,
        waits_for_a_certain_input,
        uses_an_input_that_came_before,
        waits_in_vain,
        waits_for_tasks,
        waits_until,
        gives_a_wait_up,
        cancelled_while_it_waits,
        waits_for_no_authority,
    ],
    ids=lambda body: body.__name__,
)
async def test_wait(backend: str, body: object) -> None:
    async with open_test_gateway() as gateway:
        await run_on(backend, partial(body), f"aether://{gateway.address}")  # type: ignore[operator]


def test_an_exception_as_a_reason() -> None:
    assert describe(KeyError("x")) == "KeyError: 'x'"
    assert describe(ValueError()) == "ValueError"
    assert describe(ExceptionGroup("g", [ValueError("a"), ExceptionGroup("h", [KeyError("b")])])) == (
        "ValueError: a; KeyError: 'b'"
    )
    assert len(describe(ValueError("x" * 10_000))) == REASON_CHARS
