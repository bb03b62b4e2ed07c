"""Giving back the room of rows that have expired: one page per transaction, so that others get between.

Whoever reads compares with the clock, so an expired row is invisible at once; nothing depends on when this runs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import trio

from aether_trio.model.clock import Clock
from aether_trio.storage.base import Database, Program, StorageUnavailable

SweepPage = Callable[[int, int], Program[int]]
"""`page(now_ms, rows)`: delete up to `rows` of what has expired; how many went."""


async def sweep(database: Database, clock: Clock, page: SweepPage, rows: int) -> int:
    """Delete all that has expired now; returns how many rows. A failing engine only postpones it."""
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
    """`sweep` every `interval_s`, until cancelled."""
    while True:
        await trio.sleep(interval_s)
        await sweep(database, clock, page, rows)
