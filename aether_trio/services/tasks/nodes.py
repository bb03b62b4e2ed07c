"""How the task engine knows and notifies the other nodes that share its tables.

A notification says that rows of its topic may have changed. It may be lost: each node also reads
the tables every few seconds.
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
ENDED_PROCESSES: Final = "task-process-ended"
"""The body is the id of a session of the notified node whose agent's process has ended."""

Handler = Callable[[str], None]


class TaskNodes(Protocol):
    """The task engine's interface to the nodes that share the tasks' tables.

    `node` names this node's lease in the tables. A lease that has ended does not come back, so any
    node may take what it finds under that name. A node that was declared dead writes what it still
    has again, under the name of its new lease.
    """

    @property
    def node(self) -> str: ...

    def notify(self, node: str, topic: str, body: str = "") -> None:
        """Send another node a notification about tasks. Never blocks."""

    def on_notification(self, topic: str, handler: Handler) -> None:
        """Register a handler, which may only schedule work, for a topic's notifications."""

    async def ended_among(self, nodes: Collection[str]) -> list[str]:
        """Return those of `nodes` that have ended. Raises StorageUnavailable."""

    async def is_only_node(self) -> bool:
        """Return whether no other node is alive. Raises StorageUnavailable."""

    async def ended_leases(self) -> frozenset[str]:
        """Return the leases that ended within a day. Raises StorageUnavailable."""


class SingleNode:
    """The TaskNodes of a gateway without a cluster; other nodes are ended processes."""

    def __init__(self, node: str) -> None:
        self.node = node

    def notify(self, node: str, topic: str, body: str = "") -> None:
        """Do nothing: a gateway without a cluster has no other node to notify."""

    def on_notification(self, topic: str, handler: Handler) -> None:
        """Do nothing: no other node notifies a gateway without a cluster."""

    async def ended_among(self, nodes: Collection[str]) -> list[str]:
        return [node for node in nodes if node != self.node]

    async def is_only_node(self) -> bool:
        return True

    async def ended_leases(self) -> frozenset[str]:
        return frozenset()


class ClusterNodes:
    """The TaskNodes of a node in a cluster: its lease, and notifications by the bus."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    @property
    def node(self) -> str:
        """The name of this node's lease, which changes when the node was declared dead."""
        lease = self._cluster.lease
        return f"{lease.node_id}.{lease.epoch}"

    def notify(self, node: str, topic: str, body: str = "") -> None:
        number = node.partition(".")[0]
        if number.isdigit():
            self._cluster.bus.send(int(number), topic, body)

    def on_notification(self, topic: str, handler: Handler) -> None:
        self._cluster.bus.handle(topic, lambda _sender, body: handler(body))

    async def ended_among(self, nodes: Collection[str]) -> list[str]:
        alive = {f"{one.node_id}.{one.epoch}" for one in await self._cluster.nodes.alive()}
        return [node for node in nodes if node not in alive]

    async def is_only_node(self) -> bool:
        return len(await self._cluster.nodes.alive()) <= 1

    async def ended_leases(self) -> frozenset[str]:
        return frozenset(f"{node_id}.{epoch}" for node_id, epoch in await self._cluster.nodes.ended())
