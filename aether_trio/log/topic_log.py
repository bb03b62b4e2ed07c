"""The durable topic log: append, group commit, fan-out.

Appends are queued without waiting and committed in groups by one task. When a group is durable its messages are offered
to their topics' subscribers, in order, and only then: what anybody has seen is in the log. While one group is being
written the next one gathers, so the busier the node, the cheaper a message.

Invariants
* Order: messages of one topic are committed and offered in the order in which they were appended.
* A sequence number is *settled* once its group is committed or refused; numbers settle in order. A response that
  waits for its connection's last append is therefore a barrier.
* Where others write to the same log (writers.py), a message of ours that is not its topic's next one waits for theirs in front of it
  (follower.py). A subscriber who is offered an offset that is not its next one reads what is between from the log (catchup.py).
* A group that cannot be written (disk full, file locked) is refused as a whole: every sender is told, offsets are
  given back, and the next group tries again. Nothing of a refused group is ever offered.
* Memory: appends are admitted only while `has_room`; readers wait for it, and TCP pushes back.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager

import structlog
import trio

from aether_trio.concurrency.supervision import keep_running
from aether_trio.delivery.kicks import AT_ONCE
from aether_trio.delivery.outbox import Outbox
from aether_trio.log import programs
from aether_trio.log.cursors import CursorStore
from aether_trio.log.follower import kick_all
from aether_trio.log.publishers import Publisher
from aether_trio.log.reader import LogReader
from aether_trio.log.records import Author, Entry, GroupReport, LogLimits, LogStatistics, not_stored
from aether_trio.log.topic_state import NOTED, TopicState
from aether_trio.log.writers import TopicsGone, nothing_written, open_writer
from aether_trio.model.clock import Clock
from aether_trio.model.errors import AetherError, Code
from aether_trio.storage.base import Database, StorageUnavailable, single

__all__ = ["Author", "LogLimits", "LogStatistics", "TopicLog", "open_log"]

logger = structlog.get_logger("aether.log")


OFFERS_PER_SLICE = 2_000
"""Offers made between two checkpoints: about 1 ms of work, so that a broadcast to thousands starves nobody."""
OFFERS_PER_KICK = 8_000
"""Offers made before subscribers write: a burst of broadcasts costs each of them one send, which is what a delivery
costs, and the first of it waits no more than some 4 ms for the others."""

IDENTITY_BYTES = 16
PROBE_S = 1.0
"""Between two looks whether a failing engine can write again, while there is nothing to write."""


class TopicLog(LogReader):
    """See the module docstring. Made by `open_log`."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        limits: LogLimits,
        on_group: GroupReport = lambda seconds, messages: None,
    ) -> None:
        self._writer = open_writer(database, limits.partition_ms)
        super().__init__(database, clock, self._writer.programs, CursorStore(self._wake))
        self._limits = limits
        self._pending: list[Entry] = []
        self._pending_bytes = 0
        self._in_commit_bytes = 0
        self._in_commit_messages = 0
        self._work = trio.Event()
        self._settled_event = trio.Event()
        self._appended = 0
        self._settled = 0
        self._refused = 0
        self._void = 0
        self._groups = 0
        self._failing = False
        self._waiting_since = 0.0
        self._writing = trio.Lock()
        self.identity = b""
        """16 random bytes, made with the database: offsets of another log mean nothing in this one."""
        self._on_group = on_group

    # -- append ---------------------------------------------------------------------------------------------------

    @property
    def has_room(self) -> bool:
        """Whether a polite sender may append now."""
        return (
            self._pending_bytes + self._in_commit_bytes < self._limits.pending_bytes
            and len(self._pending) + self._in_commit_messages < self._limits.pending_messages
        )

    async def wait_room(self) -> None:
        """Wait until `has_room`."""
        while not self.has_room:
            await self._settled_event.wait()

    def append_nowait(self, state: TopicState, frame: bytes, author: Author) -> int:
        """Queue a message; returns its sequence number. Call only while `has_room` (one batch beyond it is tolerated)."""
        state.waiting += 1
        if not self._pending:
            self._waiting_since = self._clock.monotonic()
        self._pending.append((state, frame, author))
        self._pending_bytes += len(frame)
        self._appended += 1
        self._wake()
        return self._appended

    def is_settled(self, sequence: int) -> bool:
        """Whether the append with this number was committed or refused."""
        return sequence <= self._settled

    async def wait_settled(self, sequence: int) -> None:
        """Wait until `is_settled(sequence)`."""
        while sequence > self._settled:
            await self._settled_event.wait()

    def _wake(self) -> None:
        if not self._work.is_set():
            self._work.set()

    def void(self) -> None:
        """Whoever has appended may hold its identity no more, and others may write as its successors: what is not committed by now is
        refused. One step; what this process writes afterwards may be under another lease."""
        self._void = self._appended
        self._wake()

    # -- commit ---------------------------------------------------------------------------------------------------

    async def _commit_forever(self) -> None:
        limits = self._limits
        next_cursor_flush = -math.inf
        while True:
            if not self._pending:
                if not self.cursors.dirty and not self._failing:
                    await self._work.wait()
                else:
                    with trio.move_on_at(next_cursor_flush if self.cursors.dirty else trio.current_time() + PROBE_S):
                        await self._work.wait()
                self._work = trio.Event()
            batch = self._take_group()
            cursors_due = self.cursors.dirty and (self.cursors.hurry or trio.current_time() >= next_cursor_flush)
            if cursors_due:
                next_cursor_flush = trio.current_time() + limits.cursor_flush_s
            started, self._waiting_since = self._waiting_since, self._clock.monotonic()
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
                    self._on_group(self._clock.monotonic() - started, len(batch))
                batch = []  # an idle log holds nothing of the last group, and nobody who sent it
            elif self._failing:
                await self._probe()

    def _take_group(self) -> list[Entry]:
        limits = self._limits
        if (
            len(self._pending) <= limits.group_messages
            and self._pending_bytes <= limits.group_bytes
            and self._void <= self._settled
        ):
            batch, self._pending = self._pending, []
            return batch
        size = count = 0
        most = (
            min(limits.group_messages, self._void - self._settled)
            if self._void > self._settled
            else limits.group_messages
        )
        for _, frame, _ in self._pending[:most]:
            size += len(frame)
            count += 1
            if size >= limits.group_bytes:
                break
        batch = self._pending[:count]
        del self._pending[:count]
        return batch

    async def _commit(self, batch: list[Entry], cursor_topics: list[TopicState]) -> None:
        size = sum(len(entry[1]) for entry in batch)
        self._pending_bytes -= size
        self._in_commit_bytes, self._in_commit_messages = size, len(batch)
        authors = list(dict.fromkeys(entry[2] for entry in batch if entry[2].confirms))
        # In the order of their first messages: of two publishers of one identity the later one's row stays.
        upto = self._settled + len(batch)
        publishers = list(dict.fromkeys(author.publisher for author in authors if author.publisher is not None))

        try:
            messages = [(state, frame) for state, frame, _ in batch]
            offsets, now_ms = await self._write(messages, cursor_topics, publishers, upto)
        except StorageUnavailable as error:
            self.cursors.abort_flush()
            for publisher in publishers:
                publisher.refused(upto)
            if not self._failing:
                logger.error("log group refused", messages=len(batch), reason=str(error))
            self._failing = True
            await self._refuse(batch, authors, not_stored(error))
            # A failing engine may answer at once; do not spin on cursors alone.
            await trio.sleep(0.05)
        except Exception as error:
            self.cursors.abort_flush()
            for publisher in publishers:
                publisher.again()
            await self._commit_apart(batch, authors, alone=not cursor_topics, error=error)
        else:
            if self.relay is not None:
                self.relay.committed(dict.fromkeys(state for state, _ in messages))
            self._failing = False
            self._groups += 1
            self.cursors.end_flush()
            for publisher in publishers:
                publisher.committed(now_ms)
            if offsets is None:
                await self._look_up(batch, authors)
            else:
                await self._fan_out(batch, offsets, authors)

    async def _commit_apart(
        self, batch: list[Entry], authors: Iterable[Author], *, alone: bool, error: Exception
    ) -> None:
        """The database does not take what one of a group has sent, and would not at another time: that is refused, and nothing else."""
        if not batch:
            logger.error("positions cannot be written", reason=repr(error))
            await trio.sleep(PROBE_S)
            return
        if alone and len(batch) == 1:
            logger.error("a message cannot be written", topic=batch[0][0].name, reason=repr(error))
            for author in authors:
                if author.publisher is not None:
                    author.publisher.refused(self._settled + 1)
            told = AetherError(Code.PUBLISH_FAILED, f"the message cannot be stored: {error}", retryable=False)
            await self._refuse(batch, authors, told)
            return
        self._take_back(batch)
        self._pending_bytes += sum(len(entry[1]) for entry in batch)
        if not alone:
            await self._commit(batch, [])
            return
        half = len(batch) // 2
        await self._commit(batch[:half], [])
        await self._commit(batch[half:], [])

    async def _write(
        self,
        messages: Sequence[tuple[TopicState, bytes]],
        cursor_topics: Sequence[TopicState],
        publishers: Sequence[Publisher],
        upto: int,
    ) -> tuple[list[int] | None, int]:
        """The offsets of a group (writers.py) and when it was written. Raises StorageUnavailable."""

        def is_void() -> bool:
            return self.cursors.void or (bool(messages) and upto <= self._void)

        states = [*cursor_topics, *(state for state, _ in messages)]
        while True:
            await self._ensure_topics(states)
            now_ms = self._clock.now_ms()
            cursors = self.cursors.rows(now_ms)
            numbers = [(one.identity, one.token, one.begin(upto), now_ms) for one in publishers]
            try:
                return await self._writer.append(messages, now_ms, cursors, numbers, is_void), now_ms
            except TopicsGone as gone:
                lost = [state for state in states if state.topic_id in gone.topic_ids]
                # Retention has done this already; but a standby may have been promoted that had not heard of these topics.
                latest = max(max(state.end, state.assigned) for state in lost)
                with nothing_written():
                    await self._database.run(lambda latest=latest: single(programs.raise_floor(latest)))  # type: ignore[misc]
                for state in lost:
                    state.topic_id = None

    async def _probe(self) -> None:
        """See whether the engine can write again: who was turned away by our health may bring no message to find out."""
        try:
            await self._database.run(programs.touch)
        except StorageUnavailable:
            return
        self._failing = False

    async def _ensure_topics(self, states: Iterable[TopicState]) -> None:
        unsure = {state.name: state for state in states if state.topic_id is None or state.doubtful}
        if unsure:
            names = sorted(unsure)
            now_ms = self._clock.now_ms()
            with nothing_written():
                known = await self._database.run(lambda: self._writer.programs.create_topics(names, now_ms))
            for name, facts in known.items():
                self._learn(unsure[name], facts, None)
                if not self._database.shared:
                    self._settle_doubt(unsure[name], facts)

    @staticmethod
    def _settle_doubt(state: TopicState, facts: programs.TopicFacts) -> None:
        # An engine may fail to say that it has committed. What it wrote then is in the log, though its senders were
        # refused: offsets go on behind it, and subscribers, who see that some are missing, read it from there.
        state.doubtful = False
        if facts.tail > state.tail:
            state.tail = state.assigned = facts.tail
            state.tail_bytes = state.assigned_bytes = facts.total_bytes

    def _take_back(self, batch: list[Entry]) -> None:
        """The offsets that a group was given by this process."""
        if self._database.shared:
            return
        for state, _, _ in batch:
            if state.assigned > state.tail:
                state.doubtful = True
                state.assigned, state.assigned_bytes = state.tail, state.tail_bytes

    async def _refuse(self, batch: list[Entry], authors: Iterable[Author], told: AetherError) -> None:
        self._take_back(batch)
        self._refused += len(batch)
        number = self._settled
        self._settle(len(batch))
        silent: list[tuple[Author, int]] = []
        for state, _, author in batch:
            number += 1
            state.waiting -= 1
            if author.confirms:
                author.refused(number, told)
            else:
                silent.append((author, number))
        # Those write to their clients at once, and receipts that are asked for then must know of every refusal.
        for refusals, (author, number) in enumerate(silent, start=1):
            author.refused(number, told)
            if refusals % AT_ONCE == 0:
                await trio.lowlevel.checkpoint()
        touched: set[Outbox] = set()
        for author in authors:
            author.settled(touched)
        await kick_all(touched)

    async def _fan_out(self, batch: list[Entry], offsets: list[int], authors: Iterable[Author]) -> None:
        touched: set[Outbox] = set()
        offers = unkicked = 0
        shared = self._database.shared
        # Senders may go on as soon as their messages are durable; delivery is not their wait.
        self._settle(len(batch))
        for author in authors:
            author.settled(touched)
        for (state, frame, _), offset in zip(batch, offsets, strict=True):
            state.waiting -= 1
            if shared and offset != state.tail + 1 and state.is_read:
                self._more(state, offset)  # or the follower was faster
                continue
            state.tail = max(offset, state.tail)
            state.tail_bytes += len(frame)
            if state.tail_bytes >= state.sweep_bytes:
                state.sweep_bytes = NOTED
                self.grown[state.name] = state
            for subscriber in state.subscribers:
                subscriber.offer(offset, frame, touched)
                offers += 1
            if offers >= OFFERS_PER_SLICE:
                unkicked += offers
                offers = 0
                if unkicked >= OFFERS_PER_KICK:
                    unkicked = 0
                    await kick_all(touched)
                else:
                    await trio.lowlevel.checkpoint()
        await kick_all(touched)

    async def _look_up(self, batch: list[Entry], authors: Iterable[Author]) -> None:
        """A group is committed that nobody can be offered, as its offsets are not known: let them read it from the log."""
        touched: set[Outbox] = set()
        self._settle(len(batch))
        for author in authors:
            author.settled(touched)
        states = list(dict.fromkeys(state for state, _, _ in batch))
        while True:
            try:
                await self.learn(states)
                break
            except StorageUnavailable as error:
                logger.warning("topics not read, trying again", reason=str(error))
                await trio.sleep(PROBE_S)
        for state, _, _ in batch:
            state.waiting -= 1
        await kick_all(touched)

    def _settle(self, count: int) -> None:
        self._in_commit_bytes = self._in_commit_messages = 0
        self._settled += count
        event, self._settled_event = self._settled_event, trio.Event()
        event.set()

    # -- for retention --------------------------------------------------------------------------------------------

    async def delete_topics(self, topics: Sequence[tuple[int, str]]) -> int:
        """Delete the rows of those of these topics, (id, name) each, that nothing needs any more; how many went.

        Where nobody else writes, ids are given to other topics again, so no id of these may be in use while they go: nothing is
        being written (`_writing`), nobody looks topics up (`warm` waits), and what is in memory forgets them.
        Where others write, a node that still has an id finds out when it uses it. Raises StorageUnavailable.
        """
        if self._database.shared:
            return len(
                await self._database.run(lambda: self._writer.programs.delete_topics([one[0] for one in topics]))
            )
        async with self._writing:
            known = {topic_id: self._topics.get(name) for topic_id, name in topics}
            going = [topic_id for topic_id, state in known.items() if state is None or state.forgettable]
            self._retiring = trio.Event()
            gone: list[int] = []
            try:
                gone = await self._database.run(lambda: self._writer.programs.delete_topics(going))
                return len(gone)
            finally:
                # Also after a failure, which may be that of an answer alone: then their ids are read again.
                for topic_id in going:
                    if (state := known[topic_id]) is not None:
                        state.topic_id = None
                for topic_id in gone:
                    if (state := known[topic_id]) is not None:
                        state.deleted()
                event, self._retiring = self._retiring, None
                event.set()

    async def drain(self) -> None:
        """Wait until all that was appended is settled."""
        await self.wait_settled(self._appended)

    async def _save_last_cursors(self) -> None:
        self.cursors.abort_flush()  # the committer may have been cancelled in the middle of one
        topics = self.cursors.begin_flush()
        if topics:
            try:
                await self._ensure_topics(topics)
                rows = self.cursors.rows(self._clock.now_ms())
                await self._database.run(lambda: programs.save_cursors(rows))
            except StorageUnavailable as error:
                logger.warning("cursors not saved at stop; messages will be delivered again", reason=str(error))

    def statistics(self) -> LogStatistics:
        """What happened since start."""
        return LogStatistics(
            appended=self._appended,
            settled=self._settled,
            refused=self._refused,
            groups=self._groups,
            pending_messages=len(self._pending) + self._in_commit_messages,
            pending_bytes=self._pending_bytes + self._in_commit_bytes,
            topics=len(self._topics),
            subscriptions=sum(len(state.subscribers) for state in self._topics.values()),
            storage_failing=self._failing or self._writer.unsure,
            followed_reads=self._follower.reads,
            followed_rows=self._follower.rows,
        )


