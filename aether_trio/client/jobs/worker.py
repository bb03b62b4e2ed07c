"""Client methods with which a worker gets tasks: as a loop, or for a handler."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Self, Unpack

import anyio

from aether_trio.client.errors import AetherError
from aether_trio.client.jobs.job import Job
from aether_trio.client.jobs.manager import JobManager
from aether_trio.client.jobs.places import Places
from aether_trio.client.options import ClientOptions, numbered
from aether_trio.client.workflows.definition import Function
from aether_trio.client.workflows.serving import FunctionRequests, register, serve_run

if TYPE_CHECKING:
    from aether_trio.client.client import Client as _Client
else:
    _Client = object

logger = logging.getLogger("aether_trio.client")

RUNS: Final = 100
"""Runs of durable functions that are in one worker at once."""
HIBERNATE_AFTER_S: Final = 30.0
CLAIMS: Final = 10
FORGOTTEN_S: Final = 10.0
BLOCKED_S: Final = 1.0
"""The pause between two looks at whether a task that waits blocks others."""

Handler = Callable[[Job], Awaitable[object]]


class Jobs:
    """An async iterator over a worker's tasks, at most `concurrency` of them at work."""

    def __init__(self, manager: JobManager, concurrency: int, *, runs: bool = False) -> None:
        if concurrency < 1:
            raise ValueError(f"concurrency is {concurrency}, so no task could be open; it must be at least 1")
        self._manager = manager
        self._runs = runs
        self._places = Places(concurrency)
        self._given: weakref.WeakSet[Job] = weakref.WeakSet()
        self._takers = 0
        """How many callers wait for a task; 0: the program is busy with those that it has."""
        self._waiting: weakref.WeakSet[Job] = weakref.WeakSet()
        self._looks = False
        """Whether it is being looked for tasks that are blocked, or they were told of."""

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Job:
        self._takers += 1
        try:
            return await self._next()
        finally:
            self._takers -= 1

    async def _next(self) -> Job:
        await self._wait_for_room()
        try:
            job = await self._manager.take(self, runs=self._runs)
        except BaseException:
            self._places.give()
            raise
        self._given.add(job)
        return job

    async def _wait_for_room(self) -> None:
        with anyio.move_on_after(FORGOTTEN_S):
            await self._places.take()
            return
        self._warn_of_the_unbegun()
        await self._places.take()

    def _warn_of_the_unbegun(self) -> None:
        for job in self._given:  # not where it is waited: what is let go of meanwhile must be free
            if not job.entered:
                logger.warning(
                    "task %s was given to the program, which has not begun its `async with task:` block", job.id
                )

    # -- the places of its tasks (job.JobPlace)

    def free(self) -> None:
        """Free the place of a task that has ended, or waits."""
        self._places.give()

    def take_back(self) -> None:
        """Take a place for a task that goes on after its wait."""
        self._places.take_back()

    def waits(self, job: Job) -> None:
        """Look whether a task that waits in its block blocks others, and say so once."""
        self._waiting.add(job)
        if not self._looks:
            self._looks = True
            self._manager.look_later(self._look_for_the_blocked)

    async def _look_for_the_blocked(self) -> None:
        """Say how many tasks wait behind a task that waits in the body of the loop."""
        while any(job.waits for job in self._waiting):
            await anyio.sleep(BLOCKED_S)
            blocked = len(self._manager.intake)
            waiting = [job.id for job in self._waiting if job.waits]
            if waiting and blocked and not self._takers:
                logger.warning(
                    "task %s waits inside of its block, and %d further tasks of this worker wait until the loop over "
                    "work() goes on: work on each task in a task of the event loop, as run_tasks does",
                    waiting[0],
                    blocked,
                )
                return
        self._looks = False


