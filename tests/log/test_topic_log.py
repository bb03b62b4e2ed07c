"""The topic log: committed before offered, in order, refused whole, recovering."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from aether_trio.log.topic_log import LogLimits
from tests.helpers.core import deadlock_is_an_error, pump
from tests.helpers.inline import InlineDatabase
from tests.helpers.log_bench import Bench, Reader, open_bench

TOPIC = "ag::w::a::1"


def numbers(start: int, end: int) -> list[bytes]:
    return [b"%d" % number for number in range(start, end)]


def stored(database: InlineDatabase) -> list[bytes]:
    return [row[0] for row in database.query("SELECT data FROM messages ORDER BY message_key")]


async def test_no_subscriber_sees_a_message_before_it_is_durable(bench: Bench, database: InlineDatabase) -> None:
    reader = Reader()
    await bench.subscribe(TOPIC, reader)
    database.after_write.close()
    sequence = bench.append(TOPIC, b"x")
    await database.after_write.arrival()
    await pump()
    assert stored(database) == []  # the topic's row is made first
    database.after_write.open()
    database.before_write.close()
    await database.before_write.arrival()
    assert reader.frames == []
    assert not bench.log.is_settled(sequence)
    database.before_write.open()
    await bench.log.wait_settled(sequence)
    await pump()
    assert reader.frames == stored(database) == [b"x"]


async def test_while_a_group_is_written_the_next_one_gathers(bench: Bench, database: InlineDatabase) -> None:
    await bench.publish(TOPIC, b"first")
    database.before_write.close()
    bench.append(TOPIC, b"second")
    await database.before_write.arrival()
    writes = database.writes
    for number in numbers(0, 500):
        bench.append(TOPIC, number)
    database.before_write.open()
    await bench.log.drain()
    assert database.writes == writes + 2
    assert stored(database) == [b"first", b"second", *numbers(0, 500)]


async def test_groups_are_bounded(database: InlineDatabase) -> None:
    limits = LogLimits(group_messages=10, group_bytes=1000)
    async with deadlock_is_an_error(), open_bench(database, limits) as bench:
        bench.append(TOPIC, *[b"x"] * 25)
        await bench.log.drain()
        assert bench.log.statistics().groups == 3
        bench.append(TOPIC, *[b"x" * 600] * 4, b"y" * 5000, b"z")
        await bench.log.drain()
        assert bench.log.statistics().groups == 3 + 4  # two and two, the large one alone, the last
    assert len(stored(database)) == 31


async def test_a_group_that_failed_and_was_written_stops_no_log(bench: Bench, database: InlineDatabase) -> None:
    reader = Reader()
    await bench.subscribe(TOPIC, reader, "me")
    await bench.publish(TOPIC, *numbers(0, 3))
    database.denied_writes = 1
    await bench.publish(TOPIC, *numbers(3, 6))
    assert bench.refusals == ["disk I/O error"] * 3
    await bench.publish(TOPIC, *numbers(6, 9))
    await pump()
    # Its senders will send again; what is in the log is delivered all the same, in its place.
    assert reader.frames == stored(database) == numbers(0, 9)
    state = bench.log.topics.ensure(TOPIC)
    assert (state.tail, state.assigned) == (9, 9)


async def test_a_topic_whose_first_message_fails_starts_at_one(bench: Bench, database: InlineDatabase) -> None:
    database.fail_writes = 1
    await bench.publish(TOPIC, b"lost")
    database.before_write.close()
    bench.append(TOPIC, b"lost too")  # the row of the topic is made, the message is not
    await database.before_write.arrival()
    database.before_write.open()
    database.before_write.close()
    await database.before_write.arrival()
    database.fail_writes = 1
    database.before_write.open()
    await bench.log.drain()
    assert len(bench.refusals) == 2
    await bench.publish(TOPIC, b"kept")
    assert [row[0] & 0xFFFF for row in database.query("SELECT message_key FROM messages")] == [1]


async def test_sequence_numbers_settle_in_order_and_wake_their_waiters(bench: Bench, database: InlineDatabase) -> None:
    woken: list[int] = []

    async def wait(sequence: int) -> None:
        await bench.log.wait_settled(sequence)
        woken.append(sequence)

    await bench.publish(TOPIC, b"x")
    async with trio.open_nursery() as nursery:
        database.before_write.close()
        first = bench.append(TOPIC, b"1")
        nursery.start_soon(wait, first)
        await database.before_write.arrival()
        second = bench.append(TOPIC, b"2")
        nursery.start_soon(wait, second)
        await pump()
        assert woken == []
        database.before_write.open()
        database.before_write.close()
        await database.before_write.arrival()
        await pump()
        assert woken == [first]
        database.before_write.open()
    assert woken == [first, second]
    await bench.log.wait_settled(first)  # long settled


@pytest.mark.parametrize("limits", [LogLimits(pending_bytes=100), LogLimits(pending_messages=10)])
async def test_room_is_bounded_and_comes_back(database: InlineDatabase, limits: LogLimits) -> None:
    async with deadlock_is_an_error(), open_bench(database, limits) as bench:
        assert bench.log.has_room
        database.before_write.close()
        bench.append(TOPIC, *[b"x" * 10] * 10)
        assert not bench.log.has_room
        await database.before_write.arrival()
        assert not bench.log.has_room  # being written still counts
        database.before_write.open()
        await bench.log.wait_room()
        assert bench.log.statistics().pending_bytes == 0


async def test_leaving_settles_what_was_appended(database: InlineDatabase) -> None:
    async with deadlock_is_an_error():
        async with open_bench(database) as bench:
            bench.append(TOPIC, *numbers(0, 100))
        assert stored(database) == numbers(0, 100)


async def test_cursors_reach_the_disk_when_there_is_no_other_traffic(bench: Bench, database: InlineDatabase) -> None:
    reader = Reader()
    await bench.subscribe(TOPIC, reader, "me")
    await bench.publish(TOPIC, *numbers(0, 3))
    await trio.sleep(2)
    assert database.query("SELECT consumer, msg_offset FROM cursors") == [("me", 3)]
    writes = database.writes
    await trio.sleep(60)
    assert database.writes == writes  # and nothing is written for nothing


async def test_a_recovered_disk_is_noticed_without_any_message(bench: Bench, database: InlineDatabase) -> None:
    """Health says "failing" until then, and turns away the client with a message."""
    database.failing = True
    await bench.publish(TOPIC, b"lost")
    assert bench.log.statistics().storage_failing
    await trio.sleep(30)
    assert bench.log.statistics().storage_failing
    database.failing = False
    await trio.sleep(30)
    assert not bench.log.statistics().storage_failing


async def test_a_failing_disk_is_not_asked_all_the_time(bench: Bench, database: InlineDatabase) -> None:
    database.failing = True
    await bench.publish(TOPIC, b"lost")
    writes = database.writes
    await trio.sleep(100)
    assert database.writes - writes <= 101


async def test_cold_topics_are_forgotten_and_found_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aether_trio.log.topic_cache.MAX_UNSUBSCRIBED_TOPICS", 100)
    bench.log.topics._limit = 100
    reader = Reader()
    await bench.subscribe(TOPIC, reader, "me")
    for number in range(1000):
        await bench.log.wait_settled(bench.append(f"ag::w::b::{number}", b"x"))
    assert bench.log.statistics().topics <= 102
    assert bench.log.topics.is_current(bench.log.topics.ensure(TOPIC))  # it has a subscriber
    await bench.publish("ag::w::b::7", b"again")
    late = Reader()
    await bench.subscribe("ag::w::b::7", late)
    await trio.testing.wait_all_tasks_blocked()
    assert late.frames == [b"x", b"again"]


async def test_a_topic_that_is_being_read_is_not_forgotten(bench: Bench, database: InlineDatabase) -> None:
    """A topic made anew would learn an old tail, and give out offsets again."""
    await bench.publish(TOPIC, *numbers(0, 3))
    bench.log.topics._topics.clear()
    bench.log.topics._limit = 1
    reader = Reader()
    database.after_read.close()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.subscribe, TOPIC, reader, "me")
        await database.after_read.arrival()
        await bench.publish(TOPIC, *numbers(3, 6))
        bench.log.topics.ensure("ag::w::b::1")  # one too many
        bench.log.topics._limit = 1
        bench.log.topics.ensure("ag::w::b::2")
        database.after_read.open()
    await bench.publish(TOPIC, *numbers(6, 9))
    assert reader.frames == numbers(0, 9)


@pytest.mark.usefixtures("every_name_may_exist")
async def test_a_failed_read_pins_nothing(bench: Bench, database: InlineDatabase) -> None:
    database.failing = True
    with pytest.raises(Exception, match="does not answer"):
        await bench.log.load([(TOPIC, "me"), ("ga::w", None)])
    assert all(state.forgettable for state in bench.log.topics._topics.values())


@pytest.mark.usefixtures("every_name_may_exist")
async def test_a_cancelled_read_pins_nothing(bench: Bench, database: InlineDatabase) -> None:
    database.after_read.close()
    with trio.move_on_after(1):
        await bench.log.load([(TOPIC, "me"), ("ga::w", None)])
    assert all(state.forgettable for state in bench.log.topics._topics.values())


async def test_a_broadcast_to_thousands_lets_others_run(bench: Bench) -> None:
    readers = [Reader() for _ in range(500)]
    for reader in readers:
        await bench.subscribe("ga::w", reader)
    bench.append("ga::w", *numbers(0, 50))
    turns = 0

    async def count() -> None:
        nonlocal turns
        while readers[-1].frames != numbers(0, 50):
            turns += 1
            await trio.lowlevel.checkpoint()

    await count()
    await trio.testing.wait_all_tasks_blocked()
    assert turns > 10
    assert all(reader.frames == numbers(0, 50) for reader in readers)


@pytest.mark.parametrize("at", [0, 3, 6])
async def test_a_message_that_the_database_does_not_take_costs_no_other_its_commit(bench: Bench, at: int) -> None:
    """No client can send one, as far as is known; else it would stop the gateway."""
    reader = Reader()
    await bench.subscribe(TOPIC, reader)
    await bench.publish(TOPIC, b"before")
    frames: list[Any] = numbers(0, 6)
    frames.insert(at, "\ud800")  # no bytes, and no text that could be written
    await bench.publish(TOPIC, *frames)
    await bench.publish(TOPIC, b"after")
    await pump()
    assert len(bench.refusals) == 1
    assert reader.frames == [b"before", *numbers(0, 6), b"after"]
    assert not bench.log.statistics().storage_failing
    assert bench.log.topics.ensure(TOPIC).waiting == 0
    assert bench.log.has_room
    assert bench.log.statistics().pending_bytes == 0
