"""The gate that stops a node's sessions while its lease is lost."""

from __future__ import annotations

from aether_trio.concurrency.events import RepeatedEvent


class LeaseGate:
    """While `paused`, sessions handle no input and are sent no durable message.

    It is not known then which identities this node owns. The gate of a gateway without a cluster
    is never paused. See outbox.Gate.
    """

    __slots__ = ("_resumed", "paused")

    def __init__(self) -> None:
        self.paused = False
        self._resumed = RepeatedEvent()

    def pause(self) -> None:
        """Stop input and durable messages until `resume`."""
        self.paused = True

    def resume(self) -> None:
        """Let input and durable messages pass. Never blocks."""
        self.paused = False
        self._resumed.set()

    async def wait(self) -> None:
        """Wait until the gate is not paused. A checkpoint only if it is."""
        while self.paused:
            await self._resumed.wait()
