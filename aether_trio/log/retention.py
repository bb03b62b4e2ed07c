"""Retention: what is too old, or too much for its topic, leaves the log, and then so does what was kept of the topic.

Age and size are limits per topic (the reference keeps about 1 GB a topic, or 24 hours). A sweep deletes in bounded steps, each its own
transaction, so that a commit of new messages never waits long. A consumer that was away for longer than messages are kept finds
them gone and is told so (delivery/catchup.py).

A sweep costs what is to be deleted, not what there is. Every topic is due when its oldest message is, else a while after it was looked
at (`look_ms`, a day at most), and an index finds those that are due; a topic that is too large is one that this process has seen grow
(`LogReader.grown`). A look also forgets positions that are not used. A topic that had neither messages nor positions for as long as
an unused position is kept is deleted: clients name topics as they like, so nothing may stay of what was once named.

Of a log in PostgreSQL whole partitions go when all in them is too old (partitions.py), so a message may stay for an eighth of the age
longer; several nodes may sweep at a time, as each step looks again at what is there.

Invariants: `floor_offset` is raised in the same transaction that deletes messages, and `topic_floor` in the one that deletes topics, so
offsets never start again; `base_offset` is raised in the one that forgets a position, so a consumer that comes back without one is not told
that it has missed what it has read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import structlog
import trio

from aether_trio.log.partitions import drop_older
from aether_trio.log.programs import key_of, last_message, offset_of
from aether_trio.log.topic_log import TopicLog
from aether_trio.log.topic_state import TopicState
from aether_trio.storage.base import Execute, Fetch, Program, Row, StorageUnavailable

logger = structlog.get_logger("aether.retention")

ROWS_PER_STEP = 500
TOPICS_PER_STEP = 50
LOOK_MS = 24 * 3600 * 1000
"""A topic is looked at that often, if nothing asks for it earlier: so a limit that was lowered counts a day later at most."""
KEEP_MS = 7 * 24 * 3600 * 1000
"""How long an empty topic is kept where positions are kept for ever."""
RENEWALS = 4
"""Positions in use are written again that often within the time after which they would be forgotten."""
GROWTH = 16
"""A topic at its size limit is looked at whenever it has grown by that part of it."""
FOR_EVER_MS = -(2**62)
WRITER_AGE_MS = 24 * 3600 * 1000
"""A process's row in log_writers is of no use when its last group is that old."""


@dataclass(frozen=True, slots=True)
class RetentionLimits:
    """Messages older than `age_s` go, and the oldest of a topic with more than `topic_bytes`; so do positions that have not
    moved for `cursor_age_s` and lie before everything that is kept. 0 is unlimited."""

    age_s: float = 24 * 3600.0
    topic_bytes: int = 1024 * 1024 * 1024
    cursor_age_s: float = 7 * 24 * 3600.0
    sweep_s: float = 60.0


def expired_upto(topic_id: int, oldest_ms: int, topic_bytes: int) -> Program[tuple[int, int]]:
    """(largest offset that is to go from this topic in one step, its topic_bytes); zeros when nothing is."""
    rows: list[Row] = yield Fetch(
        "SELECT message_key, ts_ms, topic_bytes FROM messages WHERE message_key > $1 AND message_key < $2 "
        "ORDER BY message_key LIMIT $3",
        (key_of(topic_id, 0), key_of(topic_id + 1, 0), ROWS_PER_STEP),
    )
    if not rows:
        return 0, 0
    newest = yield from last_message(topic_id)
    assert newest is not None
    surplus = newest[1] - topic_bytes if topic_bytes else 0
    upto = (0, 0)
    for key, ts_ms, bytes_so_far in rows:
        if ts_ms >= oldest_ms and bytes_so_far > surplus:
            break
        upto = (offset_of(key), bytes_so_far)
    return upto


def expire(topic_id: int, oldest_ms: int, topic_bytes: int) -> Program[int]:
    """Delete one step of what is expired; returns how many messages went."""
    upto, bytes_so_far = yield from expired_upto(topic_id, oldest_ms, topic_bytes)
    if not upto:
        return 0
    yield Execute(
        "UPDATE topics SET floor_offset = $2, floor_bytes = $3 WHERE id = $1 AND floor_offset < $2",
        (topic_id, upto, bytes_so_far),
    )
    gone: int = yield Execute(
        "DELETE FROM messages WHERE message_key > $1 AND message_key <= $2",
        (key_of(topic_id, 0), key_of(topic_id, upto)),
    )
    return gone


