"""A client's `async for` over messages, which acknowledges each one handled.

A task is done with a message when it asks for the next one, or ends without an exception. It may
leave its loop and begin another: the first message of the new loop still acknowledges the last one
of the old, and leaving the client's block well acknowledges what the tasks that still run have in
hand. A message whose handling has raised out of its task, or out of the block, is not acknowledged,
and comes again.

Invariant: a message belongs to the task that took it, the object and not its id, which a later task
may have again; it is forgotten when that task ends.
"""

from __future__ import annotations

import asyncio
from typing import Any, Self

import sniffio
import trio

from aether_trio.client.connection.inbox import Inbox
from aether_trio.client.message import IncomingMessage


class MessagesInHand:
    """The unacknowledged message that each task of the program works on."""

    def __init__(self) -> None:
        self._by_task: dict[object, IncomingMessage] = {}
        self._ends: _TaskEnds | None = None
        self._closed = False

    def take(self, message: IncomingMessage) -> None:
        """Note that the current task has received a message, unless the client has ended."""
        if self._closed:
            return
        if sniffio.current_async_library() == "trio":
            self._by_task[trio.lowlevel.current_task()] = message
            if self._ends is None:
                self._ends = _TaskEnds(self)
                trio.lowlevel.add_instrument(self._ends)
            return
        task: asyncio.Task[Any] | None = asyncio.current_task()
        assert task is not None
        if task not in self._by_task:
            task.add_done_callback(self._asyncio_task_ended)
        self._by_task[task] = message

    def done(self) -> None:
        """Acknowledge the message of the current task: it asks for the next one."""
        trio_runs = sniffio.current_async_library() == "trio"
        self.ended(trio.lowlevel.current_task() if trio_runs else asyncio.current_task(), well=True)

    def ended(self, task: object, *, well: bool) -> None:
        """Acknowledge a message whose task ended `well` or takes another; else abandon it."""
        message = self._by_task.pop(task, None)
        if message is None:
            return
        if well:
            message.ack()
        else:
            message.abandon()

    def _asyncio_task_ended(self, task: asyncio.Task[Any]) -> None:
        # Not exception(): that would keep asyncio from reporting an exception that nothing else
        # retrieves.
        self.ended(task, well=not task.cancelled() and getattr(task, "_exception", task) is None)

    def all_done(self) -> None:
        """Acknowledge the messages of all tasks."""
        while self._by_task:
            self._by_task.popitem()[1].ack()

    def close(self) -> None:
        """Forget all messages: the client has ended, and can acknowledge none."""
        self._closed = True
        self._by_task.clear()
        if self._ends is not None:
            trio.lowlevel.remove_instrument(self._ends)
            self._ends = None


class _TaskEnds(trio.abc.Instrument):
    """Trio instrument that acknowledges or abandons the message of a task that ends.

    A task that raises cancels its nursery before this is called. So one whose nursery is not
    cancelled has ended well; of the others nothing is known, and their messages come again.
    """

    def __init__(self, cursors: MessagesInHand) -> None:
        self._cursors = cursors

    def task_exited(self, task: trio.lowlevel.Task) -> None:
        nursery = task.parent_nursery
        self._cursors.ended(task, well=nursery is not None and not nursery.cancel_scope.cancel_called)


class Messages:
    """An async iterator over one client's messages; several may share one inbox."""

    def __init__(self, inbox: Inbox, cursors: MessagesInHand | None) -> None:
        self._inbox = inbox
        self._cursors = cursors

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> IncomingMessage:
        if self._cursors is None:
            return await self._inbox.receive()
        self._cursors.done()
        message = await self._inbox.receive()
        self._cursors.take(message)
        return message
