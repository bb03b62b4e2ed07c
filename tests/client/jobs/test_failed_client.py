"""A client that has failed for good ends its tasks' blocks at once, and never asks what no
connection will answer.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

import anyio
import anyio.lowlevel
import pytest
import sniffio
import trio

from aether_trio.client import AetherError, AgentClient, ConnectionLost, Job, JobEnd, Retry, Unavailable, connect_sync
from aether_trio.devtools.fault_proxy import FaultProxy, open_fault_proxy
from tests.client.gateways import agent, open_test_gateway, run_on
from tests.client.jobs.shop import LIMIT_S, one_of, order, worker

BACKENDS = ["trio", "asyncio"]
ONCE = Retry(base_s=0.001, cap_s=0.001, max_attempts=1)
NEVER = Retry(max_attempts=0)


def end_for_good(proxy: FaultProxy) -> None:
    """Cut the worker off, and let it not come back."""

    def cut() -> None:
        proxy.target = tuple
        proxy.cut_all()

    if sniffio.current_async_library() == "trio":
        cut()
    else:
        trio.from_thread.run_sync(cut)


Moment = Callable[[AgentClient, Job, FaultProxy], Awaitable[None]]


async def asleep(one: AgentClient, job: Job, proxy: FaultProxy) -> None:
    async with job:
        end_for_good(proxy)
        await anyio.sleep_forever()


async def completing(one: AgentClient, job: Job, proxy: FaultProxy) -> None:
    async with job:
        end_for_good(proxy)


async def failing(one: AgentClient, job: Job, proxy: FaultProxy) -> None:
    async with job:
        end_for_good(proxy)
        raise ValueError("the body's own")


async def watched(one: AgentClient, job: Job, proxy: FaultProxy) -> None:
    async with job:
        await job.watched.wait()
        end_for_good(proxy)
        await anyio.sleep_forever()


async def waiting(one: AgentClient, job: Job, proxy: FaultProxy) -> None:
    async with anyio.create_task_group() as group, job:
        group.start_soon(job.wait_for_input)
        await anyio.wait_all_tasks_blocked()
        end_for_good(proxy)
        await anyio.sleep_forever()


async def asked_again_and_again(one: AgentClient, job: Job, proxy: FaultProxy) -> None:
    """A program that takes every cut for one that passes is still cancelled."""
    end_for_good(proxy)
    async with job:
        while True:
            try:
                await one.tasks.get(job.id)
            except (ConnectionLost, Unavailable):
                continue


async def looped_again_and_again(one: AgentClient, job: Job, proxy: FaultProxy) -> None:
    end_for_good(proxy)
    async with job:
        while True:
            try:
                async for _ in one:
                    pass
            except (ConnectionLost, Unavailable):
                continue


async def worked_again_and_again(one: AgentClient, job: Job, proxy: FaultProxy) -> None:
    end_for_good(proxy)
    async with job:
        while True:
            try:
                async for _ in one.work(concurrency=2):
                    pass
            except (ConnectionLost, Unavailable):
                continue


async def followed_again_and_again(one: AgentClient, job: Job, proxy: FaultProxy) -> None:
    end_for_good(proxy)
    async with job:
        while True:
            try:
                with one.open_feed("task_event") as feed:
                    async for _ in feed:
                        pass
            except (ConnectionLost, Unavailable):
                continue


async def published_again_and_again(one: AgentClient, job: Job, proxy: FaultProxy) -> None:
    end_for_good(proxy)
    async with job:
        while True:
            try:
                await one.publish(one.topic, b"")
            except (ConnectionLost, Unavailable):
                continue


async def told_again_and_again(one: AgentClient, job: Job, proxy: FaultProxy) -> None:
    end_for_good(proxy)
    async with job:
        while True:
            try:
                await job.progress(0.5)
            except (ConnectionLost, Unavailable):
                continue


async def waited_again_and_again(one: AgentClient, job: Job, proxy: FaultProxy) -> None:
    """Also when the end was not felt where it came."""
    end_for_good(proxy)
    async with job:
        with anyio.CancelScope(shield=True), pytest.raises((ConnectionLost, Unavailable)):
            await job.wait_for_input()
        while True:
            try:
                await job.wait_for_input()
            except (ConnectionLost, Unavailable):
                continue


async def fails(direct: str, proxy: FaultProxy, retry: Retry, moment: Moment) -> None:
    with anyio.fail_after(LIMIT_S):
        async with agent(direct, "boss") as boss:
            task_id = await order(boss)
            with pytest.raises((ConnectionLost, Unavailable, ValueError)) as caught:
                async with worker(f"aether://{proxy.address}", retry=retry) as one:
                    job = await one_of(one)
                    assert job.id == task_id
                    await moment(one, job, proxy)
            assert isinstance(caught.value, ValueError) == (moment is failing)
            assert job.end is None or job.end is JobEnd.FAILED


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("retry", [NEVER, ONCE], ids=["never", "once"])
@pytest.mark.parametrize(
    "moment",
    [
        asleep,
        completing,
        failing,
        watched,
        waiting,
        asked_again_and_again,
        looped_again_and_again,
        worked_again_and_again,
        followed_again_and_again,
        published_again_and_again,
        told_again_and_again,
        waited_again_and_again,
    ],
    ids=lambda moment: moment.__name__,
)
async def test_an_open_task_of_a_client_that_has_failed(backend: str, retry: Retry, moment: Moment) -> None:
    async with open_test_gateway() as gateway, open_fault_proxy(gateway.address) as proxy:
        await run_on(backend, partial(fails, f"aether://{gateway.address}", proxy, retry, moment))


@pytest.mark.parametrize("retry", [NEVER, ONCE], ids=["never", "once"])
async def test_a_thread_with_a_task_of_a_client_that_has_failed(retry: Retry) -> None:
    async with open_test_gateway() as gateway, open_fault_proxy(gateway.address) as proxy:
        direct = f"aether://{gateway.address}"
        async with agent(direct, "boss") as boss:
            await order(boss)

            def script() -> str:
                try:
                    with connect_sync(
                        f"aether://{proxy.address}", workspace="w", implementation="bench", specifier="1", retry=retry
                    ) as one:
                        for job in one.work():
                            with job:
                                trio.from_thread.run_sync(partial(end_for_good, proxy))
                                job.wait_for_input()
                except AetherError as error:
                    return type(error).__name__
                return ""

            with trio.fail_after(LIMIT_S):
                raised = await trio.to_thread.run_sync(script, abandon_on_cancel=True)
            assert raised in {"ConnectionLost", "Unavailable"}
