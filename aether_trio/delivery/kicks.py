"""Outboxes that have something new and are kicked together a little later, so that what comes meanwhile shares one write.

An outbox that is kicked by something else in the meantime sends what it has then; the later kick finds nothing and costs next to nothing.

Between some of them others have their turn, as each may write to a socket. A kick that raises is reported; the others are kicked all the same.

Invariants: what is added is kicked once, `pause_s` and its turn later, as long as `run` runs; when `run` ends, all are.
"""

from __future__ import annotations

from itertools import islice
from typing import Protocol

import trio

from aether_trio.model.containment import report


class Kicked(Protocol):
    """An Outbox, or whatever else takes a kick."""

    def kick(self) -> None:
        """There is something new."""
        ...


AT_ONCE = 64
"""Kicks between two checkpoints: about 1 ms of work."""


class Kicks:
    """See the module docstring. With `pause_s` 0 the kicks come after whatever else is ready to run now."""

    def __init__(self, pause_s: float = 0.0) -> None:
        self._pause_s = pause_s
        self._waiting: dict[Kicked, None] = {}
        self._some = trio.Event()

    def add(self, one: Kicked) -> None:
        """Kick this one soon. Never blocks."""
        if not self._waiting:
            self._some.set()
        self._waiting[one] = None

    def flush(self) -> None:
        """Kick all of them now."""
        waiting, self._waiting = self._waiting, {}
        for one in waiting:
            _kick(one)

    async def run(self) -> None:
        """Work, until cancelled."""
        try:
            while True:
                await self._some.wait()
                self._some = trio.Event()
                if self._pause_s:
                    await trio.sleep(self._pause_s)
                while self._waiting:
                    for one in list(islice(self._waiting, AT_ONCE)):
                        del self._waiting[one]
                        _kick(one)
                    await trio.lowlevel.checkpoint()
        finally:
            self.flush()


def _kick(one: Kicked) -> None:
    """A mistake that one of them meets costs none of the others their kick."""
    try:
        one.kick()
    except Exception as error:
        report(error, "what was to be written a little later")
