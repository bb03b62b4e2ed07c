"""Relays progress updates to listeners that are on other cluster nodes.

    publish ─▶ waiting ─▶ one INSERT for the batch, which finds the listening nodes
        ─▶ one notification per node ─▶ that node reads the updates ─▶ its EphemeralTopics

The statement that writes a batch reads in `ephemeral_interest` which nodes listen (interest.py),
leaves out updates without listeners, and returns the nodes to notify. A node writes its batches one
after another. Updates have numbers in the order in which they were published, and keep them when a
write is repeated: a reader that follows the numbers of a source misses no update and reads none
twice. An update that was not read within FRESH_MS is dropped.

Invariants: the publisher of an update does not wait for the database; updates of a source are
delivered once, in its order; the memory for waiting updates is bounded, and the oldest go first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from random import Random
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import structlog
import trio

from aether_trio.cluster.node.bus import ALL
from aether_trio.cluster.node.query_pool import QueryPool
from aether_trio.cluster.relay.interest import Interest
from aether_trio.cluster.timeouts import ClusterLimits
from aether_trio.concurrency.events import AutoResetEvent
from aether_trio.concurrency.periodic_task import PeriodicTask
from aether_trio.concurrency.supervision import keep_running
from aether_trio.delivery.ephemeral_topics import EphemeralTopics
from aether_trio.storage.base import StorageUnavailable
from aether_trio.storage.bisection import in_halves
from aether_trio.storage.postgres.database import PostgresServer
from aether_trio.storage.retry import RETRY_DELAY_S

if TYPE_CHECKING:
    from aether_trio.cluster.cluster import Cluster

logger = structlog.get_logger("aether.cluster")

WAKE: Final = "progress"
GATHER_S: Final = 0.01  # between two batches: no person sees a progress bar move more often
BATCH_ROWS: Final = 1000
BATCH_BYTES: Final = 1024 * 1024
READ_ROWS: Final = 1000  # rows of one source in a statement
FRESH_MS: Final = 15_000
KEPT_MS: Final = 60_000

# The lease is read and not locked: nothing depends on an update that crosses the end of a lease.
_WRITE: Final = """
    WITH fresh AS (
        SELECT c.* FROM unnest($3::bigint[], $4::text[], $5::text[], $6::text[], $7::bytea[]) AS c (seq, topic, source, recipient, frame)
        WHERE EXISTS (SELECT FROM nodes WHERE node_id = $1 AND epoch = $2 AND alive)
    ), wanted AS MATERIALIZED (
        SELECT i.topic, array_agg(i.node_id) AS nodes
        FROM (SELECT DISTINCT topic FROM fresh) AS t JOIN ephemeral_interest i ON i.topic = t.topic
        JOIN nodes n ON n.node_id = i.node_id AND n.alive WHERE i.node_id <> $1 GROUP BY i.topic
    ), written AS (
        INSERT INTO ephemeral_updates (node_id, seq, nodes, topic, source, recipient, frame, written_ms)
        SELECT $1, f.seq, w.nodes, f.topic, f.source, f.recipient, f.frame, aether_now_ms()
        FROM fresh f JOIN wanted w ON w.topic = f.topic ON CONFLICT DO NOTHING
    )
    SELECT DISTINCT unnest(nodes) FROM wanted
"""
# `newest` is from the same snapshot: updates for other nodes are passed over without being read.
_READ: Final = """
    SELECT s.node_id, m.newest, u.seq, u.topic, u.source, u.recipient, u.frame
    FROM (
        SELECT n.node_id, coalesce(c.position, 0) AS position FROM nodes n
        LEFT JOIN unnest($2::int[], $3::bigint[]) AS c (node_id, position) ON c.node_id = n.node_id
        WHERE n.node_id <> $1 AND (n.alive OR n.ended_ms > aether_now_ms() - $4::bigint) AND %s
    ) AS s
    CROSS JOIN LATERAL (SELECT max(l.seq) AS newest FROM ephemeral_updates l WHERE l.node_id = s.node_id) AS m
    LEFT JOIN LATERAL (
        SELECT l.seq, l.topic, l.source, l.recipient, l.frame FROM ephemeral_updates l
        WHERE l.node_id = s.node_id AND l.seq > s.position AND $1 = ANY(l.nodes) AND l.written_ms > aether_now_ms() - $4::bigint
        ORDER BY l.seq LIMIT $5
    ) AS u ON true
    ORDER BY s.node_id, u.seq
