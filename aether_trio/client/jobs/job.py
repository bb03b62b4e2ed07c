"""A task that a client's worker has claimed: its block completes or fails it.

    claimed ──▶ open ──▶ settling ──▶ closed
                  │ the gateway takes it away: the block is cancelled, and left without a word
                  └ the body ends: COMPLETE or FAIL, until the gateway has answered
                    or the task is another worker's

Who ends it is told by `end`: what is over for the gateway is never completed or failed afterwards,
and what a cut leaves in doubt is looked up. Nothing here reads the connection: `heard` and `looked`
are called by manager.py.
"""

from __future__ import annotations

import enum
import logging
import math
import uuid
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from types import TracebackType
from typing import Any, Final, NoReturn, Protocol, Self

import anyio
import anyio.lowlevel

from aether_trio.client.errors import (
    MAYBE_DONE,
    AetherError,
    ConnectionLost,
    RequestTimeout,
    UnexpectedAnswer,
    may_ask_again,
)
from aether_trio.client.operations.checkpoints import Checkpoint, Checkpoints
from aether_trio.client.operations.enums import TaskStatus, WaitReason
from aether_trio.client.operations.progress import UNKNOWN_COMPLETION, Progress, ProgressStep
from aether_trio.client.operations.task_events import StatusChanged, TaskEvent, TaskProgressed
from aether_trio.client.operations.task_results import EncodedResult, encoded_result, json_text
from aether_trio.client.operations.task_values import (
    FORM,
    NUMBER,
    Answer,
    Assignment,
    Hibernation,
    Input,
    Question,
    Task,
    WaitSpec,
)
from aether_trio.client.operations.tasks import Tasks

Move = Callable[[], Awaitable[Task]]
"""A request that changes the state of a task."""
LastMove = Callable[[int | None], Awaitable[None]]
"""Ends a task; raises its refusal when it is refused so many times (None: never)."""

logger = logging.getLogger("aether_trio.client")

REASON_CHARS: Final = 4_000
"""The longest text of an exception that is sent; the rest is cut off."""
STOPPED: Final = "the worker was stopped"
LAST_WORDS_S: Final = 2.0
"""Time to tell the gateway of a block that was cancelled."""
REFUSALS: Final = 5
"""After so many refusals of COMPLETE, FAIL is sent; of FAIL, it is sent behind the block."""
PAUSE_S: Final = 0.5
"""The pause between two tries to settle a task that the gateway says is still this worker's."""
LATE_PAUSE_S: Final = 5.0
"""The same pause behind the block."""
SHORTEST_S: Final = 0.001
"""The shortest limit of a wait: the wire counts milliseconds."""

NEWS_STATE: Final = "workflow"
"""The state of progress events that tell a durable function's worker of new entries."""
STATE: Final = "_task:"
"""What the key of a task's state begins with; its id and the number of the assignment follow."""
LOST: Final = "this assignment is over"
"""The text of a refusal about a task that another worker has."""
NO_INPUT: Final = {"aether.wait_until": "no input"}
"""The match of a wait for a time: no input satisfies it, and none is used up."""

WAITS: Final = frozenset({TaskStatus.WAITING_INPUT, TaskStatus.WAITING_AUTHORITY, TaskStatus.WAITING_DEPENDENCY})
OURS: Final = WAITS | {TaskStatus.RUNNING}


class JobEnd(enum.Enum):
    """How a task ended for the worker that had claimed it."""

    COMPLETED = "completed"
    FAILED = "failed"
    """By its worker or a deadline. Its retry policy says whether it is tried again."""
    CANCELLED = "cancelled"
    REJECTED = "rejected"
    HIBERNATED = "hibernated"
    """It sleeps, and will be assigned again."""
    LOST = "lost"
    """Another worker has the task, or will: it was taken back or retried meanwhile."""


_ENDS: Final = {
    TaskStatus.COMPLETED: JobEnd.COMPLETED,
    TaskStatus.FAILED: JobEnd.FAILED,
    TaskStatus.CANCELLED: JobEnd.CANCELLED,
    TaskStatus.REJECTED: JobEnd.REJECTED,
    TaskStatus.HIBERNATED: JobEnd.HIBERNATED,
}


