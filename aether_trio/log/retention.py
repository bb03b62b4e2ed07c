"""Retention: deletes old messages and too many, and unused positions and topics.

Age and size are limits per topic. A sweep deletes in bounded steps, each its own transaction. A
consumer that was away for longer than messages are kept finds them gone and is told so
(delivery/catchup.py).

The cost of a sweep grows with what it deletes, not with what there is: an index finds the topics
that are due, because of their oldest message, or some time after their last look (`look_ms`, a day
at most). `TopicLog.grown` has those that are too large. A look also forgets positions that are out
of use, and deletes a topic that was without messages and positions for as long as an unused
position is kept.

In PostgreSQL partitions go when all their messages are too old (storage/partitions.py), so a
message may stay for an eighth of the age longer. Several nodes may sweep at a time.

Invariants: `floor_offset` is raised in the transaction that deletes messages, and `topic_floor` in
the one that deletes topics, so offsets never start again; `base_offset` is raised in the one that
forgets a position, so a consumer that comes back is not told that it missed what it read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, NamedTuple

import structlog
import trio

from aether_trio.log.message_keys import key_of, offset_of
from aether_trio.log.topic_cache import CachedTopic
from aether_trio.log.topic_log import TopicLog
from aether_trio.log.topic_sql import MESSAGES, last_message
from aether_trio.model.limits import MIB
from aether_trio.storage.base import Execute, Fetch, Program, Row, StorageUnavailable

logger = structlog.get_logger("aether.retention")

ROWS_PER_STEP = 500
BYTES_PER_STEP: Final = 16 * MIB
"""A step ends with the message that reaches so many: SQLite's writers wait for its commit."""
TOPICS_PER_STEP = 50
LOOK_MS = 24 * 3600 * 1000
"""Longest time between two looks at a topic: a lowered limit counts a day later at most."""
KEEP_MS = 7 * 24 * 3600 * 1000
"""How long an empty topic is kept where positions are kept for ever."""
RENEWALS = 4
"""How often a position in use is renewed within the time after which it would be forgotten."""
GROWTH = 16
"""A topic at its size limit is looked at after each growth by a sixteenth of the limit."""
FOR_EVER_MS = -(2**62)
WRITER_AGE_MS = 24 * 3600 * 1000
"""A row in log_writers is deleted when the last group of its process is that old."""


@dataclass(frozen=True, slots=True)
class RetentionLimits:
    """Limits of age, size and positions that retention keeps; 0 is unlimited.

    Messages older than `age_s` go, and the oldest ones of a topic with more than `topic_bytes`.
    Positions go that have not moved for `cursor_age_s` and lie before all messages. A sweep begins
    every `sweep_s`.
    """

    age_s: float = 24 * 3600.0
    topic_bytes: int = 1024 * 1024 * 1024
    cursor_age_s: float = 7 * 24 * 3600.0
    sweep_s: float = 60.0


class DeletedStep(NamedTuple):
    """What one step has deleted of a topic, and whether the next one may find more."""

    messages: int = 0
    size: int = 0
    more: bool = False


class _Expired(NamedTuple):
    """Messages of a topic for one step: the last one's offset, 0 without any."""

    upto: int = 0
    topic_bytes: int = 0
    """Bytes of all messages that the topic has had, up to that one."""
    size: int = 0
    more: bool = False


def expired_upto(topic_id: int, oldest_ms: int, topic_bytes: int) -> Program[_Expired]:
    """Find the expired messages of a topic for one step."""
    rows = yield from _first(topic_id, key_of(topic_id + 1, 0) - 1)
    if not rows:
        return _Expired()
    newest = yield from last_message(topic_id)
    assert newest is not None
    surplus = newest[1] - topic_bytes if topic_bytes else 0
    kept = (number for number, row in enumerate(rows) if row[1] >= oldest_ms and row[2] > surplus)
    return _one_step(rows[: next(kept, len(rows))])


def expire(topic_id: int, oldest_ms: int, topic_bytes: int) -> Program[DeletedStep]:
    """Delete one step of a topic's expired messages."""
    expired = yield from expired_upto(topic_id, oldest_ms, topic_bytes)
    return (yield from _delete_upto(topic_id, expired)) if expired.upto else DeletedStep()


