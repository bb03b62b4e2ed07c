"""Keep the gateway's background tasks running after an exception.

A mistake that one connection provokes in such a task must not end the task for all connections. A
task may lose what it was in the middle of; so it keeps what waits outside of itself, and looks at
that before it waits for more.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Final

import trio

log = logging.getLogger("aether.supervision")

RESTART_S: Final = 1.0
"""Before what has failed runs again: a mistake that is met every time costs one report a second."""


async def keep_running(what: str, run: Callable[[], Awaitable[object]]) -> None:
    """Call `run()` until it returns, again RESTART_S seconds after an exception."""
    while True:
        try:
            await run()
        except Exception as error:
            log.error("a background task failed and is started again in a second: %s", what, exc_info=error)
            await trio.sleep(RESTART_S)
        else:
            return
