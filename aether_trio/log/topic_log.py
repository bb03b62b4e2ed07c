"""The durable topic log of one node: append, group commit, fan-out, reads.

Appends are queued without waiting, and one task commits them in groups. When a group is durable,
its messages are offered to their topics' subscribers, in order. While one group is being written,
the next one gathers: the busier the node, the cheaper a message.

    append_nowait ──▶ _pending ──▶ _take_group ──▶ GroupWriter ──▶ database
                                                       │ committed
                        senders go on ◀── _fan_out ┴──▶ CachedTopic.offer ──▶ outboxes are kicked

`load` reads topics from the database before a session subscribes, several topics with one read.
Where other nodes write as well (PostgreSQL), a read, or a notification from another node, may find
more than was offered here; then `RemoteCommitReader` reads and offers the rest.

Invariants:

* Only committed messages are offered; those of one topic are committed and offered in the order in
  which they were appended.
* A sequence number is *settled* once its group is committed or refused; numbers settle in order. A
  response that waits for the last append of its connection is therefore a barrier.
* Where other nodes write as well, a message of this node that is not its topic's next one waits for
  the messages in front of it (remote_commits.py). A subscriber that is offered an offset that is
  not its next one reads the messages between from the log (delivery/catchup.py).
* A group that cannot be written (disk full, file locked) is refused as a whole: every sender is
  told, the offsets are given back, and the next group tries again.
* Memory: appends are admitted only while `has_room`; the connections' readers wait for room, and so
  does TCP.
* A topic that is pinned, that has subscribers, or that waits for a commit is never forgotten;
  `tail` never goes back.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Final, Protocol

import structlog
import trio

from aether_trio.concurrency.events import AutoResetEvent, RepeatedEvent
from aether_trio.concurrency.kicks import KICKS_PER_SLICE, Kickable, kick_all
from aether_trio.concurrency.supervision import keep_running
from aether_trio.log import topic_sql
from aether_trio.log.cursors import CursorStore
from aether_trio.log.deduplication import Publisher
from aether_trio.log.group_writers import GroupAnswer, PushCounts, TopicsDeleted, nothing_written, open_group_writer
from aether_trio.log.pushed_messages import PushedMessage
from aether_trio.log.remote_commits import RemoteCommitReader
from aether_trio.log.topic_cache import CachedTopic, TopicCache
from aether_trio.model.clock import Clock
from aether_trio.model.errors import Code, RequestError
from aether_trio.storage.base import CommitUnknown, Database, Row, StorageUnavailable
from aether_trio.storage.existing_names import ExistingNames
from aether_trio.storage.retry import retry_while_unavailable

__all__ = ["AppendAuthor", "LogLimits", "LogRelay", "LogStatistics", "TopicLog", "open_log"]

logger = structlog.get_logger("aether.log")

OFFERS_PER_SLICE: Final = 2_000
"""Offers between two checkpoints: about 1 ms of work, so that a broadcast starves no task."""
OFFERS_PER_KICK: Final = 8_000
"""Offers before subscribers write, some 4 ms: a burst of broadcasts costs each of them one send."""

IDENTITY_BYTES: Final = 16
PROBE_S: Final = 1.0
"""Pause between two attempts to write to a failing database while there is nothing to write."""
REFUSED_PAUSE_S: Final = 0.05
"""Pause after a refused group: a failing database may answer at once, and cursors must not spin."""
DRAIN_S: Final = 10.0
"""How long the end of the log waits for messages that are not settled."""

RENEWALS_PER_GROUP: Final = 500
"""Topics whose positions are written again in one group."""

RETRY_PUBLISH_MS: Final = 1000
"""When a sender may try again after the log could not be written."""


def publish_error(error: StorageUnavailable) -> RequestError:
    """Make the senders' error for a commit group that failed or may have failed."""
    if isinstance(error, CommitUnknown):
        return RequestError(Code.OUTCOME_UNKNOWN, f"it is not known whether the message was stored: {error}")
    return RequestError(Code.PUBLISH_FAILED, f"the message was not stored: {error}", retry_after_ms=RETRY_PUBLISH_MS)


