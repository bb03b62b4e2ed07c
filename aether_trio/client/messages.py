"""The loop over messages, and when it acknowledges.

A task is done with a message when it asks for the next one. It may leave its loop and begin another: the first message of
the new loop still acknowledges the last one of the old, and leaving the client's block well acknowledges what is left.
A message whose handling has raised out of the block is not acknowledged, and comes again.
"""

from __future__ import annotations

from typing import Self

import anyio

from aether_trio.client.inbox import Inbox
from aether_trio.client.message import IncomingMessage

__all__ = ["Cursors", "Messages"]


class Cursors:
    """The message that each task has in its hands."""

    def __init__(self) -> None:
        self._by_task: dict[int, IncomingMessage] = {}

    def take(self, message: IncomingMessage) -> None:
        """This task has got a message."""
        self._by_task[anyio.get_current_task().id] = message

    def done(self) -> None:
        """This task is done with what it had."""
        message = self._by_task.pop(anyio.get_current_task().id, None)
        if message is not None:
            message.ack()

    def all_done(self) -> None:
        """All tasks are."""
        while self._by_task:
            self._by_task.popitem()[1].ack()


class Messages:
    """An iterator over one client's messages; any number of them may share the inbox."""

    def __init__(self, inbox: Inbox, cursors: Cursors | None) -> None:
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