class TaskOver(AetherError):
    """The task is no longer this worker's. The block of the task swallows this."""

    def __init__(self, task_id: str, end: JobEnd, reason: str) -> None:
        super().__init__("TASK_OVER", f"task {task_id} is {end.value}" + (f": {reason}" if reason else ""))
        self.task_id = task_id
        self.end = end


class _Phase(enum.Enum):
    CLAIMED = enum.auto()
    OPEN = enum.auto()
    SETTLING = enum.auto()
    CLOSED = enum.auto()


class JobPlace(Protocol):
    """Protocol: the place that a task takes in its worker's loop."""

    def free(self) -> None:
        """Give the place to another task: this one has ended, or waits."""

    def take_back(self) -> None:
        """Take the place again after a wait."""

    def waits(self, job: Job) -> None:
        """Note that the block of a task waits, to say how many tasks it blocks."""


class JobKeeper(Protocol):
    """Protocol: what a claimed task needs of its client. manager.py implements it."""

    tasks: Tasks
    progress: Progress
    checkpoints: Checkpoints

    def put_down(self, job: Job) -> None:
        """Forget a task whose block has ended."""

    def settle_later(self, job: Job, settle: Callable[[], Awaitable[None]]) -> bool:
        """Run `settle`, which completes or fails the task, in the client's task group."""

    def check_client(self) -> None:
        """Raise why the client has ended, if it has."""

    async def look_up(self, task_id: str) -> Task | None:
        """Ask the gateway for the task; return None when this worker may not see it."""

    async def watch(self, job: Job) -> None:
        """Subscribe to the task, and return when every later event reaches the job."""


