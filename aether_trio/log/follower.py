"""Level with what others commit: messages of other nodes come into this node's fan-out in the order of the log.

    wake (cluster/relay/log_relay.py) ──▶ woken ──┐
    own commit behind one of theirs ────┼──▶ behind ──▶ one read for many topics ──▶ offered like live messages
    a look at the tail found more ──────┘

A topic to which only work queues listen is not read: they are told to look, and the node that takes a message reads it.

A topic's `tail` is what was offered here, `head` what is known to be committed. An own message that is the next one is offered at once
(log.py); one that is not, as another node's is in front of it, is left to this task, which reads both. So each subscriber is
offered a topic's messages one after another, and a broadcast costs one read, however many listen.

Invariants: `tail <= head`; between the look at `tail` and the offers of a message there is no checkpoint, here and in log.py, so a
message is offered once; a topic that could not be read stays in `behind`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence

import structlog
import trio

from aether_trio.delivery.kicks import AT_ONCE
from aether_trio.delivery.outbox import Outbox
from aether_trio.log.shared_programs import GONE, TailRow, read_tails
from aether_trio.log.topic_state import NOTED, TopicState
from aether_trio.storage.base import Database, StorageUnavailable

logger = structlog.get_logger("aether.log")

TOPICS_AT_ONCE = 64
ROWS_OF_TOPIC = 256
BYTES_OF_TOPIC = 128 * 1024
"""Of one topic in one read; a larger message is read alone."""
RETRY_S = 0.5
OFFERS_PER_SLICE = 2_000
"""See log.py."""


class Follower:
    """See the module docstring. `run` is its one task; the rest is called without a checkpoint."""

    def __init__(
        self,
        learn: Callable[[Sequence[TopicState]], Awaitable[None]],
        database: Database,
        grown: dict[str, TopicState],
    ) -> None:
        self._learn = learn
        self._grown = grown
        self._database = database
        self._behind: dict[TopicState, None] = {}
        self._work = trio.Event()
        self.reads = self.rows = 0
        """Since start."""

    def follow(self, state: TopicState) -> None:
        """There may be more of this topic than was offered."""
        if state not in self._behind:
            state.waiting += 1  # it must not be forgotten meanwhile
            self._behind[state] = None
            self._work.set()

    async def run(self) -> None:
        """Read and offer until cancelled."""
        while True:
            if not self._behind:
                await self._work.wait()
            self._work = trio.Event()
            while self._behind:
                try:
                    await self._level(list(self._behind)[:TOPICS_AT_ONCE])
                except StorageUnavailable as error:
                    logger.warning("messages of other nodes not read, trying again", reason=str(error))
                    await trio.sleep(RETRY_S)

    async def _level(self, states: Sequence[TopicState]) -> None:
        """Bring these topics as far as one read does. Raises StorageUnavailable, and then they stay behind."""
        # Where nobody listens yet, whoever is about to needs to know the tail, and nothing else.
        cold = [state for state in states if state.topic_id is None or not state.is_read]
        if cold:
            await self._learn(cold)
        for state in states:
            # Whatever is noted from here on is not known to be in what is read now.
            del self._behind[state]
        heard = {state.topic_id: state for state in states if state.topic_id is not None and state.is_read}
        heads = {topic_id: state.head for topic_id, state in heard.items()}
        rows: list[TailRow] = []
        try:
            if heard:
                tails = [(topic_id, state.tail) for topic_id, state in heard.items()]
                rows = await self._database.read(lambda: read_tails(tails, ROWS_OF_TOPIC, BYTES_OF_TOPIC))
        except BaseException:
            for state in states:
                self.follow(state)
            raise
        finally:
            for state in states:
                state.waiting -= 1
        self.reads += 1
        self.rows += len(rows)
        await self._offer(heard, rows)
        found = {row[0]: row for row in rows}
        gone: list[TopicState] = []
        for topic_id, state in heard.items():
            if topic_id not in found:
                state.tail = max(state.tail, heads[topic_id])  # retention took the rest
            elif found[topic_id][1] == GONE:
                gone.append(state)
            elif found[topic_id][3]:
                self.follow(state)
            state.look()
        if gone:
            # Retention of another node has deleted their rows, and they may have been made again with other ids.
            for state in gone:
                state.waiting += 1
            try:
                await self._learn(gone)
            except BaseException:
                for state in gone:
                    self.follow(state)
                raise
            finally:
                for state in gone:
                    state.waiting -= 1

    async def _offer(self, heard: dict[int, TopicState], rows: Iterable[TailRow]) -> None:
        touched: set[Outbox] = set()
        offers = 0
        for topic_id, offset, frame, _ in rows:
            state = heard[topic_id]
            if offset <= state.tail:
                continue  # it was committed here, and offered
            state.tail = offset
            state.head = max(state.head, offset)
            state.tail_bytes += len(frame)
            if state.tail_bytes >= state.sweep_bytes:
                state.sweep_bytes = NOTED
                self._grown[state.name] = state
            for subscriber in state.subscribers:
                subscriber.offer(offset, frame, touched)
                offers += 1
            if offers >= OFFERS_PER_SLICE:
                offers = 0
                await trio.lowlevel.checkpoint()
        await kick_all(touched)


async def kick_all(touched: set[Outbox]) -> None:
    """Have each of them write what it has; the set is empty afterwards."""
    kicks = 0
    while touched:
        touched.pop().kick()
        kicks += 1
        if kicks % AT_ONCE == 0:
            await trio.lowlevel.checkpoint()
