"""The one sleeper: it wakes when the first task falls due, or when something is to fall due earlier.

It looks at the table when it starts, so whatever fell due while the gateway was down happens then, once. Every few seconds it looks at the
calendar, which may have been set while it slept. Where other nodes write to the table it looks there as well: what a node has written that
died before its moment is another one's to do.

Invariant: what is noted while the table is read is not in what is read, and wakes the sleeper by itself.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Final

import structlog
import trio

from aether_trio.model.clock import Clock
from aether_trio.services.tasks import due
from aether_trio.storage.base import Database, StorageUnavailable

logger = structlog.get_logger("aether.tasks")

LOOK_S: Final = 5.0
RETRY_S: Final = 1.0


class Clockwork:
    """`fire()` lets a page of what is due happen, and says how many rows it looked at. Raises StorageUnavailable."""

    def __init__(self, database: Database, clock: Clock, fire: Callable[[], Awaitable[int]]) -> None:
        self._database = database
        self._clock = clock
        self._fire = fire
        self._next_ms = 0
        self._earlier = trio.Event()
        self.fired = 0

    def note(self, due_ms: int) -> None:
        """Something falls due then."""
        if due_ms and (not self._next_ms or due_ms < self._next_ms):
            self._next_ms = due_ms
            self._earlier.set()

    async def run(self) -> None:
        """Wake and let happen, until cancelled."""
        failing = False
        while True:
            try:
                self._earlier, self._next_ms = trio.Event(), 0
                self._next_ms = await self._database.read(due.next_moment)
                if self._wait_s() <= 0:
                    self.fired += await self._fire()
                    failing = False
                    continue
            except StorageUnavailable as error:
                if not failing:
                    logger.warning("nothing falls due while storage is away", reason=str(error))
                failing = True
                await trio.sleep(RETRY_S)
                continue
            failing = False
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
