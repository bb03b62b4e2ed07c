"""Kicks tell an outbox that it has something new to write to its socket.

Many outboxes are kicked in slices, with a checkpoint after each slice, because each kick may write
to a socket. `Kicks` collects outboxes and kicks each of them a little later, so that all that the
outbox gets in the meantime shares one write; a kick that finds nothing is cheap.

Invariants of `Kicks`: a kick that raises is reported, and the other outboxes are kicked all the
same; an outbox that is added is kicked once, `pause_s` and its turn later, as long as `run` runs;
when `run` ends, all outboxes that wait are kicked.
"""

from __future__ import annotations

from itertools import islice
from typing import Protocol

import trio

from aether_trio.concurrency.events import AutoResetEvent
from aether_trio.model.containment import report

__all__ = ["KICKS_PER_SLICE", "Kickable", "Kicks", "kick_all"]


class Kickable(Protocol):
    """A writer to a socket, such as a session's outbox, that writes when it is kicked."""

    def kick(self) -> None:
        """Write to the socket what is new. Never blocks."""


KICKS_PER_SLICE = 64
"""Kicks between two checkpoints: about 1 ms of work."""


async def kick_all(touched: set[Kickable]) -> None:
    """Kick all outboxes of the set, with checkpoints, and empty the set."""
    kicks = 0
    while touched:
        touched.pop().kick()
        kicks += 1
        if kicks % KICKS_PER_SLICE == 0:
            await trio.lowlevel.checkpoint()


class Kicks:
    """Kicks outboxes `pause_s` later; with 0, after all tasks that are ready now."""

    def __init__(self, pause_s: float = 0.0) -> None:
        self._pause_s = pause_s
        self._waiting: dict[Kickable, None] = {}
        self._added = AutoResetEvent()

    def add(self, one: Kickable) -> None:
        """Kick this outbox soon. Never blocks."""
        if not self._waiting:
            self._added.set()
        self._waiting[one] = None

    def flush(self) -> None:
        """Kick all outboxes that wait, now."""
        waiting, self._waiting = self._waiting, {}
        for one in waiting:
            _kick(one)

    async def run(self) -> None:
        """Wake the senders of outboxes that were added, until cancelled."""
        try:
            while True:
                await self._added.wait()
                if self._pause_s:
                    await trio.sleep(self._pause_s)
                while self._waiting:
                    for one in list(islice(self._waiting, KICKS_PER_SLICE)):
                        del self._waiting[one]
                        _kick(one)
                    await trio.lowlevel.checkpoint()
        finally:
            self.flush()


def _kick(one: Kickable) -> None:
    """Kick an outbox and report what it raises, so that others are kicked too."""
    try:
        one.kick()
    except Exception as error:
        report(error, "a connection that was kicked a little later")
