"""Test that a task is a block: the end of the one is the end of the other."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import pytest

from aether_trio.client import (
    AetherError,
    AgentClient,
    InvalidArgument,
    Job,
    JobEnd,
    PayloadTooLarge,
    Refused,
    TaskOver,
)
from aether_trio.client.jobs import job as job_module
from aether_trio.client.jobs.job import REASON_CHARS, STOPPED, describe
from aether_trio.client.operations import AccessLevel, Principal, TaskStatus
from aether_trio.client.operations.requests import AuthorityRoute, AuthorityWish
from aether_trio.client.operations.task_values import Hibernation, RetryPolicy
from tests.client.jobs.shop import one_of, order, ordered, wait_for, wait_until_over, with_shop


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_module, "PAUSE_S", 0.01)


@with_shop()
async def test_a_block_that_is_left_well_completes_its_task(boss: AgentClient, one: AgentClient) -> None:
    task_id = await order(boss, "hello", metadata={"size": "3"})
    job = await one_of(one)
    assert (job.id, job.type, job.text, job.payload) == (task_id, "job", "hello", b"hello")
    assert (dict(job.metadata), job.creator, job.attempt, job.end) == ({"size": "3"}, boss.topic, 1, None)
    assert (await boss.tasks.get(job.id)).status is TaskStatus.RUNNING
    async with job as same:
        assert same is job
        assert "open" in repr(job)
    assert job.end is JobEnd.COMPLETED
    assert (await boss.tasks.get(job.id)).status is TaskStatus.COMPLETED
    with pytest.raises(RuntimeError, match="was entered before"):
        await job.__aenter__()
    with pytest.raises(TaskOver):
        await job.progress(1)


class Silent(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("it is too small"), "ValueError: it is too small"),
        (ExceptionGroup("of tasks", [ValueError("one of many")]), "ValueError: one of many"),
        (KeyboardInterrupt(), STOPPED),
        (OSError(os.fsdecode(b"no file \xff")), "OSError: no file �"),
        (Silent(), "Silent"),
    ],
    ids=["exception", "group", "Ctrl-C", "no UTF-8", "no text"],
)
@with_shop()
async def test_an_error_fails_the_task(boss: AgentClient, one: AgentClient, error: BaseException, reason: str) -> None:
    job = await ordered(boss, one)
    with pytest.raises(type(error)) as caught:
        async with job:
            raise error
    assert caught.value is error
    assert job.end is JobEnd.FAILED
    task = await boss.tasks.get(job.id)
    assert (task.status, task.error, job.reason) == (TaskStatus.FAILED, reason, reason)


@with_shop()
async def test_a_block_that_is_cancelled_fails_its_task(boss: AgentClient, one: AgentClient) -> None:
    job = await ordered(boss, one)
    with anyio.CancelScope() as scope:
        async with job:
            scope.cancel()
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert job.end is JobEnd.FAILED
    assert (await boss.tasks.get(job.id)).error == STOPPED


@with_shop()
async def test_a_task_that_the_gateway_cancels_ends_its_block(boss: AgentClient, one: AgentClient) -> None:
    job = await ordered(boss, one)
    async with anyio.create_task_group() as group, job:
        group.start_soon(boss.tasks.cancel, job.id)
        await anyio.sleep_forever()
    assert job.end is JobEnd.CANCELLED
    assert (await boss.tasks.get(job.id)).status is TaskStatus.CANCELLED


@with_shop()
async def test_a_task_that_is_cancelled_before_its_block_cancels_it(boss: AgentClient, one: AgentClient) -> None:
    job = await ordered(boss, one)
    await boss.tasks.cancel(job.id)
    await wait_until_over(job)
    async with job:
        await anyio.sleep_forever()
    assert job.end is JobEnd.CANCELLED


@with_shop()
async def test_what_the_gateway_says_at_the_end_is_the_end(boss: AgentClient, one: AgentClient) -> None:
    """The block has not heard of the cancellation."""
    job = await ordered(boss, one)
    async with job:
        await boss.tasks.cancel(job.id)
    assert job.end is JobEnd.CANCELLED
    job = await ordered(boss, one)
    with pytest.raises(ValueError, match="x"):
        async with job:
            await boss.tasks.cancel(job.id)
            raise ValueError("x")
    assert job.end is JobEnd.CANCELLED


@with_shop()
async def test_a_task_past_its_deadline_ends_its_block_and_is_given_again(boss: AgentClient, one: AgentClient) -> None:
    job = await ordered(boss, one, metadata={"start_to_close_ms": "300"}, retry_policy=RetryPolicy(max_attempts=50))
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


@pytest.mark.parametrize(("given", "reason"), [("no paper", "no paper"), ("\ud800", "�")], ids=["text", "no text"])
@with_shop()
async def test_a_task_is_failed_with_a_reason(boss: AgentClient, one: AgentClient, given: str, reason: str) -> None:
    job = await ordered(boss, one)
    async with job:
        await job.fail(given)
        raise AssertionError("behind the end")
    assert (job.end, job.reason) == (JobEnd.FAILED, reason)
    assert (await boss.tasks.get(job.id)).error == reason


@with_shop()
async def test_a_remark_that_cannot_be_sent(boss: AgentClient, one: AgentClient) -> None:
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


@with_shop()
async def test_progress_is_told_to_followers(boss: AgentClient, one: AgentClient) -> None:
    job = await ordered(boss, one)
    async with boss.tasks.follow(job.id) as events, job:
        await job.progress(0.5, "half of it", metadata={"page": "3"})
        event: Any = (await anext(events)).event
        told = (event.state, event.progress, event.message, dict(event.metadata))
        assert told == ("running", 0.5, "half of it", {"page": "3"})


@with_shop()
async def test_a_remark_is_told_to_followers(boss: AgentClient, one: AgentClient) -> None:
    job = await ordered(boss, one)
    async with boss.tasks.follow(job.id) as events:
        async with job:
            job.remark = "3 pages"
        event: Any = (await anext(events)).event
        assert (event.to_status, event.reason) == (TaskStatus.COMPLETED, "3 pages")


@with_shop()
async def test_a_task_that_hibernated_is_given_again_with_its_state(boss: AgentClient, one: AgentClient) -> None:
    job = await ordered(boss, one)
    async with job:
        assert await job.load() is None
        await job.hibernate(b"page 3", until=datetime.now(UTC) + timedelta(milliseconds=100))
        raise AssertionError("behind the end")
    assert job.end is JobEnd.HIBERNATED
    again = await one_of(one)
    assert (again.id, again.attempt) == (job.id, 1)
    async with again:
        left = await again.load()
        assert left is not None
        assert left.data == b"page 3"
    assert again.end is JobEnd.COMPLETED


@with_shop()
async def test_a_task_that_hibernates_ends_its_block(boss: AgentClient, one: AgentClient) -> None:
    job = await ordered(boss, one)
    async with anyio.create_task_group() as group, job:
        await one.checkpoints.save(b"s", key="k")
        group.start_soon(one.tasks.hibernate, job.id, Hibernation(checkpoint_key="k"))
        await anyio.sleep_forever()
    assert job.end is JobEnd.HIBERNATED


@with_shop()
async def test_a_refusal_in_a_block_leaves_the_task_to_it(boss: AgentClient, one: AgentClient) -> None:
    """A refusal of a call is the program's to see; the task is still its."""
    job = await ordered(boss, one)
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


