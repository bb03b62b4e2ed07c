"""Whether there are other nodes at all, and which of them has ended: for those who would do in vain what they do for others.

A node that joins tells all, after its row in `nodes` is there; a node that finds another one dead tells all, after the commit. Everybody
looks for others by itself every few seconds, and at once when its ears have been away. While nobody else is known nothing is
written down for others; what is missed until the first one is heard of it finds by looking.

Invariant: `alone` is not set by an answer that is older than the news of somebody who joined.
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
    """See the module docstring. `run` looks; hints are heard from the beginning."""

    def __init__(self, nodes: Nodes, bus: Bus, random: Random, every_s: float) -> None:
        self._nodes = nodes
        self._bus = bus
        self._joined = 0
        self._round = PeriodicTask("whether there are other nodes", self._look, random, every_s=every_s)
        self.empty = True
        """No other node is known."""
        self.on_join: list[Callable[[], None]] = []
        """Called when another node has joined, or may have. In one step."""
        self.on_death: list[Callable[[], None]] = []
        """Called when a node's lease has ended, whoever has found that out, or may have. In one step."""
        nodes.on_dead = self._found_dead
        bus.handle(JOINED, self._hear_joined)
        bus.handle(DIED, self._hear_died)

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look until cancelled. Started when the others have been told of this node. Raises StorageUnavailable if it cannot look at first."""
        await self.look()
        self._bus.broadcast(JOINED, "")
        task_status.started()
        await self._round.run()

    async def look(self) -> None:
        """Look now. Raises StorageUnavailable."""
        joined = self._joined
        [[others]] = await self._nodes.fetch(_OTHERS, self._nodes.own_id)
        if others or joined == self._joined:
            self.empty = not others

    async def _look(self, _alone: bool) -> None:
        await self.look()

    def _hear_joined(self, _sender: int, body: str) -> None:
        self.empty = False
        self._joined += 1
        if body == ALL:
            self._round.trigger()
        for tell in self.on_join:
            tell()

    def _found_dead(self, node_id: int) -> None:
        self._bus.broadcast(DIED, str(node_id))
        self._hear_died(node_id, "")

    def _hear_died(self, _sender: int, _body: str) -> None:
        for tell in self.on_death:
            tell()
