"""What one client holds for all of its tasks: the intake, the tasks in hand, and who listens to what becomes of them.

A task is listened to (its events are subscribed to) when it has been in hand for WATCH_AFTER_S, or waits for something; so a short
one costs two requests, CLAIM and COMPLETE. What it missed before is looked up. After a cut the same is done again: a task that was
given to somebody else meanwhile is found by that.

Invariants: everything runs in the client's task group; an error here ends no client; what a task is told it is told by `heard` or
`looked`, which decide whether it is over.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import anyio

from aether_trio.client.errors import AetherError, ClientClosed, ConnectionLost, FeedOverflow, NotFound, RequestTimeout
from aether_trio.client.feeds import CONNECTION_LOST, Feeds
from aether_trio.client.operations.checkpoints import Checkpoints
from aether_trio.client.operations.enums import TaskStatus
from aether_trio.client.operations.progress import Progress
from aether_trio.client.operations.task_values import NUMBER, Assignment, Task
from aether_trio.client.operations.tasks import Tasks
from aether_trio.client.work.held import LAST_WORDS_S, Held
from aether_trio.client.work.intake import Intake
from aether_trio.client.work.job import Job

if TYPE_CHECKING:
    from aether_trio.client.requester import Requester

__all__ = ["Bench"]

logger = logging.getLogger("aether_trio.client")

WATCH_AFTER_S: Final = 0.1
LOOK_S: Final = 5.0
"""Between two looks at a task that cannot be listened to."""
AWAY_S: Final = 0.5
"""Before a question is asked again that the gateway could not answer now."""
NOT_FOUND: Final = "task not found"
"""What a gateway says of a task that is not there, or that we may not see."""

LOST: Final = "this assignment is over"
"""What a gateway says of a task that somebody else has."""

Start = Callable[..., None]
"""Runs (function, *arguments) in the client's task group."""


