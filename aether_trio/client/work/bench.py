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
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

import anyio
import anyio.lowlevel

from aether_trio.client.errors import AetherError, ClientClosed, ConnectionLost, FeedOverflow, NotFound, RequestTimeout
from aether_trio.client.feeds import CONNECTION_LOST, Feeds
from aether_trio.client.operations.checkpoints import Checkpoints
from aether_trio.client.operations.enums import TaskStatus
from aether_trio.client.operations.progress import Progress
from aether_trio.client.operations.task_values import NUMBER, Assignment, Task
from aether_trio.client.operations.tasks import Tasks
from aether_trio.client.work.held import Held
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
UNTAKEN_S: Final = 30.0
"""A task whose loop was cancelled while it claimed it waits so long for another loop of this client."""
NOT_FOUND: Final = "task not found"
"""What a gateway says of a task that is not there, or that we may not see."""

LOST: Final = "this assignment is over"
"""What a gateway says of a task that somebody else has."""

Start = Callable[..., None]
"""Runs (function, *arguments) in the client's task group."""


class Bench:
    """See the module docstring."""

    def __init__(
        self, requester: Requester, feeds: Feeds, start: Start, ending: Callable[[], AetherError | None]
    ) -> None:
        self.intake = Intake(self._repeated)
        self.tasks = Tasks(requester)
        self.progress = Progress(requester)
        self.checkpoints = Checkpoints(requester)
        self._start_soon = start
        self._ending = ending
        """Why the client can ask for nothing any more; None while it lives."""
        self._in_hand: dict[str, Job] = {}
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
            assignment = await anext(self.intake)
            try:
                task = await self._claimed(assignment)
            except anyio.get_cancelled_exc_class():
                self._give_back(assignment)
                raise
            except BaseException:
                self.intake.put_down(assignment.task_id)
                raise
            if task is not None:
                return self._take_in_hand(assignment, task, closed)
            self.intake.put_down(assignment.task_id)

    def _give_back(self, assignment: Assignment) -> None:
        """The loop was cancelled while it claimed this task: the next one may have it, or else it is ended.

        The claim may have arrived or not. A second one changes nothing.
        """
        self.intake.give_back(assignment)
        self._start(self._end_untaken, assignment)

    async def _end_untaken(self, assignment: Assignment) -> None:
        """Fail a task that was claimed for a cancelled loop, if no other loop has taken it within UNTAKEN_S."""
        await anyio.sleep(UNTAKEN_S)
        if not self.intake.take_back(assignment):
            return
        try:
            task = await self.look_up(assignment.task_id)
            if task is None or task.status is not TaskStatus.RUNNING or not self._is_same(assignment, task):
                self.intake.give_back(assignment)
                return
            job = self._take_in_hand(assignment, task, _nothing)
            await job.give_up()
        except AetherError as error:
            logger.warning("task %s was claimed, and could not be given up: %s", assignment.task_id, error)

    async def _claimed(self, assignment: Assignment) -> Task | None:
        """The task, claimed; None when the gateway has changed its mind about it."""
        while True:
            try:
                return await self.tasks.claim(assignment.reference)
            except AetherError as error:
                self._check_client_in_loop()
                if isinstance(error, ConnectionLost | RequestTimeout):
                    continue
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
        return task is not None and task.status in ours and self._is_same(assignment, task)

    def _is_same(self, assignment: Assignment, task: Task) -> bool:
        """Whether the task is assigned as it was then."""
        if task.metadata.get(NUMBER, assignment.number) != assignment.number:
            return False
        return task.assigned_to == assignment.assigned_to

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

    def settle_later(self, job: Held, settle: Callable[[], Awaitable[None]]) -> bool:
        """Say what becomes of a task in the client's task group, as its block must not wait. False: the client has ended.

        The task is in hand until then, so no block begins of what may be said to have ended.
        """
        return self._start(self._settle_late, job, settle)

    async def _settle_late(self, job: Held, settle: Callable[[], Awaitable[None]]) -> None:
        try:
            await settle()
        except AetherError as error:
            logger.warning("task %s is over, and the gateway could not be told: %s", job.id, error)
        finally:
            self.put_down(job)

    def _start(self, function: Callable[..., Awaitable[None]], *args: object) -> bool:
        """Run it in the client's task group; False when the client has ended, which a block in a thread may outlive."""
        if self._ending() is not None:
            return False
        self._start_soon(function, *args)
        return True

    def check_client(self) -> None:
        """Raise why the client has ended. A request that failed by it is no cut: no connection will answer it again."""
        if (ending := self._ending()) is not None:
            raise ending

    def _check_client_in_loop(self) -> None:
        try:
            self.check_client()
        except ClientClosed:
            raise StopAsyncIteration from None

    # -- looking and listening

    async def look_up(self, task_id: str) -> Task | None:
        """How the task is just now, as soon as the gateway can say it; None when there is none that we may see.

        Raises the client's own end, and refusals that do not pass.
        """
        while True:
            try:
                return await self.tasks.get(task_id)
            except NotFound:
                return None
            except AetherError as error:
                self.check_client()
                if isinstance(error, ConnectionLost | RequestTimeout):
                    continue
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
        """Return when what happens to this task from now on is heard of. Raises why the client has ended."""
        await anyio.lowlevel.checkpoint()
        self.check_client()
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
            self.check_client()
        except AetherError as error:
            self.check_client()
            logger.debug("task %s cannot be listened to: %s", job.id, error)
            job.looked(await self.look_up(job.id))
            job.watched.set()
            await anyio.sleep(LOOK_S)


def _nothing() -> None:
    """For a task that no loop waits for."""