def purge(topic_id: int, upto: int) -> Program[int]:
    """Delete one step of a topic's messages up to an offset; return how many went."""
    rows = yield from _first(topic_id, key_of(topic_id, upto))
    if not rows:
        return 0
    return (yield from _delete_upto(topic_id, _one_step(rows))).messages


def _first(topic_id: int, last_key: int) -> Program[list[Row]]:
    """Read (key, time, topic's bytes, size) of a topic's first messages."""
    rows: list[Row] = yield Fetch(
        "SELECT message_key, ts_ms, topic_bytes, LENGTH(data) FROM messages "
        "WHERE message_key > $1 AND message_key <= $2 ORDER BY message_key LIMIT $3",
        (key_of(topic_id, 0), last_key, ROWS_PER_STEP),
    )
    return rows


def _one_step(rows: Sequence[Row]) -> _Expired:
    """Return the beginning of these messages that one step deletes."""
    size = 0
    for number, (key, _, topic_bytes, length) in enumerate(rows, 1):
        size += length
        if size >= BYTES_PER_STEP or number == len(rows):
            return _Expired(offset_of(key), topic_bytes, size, number < len(rows) or number >= ROWS_PER_STEP)
    return _Expired()


def _delete_upto(topic_id: int, expired: _Expired) -> Program[DeletedStep]:
    yield Execute(
        "UPDATE topics SET floor_offset = $2, floor_bytes = $3 WHERE id = $1 AND floor_offset < $2",
        (topic_id, expired.upto, expired.topic_bytes),
    )
    gone: int = yield Execute(
        "DELETE FROM messages WHERE message_key > $1 AND message_key <= $2",
        (key_of(topic_id, 0), key_of(topic_id, expired.upto)),
    )
    return DeletedStep(gone, expired.size, expired.more)


def forget_cursors(topic_id: int, unused_since_ms: int, first_kept: int) -> Program[None]:
    """Delete positions that are out of use and before the first remaining message.

    Most consumers without a position start at the topic's base, which is raised to where these
    positions were. The others (a user's windows) renew their positions when they connect, when they
    leave, and now and then in between (delivery/subscription.py), so only consumers that were away
    for that long start anew.
    """
    rows: list[Row] = yield Fetch(
        "DELETE FROM cursors WHERE topic_id = $1 AND updated_ms < $2 AND msg_offset < $3 RETURNING msg_offset",
        (topic_id, unused_since_ms, first_kept),
    )
    if rows:
        yield Execute(
            "UPDATE topics SET base_offset = $2 WHERE id = $1 AND base_offset < $2",
            (topic_id, max(row[0] for row in rows)),
        )


@dataclass(frozen=True, slots=True)
class SweepBounds:
    """The times (Unix ms) and sizes that one retention sweep compares with.

    `age_ms` and `topic_bytes` 0: no message is deleted for its age, or its topic's size. Positions
    not written since `positions_ms` go, and topics that have been empty since `emptied_ms`. A topic
    is looked at again after `look_ms`.
    """

    now_ms: int
    age_ms: int
    topic_bytes: int
    positions_ms: int
    emptied_ms: int
    look_ms: int

    @property
    def oldest_ms(self) -> int:
        """The Unix time in ms before which messages are deleted."""
        return self.now_ms - self.age_ms if self.age_ms else FOR_EVER_MS


@dataclass(slots=True)
class SweepStep:
    """The result of a sweep step: messages deleted, topics (id, name) to delete."""

    gone: int
    empty: list[tuple[int, str]]
    size: int = 0


def sweep_topics(topics: Sequence[Row], bounds: SweepBounds) -> Program[SweepStep]:
    """Delete expired messages and positions of some topics, in one bounded step.

    `topics` are (id, name, emptied_ms). A topic with more to delete stays due.
    """
    found = SweepStep(0, [])
    for topic_id, name, emptied_ms in topics:
        if found.gone >= ROWS_PER_STEP or found.size >= BYTES_PER_STEP:
            break
        done = yield from expire(topic_id, bounds.oldest_ms, bounds.topic_bytes)
        found.gone += done.messages
        found.size += done.size
        if done.more:
            continue
        first: list[Row] = yield Fetch(
            "SELECT message_key, ts_ms FROM messages WHERE message_key > $1 AND message_key < $2 "
            "ORDER BY message_key LIMIT 1",
            (key_of(topic_id, 0), key_of(topic_id + 1, 0)),
        )
        first_kept = offset_of(first[0][0]) if first else key_of(1, 0)
        yield from forget_cursors(topic_id, bounds.positions_ms, first_kept)
        checked_ms = bounds.now_ms
        if first and bounds.age_ms:
            checked_ms = min(checked_ms, first[0][1] + bounds.age_ms - bounds.look_ms)
        used = bool(first) or bool((yield Fetch("SELECT 1 FROM cursors WHERE topic_id = $1 LIMIT 1", (topic_id,))))
        empty_since_ms = 0 if used else emptied_ms or bounds.now_ms
        yield Execute(
            "UPDATE topics SET checked_ms = $2, emptied_ms = $3 WHERE id = $1", (topic_id, checked_ms, empty_since_ms)
        )
        if 0 < empty_since_ms <= bounds.emptied_ms:
            found.empty.append((topic_id, name))
    return found


