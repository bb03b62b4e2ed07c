"""A client that has failed for good ends its blocks at once, without requests."""

from __future__ import annotations

from collections.abc import AsyncIterable, Awaitable, Callable
from contextlib import suppress
from functools import partial

import anyio
import anyio.lowlevel
import pytest
import sniffio
import trio

from aether_trio.client import AgentClient, ConnectionLost, Job, JobEnd, Retry, Unavailable, connect_sync
from aether_trio.devtools.fault_proxy import FaultProxy, open_fault_proxy
from tests.client.gateways import BACKENDS, agent, open_test_gateway, run_on
from tests.client.jobs.shop import one_of, order, worker

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


async def read_all(messages: AsyncIterable[object]) -> None:
    async for _ in messages:
        pass


async def follow(one: AgentClient) -> None:
    with one.open_feed("task_event") as feed:
        await read_all(feed)


ASKS: dict[str, Callable[[AgentClient, Job], Awaitable[object]]] = {
    "asks": lambda one, job: one.tasks.get(job.id),
    "loops": lambda one, job: read_all(one),
    "works": lambda one, job: read_all(one.work(concurrency=2)),
    "follows": lambda one, job: follow(one),
    "publishes": lambda one, job: one.publish(one.topic, b""),
    "tells": lambda one, job: job.progress(0.5),
}


async def again_and_again(ask: str, one: AgentClient, job: Job, proxy: FaultProxy) -> None:
    """A program that takes every cut for one that passes is still cancelled."""
    end_for_good(proxy)
    async with job:
        while True:
            with suppress(ConnectionLost, Unavailable):
                await ASKS[ask](one, job)


async def waited_again_and_again(one: AgentClient, job: Job, proxy: FaultProxy) -> None:
    """Also when the end was not felt where it came."""
    end_for_good(proxy)
    async with job:
        with anyio.CancelScope(shield=True), pytest.raises((ConnectionLost, Unavailable)):
            await job.wait_for_input()
        while True:
            with suppress(ConnectionLost, Unavailable):
                await job.wait_for_input()


MOMENTS: dict[str, Moment] = {
    **{one.__name__: one for one in (asleep, completing, failing, watched, waiting, waited_again_and_again)},
    **{f"{ask} again and again": partial(again_and_again, ask) for ask in ASKS},
}


retries = pytest.mark.parametrize("retry", [NEVER, ONCE], ids=["never", "once"])


@retries
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", MOMENTS)
async def test_an_open_task_of_a_client_that_has_failed(backend: str, retry: Retry, name: str) -> None:
    async def fails(direct: str) -> None:
        async with agent(direct, "boss") as boss:
            task_id = await order(boss)
            with pytest.raises((ConnectionLost, Unavailable, ValueError)) as caught:
                async with worker(f"aether://{proxy.address}", retry=retry) as one:
                    job = await one_of(one)
                    assert job.id == task_id
                    await MOMENTS[name](one, job, proxy)
            assert isinstance(caught.value, ValueError) == (name == "failing")
            assert job.end is None or job.end is JobEnd.FAILED

    async with open_test_gateway() as gateway, open_fault_proxy(gateway.address) as proxy:
        await run_on(backend, fails, f"aether://{gateway.address}")


@retries
async def test_a_thread_with_a_task_of_a_client_that_has_failed(retry: Retry) -> None:
    def script() -> None:
        with connect_sync(
            f"aether://{proxy.address}", workspace="w", implementation="bench", specifier="1", retry=retry
        ) as one:
            for job in one.work():
                with job:
                    trio.from_thread.run_sync(partial(end_for_good, proxy))
                    job.wait_for_input()

    async with (
        open_test_gateway() as gateway,
        open_fault_proxy(gateway.address) as proxy,
        agent(f"aether://{gateway.address}", "boss") as boss,
    ):
        await order(boss)
        with pytest.raises((ConnectionLost, Unavailable)):
            await run_on("thread", script)
