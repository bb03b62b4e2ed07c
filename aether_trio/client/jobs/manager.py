"""Manages the tasks of a client's worker: assigned, claimed, open and watched.

A task is listened to (its events are subscribed to) when it has been in hand for WATCH_AFTER_S, or
waits for something; so a short one costs two requests, CLAIM and COMPLETE. What it missed before is
looked up. After a cut the same is done again: a task that was given to another worker meanwhile is
found by that.

A job belongs to the program. What the program lets go of before its block begins fails; what it
keeps and does not begin within UNBEGUN_S is any loop's again.

Invariants: everything runs in the client's task group; an error here ends no client; what a task is
told it is told by `heard` or `looked`, which decide whether it is over; nothing here holds a job
whose block has not begun, for longer than a request.
"""

from __future__ import annotations

import logging
import weakref
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final, TypeAlias

import anyio
import anyio.lowlevel

from aether_trio.client.call_soon import CallSoon, call_soon
from aether_trio.client.errors import AetherError, ClientClosed, ConnectionLost, FeedOverflow, NotFound, RequestTimeout
from aether_trio.client.feeds import CONNECTION_LOST, Feeds
from aether_trio.client.jobs.intake import AssignmentIntake
from aether_trio.client.jobs.job import LOST, OURS, STOPPED, Job, JobPlace
from aether_trio.client.operations.checkpoints import Checkpoints
from aether_trio.client.operations.enums import TaskStatus
from aether_trio.client.operations.progress import Progress
from aether_trio.client.operations.task_events import TaskEvent
from aether_trio.client.operations.task_values import NUMBER, Assignment, Task
from aether_trio.client.operations.tasks import Tasks

if TYPE_CHECKING:
    from aether_trio.client.requester import Requester

logger = logging.getLogger("aether_trio.client")

WATCH_AFTER_S: Final = 0.1
LOOK_S: Final = 5.0
"""The pause between two looks at a task whose events cannot be followed."""
AWAY_S: Final = 0.5
"""The pause before a request that the gateway could not answer is sent again."""
UNTAKEN_S: Final = 30.0
"""How long a claimed task waits for another loop after its own was cancelled."""
UNBEGUN_S: Final = 300.0
"""How long a task waits for its block to begin, before another loop may have it."""
LET_GO: Final = "the worker let go of it before its block began"
NOT_FOUND: Final = "task not found"
"""A gateway's text on a task that is not there, or that this worker may not see."""

Start = Callable[..., None]
"""Runs (function, *arguments) in the client's task group."""

JobRef: TypeAlias = weakref.ref[Job]


class _NoPlace:
    """The place of a task that no loop has."""

    def free(self) -> None:
        """Do nothing."""

    def take_back(self) -> None:
        """Do nothing."""

    def waits(self, job: Job) -> None:
        """Do nothing."""


NO_PLACE: Final = _NoPlace()


