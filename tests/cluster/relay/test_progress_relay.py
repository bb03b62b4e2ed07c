"""Progress between nodes: in order, once or not at all, only where it is heard."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from random import Random

import pytest
import trio

from aether_trio.cluster.relay import progress_relay as module
from aether_trio.cluster.relay.progress_relay import ProgressRelay, ProgressRelayLimits, open_progress_relay
from aether_trio.delivery.ephemeral_topics import EphemeralListener, EphemeralTopics
from aether_trio.storage.base import StorageUnavailable
from tests.cluster.children import open_children
from tests.cluster.nodes import LONG_S, STEADY, Node, Nodes, until
from tests.cluster.seats import lose_notifications
from tests.helpers.engines import PostgresEngine

SOON = ProgressRelayLimits(poll_s=0.3)
POLLS = replace(STEADY, poll_s=0.3)
LATE = ProgressRelayLimits(poll_s=10 * LONG_S)
"""what these tests see, a notification has caused."""

_starts = count(1_000_000, 1_000_000)


@dataclass
class Ear:
    heard: list[bytes] = field(default_factory=list)

    def put_ephemeral(self, frame: bytes) -> None:
        self.heard.append(frame)

    def kick(self) -> None:
        """There is no task to wake."""


@dataclass
class Stage:
    node: Node
    ephemeral_topics: EphemeralTopics
    relay: ProgressRelay

    async def listen(self, topic: str, identity: str = "us::ada::1") -> Ear:
        """As a session does it (session/subscriptions.py)."""
        ear = Ear()
        with trio.fail_after(LONG_S):
            await self.ephemeral_topics.expect([topic])
        self.ephemeral_topics.listen(topic, EphemeralListener(identity, identity, ear))
        return ear

    def say(self, topic: str, *frames: bytes, recipient: str = "") -> None:
        for frame in frames:
            self.ephemeral_topics.publish(topic, "ag::lab::x::1", recipient, frame)


@asynccontextmanager
async def stage(node: Node, limits: ProgressRelayLimits = LATE) -> AsyncIterator[Stage]:
    ephemeral_topics = EphemeralTopics()
    async with open_progress_relay(
        node.server,
        node.cluster,
        ephemeral_topics,
        first_seq=next(_starts),
        cluster_limits=STEADY,
        limits=limits,
        random=Random(1),
    ) as relay:
        yield Stage(node, ephemeral_topics, relay)


@asynccontextmanager
async def stages(*nodes: Node, limits: ProgressRelayLimits = LATE) -> AsyncIterator[list[Stage]]:
    """EphemeralTopics on each node, which know of each other."""
    async with AsyncExitStack() as stack:
        opened = [await stack.enter_async_context(stage(node, limits)) for node in nodes]
        await until(lambda: not any(one.node.cluster.peers.empty for one in opened))
        yield opened


async def hears(ear: Ear, *frames: bytes) -> None:
    await until(lambda: len(ear.heard) >= len(frames))
    assert ear.heard == list(frames)


def written(place: PostgresEngine) -> int:
    found: int = place.rows("SELECT count(*) FROM ephemeral_updates")[0][0]
    return found


async def test_updates_reach_the_listeners_on_other_nodes_and_on_the_same(nodes: Nodes, place: PostgresEngine) -> None:
    async with stages(await nodes.start(), await nodes.start(), await nodes.start()) as (a, b, c):
        here, there = await a.listen("pg::lab"), await b.listen("pg::lab")
        other = await c.listen("pg::yard")
        wakes: list[int] = []
        c.node.cluster.bus.handle(module.WAKE, lambda sender, _: wakes.append(sender))
        a.say("pg::lab", b"1", b"2")
        assert here.heard == [b"1", b"2"], "on the same node there is nothing to wait for"
        await hears(there, b"1", b"2")
        b.say("pg::lab", b"3")
        await hears(here, b"1", b"2", b"3")
        await hears(there, b"1", b"2", b"3")
        a.say("pg::yard", b"4")
        await hears(other, b"4")
        assert wakes == [a.node.cluster.node_id], "who has no listeners for a topic is not woken for it"
        assert c.relay.statistics().received == 1


async def test_the_recipient_decides_on_every_node(nodes: Nodes) -> None:
    async with stages(await nodes.start(), await nodes.start()) as (a, b):
        one, two = await b.listen("pg::lab", "us::ada::1"), await b.listen("pg::lab", "ag::lab::x::1")
        a.say("pg::lab", b"for ada", recipient="us::ada")
        a.say("pg::lab", b"for all")
        await hears(one, b"for ada", b"for all")
        assert two.heard == [], "and no node hears itself"


async def test_an_update_without_listeners_elsewhere_is_not_stored(nodes: Nodes, place: PostgresEngine) -> None:
    async with stages(await nodes.start(), await nodes.start()) as (a, b):
        here = await a.listen("pg::lab")
        there = await b.listen("pg::us::ada")
        a.say("pg::lab", *[b"x"] * 100)
        a.say("pg::us::ada", b"y")
        await hears(there, b"y")
        assert len(here.heard) == 100
        assert written(place) == 1


async def test_a_listener_misses_nothing_from_the_moment_that_it_is_told_it_listens(nodes: Nodes) -> None:
    async with stages(await nodes.start(), await nodes.start(), await nodes.start()) as (a, b, c):
        ears = []

        async def join(one: Stage, topic: str) -> None:
            ears.append((topic, await one.listen(topic)))
            a.say(topic, b"welcome")

        async with trio.open_nursery() as nursery:
            for number in range(200):
                nursery.start_soon(join, (b, c)[number % 2], f"pg::us::{number}")
        await until(lambda: all(ear.heard for _, ear in ears))
        assert [ear.heard for _, ear in ears] == [[b"welcome"]] * 200


async def test_each_source_is_heard_in_its_order_and_once(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "READ_ROWS", 70)
    monkeypatch.setattr(module, "BATCH_ROWS", 100)
    async with stages(await nodes.start(), await nodes.start(), await nodes.start()) as (a, b, c):
        ear, other = await c.listen("pg::lab"), await b.listen("pg::lab")

        async def report(one: Stage, name: bytes) -> None:
            lots = Random(name[0])
            for number in range(2000):
                one.say("pg::lab", b"%s%d" % (name, number))
                if lots.random() < 0.02:
                    await trio.sleep(lots.random() * 0.01)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(report, a, b"a")
            nursery.start_soon(report, b, b"b")
        await until(lambda: len(ear.heard) >= 4000 and len(other.heard) >= 4000)
        for name in (b"a", b"b"):
            expected = [b"%s%d" % (name, number) for number in range(2000)]
            assert [frame for frame in ear.heard if frame.startswith(name)] == expected
            assert [frame for frame in other.heard if frame.startswith(name)] == expected
        statistics = a.relay.statistics()
        assert (statistics.written, statistics.dropped, statistics.waiting) == (2000, 0, 0)
        assert statistics.batches < 400


async def test_updates_of_the_moment_are_one_statement_and_one_hint(nodes: Nodes) -> None:
    async with stages(await nodes.start(), await nodes.start()) as (a, b):
        ear = await b.listen("pg::lab")
        a.say("pg::lab", b"first")
        await hears(ear, b"first")
        before, notifies = a.relay.statistics().batches, a.node.cluster.bus.statistics().notifies
        a.say("pg::lab", *[b"x"] * 500)
        await until(lambda: len(ear.heard) == 501)
        assert a.relay.statistics().batches == before + 1
        assert a.node.cluster.bus.statistics().notifies == notifies + 1


async def test_lost_notifications_delay_updates_and_nothing_else(nodes: Nodes) -> None:
    async with stages(await nodes.start(), await nodes.start(), limits=SOON) as (a, b):
        ear = await b.listen("pg::lab")
        lose_notifications(b.node)
        frames = [b"%d" % number for number in range(50)]
        for frame in frames:
            a.say("pg::lab", frame)
            await trio.sleep(0.01)
        await hears(ear, *frames)


async def test_killed_connections_lose_nothing_and_repeat_nothing(nodes: Nodes, place: PostgresEngine) -> None:
    async with stages(await nodes.start(), await nodes.start(), limits=SOON) as (a, b):
        ear = await b.listen("pg::lab")
        frames = [b"%d" % number for number in range(400)]
        for number, frame in enumerate(frames):
            a.say("pg::lab", frame)
            await trio.sleep(0.003)
            if number % 40 == 0:
                place.rows(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE application_name IN ('aether-topics', 'aether-listen')"
                )
        await hears(ear, *frames)


async def test_a_node_that_is_alone_does_nothing_until_another_one_joins(nodes: Nodes, place: PostgresEngine) -> None:
    async with stage(await nodes.start()) as a:
        ear = await a.listen("pg::lab")
        a.say("pg::lab", b"1")
        assert ear.heard == [b"1"]
        assert a.relay.statistics().offered == 0
        async with stage(await nodes.start()) as b:
            await until(lambda: not a.node.cluster.peers.empty)
            there = await b.listen("pg::lab")
            a.say("pg::lab", b"2")
            await hears(there, b"2")
            assert a.relay.statistics().offered == 1


async def test_a_node_that_is_notified_of_no_join_looks(nodes: Nodes) -> None:
    first = await nodes.start(limits=POLLS)
    lose_notifications(first)
    async with stage(first, SOON) as a, stage(await nodes.start(), SOON) as b:
        await until(lambda: not a.node.cluster.peers.empty)
        ear = await b.listen("pg::lab")
        a.say("pg::lab", b"1")
        await hears(ear, b"1")


class Outage:
    """The database is away for what goes through `relay`, as long as `away` is set."""

    def __init__(self, relay: ProgressRelay, monkeypatch: pytest.MonkeyPatch) -> None:
        self.away = True
        fetch = relay._queries.fetch

        async def fail(sql: str, *args: object) -> list[object]:
            if self.away:
                await trio.lowlevel.checkpoint()
                raise StorageUnavailable("away")
            return await fetch(sql, *args)

        monkeypatch.setattr(relay._queries, "fetch", fail)


@pytest.mark.parametrize("limits", [ProgressRelayLimits(waiting_rows=100), ProgressRelayLimits(waiting_bytes=1000)])
async def test_what_waits_for_a_database_that_is_away_is_bounded_and_the_newest_wins(
    nodes: Nodes, limits: ProgressRelayLimits, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stages(await nodes.start(), await nodes.start(), limits=limits) as (a, b):
        ear = await b.listen("pg::lab")
        outage = Outage(a.relay, monkeypatch)
        frames = [b"%010d" % number for number in range(5000)]
        for number, frame in enumerate(frames):
            a.say("pg::lab", frame)
            if number % 100 == 0:
                await trio.sleep(0)
            assert a.relay.statistics().waiting <= 100
        outage.away = False
        await until(lambda: bool(ear.heard) and ear.heard[-1] == frames[-1])
        assert ear.heard == frames[-100:]
        statistics = a.relay.statistics()
        assert (statistics.dropped, statistics.written) == (4900, 100)
        assert a.relay._waiting_bytes == 0


async def test_a_reader_that_was_away_goes_on_with_what_is_fresh(nodes: Nodes, place: PostgresEngine) -> None:
    async with stages(await nodes.start(), await nodes.start()) as (a, b):
        ear = await b.listen("pg::lab")
        a.say("pg::lab", b"heard")
        await hears(ear, b"heard")
        hear = b.node.cluster.bus.receive
        lose_notifications(b.node)
        a.say("pg::lab", b"old", b"old too")
        await until(lambda: written(place) == 3)
        place.outside(f"UPDATE ephemeral_updates SET written_ms = written_ms - {module.FRESH_MS}")
        b.node.cluster.bus.receive = hear  # type: ignore[method-assign]
        a.say("pg::lab", b"new")
        await hears(ear, b"heard", b"new")


async def test_old_updates_of_all_nodes_are_deleted(nodes: Nodes, place: PostgresEngine) -> None:
    gone = await nodes.start()
    async with stages(await nodes.start(), await nodes.start(), limits=SOON) as (a, b):
        ear = await b.listen("pg::lab")
        await nodes.stop(gone)
        a.say("pg::lab", b"1")
        await hears(ear, b"1")
        number = place.rows("SELECT node_id FROM nodes WHERE NOT alive")[0][0]
        place.outside(
            f"INSERT INTO ephemeral_updates SELECT {number}, 1, '{{1}}', 't', 's', '', 'x', written_ms FROM ephemeral_updates"
        )
        place.outside(f"INSERT INTO ephemeral_interest VALUES ('pg::lab', {number})")
        assert written(place) == 2
        place.outside(
            "UPDATE ephemeral_updates SET written_ms = written_ms - 61000; UPDATE nodes SET ended_ms = ended_ms - 61000"
        )
        await until(lambda: written(place) == 0)
        await until(lambda: place.rows(f"SELECT FROM ephemeral_interest WHERE node_id = {number}") == [])
        a.say("pg::lab", b"2")
        await hears(ear, b"1", b"2")


async def test_interests_that_a_crashed_server_lost_are_made_known_again(nodes: Nodes, place: PostgresEngine) -> None:
    async with stages(await nodes.start(), await nodes.start(), limits=ProgressRelayLimits(poll_s=0.3)) as (a, b):
        ears = [await b.listen(f"pg::us::{number}") for number in range(30)]
        place.outside(
            "TRUNCATE ephemeral_interest, ephemeral_updates"
        )  # as recovery does with tables that are not logged
        await until(lambda: place.rows("SELECT count(*) FROM ephemeral_interest") == [(30,)])
        for number in range(30):
            a.say(f"pg::us::{number}", b"1")
        for ear in ears:
            await hears(ear, b"1")
        # And what should not be there goes away.
        place.outside(f"INSERT INTO ephemeral_interest VALUES ('pg::stray', {b.node.cluster.node_id})")
        await until(lambda: place.rows("SELECT count(*) FROM ephemeral_interest") == [(30,)])


async def test_interest_ends_some_time_after_the_last_listener(nodes: Nodes, place: PostgresEngine) -> None:
    limits = ProgressRelayLimits(poll_s=0.2, linger_s=1.0)
    async with stages(await nodes.start(), await nodes.start(), limits=limits) as (a, b):
        keeper = await b.listen("pg::kept")
        listener = EphemeralListener("us::ada::1", "us::ada::1", Ear())
        for _ in range(3):  # people who come and go cost one row
            await b.ephemeral_topics.expect(["pg::lab"])
            b.ephemeral_topics.listen("pg::lab", listener)
            b.ephemeral_topics.unlisten("pg::lab", listener)
        assert b.relay.statistics().interests == 2
        await until(lambda: place.rows("SELECT topic FROM ephemeral_interest") == [("pg::kept",)])
        assert b.relay.statistics().interests == 1
        again = await b.listen("pg::lab")
        a.say("pg::lab", b"1")
        a.say("pg::kept", b"2")
        await hears(again, b"1")
        await hears(keeper, b"2")


async def test_who_listens_without_waiting_is_heard_of_soon(nodes: Nodes) -> None:
    """As the operator's tail does (delivery/topic_watcher.py)."""
    async with stages(await nodes.start(), await nodes.start()) as (a, b):
        ear = Ear()
        b.ephemeral_topics.listen("pg::lab", EphemeralListener("", "", ear, everything=True))
        await until(lambda: b.relay.statistics().interests == 1)
        a.say("pg::lab", b"1")
        await hears(ear, b"1")


