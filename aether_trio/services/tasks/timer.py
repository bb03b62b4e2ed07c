"""The one sleeper: it wakes when the first task falls due, or when something is to fall due earlier.

It looks at the table when it starts, so whatever fell due while the gateway was down happens then, once. Every few seconds it looks at the
calendar, which may have been set while it slept. Where other nodes write to the table it looks there as well: what a node has written that
died before its moment is another one's to do.

While the database is away nothing falls due, and participants cannot say what they do. What they have said by the moment at which something
falls due comes first (`flush_within`), and `fire` is told what is `SilenceExcuse`: since when the database was away, and what has not been written
in time. A silence that was only that is excused. An outage counts until nothing is left that fell due in it, however often the database
fails meanwhile.

Invariant: what is noted while the table is read is not in what is read, and wakes the sleeper by itself.
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

logger = structlog.get_logger("aether.tasks")

LOOK_S: Final = 5.0
RETRY_S: Final = 1.0
FLUSH_S: Final = 5.0
"""For what participants have said to be written. What takes longer excuses those who have said it, and holds nothing else up."""


class TaskTimer:
    """`fire(unheard)` lets a page of what is due happen, and says how many rows it looked at. Raises StorageUnavailable.

    `flush_within(timeout_s)` waits until what participants have said is written, and says what is not.
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
        self._earlier = trio.Event()
        self.fired = 0

    def note(self, due_ms: int) -> None:
        """Something falls due then."""
        if due_ms and (not self._next_ms or due_ms < self._next_ms):
            self._next_ms = due_ms
            self._earlier.set()

    def look(self) -> None:
        """Something may fall due that is in the table and was not noted. Never blocks."""
        self._earlier.set()

    async def run(self) -> None:
        """Wake and let happen, until cancelled."""
        failing = False
        there_ms = self._clock.now_ms()
        while True:
            try:
                self._earlier, self._next_ms = trio.Event(), 0
                self._next_ms = await self._database.read(due.next_moment)
                is_due = self._wait_s() <= 0
                backlog = await self._flush_within(FLUSH_S) if is_due or failing else NO_BACKLOG
                if failing or (backlog.failed and not backlog.size):
                    since_ms = self._outage.since_ms or there_ms
                    self._outage = Outage(min(since_ms, there_ms), self._clock.now_ms())
                    failing = False
                there_ms = self._clock.now_ms()
                if is_due:
                    self.fired += await self._fire(SilenceExcuse(self._outage, backlog.heartbeats))
                    continue
            except StorageUnavailable as error:
                if not failing:
                    logger.warning("nothing falls due while storage is away", reason=str(error))
                failing = True
                await trio.sleep(RETRY_S)
                continue
            if not 0 < self._next_ms <= self._outage.until_ms:
                self._outage = NO_OUTAGE
            await self._sleep()

    def _wait_s(self) -> float:
        return (self._next_ms - self._clock.now_ms()) / 1000 if self._next_ms else math.inf

    async def _sleep(self) -> None:
        """Until something is due, or is to be due earlier, or the table is to be looked at."""
        while not self._earlier.is_set() and (wait_s := self._wait_s()) > 0:
            with trio.move_on_after(min(wait_s, LOOK_S)):
                await self._earlier.wait()
            if self._database.shared:
                return
