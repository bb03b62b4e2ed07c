"""Lets blocking scripts work on the tasks that a gateway assigns to them.

    with connect_sync(ADDRESS, **who) as worker:
        for task in worker.work(timeout=60):
            with task:
                task.progress(0.5, "half of it")

A thread cannot be cancelled. When the gateway takes a task away, its next call raises TaskOver,
which the block swallows; a program that calls nothing for long looks at `task.end`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from types import TracebackType
from typing import Final, Self

import anyio
import anyio.to_thread

from aether_trio.client.blocking.bridge import BlockingContext, BlockingStream, LoopBridge
from aether_trio.client.blocking.operations import JobCalls
from aether_trio.client.jobs.job import Job, TaskOver

WAITING_THREADS: Final = 100
"""Threads whose tasks may wait beside those at work; with more, a wait keeps its place."""


class SyncJob(JobCalls):
    """A claimed task, for `with task:`; its methods raise TaskOver when it is lost."""

    def __init__(self, bridge: LoopBridge, target: Job) -> None:
        super().__init__(bridge, target)
        self._block: BlockingContext[Job] | None = None

    def __enter__(self) -> Self:
        block = self._block = self._bridge.entered(self._target)
        try:
            block.__enter__()
            return self
        except BaseException:  # an interrupt between the begin of the block and Python's note of it
            block.give_up()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        block = self._block
        assert block is not None
        try:
            if block.__exit__(kind, error, trace):
                return True
        except BaseException:  # an interrupt that comes before the block is told to end
            block.give_up()
            raise
        return isinstance(error, TaskOver) and error.task_id == self.id


def sync_jobs(bridge: LoopBridge, jobs: BlockingStream[Job]) -> Iterator[SyncJob]:
    """Iterate over claimed tasks in their blocking form."""
    return map(partial(SyncJob, bridge), jobs)  # a generator would keep the last one


async def run_in_threads(
    bridge: LoopBridge,
    run_tasks: Callable[..., Awaitable[None]],
    handler: Callable[[SyncJob], object],
    concurrency: int,
) -> None:
    """Call a blocking handler for each task, each in a separate thread.

    A task that waits keeps its thread, and gives its place to another one.
    """
    limiter = anyio.CapacityLimiter(concurrency + WAITING_THREADS)

    async def handle(job: Job) -> object:
        return await anyio.to_thread.run_sync(partial(handler, SyncJob(bridge, job)), limiter=limiter)

    await run_tasks(handle, concurrency=concurrency)
