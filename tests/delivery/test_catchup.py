"""A lagging subscription catches up in order, in bounded memory, without spinning."""

from __future__ import annotations

import pytest
import trio

from aether_trio.delivery.catchup import CatchUp
from aether_trio.delivery.subscription import Subscription
from aether_trio.log.topic_cache import CachedTopic
from aether_trio.storage.base import Row, StorageUnavailable
from tests.helpers.core import pump
from tests.helpers.inline import InlineDatabase
from tests.helpers.log_bench import SMALL, Bench, Reader

TOPIC = "ag::w::a::1"


def numbers(start: int, end: int) -> list[bytes]:
    return [b"%d" % number for number in range(start, end)]


async def test_a_subscription_at_the_tail_reads_nothing(bench: Bench) -> None:
    await bench.publish(TOPIC, *numbers(0, 5))
    reader = Reader()
    first = await bench.subscribe(TOPIC, reader, from_oldest=False)
    await trio.testing.wait_all_tasks_blocked()
    before = bench.database.reads
    subscription = await bench.subscribe(TOPIC, reader, from_oldest=False)
    opened = before + bench.database.shared  # other nodes may have written
    for one in (first, subscription):
        assert not one.lagging
        one.look()
        assert not one.lagging
    await trio.testing.wait_all_tasks_blocked()
    assert bench.database.reads == opened
    assert reader.frames == []
    await bench.publish(TOPIC, b"live")
    assert bench.database.reads == opened
    assert reader.frames == [b"live"] * 2


async def test_a_large_message_behind_a_small_one_does_not_make_it_spin(bench: Bench) -> None:
    reader = Reader(paused=True)
    await bench.subscribe(TOPIC, reader, "me")
    large = b"x" * SMALL.delivery_bytes
    await bench.log.wait_settled(bench.append(TOPIC, b"small", large, b"last"))
    before = bench.database.reads
    await pump(1000)
    assert bench.database.reads <= before + 1
    reader.resume()
    await trio.testing.wait_all_tasks_blocked()
    assert reader.frames == [b"small", large, b"last"]


async def test_messages_committed_while_a_page_is_read_are_not_skipped(bench: Bench, database: InlineDatabase) -> None:
    """Retention took all that the page asked for, and nothing of what came since."""
    await bench.publish(TOPIC, *numbers(0, 5))
    await database.execute("DELETE FROM messages")  # as retention does
    reader = Reader()
    database.after_read.close()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.subscribe, TOPIC, reader, "me")
        await database.after_read.arrival()
        database.after_read.open()
        database.after_read.close()
        await database.after_read.arrival()  # the page
        await bench.publish(TOPIC, *numbers(5, 8))
        database.after_read.open()
    await trio.testing.wait_all_tasks_blocked()
    assert reader.frames == numbers(5, 8)
    assert sum(count for _, count in reader.gaps) == 5


async def test_a_gap_is_told_once_with_its_size(bench: Bench, database: InlineDatabase) -> None:
    await bench.publish(TOPIC, *numbers(0, 7))
    await database.execute("DELETE FROM messages")  # as retention does
    await bench.publish(TOPIC, b"x" * SMALL.delivery_bytes, b"last")
    reader = Reader(paused=True)
    reader.outbox.try_deliver(b"in the way", await bench.subscribe("ga::w", reader), 1)
    await bench.subscribe(TOPIC, reader, "me")
    await pump(100)
    reader.resume()
    await trio.testing.wait_all_tasks_blocked()
    assert reader.frames == [b"in the way", b"x" * SMALL.delivery_bytes, b"last"]
    assert reader.gaps == [(TOPIC, 7)]


async def test_a_subscription_closed_while_a_page_is_read_gets_nothing(bench: Bench, database: InlineDatabase) -> None:
    await bench.publish(TOPIC, *numbers(0, 5))
    reader = Reader()
    subscription = await bench.subscribe(TOPIC, reader, "me")
    database.after_read.close()
    await database.after_read.arrival()
    subscription.close()
    subscription._on_lag.__self__.remove(subscription)  # type: ignore[attr-defined]
    database.after_read.open()
    await trio.testing.wait_all_tasks_blocked()
    assert reader.frames == []
    assert bench.log.cursors.unwritten(subscription.state, "me") is None


async def test_a_database_that_cannot_be_read_is_tried_again(bench: Bench, database: InlineDatabase) -> None:
    await bench.publish(TOPIC, *numbers(0, 5))
    reader = Reader()
    await bench.subscribe(TOPIC, reader, "me")
    database.failing = True
    await trio.sleep(3)
    assert reader.frames == []
    database.failing = False
    await trio.sleep(3)
    assert reader.frames == numbers(0, 5)


async def test_a_topic_that_cannot_be_read_delays_no_other_one_and_is_not_read_when_it_is_closed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged, intact = TOPIC, "ag::w::a::2"
    for topic in (damaged, intact):
        await bench.publish(topic, *numbers(0, 5))
    reader, read, failed = Reader(), bench.log.read, 0

    async def read_intact(topic: CachedTopic, after: int, *, rows: int, max_bytes: int) -> list[Row]:
        nonlocal failed
        if topic.name == damaged:
            failed += 1
            raise StorageUnavailable("a damaged page")
        return await read(topic, after, rows=rows, max_bytes=max_bytes)

    monkeypatch.setattr(bench.log, "read", read_intact)
    catch_up = CatchUp(bench.log, reader.outbox, bench.nursery, reader.noted)
    first, second = [
        Subscription(topic, reader.outbox, bench.log.cursors, "me", 0, catch_up.add)
        for topic, _ in await bench.log.load([(damaged, "me"), (intact, "me")])
    ]
    first.open()
    second.open()
    await trio.sleep(3)
    assert reader.frames == numbers(0, 5)
    assert failed > 1
    first.close()
    catch_up.remove(first)
    await trio.sleep(3)
    before = failed
    await trio.sleep(3)
    assert failed == before


async def test_many_slow_subscriptions_of_one_outbox_share_it(bench: Bench) -> None:
    topics = [f"ag::w::a::{number}" for number in range(5)]
    for topic in topics:
        await bench.publish(topic, *[b"%s %050d" % (topic.encode(), number) for number in range(200)])
    reader = Reader(paused=True)
    for topic in topics:
        await bench.subscribe(topic, reader, "me")
    await pump(50)
    for _ in range(400):
        reader.resume()
        reader.pause()
        await pump(10)
    assert reader.highest <= SMALL.delivery_bytes
    for topic in topics:
        mine = [frame for frame in reader.frames if frame.startswith(topic.encode() + b" ")]
        assert mine == [b"%s %050d" % (topic.encode(), number) for number in range(200)]
