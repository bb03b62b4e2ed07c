"""Deletes expired rows in pages, one transaction each.

Readers compare `expires_ms` with the clock, so an expired row is invisible at once, and no result
depends on when this runs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import trio

from aether_trio.model.clock import Clock
from aether_trio.storage.base import Database, Program, StorageUnavailable

SweepPage = Callable[[int, int], Program[int]]
"""`page(now_ms, rows)` deletes up to `rows` expired rows, and returns how many went."""


async def sweep(database: Database, clock: Clock, page: SweepPage, rows: int) -> int:
    """Delete all expired rows; return how many. Stops when storage is unavailable."""
    total = 0
    try:
        while True:
            count = await database.run(partial(page, clock.now_ms(), rows))
            total += count
            if count < rows:
                return total
    except StorageUnavailable:
        return total


async def sweep_forever(database: Database, clock: Clock, page: SweepPage, rows: int, interval_s: float) -> None:
    """Delete expired rows every `interval_s` seconds, until cancelled."""
    while True:
        await trio.sleep(interval_s)
        await sweep(database, clock, page, rows)
