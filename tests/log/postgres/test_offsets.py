"""Appends of several nodes: no gaps, commit order, each message written once."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import trio

from aether_trio.delivery.subscription import Subscription
from aether_trio.log import topic_sql_postgres
from aether_trio.log.topic_log import LogLimits, TopicLog, open_log
from aether_trio.model.clock import SystemClock
from aether_trio.storage.base import Database
from aether_trio.storage.postgres.database import PostgresDatabase
from tests.helpers.engines import PostgresEngine
from tests.helpers.log_bench import Collector, Reader

LONG_S = 300.0
TOPICS = [f"ag::w::a::{number}" for number in range(6)]


@asynccontextmanager
async def opened(engine: PostgresEngine, **limits: Any) -> AsyncIterator[tuple[PostgresDatabase, TopicLog]]:
    async with (
        engine.open("log") as database,
        open_log(database, SystemClock(trio.current_time), LogLimits(**limits)) as log,
    ):
        yield database, log


async def append_many(log: TopicLog, name: str, seed: int, count: int) -> None:
    """Append to random topics, a few messages at a time: groups of all sizes."""
    chance = random.Random(seed)
    author = Collector()
    sent = dict.fromkeys(TOPICS, 0)
    last = 0
    for _ in range(count):
        for topic in chance.sample(TOPICS, chance.randint(1, len(TOPICS))):
            sent[topic] += 1
            last = log.append_nowait(log.topics.ensure(topic), f"{name}:{sent[topic]}".encode(), author)
        if chance.random() < 0.5:
            await log.wait_settled(last - chance.randrange(10))
    await log.drain()
    assert author.reasons == []


async def follow(database: Database, topic: str, ended: trio.Event) -> list[bytes]:
    """Read a topic's end again and again as another node does, without a gap."""
    frames: list[bytes] = []
    while True:
        last_round = ended.is_set()
        [facts] = await database.read(lambda: topic_sql_postgres.many_topic_facts([(topic, None)]))
        if facts.topic_id is not None:
            page = await database.read(
                partial(topic_sql_postgres.read_page, facts.topic_id, len(frames), 2**35, 100, 2**20)
            )
            assert [row[0] for row in page] == list(range(len(frames) + 1, len(frames) + 1 + len(page)))
            frames += [row[2] for row in page]
            if last_round and not page:
                assert facts.tail == len(frames)
                return frames
        await trio.sleep(0.001)


async def test_nodes_that_append_to_the_same_topics_leave_followers_no_gap(postgres_engine: PostgresEngine) -> None:
    names = ("one", "two", "three")
    seen: dict[str, list[bytes]] = {}
    ended = trio.Event()

    async def node(name: str, seed: int) -> None:
        async with opened(postgres_engine, group_messages=40) as (database, log):
            await append_many(log, name, seed, 150)
            statistics = database.statistics()
            assert (statistics.conflicts, statistics.failed_groups) == (0, 0)

    async def follower(database: Database, topic: str) -> None:
        seen[topic] = await follow(database, topic, ended)

    async with postgres_engine.open("log") as database, trio.open_nursery() as followers:
        for topic in TOPICS[:3]:
            followers.start_soon(follower, database, topic)
        with trio.fail_after(LONG_S):
            async with trio.open_nursery() as nodes:
                for seed, name in enumerate(names):
                    nodes.start_soon(node, name, seed)
        ended.set()
    for frames in seen.values():
        for name in names:
            numbers = [int(frame.split(b":")[1]) for frame in frames if frame.startswith(f"{name}:".encode())]
            assert numbers == list(range(1, len(numbers) + 1))
            assert numbers
    rows = postgres_engine.rows(
        f"SELECT floor_bytes, (SELECT sum(length(data)) FROM {postgres_engine.schema}.messages WHERE message_key >> 36 = id), "
        f"(SELECT max(topic_bytes) FROM {postgres_engine.schema}.messages WHERE message_key >> 36 = id) "
        f"FROM {postgres_engine.schema}.topics"
    )
    assert len(rows) == len(TOPICS)
    assert all(one == int(two) == three for one, two, three in rows)