class Retention:
    """Sweeps one topic log for expired messages, positions and topics."""

    def __init__(self, log: TopicLog, limits: RetentionLimits) -> None:
        self._log = log
        self._database = log.database
        self._clock = log.clock
        self._limits = limits
        self._renewed_ms = self._clock.now_ms()
        self.expired = 0
        self.deleted_topics = 0

    async def sweep_forever(self) -> None:
        """Sweep every `sweep_s` until cancelled; postpone while storage is unavailable."""
        while True:
            await trio.sleep(self._limits.sweep_s)
            try:
                await self.sweep()
            except StorageUnavailable as error:
                logger.warning("retention postponed, as storage does not answer", reason=str(error))

    async def sweep(self) -> int:
        """Sweep once; return about how many messages went. Raises StorageUnavailable."""
        limits = self._limits
        now_ms = self._clock.now_ms()
        age_ms = int(limits.age_s * 1000)
        positions_ms = int(limits.cursor_age_s * 1000)
        if positions_ms and now_ms - self._renewed_ms >= positions_ms // RENEWALS:
            self._renewed_ms = now_ms
            await self._log.renew_positions()
        gone = 0
        if self._database.shared:
            gone = await MESSAGES.drop_older(self._database, now_ms - age_ms if age_ms else FOR_EVER_MS)
            await self._database.execute("DELETE FROM log_writers WHERE updated_ms < $1", now_ms - WRITER_AGE_MS)
        bounds = SweepBounds(
            now_ms=now_ms,
            age_ms=0 if self._database.shared else age_ms,
            topic_bytes=limits.topic_bytes,
            positions_ms=now_ms - positions_ms if positions_ms else FOR_EVER_MS,
            emptied_ms=now_ms - (positions_ms or KEEP_MS),
            look_ms=min(age_ms or LOOK_MS, positions_ms or LOOK_MS, LOOK_MS),
        )
        gone += await self._look_at_due(bounds)
        gone += await self._look_at_grown(bounds)
        self.expired += gone
        return gone

    async def _look_at_due(self, bounds: SweepBounds) -> int:
        gone = 0
        while topics := await self._database.fetch(
            "SELECT id, name, emptied_ms FROM topics WHERE checked_ms < $1 ORDER BY checked_ms LIMIT $2",
            bounds.now_ms - bounds.look_ms,
            TOPICS_PER_STEP,
        ):
            looked = await self._database.run(partial(sweep_topics, topics, bounds))
            gone += looked.gone
            if looked.empty:
                self.deleted_topics += await self._log.delete_topics(looked.empty)
        return gone

    async def _look_at_grown(self, bounds: SweepBounds) -> int:
        grown = self._log.grown
        gone = 0
        while grown:
            name, topic = next(iter(grown.items()))
            if bounds.topic_bytes:
                gone += await self._cut(topic, bounds)
            grown.pop(name, None)
        return gone

    async def _cut(self, topic: CachedTopic, bounds: SweepBounds) -> int:
        if topic.tail_bytes <= bounds.topic_bytes:
            topic.sweep_bytes = bounds.topic_bytes + 1
            return 0
        topic_id = topic.topic_id
        topic.sweep_bytes = topic.tail_bytes + bounds.topic_bytes // GROWTH + 1
        if topic_id is None:
            return 0

        def cut() -> Program[DeletedStep]:
            return expire(topic_id, FOR_EVER_MS, bounds.topic_bytes)

        gone = 0
        while (await self._database.read(lambda: expired_upto(topic_id, FOR_EVER_MS, bounds.topic_bytes))).upto:
            gone += (await self._database.run(cut)).messages
        return gone
