"""Workers, gateways and everything that happens between them: every task is done, and nobody works
on one that is somebody else's.
"""

from __future__ import annotations

import random
from collections import Counter
from contextlib import AsyncExitStack

import pytest
import trio

from aether_trio.client import AgentClient, Job, JobEnd
from aether_trio.client.operations import TaskStatus
from aether_trio.client.operations.task_values import RetryPolicy
from aether_trio.devtools.fault_proxy import open_fault_proxy
from aether_trio.devtools.random_faults import RandomFaults
from aether_trio.model.tasks.table import MAX_DELIVERIES
from tests.client.gateways import agent, open_test_gateway
from tests.client.jobs.shop import order, worker
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
    """Return when the task is completed.

    On a slow machine cuts come faster than workers begin: then it is a dead letter, and tried
    again.
    """
    tasks = boss.tasks.within(LIMIT_S)
    while (task := await tasks.get(task_id)).status is not TaskStatus.COMPLETED:
        if task.status is TaskStatus.FAILED and task.error == f"given {MAX_DELIVERIES} times and never begun":
            await tasks.retry(task_id)
        await trio.sleep(0.01)


@pytest.mark.parametrize("seed", [1, 2])
async def test_random_faults_between_workers_and_the_gateway(seed: int) -> None:
    """The grace window is longer than any fault, so no block is taken away that is at work: each
    task is completed by one.
    """
    over = False
    ledger = Ledger()
    with trio.fail_after(LIMIT_S):
        async with open_test_gateway() as gateway:
            faults = RandomFaults(random.Random(seed), mean_s=0.05, stall_s=0.05, over=lambda: over)
            async with open_fault_proxy(gateway.address, faults) as proxy, AsyncExitStack() as stack:
                boss = await stack.enter_async_context(agent(f"aether://{gateway.address}", "boss"))
                workers = [
                    await stack.enter_async_context(
                        worker(f"aether://{proxy.address}", str(number), worker_tasks=4, connect_timeout=60.0)
                    )
                    for number in range(3)
                ]
                policy = RetryPolicy(max_attempts=3, initial_delay_ms=10)
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
            worker(f"aether://{proxy.address}", connect_timeout=60.0) as one,
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
            assert (task.status, task.attempt, task.error) == (TaskStatus.COMPLETED, 0, "")
