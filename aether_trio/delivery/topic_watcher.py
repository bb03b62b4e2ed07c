"""Follows a topic for an operator (`aether tail`), without being a consumer.

A watcher has no position in the database and delays no consumer. It reads from the log at its own
pace; of an ephemeral topic it gets the updates that pass, and misses those that it is too slow for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator
from typing import Final

from aether_trio.concurrency.events import AutoResetEvent
from aether_trio.concurrency.kicks import Kickable
from aether_trio.delivery.ephemeral_topics import EphemeralListener, EphemeralTopics
from aether_trio.log.topic_log import TopicLog
from aether_trio.model.clock import Clock
from aether_trio.model.topics import TopicKind, parse_topic

PAGE_ROWS: Final = 200
PAGE_BYTES: Final = 256 * 1024
RECENT_UPDATES: Final = 256

WatchedMessage = tuple[int, int, bytes]
"""(offset, Unix ms, encoded DownstreamMessage); the watcher numbers the updates of an ephemeral
topic from 1."""


class _NewMessageSignal:
    """A log subscriber that takes no message, and signals that there is a new one."""

    reads = True

    def __init__(self) -> None:
        self.signalled = AutoResetEvent()

    def offer(self, offset: int, frame: bytes, touched: set[Kickable]) -> None:
        self.signalled.set()

    def look(self) -> None:
        self.signalled.set()

    def renew(self) -> None:
        """Do nothing, as a watcher has no position."""


class _RecentUpdates:
    """Keeps the last few progress updates of an ephemeral topic."""

    def __init__(self) -> None:
        self.frames: deque[bytes] = deque(maxlen=RECENT_UPDATES)
        self.signalled = AutoResetEvent()

    def put_ephemeral(self, frame: bytes) -> None:
        self.frames.append(frame)

    def kick(self) -> None:
        self.signalled.set()


class TopicWatcher:
    """Opens generators that follow topics for operators; one per gateway."""

    def __init__(self, log: TopicLog, ephemeral_topics: EphemeralTopics, clock: Clock) -> None:
        self._log = log
        self._ephemeral_topics = ephemeral_topics
        self._clock = clock

    def open(self, topic: str, from_offset: int | None, follow: bool = True) -> AsyncGenerator[WatchedMessage, None]:
        """Follow a topic from an offset on (None: from now on). Close the generator.

        Without `follow` it ends behind the last message that is there at the beginning.
        Raises RequestError ERR_INVALID_TOPIC at once, and StorageUnavailable while iterating.
        """
        if parse_topic(topic).kind is TopicKind.PROGRESS:
            return self._watch_ephemeral(topic, follow)
        return self._watch_log(topic, from_offset, follow)

    async def _watch_log(
        self, name: str, from_offset: int | None, follow: bool
    ) -> AsyncGenerator[WatchedMessage, None]:
        ((topic, _),) = await self._log.load([(name, None)])
        new = _NewMessageSignal()
        topic.subscribers[new] = None
        topic.watchers += 1
        position = topic.end if from_offset is None else max(0, from_offset - 1)
        if not follow:
            await self._log.refresh([topic])
        end = topic.end
        try:
            while True:
                tail = topic.tail
                rows = await self._log.read(topic, position, rows=PAGE_ROWS, max_bytes=PAGE_BYTES)
                for offset, ts_ms, frame in rows:
                    if not follow and offset > end:
                        return
                    yield offset, ts_ms, frame
                    position = offset
                if not follow and (not rows or position >= end):
                    return
                if not rows:
                    position = max(position, tail)
                    await new.signalled.wait()
        finally:
            del topic.subscribers[new]
            topic.watchers -= 1
            self._log.unpin([topic])

    async def _watch_ephemeral(self, topic: str, follow: bool) -> AsyncGenerator[WatchedMessage, None]:
        if not follow:
            return  # nothing of it is kept
        recent = _RecentUpdates()
        listener = EphemeralListener("", "", recent, everything=True)
        self._ephemeral_topics.listen(topic, listener)
        number = 0
        try:
            while True:
                while recent.frames:
                    number += 1
                    yield number, self._clock.now_ms(), recent.frames.popleft()
                await recent.signalled.wait()
        finally:
            self._ephemeral_topics.unlisten(topic, listener)