@dataclass(frozen=True, slots=True)
class LogLimits:
    """Limits of the messages that wait for a commit, and of one commit group."""

    pending_bytes: int = 16 * 1024 * 1024
    pending_messages: int = 20_000
    group_messages: int = 4_000
    group_bytes: int = 4 * 1024 * 1024
    cursor_flush_s: float = 0.25
    partition_ms: int = 3 * 3600 * 1000
    """PostgreSQL only: how long a stretch of time lies in one table (storage/partitions.py)."""


@dataclass(frozen=True, slots=True)
class LogStatistics:
    """Counters of the log since start; `settled - refused` messages are durable."""

    appended: int
    settled: int
    refused: int
    groups: int
    pending_messages: int
    pending_bytes: int
    topics: int
    subscriptions: int
    storage_failing: bool
    remote_reads: int
    """Reads that brought messages which other nodes had committed."""
    remote_messages: int
    """The messages that these reads brought."""
    pushed_messages: int
    """Messages that other nodes had pushed and that were offered without a read."""


class AppendAuthor(Protocol):
    """The author of appends to the log, told whether they were committed."""

    confirms: bool
    """Whether it wants `settled`, and may have a `publisher`. Read for every message."""
    publisher: Publisher | None
    """The publisher whose sequence numbers are committed with the messages."""

    def refused(self, number: int, error: RequestError) -> None:
        """Note that an append was not committed, or that this is not known.

        All appends of a group get the same error. An author that `confirms` writes nothing before
        `settled`.
        """

    def settled(self, touched: set[Kickable]) -> None:
        """Add to `touched` the outboxes that write receipts of a settled commit group."""


class LogRelay(Protocol):
    """Notifies the other nodes that write to the same log; the cluster implements it."""

    async def expect(self, topics: Sequence[str]) -> None:
        """Announce a subscription here before the tail is read, to miss no notification."""

    def committed(self, topics: Iterable[CachedTopic]) -> None:
        """Notify the nodes that subscribe to these topics of new messages. Never blocks."""

    @property
    def push_from(self) -> int:
        """This node's number, from which commits may push their messages; 0: push none."""

    def pushed(self, topics: int, counts: PushCounts) -> None:
        """Note that a commit of so many topics has pushed its messages."""


PendingMessage = tuple[CachedTopic, bytes, AppendAuthor]
"""A message that waits for its commit: topic, encoded frame, author."""

GroupReport = Callable[[float, int], None]
"""Called after each committed group: age of its first message in seconds, number of messages."""