@with_shop()
async def test_a_block_that_is_over_is_cancelled_whatever_it_asks(boss: AgentClient, one: AgentClient) -> None:
    """A program that takes every error for one that passes is still cancelled."""
    for ask in ASKS:
        job = await ordered(boss, one)
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


@with_shop()
async def test_a_job_is_over_behind_its_block(boss: AgentClient, one: AgentClient) -> None:
    await order(boss)
    async with await one_of(one) as job:
        pass
    for ask in ASKS:
        with pytest.raises(TaskOver, match="completed"):
            await ask(job)


@with_shop()
async def test_another_task_that_ends_the_block_is_told_so(boss: AgentClient, one: AgentClient) -> None:
    """Only the block itself swallows that its task is over."""
    job = await ordered(boss, one)
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


@with_shop()
async def test_a_block_swallows_that_its_own_task_is_over(boss: AgentClient, one: AgentClient) -> None:
    """The end of another task is an error like any other."""
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


# -- waits


@with_shop()
async def test_a_job_waits_for_input(boss: AgentClient, one: AgentClient) -> None:
    job = await ordered(boss, one)
    async with anyio.create_task_group() as group, job:
        group.start_soon(resume_when_waiting, boss, job.id)
        await job.wait_for_input()
        assert (await boss.tasks.get(job.id)).status is TaskStatus.RUNNING
        group.start_soon(resume_when_waiting, boss, job.id)
        await job.wait_for_input()
    assert job.end is JobEnd.COMPLETED


async def resume_when_waiting(boss: AgentClient, task_id: str) -> None:
    await wait_for(boss, task_id, TaskStatus.WAITING_INPUT)
    await boss.tasks.resume(task_id)


