"""Lets the nodes of a cluster apply changes of access data together.

    changer ─▶ "access" (version) ─▶ all nodes read on, apply, write access_seen ─▶ "access-seen"

A node that is alive and has no row for its lease has applied nothing yet. Notifications may be
lost: each node looks every few seconds, and the changer reads access_seen until all have it.

A node that was declared dead may run all the same and not know it. Its looks do not count from then
on, so it handles input for STALE_S (services/access/changes.py) at most; that long the changer
waits for it like for others. A node that has left in peace is not waited for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from aether_trio.cluster.cluster import Cluster

ANNOUNCED: Final = "access"
SEEN: Final = "access-seen"

_DEAD_MS: Final = 6_000
"""How long after its death a node may handle input: STALE_S, and a second for the declaration."""

# Whether the node is alive is read after the look that is to count.
_SEEN: Final = """
    WITH written AS (
        INSERT INTO access_seen AS s (node, epoch, version) VALUES ($1, $2, $3)
        ON CONFLICT (node, epoch) DO UPDATE SET version = greatest(s.version, excluded.version)
    ) SELECT EXISTS (SELECT FROM nodes WHERE node_id = $1 AND epoch = $2 AND alive)
"""
_ALIVE: Final = "SELECT EXISTS (SELECT FROM nodes WHERE node_id = $1 AND epoch = $2 AND alive)"
_LEFT: Final = """
    INSERT INTO access_seen (node, epoch, version) VALUES ($1, $2, 9223372036854775807)
    ON CONFLICT (node, epoch) DO UPDATE SET version = excluded.version
"""
_FORGET: Final = """
    DELETE FROM access_seen s WHERE NOT EXISTS (
        SELECT FROM nodes n WHERE n.node_id = s.node AND n.epoch = s.epoch
            AND (n.alive OR n.ended_ms > aether_now_ms() - $1::bigint)
    )
"""
_UNCONFIRMED: Final = """
    SELECT n.name || ' (node ' || n.node_id || ')' FROM nodes n
    LEFT JOIN access_seen s ON s.node = n.node_id AND s.epoch = n.epoch
    WHERE (n.alive OR n.ended_ms > aether_now_ms() - $3::bigint) AND n.node_id <> $1 AND coalesce(s.version, -1) < $2
    ORDER BY n.node_id
"""


class ClusterPeers:
    """The ChangePeers of a node in a cluster (services/access/changes.py)."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._written: tuple[int, int, int] | None = None
        cluster.nodes.when_leaving(_LEFT)

    def announce(self, version: int) -> None:
        self._cluster.bus.broadcast(ANNOUNCED, str(version))

    def on_announced(self, call: Callable[[], None]) -> None:
        self._cluster.bus.handle(ANNOUNCED, lambda _sender, _body: call())
        self._cluster.when_renewed(call)

    def on_seen(self, call: Callable[[], None]) -> None:
        self._cluster.bus.handle(SEEN, lambda _sender, _body: call())

    async def seen(self, version: int) -> bool:
        """Write the version for this node's lease; return whether that is in force.

        Raises StorageUnavailable.
        """
        lease, nodes = self._cluster.lease, self._cluster.nodes
        row = (lease.node_id, lease.epoch, version)
        if row == self._written:
            ((alive,),) = await nodes.fetch(_ALIVE, *row[:2])
        else:
            ((alive,),) = await nodes.fetch(_SEEN, *row)
            if self._written is None or self._written[:2] != row[:2]:
                await nodes.fetch(_FORGET, _DEAD_MS)
            self._written = row
            self._cluster.bus.broadcast(SEEN, "")
        if not alive:
            lease.suspect()
        return bool(alive)

    async def unconfirmed(self, version: int) -> list[str]:
        rows = await self._cluster.nodes.fetch(_UNCONFIRMED, self._cluster.node_id, version, _DEAD_MS)
        return [name for (name,) in rows]