class TopicLog:
    """The durable topic log of one node, made by `open_log`: see this file's top."""

    def __init__(
        self, database: Database, clock: Clock, limits: LogLimits, identity: bytes, on_group: GroupReport
    ) -> None:
        self.database = database
        self.clock = clock
        """Dates the messages."""
        self.identity = identity
        """16 random bytes, made with the database: offsets of other logs mean nothing here."""
        self.topics = TopicCache()
        self._names: ExistingNames[str] = ExistingNames()
        """Of topics: a new participant's topic has no row to read."""
        self._work = AutoResetEvent()
        self._cursors_moved = AutoResetEvent()
        self.cursors = CursorStore(self._on_cursors_moved)
        self._next_cursor_flush = -math.inf
        self.grown: dict[str, CachedTopic] = {}
        """Topics that retention is to look at, as they have grown (CachedTopic.sweep_bytes)."""
        self.relay: LogRelay | None = None
        """Notifies other nodes; None on a single node."""
        self._limits = limits
        self._writer = open_group_writer(database, limits.partition_ms)
        self._sql = self._writer.sql
        self._remote = RemoteCommitReader(self.refresh, database, self.grown)
        self._on_group = on_group
        self._pending: list[PendingMessage] = []
        self._pending_bytes = 0
        self._in_commit_bytes = 0
        self._in_commit_messages = 0
        self._group_settled = RepeatedEvent()
        self._appended = 0
        self._settled = 0
        self._refused = 0
        self._void_upto = 0
        self._groups = 0
        self._failing = False
        self._waiting_since = 0.0
        self._writing = trio.Lock()
        self._deleting: trio.Event | None = None

    # -- append -----------------------------------------------------------------------------------

    @property
    def has_room(self) -> bool:
        """Whether the log takes an append: bytes and messages that wait are in bounds."""
        return (
            self._pending_bytes + self._in_commit_bytes < self._limits.pending_bytes
            and len(self._pending) + self._in_commit_messages < self._limits.pending_messages
        )

    async def wait_room(self) -> None:
        """Wait until the log has room for an append."""
        while not self.has_room:
            await self._group_settled.wait()

    def append_nowait(self, topic: CachedTopic, frame: bytes, author: AppendAuthor) -> int:
        """Queue a message, while `has_room`; return its sequence number. Never blocks."""
        topic.waiting += 1
        if not self._pending:
            self._waiting_since = self.clock.monotonic()
        self._pending.append((topic, frame, author))
        self._pending_bytes += len(frame)
        self._appended += 1
        self._work.set()
        return self._appended

    def is_settled(self, sequence: int) -> bool:
        """Whether the append with this number was committed or refused."""
        return sequence <= self._settled

    async def wait_settled(self, sequence: int) -> None:
        """Wait until the append with this number was committed or refused."""
        while sequence > self._settled:
            await self._group_settled.wait()

    async def drain(self) -> None:
        """Wait until all messages that were appended are committed or refused."""
        await self.wait_settled(self._appended)

    def void(self) -> None:
        """Refuse all appends that are not committed: this node has lost its lease.

        Other nodes may write as their senders' successors. No checkpoint.
        """
        self._void_upto = self._appended
        self._work.set()

    # -- commit -----------------------------------------------------------------------------------

    async def _commit_forever(self) -> None:
        limits = self._limits
        while True:
            if self.cursors.dirty:
                self._cursors_moved.set()  # also those whose write has failed
            if not self._pending:
                if self._failing:
                    now = trio.current_time()
                    with trio.move_on_at(self._next_cursor_flush if self.cursors.dirty else now + PROBE_S):
                        await self._work.wait()
                else:
                    await self._work.wait()
            batch = self._take_group()
            cursors_due = self.cursors.dirty and (self.cursors.hurry or trio.current_time() >= self._next_cursor_flush)
            if cursors_due:
                self._next_cursor_flush = trio.current_time() + limits.cursor_flush_s
            started, self._waiting_since = self._waiting_since, self.clock.monotonic()
            if batch or cursors_due:
                try:
                    self._writing.acquire_nowait()
                except trio.WouldBlock:
                    await self._writing.acquire()
                try:
                    await self._commit(batch, self.cursors.begin_flush() if cursors_due else [])
                finally:
                    self._writing.release()
                if batch and not self._failing:
                    self._on_group(self.clock.monotonic() - started, len(batch))
                batch = []  # an idle log refers to no message of the last group, and to no author
            elif self._failing:
                await self._probe()

    def _on_cursors_moved(self) -> None:
        if self.cursors.hurry:
            self._work.set()
        else:
            self._cursors_moved.set()

    async def _time_cursor_flushes(self) -> None:
        """Wake the committer when moved cursors are due, which is no timer of each group."""
        while True:
            await self._cursors_moved.wait()
            await trio.sleep_until(self._next_cursor_flush)
            if self.cursors.dirty:
                self._work.set()

    def _take_group(self) -> list[PendingMessage]:
        limits = self._limits
        if (
            len(self._pending) <= limits.group_messages
            and self._pending_bytes <= limits.group_bytes
            and self._void_upto <= self._settled
        ):
            batch, self._pending = self._pending, []
            return batch
        size = count = 0
        most = limits.group_messages
        if self._void_upto > self._settled:
            most = min(most, self._void_upto - self._settled)
        for _, frame, _ in self._pending[:most]:
            size += len(frame)
            count += 1
            if size >= limits.group_bytes:
                break
        batch = self._pending[:count]
        del self._pending[:count]
        return batch

    async def _commit(self, batch: list[PendingMessage], cursor_topics: list[CachedTopic]) -> None:
        size = sum(len(frame) for _, frame, _ in batch)
        self._pending_bytes -= size
        self._in_commit_bytes, self._in_commit_messages = size, len(batch)
        authors = list(dict.fromkeys(author for _, _, author in batch if author.confirms))
        # In their first messages' order: of two publishers of one identity the later one stays.
        upto = self._settled + len(batch)
        publishers = list(dict.fromkeys(author.publisher for author in authors if author.publisher is not None))

        try:
            messages = [(topic, frame) for topic, frame, _ in batch]
            answer, now_ms = await self._write(messages, cursor_topics, publishers, upto)
        except StorageUnavailable as error:
            self.cursors.abort_flush()
            for publisher in publishers:
                publisher.refused(upto)
            if not self._failing:
                logger.error(
                    "messages could not be stored; their senders are told", messages=len(batch), reason=str(error)
                )
            self._failing = True
            await self._refuse(batch, authors, publish_error(error))
            await trio.sleep(REFUSED_PAUSE_S)
        except Exception as error:
            self.cursors.abort_flush()
            for publisher in publishers:
                publisher.retry_in_parts()
            await self._commit_in_halves(batch, authors, alone=not cursor_topics, error=error)
        else:
            if self.relay is not None:
                committed = dict.fromkeys(topic for topic, _ in messages)
                if answer.pushed is None:
                    self.relay.committed(committed)
                else:
                    self.relay.pushed(len(committed), answer.pushed)
            self._failing = False
            self._groups += 1
            self.cursors.end_flush()
            for publisher in publishers:
                publisher.committed(now_ms)
            if answer.offsets is None:
                await self._offer_from_log(batch, authors)
            else:
                await self._fan_out(batch, answer.offsets, authors)

    async def _commit_in_halves(
        self, batch: list[PendingMessage], authors: Iterable[AppendAuthor], *, alone: bool, error: Exception
    ) -> None:
        """Find the message that the database never takes, refuse it, commit the others."""
        if not batch:
            logger.error("consumers' positions cannot be written", reason=repr(error))
            await trio.sleep(PROBE_S)
            return
        if alone and len(batch) == 1:
            logger.error(
                "the database does not take a message; its sender is told", topic=batch[0][0].name, reason=repr(error)
            )
            for author in authors:
                if author.publisher is not None:
                    author.publisher.refused(self._settled + 1)
            told = RequestError(Code.PUBLISH_FAILED, f"the message cannot be stored: {error}", retryable=False)
            await self._refuse(batch, authors, told)
            return
        self._take_back_offsets(batch)
        self._pending_bytes += sum(len(frame) for _, frame, _ in batch)
        if not alone:
            await self._commit(batch, [])
            return
        half = len(batch) // 2
        await self._commit(batch[:half], [])
        await self._commit(batch[half:], [])

    async def _write(
        self,
        messages: Sequence[tuple[CachedTopic, bytes]],
        cursor_topics: Sequence[CachedTopic],
        publishers: Sequence[Publisher],
        upto: int,
    ) -> tuple[GroupAnswer, int]:
        """Write a commit group; return the writer's answer, and the group's time."""

        def is_void() -> bool:
            return self.cursors.void or (bool(messages) and upto <= self._void_upto)

        topics = [*cursor_topics, *(topic for topic, _ in messages)]
        while True:
            await self._ensure_rows(topics)
            now_ms = self.clock.now_ms()
            cursors = self.cursors.rows(now_ms)
            numbers = [(one.identity, one.token, one.begin(upto), now_ms) for one in publishers]
            try:
                push_from = self.relay.push_from if self.relay is not None else 0
                return await self._writer.append(messages, now_ms, cursors, numbers, is_void, push_from), now_ms
            except TopicsDeleted as deleted:
                lost = [topic for topic in topics if topic.topic_id in deleted.topic_ids]
                # Retention raised the floor; but a standby without these topics may be promoted.
                latest = max(max(topic.end, topic.assigned) for topic in lost)
                with nothing_written():
                    await self.database.write(topic_sql.raise_floor(latest))
                for topic in lost:
                    topic.topic_id = None

    async def _probe(self) -> None:
        """Try a write, as a failing log admits no sender whose message would find out."""
        try:
            await self.database.run(topic_sql.probe_write)
        except StorageUnavailable:
            return
        self._failing = False

    async def _ensure_rows(self, topics: Iterable[CachedTopic]) -> None:
        unsure = {topic.name: topic for topic in topics if topic.topic_id is None or topic.doubtful}
        if unsure:
            names = sorted(unsure)
            for name in names:
                self._names.add(name)
            now_ms = self.clock.now_ms()
            with nothing_written():
                known = await self.database.run(lambda: self._sql.create_topics(names, now_ms))
            for name, facts in known.items():
                self._apply_facts(unsure[name], facts, None)
                if not self.database.shared:
                    self._settle_doubt(unsure[name], facts)

    @staticmethod
    def _settle_doubt(topic: CachedTopic, facts: topic_sql.TopicFacts) -> None:
        # A database may commit and fail to say so. Such messages are in the log, though their
        # senders were refused: offsets go on behind them, and subscribers read them from there.
        topic.doubtful = False
        if facts.tail > topic.tail:
            topic.tail = topic.assigned = facts.tail
            topic.tail_bytes = topic.assigned_bytes = facts.total_bytes

    def _take_back_offsets(self, batch: list[PendingMessage]) -> None:
        if self.database.shared:
            return
        for topic, _, _ in batch:
            if topic.assigned > topic.tail:
                topic.doubtful = True
                topic.assigned, topic.assigned_bytes = topic.tail, topic.tail_bytes

    async def _refuse(self, batch: list[PendingMessage], authors: Iterable[AppendAuthor], told: RequestError) -> None:
        self._take_back_offsets(batch)
        self._refused += len(batch)
        number = self._settled
        self._settle(len(batch))
        silent: list[tuple[AppendAuthor, int]] = []
        for topic, _, author in batch:
            number += 1
            topic.waiting -= 1
            if author.confirms:
                author.refused(number, told)
            else:
                silent.append((author, number))
        # These write to their clients at once, and receipts asked for then must know all refusals.
        for refusals, (author, number) in enumerate(silent, start=1):
            author.refused(number, told)
            if refusals % KICKS_PER_SLICE == 0:
                await trio.lowlevel.checkpoint()
        touched: set[Kickable] = set()
        for author in authors:
            author.settled(touched)
        await kick_all(touched)

    async def _fan_out(self, batch: list[PendingMessage], offsets: list[int], authors: Iterable[AppendAuthor]) -> None:
        touched: set[Kickable] = set()
        offers = unkicked = 0
        shared, grown = self.database.shared, self.grown
        # Senders go on as soon as their messages are durable, before the delivery.
        self._settle(len(batch))
        for author in authors:
            author.settled(touched)
        for (topic, frame, _), offset in zip(batch, offsets, strict=True):
            topic.waiting -= 1
            if shared and offset != topic.tail + 1 and topic.is_read:
                self._raise_head(topic, offset)  # or RemoteCommitReader was faster
                continue
            offers += topic.offer(offset, frame, touched, grown)
            if offers >= OFFERS_PER_SLICE:
                unkicked += offers
                offers = 0
                if unkicked >= OFFERS_PER_KICK:
                    unkicked = 0
                    await kick_all(touched)
                else:
                    await trio.lowlevel.checkpoint()
        await kick_all(touched)

    async def _offer_from_log(self, batch: list[PendingMessage], authors: Iterable[AppendAuthor]) -> None:
        """Have subscribers read a committed group whose offsets are not known."""
        touched: set[Kickable] = set()
        self._settle(len(batch))
        for author in authors:
            author.settled(touched)
        topics = list(dict.fromkeys(topic for topic, _, _ in batch))
        await retry_while_unavailable(lambda: self.refresh(topics), "reading topics' tails", logger, delay_s=PROBE_S)
        for topic, _, _ in batch:
            topic.waiting -= 1
        await kick_all(touched)

    def _settle(self, count: int) -> None:
        self._in_commit_bytes = self._in_commit_messages = 0
        self._settled += count
        self._group_settled.set()

    async def _save_last_cursors(self) -> None:
        # the committing task may have been cancelled in the middle of a flush
        self.cursors.abort_flush()
        topics = self.cursors.begin_flush()
        if topics:
            try:
                await self._ensure_rows(topics)
                rows = self.cursors.rows(self.clock.now_ms())
                await self.database.run(lambda: topic_sql.save_cursors(rows))
            except StorageUnavailable as error:
                logger.warning(
                    "consumers' positions were not saved at stop; some messages will be delivered again",
                    reason=str(error),
                )

    # -- topics in memory -------------------------------------------------------------------------

    async def load(self, wanted: Sequence[tuple[str, str | None]]) -> list[tuple[CachedTopic, int | None]]:
        """Load and pin topics; return each with its consumer's cursor.

        Cursors that wait to be written count as written. Each topic is pinned (`waiting`) until the
        caller hands it to `unpin`, or subscribes. In a cluster this node counts as a subscriber of
        the topics from here on. Raises StorageUnavailable.
        """
        if self.relay is not None:
            await self.relay.expect([name for name, _ in wanted])
        while self._deleting is not None:
            await self._deleting.wait()
        pairs: list[tuple[CachedTopic, str | None]] = []
        # Pinned before the read: a topic made again meanwhile would learn from an old snapshot.
        for name, consumer in wanted:
            topic = self.topics.ensure(name)
            topic.waiting += 1
            pairs.append((topic, consumer))
        reading = [pair for pair in pairs if self._needs_read(*pair)]
        if not reading:
            return [(topic, self._cursor(topic, consumer, None)) for topic, consumer in pairs]
        try:
            with self.cursors.remembering():
                stored = await self._read_facts(reading)
                return [
                    (topic, self._cursor(topic, consumer, stored.get((topic, consumer)))) for topic, consumer in pairs
                ]
        except BaseException:
            self.unpin(topic for topic, _ in pairs)
            raise

    def _cursor(self, topic: CachedTopic, consumer: str | None, stored: int | None) -> int | None:
        """Return a consumer's cursor, as stored or as it waits to be written."""
        unwritten = self.cursors.unwritten(topic, consumer) if consumer is not None else None
        return stored if unwritten is None else max(unwritten, stored or 0)

    def _needs_read(self, topic: CachedTopic, consumer: str | None) -> bool:
        """Whether the database may know more than memory of a topic and a consumer in it."""
        if self.database.shared:
            return True
        if topic.topic_id is None:
            return self._names.may_exist(topic.name)
        return consumer is not None

    async def _read_facts(
        self, pairs: Sequence[tuple[CachedTopic, str | None]]
    ) -> dict[tuple[CachedTopic, str | None], int | None]:
        """Update topics by their rows; return the stored cursors of their consumers."""
        wanted = [(topic.name, consumer) for topic, consumer in pairs]
        known = [topic.topic_id for topic, _ in pairs]
        facts = await self.database.read_small(lambda: self._sql.many_topic_facts(wanted))
        for (topic, _), topic_id, fact in zip(pairs, known, facts, strict=True):
            self._apply_facts(topic, fact, topic_id)
        return {pair: fact.cursor for pair, fact in zip(pairs, facts, strict=True)}

    async def _load_names(self) -> None:
        await self._names.load(self.database, topic_sql.topic_names, "", "names of topics", logger)

    async def unread(self, identity: str) -> tuple[int, int]:
        """Return a participant's position in its topic, and how many messages follow."""
        [(topic, cursor)] = await self.load([(identity, identity)])
        self.unpin([topic])
        position = cursor or 0
        return position, max(topic.end - position, 0)

    @staticmethod
    def unpin(topics: Iterable[CachedTopic]) -> None:
        """Let topics that `load` pinned in memory be forgotten again."""
        for topic in topics:
            topic.waiting -= 1

    async def refresh(self, topics: Sequence[CachedTopic]) -> None:
        """Read where topics end; offer new messages. Raises StorageUnavailable."""
        await self._read_facts([(topic, None) for topic in topics])

    def _apply_facts(self, topic: CachedTopic, facts: topic_sql.TopicFacts, known: int | None) -> None:
        """Update a topic in memory from its database row; `known`: its id before the read."""
        if facts.topic_id is None:
            if self.database.shared and known is not None and topic.topic_id == known:
                topic.deleted()  # by another node
            return
        topic.base = max(topic.base, facts.base)
        if self.database.shared:
            topic.topic_id = facts.topic_id
            topic.tail_bytes = max(topic.tail_bytes, facts.total_bytes)
            self._raise_head(topic, facts.tail)
        elif topic.topic_id is None:
            # Only a topic without an id learns: once it has one, memory is ahead of any snapshot.
            topic.topic_id = facts.topic_id
            topic.tail = topic.assigned = facts.tail
            topic.tail_bytes = topic.assigned_bytes = facts.total_bytes

    def _raise_head(self, topic: CachedTopic, head: int) -> None:
        """Note that a topic of a shared database is committed up to `head` at least."""
        topic.head = max(topic.head, head)
        if topic.tail < topic.head:
            if topic.is_read:
                self._remote.request(topic)
            else:
                topic.tail = topic.head
                topic.look()

    # -- other nodes ------------------------------------------------------------------------------

    @contextmanager
    def relayed_by(self, relay: LogRelay) -> Iterator[None]:
        """Notify other nodes of commits through `relay` until the block ends."""
        self.relay = relay
        try:
            yield
        finally:
            self.relay = None

    def on_remote_commits(self, names: Iterable[str]) -> None:
        """Request reads of topics in which other nodes committed. Never blocks."""
        for name in names:
            topic = self.topics.find(name)
            if topic is None:
                continue
            if topic.subscribers and not topic.is_read and topic.topic_id is not None:
                topic.look()
            elif topic.subscribers or topic.waiting:
                self._remote.request(topic)

    def on_pushed_messages(self, messages: Sequence[PushedMessage]) -> None:
        """Offer messages that another node has pushed, soon, in order. Never blocks."""
        others: list[str] = []
        for message in messages:
            topic = self.topics.find(message.topic)
            if topic is None or not topic.is_read or not self._remote.take(topic, message):
                others.append(message.topic)
        self.on_remote_commits(dict.fromkeys(others))

    # -- reading ----------------------------------------------------------------------------------

    async def read(self, topic: CachedTopic, after: int, *, rows: int, max_bytes: int) -> list[Row]:
        """Read messages (offset, ts_ms, frame) behind `after`. Raises StorageUnavailable."""
        topic_id, tail = topic.topic_id, topic.tail
        if topic_id is None or after >= tail:
            return []
        return await self.database.read(lambda: self._sql.read_page(topic_id, after, tail, rows, max_bytes))

    async def read_topics(
        self, wanted: Sequence[tuple[str, int]], *, rows: int, max_bytes: int
    ) -> list[tuple[list[Row], bool]]:
        """Read messages of several topics, behind one offset each, from the database.

        Return for each (topic name, offset) the committed messages (offset, ts_ms, frame), and
        whether there are more: at most `rows` of each topic, and `max_bytes` in all, one message
        excepted. Raises StorageUnavailable.
        """
        if not wanted:
            return []
        return await self.database.read(lambda: topic_sql.read_topics(self._sql, wanted, rows, max_bytes))

    async def read_at(self, topic: CachedTopic, offsets: Sequence[int]) -> list[Row]:
        """Read a topic's messages (offset, frame) at these offsets, if still there."""
        topic_id = topic.topic_id
        if topic_id is None:
            return []
        return await self.database.read(lambda: self._sql.read_some(topic_id, offsets))

    async def times(self, name: str, first: int, last: int) -> dict[int, int]:
        """Return when a topic's messages were committed, by offset (Unix ms)."""
        topic = self.topics.find(name)
        if topic is None or (topic_id := topic.topic_id) is None:
            return {}
        return await self.database.read_small(lambda: topic_sql.message_times(topic_id, first, last))

    async def last_topic(self) -> int:
        """Return the newest topic's id, or 0. Raises StorageUnavailable."""
        found = await self.database.fetch("SELECT COALESCE(MAX(id), 0) FROM topics")
        return int(found[0][0])

    async def input_topics(self, after: int, last: int, count: int) -> tuple[list[str], int]:
        """Return names of tasks' input topics with ids up to `last`, and the next `after`.

        The next page begins there; 0: there is none. Goes through all topics. Raises
        StorageUnavailable.
        """
        found = await self.database.fetch(
            "SELECT id, name FROM topics WHERE id > $1 AND id <= $2 AND name LIKE 'tk::%::input' ORDER BY id LIMIT $3",
            after,
            last,
            count,
        )
        return [name for _, name in found], found[-1][0] if len(found) == count else 0

    # -- retention --------------------------------------------------------------------------------

    async def renew_positions(self) -> None:
        """Write live subscribers' positions again, so that retention keeps them."""
        subscribed = self.topics.subscribed()
        for start in range(0, len(subscribed), RENEWALS_PER_GROUP):
            for topic in subscribed[start : start + RENEWALS_PER_GROUP]:
                for subscriber in list(topic.subscribers):
                    subscriber.renew()
            await self.cursors.save()

    async def delete_topics(self, topics: Sequence[tuple[int, str]]) -> int:
        """Delete unused topics, (id, name) each; return how many went.

        Where only this node writes, the ids are given to other topics again, so no id of these may
        be in use while they go: no group is being written (`_writing`), no session looks topics up
        (`load` waits), and the topics in memory forget their ids. Where other nodes write, a node
        that still has an id finds out when it uses the id. Raises StorageUnavailable.
        """
        if self.database.shared:
            ids = [topic_id for topic_id, _ in topics]
            return len(await self.database.run(lambda: self._sql.delete_topics(ids)))
        async with self._writing:
            known = {topic_id: self.topics.find(name) for topic_id, name in topics}
            going = [topic_id for topic_id, topic in known.items() if topic is None or topic.forgettable]
            self._deleting = trio.Event()
            gone: list[int] = []
            try:
                gone = await self.database.run(lambda: self._sql.delete_topics(going))
                return len(gone)
            finally:
                # Also after a failure, which may be that of an answer alone: ids are read again.
                for topic_id in going:
                    if (topic := known[topic_id]) is not None:
                        topic.topic_id = None
                for topic_id in gone:
                    if (topic := known[topic_id]) is not None:
                        topic.deleted()
                event, self._deleting = self._deleting, None
                event.set()

    def statistics(self) -> LogStatistics:
        """Return the log's counters since start, and what waits now."""
        return LogStatistics(
            appended=self._appended,
            settled=self._settled,
            refused=self._refused,
            groups=self._groups,
            pending_messages=len(self._pending) + self._in_commit_messages,
            pending_bytes=self._pending_bytes + self._in_commit_bytes,
            topics=len(self.topics),
            subscriptions=self.topics.subscriptions,
            storage_failing=self._failing or self._writer.unsure,
            remote_reads=self._remote.reads,
            remote_messages=self._remote.messages,
            pushed_messages=self._remote.pushes,
        )


