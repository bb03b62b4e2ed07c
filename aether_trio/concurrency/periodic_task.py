"""Work that a node does when somebody asks for it, and by itself every few seconds, as a hint between nodes may be lost.

Invariants: who asks while the work is being done has it done again; work that storage did not let be done is done again, soon.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from random import Random
from typing import Final

import structlog
import trio

from aether_trio.storage.base import StorageUnavailable

logger = structlog.get_logger("aether.cluster")

AGAIN_S: Final = 0.5
"""Before what could not be done is tried once more."""


class Round:
    """`work` is told whether nobody has asked for it. `run` is the one task that does it."""

    def __init__(
        self,
        what: str,
        work: Callable[[bool], Awaitable[None]],
        random: Random,
        *,
        every_s: float | None,
        breath_s: float = 0.0,
    ) -> None:
        """`what` is for the log. `every_s` None: only when asked. `breath_s` is between two times, so that many who ask are one or two."""
        self._what = what
        self._work = work
        self._random = random
        self._every_s = every_s
        self._breath_s = breath_s
        self._asked = trio.Event()

    def ask(self) -> None:
        """Have it done, soon. In one step."""
        self._asked.set()

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            alone = await self._wait()
            self._asked = trio.Event()
            try:
                await self._work(alone)
            except StorageUnavailable as exc:
                logger.info("put off until storage answers", what=self._what, reason=str(exc))
                self._asked.set()
                await trio.sleep(AGAIN_S)
            except Exception:
                self._asked.set()
                raise
            await trio.sleep(self._breath_s)

    async def _wait(self) -> bool:
        if self._every_s is None:
            await self._asked.wait()
            return False
        with trio.move_on_after(self._every_s * self._random.uniform(0.8, 1.0)) as pause:
            await self._asked.wait()
        return pause.cancelled_caught