class WorkerMethods(_Client):
    """Mixin of the clients that are given tasks: agents, services and task workers."""

    def __init__(self, address: str, **options: Unpack[ClientOptions]) -> None:
        super().__init__(address, **numbered(options))
        self.__manager = JobManager(self, self._dispatch.feeds, self.__start, lambda: self._ending)

    def __start(self, function: Callable[..., Coroutine[Any, Any, Any]], *args: Any) -> None:
        assert self._group is not None
        self._group.start_soon(function, *args)

    def work(self, *, concurrency: int | None = None) -> Jobs:
        """Iterate over the tasks that the gateway assigns to this worker, claimed.

            async for task in worker.work():
                async with task:
                    await task.complete(shrink(task.payload))

        `concurrency` may be at work at once; by default it is the client's `worker_tasks`, or 1.
        Those that wait do not count.
        Several loops share the work. What is left of it goes to other workers when the client's
        block ends.
        """
        self._check_begun()
        return Jobs(self.__manager, self.__concurrency(concurrency))

    def __concurrency(self, said: int | None) -> int:
        return said if said is not None else self._settings.worker_tasks or 1

    async def run_tasks(self, handler: Handler, *, concurrency: int | None = None) -> None:
        """Call `handler` for each assigned task, in its block, `concurrency` at once.

        What a handler returns is the task's result: bytes, what JSON can hold, or None for none.
        What it raises is logged and fails its task; the others go on. A task that waits (for an
        input, say) frees its place for another one. Runs until the client is closed or has failed,
        or until it is cancelled.
        """
        count = self.__concurrency(concurrency)
        await _run_all(self.work(concurrency=count), partial(_handle, handler), count)

    async def serve_workflows(
        self,
        functions: Sequence[Function],
        *,
        workspace: str = "",
        concurrency: int = RUNS,
        hibernate_after: float = HIBERNATE_AFTER_S,
    ) -> None:
        """Register durable functions, and serve their executions as they are assigned.

        At most `concurrency` runs are in this worker at once. One that has only waited for
        `hibernate_after` seconds leaves it, and any worker goes on with it later; at once, when the
        worker has more than half of the runs that it may have. Every worker of
        this implementation must serve the same functions. Ordinary tasks are taken by `work` and
        `run_tasks` beside it. Runs until the client is closed or has failed, or until it is
        cancelled.
        """
        self._check_begun()
        workflow = FunctionRequests(self, timeout_s=None)
        manager = self.__manager
        table = await register(workflow, functions, workspace, manager.check_client)

        open_runs: set[str] = set()
        half = (min(concurrency, self._settings.worker_tasks or RUNS) + 1) // 2

        async def serve(job: Job) -> None:
            open_runs.add(job.id)
            try:
                await serve_run(
                    job, table, workflow, manager.check_client, hibernate_after, lambda: len(open_runs) > half
                )
            finally:
                open_runs.discard(job.id)

        await _run_all(Jobs(manager, concurrency, runs=True), partial(_serve, serve), min(concurrency, CLAIMS))


async def _run_all(jobs: Jobs, handle: Callable[[Job], Coroutine[Any, Any, None]], count: int) -> None:
    """Call `handle` for each task, in parallel; claim `count` at the same time."""
    failures: list[AetherError] = []

    async def start_handlers() -> None:
        while True:
            try:
                job = await anext(jobs)
            except StopAsyncIteration:
                return
            except AetherError as failure:
                failures.append(failure)
                return
            group.start_soon(handle, job)
            del job  # what is let go of before its block begins must be free

    async with anyio.create_task_group() as group:
        for _ in range(count):  # so many are claimed at the same time
            group.start_soon(start_handlers)
    if failures:
        raise failures[0]


async def _serve(serve: Handler, job: Job) -> None:
    try:
        await serve(job)
    except Exception:
        logger.exception("run %s of a durable function has failed in this worker", job.id)


async def _handle(handler: Handler, job: Job) -> None:
    try:
        async with job:
            job.give_result(await handler(job))
    except Exception:
        logger.exception("the handler of task %s, of type %r, has failed", job.id, job.type)
