"""Work queues: topics each of whose messages goes to exactly one connected worker."""

from __future__ import annotations

import trio

from aether_trio.log.topic_log import TopicLog
from aether_trio.queues.lease_scheduler import LeasedQueues
from aether_trio.queues.local_queue import LocalQueues
from aether_trio.queues.work_queues import WorkQueues

__all__ = ["open_work_queues"]


def open_work_queues(log: TopicLog, nursery: trio.Nursery) -> WorkQueues:
    """Return local queues, or leased ones where several nodes write to the database.

    The tasks of the queues run in `nursery`, which must end before the log does.
    """
    return LeasedQueues(log, nursery) if log.database.shared else LocalQueues(log, nursery)