class JobManager:
    """Claims a worker's assigned tasks, follows their events, and ends unbegun ones."""

    def __init__(
        self, requester: Requester, feeds: Feeds, start: Start, ending: Callable[[], AetherError | None]
    ) -> None:
        self.intake = AssignmentIntake(self._repeated)
        self.tasks = Tasks(requester)
        self.progress = Progress(requester)
        self.checkpoints = Checkpoints(requester)
        self._start_soon = start
        self._ending = ending
        """Why the client can ask for nothing any more; None while it lives."""
        self._call_soon: CallSoon | None = None
        """Calls into the event loop in which tasks are taken."""
        self._in_hand: dict[str, JobRef] = {}
        self._watches: dict[str, anyio.CancelScope] = {}
        self._young: deque[tuple[float, JobRef]] = deque()
        self._ageing = False
        self._unbegun: deque[tuple[float, JobRef]] = deque()
        self._missing = False
        feeds.add(self.intake, "task_assignment", CONNECTION_LOST)

    # -- taking and putting down

    async def take(self, place: JobPlace, *, runs: bool = False) -> Job:
        """Wait for the next task and claim it; `place` is freed when its block ends.

        `runs`: only runs of durable functions, else only other tasks.
        """
        while True:
            assignment = await self.intake.take(runs=runs)
            try:
                task = await self._claimed(assignment)
            except (anyio.get_cancelled_exc_class(), KeyboardInterrupt):
                self._give_back(assignment)
                raise
            except BaseException:
                self.intake.put_down(assignment.task_id)
                raise
            if task is not None:
                return self._take_in_hand(assignment, task, place)
            self.intake.put_down(assignment.task_id)

    def _give_back(self, assignment: Assignment) -> None:
        """Offer the task of a cancelled `work()` loop to the next loop, or fail it later."""
        assignment = replace(assignment)  # not the object of a loop that was cancelled before
        self.intake.give_back(assignment)
        self._start(self._end_untaken, assignment)

    async def _end_untaken(self, assignment: Assignment) -> None:
        """Fail the task that was given back if no `work()` loop takes it within UNTAKEN_S."""
        await anyio.sleep(UNTAKEN_S)
        if self.intake.take_back(assignment):
            await self._give_up(assignment, STOPPED)

    async def _give_up(self, assignment: Assignment, reason: str) -> None:
        """Fail a claimed task that no loop works on; offer it again if the claim was lost."""
        try:
            task = await self._looked_up_in_the_end(assignment.task_id)
            same = task is not None and self._is_same(assignment, task)
            if task is not None and same and task.status in OURS:
                await self._take_in_hand(assignment, task, NO_PLACE).give_up(reason)
            elif task is not None and same and task.status is TaskStatus.QUEUED:
                self.intake.give_back(assignment)
            else:
                self.intake.put_down(assignment.task_id)
        except AetherError as error:
            logger.warning("task %s was claimed, not begun, and FAIL could not be sent: %s", assignment.task_id, error)

    async def _claimed(self, assignment: Assignment) -> Task | None:
        """Claim the task; return None when it is no longer this worker's."""
        while True:
            try:
                return await self.tasks.claim(assignment.reference)
            except AetherError as error:
                self._check_client_in_loop()
                if isinstance(error, ConnectionLost | RequestTimeout):
                    continue
                if not error.retryable and (LOST in error.message or not await self._is_meant(assignment)):
                    logger.info(
                        "task %s was assigned to this worker, but its claim was refused: %s", assignment.task_id, error
                    )
                    return None
                await anyio.sleep(error.retry_after_s or AWAY_S)

    async def _is_meant(self, assignment: Assignment) -> bool:
        """Return whether a task is still this worker's, though a claim was refused."""
        task = await self.look_up(assignment.task_id)
        ours = {TaskStatus.QUEUED, TaskStatus.RUNNING}
        return task is not None and task.status in ours and self._is_same(assignment, task)

    def _is_same(self, assignment: Assignment, task: Task) -> bool:
        """Return whether the task is still under the same assignment."""
        if task.metadata.get(NUMBER, assignment.number) != assignment.number:
            return False
        return task.assigned_to == assignment.assigned_to

    def _take_in_hand(self, assignment: Assignment, task: Task, place: JobPlace) -> Job:
        if self._call_soon is None:
            self._call_soon = call_soon()
        task_id = assignment.task_id
        job = Job(self, assignment, task, place)
        ref = self._in_hand[task_id] = weakref.ref(job, partial(self._let_go, self._call_soon, assignment, place))
        self._young.append((anyio.current_time() + WATCH_AFTER_S, ref))
        if not self._ageing:
            self._ageing = True
            self._start(self._watch_the_old)
        if self.intake.has(task_id):
            self._repeated(task_id)
        return job

    def put_down(self, job: Job) -> None:
        """Forget a task whose block has ended, so that it may be taken again."""
        if self._job(job.id) is job:
            self._forget(job.id)
            self.intake.put_down(job.id)

    def _forget(self, task_id: str) -> None:
        self._in_hand.pop(task_id, None)
        watch = self._watches.pop(task_id, None)
        if watch is not None:
            watch.cancel()

    def _job(self, task_id: str) -> Job | None:
        ref = self._in_hand.get(task_id)
        return None if ref is None else ref()

    # -- what never begins

    def _let_go(self, soon: CallSoon, assignment: Assignment, place: JobPlace, ref: JobRef) -> None:
        """Fail the task of an unbegun Job that was garbage collected, in whatever thread."""
        soon(partial(self._was_let_go, assignment, place, ref))

    def _was_let_go(self, assignment: Assignment, place: JobPlace, ref: JobRef) -> None:
        if self._in_hand.get(assignment.task_id) is ref:
            self._forget(assignment.task_id)
            place.free()
            self._start(self._give_up, assignment, LET_GO)

    def _wait_for_block(self, ref: JobRef) -> None:
        """Give a claimed task UNBEGUN_S for its block to begin."""
        self._unbegun.append((anyio.current_time() + UNBEGUN_S, ref))
        if not self._missing:
            self._missing = True
            self._start(self._take_back_the_unbegun)

    async def _take_back_the_unbegun(self) -> None:
        """Take claimed tasks back whose blocks have not begun within UNBEGUN_S."""
        while self._unbegun:
            at, ref = self._unbegun.popleft()
            if _waits_for_block(ref):
                await anyio.sleep_until(at)
                self._take_back(ref)
        self._missing = False

    def _take_back(self, ref: JobRef) -> None:
        job = ref()
        if job is None or job.entered or self._in_hand.get(job.id) is not ref:
            return
        over = job.end is not None
        self._forget(job.id)
        job.begins_too_late()
        if over:
            self.intake.put_down(job.id)
        else:
            logger.warning(
                "task %s was given to the program %g s ago, and its block has not begun: it is offered again",
                job.id,
                UNBEGUN_S,
            )
            self._give_back(job.assignment)

    def _repeated(self, task_id: str) -> None:
        """Look up a task that is assigned again while this worker has it."""
        if (ref := self._in_hand.get(task_id)) is not None and _is_open(ref):
            self._start(self._doubt, ref, task_id)

    async def _doubt(self, ref: JobRef, task_id: str) -> None:
        try:
            task = await self.look_up(task_id)
        except AetherError as error:
            logger.debug("task %s was assigned again, and could not be looked up: %s", task_id, error)
            return
        _looked(ref, task)
        if _is_open(ref):
            self.intake.forget(task_id)

    def settle_later(self, job: Job, settle: Callable[[], Awaitable[None]]) -> bool:
        """Run `settle`, which ends a task, in the client's task group; False if closed."""
        return self._start(self._settle_late, job, settle)

    async def _settle_late(self, job: Job, settle: Callable[[], Awaitable[None]]) -> None:
        try:
            await settle()
        except AetherError as error:
            logger.warning("task %s is over for this worker, but the gateway could not be told: %s", job.id, error)
        finally:
            self.put_down(job)

    def look_later(self, look: Callable[[], Awaitable[None]]) -> None:
        """Run `look` in the client's task group, if the client lives."""
        self._start(look)

    def _start(self, function: Callable[..., Awaitable[None]], *args: object) -> bool:
        """Run a function in the client's task group. Return False if the client has ended."""
        if self._ending() is not None:
            return False
        self._start_soon(function, *args)
        return True

    def check_client(self) -> None:
        """Raise why the client has ended, if it has: no connection will answer again."""
        if (ending := self._ending()) is not None:
            raise ending

    def _check_client_in_loop(self) -> None:
        try:
            self.check_client()
        except ClientClosed:
            raise StopAsyncIteration from None

    # -- looking and listening

    async def look_up(self, task_id: str) -> Task | None:
        """Ask the gateway for a task, again after cuts; None if hidden. Raises refusals."""
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

    async def _looked_up_in_the_end(self, task_id: str) -> Task | None:
        """Ask for the task however often that is refused. Raises the client's own end."""
        while True:
            try:
                return await self.look_up(task_id)
            except AetherError as error:
                self.check_client()
                logger.debug("task %s cannot be looked up: %s", task_id, error)
                await anyio.sleep(LOOK_S)

    async def _watch_the_old(self) -> None:
        """Follow the events of every task that this worker has had for WATCH_AFTER_S."""
        while self._young:
            at, ref = self._young.popleft()
            if _is_open(ref):
                await anyio.sleep_until(at)
            if _waits_for_block(ref):
                self._wait_for_block(ref)
            self._start_watch(ref)
        self._ageing = False

    async def watch(self, job: Job) -> None:
        """Subscribe to a task's events, and return when its Job gets every later one."""
        await anyio.lowlevel.checkpoint()
        self.check_client()
        self._start_watch(self._in_hand[job.id])
        await job.watched.wait()

    def _start_watch(self, ref: JobRef) -> None:
        job = ref()
        if job is not None and job.is_open and job.id not in self._watches:
            scope = self._watches[job.id] = anyio.CancelScope()
            self._start(self._watch, ref, job.id, scope)

    async def _watch(self, ref: JobRef, task_id: str, scope: anyio.CancelScope) -> None:
        with scope:
            try:
                while _is_open(ref):
                    await self._listen(ref, task_id)
            except AetherError as error:
                logger.debug("the events of task %s are not followed any more: %s", task_id, error)
            finally:
                _watched(ref)

    async def _listen(self, ref: JobRef, task_id: str) -> None:
        """Pass the events of a task to its job until the connection is cut."""
        try:
            async with self.tasks.follow(task_id) as events:
                _looked(ref, await self.look_up(task_id))
                _watched(ref)
                async for event in events:
                    _heard(ref, event)
        except (ConnectionLost, RequestTimeout, FeedOverflow):
            self.check_client()
        except AetherError as error:
            self.check_client()
            logger.debug("the events of task %s cannot be followed now: %s", task_id, error)
            _looked(ref, await self._looked_up_in_the_end(task_id))
            _watched(ref)
            await anyio.sleep(LOOK_S)


# What waits for something has the reference to a job, and not the job: these have it for a moment.


def _is_open(ref: JobRef) -> bool:
    job = ref()
    return job is not None and job.is_open


def _waits_for_block(ref: JobRef) -> bool:
    job = ref()
    return job is not None and not job.entered


def _looked(ref: JobRef, task: Task | None) -> None:
    if (job := ref()) is not None:
        job.looked(task)


def _heard(ref: JobRef, event: TaskEvent) -> None:
    if (job := ref()) is not None:
        job.heard(event)


def _watched(ref: JobRef) -> None:
    if (job := ref()) is not None:
        job.watched.set()
