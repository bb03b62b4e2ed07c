"""Reads figures that need a database or the disk, when asked, and not often.

A reading runs in the background, one at a time, so a scrape that does not wait for its end costs
nothing and the next one has the figures. Between two readings there are EVERY_S, or BREAK times
the duration of the last one, MAX_BREAK_S at most.
While a reading fails or does not end, the figures stay for KEEP_S, and are then absent.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Final

import structlog

from aether_trio.concurrency.events import AutoResetEvent, RepeatedEvent
from aether_trio.storage.base import StorageUnavailable

EVERY_S: Final = 5.0
BREAK: Final = 20
MAX_BREAK_S: Final = 120.0
KEEP_S: Final = 300.0
SLOW_S: Final = 15.0
"""A reading that has taken longer counts as one that fails, until it ends."""

logger = structlog.get_logger("aether.metrics")

Figures = Mapping[str, Mapping[tuple[str, ...], float]]
"""Values by the family's name and labels."""


class Sample:
    """Figures that `read` returns, the latest of them, and how the readings went."""

    def __init__(
        self,
        name: str,
        families: Collection[str],
        read: Callable[[], Awaitable[Figures]],
        *,
        every_s: float = EVERY_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name, self.families = name, frozenset(families)
        self._read, self._every_s, self._clock = read, every_s, clock
        self._figures: Figures = {}
        self._asked = AutoResetEvent()
        self._ended = RepeatedEvent()
        self._began_s: float | None = None
        self._read_s = self._next_s = 0.0
        self.ever = False
        """Whether a reading has succeeded."""
        self.took_s = 0.0
        self.failures = 0
        self._failing = False

    @property
    def age_s(self) -> float:
        """Seconds since the latest figures were read."""
        return self._clock() - self._read_s

    @property
    def figures(self) -> Figures:
        """The latest figures; none when they are too old."""
        return self._figures if self.ever and self.age_s < KEEP_S else {}

    @property
    def failing(self) -> bool:
        """Whether the last reading failed, or the present one takes long."""
        return self._failing or (self._began_s is not None and self._clock() - self._began_s > SLOW_S)

    async def fresh(self) -> None:
        """Wait for a new reading, unless it is not due yet."""
        if self._began_s is None:
            if self._clock() < self._next_s:
                return
            self._asked.set()
        await self._ended.wait()

    async def run(self) -> None:
        """Read whenever a scrape has asked, until cancelled."""
        while True:
            await self._asked.wait()
            self._began_s = began = self._clock()
            try:
                figures = await self._read()
                if unknown := figures.keys() - self.families:
                    raise ValueError(f"the sample {self.name} has unknown families: {unknown}")
                self._figures, self._read_s, self.ever, self._failing = figures, self._clock(), True, False
            except (StorageUnavailable, OSError) as error:
                self._failed()
                logger.debug("figures could not be read", sample=self.name, reason=str(error))
            except Exception:
                self._failed()
                logger.exception("figures could not be read", sample=self.name)
            finally:
                now = self._clock()
                self.took_s, self._began_s = now - began, None
                pause_s = 0.0 if self._failing else min(BREAK * self.took_s, MAX_BREAK_S)
                self._next_s = now + max(self._every_s, pause_s)
                self._ended.set()

    def _failed(self) -> None:
        self._failing = True
        self.failures += 1
