"""What leaves the log, what never starts again, and which positions may be forgotten."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio

from aether_trio.routing.programs import offset_of
from aether_trio.routing.retention import ROWS_PER_STEP, Retention, RetentionLimits
from tests.helpers.core import (
    World,
    agent,
    barrier,
    connect,
    deadlock_is_an_error,
    errors,
    message_to,
    payloads,
    service,
    user,
)
from tests.helpers.inline import InlineDatabase
from tests.routing.parts import Bench, Reader, open_bench

TOPIC = "ag::w::a::1"
DAYS = 24 * 3600.0


@pytest.fixture
async def bench(database: InlineDatabase) -> AsyncIterator[Bench]:
    async with open_bench(database) as opened:
        yield opened


def offsets(database: InlineDatabase) -> list[int]:
    return [offset_of(row[0]) for row in database.query("SELECT message_key FROM messages ORDER BY message_key")]


async def test_what_is_too_old_goes(bench: Bench, database: InlineDatabase) -> None:
    sweeper = Retention(database, bench.log._clock, RetentionLimits(age_s=1000, topic_bytes=0))
    await bench.publish(TOPIC, *[b"old"] * 3)
    await trio.sleep(900)
    await bench.publish(TOPIC, *[b"new"] * 2)
    assert await sweeper.sweep() == 0
    # An eighth more than a thousand, and as much for where a partition begins.
    await trio.sleep(350 if database.shared else 150)
    assert await sweeper.sweep() == 3
    assert offsets(database) == [4, 5]
    assert sweeper.expired == 3


async def test_what_is_too_much_goes_and_other_topics_stay(bench: Bench, database: InlineDatabase) -> None:
    await bench.publish(TOPIC, *[b"x" * 100] * 50)
    await bench.publish("ga::w", *[b"x" * 100] * 5)
    sweeper = Retention(database, bench.log._clock, RetentionLimits(age_s=0, topic_bytes=1000))
    assert await sweeper.sweep() == 40
    assert offsets(database) == [*range(41, 51), *range(1, 6)]


async def test_what_is_newer_than_a_message_fills_the_limit_before_it_goes(
    bench: Bench, database: InlineDatabase
) -> None:
    await bench.publish(TOPIC, b"x" * 5000)
    sweeper = Retention(database, bench.log._clock, RetentionLimits(age_s=0, topic_bytes=1000))
    assert await sweeper.sweep() == 0
    await bench.publish(TOPIC, *[b"y" * 100] * 9)
    assert await sweeper.sweep() == 0
    await bench.publish(TOPIC, b"y" * 100)
    assert await sweeper.sweep() == 1
    assert offsets(database) == [*range(2, 12)]


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
async def test_many_go_in_bounded_steps(bench: Bench, database: InlineDatabase) -> None:
    await bench.publish(TOPIC, *[b"x"] * (3 * ROWS_PER_STEP + 10))
    await trio.sleep(10)
    sweeper = Retention(database, bench.log._clock, RetentionLimits(age_s=1))
    writes = database.writes
    assert await sweeper.sweep() == 3 * ROWS_PER_STEP + 10
    assert database.writes - writes == 4


@pytest.mark.parametrize("restart", [False, True])
async def test_offsets_never_start_again(database: InlineDatabase, restart: bool) -> None:
    async with open_bench(database) as bench:
        await bench.publish(TOPIC, *[b"x" * 10] * 7)
        await trio.sleep(1000)
        await Retention(database, bench.log._clock, RetentionLimits(age_s=1)).sweep()
        assert offsets(database) == []
        if not restart:
            await bench.publish(TOPIC, b"y")
    if restart:
        async with open_bench(database) as bench:
            await bench.publish(TOPIC, b"y")
    assert offsets(database) == [8]
    assert database.query("SELECT topic_bytes FROM messages") == [(71,)]


async def test_a_consumer_in_the_middle_goes_on_behind_the_gap_and_is_told(
    bench: Bench, database: InlineDatabase
) -> None:
    reader = Reader()
    subscription = await bench.subscribe(TOPIC, reader, "me")
    await bench.publish(TOPIC, b"1", b"2")
    subscription.close()
    await bench.publish(TOPIC, b"3", b"4")
    await trio.sleep(1000)
    await Retention(database, bench.log._clock, RetentionLimits(age_s=5)).sweep()
    await bench.publish(TOPIC, b"5")
    reader = Reader()
    await bench.subscribe(TOPIC, reader, "me")
    await trio.testing.wait_all_tasks_blocked()
    assert reader.frames == [b"5"]
    assert reader.gaps == [(TOPIC, 2)]


async def test_a_session_says_what_retention_took(world: World) -> None:
    log = {"retention_age_s": 100.0, "retention_sweep_s": 10.0}
    async with deadlock_is_an_error(), world.open(log=log) as core, connect(core, service("s", "1")) as sender:
        async with connect(core, agent("w", "a", "1")) as peer:
            sender.send(message_to(TOPIC, b"1"))
            await barrier(sender)
            assert payloads(peer) == [b"1"]
        sender.send(message_to(TOPIC, b"2"), message_to(TOPIC, b"3"))
        await barrier(sender)
        await trio.sleep(300)
        sender.send(message_to(TOPIC, b"4"))
        await barrier(sender)
        async with connect(core, agent("w", "a", "1")) as peer:
            await barrier(peer)
            assert payloads(peer) == [b"4"]
            [notice] = errors(peer)
            assert notice.code == "BACKPRESSURE"
            assert notice.message.startswith("2 messages")


async def test_failing_storage_only_postpones(bench: Bench, database: InlineDatabase) -> None:
    await bench.publish(TOPIC, b"x")
    sweeper = Retention(database, bench.log._clock, RetentionLimits(age_s=100, sweep_s=10))
    bench.nursery.start_soon(sweeper.sweep_forever)
    database.failing = True
    await trio.sleep(200)
    assert offsets(database) == [1]
    database.failing = False
    await trio.sleep(200)
    assert offsets(database) == []


# -- positions --------------------------------------------------------------------------------------------------------


def cursors(database: InlineDatabase) -> dict[str, int]:
    return dict(database.query("SELECT consumer, msg_offset FROM cursors"))


async def test_an_unused_position_in_front_of_everything_kept_is_forgotten(
    bench: Bench, database: InlineDatabase
) -> None:
    reader = Reader()
    subscription = await bench.subscribe(TOPIC, reader, "me")
    await bench.publish(TOPIC, b"1", b"2")
    subscription.close()
    await trio.sleep(1)
    sweeper = Retention(database, bench.log._clock, RetentionLimits(age_s=1 * DAYS, cursor_age_s=7 * DAYS))
    await trio.sleep(2 * DAYS)
    await bench.publish(TOPIC, b"3")
    await sweeper.sweep()
    assert (cursors(database), offsets(database)) == ({"me": 2}, [3])  # young enough
    await trio.sleep(6 * DAYS)
    await bench.publish(TOPIC, b"4")
    await sweeper.sweep()
    assert (cursors(database), offsets(database)) == ({}, [4])
    again = Reader()
    await bench.subscribe(TOPIC, again, "me")
    await trio.testing.wait_all_tasks_blocked()
    assert again.frames == [b"4"]


async def test_a_position_between_kept_messages_is_never_forgotten(bench: Bench, database: InlineDatabase) -> None:
    reader = Reader()
    subscription = await bench.subscribe(TOPIC, reader, "me")
    await bench.publish(TOPIC, b"1", b"2")
    subscription.close()
    await bench.publish(TOPIC, b"3")
    await trio.sleep(100 * DAYS)
    await Retention(database, bench.log._clock, RetentionLimits(age_s=0, cursor_age_s=7 * DAYS)).sweep()
    again = Reader()
    await bench.subscribe(TOPIC, again, "me")
    await trio.testing.wait_all_tasks_blocked()
    assert again.frames == [b"3"]


async def test_a_window_that_was_connected_for_long_misses_nothing_when_it_is_away_for_a_moment(world: World) -> None:
    """Its position has not moved for longer than positions are kept, and without one it would start at the tail."""
    log = {"retention_sweep_s": 10.0, "retention_age_s": 100.0, "offset_retention_age_s": 700.0}
    async with world.open(log=log) as core, connect(core, service("s", "1")) as sender:
        async with connect(core, user("u", "1")) as window:
            await barrier(window)
            await trio.sleep(900)
        await trio.sleep(20)
        sender.send(message_to("uu::u", b"while away"))
        await barrier(sender)
        async with connect(core, user("u", "1")) as window:
            await barrier(window)
            assert payloads(window) == [b"while away"]


async def test_a_window_that_comes_now_and_then_misses_nothing(world: World) -> None:
    log = {"retention_sweep_s": 10.0, "retention_age_s": 100.0, "offset_retention_age_s": 700.0}
    async with world.open(log=log) as core, connect(core, service("s", "1")) as sender:
        for _ in range(5):
            async with connect(core, user("u", "1")) as window:
                await barrier(window)
            await trio.sleep(500)
        sender.send(message_to("uu::u", b"while away"))
        await barrier(sender)
        async with connect(core, user("u", "1")) as window:
            await barrier(window)
            assert payloads(window) == [b"while away"]
