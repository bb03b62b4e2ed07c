"""Test work in a script that blocks: the same block, in threads."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from aether_trio.client import Job, JobEnd, SyncJob, connect_sync
from aether_trio.client.operations import StatusChanged, TaskStatus
from tests.client.blocking.test_reach import public
from tests.client.gateways import QUICK, in_a_thread

LIMIT_S = 300


def client(address: str, implementation: str, specifier: str = "1") -> Any:
    return connect_sync(address, workspace="w", implementation=implementation, specifier=specifier, retry=QUICK)


@in_a_thread
def test_a_script_works_on_tasks(address: str) -> None:
    with client(address, "boss") as boss, client(address, "bench") as one:
        jobs = one.work(timeout=30)
        boss.tasks.create("job", b"known", pool="bench")
        with next(jobs):  # see `known` in shop.py: tasks come in their order from here on
            pass
        ids = [boss.tasks.create("job", text.encode(), pool="bench").task_id for text in ("good", "bad", "sad", "end")]
        ends: list[JobEnd | None] = []
        for job in jobs:
            try:
                with job as same:
                    assert same is job
                    assert (job.id, job.type, job.creator, job.attempt) == (ids[len(ends)], "job", boss.topic, 1)
                    assert (job.payload, dict(job.metadata)) == (job.text.encode(), {})
                    assert job.task.status is TaskStatus.RUNNING
                    assert job.assignment.task_id == job.id
                    job.progress(0.5, "half")
                    job.remark = f"it was {job.text}"
                    if job.text == "bad":
                        raise ValueError("bad work")
                    if job.text == "sad":
                        job.fail("no paper")
                        raise AssertionError("behind the end")
            except ValueError:
                assert job.reason == "ValueError: bad work"
            ends.append(job.end)
            if job.text == "end":
                break
        assert ends == [JobEnd.COMPLETED, JobEnd.FAILED, JobEnd.FAILED, JobEnd.COMPLETED]
        assert boss.tasks.get(ids[2]).error == "no paper"
        with boss.tasks.follow(ids[0], since=datetime.fromtimestamp(0, UTC)) as events:
            changes = (one.event for one in events if isinstance(one.event, StatusChanged))
            assert next(one.reason for one in changes if one.to_status is TaskStatus.COMPLETED) == "it was good"


@in_a_thread
def test_a_job_of_a_script_waits(address: str) -> None:
    with client(address, "boss") as boss, client(address, "bench") as one:
        task_id = boss.tasks.create("job", pool="bench").task_id

        def resume() -> None:
            while boss.tasks.get(task_id).status is not TaskStatus.WAITING_INPUT:
                pass
            boss.tasks.resume(task_id)

        for job in one.work(timeout=30):
            with job:
                if not job.assignment.checkpoint_key:
                    helper = threading.Thread(target=resume)
                    helper.start()
                    job.wait_for_input()
                    helper.join()
                    assert boss.tasks.get(task_id).status is TaskStatus.RUNNING
                    job.hibernate(b"half")
                    raise AssertionError("behind the end")
                assert job.load().data == b"half"
            if job.end is JobEnd.COMPLETED:
                break
            assert job.end is JobEnd.HIBERNATED
            boss.tasks.resume(task_id)


@in_a_thread
def test_a_task_that_is_taken_away_ends_the_block(address: str) -> None:
    with client(address, "boss") as boss, client(address, "bench") as one:
        boss.tasks.create("job", pool="bench")
        job = next(one.work(timeout=30))
        with job:
            boss.tasks.cancel(job.id)
            while job.end is None:
                pass
            job.progress(1)
            raise AssertionError("behind the end")
        assert job.end is JobEnd.CANCELLED
        assert list(one.work(timeout=0.1)) == []


@in_a_thread
def test_handlers_run_in_threads(address: str) -> None:
    threads = set()
    together = threading.Barrier(2, timeout=30)

    def handle(job: SyncJob) -> None:
        threads.add(threading.get_ident())
        together.wait()
        if job.text == "1":
            raise ValueError("one")
        if job.text == "2":
            job.fail("two")

    with client(address, "boss") as boss:
        ids = [boss.tasks.create("job", b"%d" % number, pool="bench").task_id for number in range(6)]
        with client(address, "bench") as one:
            runner = threading.Thread(target=partial(one.run_tasks, handle, concurrency=2))
            runner.start()
            for task_id in ids:
                while boss.tasks.get(task_id).status in (TaskStatus.QUEUED, TaskStatus.RUNNING):
                    pass
        runner.join(30)
        assert not runner.is_alive()
        assert runner.ident not in threads
        assert [boss.tasks.get(task_id).error for task_id in ids] == ["", "ValueError: one", "two", "", "", ""]


def test_nothing_of_a_job_is_missing() -> None:
    instance = {"assignment", "task", "end", "reason", "remark"}
    inner = {"watched", "heard", "looked", "give_up", "begins_too_late", "give_result", "entered", "is_open"}
    inner |= {"listen", "release"}  # of durable functions, which are async
    assert public(Job) | instance <= public(SyncJob) | inner


def test_an_interrupt_at_either_end_of_a_block_gives_it_up() -> None:
    """Python has not begun the block, or has not told it to end."""

    class Block:
        given_up = 0
        entering: BaseException | None = None

        def __enter__(self) -> None:
            if self.entering is not None:
                raise self.entering

        def __exit__(self, *error: object) -> bool:
            raise KeyboardInterrupt

        def give_up(self) -> None:
            self.given_up += 1

    block: Any = Block()
    bridge: Any = SimpleNamespace(entered=lambda _: block)
    with pytest.raises(KeyboardInterrupt), SyncJob(bridge, None):  # type: ignore[arg-type]
        assert block.given_up == 0
    assert block.given_up == 1
    block.entering = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt), SyncJob(bridge, None):  # type: ignore[arg-type]
        pytest.fail("it has begun")
    assert block.given_up == 2
