"""Work queues: topics each of whose messages goes to exactly one connected worker."""

from __future__ import annotations

import math

import trio

from aether_trio.log.topic_log import TopicLog
from aether_trio.queues.lease_scheduler import LeasedQueues
from aether_trio.queues.local_queue import LocalQueues
from aether_trio.queues.work_queues import NodeLease, WorkQueues

__all__ = ["open_work_queues"]


class SingleNodeLease:
    """The NodeLease of a gateway that is alone on its database: always held."""

    node_id = epoch = 0

    async def wait_sure(self, since_s: float = -math.inf) -> None:
        """Return at once: a gateway that is alone always holds its lease."""


def open_work_queues(log: TopicLog, nursery: trio.Nursery, node_lease: NodeLease | None = None) -> WorkQueues:
    """Return local work queues, or leased ones where nodes share the database.

    `node_lease` is None on a gateway without a cluster. The tasks of the queues run in `nursery`,
    which must end before the log does.
    """
    if log.database.shared:
        return LeasedQueues(log, nursery, node_lease or SingleNodeLease())
    return LocalQueues(log, nursery)
