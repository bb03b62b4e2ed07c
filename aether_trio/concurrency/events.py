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

    __slots__ = ("_is_set", "_waiter")

    def __init__(self) -> None:
        self._is_set = False
        self._waiter: trio.lowlevel.Task | None = None

    def set(self) -> None:
        """Let the next or current `wait` return. Never blocks. Idempotent."""
        self._is_set = True
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            trio.lowlevel.reschedule(waiter)

    def is_set(self) -> bool:
        """Whether a `wait` would return at once."""
        return self._is_set

    async def wait(self) -> None:
        """Wait until `set` has been called, and reset. For one task at a time."""
        if self._is_set:
            await trio.lowlevel.checkpoint()
        else:
            if self._waiter is not None:
                raise trio.BusyResourceError("another task is already waiting for this event")
            self._waiter = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(self._abort)
        self._is_set = False

    def _abort(self, _: object) -> trio.lowlevel.Abort:
        self._waiter = None
        return trio.lowlevel.Abort.SUCCEEDED