class Job:
    """A task that this worker has claimed; the body of `async with job:` works on it.

    The block left well is COMPLETE. Left by an exception it is FAIL with that text, and the
    exception goes on; left by a cancellation it is FAIL too. If the gateway ends the task meanwhile
    (cancelled, a deadline, another worker), the block is cancelled, and the program goes on behind
    it; `end` says what has happened.
    """

    def __init__(self, keeper: JobKeeper, assignment: Assignment, task: Task, place: JobPlace) -> None:
        self.assignment = assignment
        """The gateway's assignment of the task."""
        self.task = task
        """The task as it was when it was claimed: its creator, attempt, priority and the rest."""
        self.end: JobEnd | None = None
        """How the task ended for this worker; None while the worker has it."""
        self.reason = ""
        """The error text of the task, if it has failed."""
        self.remark = ""
        """The text that is sent with COMPLETE, as the reason of the task's last event."""
        self.watched = anyio.Event()
        """Set when the events of the task reach this job."""
        self._keeper = keeper
        self._place = place
        self._has_place = True
        self._phase = _Phase.CLAIMED
        self._scope = anyio.CancelScope()
        self._status = TaskStatus.RUNNING
        self._news = anyio.Event()
        self._waiting = False
        self._news_of_run: Callable[[], None] | None = None
        self._result = EncodedResult({})
        """What COMPLETE carries."""
        self._has_saved = False
        """Whether this block has saved a state."""
        self._refused: Exception | None = None
        """Why COMPLETE was refused, so that the task fails."""
        self._in_doubt = False
        """COMPLETE or FAIL was sent, and may or may not have arrived."""
        self._settles_late = False
        """Whether COMPLETE or FAIL is still being sent behind the block."""

    @property
    def id(self) -> str:
        """The id of the task."""
        return self.assignment.task_id

    @property
    def _reference(self) -> str:
        """The task's id with the number of its assignment, for requests about the task."""
        return self.assignment.reference

    @property
    def entered(self) -> bool:
        """Whether the block of the task has begun."""
        return self._phase is not _Phase.CLAIMED

    @property
    def is_open(self) -> bool:
        """Whether the task is still this worker's, and its block has not ended."""
        return self.end is None and self._phase in (_Phase.CLAIMED, _Phase.OPEN)

    @property
    def waits(self) -> bool:
        """Whether the block of the task is in a wait, such as `wait_for_input`."""
        return self._waiting

    # -- the block

    async def __aenter__(self) -> Self:
        if self.entered:
            raise RuntimeError(f"the block of task {self.id} was entered before; a task has one `async with` block")
        self._scope.__enter__()  # raises in another loop than the client's: no block has begun
        self._phase = _Phase.OPEN
        if self.end is not None:
            self._scope.cancel()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        swallowed = False
        rest: BaseException | None = None
        try:
            swallowed = bool(self._scope.__exit__(kind, error, trace))
        except BaseException as raised:  # what is left of a group in which our own cancellation was
            error = rest = raised
        self._phase = _Phase.SETTLING
        try:
            if self.end is None:
                await self._leave(error)
        finally:
            self._phase = _Phase.CLOSED
            if not self._settles_late:
                self._keeper.put_down(self)
            self._close()
        if rest is not None and not self._is_over(rest):
            raise rest
        if swallowed and self._refused is not None and self.end is JobEnd.FAILED:
            # The event of our FAIL came before its answer, and cancelled the block.
            raise self._refused
        return swallowed or (error is not None and self._is_over(error))

    def _is_over(self, error: BaseException) -> bool:
        """Return whether the error is TaskOver of this task, or a group of nothing else."""
        if isinstance(error, BaseExceptionGroup):
            return all(self._is_over(one) for one in error.exceptions)
        return isinstance(error, TaskOver) and error.task_id == self.id

    async def _leave(self, error: BaseException | None) -> None:
        """Send COMPLETE or FAIL, as the block was left. Raises why COMPLETE was refused."""
        last: LastMove = self._complete
        if error is not None:
            last = partial(self._fail, STOPPED if _stopped(error) else describe(error))
        if error is not None and not isinstance(error, Exception):
            await self._last_words(last)
            return
        try:
            await last(REFUSALS)
        except (anyio.get_cancelled_exc_class(), KeyboardInterrupt):
            await self._last_words(last)
            raise
        except AetherError as refused:
            if not self._go_on_behind(last) and error is None:
                raise
            self._log_untold(refused)
        if self._refused is not None and self.end in (None, JobEnd.FAILED):
            raise self._refused

    async def _complete(self, refusals: int | None) -> None:
        """Send COMPLETE, or FAIL if that is refused: a task without a block must end."""
        if self._refused is None:
            try:
                await self._settle(
                    lambda: self._keeper.tasks.complete(
                        self._reference, reason=sendable(self.remark), result=self._result
                    )
                )
                return
            except Exception as refused:
                self._keeper.check_client()
                self._refused = refused
        await self._fail(f"COMPLETE was refused: {describe(self._refused)}", refusals)

    async def _fail(self, reason: str, refusals: int | None) -> None:
        """Send FAIL until the gateway accepts it, or the task is not this worker's."""
        reason = sendable(reason)
        await self._settle(lambda: self._keeper.tasks.fail(self._reference, reason=reason), refusals)

    async def _last_words(self, last: LastMove) -> None:
        """Send COMPLETE or FAIL in spite of a cancellation: at once, then after the block."""
        try:
            with anyio.move_on_after(LAST_WORDS_S, shield=True):
                await last(REFUSALS)
        except AetherError as refused:
            self._log_untold(refused)
        finally:
            if self.end is None:
                self._go_on_behind(last)

    def _go_on_behind(self, last: LastMove) -> bool:
        """Send COMPLETE or FAIL in the client's task group; False if the client has ended."""
        self._settles_late = self._keeper.settle_later(self, lambda: last(None))
        return self._settles_late

    def _log_untold(self, refused: AetherError) -> None:
        logger.warning("task %s is over for this worker, but the gateway could not be told: %s", self.id, refused)

    def release(self, end: JobEnd) -> None:
        """Note how the task has ended for this worker, as another request has ended it."""
        if self.end is None:
            self._take_away(end, "")

    async def listen(self, news: Callable[[], None]) -> None:
        """Call `news` for what happens to the run of a durable function, from now on."""
        self._news_of_run = news
        await self._keeper.watch(self)
        news()

    def _close(self) -> None:
        """Tell the worker's loop that it has room for one more task."""
        if self._has_place:
            self._has_place = False
            self._place.free()

    def begins_too_late(self) -> None:
        """Mark the task as lost, as its block has not begun in time; cancel a late block."""
        if self.end is None:
            self._take_away(JobEnd.LOST, "its block has not begun in time")
        self._close()

    async def give_up(self, reason: str) -> None:
        """Fail the task without a block: no loop of the worker has taken it."""
        self._phase = _Phase.SETTLING
        try:
            await self._fail(reason, None)
        finally:
            self._phase = _Phase.CLOSED
            self._keeper.put_down(self)

    async def _settle(self, move: Move, refusals: int | None = REFUSALS) -> None:
        """Repeat the request that ends the task until accepted, lost or refused too often."""
        pause_s = 0.0
        while True:
            try:
                if self._in_doubt:
                    task = await self._keeper.look_up(self.id)
                    if not self._is_ours(task):
                        self._ended(task)
                        return
                    await anyio.sleep(pause_s)
                self._in_doubt = True
                self._ended(await move())
                return
            except AetherError as error:
                self._keeper.check_client()
                logger.debug("the gateway did not accept COMPLETE or FAIL of task %s: %s", self.id, error)
                if isinstance(error, ConnectionLost | RequestTimeout):
                    pause_s = 0.0
                    continue
                pause_s = PAUSE_S
                if refusals is None:
                    pause_s = LATE_PAUSE_S
                elif not may_ask_again(error):
                    refusals -= 1
                    if not refusals:
                        raise

    # -- what the gateway says

    def heard(self, event: TaskEvent) -> None:
        """Take in an event of the task, which may end it. Never waits."""
        change = event.event
        if self._news_of_run is not None and isinstance(change, TaskProgressed) and change.state == NEWS_STATE:
            self._news_of_run()
        if not self.is_open or not isinstance(change, StatusChanged):
            return
        self._status = change.to_status
        if self._status not in OURS:
            self._take_away(_ENDS.get(self._status, JobEnd.LOST), change.reason)
        self._tell()

    def looked(self, task: Task | None) -> None:
        """Take in the state of the task, or None if it may not be seen. Never waits."""
        if not self.is_open:
            return
        if task is not None and self._is_ours(task):
            self._status = task.status
            if self._news_of_run is not None:
                self._news_of_run()  # events may have been missed
        else:
            self._ended(task)
            self._scope.cancel()
        self._tell()

    def _is_ours(self, task: Task | None) -> bool:
        return task is not None and task.status in OURS and self._is_this(task)

    def _is_this(self, task: Task) -> bool:
        """Return whether the task was not assigned anew after this worker claimed it."""
        number = self.assignment.number
        return task.assigned_to == self.task.assigned_to and task.metadata.get(NUMBER, number) == number

    def _ended(self, task: Task | None) -> None:
        """Set how the task ended; LOST if another worker has it."""
        if task is None or not self._is_this(task):
            self.end = JobEnd.LOST
        else:
            self.end = _ENDS.get(task.status, JobEnd.LOST)
            self.reason = task.error
        self._log()

    def _take_away(self, end: JobEnd, reason: str) -> None:
        self.end, self.reason = end, reason
        self._scope.cancel()
        self._log()

    def _log(self) -> None:
        if self._phase in (_Phase.CLAIMED, _Phase.OPEN):
            logger.info(
                "task %s of type %r is taken from this worker: %s", self.id, self.assignment.task_type, self._over()
            )

    def _over(self) -> TaskOver:
        return TaskOver(self.id, self.end or JobEnd.LOST, self.reason)

    def _tell(self) -> None:
        self._news.set()
        self._news = anyio.Event()

    def _check(self) -> None:
        if self.end is not None:
            raise self._over()
        if self._phase is not _Phase.OPEN:
            raise RuntimeError(f"the block of task {self.id} is not open; work on it inside of `async with task:`")

    # -- for the program, inside of the block

    def __repr__(self) -> str:
        state = self._phase.name.lower() if self.end is None else self.end.value
        return f"<Job {self.id} of type {self.type!r}, {state}>"

    @property
    def type(self) -> str:
        """The kind of work, as the creator of the task has named it."""
        return self.assignment.task_type

    @property
    def payload(self) -> bytes:
        """The bytes that the creator has given the task to work on."""
        return self.assignment.payload

    @property
    def text(self) -> str:
        """The payload as UTF-8, with invalid bytes replaced."""
        return self.payload.decode(errors="replace")

    @property
    def metadata(self) -> Mapping[str, str]:
        """The metadata that the creator has given the task."""
        return {name: text for name, text in self.assignment.metadata.items() if not name.startswith("_")}

    @property
    def creator(self) -> str:
        """The identity of the task's creator, which is the topic for results."""
        return self.task.creator

    @property
    def attempt(self) -> int:
        """Which attempt at the task this is; 1 for the first."""
        return self.task.attempt

    async def progress(
        self,
        completion: float = UNKNOWN_COMPLETION,
        summary: str = "",
        *,
        state: str = "running",
        step: ProgressStep | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Report progress and a heartbeat, unconfirmed; `completion` 0 to 1, -1: unknown."""
        await self._checked()
        number = self.assignment.number
        told = {**(metadata or {}), NUMBER: number} if number else metadata
        await self._keeper.progress.report(
            self.id, completion=completion, summary=summary, state=state, step=step, metadata=told
        )

    async def wait_for_input(
        self, match: Mapping[str, str] | None = None, *, expected_principal: str = "", timeout: float | None = None
    ) -> Input:
        """Pause the task until it is resumed, or is sent an input that has all of `match`.

        Returns that input; an empty one after a resume. With an `expected_principal` (a user's id
        or an identity) only that participant's inputs count. Each input is used once, the oldest
        first, also one that has come before. After `timeout` seconds the task fails ("wait
        timeout"). A cancelled wait goes on without the input. Meanwhile the worker's loop may take
        another task.
        """
        wait = WaitSpec(
            reason=WaitReason.INPUT,
            expected_principal=expected_principal,
            input_match=dict(match or {}),
            timeout_s=_limit(timeout),
        )
        return (await self._wait_as(wait)).used_input or Input()

    async def ask(
        self,
        question: str,
        *,
        choices: Sequence[str] = (),
        text: bool | str = False,
        of: str = "",
        match: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> Answer:
        """Pause the task until a person answers a question, and return the answer.

        The person approves or rejects, may choose one of `choices`, and may give a `text` (the
        label of its field, or True). `of` is the only person who may answer, by a user's id or an
        identity; `match` what an answer must have besides. After `timeout` seconds the task fails.
        """
        form = Question(question=question, choices=tuple(choices), text=text).form
        wait = WaitSpec(
            reason=WaitReason.INPUT,
            expected_principal=of,
            input_match={**(match or {}), FORM: form},
            timeout_s=_limit(timeout),
        )
        used = (await self._wait_as(wait)).used_input
        if used is None:
            raise UnexpectedAnswer("the task goes on, and the gateway does not say who has answered its question")
        given = used.metadata
        return Answer(
            approved=given.get("decision") == "approve",
            choice=given.get("choice", ""),
            text=given.get("text", ""),
            by=used.by,
        )

    async def wait_for_authority(self, request_id: str, *, timeout: float | None = None) -> None:
        """Pause the task until a request for authority is approved.

        The task fails, and the block is cancelled, when the request is denied, cancelled or
        expires, or after `timeout` seconds. The request is one that this participant has made.
        """
        wait = WaitSpec(reason=WaitReason.AUTHORITY, authority_request_id=request_id, timeout_s=_limit(timeout))
        await self._wait_as(wait)

    async def wait_for_tasks(
        self, task_ids: Sequence[str], *, any_of_them: bool = False, timeout: float | None = None
    ) -> None:
        """Pause this task until the others end, or any one; it fails after `timeout` s."""
        tasks = self._keeper.tasks
        await self._wait(
            lambda request_id: tasks.wait_for(
                self._reference, task_ids, any_of_them=any_of_them, timeout_s=_limit(timeout), request_id=request_id
            )
        )

    async def wait_until(self, when: datetime) -> None:
        """Pause the task until `when`, and keep this worker (`hibernate` lets it go)."""
        wait = WaitSpec(reason=WaitReason.INPUT, input_match=NO_INPUT, scheduled_wake=when)
        await self._wait_as(wait)

    async def _wait_as(self, wait: WaitSpec) -> Task:
        return await self._wait(
            lambda request_id: self._keeper.tasks.pause(self._reference, wait, request_id=request_id)
        )

    async def _wait(self, pause: Callable[[str], Awaitable[Task]]) -> Task:
        """Call `pause(request_id)`, and wait until the task runs again; return it."""
        await self._checked()
        if self._waiting:
            raise RuntimeError(f"task {self.id} is in another wait already; one at a time")
        self._waiting = True
        try:
            await self._keeper.watch(self)
            await self._pause(pause)
            with self._place_freed():
                return await self._until_running()
        except anyio.get_cancelled_exc_class():
            if self.end is None:
                with anyio.move_on_after(LAST_WORDS_S, shield=True):
                    await self._go_on()
            raise
        finally:
            self._waiting = False

    async def _pause(self, pause: Callable[[str], Awaitable[Task]]) -> None:
        """Pause the task; after a cut, ask for that pause again unless it is paused."""
        request_id = str(uuid.uuid4())
        while True:
            try:
                self._status = (await pause(request_id)).status
                return
            except MAYBE_DONE:
                self.looked(await self._keeper.look_up(self.id))
                self._check()
                if self._status in WAITS:
                    return

    @contextmanager
    def _place_freed(self) -> Iterator[None]:
        """Give the task's place in its worker's loop to another task during the block."""
        if self._runs():  # its input was there already
            yield
            return
        self._place.free()
        self._place.waits(self)
        try:
            yield
        finally:
            self._place.take_back()

    async def _until_running(self) -> Task:
        """Wait until the task runs again, and look it up: events may be late."""
        while True:
            news = self._news
            task = None
            if self._runs():
                task = await self._keeper.look_up(self.id)
                self.looked(task)
            self._check()
            if task is not None and self._runs():
                return task
            if self._news is news:
                await news.wait()

    def _runs(self) -> bool:
        return self._status is TaskStatus.RUNNING

    async def _go_on(self) -> None:
        try:
            await self._keeper.tasks.resume(self._reference)
        except AetherError as error:
            logger.warning(
                "task %s: its wait was cancelled, but the gateway could not be told to resume it: %s", self.id, error
            )

    async def hibernate(
        self,
        state: Any = None,
        *,
        until: datetime | None = None,
        timeout: float | None = None,
        on_timeout: str = "",
        key: str = "",
    ) -> NoReturn:
        """Save `state` and end the block; the task is assigned anew later. Never returns.

        That is at `until`, or when the task is resumed; `load` gives the next block the `state`, in
        any worker. None leaves what `save` has saved. With a `key` it is saved as this
        participant's checkpoint of that name instead. After `timeout` seconds the
        task fails, or what `on_timeout` says ("retry" wakes it, "alert" lets it sleep on).
        """
        await self._checked()
        if key:
            await self._keeper.checkpoints.save(_data_of(state), key=key)
        elif state is not None or not self._has_state:
            await self.save(state)
        key = key or self.saved_key
        hibernation = Hibernation(checkpoint_key=key, escalation_policy=on_timeout)
        tasks = self._keeper.tasks
        request_id = str(uuid.uuid4())
        while self.end is None:
            self._in_doubt = True
            try:
                self.looked(
                    await tasks.hibernate(
                        self._reference, hibernation, until=until, timeout_s=_limit(timeout), request_id=request_id
                    )
                )
            except MAYBE_DONE:
                self.looked(await self._keeper.look_up(self.id))
        await anyio.lowlevel.checkpoint()
        raise self._over()  # it was called from outside of the block

    async def save(self, state: Any) -> None:
        """Save a state in the middle of the work: bytes, or what JSON can hold.

        The next attempt finds it with `load`, in any worker; a later state replaces it. It is kept
        as long as the task. Raises TaskOver, and saves nothing, if the task is another worker's.
        """
        await self._checked()
        try:
            await self._keeper.checkpoints.save(_data_of(state), key=f"{STATE}{self._reference}")
        except AetherError as error:
            if LOST not in error.message:
                raise
            self.looked(await self._keeper.look_up(self.id))
            if self.end is None:
                self._take_away(JobEnd.LOST, error.message)
            self._check()
        self._has_saved = True

    @property
    def saved_key(self) -> str:
        """The key of the checkpoint that `save` writes, for `complete`."""
        return f"{STATE}{self.id}"

    @property
    def _has_state(self) -> bool:
        return self._has_saved or self.assignment.checkpoint_key == self.saved_key

    async def load(self) -> Checkpoint | None:
        """Return the state that was saved last, here or by a former attempt, or None."""
        await self._checked()
        await anyio.lowlevel.checkpoint()
        key = self.saved_key if self._has_saved else self.assignment.checkpoint_key
        if key == self.saved_key:
            key = f"{STATE}{self._reference}"
        return await self._keeper.checkpoints.load(key) if key else None

    def give_result(self, value: Any) -> None:
        """Set the result with which the block completes the task when it is left well.

        That is bytes, or what JSON can hold. Raises TypeError, PayloadTooLarge.
        """
        self._result = encoded_result(value)

    async def complete(self, result: Any = None, *, result_checkpoint: str = "") -> NoReturn:
        """Complete the task with this result and end its block. Never returns.

        The result is bytes or what JSON can hold, of at most 512 KiB; a larger one is saved before,
        and `result_checkpoint` is `saved_key`, or the key of another checkpoint. Raises TypeError,
        PayloadTooLarge.
        """
        await self._checked()
        if result is not None or result_checkpoint:
            self._result = encoded_result(result, result_checkpoint)
        await self._complete(REFUSALS)
        if self._refused is not None:
            raise self._refused
        self._scope.cancel()
        await anyio.lowlevel.checkpoint()
        raise self._over()

    async def fail(self, reason: str) -> NoReturn:
        """Fail the task with this text and end its block. Never returns."""
        await self._checked()
        await self._fail(reason, REFUSALS)
        self._scope.cancel()
        await anyio.lowlevel.checkpoint()
        raise self._over()

    async def _checked(self) -> None:
        """Raise why the worker has lost the task, after a checkpoint for cancellation."""
        if self.end is not None:
            await anyio.lowlevel.checkpoint()
        self._check()


def describe(error: BaseException) -> str:
    """Return the kind and text of an exception (of a group: of its members)."""
    if isinstance(error, BaseExceptionGroup):
        text = "; ".join(describe(one) for one in error.exceptions)
    else:
        try:
            said = str(error)
        except Exception:  # an exception of the program's, which has no text
            said = ""
        text = f"{type(error).__name__}: {said}" if said else type(error).__name__
    return text if len(text) <= REASON_CHARS else text[: REASON_CHARS - 3] + "..."


def sendable(text: str) -> str:
    """Return the text with characters replaced that UTF-8 cannot encode."""
    if str.isascii(text):  # raises TypeError for what is no text
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _limit(timeout: float | None) -> float:
    """Return a wait's limit for the wire, where 0 is none; a past one ends at once."""
    return 0 if timeout is None or timeout == math.inf else max(timeout, SHORTEST_S)


def _stopped(error: BaseException) -> bool:
    """Return whether the error is a cancellation or Ctrl-C, or a group of those."""
    if isinstance(error, BaseExceptionGroup):
        return all(_stopped(one) for one in error.exceptions)
    return isinstance(error, (anyio.get_cancelled_exc_class(), KeyboardInterrupt))


def _data_of(state: Any) -> bytes:
    """Return the data of a state that is bytes, JSON or None. Raises TypeError."""
    if state is None:
        return b""
    if isinstance(state, bytes | bytearray | memoryview):
        return bytes(state)
    return json_text(state, "the state of a task").encode()
