"""Work queues of a gateway that is alone on its database.

A queue reads its topic's log once, as one consumer, and dispatches each message. Messages that a
worker left undone are read again and dispatched first. Without a worker, messages wait in the log.

Invariants: an offset is in exactly one place: behind `position` (not read yet), in `_returned`, in
flight to one worker, or done. The persisted cursor is the largest offset below which everything is
done, so after a restart a message may be dispatched again (at-least-once), and none is lost. A
queue whose last worker leaves something undone in front of what is done stays in memory, so that
without a restart no message is dispatched twice.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from typing import Final

import structlog
import trio

from aether_trio.concurrency.events import RepeatedEvent
from aether_trio.concurrency.kicks import Kickable
from aether_trio.delivery.outbox import Outbox
from aether_trio.log.topic_cache import CachedTopic
from aether_trio.log.topic_log import TopicLog
from aether_trio.model.containment import alone
from aether_trio.queues.dispatcher import QueueDispatcher, QueueWorker
from aether_trio.queues.work_queues import CONSUMER, WorkStatistics
from aether_trio.storage.base import Row
from aether_trio.storage.retry import retry_while_unavailable

logger = structlog.get_logger("aether.work")

WINDOW: Final = 64  # messages in flight to one worker: they fill a pipe, and share work evenly

PAGE_BYTES: Final = 128 * 1024

MAX_IDLE_QUEUES: Final = 10_000  # queues without a worker that remember what was done out of order


class LocalQueue:
    """Dispatches the messages of one work queue from the log, and saves its cursor."""

    reads = True

    def __init__(
        self,
        log: TopicLog,
        state: CachedTopic,
        cursor: int,
        nursery: trio.Nursery,
        on_empty: Callable[[LocalQueue], None],
    ) -> None:
        self.state = state
        self.dispatcher = QueueDispatcher(state, self, WINDOW)
        self._log = log
        self._nursery = nursery
        self._on_empty = on_empty
        self._position = cursor
        self._returned: list[int] = []
        self._reading = False
        self._room = RepeatedEvent()

    @property
    def has_gaps(self) -> bool:
        """Whether the saved cursor alone would dispatch finished messages again."""
        return bool(self._returned) and len(self._returned) <= self._position - self._returned[0]

    def join(self, outbox: Outbox, on_lost: Callable[[], None]) -> QueueWorker:
        """Add a worker to the queue; waiting messages are dispatched to it at once."""
        worker = self.dispatcher.join(outbox, on_lost)
        self._read_if_behind()
        return worker

    def on_room(self) -> None:
        """Wake the task that reads the log, if it waits for a worker with room."""
        self._room.set()

    def on_done(self, worker: QueueWorker, offsets: Sequence[int]) -> None:
        """Advance the cursor past finished messages, and go on reading the log."""
        self._save_cursor()
        self._room.set()
        self._read_if_behind()

    def on_left(self, offsets: Sequence[int]) -> None:
        """Dispatch a departed worker's messages to others, or keep them for the next."""
        for offset in offsets:
            heapq.heappush(self._returned, offset)
        self._room.set()
        if self.dispatcher.workers:
            self._read_if_behind()
        else:
            self._save_cursor()
            self._on_empty(self)

    def offer(self, offset: int, frame: bytes, touched: set[Kickable]) -> None:
        """Dispatch a message that was just committed, unless older ones come first."""
        if not self._reading and not self._returned and offset == self._position + 1:
            outbox = self.dispatcher.dispatch(offset, frame)
            if outbox is not None:
                self._position = offset
                touched.add(outbox)
                return
        self._read_if_behind()

    def look(self) -> None:
        """Start to read the topic's new messages from the log."""
        self._read_if_behind()

    def renew(self) -> None:
        """Do nothing: a queue without a cursor starts at the topic's oldest message."""

    def _save_cursor(self) -> None:
        # The smallest of each worker: a returned message is dispatched after newer ones.
        not_done = [min(worker.in_flight.offsets) for worker in self.dispatcher.workers if worker.in_flight.offsets]
        not_done += self._returned[:1]
        self._log.cursors.advance(self.state, CONSUMER, min(not_done) - 1 if not_done else self._position)

    @property
    def _is_behind(self) -> bool:
        # `state.tail` is set before a message is offered: one that was not dispatched is behind.
        return bool(self.dispatcher.workers) and (bool(self._returned) or self._position < self.state.tail)

    def _read_if_behind(self) -> None:
        if not self._reading and self._is_behind:
            self._reading = True
            self._nursery.start_soon(alone, f"the workers of {self.state.name}", self._read, name="work-queue")

    async def _read(self) -> None:
        try:
            while self._is_behind:
                has_room = self.dispatcher.has_credit and await retry_while_unavailable(
                    self._dispatch_page, f"reading the work queue {self.state.name}", logger
                )
                if not has_room and self.dispatcher.workers:
                    # No worker has room for the next message: a large one needs an empty outbox.
                    await self._room.wait()
        finally:
            self._reading = False

    async def _dispatch_page(self) -> bool:
        """Dispatch a page of messages from the log; return False if no worker had room."""
        if not self.dispatcher.workers:
            return True
        if self._returned:
            return await self._dispatch_returned()
        tail = self.state.tail  # what the page can cover: more may be committed while it is read
        rows = await self._log.read(self.state, self._position, rows=WINDOW, max_bytes=PAGE_BYTES)
        for offset, _, frame in rows:
            outbox = self.dispatcher.dispatch(offset, frame)
            if outbox is None:
                return False
            self._position = offset
            outbox.kick()
        if not rows:
            self._position = tail  # retention deleted the rest
        return True

    async def _dispatch_returned(self) -> bool:
        wanted = sorted(self._returned)[:WINDOW]
        rows: list[Row] = await self._log.read_at(self.state, wanted)
        still_there = {row[0] for row in rows}
        self._returned = [one for one in self._returned if one not in wanted or one in still_there]
        heapq.heapify(self._returned)
        for offset, frame in rows:
            outbox = self.dispatcher.dispatch(offset, frame)
            if outbox is None:
                return False
            self._returned.remove(offset)
            heapq.heapify(self._returned)
            outbox.kick()
        return True


