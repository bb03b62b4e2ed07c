"""A clock with the database's time, the same for all nodes of a cluster.

What is due, old or expired is so for all nodes at the same moment, whatever their own clocks say.
The database is asked now and then; in between the time goes on by this process's monotonic clock.
An answer is old by the time of its way back, so this time is late by that, and never early. Only an
answer that came quickly moves the time, unless the last such answer is old. The time does not run
backwards: it stands still. But when the clock of the database's machine is set back by more than
HOLD_MS, the time follows, because nothing would fall due for so long.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import structlog
import trio

from aether_trio.model.clock import Clock
from aether_trio.storage.base import Database, Fetch, StorageUnavailable, single

logger = structlog.get_logger("aether.storage")

ASK_S: Final = 10.0
QUICK_S: Final = 0.05
OLD_S: Final = 120.0
HOLD_MS: Final = 60_000
_NOW: Final = Fetch("SELECT floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint")


class DatabaseClock:
    """A Clock of the database's time; call `ask` before its first use, and `run` it."""

    def __init__(self, database: Database, own: Clock) -> None:
        self._database = database
        self._own = own
        self._at_s = 0.0
        self._ms = 0
        self._latest_ms = 0

    def now_ms(self) -> int:
        """Return the database's time in Unix milliseconds."""
        now_ms = self._ms + round((self._own.monotonic() - self._at_s) * 1_000_000) // 1000
        if not self._latest_ms - HOLD_MS <= now_ms < self._latest_ms:
            self._latest_ms = now_ms
        return self._latest_ms

    def monotonic(self) -> float:
        return self._own.monotonic()

    async def ask(self) -> None:
        """Ask the database for the time. Raises StorageUnavailable."""
        began_s = self._own.monotonic()
        [[told_ms]] = await self._database.read(lambda: single(_NOW))
        ended_s = self._own.monotonic()
        if ended_s - began_s <= QUICK_S or not self._ms or began_s - self._at_s > OLD_S:
            self._at_s, self._ms = ended_s, told_ms

    async def run(self) -> None:
        """Ask the database for the time every ASK_S, until cancelled."""
        while True:
            await trio.sleep(ASK_S)
            try:
                await self.ask()
            except StorageUnavailable as error:
                logger.debug(
                    "the database did not tell the time; this node goes on by its own clock", reason=str(error)
                )


@asynccontextmanager
async def open_database_clock(database: Database, own: Clock) -> AsyncIterator[DatabaseClock]:
    """Keep a clock of this database until the block ends. Raises StorageUnavailable."""
    clock = DatabaseClock(database, own)
    await clock.ask()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(clock.run, name="database-time")
        yield clock
        nursery.cancel_scope.cancel()
