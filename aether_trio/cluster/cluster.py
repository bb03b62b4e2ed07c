"""One node of a cluster: its lease, its holds, its ears. A single gateway has none of this, only its registry.

    async with open_postgres(dsn) as server, open_cluster(server, host, NodeInfo("gateway-1")) as cluster:
        claimed = await cluster.locks.claim(ClaimRequest("ag::lab::mapper::1", session_id, "agent", now_ms, workspace="lab"))
        ...
        cluster.locks.release(claimed.lock)

While the block is open every write of `server` is fenced by the lease. Leaving it gives everything back at once: releases that wait
are made, what is left of this node's holds ends in one transaction, and the lease is free.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from random import Random
from typing import Final

import structlog
import trio

from aether_trio.cluster.limits import ClusterLimits
from aether_trio.cluster.locks.claim_batcher import ClaimBatcher
from aether_trio.cluster.locks.cluster_locks import NEWS, ClusterLocks
from aether_trio.cluster.node.bus import ALL, Bus
from aether_trio.cluster.node.lease import Lease, NodeInfo, Rows
from aether_trio.cluster.node.liveness import Nodes
from aether_trio.cluster.node.peers import Peers
from aether_trio.cluster.session_host import SessionHost
from aether_trio.concurrency.supervision import keep_running
from aether_trio.storage.base import StorageUnavailable
from aether_trio.storage.postgres.database import PostgresServer

logger = structlog.get_logger("aether.cluster")

LEAVE_S: Final = 3.0
"""For the releases that wait, and then for the rest, when a node ends. What is not done by then, the end of its lease does."""


class Cluster:
    """Made by `open_cluster`. A LeaseWatcher: what becomes of the lease, the holds and the host are told here."""

    def __init__(
        self, server: PostgresServer, host: SessionHost, info: NodeInfo, limits: ClusterLimits, random: Random
    ) -> None:
        self._server = server
        self._host = host
        self.lease = Lease(server, info, limits, self, random)
        self.nodes = Nodes(server, self.lease, limits, random)
        self.bus = Bus(server, self.lease, limits, random)
        self.peers = Peers(self.nodes, self.bus, random, limits.poll_s)
        make_desk = partial(ClaimBatcher, server, self.lease, self.nodes.pool, limits)
        self.locks = ClusterLocks(self.lease, self.nodes, self.bus, host, limits, make_desk)
        self.on_renewal: list[Callable[[], None]] = []
        """Called when this node, which was declared dead, has a lease again: what others delete for a dead node it is to write again.
        In one step."""

    @property
    def node_id(self) -> int:
        """This node's number; another one after a failover that lost its registration."""
        return self.lease.node_id

    def leaving(self) -> list[str]:
        """Return the identities whose session has ended here, while their rows say otherwise."""
        return [*self._host.leaving(), *self.locks.releasing()]

    def lease_lost(self) -> None:
        """See LeaseWatcher."""
        # If the way to the server has stalled, whatever waits for use there has as well.
        for pool in (self.nodes.pool, self._server.writers, self._server.readers):
            pool.discard_idle()
        self._host.lease_lost()

    def lease_back(self, rows: Rows, *, renewed: bool) -> None:
        """See LeaseWatcher."""
        kept = frozenset(identity for identity, _ in rows) if renewed else None
        self._host.lease_back(self.locks.reconcile(rows), kept)
        self.bus.broadcast(NEWS, ALL)  # what was void may be in force again

    def lease_gone(self) -> None:
        """See LeaseWatcher."""
        self.locks.forget()
        self._host.lease_gone()

    def lease_renewed(self) -> None:
        """See LeaseWatcher."""
        for tell in self.on_renewal:
            tell()

    def questions(self) -> None:
        """See LeaseWatcher."""
        self.locks.look()

    async def leave(self) -> None:
        """Give everything back. Bounded in time; never raises."""
        with trio.move_on_after(LEAVE_S):
            await self.locks.desk.settled()
        if self.lease.held:
            with trio.move_on_after(LEAVE_S):
                try:
                    await self.nodes.leave()
                    self.bus.broadcast(NEWS, ALL)
                except StorageUnavailable as exc:
                    logger.info("the end of the lease gives the holds back", reason=str(exc))


@asynccontextmanager
async def open_cluster(
    server: PostgresServer,
    host: SessionHost,
    info: NodeInfo,
    *,
    limits: ClusterLimits | None = None,
    random: Random | None = None,
) -> AsyncIterator[Cluster]:
    """Join the cluster in `server`'s schema, until the block ends. Raises StorageSetupError and StorageUnavailable."""
    await server.database("cluster")
    cluster = Cluster(server, host, info, limits or ClusterLimits(), random or Random())  # noqa: S311  # spreads attempts
    async with trio.open_nursery() as nursery:
        try:
            await nursery.start(cluster.lease.run)
            await nursery.start(cluster.bus.run)
            await nursery.start(cluster.peers.run)
            nursery.start_soon(keep_running, "holds", cluster.locks.run)
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
