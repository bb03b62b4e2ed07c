"""Where each durable consumer has read to, kept in memory until the next commit carries it to disk.

A cursor moves when bytes have gone to the socket, which is far more often than it is worth a write; the log takes
the dirty ones along a few times a second. After a crash a consumer therefore sees its last moments again, never a gap.

A node of a cluster may lose an identity without knowing at once: what it moved since belongs to nobody, as the holder elsewhere has not
had it. `drop` forgets such cursors, also those that are on their way, whose write is then not to be made (again).

Invariants: a cursor never moves back; one that is being written still counts as unwritten until its commit is known, and
until the reads that may have missed that commit are over (`remembering`); what was dropped is never dirty again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import trio

from aether_trio.log.topic_state import TopicState

Key = tuple[TopicState, str]


class CursorStore:
    """Dirty cursors by (topic, consumer)."""

    __slots__ = (
        "_begun",
        "_dirty",
        "_dropped",
        "_flushed",
        "_flushing",
        "_readers",
        "_saved",
        "_wake",
        "_written",
        "hurry",
    )

    def __init__(self, wake: Callable[[], None]) -> None:
        self._dirty: dict[Key, int] = {}
        self._flushing: dict[Key, int] = {}
        self._written: dict[Key, int] = {}
        self._dropped: set[Key] = set()  # of those that are being written
        self._readers = 0
        self._wake = wake
        self._flushed: trio.Event | None = None
        self._begun = self._saved = 0
        self.hurry = False
        """Somebody waits for a flush, which is not to wait for its time."""

    @property
    def dirty(self) -> bool:
        """Whether anything waits to be written."""
        return bool(self._dirty)

    @property
    def void(self) -> bool:
        """Whether what is being written must not be written under a later lease."""
        return bool(self._dropped)

    def advance(self, state: TopicState, consumer: str, offset: int) -> None:
        """The consumer has been given everything up to and including `offset`."""
        key = (state, consumer)
        known = self._dirty.get(key)
        if known is None:
            if not self._dirty:
                self._wake()
            # A dirty cursor holds its topic in memory: the pair below counts as a message in flight.
            state.waiting += 1
            self._dirty[key] = offset
        elif offset > known:
            self._dirty[key] = offset

    def unwritten(self, state: TopicState, consumer: str) -> int | None:
        """The cursor as memory knows it, or None when the database is up to date."""
        key = (state, consumer)
        if key in self._dirty:
            return self._dirty[key]
        if key in self._flushing and key not in self._dropped:
            return self._flushing[key]
        return self._written.get(key)

    def drop(self, is_kept: Callable[[str], bool]) -> None:
        """Forget what is not written yet of the consumers that are not to be kept: it comes again, to whoever holds their identity now."""
        for state, consumer in [key for key in self._dirty if not is_kept(key[1])]:
            del self._dirty[state, consumer]
            state.waiting -= 1
        self._dropped.update(key for key in self._flushing if not is_kept(key[1]))
        self._tell_flushed()

    @contextmanager
    def remembering(self) -> Iterator[None]:
        """While cursors are read from the database: what gets written meanwhile may be missing in that snapshot."""
        self._readers += 1
        try:
            yield
        finally:
            self._readers -= 1
            if not self._readers:
                self._written.clear()

    async def save(self) -> None:
        """Wait until every cursor that has moved by now is in the database, however long that takes."""
        if not self._dirty and not self._flushing:
            return
        wanted = self._begun + 1 if self._dirty else self._begun
        while self._saved < wanted and (self._dirty or self._flushing):
            self.hurry = True
            self._wake()
            if self._flushed is None:
                self._flushed = trio.Event()
            await self._flushed.wait()

    def begin_flush(self) -> list[TopicState]:
        """Take what is dirty along; the topics it belongs to. Each call is followed by `end_flush` or `abort_flush`."""
        assert not self._flushing
        self._flushing, self._dirty = self._dirty, {}
        self._begun += 1
        self.hurry = False
        return [state for state, _ in self._flushing]

    def rows(self, now_ms: int) -> list[tuple[int, str, int, int]]:
        """What is being flushed, for `programs.save_cursors`. Every topic of it must have its id by now."""
        rows = []
        for (state, consumer), offset in self._flushing.items():
            assert state.topic_id is not None
            rows.append((state.topic_id, consumer, offset, now_ms))
        return rows

    def end_flush(self) -> None:
        """The rows are durable."""
        for state, _ in self._flushing:
            state.waiting -= 1
        if self._readers:
            self._written.update(self._flushing)
        self._flushing = {}
        self._dropped.clear()
        self._saved = self._begun
        self._tell_flushed()

    def abort_flush(self) -> None:
        """The rows were not written: they stay dirty, unless newer ones have come."""
        for key, offset in self._flushing.items():
            if key in self._dirty or key in self._dropped:
                key[0].waiting -= 1
            if key not in self._dropped:
                self._dirty[key] = max(offset, self._dirty.get(key, 0))
        self._flushing = {}
        self._dropped.clear()
        self._tell_flushed()

    def _tell_flushed(self) -> None:
        if self._flushed is not None:
            self._flushed.set()
            self._flushed = None
