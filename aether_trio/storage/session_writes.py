"""What was begun in somebody's name and is not over: programs that a database was given and that may still take effect.

A caller that is cancelled does not take its program back (base.py), so the end of a session says nothing about what the session has
written. Whoever hands the session's identity to a successor asks here.

    IN_NAME_OF.set(pending)  ──▶  database.run(...)  ──▶  began ... over        when it is known that it is committed, or never will be

Only an engine with several topics counts (postgres.py): in SQLite a successor's programs are queued behind those of its predecessor.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Final

import trio


class Pending:
    """The programs of one name. Used by one thread."""

    __slots__ = ("_none", "count")

    def __init__(self) -> None:
        self.count = 0
        self._none: trio.Event | None = None

    def began(self) -> None:
        """One more may take effect."""
        self.count += 1

    def over(self) -> None:
        """One has taken effect, or never will."""
        self.count -= 1
        if not self.count and self._none is not None:
            self._none.set()
            self._none = None

    async def wait_none(self) -> None:
        """Wait until nothing may take effect any more. A checkpoint only if it waits."""
        while self.count:
            if self._none is None:
                self._none = trio.Event()
            await self._none.wait()


IN_NAME_OF: Final[ContextVar[Pending | None]] = ContextVar("IN_NAME_OF", default=None)
"""For the task that runs, and those that it starts."""
