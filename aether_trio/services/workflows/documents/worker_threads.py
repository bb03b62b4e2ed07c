"""A few threads for work that must not hold up the event loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import trio

T = TypeVar("T")


class WorkerThreads:
    """At most so many threads at once in a run of trio; further work waits for one."""

    def __init__(self, name: str, most_at_once: int) -> None:
        self._most_at_once = most_at_once
        self._limiter: trio.lowlevel.RunVar[trio.CapacityLimiter] = trio.lowlevel.RunVar(name)

    async def run(self, work: Callable[[], T]) -> T:
        """Return what `work` returns or raises in a thread."""
        try:
            limiter = self._limiter.get()
        except LookupError:
            limiter = trio.CapacityLimiter(self._most_at_once)
            self._limiter.set(limiter)
        return await trio.to_thread.run_sync(work, limiter=limiter)
