"""Test the loop over tasks: how many run at once, and which worker gets which."""

from __future__ import annotations

import logging
from functools import partial

import anyio
import pytest

from aether_trio.client import (
    AgentClient,
    ClientClosed,
    Job,
    JobEnd,
    OrchestratorClient,
    ServiceClient,
    SessionEnded,
    TaskClient,
    UserClient,
)
from aether_trio.client.jobs import worker as worker_module
from aether_trio.client.operations import TargetOfflinePolicy, TaskStatus
from tests.client.gateways import QUICK, agent, open_test_gateway, with_gateway
from tests.client.jobs.shop import known, one_of, open_shop, order, wait_for, with_shop, worker


class Counter:
    """Count the running handlers, and the most at once: `wanted` are to come."""

    def __init__(self, wanted: int) -> None:
        self.running = self.most = 0
        self.seen: list[int] = []
        self._wanted = wanted

    async def handle(self, job: Job) -> None:
        self.running += 1
        self.most = max(self.most, self.running)
        self.seen.append(int(job.text))
        while self.most < self._wanted:
            await anyio.sleep(0.005)
        await anyio.sleep(0.01)
        self.running -= 1


@with_shop(schemes=["aether", "ws"])
async def test_one_after_the_other(boss: AgentClient, one: AgentClient) -> None:
    await known(boss, one)
    for number in range(20):
        await order(boss, str(number))
    seen = []
    async for job in one.work():
        async with job:
            seen.append(int(job.text))
        assert job.end is JobEnd.COMPLETED
        if len(seen) == 20:
            break
    assert seen == list(range(20))


@with_shop()
async def test_several_at_once_in_a_group(boss: AgentClient, one: AgentClient) -> None:
    counter = Counter(4)

    async def handle(job: Job) -> None:
        async with job:
            await counter.handle(job)

    for number in range(12):
        await order(boss, str(number))
    async with anyio.create_task_group() as group:
        async for job in one.work(concurrency=4):
            group.start_soon(handle, job)
            if job.text == "11":
                break
    assert (sorted(counter.seen), counter.most) == (list(range(12)), 4)


@with_shop(schemes=["aether", "ws"])
async def test_several_at_once_with_a_handler(boss: AgentClient, one: AgentClient) -> None:
    counter = Counter(3)
    ids = [await order(boss, str(number)) for number in range(12)]
    async with anyio.create_task_group() as group:
        group.start_soon(partial(one.run_tasks, counter.handle, concurrency=3))
        for task_id in ids:
            await wait_for(boss, task_id, TaskStatus.COMPLETED)
        group.cancel_scope.cancel()
    assert (sorted(counter.seen), counter.most) == (list(range(12)), 3)


@with_shop()
async def test_a_handler_that_fails(boss: AgentClient, one: AgentClient) -> None:

    async def handle(job: Job) -> None:
        if job.text == "bad":
            raise ValueError("bad work")

    async with anyio.create_task_group() as group:
        group.start_soon(one.run_tasks, handle)
        bad, good = await order(boss, "bad"), await order(boss, "good")
        assert (await wait_for(boss, bad, TaskStatus.FAILED)).error == "ValueError: bad work"
        await wait_for(boss, good, TaskStatus.COMPLETED)
        group.cancel_scope.cancel()


@with_shop()
async def test_a_handler_that_is_stopped(boss: AgentClient, one: AgentClient) -> None:
    begun = anyio.Event()

    async def handle(job: Job) -> None:
        begun.set()
        await anyio.sleep_forever()

    task_id = await order(boss)
    async with anyio.create_task_group() as group:
        group.start_soon(one.run_tasks, handle)
        await begun.wait()
        group.cancel_scope.cancel()
    assert (await boss.tasks.get(task_id)).error == "the worker was stopped"


@with_gateway()
async def test_two_workers_share(address: str) -> None:
    async with open_shop(address) as (boss, one), worker(address, "2") as two:
        seen: dict[str, list[str]] = {"1": [], "2": []}
        ids = [await order(boss, str(number)) for number in range(30)]

        async def handle(name: str, job: Job) -> None:
            seen[name].append(job.text)

        async with anyio.create_task_group() as group:
            for name, client in (("1", one), ("2", two)):
                group.start_soon(partial(client.run_tasks, partial(handle, name), concurrency=2))
            for task_id in ids:
                await wait_for(boss, task_id, TaskStatus.COMPLETED)
            group.cancel_scope.cancel()
        assert sorted(map(int, seen["1"] + seen["2"])) == list(range(30))
        assert seen["1"]
        assert seen["2"]


