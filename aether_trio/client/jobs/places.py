"""Counts the tasks that a worker's loop has open; one that waits frees its place.

A task that goes on after its wait does so at once, though its place may have been taken meanwhile:
then the loop takes its next task only when there is a free place again.
"""

from __future__ import annotations

from collections import deque

import anyio
import anyio.lowlevel


class Places:
    """The places of a loop over tasks; `free` is negative after waits have ended."""

    def __init__(self, count: int) -> None:
        self.free = count
        self._waiting: deque[anyio.Event] = deque()
        """Of those who wait for a place, the first one first; there are none while one is free."""

    async def take(self) -> None:
        """Wait for a free place, and take it."""
        await anyio.lowlevel.checkpoint()
        if self.free > 0:
            self.free -= 1
            return
        given = anyio.Event()
        self._waiting.append(given)
        try:
            await given.wait()
        except BaseException:
            if given.is_set():
                self.give()
            else:
                self._waiting.remove(given)
            raise

    def take_back(self) -> None:
        """Take a place for a task that goes on after a wait, though none may be free."""
        self.free -= 1

    def give(self) -> None:
        """Free a place: a task has ended, or waits. Never waits."""
        if self.free == 0 and self._waiting:
            self._waiting.popleft().set()
        else:
            self.free += 1
