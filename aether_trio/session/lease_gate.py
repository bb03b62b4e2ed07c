"""Pauses the sessions of a cluster node while the node has no lease."""

from __future__ import annotations

from aether_trio.concurrency.events import RepeatedEvent


class LeaseGate:
    """While `paused`, sessions handle no input and are sent no durable message."""

    __slots__ = ("_resumed", "paused")

    def __init__(self) -> None:
        self.paused = False
        self._resumed = RepeatedEvent()

    def pause(self) -> None:
        """Stop the input of all sessions, and durable messages to them, until `resume`."""
        self.paused = True

    def resume(self) -> None:
        """Let the input of sessions, and durable messages to them, pass. Never blocks."""
        self.paused = False
        self._resumed.set()

    async def wait(self) -> None:
        """Wait until sessions may handle input. A checkpoint only if they may not."""
        while self.paused:
            await self._resumed.wait()