@with_gateway()
async def test_a_worker_is_given_as_many_as_it_wants(address: str) -> None:
    async with agent(address, "boss") as boss, worker(address, worker_tasks=2) as one:
        await known(boss, one)
        ids = [await order(boss, str(number)) for number in range(5)]
        jobs = one.work()
        held = [await anext(jobs), await anext(jobs)]
        assert [job.id for job in held] == ids[:2]
        with anyio.move_on_after(0.05):
            held.append(await anext(jobs))
        assert len(held) == 2
        async with worker(address, "2", worker_tasks=1) as two, await one_of(two) as job:
            assert job.id == ids[2]  # no worker had the rest yet
        for job in held:
            async with job:
                pass
        async with worker(address, "3", worker_tasks=0):
            seen = []
            async for job in one.work():
                async with job:
                    seen.append(job.id)
                if len(seen) == 2:
                    break
        assert seen == ids[3:]


@with_gateway()
async def test_what_is_left_goes_to_others(address: str) -> None:
    async with agent(address, "boss") as boss:
        async with worker(address) as one:
            await known(boss, one)
            ids = [await order(boss, str(number)) for number in range(5)]
            async for job in one.work():
                async with job:
                    pass
                break
        async with worker(address, "2") as two:
            found = [await one_of(two) for _ in range(4)]
            for job in found:
                async with job:
                    pass
        assert [job.id for job in found] == ids[1:]


@with_gateway()
async def test_work_that_is_there_before_the_worker(address: str) -> None:
    """The task comes right behind the answer that lets the worker in."""
    async with agent(address, "boss") as boss:
        task_id = await order(boss)
        async with worker(address) as one:
            await one.tasks.get(task_id)  # an answer: what came before it is here
            async with await one_of(one) as job:
                assert job.id == task_id


@with_gateway()
async def test_services_and_task_workers(address: str) -> None:
    async with (
        agent(address, "boss") as boss,
        ServiceClient(address, implementation="bench", specifier="1", retry=QUICK) as service,
        TaskClient(address, workspace="w", implementation="cutter", specifier="1", retry=QUICK) as cutter,
    ):
        task_id = await order(boss)
        async with await one_of(service) as job:  # type: ignore[arg-type]
            assert job.id == task_id
        made = await boss.tasks.create("job", target=cutter.topic, offline_policy=TargetOfflinePolicy.REJECT)
        async with await one_of(cutter) as job:  # type: ignore[arg-type]
            assert job.id == made.task_id


@with_gateway()
async def test_the_end_of_the_client(address: str) -> None:
    async with anyio.create_task_group() as group:
        ended: list[str] = []

        async def loop(one: AgentClient) -> None:
            async for _ in one.work():
                pass
            ended.append("loop")

        async def run(one: AgentClient) -> None:
            await one.run_tasks(lambda job: anyio.sleep(0))
            ended.append("run")

        async with worker(address) as one:
            group.start_soon(loop, one)
            group.start_soon(run, one)
            await anyio.wait_all_tasks_blocked()
    assert sorted(ended) == ["loop", "run"]
    with pytest.raises(ClientClosed):
        one.work()


async def test_the_failure_of_the_client_ends_the_loop_and_is_raised_from_the_block() -> None:
    async with open_test_gateway() as gateway:
        address = f"aether://{gateway.address}"
        with pytest.raises(SessionEnded, match="an operator") as caught:
            async with worker(address) as one:
                async with OrchestratorClient(address, implementation="o", profiles=["p"]) as operator:
                    await operator.sessions.disconnect(one.session_id, reason="an operator")
                await one.run_tasks(lambda job: anyio.sleep(0), concurrency=2)
        assert caught.value.code == "FORCE_DISCONNECT"


async def test_a_task_whose_block_has_not_begun_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(worker_module, "FORGOTTEN_S", 0.05)
    async with open_test_gateway() as gateway, open_shop(f"aether://{gateway.address}") as (boss, one):
        for _ in range(2):
            await order(boss)
        jobs = one.work()
        job = await anext(jobs)
        others: list[Job] = []

        async def take() -> None:
            others.append(await anext(jobs))

        with caplog.at_level(logging.WARNING, logger="aether_trio.client"):
            async with anyio.create_task_group() as group:
                group.start_soon(take)
                while f"task {job.id} was given to the program" not in caplog.text:
                    await anyio.sleep(0.01)
                await boss.kv.get("k")  # longer than another claim takes
                await anyio.sleep(0.05)
                assert others == [], "one at a time"
                async with job:
                    pass
        assert len(others) == 1


def test_arguments() -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        worker_module.Jobs(None, 0)  # type: ignore[arg-type]
    assert not hasattr(UserClient, "work")
