"""The seam to other nodes: hints that say "look now", and which nodes there are. A gateway alone has nobody to tell.

Nothing is right or wrong by whether a hint arrives: whoever waits for one looks by itself every few seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from aether_trio.cluster.cluster import Cluster

ASSIGNMENTS: Final = "task-push"
"""Assignments wait for workers of that node."""
EVENTS: Final = "task-events"
"""The body is the id of a task that has new events; "*" for any."""
HIBERNATED: Final = "task-hibernated"
"""The body is the id of a task that was hibernated while its worker is on that node."""
ENDED_SESSIONS: Final = "task-outlived"
"""A session of that node, by its id, has outlived what let it in."""

Handler = Callable[[str], None]


class TaskNodes(Protocol):
    """See the module docstring. `node` names this node's lease in the tables: one that has ended does not come back, so what is found
    under its name may be taken at any time, and a node that was taken for dead writes again what it still has, under a new name."""

    @property
    def node(self) -> str: ...

    def notify(self, node: str, topic: str, body: str = "") -> None:
        """A hint for one node. Never blocks."""
        ...

    def on_notification(self, topic: str, handler: Handler) -> None:
        """Have `handler` told the bodies of hints of this topic. It may only schedule work."""
        ...

    async def ended_among(self, nodes: Collection[str]) -> list[str]:
        """Those of `nodes` that have ended. Raises StorageUnavailable."""
        ...

    async def is_only_node(self) -> bool:
        """Whether there is no other node. Raises StorageUnavailable."""
        ...

    async def ended_leases(self) -> frozenset[str]:
        """Every lease that has ended within a day, whatever is known of it elsewhere. Raises StorageUnavailable."""
        ...


class SingleNode:
    """One node: every other name in the tables is an earlier life of its own."""

    def __init__(self, node: str) -> None:
        self.node = node

    def notify(self, node: str, topic: str, body: str = "") -> None:
        """See TaskNodes."""

    def on_notification(self, topic: str, handler: Handler) -> None:
        """See TaskNodes."""

    async def ended_among(self, nodes: Collection[str]) -> list[str]:
        """See TaskNodes."""
        return [node for node in nodes if node != self.node]

    async def is_only_node(self) -> bool:
        """See TaskNodes."""
        return True

    async def ended_leases(self) -> frozenset[str]:
        """See TaskNodes. An earlier life ended before this one began."""
        return frozenset()


class ClusterNodes:
    """A node of a cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    @property
    def node(self) -> str:
        """See TaskNodes. Another one when the node was declared dead, or its registration was lost in a failover."""
        lease = self._cluster.lease
        return f"{lease.node_id}.{lease.epoch}"

    def notify(self, node: str, topic: str, body: str = "") -> None:
        """See TaskNodes."""
        number = node.partition(".")[0]
        if number.isdigit():
            self._cluster.bus.send(int(number), topic, body)

    def on_notification(self, topic: str, handler: Handler) -> None:
        """See TaskNodes."""
        self._cluster.bus.handle(topic, lambda _sender, body: handler(body))

    async def ended_among(self, nodes: Collection[str]) -> list[str]:
        """See TaskNodes."""
        alive = {f"{one.node_id}.{one.epoch}" for one in await self._cluster.nodes.alive()}
        return [node for node in nodes if node not in alive]

    async def is_only_node(self) -> bool:
        """See TaskNodes."""
        return len(await self._cluster.nodes.alive()) <= 1

    async def ended_leases(self) -> frozenset[str]:
        """See TaskNodes."""
        return frozenset(f"{node_id}.{epoch}" for node_id, epoch in await self._cluster.nodes.ended())
