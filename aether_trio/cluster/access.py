"""Lets the nodes of a cluster apply changes of access data together.

    changer ─▶ "access" (version) ─▶ all nodes read on, apply, write access_seen ─▶ "access-seen"

A node that is alive and has no row for its lease has applied nothing yet. Notifications may be
lost: each node looks every few seconds, and the changer reads access_seen until all have it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from aether_trio.cluster.cluster import Cluster

ANNOUNCED: Final = "access"
SEEN: Final = "access-seen"

_SEEN: Final = """
    INSERT INTO access_seen AS s (node, epoch, version) VALUES ($1, $2, $3)
    ON CONFLICT (node, epoch) DO UPDATE SET version = greatest(s.version, excluded.version)
"""
_FORGET: Final = """
    DELETE FROM access_seen s WHERE NOT EXISTS (
        SELECT FROM nodes n WHERE n.node_id = s.node AND n.epoch = s.epoch AND n.alive
    )
"""
_UNCONFIRMED: Final = """
    SELECT n.name || ' (node ' || n.node_id || ')' FROM nodes n
    LEFT JOIN access_seen s ON s.node = n.node_id AND s.epoch = n.epoch
    WHERE n.alive AND n.node_id <> $1 AND coalesce(s.version, -1) < $2 ORDER BY n.node_id
"""


class ClusterPeers:
    """The ChangePeers of a node in a cluster (services/access/changes.py)."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._written: tuple[int, int, int] | None = None

    def announce(self, version: int) -> None:
        self._cluster.bus.broadcast(ANNOUNCED, str(version))

    def on_announced(self, call: Callable[[], None]) -> None:
        self._cluster.bus.handle(ANNOUNCED, lambda _sender, _body: call())
        self._cluster.when_renewed(call)

    def on_seen(self, call: Callable[[], None]) -> None:
        self._cluster.bus.handle(SEEN, lambda _sender, _body: call())

    async def seen(self, version: int) -> None:
        """Write the version for this node's lease. Raises StorageUnavailable."""
        lease = self._cluster.lease
        row = (lease.node_id, lease.epoch, version)
        if row == self._written:
            return
        await self._cluster.nodes.fetch(_SEEN, *row)
        self._written = row
        self._cluster.bus.broadcast(SEEN, "")

    async def unconfirmed(self, version: int) -> list[str]:
        rows = await self._cluster.nodes.fetch(_UNCONFIRMED, self._cluster.node_id, version)
        return [name for (name,) in rows]

    async def forget_ended(self) -> None:
        """Delete the rows of leases that have ended. Raises StorageUnavailable."""
        await self._cluster.nodes.fetch(_FORGET)