class LocalQueues:
    """Opens and forgets a lone gateway's work queues; implements WorkQueues."""

    def __init__(self, log: TopicLog, nursery: trio.Nursery) -> None:
        self._log = log
        self._nursery = nursery
        self._queues: dict[str, LocalQueue] = {}
        self._idle: dict[str, LocalQueue] = {}

    async def find(self, topic: str) -> tuple[CachedTopic, int]:
        ((state, cursor),) = await self._log.load([(topic, CONSUMER)])
        return state, cursor or 0

    def join(self, found: tuple[CachedTopic, int], outbox: Outbox, on_lost: Callable[[], None]) -> QueueWorker:
        """Make the session that has `outbox` a worker of the queue. Never blocks."""
        state = found[0]
        queue = self._queues.get(state.name)
        if queue is None and (queue := self._idle.pop(state.name, None)) is not None:
            assert queue.state is state, "an idle queue pins its topic's state"
            self._queues[state.name] = queue
            self._log.unpin([state])
        if queue is None:
            unwritten = self._log.cursors.unwritten(state, CONSUMER)
            cursor = max(found[1], unwritten or 0)
            queue = LocalQueue(self._log, state, cursor, self._nursery, self._forget)
            self._queues[state.name] = queue
        return queue.join(outbox, on_lost)

    def node_left(self) -> None:
        """Do nothing: there are no other nodes."""

    def statistics(self) -> WorkStatistics:
        workers = sum(len(queue.dispatcher.workers) for queue in self._queues.values())
        return WorkStatistics(len(self._queues), len(self._idle), workers)

    def _forget(self, queue: LocalQueue) -> None:
        state = queue.state
        del self._queues[state.name]
        if queue.has_gaps:
            state.waiting += 1
            self._idle[state.name] = queue
            if len(self._idle) > MAX_IDLE_QUEUES:
                oldest = self._idle.pop(next(iter(self._idle)))
                self._log.unpin([oldest.state])
