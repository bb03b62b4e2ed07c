"""Tracks a session's writes that may still take effect after the session's end.

A caller that is cancelled does not take its program back (base.py), so the end of a session does
not end its writes. Before a successor gets the session's identity, it waits here for them.

    CURRENT_SESSION_WRITES.set(writes)  ──▶  database.run(...)  ──▶  began ... over

Only PostgreSQL counts, which has several writer connections: in SQLite the programs of a successor
are queued behind those of its predecessor.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Final

from aether_trio.concurrency.events import RepeatedEvent


class SessionWrites:
    """Counts the programs of one session that may still take effect. For one thread."""

    __slots__ = ("_all_over", "count")

    def __init__(self) -> None:
        self.count = 0
        self._all_over = RepeatedEvent()

    def began(self) -> None:
        """Note that one more program may take effect."""
        self.count += 1

    def over(self) -> None:
        """Note that a program is committed, or never will be."""
        self.count -= 1
        if not self.count:
            self._all_over.set()

    async def wait_none(self) -> None:
        """Wait until no program may take effect any more. A checkpoint only if it waits."""
        while self.count:
            await self._all_over.wait()


CURRENT_SESSION_WRITES: Final[ContextVar[SessionWrites | None]] = ContextVar("CURRENT_SESSION_WRITES", default=None)
"""The writes of the session for which the current task, and the tasks that it starts, work."""
