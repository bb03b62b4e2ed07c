"""Messages lie in tables by time, which nodes make and retention drops."""

from __future__ import annotations

import itertools

import trio

from aether_trio.log.message_keys import key_of
from aether_trio.log.topic_log import LogLimits, open_log
from aether_trio.log.topic_sql import MESSAGES
from aether_trio.storage.base import Database
from aether_trio.storage.partitions import Partition, PartitionKeeper, partition_length_ms
from tests.helpers.clocks import ManualClock
from tests.helpers.engines import PostgresEngine
from tests.helpers.log_bench import Collector

HOUR_MS = 3_600_000
TOPIC = "ag::w::a::1"


def test_lengths() -> None:
    assert partition_length_ms(24 * 3600) == 3 * HOUR_MS
    assert partition_length_ms(10) == 60_000
    assert partition_length_ms(0) == 30 * 24 * HOUR_MS


async def test_a_partition_begins_where_the_one_before_it_ends(log_database: Database) -> None:
    async def ensure(now_ms: int, length: int) -> Partition:
        return await log_database.run(lambda: MESSAGES.ensure(now_ms, length))

    now = 1000 * HOUR_MS
    one = await ensure(now + 5, HOUR_MS)
    assert (one.lower_ms, one.upper_ms) == (now, now + HOUR_MS)
    assert await ensure(now + HOUR_MS - 1, HOUR_MS) == one
    # Another length, as after a change of the settings: what exists stays as it is.
    two = await ensure(now + HOUR_MS, 7 * HOUR_MS)
    assert (two.lower_ms, two.upper_ms) == (1001 * HOUR_MS, 1008 * HOUR_MS)
    # A clock that was set back, far or into the gap between two.
    before = await ensure(now - 1, HOUR_MS)
    assert before.upper_ms == now
    far = await ensure(-5, HOUR_MS)
    assert (far.lower_ms, far.upper_ms) == (-HOUR_MS, 0)
    found = await log_database.read(MESSAGES.partitions)
    assert found == sorted([one, two, before, far])
    assert all(left.upper_ms <= right.lower_ms for left, right in itertools.pairwise(found))


async def test_ten_nodes_that_need_the_same_partition_get_it(postgres_engine: PostgresEngine) -> None:
    async with postgres_engine.open("log") as database, trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(PartitionKeeper(database, MESSAGES, HOUR_MS).ensure, 5 * HOUR_MS + number)
    parts = f"SELECT count(*) FROM pg_inherits WHERE inhparent = '{postgres_engine.schema}.messages'::regclass"
    assert postgres_engine.rows(parts) == [(1,)]


async def test_messages_lie_in_their_time_and_go_with_it(log_database: Database) -> None:
    clock = ManualClock()
    author = Collector()
    async with open_log(log_database, clock, LogLimits(partition_ms=HOUR_MS)) as log:
        state = log.topics.ensure(TOPIC)
        for hour in range(5):
            for number in range(3):
                await log.wait_settled(log.append_nowait(state, b"%d.%d" % (hour, number), author))
            clock.advance(HOUR_MS)
        found = await log_database.read(MESSAGES.partitions)
        assert len(found) == 5
        assert await MESSAGES.drop_older(log_database, found[1].upper_ms - 1) == 3
        assert await MESSAGES.drop_older(log_database, found[1].upper_ms) == 3
        assert await MESSAGES.drop_older(log_database, found[1].upper_ms) == 0
        rows = await log.read(state, 0, rows=100, max_bytes=10_000)
        assert [row[0] for row in rows] == list(range(7, 16))  # across three tables, in order
        assert [row[0] for row in await log.read(state, 8, rows=4, max_bytes=10_000)] == [9, 10, 11, 12]
        assert [row[0] for row in await log.read(state, 8, rows=100, max_bytes=7)] == [9, 10]
        assert await log.read_at(state, [15, 3, 9]) == [(15, b"4.2"), (9, b"2.2")]
        assert author.reasons == []


async def test_a_partition_that_is_dropped_under_a_writer_is_made_again(log_database: Database) -> None:
    """A clock runs far behind: one group is refused, and said to be."""
    author = Collector()
    async with open_log(log_database, ManualClock(), LogLimits()) as log:
        state = log.topics.ensure(TOPIC)
        await log.wait_settled(log.append_nowait(state, b"1", author))
        assert await MESSAGES.drop_older(log_database, 2**50) == 1
        await log.wait_settled(log.append_nowait(state, b"2", author))
        assert len(author.reasons) == 1
        await log.wait_settled(log.append_nowait(state, b"3", author))
        assert len(author.reasons) == 1
        assert state.topic_id is not None
        assert await log_database.fetch("SELECT message_key, data FROM messages") == [(key_of(state.topic_id, 2), b"3")]
