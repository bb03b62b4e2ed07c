"""A task in a worker's hands, which is a block.

    claimed ──▶ open ──▶ settling ──▶ closed
                  │ the gateway takes it away: the block is cancelled, and left without a word
                  └ the body ends: COMPLETE or FAIL, until the gateway has answered or the task is somebody else's

Who ends it is told by `end`: what is over for the gateway is never completed or failed afterwards,
and what a cut leaves in doubt is looked up. Nothing here reads the connection: `heard` and `looked`
are called by bench.py.
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

import anyio
import anyio.lowlevel

from aether_trio.client.errors import AetherError, ConnectionLost, RequestTimeout
from aether_trio.client.operations.enums import TaskStatus
from aether_trio.client.operations.task_events import StatusChanged, TaskEvent
from aether_trio.client.operations.task_values import NUMBER, Assignment, Task

if TYPE_CHECKING:
    from aether_trio.client.jobs.manager import JobManager

__all__ = ["OURS", "STOPPED", "JobEnd", "RunningJob", "TaskOver"]

Move = Callable[[], Awaitable[Task]]
"""Tells the gateway what becomes of a task."""
LastMove = Callable[[int | None], Awaitable[None]]
"""Ends a task. Raises its refusal when it is refused so many times; None: it goes on."""

logger = logging.getLogger("aether_trio.client")

REASON_CHARS: Final = 4_000
"""Of an exception's text; the rest is cut off."""
STOPPED: Final = "the worker was stopped"
LAST_WORDS_S: Final = 2.0
"""For telling the gateway of a block that was cancelled."""
REFUSALS: Final = 5
"""Of COMPLETE, then FAIL is said; of FAIL, then it is said behind the block."""
PAUSE_S: Final = 0.5
"""Between two tries to settle a task that the gateway says is still ours."""
LATE_PAUSE_S: Final = 5.0
"""The same behind the block."""

WAITS: Final = frozenset({TaskStatus.WAITING_INPUT, TaskStatus.WAITING_AUTHORITY, TaskStatus.WAITING_DEPENDENCY})
OURS: Final = WAITS | {TaskStatus.RUNNING}


class JobEnd(enum.Enum):
    """What became of a task, as far as this worker is concerned."""

    COMPLETED = "completed"
    FAILED = "failed"
    """By its worker, or by a deadline. Its retry policy says whether it is tried again."""
    CANCELLED = "cancelled"
    REJECTED = "rejected"
    HIBERNATED = "hibernated"
    """It sleeps, and will be assigned again."""
    LOST = "lost"
    """Somebody else has it, or will have it: it was taken back while this worker was away, or
    retried.
    """


_ENDS: Final = {
    TaskStatus.COMPLETED: JobEnd.COMPLETED,
    TaskStatus.FAILED: JobEnd.FAILED,
    TaskStatus.CANCELLED: JobEnd.CANCELLED,
    TaskStatus.REJECTED: JobEnd.REJECTED,
    TaskStatus.HIBERNATED: JobEnd.HIBERNATED,
}


class TaskOver(AetherError):
    """The task is not this worker's any more: it was cancelled, has hibernated, or somebody else
    has it. Its block swallows this.
    """

    def __init__(self, task_id: str, end: JobEnd, reason: str) -> None:
        super().__init__("TASK_OVER", f"task {task_id} is {end.value}" + (f": {reason}" if reason else ""))
        self.task_id = task_id
        self.end = end


class _Phase(enum.Enum):
    CLAIMED = enum.auto()
    OPEN = enum.auto()
    SETTLING = enum.auto()
    CLOSED = enum.auto()