def forget_cursors(topic_id: int, unused_since_ms: int, first_kept: int) -> Program[None]:
    """Delete positions that nothing depends on: unused, and before the first message that is still there.

    Most consumers without a position start at the topic's base, which is raised to where these were. The others (a user's windows)
    renew theirs when they connect, when they leave and now and then in between (delivery/subscription.py), so only those
    that were away for that long start anew.
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
class Bounds:
    """What one sweep goes by, in Unix milliseconds and bytes: what is older goes, but 0 `topic_bytes` is unlimited.

    `age_ms` is 0 where no message is deleted for its age. A topic without anything since `emptied_ms` is deleted. `due_ms` is how
    old a look is after which there is another one.
    """

    now_ms: int
    age_ms: int
    topic_bytes: int
    positions_ms: int
    emptied_ms: int
    look_ms: int

    @property
    def oldest_ms(self) -> int:
        """Messages from before this moment go."""
        return self.now_ms - self.age_ms if self.age_ms else FOR_EVER_MS


@dataclass(slots=True)
class Looked:
    """What came of a look at some topics: messages deleted, and the topics (id, name) that may be deleted."""

    gone: int
    empty: list[tuple[int, str]]


def look(topics: Sequence[Row], bounds: Bounds) -> Program[Looked]:
    """Do what is due for these topics, (id, name, emptied_ms) each. Those with more than one step of messages to delete stay due."""
    found = Looked(0, [])
    for topic_id, name, emptied_ms in topics:
        if found.gone >= ROWS_PER_STEP:
            break
        gone = yield from expire(topic_id, bounds.oldest_ms, bounds.topic_bytes)
        found.gone += gone
        if gone >= ROWS_PER_STEP:
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
    """The sweeper of one log."""

    def __init__(self, log: TopicLog, limits: RetentionLimits) -> None:
        self._log = log
        self._database = log.database
        self._clock = log.clock
        self._limits = limits
        self._renewed_ms = self._clock.now_ms()
        self.expired = 0
        self.deleted_topics = 0

    async def sweep_forever(self) -> None:
        """Sweep every `sweep_s`. Runs until cancelled; a failing engine only postpones it."""
        while True:
            await trio.sleep(self._limits.sweep_s)
            try:
                await self.sweep()
            except StorageUnavailable as error:
                logger.warning("retention postponed", reason=str(error))

    async def sweep(self) -> int:
        """Do what is due; returns how many messages went (about, where whole partitions go). Raises StorageUnavailable."""
        limits = self._limits
        now_ms = self._clock.now_ms()
        age_ms = int(limits.age_s * 1000)
        positions_ms = int(limits.cursor_age_s * 1000)
        if positions_ms and now_ms - self._renewed_ms >= positions_ms // RENEWALS:
            self._renewed_ms = now_ms
            await self._log.renew_positions()
        gone = 0
        if self._database.shared:
            gone = await drop_older(self._database, now_ms - age_ms if age_ms else FOR_EVER_MS)
            await self._database.execute("DELETE FROM log_writers WHERE updated_ms < $1", now_ms - WRITER_AGE_MS)
        bounds = Bounds(
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

    async def _look_at_due(self, bounds: Bounds) -> int:
        gone = 0
        while topics := await self._database.fetch(
            "SELECT id, name, emptied_ms FROM topics WHERE checked_ms < $1 ORDER BY checked_ms LIMIT $2",
            bounds.now_ms - bounds.look_ms,
            TOPICS_PER_STEP,
        ):
            looked = await self._database.run(lambda topics=topics: look(topics, bounds))  # type: ignore[misc]
            gone += looked.gone
            if looked.empty:
                self.deleted_topics += await self._log.delete_topics(looked.empty)
        return gone

    async def _look_at_grown(self, bounds: Bounds) -> int:
        grown = self._log.grown
        gone = 0
        while grown:
            name, state = next(iter(grown.items()))
            if bounds.topic_bytes:
                gone += await self._cut(state, bounds)
            grown.pop(name, None)
        return gone

    async def _cut(self, state: TopicState, bounds: Bounds) -> int:
        if state.tail_bytes <= bounds.topic_bytes:
            state.sweep_bytes = bounds.topic_bytes + 1
            return 0
        topic_id = state.topic_id
        state.sweep_bytes = state.tail_bytes + bounds.topic_bytes // GROWTH + 1
        if topic_id is None:
            return 0

        def cut() -> Program[int]:
            return expire(topic_id, FOR_EVER_MS, bounds.topic_bytes)

        gone = 0
        while (await self._database.read(lambda: expired_upto(topic_id, FOR_EVER_MS, bounds.topic_bytes)))[0]:
            gone += await self._database.run(cut)
        return gone