class Bench:
    """See the module docstring."""

    def __init__(self, requester: Requester, feeds: Feeds, start: Start) -> None:
        self.intake = Intake(self._repeated)
        self.tasks = Tasks(requester)
        self.progress = Progress(requester)
        self.checkpoints = Checkpoints(requester)
        self._start = start
        self._in_hand: dict[str, Job] = {}
        self._orphans: deque[Job] = deque()
        """Claimed for somebody who was cancelled in that moment."""
        self._watches: dict[str, anyio.CancelScope] = {}
        self._young: deque[tuple[float, Job]] = deque()
        self._ageing = False
        feeds.add(self.intake, "task_assignment", CONNECTION_LOST)

    # -- taking and putting down

    async def take(self, closed: Callable[[], None]) -> Job:
        """The next task, claimed. `closed` is called when its block has ended.

        Raises StopAsyncIteration when the client is closed, or why it has failed.
        """
        while True:
            if self._orphans:
                job = self._orphans.popleft()
                if job.is_open:
                    job.adopted(closed)
                    return job
                self.put_down(job)
                continue
            assignment = await anext(self.intake)
            try:
                claimed = await self._claim(assignment, closed)
            except BaseException:
                if assignment.task_id not in self._in_hand:
                    self.intake.put_down(assignment.task_id)
                raise
            if claimed is not None:
                return claimed
            self.intake.put_down(assignment.task_id)

    async def _claim(self, assignment: Assignment, closed: Callable[[], None]) -> Job | None:
        """The task in hand; None when the gateway has changed its mind about it."""
        try:
            task = await self._claimed(assignment)
        except anyio.get_cancelled_exc_class():
            with anyio.move_on_after(LAST_WORDS_S, shield=True):
                task = await self._claimed(assignment)
                if task is not None:
                    self._orphans.append(self._take_in_hand(assignment, task, _nothing))
            raise
        return None if task is None else self._take_in_hand(assignment, task, closed)

    async def _claimed(self, assignment: Assignment) -> Task | None:
        while True:
            try:
                return await self.tasks.claim(assignment.reference)
            except (ConnectionLost, RequestTimeout):
                continue
            except ClientClosed:
                raise StopAsyncIteration from None
            except AetherError as error:
                if not error.retryable and (LOST in error.message or not await self._is_meant(assignment)):
                    logger.info("task %s was assigned and is not to be had: %s", assignment.task_id, error)
                    return None
                await anyio.sleep(error.retry_after_s or AWAY_S)

    async def _is_meant(self, assignment: Assignment) -> bool:
        """Whether a task is still this worker's, though a claim was refused: then the refusal was the gateway's trouble, and passes.

        Nobody else is given a task that a worker has been given and let fall.
        """
        task = await self.look_up(assignment.task_id)
        ours = {TaskStatus.QUEUED, TaskStatus.RUNNING}
        if task is None or task.metadata.get(NUMBER, assignment.number) != assignment.number:
            return False
        return task.status in ours and task.assigned_to == assignment.assigned_to

    def _take_in_hand(self, assignment: Assignment, task: Task, closed: Callable[[], None]) -> Job:
        job = self._in_hand[assignment.task_id] = Job(self, assignment, task, closed)
        self._young.append((anyio.current_time() + WATCH_AFTER_S, job))
        if not self._ageing:
            self._ageing = True
            self._start(self._watch_the_old)
        if self.intake.has(assignment.task_id):
            self._repeated(assignment.task_id)
        return job

    def put_down(self, job: Held) -> None:
        """It is not in hand any more."""
        self._in_hand.pop(job.id, None)
        watch = self._watches.pop(job.id, None)
        if watch is not None:
            watch.cancel()
        self.intake.put_down(job.id)

    def _repeated(self, task_id: str) -> None:
        """A task that is in hand is assigned: again, because we came back; or anew, because this block's time is over."""
        job = self._in_hand.get(task_id)
        if job is not None and job.is_open:
            self._start(self._doubt, job)

    async def _doubt(self, job: Job) -> None:
        try:
            job.looked(await self.look_up(job.id))
        except AetherError as error:
            logger.debug("task %s: %s", job.id, error)
            return
        if job.is_open:
            self.intake.forget(job.id)

    # -- looking and listening

    async def look_up(self, task_id: str) -> Task | None:
        """How the task is just now, as soon as the gateway can say it; None when there is none that we may see.

        Raises the client's own end, and refusals that do not pass.
        """
        while True:
            try:
                return await self.tasks.get(task_id)
            except (ConnectionLost, RequestTimeout):
                continue
            except NotFound:
                return None
            except AetherError as error:
                if NOT_FOUND in error.message:
                    return None
                if not error.retryable:
                    raise
                await anyio.sleep(error.retry_after_s or AWAY_S)

    async def _watch_the_old(self) -> None:
        """Listen to every task that is long enough in hand. It ends when there is none any more, and is started again."""
        while self._young:
            at, job = self._young.popleft()
            if job.is_open:
                await anyio.sleep_until(at)
            if job.is_open and job.id not in self._watches:
                self._start_watch(job)
        self._ageing = False

    async def watch(self, job: Job) -> None:
        """Return when what happens to this task from now on is heard of."""
        if job.id not in self._watches:
            self._start_watch(job)
        await job.watched.wait()

    def _start_watch(self, job: Job) -> None:
        scope = self._watches[job.id] = anyio.CancelScope()
        self._start(self._watch, job, scope)

    async def _watch(self, job: Job, scope: anyio.CancelScope) -> None:
        with scope:
            try:
                while job.is_open:
                    await self._listen(job)
            except AetherError as error:
                logger.debug("task %s is not listened to any more: %s", job.id, error)
            finally:
                job.watched.set()

    async def _listen(self, job: Job) -> None:
        """Until the connection is cut. Raises the client's own end."""
        try:
            async with self.tasks.follow(job.id) as events:
                job.looked(await self.look_up(job.id))
                job.watched.set()
                async for event in events:
                    job.heard(event)
        except (ConnectionLost, RequestTimeout, FeedOverflow):
            pass
        except ClientClosed:
            raise
        except AetherError as error:
            logger.debug("task %s cannot be listened to: %s", job.id, error)
            job.looked(await self.look_up(job.id))
            job.watched.set()
            await anyio.sleep(LOOK_S)


def _nothing() -> None:
    """For a task that nobody has taken yet."""
