"""Notifies cluster nodes that listen to a log topic of new messages in it.

    a small group is committed and pushed in one statement (log/pushed_messages.py)
    a large group is committed ─▶ its topics ─▶ one statement: NOTIFY the nodes that listen to them
    a push ─▶ TopicLog.on_pushed_messages; that notification ─▶ TopicLog.on_remote_commits
    a regular look ─▶ TopicLog.refresh

A node writes down which topics it listens to (interest.py), and reads a topic's end after that. A
committing node looks up the listeners after the commit. So a message is within the end that the
listener has read, or its node is found: no message falls between the two. A push looks them up
before the commit, under the locks of its topics. So a listener, between the two steps, also waits
for the locks of its topics (`_WAIT_FOR_PUSHES`).

A notification may be lost. So each node looks at the ends of all topics that it listens to every
`poll_s`, and at once when the bus has been away. The listeners of large groups are looked up and
notified in one statement; meanwhile the next topics gather, so there are as few NOTIFYs as the
database is slow.

A process that stood still may have other nodes' pushes in its sockets, and not have seen yet that
its lease has ended, and that other connections have its identities. So without a recent probe of
the lease it reads the messages, and by then it knows.

Invariants: the commit of a large group waits for nothing here; a node without peers looks nothing
up; no node is notified of a topic that it does not listen to.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from random import Random
from typing import TYPE_CHECKING, Any, Final

import msgspec
import structlog
import trio

from aether_trio.cluster.node.bus import ALL, payload_sql
from aether_trio.cluster.node.query_pool import QueryPool
from aether_trio.cluster.relay.interest import Interest
from aether_trio.cluster.timeouts import ClusterLimits
from aether_trio.concurrency.events import AutoResetEvent
from aether_trio.concurrency.periodic_task import PeriodicTask
from aether_trio.concurrency.supervision import keep_running
from aether_trio.log.group_writers import PushCounts
from aether_trio.log.pushed_messages import parse_push
from aether_trio.log.topic_cache import CachedTopic
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
PART_BYTES: Final = 7000  # bytes of the topics in one payload, in JSON and with what separates them
PART_PAUSE_S: Final = 0.01

_NOTIFY: Final = f"""
    SELECT notified.topics, pg_notify($2::text || notified.node_id, notified.payload) FROM (
        SELECT i.node_id, count(*) AS topics, {payload_sql("$1::int", f"'{WAKE}'::text", "string_agg(w.said, chr(10))")} AS payload
        FROM unnest($3::text[], $4::text[], $5::int[]) AS w (topic, said, part)
        CROSS JOIN LATERAL (SELECT x.node_id FROM topic_interest x WHERE x.topic = w.topic COLLATE "C" OFFSET 0) AS i
        WHERE i.node_id <> $1
        GROUP BY i.node_id, w.part
    ) AS notified
"""  # noqa: S608  # a constant

# A push that did not see the interest in a topic has the lock of its row until its commit. A topic
# that has no row yet gets one before its first push begins.
_WAIT_FOR_PUSHES: Final = """
    SELECT count(*) FROM (SELECT t.id FROM topics t WHERE t.name = ANY($1::text[]) ORDER BY t.id FOR SHARE) AS free
"""


@dataclass(frozen=True, slots=True)
class LogRelayLimits:
    """How long a node's relay of log topics waits, in seconds."""

    poll_s: float = 5.0  # between two looks that make up for lost notifications
    linger_s: float = 10.0  # how long a topic's interest stays after its last listener has gone


@dataclass(slots=True)
class LogRelayStatistics:
    """Counters of the relay of log topics; `interests` are topics listened to now.

    `committed` counts topics of groups, `lookups` statements that only looked up listeners,
    `statements` those that found some, commits among them, and `notifies` their payloads. `wakes`
    counts topics that other nodes were notified of, `woken` topics and pushed messages that this
    node was, `looks` the looks without a cause.
    """

    committed: int = 0
    lookups: int = 0
    statements: int = 0
    notifies: int = 0
    wakes: int = 0
    woken: int = 0
    looks: int = 0
    interests: int = 0