"""
_READ_ALL: Final = _READ % "true"
_READ_SOME: Final = _READ % "n.node_id = ANY($6::int[])"
_FORGET: Final = """
    DELETE FROM ephemeral_updates WHERE written_ms < aether_now_ms() - $2::bigint AND node_id = ANY(ARRAY(
        SELECT $1::int UNION ALL SELECT node_id FROM nodes WHERE NOT alive AND ended_ms < aether_now_ms() - $2::bigint
    ))
"""


@dataclass(frozen=True, slots=True)
class ProgressRelayLimits:
    """How many progress updates wait for other nodes, and how long, in seconds."""

    waiting_rows: int = 10_000
    waiting_bytes: int = 4 * 1024 * 1024
    poll_s: float = 5.0  # between two looks that make up for lost notifications
    linger_s: float = 10.0  # how long a topic's interest stays after its last listener has gone


@dataclass(slots=True)
class ProgressRelayStatistics:
    """Counters of progress updates between nodes; `waiting`, `interests` are of now.

    `written` counts updates given to the database, which stores those that another node wants;
    `dropped` counts the oldest updates when too many waited; `received` those of other nodes.
    """

    offered: int = 0
    written: int = 0
    batches: int = 0
    dropped: int = 0
    waiting: int = 0
    received: int = 0
    reads: int = 0
    interests: int = 0


class _Update(NamedTuple):
    seq: int
    topic: str
    source: str
    recipient: str
    frame: bytes


class ProgressRelay:
    """Sends progress updates to nodes with listeners; `run` must run, then `close`."""

    def __init__(
        self,
        server: PostgresServer,
        cluster: Cluster,
        ephemeral_topics: EphemeralTopics,
        cluster_limits: ClusterLimits,
        limits: ProgressRelayLimits,
        first_seq: int,
        random: Random,
    ) -> None:
        self._cluster = cluster
        self._ephemeral_topics = ephemeral_topics
        self._limits = limits
        self._reading = PeriodicTask("progress from other nodes", self._read_on, random, every_s=limits.poll_s)
        # One connection writes, the other reads.
        self._queries = QueryPool(server, cluster_limits, "progress", 2, "SET synchronous_commit = off")
        self._interest = Interest(
            self._queries, cluster.lease, "ephemeral_interest", ephemeral_topics.listened_topics, limits.linger_s
        )
        self._seq = first_seq
        self._waiting: deque[_Update] = deque()
        self._waiting_bytes = 0
        self._work = AutoResetEvent()
        self._positions: dict[int, int] = {}
        self._woken: set[int] = set()
        self._woken_all = False
        self._counts = ProgressRelayStatistics()
        cluster.bus.handle(WAKE, self._on_wake)
        cluster.peers.when_joined(self._read_all)
        cluster.when_renewed(self._renew)

    def statistics(self) -> ProgressRelayStatistics:
        """Return the counters of progress updates since start, and how many wait."""
        return replace(self._counts, waiting=len(self._waiting), interests=len(self._interest))

    # -- EphemeralRelay ----------------------------------------------------------------------------

    async def expect(self, topics: Sequence[str]) -> None:
        await self._interest.expect(topics)

    def listening(self, topic: str) -> None:
        self._interest.add(topic)

    def publish(self, topic: str, source: str, recipient: str, frame: bytes) -> None:
        if self._cluster.peers.empty:
            return
        self._counts.offered += 1
        self._seq += 1
        self._waiting.append(_Update(self._seq, topic, source, recipient, frame))
        self._waiting_bytes += len(frame)
        self._drop_oldest()
        self._work.set()

    def _drop_oldest(self) -> None:
        limits = self._limits
        while len(self._waiting) > limits.waiting_rows or self._waiting_bytes > limits.waiting_bytes:
            self._waiting_bytes -= len(self._waiting.popleft().frame)
            self._counts.dropped += 1

    # -- writing -----------------------------------------------------------------------------------

    def _take(self) -> list[_Update]:
        batch: list[_Update] = []
        size = 0
        while (
            self._waiting
            and len(batch) < BATCH_ROWS
            and (not batch or size + len(self._waiting[0].frame) <= BATCH_BYTES)
        ):
            batch.append(self._waiting.popleft())
            size += len(batch[-1].frame)
        self._waiting_bytes -= size
        return batch

    async def _write(self) -> None:
        """Write one batch of updates, which waits again after StorageUnavailable."""
        batch = self._take()
        try:
            rows = await in_halves(batch, self._write_some, self._drop)
        except BaseException:
            self._waiting.extendleft(reversed(batch))
            self._waiting_bytes += sum(len(one.frame) for one in batch)
            self._drop_oldest()
            raise
        self._counts.batches += 1
        self._counts.written += len(batch)
        for (node_id,) in rows:
            self._cluster.bus.send(node_id, WAKE, "")

    async def _write_some(self, batch: Sequence[Any]) -> list[Any]:
        lease = self._cluster.lease
        columns = map(list, zip(*batch, strict=True))
        return await self._queries.fetch(_WRITE, lease.node_id, lease.epoch, *columns)

    def _drop(self, one: Any, error: Exception) -> None:
        self._counts.dropped += 1
        logger.error("a progress update cannot be written for other nodes", topic=one.topic, reason=str(error))

    async def _write_on(self) -> None:
        while True:
            if not self._waiting:
                await self._work.wait()
            while self._waiting:
                try:
                    await self._write()
                except StorageUnavailable as exc:
                    logger.info(
                        "progress updates for other nodes wait until storage answers",
                        waiting=len(self._waiting),
                        reason=str(exc),
                    )
                    await trio.sleep(RETRY_DELAY_S)
                await trio.sleep(GATHER_S)

    # -- reading -----------------------------------------------------------------------------------

    def _on_wake(self, sender: int, body: str) -> None:
        if body == ALL and not sender:  # the bus has been away
            self._woken_all = True
        else:
            self._woken.add(sender)
        self._reading.trigger()

    def _renew(self) -> None:
        self._interest.renew()
        self._read_all()

    def _read_all(self) -> None:
        self._woken_all = True
        self._reading.trigger()

    async def _read_on(self, periodic: bool) -> None:
        woken, everything = self._woken, self._woken_all or periodic
        self._woken, self._woken_all = set(), False
        try:
            if everything:
                await self._look_around()
            await self._read(None if everything else woken)
        except StorageUnavailable:
            self._woken_all = True
            raise

    async def _look_around(self) -> None:
        await self._interest.look_after()
        await self._queries.fetch(_FORGET, self._cluster.node_id, KEPT_MS)

    async def _read(self, sources: set[int] | None) -> None:
        """Deliver the new progress updates of these nodes; None is all nodes."""
        while sources is None or sources:
            positions = self._positions
            args = (self._cluster.node_id, list(positions), list(positions.values()), FRESH_MS, READ_ROWS)
            if sources is None:
                rows = await self._queries.fetch(_READ_ALL, *args)
                # Nodes that have ended send nothing more.
                self._positions = {row[0]: positions.get(row[0], 0) for row in rows}
            else:
                rows = await self._queries.fetch(_READ_SOME, *args, list(sources))
            self._counts.reads += 1
            sources = self._deliver(rows)

    def _deliver(self, rows: Sequence[tuple[int, int | None, int | None, str, str, str, bytes]]) -> set[int]:
        """Deliver updates of other nodes to listeners; return the nodes that have more."""
        counts: dict[int, int] = {}
        newest: dict[int, int] = {}
        for node_id, newest_seq, seq, topic, source, recipient, frame in rows:
            if seq is not None:
                counts[node_id] = counts.get(node_id, 0) + 1
                self._positions[node_id] = seq
                self._counts.received += 1
                self._ephemeral_topics.deliver(topic, source, recipient, frame)
            newest[node_id] = newest_seq or 0
        more = {node_id for node_id, count in counts.items() if count >= READ_ROWS}
        for node_id, seq in newest.items():
            if node_id not in more:
                self._positions[node_id] = max(self._positions.get(node_id, 0), seq)
        return more

    # -- its tasks ---------------------------------------------------------------------------------

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write this node's progress updates, and read other nodes', until cancelled."""
        await self._look_around()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep_running, "progress relay: interest", self._interest.run)
            nursery.start_soon(keep_running, "progress relay: write", self._write_on)
            nursery.start_soon(keep_running, "progress relay: read", self._reading.run)
            task_status.started()

    async def close(self) -> None:
        """Close the relay's PostgreSQL connections."""
        await self._queries.close()


@asynccontextmanager
async def open_progress_relay(
    server: PostgresServer,
    cluster: Cluster,
    ephemeral_topics: EphemeralTopics,
    *,
    first_seq: int,
    cluster_limits: ClusterLimits,
    limits: ProgressRelayLimits | None = None,
    random: Random | None = None,
) -> AsyncIterator[ProgressRelay]:
    """Relay progress updates between cluster nodes until the block ends.

    Numbers of updates begin after `first_seq`. Give the time in microseconds: the numbers have to
    grow even if a database that lost transactions gives this node the number of another one.
    """
    random = random or Random()  # noqa: S311  # spreads looks
    relay = ProgressRelay(
        server, cluster, ephemeral_topics, cluster_limits, limits or ProgressRelayLimits(), first_seq, random
    )
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(relay.run)
            with ephemeral_topics.relayed_by(relay):
                yield relay
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            await relay.close()