async def test_a_group_is_one_round_trip(postgres_engine: PostgresEngine) -> None:
    async with opened(postgres_engine, cursor_flush_s=0.0) as (database, log):
        author = Collector()
        states = [log.topics.ensure(topic) for topic in TOPICS]
        first = [log.append_nowait(state, b"first", author) for state in states]
        await log.wait_settled(first[-1])
        before = database.statistics()
        asked: list[str] = []
        [connection] = {pair[0] for pair in database.writer.pool._idle}
        connection.add_query_logger(lambda query: asked.append(query.query))
        log.cursors.advance(states[0], "me", 1)
        number = 0
        for state in states * 3:
            number = log.append_nowait(state, b"more", author)
        await log.wait_settled(number)
        with trio.fail_after(LONG_S):
            while not asked:  # it is told a little later
                await trio.sleep(0.001)
        await trio.sleep(0.02)
        after = database.statistics()
        assert (after.groups - before.groups, len(asked)) == (1, 1)
        assert await database.fetch("SELECT consumer, msg_offset FROM cursors") == [("me", 1)]
        assert await database.fetch("SELECT count(*) FROM messages") == [(4 * len(TOPICS),)]


DIES_ONCE = """
    CREATE SEQUENCE deaths;
    CREATE FUNCTION die() RETURNS trigger LANGUAGE plpgsql AS
        'BEGIN IF nextval(''{schema}.deaths'') = 3 THEN PERFORM pg_terminate_backend(pg_backend_pid()); PERFORM pg_sleep(0.1);
         END IF; RETURN NULL; END';
    CREATE CONSTRAINT TRIGGER dies AFTER UPDATE ON log_writers DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION die()
"""


async def test_a_commit_that_dies_is_done_again(postgres_engine: PostgresEngine) -> None:
    async with opened(postgres_engine) as (database, log):
        postgres_engine.outside(DIES_ONCE.format(schema=postgres_engine.schema))
        author = Collector()
        for number in range(8):
            await log.wait_settled(log.append_nowait(log.topics.ensure(TOPICS[0]), b"%d" % number, author))
        assert author.reasons == []
        assert database.statistics().losses == 1
        assert await database.fetch("SELECT data FROM messages ORDER BY message_key") == [
            (b"%d" % n,) for n in range(8)
        ]


async def test_a_topic_that_exists_costs_no_id(log_database: Database) -> None:
    """Ids are 27 bits, and every node asks for its topics again after a restart."""
    for _ in range(20):
        await log_database.run(lambda: topic_sql_postgres.create_topics(TOPICS, 0))
    facts = await log_database.run(lambda: topic_sql_postgres.create_topics(["zz"], 0))
    assert facts["zz"].topic_id == len(TOPICS) + 1


async def test_topics_that_a_promoted_standby_does_not_have_are_made_again_behind_their_last_offset(
    postgres_engine: PostgresEngine,
) -> None:
    async with opened(postgres_engine) as (_, log):
        reader, author = Reader(), Collector()
        [(state, _)] = await log.load([("ag::w::lost::1", "me")])
        other = log.topics.ensure("ag::w::kept::1")
        subscription = Subscription(state, reader.outbox, log.cursors, "me", 0, lambda _: None)
        subscription.open()
        for payload in (b"1", b"2"):
            log.append_nowait(state, payload, author)
        await log.drain()
        await log.cursors.save()
        # What an asynchronous standby may not have had yet.
        postgres_engine.outside(
            "DELETE FROM messages WHERE message_key >> 36 = (SELECT id FROM topics WHERE name LIKE '%lost%')"
        )
        postgres_engine.outside("DELETE FROM topics WHERE name LIKE '%lost%'")
        for payload in (b"3", b"4"):
            log.append_nowait(state, payload, author)
            log.append_nowait(other, payload, author)
        await log.drain()
        log.append_nowait(state, b"5", author)
        await log.drain()
        assert author.reasons == []
        assert reader.frames == [b"1", b"2", b"3", b"4", b"5"]
        assert subscription.position == 5
        names = "SELECT t.name, m.message_key & ((1::bigint << 36) - 1), m.data FROM messages m JOIN topics t ON t.id = m.message_key >> 36"
        assert sorted(tuple(row) for row in postgres_engine.rows(names)) == [
            ("ag::w::kept::1", 1, b"3"),
            ("ag::w::kept::1", 2, b"4"),
            ("ag::w::lost::1", 3, b"3"),
            ("ag::w::lost::1", 4, b"4"),
            ("ag::w::lost::1", 5, b"5"),
        ]
        subscription.close()
        log.unpin([state])
