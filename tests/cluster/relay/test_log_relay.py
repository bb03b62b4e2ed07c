"""The nodes that are notified of new messages in a topic: exactly its listeners."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from random import Random
from typing import cast

import msgspec
import structlog.testing
import trio
from hypothesis import given
from hypothesis import strategies as st

from aether_trio.cluster.node.bus import ALL, MAX_PAYLOAD_BYTES
from aether_trio.cluster.relay.log_relay import (
    PART_BYTES,
    ClusterLogRelay,
    LogRelayLimits,
    open_log_relay,
    split_in_payloads,
)
from aether_trio.log.topic_cache import CachedTopic
from aether_trio.log.topic_log import LogRelay, TopicLog
from tests.cluster.nodes import LONG_S, STEADY, Node, Nodes, until
from tests.helpers.engines import PostgresEngine

LATE = LogRelayLimits(poll_s=10 * LONG_S)
ODD = ['ag::lab::"x"::1', "ag::lab::\\::1", "ag::lab::\t\x01::1", "ag::lab::é漢😀::1", "%n"]


class HeardTopics(list[CachedTopic]):
    """Stands in for a TopicCache in which each topic has a subscriber."""

    def subscribed(self) -> list[CachedTopic]:
        return self


class Ears:
    """The part of a TopicLog that ClusterLogRelay needs; listens to a given set."""

    def __init__(self) -> None:
        self.relay: LogRelay | None = None
        self.topics = HeardTopics()
        self.told: list[str] = []
        self.looked = 0
        self.receive_push: Callable[[str], None] | None = None

    @contextmanager
    def relayed_by(self, relay: LogRelay) -> Iterator[None]:
        self.relay = relay
        yield
        self.relay = None

    def on_remote_commits(self, names: Iterable[str]) -> None:
        self.told += names

    async def refresh(self, topics: Sequence[CachedTopic]) -> None:
        await trio.lowlevel.checkpoint()
        self.looked += 1

    async def listen(self, *names: str) -> None:
        assert self.relay is not None
        with trio.fail_after(LONG_S):
            await self.relay.expect(names)
        self.topics += map(CachedTopic, names)

    def push(self, payload: str) -> None:
        """What the bus does with a NOTIFY on the node's channel for pushes."""
        assert self.receive_push is not None
        self.receive_push(payload)

    def commit(self, *names: str) -> None:
        assert self.relay is not None
        self.relay.committed(map(CachedTopic, names))


@asynccontextmanager
async def ears(node: Node) -> AsyncIterator[tuple[Ears, ClusterLogRelay]]:
    log = Ears()
    await node.server.database("log")
    async with open_log_relay(
        node.server, node.cluster, cast("TopicLog", log), cluster_limits=STEADY, limits=LATE, random=Random(1)
    ) as tails:
        log.receive_push = node.cluster.bus.receive_push
        yield log, tails


async def test_only_nodes_that_listen_are_notified(nodes: Nodes) -> None:
    first, second, third = [await nodes.start() for _ in range(3)]
    async with ears(first) as (a, one), ears(second) as (b, _), ears(third) as (c, _):
        await until(lambda: not one._cluster.peers.empty)
        await a.listen("ag::lab::mine::1", "ag::lab::both::1")
        await b.listen("ag::lab::both::1", *ODD)
        await c.listen("ag::lab::both::1")
        a.commit("ag::lab::mine::1", "ag::lab::nobodys::1")
        await until(lambda: one.statistics().committed == 2)
        assert (one.statistics().lookups, one.statistics().statements) == (1, 0), "no other node listens"
        a.commit("ag::lab::both::1", *ODD)
        await until(lambda: len(b.told) == 1 + len(ODD))
        assert sorted(b.told) == sorted(["ag::lab::both::1", *ODD])
        await until(lambda: bool(c.told))
        assert c.told == ["ag::lab::both::1"]
        assert a.told == []
        await until(lambda: one.statistics().lookups == 2)  # counted when it is answered
        done = one.statistics()
        assert (done.lookups, done.statements, done.notifies, done.wakes) == (2, 1, 2, 2 + len(ODD))


