"""Where each durable consumer has read to, until a commit writes it.

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
    """Keeps dirty cursors by (topic, consumer); `wake` tells the log of the first."""

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
        self._dropped: set[Key] = set()  # of the cursors that are being written
        self._readers = 0
        self._wake = wake
        self._flushed = RepeatedEvent()
        self._begun = self._saved = 0
        self.hurry = False
        """Whether a task waits for the next flush, which is then due at once."""

    @property
    def dirty(self) -> bool:
        """Whether a cursor waits to be written."""
        return bool(self._dirty)

    @property
    def void(self) -> bool:
        """Whether the cursors being written must not be written under a later lease."""
        return bool(self._dropped)

    def advance(self, topic: CachedTopic, consumer: str, offset: int) -> None:
        """Note that the consumer has got all messages up to and including `offset`."""
        key = (topic, consumer)
        known = self._dirty.get(key)
        if known is None:
            if not self._dirty:
                self._wake()
            # A dirty cursor holds its topic in memory: the pair below counts as a message in
            # flight.
            topic.waiting += 1
            self._dirty[key] = offset
        elif offset > known:
            self._dirty[key] = offset

    def unwritten(self, topic: CachedTopic, consumer: str) -> int | None:
        """Return the cursor as memory knows it, or None when the database is up to date."""
        key = (topic, consumer)
        if key in self._dirty:
            return self._dirty[key]
        if key in self._flushing and key not in self._dropped:
            return self._flushing[key]
        return self._written.get(key)

    def drop(self, is_kept: Callable[[str], bool]) -> None:
        """Forget the unwritten cursors of consumers that are not kept.

        The node that holds their identity now gets the messages again.
        """
        for topic, consumer in [key for key in self._dirty if not is_kept(key[1])]:
            del self._dirty[topic, consumer]
            topic.waiting -= 1
        self._dropped.update(key for key in self._flushing if not is_kept(key[1]))
        self._flushed.set()

    @contextmanager
    def remembering(self) -> Iterator[None]:
        """Remember the cursors that are written while cursors are read from the database.

        The snapshot of that read may not have them.
        """
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
        """Take the dirty cursors; return their topics. end_flush or abort_flush follows."""
        assert not self._flushing
        self._flushing, self._dirty = self._dirty, {}
        self._begun += 1
        self.hurry = False
        return [topic for topic, _ in self._flushing]

    def rows(self, now_ms: int) -> list[tuple[int, str, int, int]]:
        """Return the rows of the flush, for `topic_sql.save_cursors`.

        Its topics must have their ids.
        """
        rows = []
        for (topic, consumer), offset in self._flushing.items():
            assert topic.topic_id is not None
            rows.append((topic.topic_id, consumer, offset, now_ms))
        return rows

    def end_flush(self) -> None:
        """Note that the rows are durable."""
        for topic, _ in self._flushing:
            topic.waiting -= 1
        if self._readers:
            self._written.update(self._flushing)
        self._flushing = {}
        self._dropped.clear()
        self._saved = self._begun
        self._flushed.set()

    def abort_flush(self) -> None:
        """Note that the rows were not written: they are dirty, unless newer ones are."""
        for key, offset in self._flushing.items():
            if key in self._dirty or key in self._dropped:
                key[0].waiting -= 1
            if key not in self._dropped:
                self._dirty[key] = max(offset, self._dirty.get(key, 0))
        self._flushing = {}
        self._dropped.clear()
        self._flushed.set()
