"""The loop over tasks: how many at once, who gets what, and what is left of it.

On trio and asyncio.
"""

from __future__ import annotations

import logging
from typing import Any

import anyio
import pytest

from aether_trio.client import (
    AgentClient,
    ClientClosed,
    Job,
    JobEnd,
    ServiceClient,
    SessionEnded,
    TaskClient,
    UserClient,
)
from aether_trio.client.jobs import worker as worker_module
from aether_trio.client.operations import TargetOfflinePolicy, TaskStatus
from tests.client.gateways import QUICK, agent, open_test_gateway, run_on
from tests.client.jobs.shop import LIMIT_S, known, one_of, open_shop, order, wait_for, worker

BACKENDS = ["trio", "asyncio"]


class Counter:
    """How many handlers run, and how many did at most."""

    def __init__(self) -> None:
        self.running = self.most = 0
        self.seen: list[str] = []
        self.enough = anyio.Event()
        self.wanted = 0

    def begins(self, job: Job) -> None:
        self.running += 1
        self.most = max(self.most, self.running)
        self.seen.append(job.text)

    def ends(self) -> None:
        self.running -= 1
        if len(self.seen) == self.wanted and not self.running:
            self.enough.set()


async def one_after_the_other(address: str) -> None:
    async with open_shop(address) as (boss, one):
        await order(boss, "first")
        async for (
            job
        ) in one.work():  # from here on the gateway knows the worker, and gives it what is ordered in that order
            async with job:
                break
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


async def several_at_once_in_a_group(address: str) -> None:
    async with open_shop(address) as (boss, one):
        counter = Counter()

        async def handle(job: Job) -> None:
            async with job:
                counter.begins(job)
                while counter.most < 4:  # so many are allowed: they all come
                    await anyio.sleep(0.005)
                await anyio.sleep(0.01)
                counter.running -= 1

        for number in range(12):
            await order(boss, str(number))
        async with anyio.create_task_group() as group:
            async for job in one.work(concurrency=4):
                group.start_soon(handle, job)
                if job.text == "11":
                    break
        assert (sorted(map(int, counter.seen)), counter.most) == (list(range(12)), 4)


async def several_at_once_with_a_handler(address: str) -> None:
    async with open_shop(address) as (boss, one):
        counter = Counter()
        counter.wanted = 12

        async def handle(job: Job) -> None:
            counter.begins(job)
            while counter.most < 3:
                await anyio.sleep(0.005)
            await anyio.sleep(0.01)
            counter.ends()

        ids = [await order(boss, str(number)) for number in range(12)]
        async with anyio.create_task_group() as group:

            async def run() -> None:
                await one.run_tasks(handle, concurrency=3)

            group.start_soon(run)
            await counter.enough.wait()
            for task_id in ids:
                await wait_for(boss, task_id, TaskStatus.COMPLETED)
            group.cancel_scope.cancel()
        assert (sorted(map(int, counter.seen)), counter.most) == (list(range(12)), 3)


async def a_handler_that_fails(address: str) -> None:
    async with open_shop(address) as (boss, one):

        async def handle(job: Job) -> None:
            if job.text == "bad":
                raise ValueError("bad work")

        async with anyio.create_task_group() as group:
            group.start_soon(one.run_tasks, handle)
            bad, good = await order(boss, "bad"), await order(boss, "good")
            assert (await wait_for(boss, bad, TaskStatus.FAILED)).error == "ValueError: bad work"
            await wait_for(boss, good, TaskStatus.COMPLETED)
            group.cancel_scope.cancel()


async def a_handler_that_is_stopped(address: str) -> None:
    async with open_shop(address) as (boss, one):
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


async def two_workers_share(address: str) -> None:
    async with open_shop(address) as (boss, one), worker(address, "2") as two:
        seen: dict[str, list[str]] = {"1": [], "2": []}
        ids = [await order(boss, str(number)) for number in range(30)]

        async def work(client: AgentClient, name: str) -> None:
            async def handle(job: Job) -> None:
                seen[name].append(job.text)

            await client.run_tasks(handle, concurrency=2)

        async with anyio.create_task_group() as group:
            group.start_soon(work, one, "1")
            group.start_soon(work, two, "2")
            for task_id in ids:
                await wait_for(boss, task_id, TaskStatus.COMPLETED)
            group.cancel_scope.cancel()
        assert sorted(map(int, seen["1"] + seen["2"])) == list(range(30))
        assert seen["1"]
        assert seen["2"]


