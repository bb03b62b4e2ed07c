"""Ends the tasks that rest on revoked grants.

A revocation notes the grant in `authority_endings`, in its transaction. The node that made it ends
the tasks at once, before the answer if that takes no second, and any node looks again for a minute.
"""

from __future__ import annotations

from functools import partial
from typing import Final

import structlog
import trio

from aether_trio.concurrency.events import AutoResetEvent
from aether_trio.model.tasks import Move
from aether_trio.services.authority import store
from aether_trio.services.tasks.engine import Engine
from aether_trio.services.tasks.transaction.task_transaction import TaskTransaction
from aether_trio.storage.base import Program, StorageUnavailable

logger = structlog.get_logger("aether.authority")

PAGE: Final = 50
NOW_S: Final = 1.0
"""How long the answer to a revocation waits for the ends of tasks, which it does not promise."""
LOOK_S: Final = 30.0
KEPT_MS: Final = 60_000
"""How long a revoked grant is looked at again: a node may have created a task meanwhile."""
REVOKED: Final = "the authority grant that this task rests on was revoked"


class GrantEndings:
    """Cancels the tasks whose own grant is, or is below, a revoked one."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._look = AutoResetEvent()

    async def end_now(self, grant_id: str) -> None:
        """End the tasks that rest on a revoked grant, or leave that to `run`."""
        try:
            with trio.move_on_after(NOW_S) as limit:
                await self._end(grant_id)
        except StorageUnavailable as error:
            logger.info("tasks of a revoked grant are ended when storage answers", reason=str(error))
        else:
            if limit.cancelled_caught:
                self._look.set()

    async def run(self) -> None:
        """End what this node or an ended one has left, until cancelled."""
        while True:
            try:
                began_ms = self._engine.clock.now_ms()
                grant_id = ""
                while found := await self._engine.database.read(partial(store.endings, grant_id)):
                    for grant_id in found:
                        await self._end(grant_id)
                await self._engine.database.run(partial(store.forget_endings, began_ms - KEPT_MS))
            except StorageUnavailable as error:
                logger.info("tasks of revoked grants are ended when storage answers", reason=str(error))
            with trio.move_on_after(LOOK_S):
                await self._look.wait()

    async def _end(self, grant_id: str) -> None:
        after: str | None = ""
        while after is not None:
            after = await self._engine.result(partial(_end_page, grant_id=grant_id, after=after))


def _end_page(tx: TaskTransaction, grant_id: str, after: str) -> Program[str | None]:
    """Cancel a page of tasks; return the last one's id, None if there are no more."""
    found = yield from store.tasks_resting_on(grant_id, PAGE, after)
    for task_id in found:
        task = yield from tx.load(task_id)
        if task is not None and not task.is_final:
            yield from tx.apply(task, Move.CANCEL, tx.facts(reason=REVOKED))
    return found[-1] if len(found) == PAGE else None
