"""Cursors: where each durable consumer has read to, until a commit writes it.

A cursor moves when bytes have gone to the socket, which is too often to be written each time. The
log writes the moved cursors a few times a second. After a crash a consumer therefore gets its last
messages again, and never misses one.

A node of a cluster may lose an identity without knowing it at once. The moves since then do not
count, because the node that has the identity now did not make them. `drop` forgets such cursors,
also those that are being written, which are then not to be written again.

Invariants: a cursor never moves back; one that is being written still counts as unwritten until its
commit is known, and until the reads that may have missed that commit are over (`remembering`); a
dropped cursor never becomes dirty again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from aether_trio.concurrency.events import RepeatedEvent
from aether_trio.log.topic_cache import CachedTopic

Key = tuple[CachedTopic, str]


class CursorStore:
    """Keeps consumers' cursors (read positions) that moved and are not written yet."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._dirty: dict[Key, int] = {}
        self._flushing: dict[Key, int] = {}
        self._written: dict[Key, int] = {}
        self._dropped: set[Key] = set()  # of the cursors that are being written
        self._readers = 0
        self._wake = wake
        self._flushed = RepeatedEvent()
        self._begun = self._saved = 0
        self.hurry = False
        """Whether a task waits for the next flush, which is then due at once."""

    @property
    def dirty(self) -> bool:
        """Whether a moved cursor waits to be written."""
        return bool(self._dirty)

    @property
    def void(self) -> bool:
        """Whether a cursor being written is void, as another node holds its identity now."""
        return bool(self._dropped)

    def advance(self, topic: CachedTopic, consumer: str, offset: int) -> None:
        """Note that the consumer has all messages of a topic up to and with `offset`."""
        key = (topic, consumer)
        known = self._dirty.get(key)
        if known is None:
            if not self._dirty:
                self._wake()
            # A dirty cursor holds its topic in memory, as a message in flight does.
            topic.waiting += 1
            self._dirty[key] = offset
        elif offset > known:
            self._dirty[key] = offset

    def unwritten(self, topic: CachedTopic, consumer: str) -> int | None:
        """Return a consumer's cursor in memory; None when the database has the latest."""
        key = (topic, consumer)
        if key in self._dirty:
            return self._dirty[key]
        if key in self._flushing and key not in self._dropped:
            return self._flushing[key]
        return self._written.get(key)

    def drop(self, is_kept: Callable[[str], bool]) -> None:
        """Forget unwritten cursors of consumers whose identities other nodes hold now."""
        for topic, consumer in [key for key in self._dirty if not is_kept(key[1])]:
            del self._dirty[topic, consumer]
            topic.waiting -= 1
        self._dropped.update(key for key in self._flushing if not is_kept(key[1]))
        self._flushed.set()

    @contextmanager
    def remembering(self) -> Iterator[None]:
        """Keep cursors that are written during a read whose snapshot may not have them."""
        self._readers += 1
        try:
            yield
        finally:
            self._readers -= 1
            if not self._readers:
                self._written.clear()

    async def save(self) -> None:
        """Wait, without a limit, until all cursors that have moved are written."""
        if not self._dirty and not self._flushing:
            return
        wanted = self._begun + 1 if self._dirty else self._begun
        while self._saved < wanted and (self._dirty or self._flushing):
            self.hurry = True
            self._wake()
            await self._flushed.wait()

    def begin_flush(self) -> list[CachedTopic]:
        """Take the moved cursors to be written, until end_flush or abort_flush."""
        assert not self._flushing
        self._flushing, self._dirty = self._dirty, {}
        self._begun += 1
        self.hurry = False
        return [topic for topic, _ in self._flushing]

    def rows(self, now_ms: int) -> list[tuple[int, str, int, int]]:
        """Return the rows of the cursors being written, whose topics must have ids."""
        rows = []
        for (topic, consumer), offset in self._flushing.items():
            assert topic.topic_id is not None
            rows.append((topic.topic_id, consumer, offset, now_ms))
        return rows

    def end_flush(self) -> None:
        """Note that the cursors being written are durable."""
        for topic, _ in self._flushing:
            topic.waiting -= 1
        if self._readers:
            self._written.update(self._flushing)
        self._flushing = {}
        self._dropped.clear()
        self._saved = self._begun
        self._flushed.set()

    def abort_flush(self) -> None:
        """Keep the cursors being written for a later flush, as this write failed."""
        for key, offset in self._flushing.items():
            if key in self._dirty or key in self._dropped:
                key[0].waiting -= 1
            if key not in self._dropped:
                self._dirty[key] = max(offset, self._dirty.get(key, 0))
        self._flushing = {}
        self._dropped.clear()
        self._flushed.set()
