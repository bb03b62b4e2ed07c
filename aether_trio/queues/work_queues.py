"""The interface of work queues, local or leased, to client sessions.

A work queue is a topic `tb::WORKSPACE::IMPLEMENTATION`: each of its messages goes to exactly one of
the connected task workers of that implementation, and waits in the log while there is none.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from aether_trio.delivery.outbox import Outbox
from aether_trio.log.topic_cache import CachedTopic
from aether_trio.queues.dispatcher import QueueWorker

CONSUMER: Final = "*"
"""A queue's position in the cursor table; no identity has this name."""


@dataclass(frozen=True, slots=True)
class WorkStatistics:
    """Counts work queues, their workers and their messages on this node.

    `queues` have workers or something to write down; `idle` queues have no worker and remember what
    was done out of order. Of leased queues, since start: `exchanges` with the database, messages
    `taken` from it and `returned` to it, `failed` exchanges.
    """

    queues: int
    idle: int
    workers: int
    exchanges: int = 0
    taken: int = 0
    returned: int = 0
    failed: int = 0


class NodeLease(Protocol):
    """The cluster lease of a node, under which it leases messages of work queues."""

    @property
    def node_id(self) -> int:
        """This node's number; 0 is a gateway that is alone on its database."""

    @property
    def epoch(self) -> int:
        """Grows whenever the node comes back after its lease had ended."""

    async def wait_sure(self, since_s: float = -math.inf) -> None:
        """Wait until this node surely holds its lease, or raise StorageUnavailable.

        `since_s`: it held it at that moment (trio's time). There is no checkpoint at its end.
        """


class WorkQueues(Protocol):
    """Finds the work queues of one node, and adds workers to them."""

    async def find(self, topic: str) -> tuple[CachedTopic, int]:
        """Read a queue's topic state and cursor, for `join`.

        The state is pinned, as by TopicLog.load. Raises StorageUnavailable.
        """

    def join(self, found: tuple[CachedTopic, int], outbox: Outbox, on_lost: Callable[[], None]) -> QueueWorker:
        """Make the session that has `outbox` a worker of the queue. Never blocks.

        The queue calls `on_lost` if others may have got this worker's messages: its session ends.
        """

    def node_left(self) -> None:
        """Look at once for messages that a dead node had leased. Never blocks."""

    def statistics(self) -> WorkStatistics:
        """Return counts of queues, workers, and exchanges with the database since start."""
