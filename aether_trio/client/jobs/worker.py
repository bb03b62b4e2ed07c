"""Client methods with which a worker gets tasks: as a loop, or for a handler."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final, Self, Unpack

import anyio

from aether_trio.client.errors import AetherError
from aether_trio.client.jobs.job import Job
from aether_trio.client.jobs.manager import JobManager
from aether_trio.client.options import ClientOptions, numbered

if TYPE_CHECKING:
    from aether_trio.client.client import Client as _Client
else:
    _Client = object

logger = logging.getLogger("aether_trio.client")

FORGOTTEN_S: Final = 10.0

Handler = Callable[[Job], Awaitable[object]]


class Jobs:
    """An async iterator over a worker's tasks, at most `concurrency` of them open."""

    def __init__(self, manager: JobManager, concurrency: int) -> None:
        if concurrency < 1:
            raise ValueError(f"concurrency is {concurrency}, so no task could be open; it must be at least 1")
        self._manager = manager
        self._room = anyio.Semaphore(concurrency)
        self._given: weakref.WeakSet[Job] = weakref.WeakSet()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Job:
        await self._wait_for_room()
        try:
            job = await self._manager.take(self._room.release)
        except BaseException:
            self._room.release()
            raise
        self._given.add(job)
        return job

    async def _wait_for_room(self) -> None:
        with anyio.move_on_after(FORGOTTEN_S):
            await self._room.acquire()
            return
        self._warn_of_the_unbegun()
        await self._room.acquire()

    def _warn_of_the_unbegun(self) -> None:
        for job in self._given:  # not where it is waited: what is let go of meanwhile must be free
            if not job.entered:
                logger.warning(
                    "task %s was given to the program, which has not begun its `async with task:` block", job.id
                )


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
                    await worker.send(task.creator, shrink(task.payload))

        `concurrency` may be open at once; by default it is the client's `worker_tasks`, or 1.
        Several loops share the work. What is left of it goes to other workers when the client's
        block ends.
        """
        self._check_begun()
        return Jobs(self.__manager, self.__concurrency(concurrency))

    def __concurrency(self, said: int | None) -> int:
        return said if said is not None else self._settings.worker_tasks or 1

    async def run_tasks(self, handler: Handler, *, concurrency: int | None = None) -> None:
        """Call `handler` for each assigned task, in its block, `concurrency` at once.

        What a handler raises is logged and fails its task; the others go on. Runs until the client
        is closed or has failed, or until it is cancelled.
        """
        count = self.__concurrency(concurrency)
        jobs = self.work(concurrency=count)
        failures: list[AetherError] = []

        async def one_by_one() -> None:
            while True:
                try:
                    job = await anext(jobs)
                except StopAsyncIteration:
                    return
                except AetherError as failure:
                    failures.append(failure)
                    return
                try:
                    async with job:
                        await handler(job)
                except Exception:
                    logger.exception("the handler of task %s, of type %r, has failed", job.id, job.type)

        async with anyio.create_task_group() as group:
            for _ in range(count):
                group.start_soon(one_by_one)
        if failures:
            raise failures[0]