async def test_a_node_listens_when_the_appends_that_do_not_know_of_it_are_committed(
    nodes: Nodes, postgres_engine: PostgresEngine
) -> None:
    async with ears(await nodes.start()) as (a, _):
        rows = postgres_engine.rows
        postgres_engine.outside("INSERT INTO topics (name) VALUES ('ag::lab::x::1')")
        postgres_engine.outside("BEGIN; SELECT id FROM topics FOR UPDATE")
        waiting = (
            "SELECT 1 FROM pg_stat_activity WHERE application_name = 'aether-log-relay' AND wait_event_type = 'Lock'"
        )
        listening = trio.Event()

        async def listen() -> None:
            await a.listen("ag::lab::x::1")
            listening.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen)
            await until(lambda: bool(rows(waiting)))
            assert not listening.is_set()
            assert rows("SELECT topic FROM topic_interest") == [("ag::lab::x::1",)], "others know of it by then"
            postgres_engine.outside("COMMIT")
        assert listening.is_set()


async def test_a_malformed_push_makes_the_listener_look(nodes: Nodes) -> None:
    async with ears(await nodes.start()) as (a, _):
        await a.listen("ag::lab::x::1")
        looks = a.looked
        a.push("not of a node")
        await until(lambda: a.looked > looks)


async def test_many_malformed_pushes_are_one_line_in_the_log(nodes: Nodes) -> None:
    async with ears(await nodes.start()) as (a, _):
        await a.listen("ag::lab::x::1")
        looks = a.looked
        with structlog.testing.capture_logs() as logs:
            for _ in range(100):
                a.push("not of a node")
            await until(lambda: a.looked > looks)
        assert [entry["pushes"] for entry in logs if "pushes" in entry] == [100]


async def test_any_number_of_topics_is_told_in_few_statements(nodes: Nodes) -> None:
    names = [f"ag::lab::{'listener' * 4}::{number}" for number in range(1200)]
    async with ears(await nodes.start()) as (a, one), ears(await nodes.start()) as (b, _):
        await until(lambda: not one._cluster.peers.empty)
        await b.listen(*names)
        a.commit(*names)
        await until(lambda: len(b.told) >= len(names))
        assert sorted(b.told) == sorted(names)
        # A statement counts when it is answered, which may be behind what it tells.
        await until(lambda: one.statistics().committed == len(names))
        assert one.statistics().statements == 3
        assert one.statistics().notifies < 15


async def test_what_a_hint_cannot_say_makes_the_listener_look_at_everything(nodes: Nodes) -> None:
    long, torn = "ag::lab::" + "x" * 9000, "ag::lab::two\nlines"
    async with ears(await nodes.start()) as (a, one), ears(await nodes.start()) as (b, _):
        await until(lambda: not one._cluster.peers.empty)
        await b.listen("ag::lab::x::1", "ag::lab::y::1", torn)
        looks = b.looked
        a.commit("ag::lab::x::1", torn, long, "ag::lab::y::1")
        await until(lambda: b.looked > looks and len(b.told) == 2)
        assert sorted(b.told) == ["ag::lab::x::1", "ag::lab::y::1"]


@given(st.lists(st.one_of(st.text(max_size=40), st.text(min_size=100).map(lambda text: text * 100)), max_size=300))
def test_every_part_fits_a_payload_and_says_its_topics(topics: list[str]) -> None:
    said, parts = split_in_payloads(topics)
    assert parts == sorted(parts)
    bodies: dict[int, list[str]] = {}
    for one, part in zip(said, parts, strict=True):
        bodies.setdefault(part, []).append(one)
    for names in bodies.values():
        payload = msgspec.json.encode([2**31, [["log", "\n".join(names)]]])
        assert len(payload) <= PART_BYTES + 100 < MAX_PAYLOAD_BYTES
        assert ALL not in names or len(names) == 1 or ALL in topics
    for topic, one in zip(topics, said, strict=True):
        assert one == topic or (one == ALL and ("\n" in topic or len(msgspec.json.encode(topic)) > PART_BYTES))