class RunningJob:
    """A claimed task, and its block.

    See the module docstring; Job is what programs see of it.
    """

    def __init__(self, bench: JobManager, assignment: Assignment, task: Task, closed: Callable[[], None]) -> None:
        self.assignment = assignment
        """As the gateway gave it."""
        self.task = task
        """As it was when it was claimed: its creator, attempt, priority and the rest."""
        self.end: JobEnd | None = None
        """What became of it; None while it is this worker's."""
        self.reason = ""
        """With what text it failed, if it did."""
        self.remark = ""
        """What is said with COMPLETE. Whoever follows the task hears it as the reason of its last
        event.
        """
        self.watched = anyio.Event()
        """What the gateway does to the task is heard of."""
        self._bench = bench
        self._closed = closed
        self._phase = _Phase.CLAIMED
        self._scope = anyio.CancelScope()
        self._status = TaskStatus.RUNNING
        self._news = anyio.Event()
        self._waiting = False
        self._refused: Exception | None = None
        """Why COMPLETE was refused, so that the task fails."""
        self._in_doubt = False
        """A last move was made, and it is not known whether it has arrived."""
        self._settles_late = False
        """The client goes on saying what has become of it, behind the end of the block."""

    @property
    def id(self) -> str:
        """The task's id."""
        return self.assignment.task_id

    @property
    def _reference(self) -> str:
        """The task's id as moves are told: what this block says does not count for a later
        assignment of the task.
        """
        return self.assignment.reference

    @property
    def entered(self) -> bool:
        """Whether its block has begun."""
        return self._phase is not _Phase.CLAIMED

    @property
    def is_open(self) -> bool:
        """Whether it may still be taken away: the block has not ended, and the gateway has not
        ended it.
        """
        return self.end is None and self._phase in (_Phase.CLAIMED, _Phase.OPEN)

    # -- the block

    async def __aenter__(self) -> Self:
        if self.entered:
            raise RuntimeError(f"task {self.id} has had its block; a task is one block")
        # Raises in another loop than the client's, and then no block has begun.
        self._scope.__enter__()
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
                self._bench.put_down(self)
            self._close()
        if rest is not None and not self._is_over(rest):
            raise rest
        return swallowed or (error is not None and self._is_over(error))

    def _is_over(self, error: BaseException) -> bool:
        """Whether this is a TaskOver of ours, or a group of nothing else."""
        if isinstance(error, BaseExceptionGroup):
            return all(self._is_over(one) for one in error.exceptions)
        return isinstance(error, TaskOver) and error.task_id == self.id

    async def _leave(self, error: BaseException | None) -> None:
        """Say how it was left.

        A cancellation does not keep it from being said, also one that comes meanwhile.

        Raises why COMPLETE was refused, if it was; then the task has failed.
        """
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
        """COMPLETE; or FAIL, if that is refused though the task is ours: a task in no block must
        end. See `_settle`.
        """
        if self._refused is None:
            try:
                await self._settle(lambda: self._bench.tasks.complete(self._reference, reason=sendable(self.remark)))
                return
            except Exception as refused:
                self._bench.check_client()
                self._refused = refused
        await self._fail(f"COMPLETE was refused: {describe(self._refused)}", refusals)

    async def _fail(self, reason: str, refusals: int | None) -> None:
        """FAIL. See `_settle`."""
        reason = sendable(reason)
        await self._settle(lambda: self._bench.tasks.fail(self._reference, reason=reason), refusals)

    async def _last_words(self, last: LastMove) -> None:
        """Settle in spite of a cancellation: here for LAST_WORDS_S, and then behind the block while
        the client lives.

        Nothing is waited for any more when another one comes through the shield, as asyncio's own
        do, and Ctrl-C.
        """
        try:
            with anyio.move_on_after(LAST_WORDS_S, shield=True):
                await last(REFUSALS)
        except AetherError as refused:
            self._log_untold(refused)
        finally:
            if self.end is None:
                self._go_on_behind(last)

    def _go_on_behind(self, last: LastMove) -> bool:
        """Settle behind the block, however often it is refused, while the client lives.

        False if it does not.
        """
        self._settles_late = self._bench.settle_later(self, lambda: last(None))
        return self._settles_late

    def _log_untold(self, refused: AetherError) -> None:
        logger.warning("task %s is over, and the gateway could not be told: %s", self.id, refused)

    def _close(self) -> None:
        """There is room for another one."""
        closed, self._closed = self._closed, _nothing
        closed()

    def begins_too_late(self) -> None:
        """Its block has not begun, and others may have the task: a block that begins yet is
        cancelled.
        """
        if self.end is None:
            self._take_away(JobEnd.LOST, "its block has not begun in time")
        self._close()

    async def give_up(self, reason: str) -> None:
        """Fail it without a block: no loop has taken it."""
        self._phase = _Phase.SETTLING
        try:
            await self._fail(reason, None)
        finally:
            self._phase = _Phase.CLOSED
            self._bench.put_down(self)

    async def _settle(self, move: Move, refusals: int | None = REFUSALS) -> None:
        """Make the last move, however often the connection is cut.

        Until it is made, or the task is not ours any more.

        Raises the last of so many refusals (None: never), and why the client has ended.
        """
        pause_s = 0.0
        while True:
            try:
                if self._in_doubt:
                    task = await self._bench.look_up(self.id)
                    if not self._is_ours(task):
                        self._ended(task)
                        return
                    await anyio.sleep(pause_s)
                self._in_doubt = True
                self._ended(await move())
                return
            except AetherError as error:
                self._bench.check_client()
                logger.debug("task %s: %s", self.id, error)
                if isinstance(error, ConnectionLost | RequestTimeout):
                    pause_s = 0.0
                    continue
                pause_s = PAUSE_S
                if refusals is None:
                    pause_s = LATE_PAUSE_S
                elif not error.retryable:
                    refusals -= 1
                    if not refusals:
                        raise

    # -- what the gateway says

    def heard(self, event: TaskEvent) -> None:
        """An event of this task. Never waits."""
        change = event.event
        if not self.is_open or not isinstance(change, StatusChanged):
            return
        self._status = change.to_status
        if self._status not in OURS:
            self._take_away(_ENDS.get(self._status, JobEnd.LOST), change.reason)
        self._tell()

    def looked(self, task: Task | None) -> None:
        """How the task is just now; None when there is none that this worker may see.

        Never waits.
        """
        if not self.is_open:
            return
        if task is not None and self._is_ours(task):
            self._status = task.status
        else:
            self._ended(task)
            self._scope.cancel()
        self._tell()

    def _is_ours(self, task: Task | None) -> bool:
        return task is not None and task.status in OURS and self._is_this(task)

    def _is_this(self, task: Task) -> bool:
        """Whether the task was assigned to nobody since, nor to us anew."""
        number = self.assignment.number
        return task.assigned_to == self.task.assigned_to and task.metadata.get(NUMBER, number) == number

    def _ended(self, task: Task | None) -> None:
        """Remember how it is; what has become of it in other hands is not this worker's."""
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
            logger.info("task %s of type %r: %s", self.id, self.assignment.task_type, self._over())

    def _over(self) -> TaskOver:
        return TaskOver(self.id, self.end or JobEnd.LOST, self.reason)

    def _tell(self) -> None:
        self._news.set()
        self._news = anyio.Event()

    def _check(self) -> None:
        if self.end is not None:
            raise self._over()
        if self._phase is not _Phase.OPEN:
            raise RuntimeError(f"task {self.id} is worked on inside of its block: async with task: ...")


def _nothing() -> None:
    """It was said that there is room."""


def describe(error: BaseException) -> str:
    """An exception as the reason of a failure: its kind and its text; of a group, those of its
    members.
    """
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
    """A text for a field of a message: what UTF-8 cannot hold, such as a part of a file's name, is
    replaced.
    """
    if str.isascii(text):  # raises TypeError for what is no text
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _stopped(error: BaseException) -> bool:
    """Whether it is a cancellation or Ctrl-C, or a group of nothing else."""
    if isinstance(error, BaseExceptionGroup):
        return all(_stopped(one) for one in error.exceptions)
    return isinstance(error, (anyio.get_cancelled_exc_class(), KeyboardInterrupt))
