"""Knows whether the cluster has other nodes, and notices their joins and deaths.

Joins and declared deaths are notified after their commit. Each node also looks for peers every few
seconds. While a node has no peers, it writes nothing for other nodes; a new node reads what it has
missed. Invariant: an answer that is older than a notification of a join does not set `empty`.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Final

import trio

from aether_trio.cluster.node.bus import ALL, Bus
from aether_trio.cluster.node.liveness import Nodes
from aether_trio.concurrency.periodic_task import PeriodicTask

JOINED: Final = "joined"
DIED: Final = "died"

_OTHERS: Final = "SELECT EXISTS (SELECT FROM nodes WHERE alive AND node_id <> $1)"


class Peers:
    """Whether this node has peers in the cluster; `run` looks for them."""

    def __init__(self, nodes: Nodes, bus: Bus, random: Random, every_s: float) -> None:
        self._nodes = nodes
        self._bus = bus
        self._joined = 0
        self._search = PeriodicTask("the search for other nodes", self._look, random, every_s=every_s)
        self.empty = True  # whether no other node is known
        self._on_join: list[Callable[[], None]] = []
        self._on_death: list[Callable[[], None]] = []
        nodes.when_declared_dead(self._on_found_dead)
        bus.handle(JOINED, self._on_joined)
        bus.handle(DIED, self._on_died)

    def when_joined(self, call: Callable[[], None]) -> None:
        """Have `call` called whenever another node has joined, or may have."""
        self._on_join.append(call)

    def when_dead(self, call: Callable[[], None]) -> None:
        """Have `call` called whenever a node was declared dead, or may have been."""
        self._on_death.append(call)

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look for other nodes until cancelled; started when they know this node."""
        await self.look()
        self._bus.broadcast(JOINED, "")
        task_status.started()
        await self._search.run()

    async def look(self) -> None:
        """Ask the database now whether there are other nodes. Raises StorageUnavailable."""
        joined = self._joined
        [[others]] = await self._nodes.fetch(_OTHERS, self._nodes.own_id)
        if others or joined == self._joined:
            self.empty = not others

    async def _look(self, _periodic: bool) -> None:
        await self.look()

    def _on_joined(self, _sender: int, body: str) -> None:
        self.empty = False
        self._joined += 1
        if body == ALL:
            self._search.trigger()
        for notify in self._on_join:
            notify()

    def _on_found_dead(self, node_id: int) -> None:
        self._bus.broadcast(DIED, str(node_id))
        self._on_died(node_id, "")

    def _on_died(self, _sender: int, _body: str) -> None:
        for notify in self._on_death:
            notify()
