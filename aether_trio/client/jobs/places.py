"""Counts the tasks that a worker's loop has open; one that waits frees its place.

A task that goes on after its wait does so at once, though its place may have been taken meanwhile:
then the loop takes its next task only when there is a free place again.
"""

from __future__ import annotations

import anyio
import anyio.lowlevel


class Places:
    """The places of a loop over tasks; `free` is negative after waits have ended."""

    def __init__(self, count: int) -> None:
        self.free = count
        self._news = anyio.Event()

    async def take(self) -> None:
        """Wait for a free place, and take it."""
        await anyio.lowlevel.checkpoint()
        while self.free <= 0:
            await self._news.wait()
        self.free -= 1

    def take_back(self) -> None:
        """Take a place for a task that goes on after a wait, though none may be free."""
        self.free -= 1

    def give(self) -> None:
        """Free a place: a task has ended, or waits. Never waits."""
        self.free += 1
        if self.free > 0:
            self._news.set()
            self._news = anyio.Event()
