"""What is to be written and nobody waits for: sessions that come and go, progress of tasks. In order, many to a transaction.

One task takes what has gathered and runs it as one program; while that is being written the next one gathers. So a storm of connections
costs a few transactions, and what one session does takes effect in the order in which it did it.

Invariants: nothing is lost while storage is away, it waits; memory is bounded by MAX_WAITING and MAX_BYTES, beyond which progress is
dropped (it is worth something only while it is fresh), and never a coming or going. No session has more than its SHARE of that, so one that
reports without a pause costs the others neither their progress nor much time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, NamedTuple

import structlog
import trio

from aether_trio.model.containment import report
from aether_trio.model.limits import MIB
from aether_trio.services.tasks.transaction.work import Work
from aether_trio.storage.base import Program, RefusedError, StorageUnavailable
from aether_trio.storage.pending import IN_NAME_OF, Pending

logger = structlog.get_logger("aether.tasks")

GROUP: Final = 64
MAX_WAITING: Final = 10_000
MAX_BYTES: Final = 32 * MIB
SHARE: Final = 10
"""One session may have the tenth part of either."""
RETRY_S: Final = 0.5

Mutation = Callable[[Work], Program[None]]


def _nothing() -> None:
    return None


class SignOfLife(NamedTuple):
    """A participant has reported on one task, or has come: then `task_id` is empty."""

    identity: str
    task_id: str = ""


class _Waiting(NamedTuple):
    """`of` is the session whose share it counts for, "" for what is never dropped; `size` in bytes."""

    errand: Mutation
    done: Callable[[], None]
    pending: Pending | None
    sign: SignOfLife | None = None
    of: str = ""
    size: int = 0


class Unwritten(NamedTuple):
    """How many errands were left in the time given, and the signs of life among them. `failed`: storage failed in that time."""

    failed: bool
    left: int = 0
    signs: frozenset[SignOfLife] = frozenset()


ALL_WRITTEN: Final = Unwritten(failed=False)


class WriteBatcher:
    """`perform(program)` runs one on a fresh Work and sees to what follows from it. Raises StorageUnavailable. `together` may make fewer
    errands of a group that do the same; `most` is how many a group has at most."""

    def __init__(
        self,
        perform: Callable[[Mutation], Awaitable[object]],
        together: Callable[[Sequence[Mutation]], Sequence[Mutation]] = lambda group: group,
        *,
        most: int = GROUP,
    ) -> None:
        self._perform = perform
        self._most = most
        self._together = together
        self._waiting: deque[_Waiting] = deque()
        self._shares: dict[str, tuple[int, int]] = {}
        self._bytes = 0
        self._taken = self._done = 0
        self._dropped = 0
        self._failing = False
        self._failures = 0
        self._group: Sequence[_Waiting] = ()
        self._behind = False
        """Whether the time of `catch_up` was up, and errands have waited ever since."""
        self._work = trio.Event()
        self._progress = trio.Event()

    def put(self, errand: Mutation, done: Callable[[], None] = _nothing, *, sign: SignOfLife | None = None) -> int:
        """Take something on; its number, for `wait_done`. `done` is called after its commit. It is written in the caller's name."""
        return self._take(_Waiting(errand, done, IN_NAME_OF.get(), sign))

    def offer(
        self, errand: Mutation, done: Callable[[], None] = _nothing, *, sign: SignOfLife, of: str, size: int
    ) -> int:
        """`put`, for what may be dropped when too much waits, of all sessions or of this one; 0 if it was. `size` is in bytes."""
        count, its_bytes = self._shares.get(of, (0, 0))
        full = len(self._waiting) >= MAX_WAITING or self._bytes + size > MAX_BYTES
        if full or count >= MAX_WAITING // SHARE or its_bytes + size > MAX_BYTES // SHARE:
            self._dropped += 1
            return 0
        self._shares[of] = count + 1, its_bytes + size
        self._bytes += size
        return self._take(_Waiting(errand, done, IN_NAME_OF.get(), sign, of, size))

    def _take(self, one: _Waiting) -> int:
        if one.pending is not None:
            one.pending.began()
        self._waiting.append(one)
        self._taken += 1
        self._work.set()
        return self._taken

    def _give_back(self, one: _Waiting) -> None:
        """Its share is free."""
        if one.of:
            count, its_bytes = self._shares.pop(one.of)
            if count > 1:
                self._shares[one.of] = count - 1, its_bytes - one.size
            self._bytes -= one.size

    @property
    def dropped(self) -> int:
        """How much was dropped since start."""
        return self._dropped

    def is_done(self, number: int) -> bool:
        """Whether the errand with this number is committed."""
        return number <= self._done

    async def wait_done(self, number: int) -> None:
        """Wait until `is_done(number)`."""
        while number > self._done:
            await self._progress.wait()

    async def settle(self) -> None:
        """Wait until all that was taken on is done."""
        await self.wait_done(self._taken)

    async def catch_up(self, within_s: float) -> Unwritten:
        """Wait at most so long until all that was taken on is done, and say what is not.

        When the time was up, later calls return at once until nothing waits any more: a write may stall for minutes.
        """
        was_failing, failures = self._failing, self._failures
        if not self._behind:
            with trio.move_on_after(within_s) as limit:
                await self.settle()
            self._behind = limit.cancelled_caught
        failed = was_failing or self._failures > failures
        if not self._behind:
            return Unwritten(failed)
        left = (*self._group, *self._waiting)
        return Unwritten(failed, len(left), frozenset(one.sign for one in left if one.sign))

    async def run(self) -> None:
        """Work, until cancelled."""
        while True:
            if not self._waiting:
                self._behind = False
                await self._work.wait()
                self._work = trio.Event()
                continue
            group = self._group = [self._waiting.popleft() for _ in range(min(self._most, len(self._waiting)))]
            await self._run_group([one.errand for one in group])
            for one in group:
                self._give_back(one)
                try:
                    one.done()
                except Exception as error:
                    report(error, "who is told of a task's progress")
                if one.pending is not None:
                    one.pending.over()
            self._group = ()
            self._done += len(group)
            event, self._progress = self._progress, trio.Event()
            event.set()

    async def _run_group(self, group: list[Mutation]) -> None:
        while True:
            try:
                await self._perform(_joined(self._together(group)))
            except Exception as error:
                if isinstance(error, StorageUnavailable) and not isinstance(error, RefusedError):
                    if not self._failing:
                        logger.warning("sessions and progress of tasks wait for storage", reason=str(error))
                    self._failing = True
                    self._failures += 1
                    await trio.sleep(RETRY_S)
                    continue
                self._failing = False
                # A defect in one of them, or something that storage never takes: do the others, and say which it was.
                logger.exception("an errand failed", errands=len(group))
                if len(group) == 1:
                    return
                for one in group:
                    await self._run_group([one])
                return
            self._failing = False
            return


def _joined(group: Sequence[Mutation]) -> Mutation:
    def program(work: Work) -> Program[None]:
        for errand in group:
            yield from errand(work)

    return program
