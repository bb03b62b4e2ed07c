"""Workers, real gateways and faults: each task is done, by its worker alone."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import anyio
import pytest
import trio

from aether_trio.client import AgentClient, Job, JobEnd
from aether_trio.client.operations import TaskStatus
from aether_trio.client.operations.task_values import RetryPolicy
from aether_trio.devtools.fault_proxy import FaultProxy, open_fault_proxy
from aether_trio.devtools.random_faults import RandomFaults
from aether_trio.model.tasks.transitions import MAX_DELIVERIES
from tests.client.gateways import agent, open_test_gateway
from tests.client.jobs.shop import known, one_of, order, ordered, wait_for, worker
from tests.helpers.engines import PostgresEngine
from tests.helpers.gateway import on_postgres, open_gateway_process

LIMIT_S = 300.0
TASKS = 150


class Ledger:
    """Who works on what, now and in all."""

    def __init__(self) -> None:
        self.running: Counter[str] = Counter()
        self.done: Counter[str] = Counter()
        self.lost = 0

    async def work(self, one: AgentClient, concurrency: int) -> None:
        async with trio.open_nursery() as nursery:
            async for job in one.work(concurrency=concurrency):
                nursery.start_soon(self._block, job)

    async def _block(self, job: Job) -> None:
        async with job:
            self.running[job.id] += 1
            assert self.running[job.id] == 1, "two blocks of one task"
            try:
                await trio.sleep(0.01 * (job.attempt + int(job.text) % 3))
                await job.progress(0.5)
            finally:
                self.running[job.id] -= 1
            if int(job.text) % 10 == 0 and job.attempt == 1:
                # The next one may begin before this one has heard.
                await job.fail("the first attempt")
        if job.end is JobEnd.COMPLETED:
            self.done[job.id] += 1
        else:
            self.lost += 1


async def wait_until_done(boss: AgentClient, task_id: str) -> None:
    """Wait until the task is completed; a dead letter is tried again."""
    tasks = boss.tasks.within(LIMIT_S)
    while (task := await tasks.get(task_id)).status is not TaskStatus.COMPLETED:
        if task.status is TaskStatus.FAILED and task.error == f"given {MAX_DELIVERIES} times and never begun":
            await tasks.retry(task_id)
        await trio.sleep(0.01)


@pytest.mark.parametrize("seed", [1, 2])
async def test_random_faults_between_workers_and_the_gateway(seed: int) -> None:
    """Test that each task is completed by one block: no fault outlasts the grace."""
    over = False
    ledger = Ledger()
    with trio.fail_after(LIMIT_S):
        async with open_test_gateway() as gateway:
            faults = RandomFaults(random.Random(seed), mean_s=0.05, stall_s=0.05, over=lambda: over)
            async with open_fault_proxy(gateway.address, faults) as proxy, AsyncExitStack() as stack:
                boss = await stack.enter_async_context(agent(f"aether://{gateway.address}", "boss"))
                workers = [
                    await stack.enter_async_context(
                        worker(f"aether://{proxy.address}", str(number), worker_tasks=4, connect_timeout_s=60.0)
                    )
                    for number in range(3)
                ]
                policy = RetryPolicy(max_attempts=3, initial_delay_s=0.01)
                async with trio.open_nursery() as nursery:
                    for one in workers:
                        nursery.start_soon(ledger.work, one, 4)
                    ids = [await order(boss, str(number), retry_policy=policy) for number in range(TASKS)]
                    for task_id in ids:
                        await wait_until_done(boss, task_id)
                    over = True
                    nursery.cancel_scope.cancel()
                assert sum(one.connections for one in workers) > 3
    # A COMPLETE whose answer is still looked up when the test ends counts nowhere; none counts
    # twice.
    assert set(ledger.done) <= set(ids)
    assert max(ledger.done.values()) == 1
    assert len(ledger.done) >= TASKS - 12


@pytest.mark.crash
async def test_a_block_goes_on_at_another_node_when_its_own_is_killed(postgres_engine: PostgresEngine) -> None:
    arguments = on_postgres(postgres_engine)
    with trio.fail_after(LIMIT_S):
        async with (
            open_gateway_process(extra_args=arguments) as first,
            open_gateway_process(extra_args=arguments) as second,
            open_fault_proxy(lambda: [first.address, second.address]) as proxy,
            agent(f"aether://{second.address}", "boss") as boss,
            worker(f"aether://{proxy.address}", connect_timeout_s=60.0) as one,
        ):
            task_id = await order(boss)
            jobs = one.work()
            async with await anext(jobs) as job:
                assert job.id == task_id
                await trio.to_thread.run_sync(first.kill)
                while one.connections == 1:
                    await trio.sleep(0.01)
                await job.progress(0.9)
            assert job.end is JobEnd.COMPLETED
            task = await boss.tasks.get(task_id)
            assert (task.status, task.attempt, task.error) == (TaskStatus.COMPLETED, 1, "")


@asynccontextmanager
async def behind_a_proxy() -> AsyncIterator[tuple[AgentClient, AgentClient, FaultProxy, str]]:
    """Give a creator, a worker behind a proxy, the proxy, and the gateway's address."""
    with trio.fail_after(LIMIT_S):
        async with open_test_gateway() as gateway, open_fault_proxy(gateway.address) as proxy:
            direct = f"aether://{gateway.address}"
            async with agent(direct, "boss") as boss, worker(f"aether://{proxy.address}") as one:
                yield boss, one, proxy, direct


