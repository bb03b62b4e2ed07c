"""A task that waits frees its place; what ended the wait reaches its block."""

from __future__ import annotations

import json
import logging
import math
from typing import Any

import anyio
import pytest

from aether_trio.client import AgentClient, FailedPrecondition, Job, JobEnd
from aether_trio.client.jobs import worker as worker_module
from aether_trio.client.operations import Answer, Input, TaskStatus
from tests.client.jobs.shop import one_of, order, ordered, wait_for, with_shop


@with_shop()
async def test_an_input_with_metadata_and_payload_reaches_the_block(boss: AgentClient, one: AgentClient) -> None:
    async with await ordered(boss, one) as job:
        await boss.send_input(job.id, {"ok": "no"}, payload=b"other")
        await boss.send_input(job.id, {"ok": "yes", "n": "1"}, payload=b"\0\xff")
        used = await job.wait_for_input({"ok": "yes"})
        assert used == Input(by=boss.topic, metadata={"ok": "yes", "n": "1"}, payload=b"\0\xff")


@with_shop()
async def test_a_wait_that_was_resumed_has_an_empty_input(boss: AgentClient, one: AgentClient) -> None:
    async with await ordered(boss, one) as job, anyio.create_task_group() as group:

        async def resume() -> None:
            await wait_for(boss, job.id, TaskStatus.WAITING_INPUT)
            await boss.tasks.resume(job.id)

        group.start_soon(resume)
        assert await job.wait_for_input() == Input()


@with_shop()
async def test_a_person_answers_a_question(boss: AgentClient, one: AgentClient) -> None:
    async def answer(job: Job) -> None:
        task = await wait_for(boss, job.id, TaskStatus.WAITING_INPUT)
        assert task.question is not None
        assert json.loads(task.question.form) == {"question": "Pay?", "choices": ["now", "later"], "text": "Why?"}
        assert task.wait_spec is not None
        assert task.wait_spec.timeout_s == 60
        await boss.answer(task, False, choice="later", text="too dear")

    async with await ordered(boss, one) as job, anyio.create_task_group() as group:
        group.start_soon(answer, job)
        found = await job.ask("Pay?", choices=["now", "later"], text="Why?", match={"id": "7"}, timeout=60)
        assert found == Answer(approved=False, choice="later", text="too dear", by=boss.topic)
    async with await ordered(boss, one) as job:
        with pytest.raises(FailedPrecondition, match="asks no question"):
            await boss.answer(job.id, True)
        await boss.send_input(job.id, {"decision": "approve", "question_id": "7"})
        assert await job.ask("Sure?", of=boss.topic, match={"question_id": "7"}) == Answer(approved=True, by=boss.topic)


@with_shop()
async def test_an_answer_that_comes_late_is_none_to_the_next_question(boss: AgentClient, one: AgentClient) -> None:
    """Two people approve at one moment, and one of them has read the first question."""
    answers: list[Answer] = []

    async def answer(job: Job) -> None:
        first = await wait_for(boss, job.id, TaskStatus.WAITING_INPUT)
        await boss.answer(first, True)
        await boss.answer(first, True)
        while not answers:
            await anyio.sleep(0.01)
        second = await wait_for(boss, job.id, TaskStatus.WAITING_INPUT)
        await boss.answer(first, True)
        await boss.answer(second, False)
        while len(answers) < 2:
            await anyio.sleep(0.01)
        await wait_for(boss, job.id, TaskStatus.WAITING_INPUT)
        await boss.answer(first, True)
        await boss.send_input(job.id, {"go": "on"})

    async with await ordered(boss, one) as job, anyio.create_task_group() as group:
        group.start_soon(answer, job)
        answers.append(await job.ask("Pay?"))
        answers.append(await job.ask("Pay?"))
        assert [found.approved for found in answers] == [True, False]
        assert (await job.wait_for_input()).metadata == {"go": "on"}, "nor does it end a plain wait"


