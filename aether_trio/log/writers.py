"""How a group of messages gets its offsets and comes into the database, when it is ours alone and when it is not.

A `SoleWriter` counts in memory, as nobody else gives out offsets (a SQLite file): a topic's counter is never written. A `SharedWriter`
is told the offsets by the database (PostgreSQL, shared_programs.py). The log (log.py) does not care which one it has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, Protocol

import structlog
import trio

from aether_trio.log import programs, shared_programs
from aether_trio.log.partitions import PartitionKeeper
from aether_trio.log.programs import TopicFacts
from aether_trio.log.shared_programs import CommitGroup
from aether_trio.log.topic_state import TopicState
from aether_trio.storage.base import CommitUnknown, Database, Program, Row, StorageUnavailable, Value

logger = structlog.get_logger("aether.log")

Message = tuple[TopicState, bytes]

UNSURE_PAUSE_S: Final = 0.1


class Programs(Protocol):
    """The programs of which a shared database has its own."""

    def create_topics(self, names: Sequence[str], now_ms: int) -> Program[dict[str, TopicFacts]]: ...

    def delete_topics(self, topic_ids: Sequence[int]) -> Program[list[int]]: ...

    def many_topic_facts(self, wanted: Sequence[tuple[str, str | None]]) -> Program[list[TopicFacts]]: ...

    def read_page(self, topic_id: int, after: int, upto: int, rows: int, max_bytes: int) -> Program[list[Row]]: ...

    def read_some(self, topic_id: int, offsets: Sequence[int]) -> Program[list[Row]]: ...


class Writer(Protocol):
    """Writes one group after another; the topics of all its messages have ids by then."""

    programs: Programs
    unsure: bool
    """Whether it is not known just now whether a group was written, and the writer tries to find out."""

    async def append(
        self,
        messages: Sequence[Message],
        now_ms: int,
        cursors: Sequence[tuple[int, str, int, int]],
        numbers: Sequence[tuple[str, bytes, bytes, int]],
        is_void: Callable[[], bool],
    ) -> list[int] | None:
        """Commit a group; the offsets of its messages. None: it is committed, and its offsets are not known.

        A group that `is_void` is not written (any more). Raises StorageUnavailable; then nothing was written, unless it is CommitUnknown.
        Raises TopicsGone; then nothing was written.
        """
        ...


class TopicsGone(Exception):
    """Another node has deleted these topics: they are to be made again before the group is written."""

    def __init__(self, topic_ids: frozenset[int]) -> None:
        super().__init__(f"topics {sorted(topic_ids)} were deleted")
        self.topic_ids = topic_ids


class GroupVoid(StorageUnavailable):
    """The group was not written, as it had become void."""


@contextmanager
def nothing_written() -> Iterator[None]:
    """Around what comes before a group: what becomes of that may be unknown, but of the group it is known."""
    try:
        yield
    except CommitUnknown as error:
        raise StorageUnavailable(str(error)) from error


class SoleWriter:
    """See the module docstring. A refused group's offsets are taken back by the log."""

    programs: Programs = programs
    unsure = False

    def __init__(self, database: Database) -> None:
        self._database = database

    async def append(
        self,
        messages: Sequence[Message],
        now_ms: int,
        cursors: Sequence[tuple[int, str, int, int]],
        numbers: Sequence[tuple[str, bytes, bytes, int]],
        is_void: Callable[[], bool],
    ) -> list[int]:
        """See Writer."""
        offsets: list[int] = []
        flat: list[Value] = []
        for state, frame in messages:
            assert state.topic_id is not None
            state.assigned += 1
            state.assigned_bytes += len(frame)
            offsets.append(state.assigned)
            flat += (programs.key_of(state.topic_id, state.assigned), now_ms, state.assigned_bytes, frame)
        await self._database.run(lambda: programs.append_messages(flat, cursors, numbers))
        return offsets


class SharedWriter:
    """See the module docstring.

    A group whose COMMIT was not answered is sent again until the database says whether it has it: that number is in its row of
    `log_writers`, which is written with the group. So a lost answer is neither a lost nor a repeated message. When the group has become
    void meanwhile, its number is taken instead, by which a late copy of it has no effect, and it is known whether it had one.
    """

    programs: Programs = shared_programs

    def __init__(self, database: Database, partition_ms: int) -> None:
        self._database = database
        self._partitions = PartitionKeeper(database, partition_ms)
        self._id = 0
        self._groups = 0
        self.unsure = False

    async def append(
        self,
        messages: Sequence[Message],
        now_ms: int,
        cursors: Sequence[tuple[int, str, int, int]],
        numbers: Sequence[tuple[str, bytes, bytes, int]],
        is_void: Callable[[], bool],
    ) -> list[int] | None:
        """See Writer."""
        rows = [(state.topic_id, frame) for state, frame in messages if state.topic_id is not None]
        assert len(rows) == len(messages)
        try:
            with nothing_written():
                if not self._id:
                    [[self._id]] = await self._database.write(shared_programs.new_writer(now_ms))
                if rows:
                    await self._partitions.ensure(now_ms)
            self._groups += 1
            group = CommitGroup(self._id, self._groups, now_ms, rows, cursors, numbers)
            answer = await self._write(group, is_void)
        except StorageUnavailable:
            self._partitions.doubt()
            raise
        if not answer:
            return None
        last = dict(answer)
        if 0 not in last:
            raise TopicsGone(frozenset(last))
        offsets = []
        for (topic_id, frame), (state, _) in zip(rows, messages, strict=True):
            last[topic_id] += 1
            offsets.append(last[topic_id])
            state.assigned = last[topic_id]
            state.assigned_bytes += len(frame)
        return offsets

    async def _write(self, group: CommitGroup, is_void: Callable[[], bool]) -> list[tuple[int, int]]:
        """However long it takes to be sure: who was refused what is in the log would send it again. Senders wait meanwhile."""
        statement = shared_programs.append_group(group)
        try:
            while True:
                try:
                    # No checkpoint between the question and the write, which is then fenced by the lease that the answer was about.
                    if is_void():
                        if self.unsure and await self._was_written(group):
                            return []
                        raise GroupVoid("this gateway had lost its lease")
                    answer: list[tuple[int, int]] = await self._database.write(statement)
                    return answer
                except GroupVoid:
                    raise
                except CommitUnknown:
                    if not self.unsure:
                        logger.warning("it is not known whether a group was committed; asking until it is")
                    self.unsure = True
                except StorageUnavailable:
                    if not self.unsure:
                        raise
                await trio.sleep(UNSURE_PAUSE_S)
        finally:
            self.unsure = False

    async def _was_written(self, group: CommitGroup) -> bool:
        """Whether it was; if not, it never will be. May be asked again. Raises StorageUnavailable."""
        rows: list[tuple[int]] = await self._database.write(shared_programs.close_group(group.writer, group.number))
        self._groups = group.number + 1  # this number may be the one that was taken
        return rows == [(group.number,)]


def open_writer(database: Database, partition_ms: int) -> Writer:
    """The right one for this database. `partition_ms` is for a shared one (partitions.py)."""
    return SharedWriter(database, partition_ms) if database.shared else SoleWriter(database)
