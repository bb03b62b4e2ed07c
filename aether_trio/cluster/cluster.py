"""One node of a cluster: its lease, its identity locks and its bus.

    async with open_postgres(dsn) as server, open_cluster(server, host, info) as cluster:
        granted = await cluster.locks.claim(LockRequest(identity, session_id, "agent", now_ms))
        ...
        cluster.locks.release(granted.lock)

A gateway on SQLite has none of this, only its registry. While the block is open the lease fences
every write of `server`. Its end gives everything back at once: releases that wait are written, the
node's other identity locks end in one transaction, and the lease is free.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from random import Random
from typing import Final

import structlog
import trio

from aether_trio.cluster.locks.claim_batcher import ClaimBatcher
from aether_trio.cluster.locks.cluster_locks import NEWS, ClusterLocks
from aether_trio.cluster.node.bus import ALL, Bus
from aether_trio.cluster.node.lease import Lease, LockRows, NodeInfo
from aether_trio.cluster.node.liveness import Nodes
from aether_trio.cluster.node.peers import Peers
from aether_trio.cluster.session_host import SessionHost
from aether_trio.cluster.timeouts import ClusterLimits
from aether_trio.concurrency.supervision import keep_running
from aether_trio.storage.base import StorageUnavailable
from aether_trio.storage.postgres.database import PostgresServer

logger = structlog.get_logger("aether.cluster")

LEAVE_S: Final = 3.0
"""For the waiting releases, and for the rest, when a node ends. What is not written by then ends
with the lease."""


class Cluster:
    """The parts of a node, made by `open_cluster`, and the LeaseWatcher of its lease."""

    def __init__(
        self, server: PostgresServer, host: SessionHost, info: NodeInfo, limits: ClusterLimits, random: Random
    ) -> None:
        self._server = server
        self._host = host
        self.lease = Lease(server, info, limits, self, random)
        self.nodes = Nodes(server, self.lease, limits, random)
        self.bus = Bus(server, self.lease, limits, random)
        self.peers = Peers(self.nodes, self.bus, random, limits.poll_s)
        make_batcher = partial(ClaimBatcher, server, self.lease, self.nodes.pool, limits)
        self.locks = ClusterLocks(self.lease, self.nodes, self.bus, host, limits, make_batcher)
        self._on_renewal: list[Callable[[], None]] = []

    @property
    def node_id(self) -> int:
        """This node's number; another one after a failover that lost its registration."""
        return self.lease.node_id

    def when_renewed(self, call: Callable[[], None]) -> None:
        """Have `call` called when this node gets its lease again after it counted as dead.

        Other nodes may have deleted rows of this node.
        """
        self._on_renewal.append(call)

    def leaving(self) -> list[str]:
        """Return the identities whose session has ended here.

        Their rows still say that they are owned by this node.
        """
        return [*self._host.leaving(), *self.locks.releasing()]

    def lease_lost(self) -> None:
        """See LeaseWatcher."""
        # When the link to the server has stalled, so have the idle connections.
        for pool in (self.nodes.pool, self._server.writers, self._server.readers):
            pool.discard_idle()
        self._host.lease_lost()

    def lease_back(self, rows: LockRows, *, renewed: bool) -> None:
        """See LeaseWatcher."""
        kept = frozenset(identity for identity, _ in rows) if renewed else None
        self._host.lease_back(self.locks.reconcile(rows), kept)
        self.bus.broadcast(NEWS, ALL)  # locks that were void may be in force again

    def lease_gone(self) -> None:
        """See LeaseWatcher."""
        self.locks.forget()
        self._host.lease_gone()

    def lease_renewed(self) -> None:
        """See LeaseWatcher."""
        for notify in self._on_renewal:
            notify()

    def questions(self) -> None:
        """See LeaseWatcher."""
        self.locks.look()

    async def leave(self) -> None:
        """Give the locks and the lease back. Bounded in time; never raises."""
        with trio.move_on_after(LEAVE_S):
            await self.locks.batcher.settled()
        if self.lease.held:
            with trio.move_on_after(LEAVE_S):
                try:
                    await self.nodes.leave()
                    self.bus.broadcast(NEWS, ALL)
                except StorageUnavailable as exc:
                    logger.info(
                        "this node could not release its identity locks; they end with its lease", reason=str(exc)
                    )


@asynccontextmanager
async def open_cluster(
    server: PostgresServer,
    host: SessionHost,
    info: NodeInfo,
    *,
    limits: ClusterLimits | None = None,
    random: Random | None = None,
) -> AsyncIterator[Cluster]:
    """Join the cluster in `server`'s schema, until the block ends.

    Raises StorageSetupError and StorageUnavailable.
    """
    await server.database("cluster")
    cluster = Cluster(server, host, info, limits or ClusterLimits(), random or Random())  # noqa: S311  # spreads attempts
    async with trio.open_nursery() as nursery:
        try:
            await nursery.start(cluster.lease.run)
            await nursery.start(cluster.bus.run)
            await nursery.start(cluster.peers.run)
            nursery.start_soon(keep_running, "identity locks", cluster.locks.run)
            nursery.start_soon(keep_running, "nodes", cluster.nodes.run)
            server.fence_writes(cluster.lease.fence)
            yield cluster
        finally:
            with trio.CancelScope(shield=True):
                await cluster.leave()
                nursery.cancel_scope.cancel()
                await cluster.lease.close()
                await cluster.bus.close()
                await cluster.nodes.close()
