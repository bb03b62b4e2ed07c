"""Events that can be set more than once: trio.Event is set once and stays set."""

from __future__ import annotations

import trio

__all__ = ["AutoResetEvent", "RepeatedEvent"]


class RepeatedEvent:
    """An event of which each `set` wakes all tasks that wait then, and no later one."""

    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event: trio.Event | None = None
        """Made by the first task that waits, which most RepeatedEvents never get."""

    def set(self) -> None:
        """Wake the tasks that wait now. Never blocks; costs nothing when no task waits."""
        event, self._event = self._event, None
        if event is not None:
            event.set()

    async def wait(self) -> None:
        """Wait for the next `set`."""
        if self._event is None:
            self._event = trio.Event()
        await self._event.wait()


class AutoResetEvent:
    """An event that remembers a `set` until one task has waited for it."""

    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event = trio.Event()

    def set(self) -> None:
        """Let the next or current `wait` return. Never blocks. Idempotent."""
        self._event.set()

    def is_set(self) -> bool:
        """Whether a `wait` would return at once."""
        return self._event.is_set()

    async def wait(self) -> None:
        """Wait until `set` has been called, and reset. For one task at a time."""
        await self._event.wait()
        self._event = trio.Event()
