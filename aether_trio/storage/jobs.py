"""A database program that waits or runs, and the task that waits for it."""

from __future__ import annotations

from typing import Any

import outcome
import trio

from aether_trio.storage.base import Abandoned, ProgramFactory


class DatabaseJob:
    """One database program on its way through an engine, then its result."""

    __slots__ = ("abandoned", "answered", "error", "factory", "parked", "task", "value")

    def __init__(self, factory: ProgramFactory[Any], abandoned: Abandoned[Any] | None = None) -> None:
        self.factory = factory
        self.abandoned = abandoned
        """What is called if the caller was cancelled while it waited."""
        self.task: trio.lowlevel.Task | None = None
        """The caller; None without one, and when it was cancelled."""
        self.answered = self.parked = False
        """`parked`: the caller waits, or has waited, to be rescheduled."""
        self.value: Any = None
        self.error: Exception | None = None

    async def outcome(self) -> Any:
        """Wait for `answer`; return the program's result, or raise its error."""
        try:
            if not self.answered:
                self.task, self.parked = trio.lowlevel.current_task(), True
                return await trio.lowlevel.wait_task_rescheduled(self._forget)
            await trio.lowlevel.cancel_shielded_checkpoint()
            if self.error is not None:
                raise self.error
            return self.value
        finally:
            # Its traceback has this frame: a circle would keep the program's data until a rare
            # garbage collection.
            if self.answered:
                self.error = None

    def _forget(self, _raise_cancel: Any) -> trio.lowlevel.Abort:
        """Run the job on without its caller, which was cancelled."""
        self.task = None
        return trio.lowlevel.Abort.SUCCEEDED

    def answer(self) -> None:
        """Give the outcome to the caller that waits, or else to `abandoned`."""
        task, self.task, self.answered = self.task, None, True
        if not self.parked or (task is None and self.abandoned is None):
            return
        ended = outcome.Value(self.value) if self.error is None else outcome.Error(self.error)
        if task is not None:
            trio.lowlevel.reschedule(task, ended)
        elif self.abandoned is not None:
            self.abandoned(ended)