@with_shop()
async def test_a_job_waits_for_a_certain_input(boss: AgentClient, one: AgentClient) -> None:
    job = await ordered(boss, one)
    async with anyio.create_task_group() as group, job:

        async def answer() -> None:
            await wait_for(boss, job.id, TaskStatus.WAITING_INPUT)
            await boss.send_input(job.id)
            await boss.send_input(job.id, {"approved": "no", "by": "ann"})
            assert (await boss.tasks.get(job.id)).status is TaskStatus.WAITING_INPUT
            await boss.send_input(job.id, {"approved": "yes", "by": "ann"})

        group.start_soon(answer)
        await job.wait_for_input({"approved": "yes"})
    assert job.end is JobEnd.COMPLETED
    with pytest.raises(InvalidArgument):
        await boss.send_input("a::b")


@with_shop()
async def test_an_input_that_came_before_its_wait_ends_the_wait(boss: AgentClient, one: AgentClient) -> None:
    job = await ordered(boss, one)
    async with job:
        await boss.send_input(job.id, {"page": "2"})
        await boss.send_input(job.id, {"page": "1"})
        until = datetime.now(UTC) + timedelta(milliseconds=300)
        await job.wait_until(until)
        assert datetime.now(UTC) >= until
        await job.wait_for_input({"page": "1"})
        await job.wait_for_input()
    assert job.end is JobEnd.COMPLETED


@with_shop()
async def test_a_wait_that_takes_too_long_fails_the_task(boss: AgentClient, one: AgentClient) -> None:
    job = await ordered(boss, one)
    async with job:
        await job.wait_for_input(timeout=0.2)
        raise AssertionError("behind the end")
    assert (job.end, job.reason) == (JobEnd.FAILED, "wait timeout")


@with_shop()
async def test_a_job_waits_for_tasks(boss: AgentClient, one: AgentClient) -> None:
    job = await ordered(boss, one, "first")
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


@with_shop()
async def test_a_cancelled_wait_lets_the_block_go_on(boss: AgentClient, one: AgentClient) -> None:
    job = await ordered(boss, one)
    async with job:
        async with anyio.create_task_group() as group:
            group.start_soon(job.wait_for_input)
            await wait_for(boss, job.id, TaskStatus.WAITING_INPUT)
            with pytest.raises(RuntimeError, match="is in another wait already"):
                await job.wait_for_input()
            group.cancel_scope.cancel()
        assert (await boss.tasks.get(job.id)).status is TaskStatus.RUNNING
    assert job.end is JobEnd.COMPLETED


@with_shop()
async def test_a_job_waits_until_its_request_is_approved(boss: AgentClient, one: AgentClient) -> None:
    for approved in (True, False):
        job = await ordered(boss, one)
        request = await one.authority_requests.create(asked_of(boss))

        async def decide(request_id: str = request.request_id, approved: bool = approved, job: Job = job) -> None:
            await wait_for(boss, job.id, TaskStatus.WAITING_AUTHORITY)
            if approved:
                await boss.authority_requests.approve(request_id)
            else:
                await boss.authority_requests.deny(request_id, reason="no")

        async with anyio.create_task_group() as group:
            group.start_soon(decide)
            async with job:
                await job.wait_for_authority(request.request_id)
                assert approved
        assert job.end is (JobEnd.COMPLETED if approved else JobEnd.FAILED)
    assert (await boss.tasks.get(job.id)).error == "authority request denied: no"


def asked_of(approver: AgentClient) -> AuthorityWish:
    """A request for what another agent may do."""
    who = Principal.of(approver.topic)
    return AuthorityWish(
        target_subject=who,
        requested_access_level=AccessLevel.READ,
        requested_duration_s=60,
        route=AuthorityRoute(principal=who),
    )


@with_shop()
async def test_a_task_that_is_cancelled_while_it_waits_ends_its_block(boss: AgentClient, one: AgentClient) -> None:
    job = await ordered(boss, one)
    async with anyio.create_task_group() as group:

        async def cancel() -> None:
            await wait_for(boss, job.id, TaskStatus.WAITING_INPUT)
            await boss.tasks.cancel(job.id)

        group.start_soon(cancel)
        async with job:
            await job.wait_for_input()
            raise AssertionError("behind the end")
    assert job.end is JobEnd.CANCELLED


def test_an_exception_as_a_reason() -> None:
    assert describe(KeyError("x")) == "KeyError: 'x'"
    assert describe(ValueError()) == "ValueError"
    assert describe(ExceptionGroup("g", [ValueError("a"), ExceptionGroup("h", [KeyError("b")])])) == (
        "ValueError: a; KeyError: 'b'"
    )
    assert len(describe(ValueError("x" * 10_000))) == REASON_CHARS