async def test_a_block_outlives_a_cut() -> None:
    async with behind_a_proxy() as (boss, one, proxy, _):
        await known(boss, one)
        ids = [await order(boss, str(number)) for number in range(3)]
        seen = []
        async for job in one.work():
            async with job:
                seen.append(job.text)
                connections = one.connections
                proxy.cut_all()
                while one.connections == connections:
                    await trio.sleep(0.005)
                await job.progress(0.5)
            assert job.end is JobEnd.COMPLETED
            if len(seen) == 3:
                break
        assert seen == ["0", "1", "2"]
        for task_id in ids:
            assert (await boss.tasks.get(task_id)).status is TaskStatus.COMPLETED


@pytest.mark.parametrize("watched", [False, True])
async def test_what_happened_while_the_worker_was_away_is_found_when_it_is_back(*, watched: bool) -> None:
    async with behind_a_proxy() as (boss, one, proxy, _):
        job = await ordered(boss, one)
        async with job:
            if watched:
                await job.watched.wait()
            proxy.cut_all()
            await boss.tasks.cancel(job.id)
            await boss.tasks.retry(job.id)
            await trio.sleep_forever()
        assert job.end in (JobEnd.LOST, JobEnd.CANCELLED)
        async with await one_of(one) as again:
            assert again.id == job.id
        assert (await boss.tasks.get(job.id)).status is TaskStatus.COMPLETED


async def test_a_task_that_went_to_another_worker_meanwhile() -> None:
    async with behind_a_proxy() as (boss, one, proxy, direct):
        job = await ordered(boss, one)
        async with worker(direct, "2") as two:
            async with job:
                proxy.target = tuple  # the first one cannot come back
                proxy.cut_all()
                while (await boss.tasks.get(job.id)).disconnected_at is None:
                    await trio.sleep(0.005)
                await boss.tasks.cancel(job.id)
                await boss.tasks.retry(job.id)
                other = await one_of(two)
                assert other.id == job.id
                proxy.target = direct.removeprefix("aether://")
                await trio.sleep_forever()
            assert job.end in (JobEnd.LOST, JobEnd.CANCELLED)
            async with other:
                pass
            assert other.end is JobEnd.COMPLETED
            assert (await boss.tasks.get(job.id)).assigned_to == two.topic


@pytest.mark.crash
async def test_a_gateway_that_is_killed_in_the_middle_of_work() -> None:
    """Every task is done, and none is done twice whose COMPLETE was answered."""
    with trio.fail_after(300):
        async with open_gateway_process() as gateway:
            address = f"aether://{gateway.address}"
            async with (
                agent(address, "boss", connect_timeout_s=LIMIT_S) as boss,
                worker(address, connect_timeout_s=LIMIT_S) as one,
            ):
                ids = [await order(boss, str(number)) for number in range(40)]
                done: list[str] = []
                killed = trio.Event()

                async def handle(job: Job) -> None:
                    if len(done) >= 10 and not killed.is_set():
                        killed.set()
                        connections = one.connections
                        await trio.to_thread.run_sync(gateway.kill)
                        await trio.to_thread.run_sync(gateway.restart)
                        while one.connections == connections:
                            await trio.sleep(0.01)
                    await anyio.sleep(0.002)
                    done.append(job.text)

                async with trio.open_nursery() as nursery:

                    async def run() -> None:
                        await one.run_tasks(handle, concurrency=4)

                    nursery.start_soon(run)
                    for task_id in ids:
                        await wait_for(boss, task_id, TaskStatus.COMPLETED)
                    nursery.cancel_scope.cancel()
                assert killed.is_set()
                assert sorted(done, key=int) == [str(number) for number in range(40)]


@pytest.mark.crash
async def test_inputs_that_were_accepted_wake_their_tasks_though_the_gateway_is_killed() -> None:
    with trio.fail_after(300):
        async with open_gateway_process() as gateway:
            address = f"aether://{gateway.address}"
            async with (
                agent(address, "boss", connect_timeout_s=LIMIT_S) as boss,
                worker(address, connect_timeout_s=LIMIT_S, worker_tasks=20) as one,
            ):
                ids = [await order(boss, str(number)) for number in range(20)]

                async def handle(job: Job) -> None:
                    await job.wait_for_input({"n": "1"})
                    await job.wait_for_input({"n": "2"})

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(partial(one.run_tasks, handle, concurrency=20))
                    for task_id in ids:
                        await wait_for(boss, task_id, TaskStatus.WAITING_INPUT)
                    for number in ("2", "1"):
                        for task_id in ids:
                            await boss.send_input(task_id, {"n": number})
                    await trio.to_thread.run_sync(gateway.kill)
                    await trio.to_thread.run_sync(gateway.restart)
                    for task_id in ids:
                        await wait_for(boss, task_id, TaskStatus.COMPLETED)
                    nursery.cancel_scope.cancel()
