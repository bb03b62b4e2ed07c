"""Takes a message that crashes its agent again and again out of the agent's way.

A message becomes a dead letter when it is the first unread one at `limit` crashes of its agent in a
row, one for each start. A crash is an end of the process that its orchestrator has reported as a
failure. So nothing is taken of an agent that no orchestrator has started, of one that exits well,
or of one that only loses its connection.

Two databases are written: first the dead letter, then the agent's cursor. `skip_to` in the row of
the crashes says that the second write is due; it is made before the agent is started again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import structlog
import trio

from aether_trio.log.topic_log import TopicLog
from aether_trio.model.identity import Identity
from aether_trio.services.tasks.engine import Engine
from aether_trio.services.tasks.transaction import dead_messages
from aether_trio.services.tasks.transaction.dead_messages import Crash, FirstUnread
from aether_trio.services.tasks.transaction.task_transaction import TaskTransaction
from aether_trio.storage.base import Program, StorageUnavailable

logger = structlog.get_logger("aether.agents")

SAVE_S: Final = 10.0  # seconds for a cursor to be written; it is tried again before the next start


class CrashLoops:
    """Counts crashes of agents by first unread message; buries a message at `limit`.

    `limit` 0: none is ever buried. Coroutines raise StorageUnavailable.
    """

    def __init__(self, engine: Engine, log: TopicLog, limit: int) -> None:
        self._engine = engine
        self._log = log
        self._limit = limit
        self.buried = 0  # messages, since start

    @property
    def enabled(self) -> bool:
        """Whether crashes are counted."""
        return self._limit > 0

    async def unhandled(self, identities: Sequence[str]) -> set[str]:
        """Return which agents have crashed and are to be handled before they are started."""
        if not self._limit or not identities:
            return set()
        return await self._engine.database.read_small(lambda: dead_messages.unhandled(identities))

    async def handle(self, identity: str) -> bool:
        """Count an agent's crash, and bury its message if need be; return if it crashed."""
        if not self._limit:
            return False
        skip_to = await self._engine.database.read_small(lambda: dead_messages.pending_skip(identity))
        if skip_to:
            await self._skip(identity, skip_to)
        message = await self._first_unread(identity)
        receiver = Identity.parse(identity, strict=False)

        def mutation(tx: TaskTransaction) -> Program[tuple[Crash | None, bool]]:
            crash = yield from dead_messages.count_crash(
                identity, message.offset if message is not None else 0, self._limit
            )
            is_due = crash is not None and message is not None and crash.position == message.offset
            if crash is None or message is None or not is_due or crash.times < self._limit:
                return crash, False
            yield from dead_messages.bury(tx, receiver, message, crash)
            return crash, True

        crash, dead = await self._engine.result(mutation)
        if dead and crash is not None and message is not None:
            self.buried += 1
            logger.warning(
                "a message has crashed its agent again and again; it is a dead letter now",
                identity=identity,
                message=message.offset,
                crashes=crash.times,
                task=message.task_id,
            )
            await self._skip(identity, message.offset)
        return crash is not None

    async def _first_unread(self, identity: str) -> FirstUnread | None:
        [(topic, cursor)] = await self._log.load([(identity, identity)])
        try:
            found = await self._log.read(topic, max(cursor or 0, topic.base), rows=1, max_bytes=1)
        finally:
            self._log.unpin([topic])
        return FirstUnread(identity, self._log.identity, found[0][0], found[0][2]) if found else None

    async def _skip(self, identity: str, offset: int) -> None:
        """Move an agent's cursor behind a dead message, for certain."""
        [(topic, cursor)] = await self._log.load([(identity, identity)])
        try:
            if (cursor or 0) < offset:
                self._log.cursors.advance(topic, identity, offset)
            with trio.move_on_after(SAVE_S) as saving:
                await self._log.cursors.save()
        finally:
            self._log.unpin([topic])
        if saving.cancelled_caught:
            raise StorageUnavailable("the position of an agent was not written in time")
        [(topic, cursor)] = await self._log.load([(identity, identity)])
        self._log.unpin([topic])
        if (cursor or 0) >= offset:  # else this node has lost its lease meanwhile
            await self._engine.database.run(lambda: dead_messages.skipped(identity, offset))
