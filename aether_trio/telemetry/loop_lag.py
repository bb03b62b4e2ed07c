"""Measures how late the event loop wakes a task: what every client waits besides."""

from __future__ import annotations

import time
from typing import Final

import trio

from aether_trio.telemetry.metrics import Distribution

EVERY_S: Final = 0.1


async def measure_loop_lag(lag: Distribution) -> None:
    """Look at the clock EVERY_S, until cancelled, and count how late it is."""
    while True:
        wanted = time.monotonic() + EVERY_S
        await trio.sleep(EVERY_S)
        lag.observe(max(time.monotonic() - wanted, 0.0))