@with_shop()
async def test_tasks_that_wait_do_not_keep_others_from_the_worker(boss: AgentClient, one: AgentClient) -> None:
    """Ten tasks wait, in a worker that works on one at a time."""
    done: list[str] = []

    async def handle(job: Job) -> None:
        if job.text.startswith("wait"):
            await job.wait_for_input()
        done.append(job.text)

    async with anyio.create_task_group() as group:
        group.start_soon(one.run_tasks, handle)
        waiting = [await order(boss, f"wait {number}") for number in range(10)]
        for task_id in waiting:
            await wait_for(boss, task_id, TaskStatus.WAITING_INPUT)
        quick = await order(boss, "quick")
        await boss.tasks.wait(quick)
        assert done == ["quick"]
        for task_id in waiting:
            await boss.tasks.resume(task_id)
        for task_id in waiting:
            await boss.tasks.wait(task_id)
        assert len(done) == 11
        # All places are free again, and no more than there were.
        working, most = 0, 0

        async def count(job: Job) -> None:
            nonlocal working, most
            working += 1
            most = max(most, working)
            await anyio.sleep(0.01)
            working -= 1

        handle_two: Any = count
        group.cancel_scope.cancel()
    async with anyio.create_task_group() as group:
        group.start_soon(one.run_tasks, handle_two)
        for task_id in [await order(boss) for _ in range(5)]:
            await boss.tasks.wait(task_id)
        group.cancel_scope.cancel()
    assert most == 1


@with_shop(backends=["trio"])
async def test_a_wait_in_the_body_of_the_loop_says_once_how_many_it_blocks(
    boss: AgentClient, one: AgentClient, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "BLOCKED_S", 0.01)
    caplog.set_level(logging.WARNING, "aether_trio.client")

    def blocked() -> list[str]:
        return [record.message for record in caplog.records if "waits inside of its block" in record.message]

    first, second = await order(boss), await order(boss)
    async for job in one.work():
        async with job, anyio.create_task_group() as group:

            async def resume(task_id: str) -> None:
                await wait_for(boss, task_id, TaskStatus.WAITING_INPUT)
                while not blocked():
                    await anyio.sleep(0.01)
                await boss.tasks.resume(task_id)

            group.start_soon(resume, job.id)
            await job.wait_for_input()
        if job.id == second:
            break
        assert job.id == first
        await order(boss)
    assert len(blocked()) == 1
    assert f"task {first} waits inside of its block, and 1 further tasks" in blocked()[0]


@with_shop()
async def test_a_wait_that_ends_with_its_task_frees_one_place(boss: AgentClient, one: AgentClient) -> None:
    jobs = one.work()
    for _ in range(3):
        await order(boss)
        job = await anext(jobs)
        async with job:
            with anyio.move_on_after(0.05):
                await job.wait_for_input(timeout=0.01)
            await anyio.sleep_forever()
        assert job.end is JobEnd.FAILED
    assert jobs._places.free == 1


@pytest.mark.parametrize("timeout", [0, -1.5, 0.0001])
@with_shop()
async def test_a_limit_that_is_past_is_over_at_once(boss: AgentClient, one: AgentClient, timeout: float) -> None:
    """As of a program that computes what is left of its time."""
    async with await ordered(boss, one) as job:
        await job.ask("Pay?", timeout=timeout)
    assert (job.end, job.reason) == (JobEnd.FAILED, "wait timeout")


@with_shop()
async def test_an_endless_limit_is_none(boss: AgentClient, one: AgentClient) -> None:
    async with await ordered(boss, one) as job:
        await boss.send_input(job.id, {"go": "on"})
        assert (await job.wait_for_input(timeout=math.inf)).metadata == {"go": "on"}


@with_shop()
async def test_hibernate_keeps_what_was_saved(boss: AgentClient, one: AgentClient) -> None:
    task_id = await order(boss)
    async with await one_of(one) as job:
        await job.save({"page": 3})
        await job.hibernate()
    assert job.end is JobEnd.HIBERNATED
    await boss.tasks.resume(task_id)
    async with await one_of(one) as job:
        state = await job.load()
        assert state is not None
        assert state.json == {"page": 3}
        await job.hibernate(b"\0")
    await boss.tasks.resume(task_id)
    async with await one_of(one) as job:
        state = await job.load()
        assert state is not None
        assert state.data == b"\0"
