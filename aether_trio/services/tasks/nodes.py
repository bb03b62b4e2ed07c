"""What the task engine knows of other nodes, and how it notifies them.

A notification says that rows of its topic may have changed. It may be lost: each node also reads
the tables every few seconds. A single gateway notifies no other node.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from aether_trio.cluster.cluster import Cluster

ASSIGNMENTS: Final = "task-push"
"""Assignments wait for workers of the notified node."""
EVENTS: Final = "task-events"
"""The body is the id of a task that has new events; "*" for any task."""
HIBERNATED: Final = "task-hibernated"
"""The body is the id of a hibernated task whose worker is on the notified node."""
ENDED_SESSIONS: Final = "task-outlived"
"""The body is the id of a session of the notified node whose token was revoked."""

Handler = Callable[[str], None]


class TaskNodes(Protocol):
    """The nodes that share the tables.

    `node` names this node's lease in the tables. A lease that has ended does not come back, so any
    node may take what it finds under that name. A node that was declared dead writes what it still
    has again, under the name of its new lease.
    """

    @property
    def node(self) -> str: ...

    def notify(self, node: str, topic: str, body: str = "") -> None:
        """Notify one node. Never blocks."""
        ...

    def on_notification(self, topic: str, handler: Handler) -> None:
        """Call `handler` with the body of each notification of this topic.

        The handler may only schedule work.
        """
        ...

    async def ended_among(self, nodes: Collection[str]) -> list[str]:
        """Return those of `nodes` that have ended. Raises StorageUnavailable."""
        ...

    async def is_only_node(self) -> bool:
        """Return whether there is no other node. Raises StorageUnavailable."""
        ...

    async def ended_leases(self) -> frozenset[str]:
        """Return the leases that ended within a day. Raises StorageUnavailable."""
        ...


class SingleNode:
    """A single gateway: other names in the tables are those of its earlier processes."""

    def __init__(self, node: str) -> None:
        self.node = node

    def notify(self, node: str, topic: str, body: str = "") -> None:
        """Do nothing: there is no other node."""

    def on_notification(self, topic: str, handler: Handler) -> None:
        """Do nothing: no notification comes."""

    async def ended_among(self, nodes: Collection[str]) -> list[str]:
        """Return all names but that of this process."""
        return [node for node in nodes if node != self.node]

    async def is_only_node(self) -> bool:
        """Return True."""
        return True

    async def ended_leases(self) -> frozenset[str]:
        """Return no lease: the earlier processes ended before this one began."""
        return frozenset()


class ClusterNodes:
    """A node of a cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    @property
    def node(self) -> str:
        """This node's lease.

        It changes when the node was declared dead or its row was lost.
        """
        lease = self._cluster.lease
        return f"{lease.node_id}.{lease.epoch}"

    def notify(self, node: str, topic: str, body: str = "") -> None:
        """Send a notification through the cluster's bus."""
        number = node.partition(".")[0]
        if number.isdigit():
            self._cluster.bus.send(int(number), topic, body)

    def on_notification(self, topic: str, handler: Handler) -> None:
        """Register the handler with the cluster's bus."""
        self._cluster.bus.handle(topic, lambda _sender, body: handler(body))

    async def ended_among(self, nodes: Collection[str]) -> list[str]:
        """Return those of `nodes` that are no leases of live nodes."""
        alive = {f"{one.node_id}.{one.epoch}" for one in await self._cluster.nodes.alive()}
        return [node for node in nodes if node not in alive]

    async def is_only_node(self) -> bool:
        """Return whether at most one node is alive."""
        return len(await self._cluster.nodes.alive()) <= 1

    async def ended_leases(self) -> frozenset[str]:
        """Return the ended leases that the cluster knows."""
        return frozenset(f"{node_id}.{epoch}" for node_id, epoch in await self._cluster.nodes.ended())
