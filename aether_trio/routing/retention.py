"""Retention: what is too old, or too much for its topic, leaves the log.

Age and size are limits per topic (the reference keeps about 1 GB a topic, or 24 hours). A sweep visits topics in order
of their ids and deletes in bounded steps, each its own transaction, so that a commit of new messages never waits long. A
consumer that was away for longer than messages are kept finds them gone and is told so (routing/catchup.py).

Of a log in PostgreSQL whole partitions go when all in them is too old (partitions.py), so a message may stay for an eighth of the age
longer; several nodes may sweep at a time, as each step looks again at what is there.

Invariant: `floor_offset` is raised in the same transaction that deletes, so a topic's offsets never start again.
"""

from __future__ import annotations

from dataclasses import dataclass

import structlog
import trio

from aether_trio.model.clock import Clock
from aether_trio.routing.partitions import drop_older
from aether_trio.routing.programs import key_of, last_message, offset_of
from aether_trio.storage.base import Database, Execute, Fetch, Program, Row, StorageUnavailable

logger = structlog.get_logger("aether.retention")

ROWS_PER_STEP = 500
TOPICS_PER_PAGE = 200
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


def forget_cursors(topic_id: int, unused_since_ms: int) -> Program[int]:
    """Delete positions that nothing depends on: unused, and before the first message that is still there.

    Most consumers without a position start at the oldest retained message, which is where these would have started too.
    The others (a user's windows) renew theirs when they connect and when they leave (routing/subscription.py), so only
    who has been away for that long starts anew.
    """
    first: list[Row] = yield Fetch(
        "SELECT message_key FROM messages WHERE message_key > $1 AND message_key < $2 ORDER BY message_key LIMIT 1",
        (key_of(topic_id, 0), key_of(topic_id + 1, 0)),
    )
    first_kept = offset_of(first[0][0]) if first else key_of(1, 0)
    gone: int = yield Execute(
        "DELETE FROM cursors WHERE topic_id = $1 AND updated_ms < $2 AND msg_offset < $3",
        (topic_id, unused_since_ms, first_kept),
    )
    return gone


class Retention:
    """The sweeper of one log database."""

    def __init__(self, database: Database, clock: Clock, limits: RetentionLimits) -> None:
        self._database = database
        self._clock = clock
        self._limits = limits
        self.expired = 0

    async def sweep_forever(self) -> None:
        """Sweep every `sweep_s`. Runs until cancelled; a failing engine only postpones it."""
        while True:
            await trio.sleep(self._limits.sweep_s)
            try:
                await self.sweep()
            except StorageUnavailable as error:
                logger.warning("retention postponed", reason=str(error))

    async def sweep(self) -> int:
        """Look at everything once; returns how many messages went (about, where whole partitions go)."""
        limits = self._limits
        now_ms = self._clock.now_ms()
        oldest_ms = now_ms - int(limits.age_s * 1000) if limits.age_s else FOR_EVER_MS
        if self._database.shared:
            gone = await self._sweep_shared(oldest_ms)
            await self._database.execute("DELETE FROM log_writers WHERE updated_ms < $1", now_ms - WRITER_AGE_MS)
        else:
            gone = await self._sweep_topics("SELECT id FROM topics WHERE id > $1 ORDER BY id LIMIT $2", oldest_ms)
        if limits.cursor_age_s:
            await self._forget_cursors(now_ms - int(limits.cursor_age_s * 1000))
        self.expired += gone
        return gone

    async def _sweep_shared(self, oldest_ms: int) -> int:
        gone = await drop_older(self._database, oldest_ms)
        if self._limits.topic_bytes:
            # `floor_bytes` is all that was ever appended: most topics have never had too much.
            query = "SELECT id FROM topics WHERE id > $1 AND floor_bytes > $3 ORDER BY id LIMIT $2"
            gone += await self._sweep_topics(query, FOR_EVER_MS, self._limits.topic_bytes)
        return gone

    async def _sweep_topics(self, query: str, oldest_ms: int, *args: int) -> int:
        gone = last_id = 0
        while topics := await self._database.fetch(query, last_id, TOPICS_PER_PAGE, *args):
            for (last_id,) in topics:
                gone += await self._sweep_topic(last_id, oldest_ms)
        return gone

    async def _sweep_topic(self, topic_id: int, oldest_ms: int) -> int:
        gone = 0
        topic_bytes = self._limits.topic_bytes
        while (await self._database.read(lambda: expired_upto(topic_id, oldest_ms, topic_bytes)))[0]:
            gone += await self._database.run(lambda: expire(topic_id, oldest_ms, topic_bytes))
        return gone

    async def _forget_cursors(self, unused_since_ms: int) -> None:
        stale = await self._database.fetch(
            "SELECT DISTINCT topic_id FROM cursors WHERE updated_ms < $1 ORDER BY topic_id", unused_since_ms
        )

        def forget(topic_ids: list[int]) -> Program[None]:
            for topic_id in topic_ids:
                yield from forget_cursors(topic_id, unused_since_ms)

        for start in range(0, len(stale), TOPICS_PER_PAGE):
            page = [row[0] for row in stale[start : start + TOPICS_PER_PAGE]]
            await self._database.run(lambda page=page: forget(page))  # type: ignore[misc]