async def a_worker_is_given_as_many_as_it_wants(address: str) -> None:
    with anyio.fail_after(LIMIT_S):
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
                assert job.id == ids[2]  # the rest was nobody's yet
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


async def what_is_left_goes_to_others(address: str) -> None:
    with anyio.fail_after(LIMIT_S):
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


async def work_that_is_there_before_the_worker(address: str) -> None:
    """It comes right behind the answer that lets the worker in, before any loop has begun."""
    with anyio.fail_after(LIMIT_S):
        async with agent(address, "boss") as boss:
            task_id = await order(boss)
            async with worker(address) as one:
                await one.tasks.get(task_id)  # an answer: what came before it is here
                async with await one_of(one) as job:
                    assert job.id == task_id


async def services_and_task_workers(address: str) -> None:
    with anyio.fail_after(LIMIT_S):
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


async def the_end_of_the_client(address: str) -> None:
    with anyio.fail_after(LIMIT_S):
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


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "body",
    [
        one_after_the_other,
        several_at_once_in_a_group,
        several_at_once_with_a_handler,
        a_handler_that_fails,
        a_handler_that_is_stopped,
        two_workers_share,
        a_worker_is_given_as_many_as_it_wants,
        what_is_left_goes_to_others,
        work_that_is_there_before_the_worker,
        services_and_task_workers,
        the_end_of_the_client,
    ],
    ids=lambda body: body.__name__,
)
async def test_loop(backend: str, body: Any) -> None:
    async with open_test_gateway() as gateway:
        await run_on(backend, body, f"aether://{gateway.address}")


@pytest.mark.parametrize("body", [one_after_the_other, several_at_once_with_a_handler], ids=lambda body: body.__name__)
async def test_loop_on_websocket(body: Any) -> None:
    async with open_test_gateway() as gateway:
        await run_on("trio", body, f"ws://{gateway.address}")


async def test_the_failure_of_the_client_ends_the_loop_and_is_raised_from_the_block() -> None:
    async with open_test_gateway() as gateway:
        address = f"aether://{gateway.address}"
        with pytest.raises(SessionEnded, match="an operator"):
            async with worker(address) as one:
                await end_session(address, one.session_id)
                await one.run_tasks(lambda job: anyio.sleep(0), concurrency=2)


async def end_session(address: str, session_id: str) -> None:
    from aether_trio.client import OrchestratorClient

    async with OrchestratorClient(address, implementation="o", profiles=["p"]) as operator:
        await operator.sessions.disconnect(session_id, reason="an operator")


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
                while f"task {job.id} was handed out" not in caplog.text:
                    await anyio.sleep(0.01)
                await boss.kv.get("k")  # longer than another claim takes
                await anyio.sleep(0.05)
                assert others == [], "one at a time"
                async with job:
                    pass
        assert len(others) == 1


async def test_whoever_is_cancelled_while_it_claims_leaves_the_task_to_the_next_one() -> None:
    import trio

    from aether_trio.wire.pb import aether_pb2 as pb
    from tests.client.jobs.shop import assignment, info, moved
    from tests.client.peer import open_peer

    op = pb.TaskOperation
    async with open_peer() as peer, trio.open_nursery() as nursery:
        claiming = trio.Event()
        done: list[JobEnd | None] = []

        async def body() -> None:
            async with worker(peer.address) as one:
                jobs = one.work()
                with trio.CancelScope() as scope:
                    async with trio.open_nursery() as waiting:

                        async def cancel() -> None:
                            await claiming.wait()
                            scope.cancel()

                        waiting.start_soon(cancel)
                        await anext(jobs)
                assert scope.cancelled_caught
                async with await anext(jobs) as job:
                    assert job.id == "t1"
                done.append(job.end)

        nursery.start_soon(body)
        line = await peer.accept()
        await line.tell(**assignment())
        first = (await line.asked()).task_op
        claiming.set()
        again = await moved(line, op.CLAIM, 2)
        assert (first.op, again.task_id) == (op.CLAIM, "t1")
        await moved(line, op.COMPLETE, 3)
        await line.end()
        assert info(3).status == 3
    assert done == [JobEnd.COMPLETED]


def test_arguments() -> None:
    with pytest.raises(ValueError, match="one task at a time"):
        worker_module.Jobs(None, 0)  # type: ignore[arg-type]
    assert not hasattr(UserClient, "work")
