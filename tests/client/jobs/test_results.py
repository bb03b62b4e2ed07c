"""A task's result, from the block of its worker to the participant that waits."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
import trio

from aether_trio.client import (
    AgentClient,
    JobEnd,
    PayloadTooLarge,
    Refused,
    RequestTimeout,
    TaskFailed,
    TaskNotEnded,
    TaskOver,
)
from aether_trio.client.operations import RetryPolicy, TaskStatus
from aether_trio.client.operations import tasks as tasks_module
from aether_trio.client.operations.task_results import MAX_RESULT_BYTES
from aether_trio.client.operations.tasks import Tasks
from tests.client.gateways import agent
from tests.client.jobs.shop import LIMIT_S, one_of, order, ordered, wait_for, with_shop, worker
from tests.helpers.gateway import open_gateway_process

BYTES = [b"", b"\0\xff", bytes(MAX_RESULT_BYTES)]
DEEP: Any = ()
for _ in range(100):
    DEEP = (DEEP,)
VALUES = [3, {"sum": [1, 2.5, None]}, "\N{SNOWMAN}", "\ud800", False, "x" * (MAX_RESULT_BYTES - 2)]


@pytest.mark.parametrize("value", [*BYTES, *VALUES], ids=lambda value: ascii(value)[:12])
@with_shop()
async def test_the_result_of_complete_reaches_who_waits(boss: AgentClient, one: AgentClient, value: Any) -> None:
    job = await ordered(boss, one)
    async with anyio.create_task_group() as group:
        found: list[Any] = []

        async def wait() -> None:
            found.append(await boss.tasks.wait(job.id, timeout=LIMIT_S))

        group.start_soon(wait)
        async with job:
            await job.complete(value)
            pytest.fail("the block goes on behind `complete`")
    assert job.end is JobEnd.COMPLETED
    assert (found[0].status, found[0].has_result, found[0].result) == (TaskStatus.COMPLETED, True, value)
    assert (await boss.tasks.wait(job.id)).result == value, "it has ended long ago"
    [listed] = (await boss.tasks.query(task_type="job")).tasks
    assert (listed.has_result, listed.result) == (True, None)


@with_shop()
async def test_a_task_without_a_result_has_none(boss: AgentClient, one: AgentClient) -> None:
    async with await ordered(boss, one) as job:
        pass
    task = await boss.tasks.wait(job.id)
    assert (task.has_result, task.result) == (False, None)


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ({1, 2}, "set"),
        (object(), "object"),
        (float("nan"), "float"),
        ([b"x"], "list"),
        (DEEP, "nested deeper than 100"),
    ],
)
@with_shop()
async def test_what_is_no_result_fails_the_task(boss: AgentClient, one: AgentClient, value: Any, why: str) -> None:
    job = await ordered(boss, one)
    with pytest.raises(TypeError, match="bytes, or what JSON can hold"):
        async with job:
            await job.complete(value)
    task = await boss.tasks.wait(job.id)
    assert task.status is TaskStatus.FAILED
    assert task.error.startswith("TypeError: the result of a task is bytes, or what JSON can hold; " + why)


@with_shop()
async def test_a_result_that_is_too_large_is_saved_as_a_checkpoint(boss: AgentClient, one: AgentClient) -> None:
    large = bytes(MAX_RESULT_BYTES + 1)
    async with await ordered(boss, one) as job:
        with pytest.raises(PayloadTooLarge, match=r"result_checkpoint=task\.saved_key"):
            await job.complete(large)
        await job.save(large)
        await job.complete(result_checkpoint=job.saved_key)
    task = await boss.tasks.wait(job.id)
    assert (task.has_result, task.result, task.result_checkpoint) == (True, None, job.saved_key)
    assert await boss.tasks.saved_result(job.id) == large
    async with await ordered(boss, one) as job:
        await one.checkpoints.save(b"own", "mine")
        await job.complete(result_checkpoint="mine")
    assert await boss.tasks.saved_result(job.id) == b"own"


@with_shop()
async def test_a_checkpoint_that_was_not_saved_is_no_result(boss: AgentClient, one: AgentClient) -> None:
    job = await ordered(boss, one)
    with pytest.raises(Refused, match="not found: save it"):
        async with job:
            await job.complete(result_checkpoint="nothing")
    assert (await boss.tasks.wait(job.id)).status is TaskStatus.FAILED
    with pytest.raises(Refused, match="no result that is a checkpoint"):
        await boss.tasks.saved_result(job.id)


@with_shop()
async def test_a_handler_returns_the_result(boss: AgentClient, one: AgentClient) -> None:
    async def handle(job: Any) -> Any:
        match job.text:
            case "bytes":
                return b"\0"
            case "none":
                return None
            case "bad":
                return {1}
            case text:
                return {"text": text}

    async with anyio.create_task_group() as group:
        group.start_soon(one.run_tasks, handle)
        run = boss.tasks.run
        assert await run("job", b"a", pool="bench", timeout=LIMIT_S) == {"text": "a"}
        assert await run("job", b"bytes", pool="bench", timeout=LIMIT_S) == b"\0"
        assert await run("job", b"none", pool="bench", timeout=LIMIT_S) is None
        with pytest.raises(TaskFailed, match=r"has failed: TypeError: .*JSON can hold; set") as failed:
            await run("job", b"bad", pool="bench", timeout=LIMIT_S)
        task: Any = failed.value.task
        assert (task.outcome, task.attempt) == ("no_policy", 1)
        group.cancel_scope.cancel()


@with_shop()
async def test_run_gives_a_large_result_and_ends_in_time(boss: AgentClient, one: AgentClient) -> None:
    async def handle(job: Any) -> None:
        if job.text == "large":
            await job.save(bytes(1_000_000))
            await job.complete(result_checkpoint=job.saved_key)
        await anyio.sleep_forever()

    async with anyio.create_task_group() as group:
        group.start_soon(one.run_tasks, handle)
        assert len(await boss.tasks.run("job", b"large", pool="bench")) == 1_000_000
        for timeout in (0.5, 5, LIMIT_S):  # a slow machine has not created it by the first
            with pytest.raises(TaskNotEnded, match=r"has not ended within .* s; it goes on") as late:
                await boss.tasks.run("job", b"slow", pool="bench", timeout=timeout, idempotency_key="slow")
            if late.value.task_id:
                break
        [task] = (await boss.tasks.query(statuses=[TaskStatus.QUEUED, TaskStatus.RUNNING])).tasks
        assert late.value.task_id == task.task_id
        with pytest.raises(TimeoutError, match=f"task {task.task_id} has not ended within"):
            await boss.tasks.wait(task.task_id, timeout=0.05)
        group.cancel_scope.cancel()


@with_shop()
async def test_who_waits_is_not_told_of_a_failure_that_is_tried_again(boss: AgentClient, one: AgentClient) -> None:
    policy = RetryPolicy(max_attempts=3, initial_delay_s=0.05)
    task_id = await order(boss, retry_policy=policy)
    ended: list[Any] = []

    async def wait() -> None:
        ended.append(await boss.tasks.wait(task_id, timeout=LIMIT_S))

    async with anyio.create_task_group() as group:
        group.start_soon(wait)
        for number in (1, 2, 3):
            async with await one_of(one) as job:
                assert job.attempt == number
                await job.fail(f"attempt {number}")
            if number < 3:
                assert ended == []
                if (task := await boss.tasks.get(task_id)).status is TaskStatus.FAILED:
                    assert (task.outcome, task.attempt, task.has_ended) == ("retry", number, False)
                    assert task.next_attempt_at is not None
    [task] = ended
    assert (task.status, task.outcome, task.attempt, task.error) == (TaskStatus.FAILED, "exhausted", 3, "attempt 3")


@with_shop()
async def test_waiting_for_a_task_that_is_not_there_is_refused(boss: AgentClient, one: AgentClient) -> None:
    with pytest.raises(Refused, match="task not found"):
        await boss.tasks.wait("nothing", timeout=LIMIT_S)


@with_shop()
async def test_the_payload_is_read_on_request(boss: AgentClient, one: AgentClient) -> None:
    large = bytes(range(256)) * 2000
    for payload in (b"", b"small", large):
        made = await boss.tasks.create("job", payload, pool="absent")
        assert await boss.tasks.payload(made.task_id) == payload


@with_shop()
async def test_a_late_old_attempt_saves_nothing(boss: AgentClient, one: AgentClient) -> None:
    """The state belongs to the task: the next attempt, in any worker, goes on from it."""
    task_id = await order(boss, start_to_close_s=0.3, retry_policy=RetryPolicy(max_attempts=9, initial_delay_s=0.01))
    async with await one_of(one) as job:
        assert await job.load() is None
        await job.save({"page": 1})
        await job.save({"page": 2})
        state = await job.load()
        assert state is not None
        assert state.json == {"page": 2}
        old = job
        with anyio.CancelScope(shield=True):
            await wait_for(boss, task_id, TaskStatus.FAILED, TaskStatus.QUEUED)
            for late in (one, boss):
                with pytest.raises(Refused, match="this assignment is over"):
                    await late.checkpoints.save(b"late", f"_task:{old.assignment.reference}")
    again = await one_of(one)
    async with again:
        state = await again.load()
        assert state is not None
        assert state.json == {"page": 2}
    with pytest.raises(TaskOver):
        await old.save(b"late")


@with_shop()
async def test_who_cannot_follow_its_task_waits_on_without_a_gateway(
    boss: AgentClient, one: AgentClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session follows 256 tasks; a look at a further one gets no answer here."""
    job = await ordered(boss, one)
    async with job:
        await job.save(b"large")
        await job.complete(result_checkpoint=job.saved_key)
    left = {"get": 2, "saved_result": 2}
    monkeypatch.setattr(tasks_module, "_LOOK_S", 0.01)

    def sometimes(name: str) -> None:
        real = getattr(Tasks, name)

        async def call(self: Tasks, task_id: str) -> Any:
            left[name] -= 1
            if left[name] >= 0:
                raise RequestTimeout("no answer")
            return await real(self, task_id)

        monkeypatch.setattr(Tasks, name, call)

    def follow(self: Tasks, task_id: str) -> Any:
        raise Refused("REFUSED", "a session may have at most 256 task subscriptions")

    monkeypatch.setattr(Tasks, "follow", follow)
    sometimes("get")
    sometimes("saved_result")
    assert (await boss.tasks.wait(job.id)).status is TaskStatus.COMPLETED
    made = await boss.tasks.create("job", pool="bench", idempotency_key="k")
    async with await one_of(one) as again:
        assert again.id == made.task_id
        await again.save(b"large")
        await again.complete(result_checkpoint=again.saved_key)
    left["get"] = 2
    assert await boss.tasks.run("job", pool="bench", idempotency_key="k") == b"large"


@pytest.mark.crash
async def test_who_waits_goes_on_after_a_gateway_was_killed() -> None:
    found: list[Any] = []

    async def run_one(boss: AgentClient) -> None:
        found.append(await boss.tasks.run("job", pool="bench"))

    with trio.fail_after(LIMIT_S):
        async with open_gateway_process() as gateway:
            address = f"aether://{gateway.address}"
            async with agent(address, "boss") as boss, trio.open_nursery() as nursery:
                nursery.start_soon(run_one, boss)
                while not (await boss.tasks.query()).tasks:
                    await trio.sleep(0.01)
                await trio.to_thread.run_sync(gateway.kill)
                await trio.to_thread.run_sync(gateway.restart)
                async with worker(address) as one, await one_of(one) as job:
                    await job.complete("done")
    assert found == ["done"]
