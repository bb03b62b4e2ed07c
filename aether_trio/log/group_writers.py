"""Give a commit group of messages its offsets and write it (SQLite, PostgreSQL).

`LocalGroupWriter` counts offsets in memory, as no other process gives them out (SQLite); it never
writes a topic's counter. `PostgresGroupWriter` is told the offsets by the database
(topic_sql_postgres.py). The log (topic_log.py) uses both alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Final, NamedTuple, Protocol

import structlog
import trio

from aether_trio.log import topic_sql, topic_sql_postgres
from aether_trio.log.message_keys import key_of
from aether_trio.log.pushed_messages import split_into_payloads
from aether_trio.log.topic_cache import CachedTopic
from aether_trio.log.topic_sql import TopicSql
from aether_trio.log.topic_sql_postgres import PAYLOADS, CommitGroup, Push
from aether_trio.storage.base import CommitUnknown, Database, Program, StorageUnavailable, Value
from aether_trio.storage.partitions import PartitionKeeper

logger = structlog.get_logger("aether.log")

Message = tuple[CachedTopic, bytes]
Cursors = Sequence[topic_sql.CursorRow]
Numbers = Sequence[topic_sql.PublisherRow]

SMALL_GROUP_ROWS: Final = 64
"""SQLite writes a group of so many rows in the trio thread, some 0.5 ms, and no larger one."""
SMALL_GROUP_BYTES: Final = 256 * 1024

UNSURE_PAUSE_S: Final = 0.1
"""Pause before a group is sent again while it is not known whether it was written."""

QUICK_S: Final = 0.02
"""A group is pushed only if the group before it took no longer. A transaction with a NOTIFY commits
alone in the whole server: when commits are slow, or many nodes append, messages must not queue for
that."""
PUSH_AGAIN_S: Final = 5.0
"""After a group with a push has failed, groups are written without one for that long."""


class PushCounts(NamedTuple):
    """How many (message, node) were pushed, in how many payloads."""

    messages: int
    payloads: int


class GroupAnswer(NamedTuple):
    """The offsets of a committed group, None when they are not known.

    `pushed` is None if no node was notified of the group.
    """

    offsets: list[int] | None
    pushed: PushCounts | None = None


class GroupWriter(Protocol):
    """Commits groups of messages and cursors; all topics have ids by then."""

    sql: TopicSql
    unsure: bool
    """Whether the writer does not know now whether its last group was written, and finds it out."""

    async def append(
        self,
        messages: Sequence[Message],
        now_ms: int,
        cursors: Cursors,
        numbers: Numbers,
        is_void: Callable[[], bool],
        push_from: int = 0,
    ) -> GroupAnswer:
        """Commit a group; if it is small, push it to the nodes that listen to its topics.

        `push_from` is the number of this node, 0 to push nothing. A group that `is_void` is not
        written. Raises StorageUnavailable or TopicsDeleted when nothing was written, CommitUnknown
        (a StorageUnavailable) when that is not known.
        """


class TopicsDeleted(Exception):
    """Raised when another node has deleted topics of a group: make them again."""

    def __init__(self, topic_ids: frozenset[int]) -> None:
        super().__init__(f"topics {sorted(topic_ids)} were deleted")
        self.topic_ids = topic_ids


class GroupVoided(StorageUnavailable):
    """Raised when a group was not written, as the node had lost its lease before."""


@contextmanager
def nothing_written() -> Iterator[None]:
    """Turn CommitUnknown into StorageUnavailable, for writes that precede a group."""
    try:
        yield
    except CommitUnknown as error:
        raise StorageUnavailable(str(error)) from error


class LocalGroupWriter:
    """Writes groups to a database that no other process writes (SQLite)."""

    sql: TopicSql = topic_sql
    unsure = False

    def __init__(self, database: Database) -> None:
        self._database = database

    async def append(
        self,
        messages: Sequence[Message],
        now_ms: int,
        cursors: Cursors,
        numbers: Numbers,
        is_void: Callable[[], bool],
        push_from: int = 0,
    ) -> GroupAnswer:
        offsets: list[int] = []
        flat: list[Value] = []
        size = 0
        for topic, frame in messages:
            assert topic.topic_id is not None
            topic.assigned += 1
            topic.assigned_bytes += len(frame)
            offsets.append(topic.assigned)
            flat += (key_of(topic.topic_id, topic.assigned), now_ms, topic.assigned_bytes, frame)
            size += len(frame)

        def program() -> Program[None]:
            return topic_sql.append_messages(flat, cursors, numbers)

        if len(messages) + len(cursors) + len(numbers) <= SMALL_GROUP_ROWS and size <= SMALL_GROUP_BYTES:
            await self._database.run_small(program, gathered=True)
        else:
            await self._database.run(program)
        return GroupAnswer(offsets)


class PostgresGroupWriter:
    """Writes groups to a database that other nodes write as well.

    A group whose COMMIT was not answered is sent again until the database says whether it has the
    group: the group's number is in the writer's row of `log_writers`, which is written with the
    group. So a lost answer neither loses nor repeats a message. When the group becomes void
    meanwhile, its number is taken instead. Then a late copy of the group has no effect, and the
    answer says whether the group was written.
    """

    sql: TopicSql = topic_sql_postgres

    def __init__(self, database: Database, partition_ms: int) -> None:
        self._database = database
        self._partitions = PartitionKeeper(database, topic_sql.MESSAGES, partition_ms)
        self._id = 0
        self._groups = 0
        self._last_took_s = 0.0
        self._push_again_at = 0.0
        self.unsure = False

    async def append(
        self,
        messages: Sequence[Message],
        now_ms: int,
        cursors: Cursors,
        numbers: Numbers,
        is_void: Callable[[], bool],
        push_from: int = 0,
    ) -> GroupAnswer:
        rows = [(topic.topic_id, frame) for topic, frame in messages if topic.topic_id is not None]
        assert len(rows) == len(messages)
        try:
            with nothing_written():
                if not self._id:
                    [[self._id]] = await self._database.write(topic_sql_postgres.new_writer(now_ms))
                if rows:
                    await self._partitions.ensure(now_ms)
            self._groups += 1
            push = self._push(messages, push_from) if push_from and rows else None
            group = CommitGroup(self._id, self._groups, now_ms, rows, cursors, numbers, push)
            answer = await self._write_timed(group, is_void)
        except StorageUnavailable:
            self._partitions.doubt()
            raise
        if not answer:
            return GroupAnswer(None)
        last = dict(answer)
        if 0 not in last:
            raise TopicsDeleted(frozenset(last))
        offsets = []
        for (topic_id, frame), (topic, _) in zip(rows, messages, strict=True):
            last[topic_id] += 1
            offsets.append(last[topic_id])
            topic.assigned = last[topic_id]
            topic.assigned_bytes += len(frame)
        payloads = last.get(PAYLOADS)
        return GroupAnswer(offsets, None if payloads is None else PushCounts(last[0], payloads))

    def _push(self, messages: Sequence[Message], node_id: int) -> Push | None:
        if self._last_took_s > QUICK_S or trio.current_time() < self._push_again_at:
            return None
        topics = [topic.name for topic, _ in messages]
        parts = split_into_payloads(topics, [frame for _, frame in messages])
        return None if parts is None else Push(node_id, topics, parts)

    async def _write_timed(self, group: CommitGroup, is_void: Callable[[], bool]) -> list[tuple[int, int]]:
        """Write a group; without its push if the server refuses it with the push."""
        began = trio.current_time()
        try:
            return await self._write(group, is_void)
        except StorageUnavailable:
            self._push_again_at = trio.current_time() + PUSH_AGAIN_S
            raise
        except Exception as error:
            if group.push is None:
                raise
            # Nothing was written: the queue of notifications is full, or the messages are refused.
            logger.warning("PostgreSQL refused to push messages to other nodes", reason=str(error))
            self._push_again_at = trio.current_time() + PUSH_AGAIN_S
            return await self._write(replace(group, push=None), is_void)
        finally:
            self._last_took_s = trio.current_time() - began

    async def _write(self, group: CommitGroup, is_void: Callable[[], bool]) -> list[tuple[int, int]]:
        """Send a group until it is known whether it was written; its senders wait."""
        statement = topic_sql_postgres.append_group(group)
        try:
            while True:
                try:
                    # No checkpoint between `is_void` and the write, so the write is fenced by the
                    # lease that it asked about.
                    if is_void():
                        if self.unsure and await self._was_written(group):
                            return []
                        raise GroupVoided("this gateway had lost its lease in the cluster")
                    answer: list[tuple[int, int]] = await self._database.write(statement)
                    return answer
                except GroupVoided:
                    raise
                except CommitUnknown:
                    if not self.unsure:
                        logger.warning(
                            "it is not known whether a group of messages was committed; the gateway asks again"
                        )
                    self.unsure = True
                except StorageUnavailable:
                    if not self.unsure:
                        raise
                await trio.sleep(UNSURE_PAUSE_S)
        finally:
            self.unsure = False

    async def _was_written(self, group: CommitGroup) -> bool:
        """Bar a commit group from being written later; return whether it was written."""
        rows: list[tuple[int]] = await self._database.write(topic_sql_postgres.close_group(group.writer, group.number))
        self._groups = group.number + 1  # this number may be the one that was taken
        return rows == [(group.number,)]


def open_group_writer(database: Database, partition_ms: int) -> GroupWriter:
    """Make the writer of commit groups; `partition_ms` is for PostgreSQL."""
    return PostgresGroupWriter(database, partition_ms) if database.shared else LocalGroupWriter(database)
