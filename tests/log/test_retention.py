"""What leaves the log, which offsets never start again, and unused positions."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio

from aether_trio.log.message_keys import offset_of
from aether_trio.log.retention import ROWS_PER_STEP, Retention, RetentionLimits, purge
from aether_trio.log.topic_log import LogLimits, open_log
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
from tests.helpers.log_bench import Bench, Reader, open_bench

TOPIC = "ag::w::a::1"
DAYS = 24 * 3600.0


@pytest.fixture
async def bench(database: InlineDatabase) -> AsyncIterator[Bench]:
    async with open_bench(database) as opened:
        yield opened


def offsets(database: InlineDatabase) -> list[int]:
    return [offset_of(row[0]) for row in database.query("SELECT message_key FROM messages ORDER BY message_key")]


async def test_what_is_too_old_goes(bench: Bench, database: InlineDatabase) -> None:
    sweeper = Retention(bench.log, RetentionLimits(age_s=1000, topic_bytes=0))
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
    sweeper = Retention(bench.log, RetentionLimits(age_s=0, topic_bytes=1000))
    assert await sweeper.sweep() == 40
    assert offsets(database) == [*range(41, 51), *range(1, 6)]


async def test_newer_messages_fill_the_limit_before_one_goes(bench: Bench, database: InlineDatabase) -> None:
    await bench.publish(TOPIC, b"x" * 5000)
    sweeper = Retention(bench.log, RetentionLimits(age_s=0, topic_bytes=1000))
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
    sweeper = Retention(bench.log, RetentionLimits(age_s=1))
    writes = database.writes
    assert await sweeper.sweep() == 3 * ROWS_PER_STEP + 10
    assert database.writes - writes == 4


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
@pytest.mark.parametrize("limits", [RetentionLimits(age_s=1), RetentionLimits(age_s=0, topic_bytes=1)])
@pytest.mark.parametrize("restart", [False, True])
async def test_large_messages_go_in_steps_of_bounded_size(
    database: InlineDatabase, monkeypatch: pytest.MonkeyPatch, limits: RetentionLimits, restart: bool
) -> None:
    monkeypatch.setattr("aether_trio.log.retention.BYTES_PER_STEP", 1000)
    async with open_bench(database) as bench:
        await bench.publish(TOPIC, *[b"x" * 400] * 30, b"y")
        await bench.publish("ag::w::other::1", b"x" * 400, b"y")
        if not restart:
            await trio.sleep(10)
            await sweep_in_steps(bench, database, limits)
    if restart:
        async with open_bench(database) as bench:
            await trio.sleep(24 * 3600 + 10)
            await sweep_in_steps(bench, database, limits)


async def sweep_in_steps(bench: Bench, database: InlineDatabase, limits: RetentionLimits) -> None:
    writes = database.writes
    gone = await Retention(bench.log, limits).sweep()
    if limits.age_s:
        assert (gone, offsets(database)) == (33, [])
    else:
        assert offsets(database) == [31, 2]
    assert database.writes - writes >= 10


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
async def test_a_purge_of_large_messages_is_done_in_steps(
    bench: Bench, database: InlineDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aether_trio.log.retention.BYTES_PER_STEP", 1000)
    await bench.publish(TOPIC, *[b"x" * 400] * 7)
    [(topic_id,)] = database.query("SELECT id FROM topics")
    steps = [await database.run(lambda: purge(topic_id, 6)) for _ in range(4)]
    assert (steps, offsets(database)) == ([3, 3, 0, 0], [7])


@pytest.mark.parametrize("restart", [False, True])
async def test_offsets_never_start_again(database: InlineDatabase, restart: bool) -> None:
    async with open_bench(database) as bench:
        await bench.publish(TOPIC, *[b"x" * 10] * 7)
        await trio.sleep(1000)
        await Retention(bench.log, RetentionLimits(age_s=1)).sweep()
        assert offsets(database) == []
        if not restart:
            await bench.publish(TOPIC, b"y")
    if restart:
        async with open_bench(database) as bench:
            await bench.publish(TOPIC, b"y")
    assert offsets(database) == [8]
    assert database.query("SELECT topic_bytes FROM messages") == [(71,)]


async def test_failing_storage_only_postpones(bench: Bench, database: InlineDatabase) -> None:
    await bench.publish(TOPIC, b"x")
    sweeper = Retention(bench.log, RetentionLimits(age_s=100, sweep_s=10))
    bench.nursery.start_soon(sweeper.sweep_forever)
    database.failing = True
    await trio.sleep(200)
    assert offsets(database) == [1]
    database.failing = False
    await trio.sleep(200)
    assert offsets(database) == []


# -- positions -------------------------------------------------------------------------------------


def cursors(database: InlineDatabase) -> dict[str, int]:
    return dict(database.query("SELECT consumer, msg_offset FROM cursors"))


async def test_an_unused_position_in_front_of_the_log_is_forgotten(bench: Bench, database: InlineDatabase) -> None:
    reader = Reader()
    subscription = await bench.subscribe(TOPIC, reader, "me")
    await bench.publish(TOPIC, b"1", b"2")
    subscription.close()
    await trio.sleep(1)
    sweeper = Retention(bench.log, RetentionLimits(age_s=1 * DAYS, cursor_age_s=7 * DAYS))
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
    await Retention(bench.log, RetentionLimits(age_s=0, cursor_age_s=7 * DAYS)).sweep()
    again = Reader()
    await bench.subscribe(TOPIC, again, "me")
    await trio.testing.wait_all_tasks_blocked()
    assert again.frames == [b"3"]


SHORT = {"retention_sweep_s": 10.0, "retention_age_s": 100.0, "offset_retention_age_s": 700.0}


@pytest.mark.parametrize(
    ("visits", "stays_s", "away_s"), [(1, 900, 20), (5, 0, 500)], ids=["stays for long", "comes now and then"]
)
async def test_a_window_with_a_position_misses_none(world: World, visits: int, stays_s: float, away_s: float) -> None:
    """Without its old position the window would start at the tail."""
    async with world.open(log=SHORT) as core, connect(core, service("s", "1")) as sender:
        for _ in range(visits):
            async with connect(core, user("u", "1")) as window:
                await barrier(window)
                await trio.sleep(stays_s)
            await trio.sleep(away_s)
        sender.send(message_to("uu::u", b"while away"))
        await barrier(sender)
        async with connect(core, user("u", "1")) as window:
            await barrier(window)
            assert payloads(window) == [b"while away"]


# -- what a consumer is told that it has missed ----------------------------------------------------


async def test_an_agent_that_has_read_everything_is_never_told_that_something_is_gone(world: World) -> None:
    async with world.open(log=SHORT) as core, connect(core, service("s", "1")) as sender:
        sender.send(*[message_to(TOPIC, b"%d" % number) for number in range(5)])
        await barrier(sender)
        async with connect(core, agent("w", "a", "1")) as peer:
            await barrier(peer)
            assert len(payloads(peer)) == 5
        for _ in range(30):
            await trio.sleep(100)
            async with connect(core, agent("w", "a", "1")) as peer:
                await barrier(peer)
                assert (payloads(peer), errors(peer)) == ([], [])
        sender.send(message_to(TOPIC, b"next"))
        await barrier(sender)
        async with connect(core, agent("w", "a", "1")) as peer:
            await barrier(peer)
            assert (payloads(peer), errors(peer)) == ([b"next"], [])


async def test_what_is_gone_is_said_once_to_the_session_that_misses_it(world: World) -> None:
    async with deadlock_is_an_error(), world.open(log=SHORT) as core, connect(core, service("s", "1")) as sender:
        async with connect(core, agent("w", "a", "1")) as peer:
            sender.send(message_to(TOPIC, b"1"))
            await barrier(sender)
            assert payloads(peer) == [b"1"]
        sender.send(message_to(TOPIC, b"2"), message_to(TOPIC, b"3"))
        await barrier(sender)
        await trio.sleep(300)
        sender.send(message_to(TOPIC, b"4"))
        await barrier(sender)
        told = []
        for away_s in (1, 1, 5000):
            async with connect(core, agent("w", "a", "1")) as peer:
                await barrier(peer)
                told.append((payloads(peer), [(error.code, error.message[:10]) for error in errors(peer)]))
            await trio.sleep(away_s)
        assert told == [([b"4"], [("BACKPRESSURE", "2 messages")]), ([], []), ([], [])]


async def test_a_gap_behind_messages_on_their_way_moves_the_position_when_they_are_delivered(bench: Bench) -> None:
    reader = Reader(paused=True)
    subscription = await bench.subscribe(TOPIC, reader, "me")
    await bench.publish(TOPIC, b"1", b"2")
    reader.pull_only()
    assert [subscription.skip(3), subscription.skip(5)] == [1, 2]
    assert (subscription.position, subscription.cursor) == (5, 0)
    reader.outbox.flushed()
    assert subscription.cursor == 5
    assert subscription.skip(6) == 1
    assert subscription.cursor == 6


async def test_a_gap_is_not_passed_before_what_is_in_front_of_it_is_delivered(bench: Bench) -> None:
    reader = Reader(paused=True)
    subscription = await bench.subscribe(TOPIC, reader, "me")
    await bench.publish(TOPIC, b"1", b"2")
    assert subscription.skip(5) == 3
    for cursor in (1, 5):
        assert len(reader.outbox.pull(1)) == 1
        reader.outbox.flushed()
        assert subscription.cursor == cursor
        assert bench.log.cursors.unwritten(subscription.state, "me") == cursor


async def test_opening_and_closing_writes_the_position_of_those_that_would_start_at_the_tail(bench: Bench) -> None:
    await bench.publish(TOPIC, b"1")
    for renews in (False, True):
        name = f"renews {renews}"
        subscription = await bench.subscribe(TOPIC, Reader(), name, from_oldest=False, renews=renews)
        assert subscription.topic == TOPIC
        assert bench.log.cursors.unwritten(subscription.state, name) == (1 if renews else None)
        subscription.close()
        subscription.close()
        assert bench.log.cursors.unwritten(subscription.state, name) == (1 if renews else None)


async def test_a_position_in_use_is_written_again(bench: Bench, database: InlineDatabase) -> None:
    """A crash keeps the position, without which a window would start at the tail."""
    await bench.publish(TOPIC, b"1")
    await bench.subscribe(TOPIC, Reader(), "window", renews=True)
    sweeper = Retention(bench.log, RetentionLimits(age_s=100, cursor_age_s=1000, sweep_s=50))
    bench.nursery.start_soon(sweeper.sweep_forever)
    await trio.sleep(100_000)
    assert cursors(database) == {"window": 1}


# -- nothing stays of what was once named ----------------------------------------------------------


def topic_names(database: InlineDatabase) -> list[str]:
    return [row[0] for row in database.query("SELECT name FROM topics ORDER BY name")]


async def test_a_topic_without_messages_and_positions_goes(bench: Bench, database: InlineDatabase) -> None:
    sweeper = Retention(bench.log, RetentionLimits(age_s=100, cursor_age_s=700, sweep_s=10))
    bench.nursery.start_soon(sweeper.sweep_forever)
    await bench.subscribe("uu::u", Reader(), "us::u::1", from_oldest=False, renews=True)
    await bench.publish("ag::w::used::1", b"x")
    for number in range(300):
        await bench.publish(f"ag::w::a::{number}", b"x")
    await bench.publish("ag::w::a::0", b"x", b"y")
    for _ in range(150):
        await trio.sleep(10)
        await bench.publish("ag::w::used::1", b"x")
    assert topic_names(database) == ["ag::w::used::1", "uu::u"]
    assert sweeper.deleted_topics == 300
    await bench.publish("ag::w::a::7", b"again")
    # No offset of the one that was there before, nor of any other.
    assert max(offsets(database)) >= 4
    [[floor]] = database.query("SELECT floor_offset FROM topic_floor")
    assert floor == 3


async def test_a_round_costs_what_is_due_and_not_what_there_is(bench: Bench, database: InlineDatabase) -> None:
    sweeper = Retention(bench.log, RetentionLimits(age_s=100_000, cursor_age_s=100_000))
    for number in range(0, 1000, 100):
        bench.append("ga::w", b"x")
        await bench.log.wait_settled(max(bench.append(f"ag::w::a::{one}", b"x") for one in range(number, number + 100)))
    await trio.testing.wait_all_tasks_blocked()
    await sweeper.sweep()
    before = database.reads + database.writes
    for _ in range(10):
        await trio.sleep(60)
        await sweeper.sweep()
    assert database.reads + database.writes - before <= 3 * 10


async def test_a_topic_that_was_deleted_begins_behind_all_that_it_had(bench: Bench, database: InlineDatabase) -> None:
    sweeper = Retention(bench.log, RetentionLimits(age_s=100, cursor_age_s=700))
    first = Reader()
    subscription = await bench.subscribe(TOPIC, first, "me")
    await bench.publish(TOPIC, *[b"x"] * 5)
    subscription.close()
    for _ in range(20):
        await trio.sleep(100)
        await sweeper.sweep()
    assert (topic_names(database), cursors(database)) == ([], {})
    again = Reader()
    await bench.subscribe(TOPIC, again, "me")
    await bench.publish(TOPIC, b"y")
    late = Reader()
    await bench.subscribe(TOPIC, late, "you")
    await trio.testing.wait_all_tasks_blocked()
    assert offsets(database) == [6]
    assert (again.frames, again.gaps) == ([b"y"], [])
    assert (late.frames, late.gaps) == ([b"y"], [])


@pytest.mark.parametrize("gate", ["before_write", "after_write"])
@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
async def test_a_topic_that_is_used_while_it_goes(bench: Bench, database: InlineDatabase, gate: str) -> None:
    sweeper = Retention(bench.log, RetentionLimits(age_s=100, cursor_age_s=700))
    await bench.publish(TOPIC, *[b"x"] * 5)
    for _ in range(8):
        await trio.sleep(100)
        await sweeper.sweep()
    [[topic_id, name]] = database.query("SELECT id, name FROM topics")
    database.query("UPDATE topics SET emptied_ms = 1 RETURNING 1")
    held = getattr(database, gate)
    held.close()
    reader = Reader()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.log.delete_topics, [(topic_id, name)])
        await held.arrival()
        number = bench.append(TOPIC, b"y")
        nursery.start_soon(bench.subscribe, TOPIC, reader, "me")
        await trio.sleep(1)
        held.open()
    await bench.log.wait_settled(number)
    await trio.testing.wait_all_tasks_blocked()
    assert (offsets(database), topic_names(database)) == ([6], [TOPIC])
    assert (reader.frames, reader.gaps) == ([b"y"], [])


@pytest.mark.parametrize("store", ["postgres"], indirect=True)
async def test_a_topic_that_another_process_has_deleted_is_made_again(bench: Bench, database: InlineDatabase) -> None:
    author = bench.author
    reader = Reader()
    await bench.subscribe(TOPIC, reader, "me")
    await bench.publish(TOPIC, b"1")
    await bench.publish("ag::w::cold::1", b"1")

    async def delete_all() -> None:
        database.query("DELETE FROM messages RETURNING 1")
        database.query("DELETE FROM cursors RETURNING 1")
        database.query("UPDATE topics SET emptied_ms = 1 RETURNING 1")
        ids = database.query("SELECT id, name FROM topics")
        async with open_log(database, bench.log.clock, LogLimits()) as other:
            assert await other.delete_topics([(row[0], row[1]) for row in ids]) == len(ids)

    await trio.sleep(1)
    await delete_all()
    await bench.publish("ag::w::cold::1", b"2")  # whose id this process still has
    await bench.publish(TOPIC, b"2")
    assert reader.frames == [b"1", b"2"]
    await trio.sleep(1)
    await delete_all()
    async with open_log(database, bench.log.clock, LogLimits()) as other:
        await other.wait_settled(other.append_nowait(other.topics.ensure(TOPIC), b"3", author))
    bench.log.on_remote_commits([TOPIC])
    await trio.sleep(1)
    assert reader.frames == [b"1", b"2", b"3"]
    assert reader.gaps == []
    assert bench.refusals == []
