"""Working on tasks from a script that blocks.

    with connect_sync(ADDRESS, workspace="default", implementation="resizer", specifier="1") as worker:
        for task in worker.work(timeout=60):
            with task:
                task.progress(0.5, "half of it")

A thread cannot be cancelled. When the gateway takes a task away, its next call raises TaskOver, which the block swallows; a program
that calls nothing for long looks at `task.end`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from functools import partial
from types import TracebackType
from typing import Self

import anyio
import anyio.to_thread

from aether_trio.client.blocking.bridge import Blocking, BlockingStream, Bridge, Entered, blocking
from aether_trio.client.jobs.job import Job
from aether_trio.client.jobs.running_job import JobEnd, TaskOver
from aether_trio.client.operations.task_values import Assignment, Task

__all__ = ["SyncJob"]


class SyncJob(Blocking[Job]):
    """See Job: `with task:` is the work on it. What waits raises TaskOver when the task is not this worker's any more."""

    progress = blocking(Job.progress)
    wait_for_input = blocking(Job.wait_for_input)
    wait_for_authority = blocking(Job.wait_for_authority)
    wait_for_tasks = blocking(Job.wait_for_tasks)
    wait_until = blocking(Job.wait_until)
    hibernate = blocking(Job.hibernate)
    load = blocking(Job.load)
    fail = blocking(Job.fail)

    def __init__(self, bridge: Bridge, target: Job) -> None:
        super().__init__(bridge, target)
        self._block: Entered[Job] | None = None

    def __enter__(self) -> Self:
        block = self._block = self._bridge.entered(self._target)
        try:
            block.__enter__()
            return self
        except BaseException:  # an interrupt that comes when the block has begun, and before Python knows it
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

    @property
    def id(self) -> str:
        """See Job.id."""
        return self._target.id

    @property
    def type(self) -> str:
        """See Job.type."""
        return self._target.type

    @property
    def payload(self) -> bytes:
        """See Job.payload."""
        return self._target.payload

    @property
    def text(self) -> str:
        """See Job.text."""
        return self._target.text

    @property
    def metadata(self) -> Mapping[str, str]:
        """See Job.metadata."""
        return self._target.metadata

    @property
    def creator(self) -> str:
        """See Job.creator."""
        return self._target.creator

    @property
    def attempt(self) -> int:
        """See Job.attempt."""
        return self._target.attempt

    @property
    def end(self) -> JobEnd | None:
        """See Job.end. Something else than None inside of the block says that the work is for nothing."""
        return self._target.end

    @property
    def reason(self) -> str:
        """See Job.reason."""
        return self._target.reason

    @property
    def remark(self) -> str:
        """See Job.remark; it may be set."""
        return self._target.remark

    @remark.setter
    def remark(self, text: str) -> None:
        self._target.remark = text

    @property
    def task(self) -> Task:
        """See Job.task."""
        return self._target.task

    @property
    def assignment(self) -> Assignment:
        """See Job.assignment."""
        return self._target.assignment


def sync_jobs(bridge: Bridge, jobs: BlockingStream[Job]) -> Iterator[SyncJob]:
    """The same tasks, for threads."""
    return map(partial(SyncJob, bridge), jobs)  # a generator would keep the last one


async def run_in_threads(
    bridge: Bridge,
    run_tasks: Callable[..., Awaitable[None]],
    handler: Callable[[SyncJob], object],
    concurrency: int,
) -> None:
    """`run_tasks` with a handler that blocks: each task has a thread while it is worked on. In the loop."""
    limiter = anyio.CapacityLimiter(concurrency)

    async def handle(job: Job) -> None:
        await anyio.to_thread.run_sync(partial(handler, SyncJob(bridge, job)), limiter=limiter)

    await run_tasks(handle, concurrency=concurrency)