@asynccontextmanager
async def open_log(
    database: Database, clock: Clock, limits: LogLimits, on_group: GroupReport = lambda seconds, messages: None
) -> AsyncIterator[TopicLog]:
    """Run a log on an open database with the log schema. Leaving settles what was appended and saves cursors.

    `on_group(seconds, messages)` is called for each group that was committed: how long its first message had waited.
    """
    log = TopicLog(database, clock, limits, on_group)
    log.identity = await _identity_of(database)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(log._commit_forever, name="log-committer")
        if database.shared:
            nursery.start_soon(keep_running, "log-follower", log._follower.run, name="log-follower")
        try:
            yield log
        finally:
            with trio.CancelScope(shield=True):
                with trio.move_on_after(10):
                    await log.drain()
                nursery.cancel_scope.cancel()
                await log._save_last_cursors()


async def _identity_of(database: Database) -> bytes:
    """What tells this log from every other one. Nodes that open it at once agree on one."""
    wanted = "SELECT identity FROM log_identity"
    rows = await database.fetch(wanted)
    if not rows:
        made = "INSERT INTO log_identity (id, identity) VALUES (1, $1) ON CONFLICT (id) DO NOTHING"
        await database.execute(made, secrets.token_bytes(IDENTITY_BYTES))
        rows = await database.fetch(wanted)
    return bytes(rows[0][0])
