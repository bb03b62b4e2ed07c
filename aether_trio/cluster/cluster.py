"""A gateway as a node of a cluster: its lease, its identity locks and its bus.

While the block of `open_cluster` is open the lease fences every write of `server`. Its end gives
everything back at once: waiting releases are written, the node's other identity locks end in one
transaction, and the lease is free.
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

LEAVE_S: Final = 3.0  # for the waiting releases, and for the rest, at a node's end


class Cluster:
    """The lease, locks, bus and peers of this cluster node; reacts to lease changes."""

    def __init__(
        self,
        server: PostgresServer,
        host: SessionHost,
        info: NodeInfo,
        limits: ClusterLimits,
        random: Random,
        connections_of: Callable[[str], int],
    ) -> None:
        self._server = server
        self._host = host
        self.lease = Lease(server, info, limits, self, random)
        self.nodes = Nodes(server, self.lease, limits, random)
        self.bus = Bus(server, self.lease, limits, random)
        self.peers = Peers(self.nodes, self.bus, random, limits.poll_s)
        make_batcher = partial(ClaimBatcher, server, self.lease, self.nodes.pool, limits, connections_of)
        self.locks = ClusterLocks(self.lease, self.nodes, self.bus, host, limits, make_batcher, connections_of)
        self._on_renewal: list[Callable[[], None]] = []

    @property
    def node_id(self) -> int:
        """This node's number in the cluster; a failover that lost its row changes it."""
        return self.lease.node_id

    def when_renewed(self, call: Callable[[], None]) -> None:
        """Have `call` called when this node has a lease again after it was declared dead."""
        self._on_renewal.append(call)

    def leaving(self) -> list[str]:
        """Return identities whose session ended here and whose lock row is not ended."""
        return [*self._host.leaving(), *self.locks.releasing()]

    def lease_lost(self) -> None:
        # When the link to the server has stalled, so have the idle connections.
        for pool in (self.nodes.pool, self._server.writers, self._server.readers):
            pool.discard_idle()
        self._host.lease_lost()

    def lease_back(self, rows: LockRows, *, renewed: bool) -> None:
        kept = frozenset(identity for identity, _ in rows) if renewed else None
        self._host.lease_back(self.locks.reconcile(rows), kept)
        self.bus.broadcast(NEWS, ALL)  # locks that were void may be in force again

    def lease_gone(self) -> None:
        self.locks.forget()
        self._host.lease_gone()

    def lease_renewed(self) -> None:
        for notify in self._on_renewal:
            notify()

    def questions(self) -> None:
        self.locks.look()

    async def leave(self) -> None:
        """Release this node's identity locks and its lease, in bounded time; never raises."""
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
    connections_of: Callable[[str], int] = lambda workspace: 0,
) -> AsyncIterator[Cluster]:
    """Join the cluster of a PostgreSQL server as a node. Raises StorageUnavailable.

    `connections_of(workspace)` is how many connections it may have on all nodes; 0: any number.
    """
    await server.database("cluster")
    random = random or Random()  # noqa: S311  # spreads attempts
    cluster = Cluster(server, host, info, limits or ClusterLimits(), random, connections_of)
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
