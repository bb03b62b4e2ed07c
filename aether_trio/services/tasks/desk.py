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
from aether_trio.services.tasks.transaction import Work
from aether_trio.storage.base import Program, RefusedError, StorageUnavailable
from aether_trio.storage.pending import IN_NAME_OF, Pending

logger = structlog.get_logger("aether.tasks")

GROUP: Final = 64
MAX_WAITING: Final = 10_000
MAX_BYTES: Final = 32 * MIB
SHARE: Final = 10
"""One session may have the tenth part of either."""
RETRY_S: Final = 0.5

Errand = Callable[[Work], Program[None]]


def _nothing() -> None:
    return None


class _Waiting(NamedTuple):
    """`by` is the identity of which it is a sign of life, if it is one. `of` is the session whose share it counts for,
    "" for what is never dropped; `size` in bytes."""

    errand: Errand
    done: Callable[[], None]
    pending: Pending | None
    by: str = ""
    of: str = ""
    size: int = 0


class Unwritten(NamedTuple):
    """What was not written in time: `failed` says that storage was the reason, `by` whose signs of life are among it."""

    failed: bool
    by: frozenset[str] = frozenset()


ALL_WRITTEN: Final = Unwritten(failed=False)


class Desk:
    """`perform(program)` runs one on a fresh Work and sees to what follows from it. Raises StorageUnavailable. `together` may make fewer
    errands of a group that do the same; `most` is how many a group has at most."""

    def __init__(
        self,
        perform: Callable[[Errand], Awaitable[object]],
        together: Callable[[Sequence[Errand]], Sequence[Errand]] = lambda group: group,
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
        self._stalled_at = -1
        """How much was done when the time of `catch_up` was up."""
        self._work = trio.Event()
        self._progress = trio.Event()

    def put(self, errand: Errand, done: Callable[[], None] = _nothing, *, by: str = "") -> int:
        """Take something on; its number, for `wait_done`. `done` is called after its commit. It is written in the caller's name.

        `by` is the identity of which it is a sign of life.
        """
        return self._take(_Waiting(errand, done, IN_NAME_OF.get(), by))

    def offer(self, errand: Errand, done: Callable[[], None] = _nothing, *, by: str, of: str, size: int) -> int:
        """`put`, for what may be dropped when too much waits, of all sessions or of this one; 0 if it was. `size` is in bytes."""
        count, its_bytes = self._shares.get(of, (0, 0))
        full = len(self._waiting) >= MAX_WAITING or self._bytes + size > MAX_BYTES
        if full or count >= MAX_WAITING // SHARE or its_bytes + size > MAX_BYTES // SHARE:
            self._dropped += 1
            return 0
        self._shares[of] = count + 1, its_bytes + size
        self._bytes += size
        return self._take(_Waiting(errand, done, IN_NAME_OF.get(), by, of, size))

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
        """Wait until all that was taken on is done, at most so long. Say what is not, and whether storage failed meanwhile.

        When the time was up, later calls do not wait until a group has been done: a write may stall for minutes.
        """
        was_failing, failures = self._failing, self._failures
        if self._stalled_at != self._done:
            with trio.move_on_after(within_s):
                await self.settle()
                return Unwritten(was_failing or self._failures > failures)
            self._stalled_at = self._done
        by = frozenset(one.by for one in (*self._group, *self._waiting) if one.by)
        return Unwritten(was_failing or self._failures > failures, by)

    async def run(self) -> None:
        """Work, until cancelled."""
        while True:
            if not self._waiting:
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

    async def _run_group(self, group: list[Errand]) -> None:
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


def _joined(group: Sequence[Errand]) -> Errand:
    def program(work: Work) -> Program[None]:
        for errand in group:
            yield from errand(work)

    return program