async def test_a_listener_that_cannot_be_made_known_is_told_so(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    async with stages(await nodes.start(), await nodes.start()) as (a, b):
        outage = Outage(b.relay, monkeypatch)
        with pytest.raises(StorageUnavailable):
            await b.ephemeral_topics.expect(["pg::lab"])
        outage.away = False
        ear = await b.listen("pg::lab")
        a.say("pg::lab", b"1")
        await hears(ear, b"1")


async def test_a_node_that_was_declared_dead_says_nothing(nodes: Nodes, place: PostgresEngine) -> None:
    async with stages(await nodes.start(), await nodes.start()) as (a, b):
        ear = await b.listen("pg::lab")
        lease = a.node.cluster.lease
        epoch = lease.epoch
        lease.epoch = 0  # one that has ended
        a.say("pg::lab", b"from a former life")
        await until(lambda: lease.epoch > epoch)  # told that it is dead, it begins a new life
        a.say("pg::lab", b"alive")
        await hears(ear, b"alive")
        assert written(place) == 1


@pytest.mark.crash
async def test_nothing_is_written_for_a_node_that_was_killed(nodes: Nodes, place: PostgresEngine) -> None:
    node = await nodes.start(limits=POLLS)
    async with open_children(place.server.dsn(), place.schema, STEADY) as [child], stage(node, SOON) as a:
        await until(lambda: not a.node.cluster.peers.empty)
        number = place.rows(f"SELECT node_id FROM nodes WHERE node_id <> {node.cluster.node_id}")[0][0]
        place.outside(f"INSERT INTO ephemeral_interest VALUES ('pg::lab', {number})")
        a.say("pg::lab", b"1")
        await until(lambda: written(place) == 1)
        await child.kill()

        async def alone() -> bool:
            await node.cluster.nodes.look()
            return a.node.cluster.peers.empty

        await until(alone)
        a.say("pg::lab", b"2")
        assert a.relay.statistics().offered == 1
