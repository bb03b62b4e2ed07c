"""Makes a gateway work alone, or as a node of a cluster that knows all sessions.

    SQLite      ──▶ registry                             nothing else
    PostgreSQL  ──▶ registry + cluster (lease, identity locks, bus) + session directory
                    + progress and log of the other nodes

Services and sessions are handed an IdentityLocks and a SessionDirectory, the log and the topics get
a relay. Leaving a cluster: what sessions appended and read is committed first, then everything is
given back at once, so that other nodes take over without a wait.
"""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import structlog
import trio

from aether_trio.config import Settings
from aether_trio.delivery.ephemeral_topics import EphemeralTopics
from aether_trio.gateway.databases import Databases, starting
from aether_trio.log.topic_log import TopicLog
from aether_trio.model.clock import Clock
from aether_trio.model.quotas import WorkspaceQuotas
from aether_trio.session.directory import LocalDirectory, SessionDirectory
from aether_trio.session.identity_locks import IdentityLocks, LocalIdentityLocks, NodeIdentityLocks
from aether_trio.session.lease_gate import LeaseGate
from aether_trio.session.node_sessions import NodeSessions
from aether_trio.session.registry import SessionRegistry
from aether_trio.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from aether_trio.cluster.cluster import Cluster
    from aether_trio.storage.postgres.database import PostgresServer

logger = structlog.get_logger("aether.core")

SETTLE_S: Final = 10.0
"""For what was appended and read, before this node gives up what it holds."""


@dataclass(frozen=True, slots=True)
class ClusterMembership:
    """The registry, locks and directory of sessions, on one node or in a cluster.

    `cluster` is None for a gateway that is alone. `statistics` are those of the cluster's parts, by
    name.
    """

    registry: SessionRegistry
    gate: LeaseGate
    locks: IdentityLocks
    directory: SessionDirectory
    cluster: Cluster | None = None
    statistics: Mapping[str, Callable[[], Any]] = field(default_factory=dict)


@asynccontextmanager
async def open_membership(
    settings: Settings,
    clock: Clock,
    databases: Databases,
    log: TopicLog,
    ephemeral_topics: EphemeralTopics,
    quotas: WorkspaceQuotas,
) -> AsyncIterator[ClusterMembership]:
    """Join the cluster or be alone until the block ends. Raises StorageSetupError."""
    if databases.server is None:
        registry = SessionRegistry(quotas.connections)
        yield ClusterMembership(registry, LeaseGate(), LocalIdentityLocks(registry), LocalDirectory(registry))
        return

    with starting("this gateway could not join the cluster") as done:
        joined = _join_cluster(settings, clock, databases.server, log, ephemeral_topics, quotas)
        async with joined as membership:
            done()
            yield membership


@asynccontextmanager
async def _join_cluster(
    settings: Settings,
    clock: Clock,
    server: PostgresServer,
    log: TopicLog,
    ephemeral_topics: EphemeralTopics,
    quotas: WorkspaceQuotas,
) -> AsyncIterator[ClusterMembership]:
    from aether_trio.cluster.cluster import open_cluster
    from aether_trio.cluster.locks.directory import open_directory
    from aether_trio.cluster.node.lease import NodeInfo
    from aether_trio.cluster.relay.log_relay import open_log_relay
    from aether_trio.cluster.relay.progress_relay import open_progress_relay
    from aether_trio.cluster.timeouts import ClusterLimits

    # The cluster counts the connections of a workspace, all nodes together.
    registry = SessionRegistry()
    sessions = NodeSessions(registry, log)
    info = NodeInfo(settings.gateway.node_name or f"{socket.gethostname()}:{os.getpid()}", version=__version__)
    limits = ClusterLimits()
    async with AsyncExitStack() as stack:
        cluster = await stack.enter_async_context(
            open_cluster(server, sessions, info, limits=limits, connections_of=quotas.connections)
        )
        locks = NodeIdentityLocks(sessions, cluster.locks)
        directory = await stack.enter_async_context(open_directory(server, cluster, registry, cluster_limits=limits))
        first_seq = clock.now_ms() * 1000
        progress = await stack.enter_async_context(
            open_progress_relay(server, cluster, ephemeral_topics, first_seq=first_seq, cluster_limits=limits)
        )
        tails = await stack.enter_async_context(open_log_relay(server, cluster, log, cluster_limits=limits))
        nursery = await stack.enter_async_context(trio.open_nursery())
        nursery.start_soon(locks.run, name="locks")
        try:
            yield ClusterMembership(
                registry,
                sessions.gate,
                locks,
                directory,
                cluster,
                {
                    "cluster_lease": cluster.lease.statistics,
                    "cluster_nodes": cluster.nodes.statistics,
                    "cluster_directory": directory.statistics,
                    "cluster_bus": cluster.bus.statistics,
                    "cluster_locks": cluster.locks.statistics,
                    "cluster_progress": progress.statistics,
                    "cluster_log": tails.statistics,
                },
            )
        finally:
            with trio.CancelScope(shield=True):
                with trio.move_on_after(SETTLE_S):
                    await log.drain()
                    await log.cursors.save()
                nursery.cancel_scope.cancel()
