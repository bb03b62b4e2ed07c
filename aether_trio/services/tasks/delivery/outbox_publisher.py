"""From the table of messages that a transaction left to the topic log: appended, and deleted when they are committed there.

The two are different databases, so a crash in between appends a message twice, and none is ever lost: at least once, as the log itself
delivers. What a node that is gone has left is taken over by the one that ends its sessions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import structlog
import trio

from aether_trio.concurrency.kicks import Kickable
from aether_trio.log.deduplication import Publisher
from aether_trio.log.topic_log import TopicLog
from aether_trio.model.errors import AetherError
from aether_trio.storage.base import Database, Execute, Program, StorageUnavailable

logger = structlog.get_logger("aether.tasks")

PAGE: Final = 100
RETRY_S: Final = 1.0


class OutboxPublisher:
    """See the module docstring. It is the author of what it appends (log/topic_log.py)."""

    confirms = False
    publisher: Publisher | None = None

    def __init__(self, database: Database, log: TopicLog, node: Callable[[], str]) -> None:
        self._database = database
        self._log = log
        self._node = node
        self._work = trio.Event()
        self._work.set()
        self._refused: set[int] = set()

    def wake(self) -> None:
        """Something is there."""
        self._work.set()

    def refused(self, number: int, error: AetherError) -> None:
        """See log.Author."""
        self._refused.add(number)

    def settled(self, touched: set[Kickable]) -> None:
        """See log.Author."""

    async def run(self) -> None:
        """Publish what is there and what comes, until cancelled."""
        while True:
            await self._work.wait()
            self._work = trio.Event()
            try:
                while await self._publish():
                    pass
            except StorageUnavailable as error:
                logger.warning("events of tasks wait for storage", reason=str(error))
                self._work.set()
                await trio.sleep(RETRY_S)

    async def _publish(self) -> bool:
        """A page; whether there may be more."""
        found = await self._database.fetch(
            "SELECT task_id, number, topic, frame FROM task_outbox WHERE node = $1 ORDER BY task_id, number LIMIT $2",
            self._node(),
            PAGE,
        )
        if not found:
            return False
        if not self._log.has_room:
            await self._log.wait_room()
        self._refused.clear()
        numbers = [self._log.append_nowait(self._log.topic(topic), frame, self) for _, _, topic, frame in found]
        await self._log.wait_settled(numbers[-1])
        if self._refused:
            raise StorageUnavailable("the topic log did not take them")
        keys = [(task_id, number) for task_id, number, _, _ in found]
        await self._database.run(lambda: _delete(keys))
        return True


def _delete(keys: list[tuple[str, int]]) -> Program[None]:
    for key in keys:
        yield Execute("DELETE FROM task_outbox WHERE task_id = $1 AND number = $2", key)