@asynccontextmanager
async def open_log(
    database: Database, clock: Clock, limits: LogLimits, on_group: GroupReport = lambda seconds, messages: None
) -> AsyncIterator[TopicLog]:
    """Run the topic log of a database until the block ends, then settle and save all."""
    log = TopicLog(database, clock, limits, await _identity_of(database), on_group)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(log._commit_forever, name="log-committer")
        nursery.start_soon(log._time_cursor_flushes, name="log-cursor-timer")
        nursery.start_soon(keep_running, "log-topic-names", log._load_names, name="log-topic-names")
        if database.shared:
            nursery.start_soon(keep_running, "log-remote-commits", log._remote.run, name="log-remote-commits")
            nursery.start_soon(keep_running, "log-pushed-messages", log._remote.run_pushed, name="log-pushed-messages")
        try:
            yield log
        finally:
            with trio.CancelScope(shield=True):
                with trio.move_on_after(DRAIN_S):
                    await log.drain()
                nursery.cancel_scope.cancel()
                await log._save_last_cursors()


async def _identity_of(database: Database) -> bytes:
    """Return the random bytes that identify a log, made at the first call."""
    wanted = "SELECT identity FROM log_identity"
    rows = await database.fetch(wanted)
    if not rows:
        made = "INSERT INTO log_identity (id, identity) VALUES (1, $1) ON CONFLICT (id) DO NOTHING"
        await database.execute(made, secrets.token_bytes(IDENTITY_BYTES))
        rows = await database.fetch(wanted)
    return bytes(rows[0][0])
