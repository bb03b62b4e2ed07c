"""Who hands out the messages of `tb` topics: this gateway by itself, or several nodes on one database by what stands in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import trio

from aether_trio.delivery.outbox import Outbox
from aether_trio.log.topic_log import TopicLog
from aether_trio.log.topic_state import TopicState
from aether_trio.queues.leased_queues import LeasedQueues
from aether_trio.queues.local_queue import LocalGroups, WorkStatistics


class Worker(Protocol):
    """One worker's place in its group."""

    def leave(self) -> None:
        """The worker is gone; what it was not sent goes to others. Idempotent, no checkpoint."""
        ...


class WorkQueues(Protocol):
    """The work groups of one node."""

    async def find(self, topic: str) -> tuple[TopicState, int]:
        """What `join` needs to know: the topic's state (pinned, see TopicLog.warm) and the group's cursor.

        Raises StorageUnavailable.
        """
        ...

    def join(self, found: tuple[TopicState, int], outbox: Outbox, on_lost: Callable[[], None]) -> Worker:
        """Make the owner of `outbox` a worker of the group. No checkpoint.

        `on_lost` is called when what it has been sent may have been given to others as well: its connection is to end.
        """
        ...

    def statistics(self) -> WorkStatistics:
        """What there is now, and what has happened."""
        ...


def open_work_groups(log: TopicLog, nursery: trio.Nursery) -> WorkQueues:
    """The right ones for the log's database, with their tasks in `nursery`, which must end before the log does."""
    return LeasedQueues(log, nursery) if log.database.shared else LocalGroups(log, nursery)
