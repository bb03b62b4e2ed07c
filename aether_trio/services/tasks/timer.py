"""The gateway's timer for tasks: waits for the next deadline, then has it handled.

It reads the next moment from the table when it starts, so what fell due while the gateway was down
happens then, once. Every few seconds it reads the clock, which may have been set, and the table
where nodes share it. When the clock was set back, it fires once though nothing is due: a schedule
whose slots were decided ahead of time has them again (services/workflows/schedules/firing.py).

While the database is away nothing falls due, and participants cannot report. So waiting mutations
are written first (`flush_within`), and `fire` is given a SilenceExcuse: a task whose worker may
have been silent only because of the outage, or of unwritten heartbeats, gets more time. An outage
counts until nothing is left that fell due in it, however often the database fails meanwhile.

Invariant: a moment noted while the table is read wakes the timer, as the reader may miss it.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Final

import structlog
import trio

from aether_trio.model.clock import Clock
from aether_trio.services.tasks.transaction import due
from aether_trio.services.tasks.transaction.due import NO_OUTAGE, Outage, SilenceExcuse
from aether_trio.services.tasks.write_batcher import NO_BACKLOG, Backlog
from aether_trio.storage.base import Database, StorageUnavailable
from aether_trio.storage.retry import RETRY_DELAY_S

logger = structlog.get_logger("aether.tasks")

CHECK_S: Final = 5.0
SET_BACK_MS: Final = 5_000
"""A clock that runs behind its latest moment by more was set back."""
LOCKED_S: Final = 0.1
"""The pause while what is due is locked by another node, which may be suspended."""
FLUSH_S: Final = 5.0
"""How long heartbeats may take to be written before their tasks are excused instead."""


class TaskTimer:
    """Handles tasks' deadlines, retries and timeouts when they fall due.

    `fire(excuse)` handles a page and returns how many rows it read; `flush_within(timeout_s)`
    returns the mutations that it could not write. Only `fire` raises StorageUnavailable.
    """

    def __init__(
        self,
        database: Database,
        clock: Clock,
        fire: Callable[[SilenceExcuse], Awaitable[int]],
        flush_within: Callable[[float], Awaitable[Backlog]],
    ) -> None:
        self._database = database
        self._clock = clock
        self._fire = fire
        self._flush_within = flush_within
        self._outage = NO_OUTAGE
        self._next_ms = 0
        self._latest_ms = 0
        self._earlier = trio.Event()
        self.fired = 0

    def note(self, due_ms: int) -> None:
        """Wake the timer earlier if a task falls due at this moment (Unix ms; 0: never)."""
        if due_ms and (not self._next_ms or due_ms < self._next_ms):
            self._next_ms = due_ms
            self._earlier.set()

    def look(self) -> None:
        """Have the timer read the tasks' next due moment from the table again."""
        self._earlier.set()

    async def run(self) -> None:
        """Wait for due tasks and handle them, until cancelled."""
        failing = False
        fruitless = 0
        there_ms = self._clock.now_ms()
        while True:
            try:
                self._earlier, self._next_ms = trio.Event(), 0
                self._next_ms = await self._database.read(due.next_moment)
                is_due = self._wait_s() <= 0 or self._was_set_back()
                backlog = await self._flush_within(FLUSH_S) if is_due or failing else NO_BACKLOG
                if failing or (backlog.failed and not backlog.size):
                    since_ms = self._outage.since_ms or there_ms
                    self._outage = Outage(min(since_ms, there_ms), self._clock.now_ms())
                    failing = False
                there_ms = self._clock.now_ms()
                if is_due:
                    fired = await self._fire(SilenceExcuse(self._outage, backlog.heartbeats))
                    self.fired += fired
                    self._latest_ms = there_ms
                    fruitless = 0 if fired else fruitless + 1
                    if fruitless > 1:
                        with trio.move_on_after(LOCKED_S):
                            await self._earlier.wait()
                    continue
            except StorageUnavailable as error:
                if not failing:
                    logger.warning("deadlines and retries of tasks wait until storage answers", reason=str(error))
                failing = True
                await trio.sleep(RETRY_DELAY_S)
                continue
            if not 0 < self._next_ms <= self._outage.until_ms:
                self._outage = NO_OUTAGE
            await self._sleep()

    def _wait_s(self) -> float:
        return (self._next_ms - self._clock.now_ms()) / 1000 if self._next_ms else math.inf

    def _was_set_back(self) -> bool:
        """Return whether the clock was set back since the timer has fired."""
        return self._clock.now_ms() < self._latest_ms - SET_BACK_MS

    async def _sleep(self) -> None:
        """Wait until a task is due, an earlier moment is noted, or CHECK_S are over."""
        while not self._earlier.is_set() and (wait_s := self._wait_s()) > 0 and not self._was_set_back():
            self._latest_ms = max(self._latest_ms, self._clock.now_ms())
            with trio.move_on_after(min(wait_s, CHECK_S)):
                await self._earlier.wait()
            if self._database.shared:
                return
