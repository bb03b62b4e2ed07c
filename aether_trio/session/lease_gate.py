"""Pauses the sessions of a node that has no lease, or is out of date."""

from __future__ import annotations

import math
from collections.abc import Callable

import trio

from aether_trio.concurrency.events import RepeatedEvent


class LeaseGate:
    """While `paused`, sessions handle no input and are sent no durable message.

    They handle no input either after `closes_at_s` (trio's clock): the node has not looked for
    changes of access data since, or something it knows has expired. The first session that finds
    out calls `on_stale`.
    """

    __slots__ = ("_resumed", "closes_at_s", "on_stale", "paused")

    def __init__(self) -> None:
        self.paused = False
        self.closes_at_s = math.inf
        self.on_stale: Callable[[], None] = _nothing
        self._resumed = RepeatedEvent()

    def pause(self) -> None:
        """Stop the input of all sessions, and durable messages to them, until `resume`."""
        self.paused = True

    def resume(self) -> None:
        """Let the input of sessions, and durable messages to them, pass. Never blocks."""
        self.paused = False
        self._resumed.set()

    def fresh_until(self, moment_s: float) -> None:
        """Let the input of sessions pass until this moment of trio's clock."""
        self.closes_at_s = moment_s
        self._resumed.set()

    @property
    def is_closed(self) -> bool:
        """Whether sessions may not handle input."""
        return self.paused or trio.current_time() >= self.closes_at_s

    async def wait(self) -> None:
        """Wait until sessions may handle input. A checkpoint only if they may not."""
        while self.is_closed:
            if not self.paused:
                self.on_stale()
            await self._resumed.wait()


def _nothing() -> None:
    pass
