"""Run work when it is triggered, and every few seconds in case a trigger is lost.

Invariants: a trigger during the work causes the work to run again; work that fails because storage
is unavailable runs again after RETRY_DELAY_S.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from random import Random

import structlog
import trio

from aether_trio.concurrency.events import AutoResetEvent
from aether_trio.storage.base import StorageUnavailable
from aether_trio.storage.retry import RETRY_DELAY_S

logger = structlog.get_logger("aether.periodic")


class PeriodicTask:
    """Calls `work(periodic)` on each trigger and each `every_s` seconds.

    `periodic` is True for a call without a trigger. `every_s` None: only on a trigger.
    `min_interval_s` is the pause after each run, in which further triggers become one. `what` names
    the work in the log.
    """

    def __init__(
        self,
        what: str,
        work: Callable[[bool], Awaitable[None]],
        random: Random,
        *,
        every_s: float | None,
        min_interval_s: float = 0.0,
    ) -> None:
        self._what = what
        self._work = work
        self._random = random
        self._every_s = every_s
        self._min_interval_s = min_interval_s
        self._triggered = AutoResetEvent()

    def trigger(self) -> None:
        """Request a run of the work soon. Never blocks."""
        self._triggered.set()

    async def run(self) -> None:
        """Run the work until cancelled; an error other than StorageUnavailable ends it."""
        while True:
            periodic = await self._wait()
            try:
                await self._work(periodic)
            except StorageUnavailable as error:
                logger.info("the work named in `what` waits until storage answers", what=self._what, reason=str(error))
                self._triggered.set()
                await trio.sleep(RETRY_DELAY_S)
            except Exception:
                self._triggered.set()
                raise
            await trio.sleep(self._min_interval_s)

    async def _wait(self) -> bool:
        if self._every_s is None:
            await self._triggered.wait()
            return False
        with trio.move_on_after(self._every_s * self._random.uniform(0.8, 1.0)) as pause:
            await self._triggered.wait()
        return pause.cancelled_caught
