"""Reads the messages that other nodes commit, and offers them in order.

    pushed message (pushed_messages.py) ──────────────▶ pushed ── is its topic's next ──▶ offers
                                                          │ is not                          ▲
    notification (cluster/relay/log_relay.py) ────┐       ▼                                 │
    own commit behind one of another node ────────┼──▶ behind ──▶ one read of many topics ──┘
    a read of the tail that found new messages ───┘

A topic's `tail` is what was offered here, `head` what is known to be committed. A message of this
node that is the topic's next one is offered at once (topic_log.py). One that is not, because a
message of another node is in front of it, is left to this task, which reads both. Work queues are
told to look instead: the node that takes a message reads it.

A pushed message is offered only if all messages in front of it were; a push may be lost. It also
says the id of the topic's row, which a node must know that has offered one of its messages:
subscriptions that lag read by it.

Invariants: `tail <= head`; between the look at `tail` and the offers of a message there is no
checkpoint, here and in topic_log.py, so a message is offered once; a topic that could not be read
stays in `behind`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import structlog
import trio

from aether_trio.concurrency.events import AutoResetEvent
from aether_trio.concurrency.kicks import Kickable, kick_all
from aether_trio.log.message_keys import offset_of, topic_id_of
from aether_trio.log.pushed_messages import PushedMessage
from aether_trio.log.topic_cache import CachedTopic
from aether_trio.log.topic_sql_postgres import DELETED, TailRow, read_tails
from aether_trio.storage.base import Database
from aether_trio.storage.retry import retry_while_unavailable

logger = structlog.get_logger("aether.log")

TOPICS_PER_READ: Final = 64
ROWS_PER_TOPIC: Final = 256
BYTES_PER_TOPIC: Final = 128 * 1024
"""Of one topic in one read; a larger message is read alone."""
OFFERS_PER_SLICE: Final = 2_000
"""Offers between two checkpoints, as in topic_log.py."""
PUSHED_BYTES: Final = 4 * 1024 * 1024
"""Of pushed messages that wait to be offered; beyond it their topics are read."""


class RemoteCommitReader:
    """Reads messages that other nodes committed and offers them; `run` is its task."""

    def __init__(
        self,
        refresh: Callable[[Sequence[CachedTopic]], Awaitable[None]],
        database: Database,
        grown: dict[str, CachedTopic],
    ) -> None:
        self._refresh = refresh
        self._grown = grown
        self._database = database
        self._behind: dict[CachedTopic, None] = {}
        self._requested = AutoResetEvent()
        self._pushed: deque[tuple[CachedTopic, PushedMessage]] = deque()
        self._pushed_bytes = 0
        self._arrived = AutoResetEvent()
        self.reads = self.messages = self.pushes = 0
        """Counters since start: reads, their messages, and messages that were pushed in order."""

    def request(self, topic: CachedTopic) -> None:
        """Have a topic read that may have commits of other nodes. Never blocks."""
        if topic not in self._behind:
            topic.waiting += 1  # it must not be forgotten meanwhile
            self._behind[topic] = None
            self._requested.set()

    def take(self, topic: CachedTopic, message: PushedMessage) -> bool:
        """Queue a message for `run_pushed`; False if there is no room. Never blocks."""
        if self._pushed_bytes >= PUSHED_BYTES:
            return False
        topic.waiting += 1  # it must not be forgotten meanwhile
        self._pushed.append((topic, message))
        self._pushed_bytes += len(message.frame)
        self._arrived.set()
        return True

    async def run_pushed(self) -> None:
        """Offer pushed messages until cancelled."""
        while True:
            touched: set[Kickable] = set()
            offers = 0
            while self._pushed:
                offers += self._offer_first_pushed(touched)
                if offers >= OFFERS_PER_SLICE:
                    offers = 0
                    await kick_all(touched)
                    await trio.lowlevel.checkpoint()
            await kick_all(touched)
            await self._arrived.wait()

    def _offer_first_pushed(self, touched: set[Kickable]) -> int:
        """Offer the first pushed message if it is its topic's next; return the offers."""
        topic, message = self._pushed.popleft()
        self._pushed_bytes -= len(message.frame)
        topic.waiting -= 1
        topic_id, offset = topic_id_of(message.key), offset_of(message.key)
        if offset <= topic.tail:
            return 0  # a read has found it
        if offset != topic.tail + 1 or not topic.is_read or topic.topic_id not in {None, topic_id}:
            self.request(topic)  # the log says how far the topic goes
            return 0
        topic.topic_id = topic_id
        topic.head = max(topic.head, offset)
        self.pushes += 1
        return topic.offer(offset, message.frame, touched, self._grown)

    async def run(self) -> None:
        """Read the requested topics and offer their messages, until cancelled."""
        while True:
            while self._behind:
                await retry_while_unavailable(self._read_some, "reading the messages of other nodes", logger)
            await self._requested.wait()

    async def _read_some(self) -> None:
        """Read and offer once for some topics; after an error all stay requested."""
        topics = list(self._behind)[:TOPICS_PER_READ]
        # A topic without subscribers needs no messages, only its tail for the next subscriber.
        tail_only = [topic for topic in topics if topic.topic_id is None or not topic.is_read]
        if tail_only:
            await self._refresh(tail_only)
        for topic in topics:
            # A request from here on is for messages that the read below may not see.
            del self._behind[topic]
        reading = {topic.topic_id: topic for topic in topics if topic.topic_id is not None and topic.is_read}
        heads = {topic_id: topic.head for topic_id, topic in reading.items()}
        rows: list[TailRow] = []
        with self._unpinned_after(topics):
            if reading:
                tails = [(topic_id, topic.tail) for topic_id, topic in reading.items()]
                rows = await self._database.read(lambda: read_tails(tails, ROWS_PER_TOPIC, BYTES_PER_TOPIC))
        self.reads += 1
        self.messages += len(rows)
        await self._offer(reading, rows)
        found = {row[0]: row for row in rows}
        deleted: list[CachedTopic] = []
        for topic_id, topic in reading.items():
            if topic_id not in found:
                topic.tail = max(topic.tail, heads[topic_id])  # retention took the rest
            elif found[topic_id][1] == DELETED:
                deleted.append(topic)
            elif found[topic_id][3]:
                self.request(topic)
            topic.look()
        if deleted:  # they may have new rows by now
            for topic in deleted:
                topic.waiting += 1
            with self._unpinned_after(deleted):
                await self._refresh(deleted)

    @contextmanager
    def _unpinned_after(self, topics: Sequence[CachedTopic]) -> Iterator[None]:
        """Unpin topics at the end of the block; request them again if it raises."""
        try:
            yield
        except BaseException:
            for topic in topics:
                self.request(topic)
            raise
        finally:
            for topic in topics:
                topic.waiting -= 1

    async def _offer(self, reading: dict[int, CachedTopic], rows: Iterable[TailRow]) -> None:
        touched: set[Kickable] = set()
        offers = 0
        for topic_id, offset, frame, _ in rows:
            topic = reading[topic_id]
            if offset <= topic.tail:
                continue  # this node committed and offered it
            topic.head = max(topic.head, offset)
            offers += topic.offer(offset, frame, touched, self._grown)
            if offers >= OFFERS_PER_SLICE:
                offers = 0
                await trio.lowlevel.checkpoint()
        await kick_all(touched)
