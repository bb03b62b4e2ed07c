"""Looking at a topic from outside: every message of its log and its live end, without being a consumer.

For operators (`aether tail`). It holds no position in the database, delays nobody, and reads from the log at its own
pace; of an ephemeral topic it sees what passes by, and misses what it is too slow for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator

import trio

from aether_trio.delivery.ephemeral_topics import EphemeralListener, EphemeralTopics
from aether_trio.delivery.outbox import Outbox
from aether_trio.log.topic_log import TopicLog
from aether_trio.model.clock import Clock
from aether_trio.model.topics import TopicKind, parse_topic

PAGE_ROWS = 200
PAGE_BYTES = 256 * 1024
RECENT_UPDATES = 256

Entry = tuple[int, int, bytes]
"""(offset, Unix ms, encoded DownstreamMessage); updates of a topic are numbered from 1 by the watcher."""


class _Bell:
    """A subscriber that only notices that there is something new."""

    reads = True

    def __init__(self) -> None:
        self.rung = trio.Event()

    def offer(self, offset: int, frame: bytes, touched: set[Outbox]) -> None:
        self.rung.set()

    def look(self) -> None:
        self.rung.set()

    def renew(self) -> None:
        """It has no position."""


class _RecentUpdates:
    """An EphemeralSink that keeps the last few updates for whoever looks."""

    def __init__(self) -> None:
        self.frames: deque[bytes] = deque(maxlen=RECENT_UPDATES)
        self.rung = trio.Event()

    def put_ephemeral(self, frame: bytes) -> None:
        self.frames.append(frame)

    def kick(self) -> None:
        self.rung.set()


class Tail:
    """Opens tails. One per gateway."""

    def __init__(self, log: TopicLog, ephemeral_topics: EphemeralTopics, clock: Clock) -> None:
        self._log = log
        self._ephemeral_topics = ephemeral_topics
        self._clock = clock

    def open(self, topic: str, from_offset: int | None) -> AsyncGenerator[Entry, None]:
        """Follow a topic from an offset on (None: only what is new). Close the generator when done.

        Raises AetherError ERR_INVALID_TOPIC at once, and StorageUnavailable while iterating.
        """
        if parse_topic(topic).kind is TopicKind.PROGRESS:
            return self._watch_ephemeral(topic)
        return self._durable(topic, from_offset)

    async def _durable(self, topic: str, from_offset: int | None) -> AsyncGenerator[Entry, None]:
        ((state, _),) = await self._log.warm([(topic, None)])
        bell = _Bell()
        state.subscribers[bell] = None
        state.watchers += 1
        position = state.end if from_offset is None else max(0, from_offset - 1)
        try:
            while True:
                bell.rung = trio.Event()
                tail = state.tail
                rows = await self._log.read(state, position, rows=PAGE_ROWS, max_bytes=PAGE_BYTES)
                for offset, ts_ms, frame in rows:
                    yield offset, ts_ms, frame
                    position = offset
                if not rows:
                    position = max(position, tail)
                    await bell.rung.wait()
        finally:
            del state.subscribers[bell]
            state.watchers -= 1
            self._log.unpin([state])

    async def _watch_ephemeral(self, topic: str) -> AsyncGenerator[Entry, None]:
        window = _RecentUpdates()
        listener = EphemeralListener("", "", window, everything=True)
        self._ephemeral_topics.listen(topic, listener)
        number = 0
        try:
            while True:
                window.rung = trio.Event()
                while window.frames:
                    number += 1
                    yield number, self._clock.now_ms(), window.frames.popleft()
                if not window.rung.is_set():
                    await window.rung.wait()
        finally:
            self._ephemeral_topics.unlisten(topic, listener)
