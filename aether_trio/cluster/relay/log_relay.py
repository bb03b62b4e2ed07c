"""Who is told that a topic of the log has something new: the nodes that listen to it, after the commit, with one hint a batch and node.

    a group is committed ──▶ topics that have something new ──▶ one statement: who listens to them? NOTIFY: "look at these topics"
    that hint, or a look now and then ──▶ TopicLog.woken / TopicLog.learn, which read from the log (log/remote_commits.py)

A node makes its interest known, and reads the topic's tail after that. Interest is looked up after the commit. So a message is in the tail
that the listener read, or its node is found: no message falls between the two, and no message is read because of what a hint says.
A hint that is lost, or was never sent as its node was killed after the commit, is made up for by a look at the tails of all topics
that are listened to, every `poll_s`, and at once when the bus has been away.

Who listens is looked up and told in one statement, since a statement is a round trip, and a message waits for it. While it is under way
the next topics gather, so there are as few NOTIFYs as the database is slow, however many groups.

Invariants: nothing here waits on the way of a message; while no other node is known nothing is looked up; nobody is notified of a topic
to which only this node listens.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any, Final

import msgspec
import structlog
import trio

from aether_trio.cluster.limits import ClusterLimits
from aether_trio.cluster.node.bus import ALL, payload_sql
from aether_trio.cluster.node.queries import Queries
from aether_trio.cluster.relay.interest import Interest
from aether_trio.concurrency.periodic_task import PeriodicTask
from aether_trio.concurrency.supervision import keep_running
from aether_trio.log.cached_topic import CachedTopic
from aether_trio.log.topic_log import TopicLog
from aether_trio.storage.base import StorageUnavailable
from aether_trio.storage.bisection import in_halves
from aether_trio.storage.postgres.database import PostgresServer
from aether_trio.storage.retry import RETRY_DELAY_S

if TYPE_CHECKING:
    from aether_trio.cluster.cluster import Cluster

logger = structlog.get_logger("aether.cluster")

WAKE: Final = "log"
TOPICS_AT_ONCE: Final = 500
PART_BYTES: Final = 7000
"""Topics of one payload, in JSON and with what is between them."""
PART_PAUSE_S: Final = 0.01

_TELL: Final = f"""
    SELECT told.topics, pg_notify($2::text || told.node_id, told.payload) FROM (
        SELECT i.node_id, count(*) AS topics, {payload_sql("$1::int", f"'{WAKE}'::text", "string_agg(w.said, chr(10))")} AS payload
        FROM unnest($3::text[], $4::text[], $5::int[]) AS w (topic, said, part)
        CROSS JOIN LATERAL (SELECT x.node_id FROM topic_interest x WHERE x.topic = w.topic COLLATE "C" OFFSET 0) AS i
        WHERE i.node_id <> $1
        GROUP BY i.node_id, w.part
    ) AS told