class ClusterLogRelay:
    """Notifies listening nodes of commits to log topics; `run` must run, then `close`."""

    def __init__(
        self,
        server: PostgresServer,
        cluster: Cluster,
        log: TopicLog,
        cluster_limits: ClusterLimits,
        limits: LogRelayLimits,
        random: Random,
    ) -> None:
        self._cluster = cluster
        self._log = log
        self._look = PeriodicTask("what other nodes have committed", self._look_around, random, every_s=limits.poll_s)
        # One connection writes what this node listens to, the other looks up listeners and notifies
        # them.
        self._queries = QueryPool(server, cluster_limits, "log-relay", 2, "SET synchronous_commit = off")
        self._interest = Interest(
            self._queries,
            cluster.lease,
            "topic_interest",
            lambda: [state.name for state in log.topics.subscribed()],
            limits.linger_s,
            behind_add=_WAIT_FOR_PUSHES,
        )
        self._news: dict[str, None] = {}
        self._work = AutoResetEvent()
        self._malformed = 0
        """Pushes since the last look that no node has sent."""
        self._counts = LogRelayStatistics()
        cluster.bus.handle(WAKE, self._on_wake)
        cluster.bus.handle_pushes(self._on_push)
        cluster.when_renewed(self._renew)

    def statistics(self) -> LogRelayStatistics:
        """Return the counters of the log relay, and the number of topics listened to."""
        return replace(self._counts, interests=len(self._interest))

    # -- LogRelay ----------------------------------------------------------------------------------

    async def expect(self, topics: Sequence[str]) -> None:
        await self._interest.expect(topics)

    def committed(self, states: Iterable[CachedTopic]) -> None:
        if not self._cluster.peers.empty:
            for state in states:
                self._news[state.name] = None
            self._work.set()

    @property
    def push_from(self) -> int:
        return 0 if self._cluster.peers.empty else self._cluster.node_id

    def pushed(self, topics: int, counts: PushCounts) -> None:
        self._counts.committed += topics
        self._counts.statements += bool(counts.payloads)
        self._counts.notifies += counts.payloads
        self._counts.wakes += counts.messages

    # -- notifying ---------------------------------------------------------------------------------

    async def _notify_on(self) -> None:
        while True:
            if not self._news:
                await self._work.wait()
            while self._news:
                topics = list(self._news)[:TOPICS_AT_ONCE]
                for topic in topics:
                    del self._news[topic]
                try:
                    await self._notify(topics)
                except StorageUnavailable as exc:
                    # The listening nodes look every few seconds.
                    logger.info(
                        "nodes that listen to topics were not notified of new messages; they look every few seconds",
                        topics=len(topics),
                        reason=str(exc),
                    )
                    await trio.sleep(RETRY_DELAY_S)

    async def _notify(self, topics: Sequence[str]) -> None:
        node_id, channel = self._cluster.node_id, self._cluster.bus.node_channel

        async def notify(some: Sequence[str]) -> list[Any]:
            return await self._queries.fetch(_NOTIFY, node_id, channel, some, *split_in_payloads(some))

        notified = await in_halves(topics, notify, _refused)
        self._counts.committed += len(topics)
        self._counts.lookups += 1
        self._counts.statements += bool(notified)
        self._counts.notifies += len(notified)
        self._counts.wakes += sum(row[0] for row in notified)

    # -- being notified ----------------------------------------------------------------------------

    def _on_wake(self, _sender: int, body: str) -> None:
        if body == ALL:
            self._look.trigger()
        else:
            names = body.split("\n")
            self._counts.woken += len(names)
            self._log.on_remote_commits(names)

    def _on_push(self, payload: str) -> None:
        try:
            messages = parse_push(payload)
        except ValueError:
            self._malformed += 1
            self._look.trigger()
            return
        self._counts.woken += len(messages)
        if self._cluster.lease.is_sure:
            self._log.on_pushed_messages(messages)
        else:
            self._log.on_remote_commits(dict.fromkeys(message.topic for message in messages))

    def _renew(self) -> None:
        self._interest.renew()
        self._look.trigger()

    async def _look_around(self, _periodic: bool) -> None:
        if self._malformed:
            logger.warning(
                "a program other than a node pushes messages to this node; it looks at the log", pushes=self._malformed
            )
            self._malformed = 0
        await self._interest.look_after()
        self._counts.looks += 1
        heard = self._log.topics.subscribed()
        for start in range(0, len(heard), TOPICS_AT_ONCE):
            await self._log.refresh(heard[start : start + TOPICS_AT_ONCE])
            await trio.sleep(PART_PAUSE_S)  # a look at very many topics is in no hurry

    # -- its tasks ---------------------------------------------------------------------------------

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Notify nodes of commits, and look for their commits, until cancelled."""
        await self._look_around(True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep_running, "log relay: interest", self._interest.run)
            nursery.start_soon(keep_running, "log relay: notify", self._notify_on)
            nursery.start_soon(keep_running, "log relay: look", self._look.run)
            task_status.started()

    async def close(self) -> None:
        """Close the relay's PostgreSQL connections."""
        await self._queries.close()


def _refused(topic: str, error: Exception) -> None:
    logger.error("PostgreSQL refuses to notify the nodes that listen to a topic", topic=topic, reason=str(error))


def split_in_payloads(topics: Sequence[str]) -> tuple[list[str], list[int]]:
    """Return each topic (ALL if it is too long), and the number of its NOTIFY payload."""
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
async def open_log_relay(
    server: PostgresServer,
    cluster: Cluster,
    log: TopicLog,
    *,
    cluster_limits: ClusterLimits,
    limits: LogRelayLimits | None = None,
    random: Random | None = None,
) -> AsyncIterator[ClusterLogRelay]:
    """Relay commits between `log` and other cluster nodes until the block ends."""
    random = random or Random()  # noqa: S311  # spreads looks
    relay = ClusterLogRelay(server, cluster, log, cluster_limits, limits or LogRelayLimits(), random)
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(relay.run)
            with log.relayed_by(relay):
                yield relay
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            await relay.close()
