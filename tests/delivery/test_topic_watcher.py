"""Looking at a topic from outside."""

from __future__ import annotations

from contextlib import aclosing

import pytest
import trio

from aether_trio.delivery.ephemeral_topics import EphemeralTopics
from aether_trio.delivery.topic_watcher import TopicWatcher
from aether_trio.model.errors import RequestError
from tests.helpers.clocks import VirtualClock
from tests.helpers.inline import InlineDatabase
from tests.helpers.log_bench import Bench

TOPIC = "ag::w::a::1"


async def watch(tail: TopicWatcher, topic: str, from_offset: int | None, into: list[tuple[int, bytes]]) -> None:
    async with aclosing(tail.open(topic, from_offset)) as entries:
        async for offset, _, frame in entries:
            into.append((offset, frame))


@pytest.mark.parametrize(("from_offset", "first"), [(None, 4), (0, 1), (1, 1), (3, 3), (4, 4)])
async def test_a_tail_starts_where_told_and_goes_on_live(bench: Bench, from_offset: int | None, first: int) -> None:
    tail, entries = (
        TopicWatcher(bench.log, EphemeralTopics(), VirtualClock(trio.current_time)),
        list[tuple[int, bytes]](),
    )
    await bench.publish(TOPIC, b"1", b"2", b"3")
    bench.nursery.start_soon(watch, tail, TOPIC, from_offset, entries)
    await trio.testing.wait_all_tasks_blocked()
    await bench.publish(TOPIC, b"4")
    await bench.publish(TOPIC, b"5", b"6")
    assert entries == [(number, b"%d" % number) for number in range(first, 7)]


@pytest.mark.parametrize(("from_offset", "expected"), [(None, []), (0, [1, 2, 3]), (3, [3]), (4, []), (99, [])])
async def test_a_tail_that_does_not_follow_ends(bench: Bench, from_offset: int | None, expected: list[int]) -> None:
    tail = TopicWatcher(bench.log, EphemeralTopics(), VirtualClock(trio.current_time))
    await bench.publish(TOPIC, b"1", b"2", b"3")
    async with aclosing(tail.open(TOPIC, from_offset, follow=False)) as entries:
        assert [offset async for offset, _, _ in entries] == expected
    async with aclosing(tail.open("pg::w", 1, follow=False)) as entries:
        assert [offset async for offset, _, _ in entries] == []
    assert bench.log.topics.ensure(TOPIC).forgettable


async def test_messages_that_come_meanwhile_are_not_followed(bench: Bench) -> None:
    tail = TopicWatcher(bench.log, EphemeralTopics(), VirtualClock(trio.current_time))
    await bench.publish(TOPIC, b"1", b"2")
    seen = []
    async with aclosing(tail.open(TOPIC, 1, follow=False)) as entries:
        async for offset, _, _ in entries:
            seen.append(offset)
            await bench.publish(TOPIC, b"more")
    assert seen == [1, 2]


async def test_a_tail_leaves_nothing_behind(bench: Bench) -> None:
    tail = TopicWatcher(bench.log, EphemeralTopics(), VirtualClock(trio.current_time))
    await bench.publish(TOPIC, b"1")
    async with aclosing(tail.open(TOPIC, 1)) as entries:
        assert await anext(entries) == (1, bench.log.clock.now_ms(), b"1")
    assert bench.log.topics.ensure(TOPIC).forgettable


async def test_a_tail_does_not_skip_what_comes_while_it_finds_nothing(bench: Bench, database: InlineDatabase) -> None:
    tail, entries = (
        TopicWatcher(bench.log, EphemeralTopics(), VirtualClock(trio.current_time)),
        list[tuple[int, bytes]](),
    )
    await bench.publish(TOPIC, b"1", b"2")
    await database.execute("DELETE FROM messages")
    database.after_read.close()
    bench.nursery.start_soon(watch, tail, TOPIC, 1, entries)
    if database.shared:  # otherwise the topic in memory is all there is to know
        await database.after_read.arrival()
        database.after_read.open()
        database.after_read.close()
    await database.after_read.arrival()
    await bench.publish(TOPIC, b"3")
    database.after_read.open()
    await trio.testing.wait_all_tasks_blocked()
    assert entries == [(3, b"3")]


async def test_a_tail_of_a_ephemeral_topic_numbers_what_passes_by(bench: Bench) -> None:
    ephemeral_topics, entries = EphemeralTopics(), list[tuple[int, bytes]]()
    tail = TopicWatcher(bench.log, ephemeral_topics, VirtualClock(trio.current_time))
    ephemeral_topics.publish("pg::w", "a", "", b"too early")
    bench.nursery.start_soon(watch, tail, "pg::w", None, entries)
    await trio.testing.wait_all_tasks_blocked()
    ephemeral_topics.publish("pg::w", "a", "", b"1")
    await trio.testing.wait_all_tasks_blocked()
    ephemeral_topics.publish("pg::w", "a", "us::other", b"2")
    await trio.testing.wait_all_tasks_blocked()
    assert entries == [(1, b"1"), (2, b"2")]


async def test_what_is_no_topic_is_refused_at_once(bench: Bench) -> None:
    tail = TopicWatcher(bench.log, EphemeralTopics(), VirtualClock(trio.current_time))
    with pytest.raises(RequestError, match="ERR_INVALID_TOPIC"):
        tail.open("nonsense", None)