"""  # noqa: S608  # a constant


@dataclass(frozen=True, slots=True)
class TailLimits:
    """In seconds."""

    poll_s: float = 5.0
    """Between two looks at what hints would have told."""
    linger_s: float = 10.0
    """Interest stays for that long after the last listener has gone."""


@dataclass(frozen=True, slots=True)
class TailStatistics:
    """Since start, but for `interests`. `committed` are topics of groups, `lookups` statements that asked who listens to them, `statements`
    those of them that notified somebody, with `notifies` payloads; `wakes` are the topics that other nodes were told of, `woken` those
    this node was told of, `looks` the rounds without a hint."""

    committed: int
    lookups: int
    statements: int
    notifies: int
    wakes: int
    woken: int
    looks: int
    interests: int


class ClusterTails:
    """A LogRelay; see the module docstring. `run` must run while sessions live, `close` after it."""

    def __init__(
        self,
        server: PostgresServer,
        cluster: Cluster,
        log: TopicLog,
        cluster_limits: ClusterLimits,
        limits: TailLimits,
        random: Random,
    ) -> None:
        self._cluster = cluster
        self._log = log
        self._round = PeriodicTask("what other nodes have committed", self._look_around, random, every_s=limits.poll_s)
        # One that says what this node listens to, one that asks who listens and tells them.
        self._queries = Queries(server, cluster_limits, "tails", 2, "SET synchronous_commit = off")
        self._interest = Interest(
            self._queries,
            cluster.lease,
            "topic_interest",
            lambda: [state.name for state in log.subscribed_topics()],
            limits.linger_s,
        )
        self._news: dict[str, None] = {}
        self._work = trio.Event()
        self._committed = self._lookups = self._looks = 0
        self._statements = self._notifies = self._wakes = self._woken = 0
        cluster.bus.handle(WAKE, self._hear_wake)
        cluster.on_renewal.append(self._renew)

    def statistics(self) -> TailStatistics:
        """What has happened so far."""
        return TailStatistics(
            self._committed,
            self._lookups,
            self._statements,
            self._notifies,
            self._wakes,
            self._woken,
            self._looks,
            len(self._interest),
        )

    # -- LogRelay -------------------------------------------------------------------------------------------------

    async def expect(self, topics: Sequence[str]) -> None:
        """See LogRelay."""
        await self._interest.expect(topics)

    def committed(self, states: Iterable[CachedTopic]) -> None:
        """See LogRelay."""
        if not self._cluster.peers.empty:
            for state in states:
                self._news[state.name] = None
            self._work.set()

    # -- telling --------------------------------------------------------------------------------------------------

    async def _tell_on(self) -> None:
        while True:
            if not self._news:
                await self._work.wait()
            self._work = trio.Event()
            while self._news:
                topics = list(self._news)[:TOPICS_AT_ONCE]
                for topic in topics:
                    del self._news[topic]
                try:
                    await self._tell(topics)
                except StorageUnavailable as exc:
                    # Whoever listens looks by itself.
                    logger.info("who listens was not found out", topics=len(topics), reason=str(exc))
                    await trio.sleep(RETRY_DELAY_S)

    async def _tell(self, topics: Sequence[str]) -> None:
        node_id, channel = self._cluster.node_id, self._cluster.bus.node_channel

        async def tell(some: Sequence[str]) -> list[Any]:
            return await self._queries.fetch(_TELL, node_id, channel, some, *said_in_parts(some))

        told = await in_halves(
            topics, tell, lambda topic, error: logger.error("nobody is told of a topic", topic=topic, reason=str(error))
        )
        self._committed += len(topics)
        self._lookups += 1
        self._statements += bool(told)
        self._notifies += len(told)
        self._wakes += sum(row[0] for row in told)

    # -- being told -----------------------------------------------------------------------------------------------

    def _hear_wake(self, _sender: int, body: str) -> None:
        if body == ALL:
            self._round.trigger()
        else:
            names = body.split("\n")
            self._woken += len(names)
            self._log.on_remote_commits(names)

    def _renew(self) -> None:
        self._interest.renew()
        self._round.trigger()

    async def _look_around(self, _alone: bool) -> None:
        await self._interest.look_after()
        self._looks += 1
        heard = self._log.subscribed_topics()
        for start in range(0, len(heard), TOPICS_AT_ONCE):
            await self._log.refresh(heard[start : start + TOPICS_AT_ONCE])
            await trio.sleep(PART_PAUSE_S)  # a look at very many is in no hurry

    # -- its tasks ------------------------------------------------------------------------------------------------

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Tell and look until cancelled. Started when it has looked. Raises StorageUnavailable when it cannot."""
        await self._look_around(True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep_running, "tails: interest", self._interest.run)
            nursery.start_soon(keep_running, "tails: tell on", self._tell_on)
            nursery.start_soon(keep_running, "tails: round", self._round.run)
            task_status.started()

    async def close(self) -> None:
        """Close the connections."""
        await self._queries.close()


def said_in_parts(topics: Sequence[str]) -> tuple[list[str], list[int]]:
    """What is said of each topic, and in which part, so that each part fits a payload. ALL, in a part of its own, stands for one that
    would not fit or could not be told from two."""
    said: list[str] = []
    parts: list[int] = []
    part = size = 0
    for topic in topics:
        alone = "\n" in topic or len(topic) > PART_BYTES
        need = PART_BYTES + 1 if alone else len(msgspec.json.encode(topic))
        if size and size + need > PART_BYTES:
            part, size = part + 1, 0
        said.append(ALL if need > PART_BYTES else topic)
        parts.append(part)
        size += need
    return said, parts


@asynccontextmanager
async def open_cluster_tails(
    server: PostgresServer,
    cluster: Cluster,
    log: TopicLog,
    *,
    cluster_limits: ClusterLimits | None = None,
    limits: TailLimits | None = None,
    random: Random | None = None,
) -> AsyncIterator[ClusterTails]:
    """Make `log` hear of what other nodes commit, and them of what it commits, until the block ends. Raises StorageUnavailable."""
    random = random or Random()  # noqa: S311  # spreads looks
    tails = ClusterTails(server, cluster, log, cluster_limits or ClusterLimits(), limits or TailLimits(), random)
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(tails.run)
            with log.relayed_by(tails):
                yield tails
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            await tails.close()
