"""The gateway appends completion messages of tasks to the topic log.

Transactions on tasks write these messages to `task_outbox` with their rows (the pattern is called
transactional outbox). Log and tasks are different databases, so a crash in between appends a
message twice, and none is lost: at least once, as the log itself delivers. The node that ends the
sessions of an ended node takes over its messages.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

import structlog

from aether_trio.concurrency.events import AutoResetEvent
from aether_trio.concurrency.kicks import Kickable
from aether_trio.log.deduplication import Publisher
from aether_trio.log.topic_log import TopicLog
from aether_trio.model.errors import RequestError
from aether_trio.storage.base import Database, Execute, Program, StorageUnavailable
from aether_trio.storage.retry import retry_while_unavailable

logger = structlog.get_logger("aether.tasks")

PAGE: Final = 100


class OutboxPublisher:
    """Appends messages of `task_outbox` to the topic log, then deletes their rows."""

    confirms = False
    publisher: Publisher | None = None

    def __init__(self, database: Database, log: TopicLog, node: Callable[[], str]) -> None:
        self._database = database
        self._log = log
        self._node = node
        self._work = AutoResetEvent()
        self._work.set()
        self._refused: set[int] = set()

    def wake(self) -> None:
        """Publish soon, as rows were added to `task_outbox`. Never blocks."""
        self._work.set()

    def refused(self, number: int, error: RequestError) -> None:
        """Remember that the topic log has refused an append, so that it is repeated."""
        self._refused.add(number)

    def settled(self, touched: set[Kickable]) -> None:
        """Do nothing: `_publish_all` waits for its appends with `wait_settled`."""

    async def run(self) -> None:
        """Publish messages of `task_outbox` until cancelled."""
        while True:
            await self._work.wait()
            try:
                await retry_while_unavailable(self._publish_all, "messages of tasks for the topic log", logger)
            except Exception:
                self._work.set()  # they still wait
                raise

    async def _publish_all(self) -> None:
        sql = "SELECT task_id, number, topic, frame FROM task_outbox WHERE node = $1 ORDER BY task_id, number LIMIT $2"
        while found := await self._database.fetch(sql, self._node(), PAGE):
            if not self._log.has_room:
                await self._log.wait_room()
            self._refused.clear()
            ensure = self._log.topics.ensure
            numbers = [self._log.append_nowait(ensure(topic), frame, self) for _, _, topic, frame in found]
            await self._log.wait_settled(numbers[-1])
            if self._refused:
                raise StorageUnavailable("the topic log refused completion messages of tasks")
            await self._database.run(partial(_delete, [(task_id, number) for task_id, number, _, _ in found]))


def _delete(keys: list[tuple[str, int]]) -> Program[None]:
    for key in keys:
        yield Execute("DELETE FROM task_outbox WHERE task_id = $1 AND number = $2", key)
