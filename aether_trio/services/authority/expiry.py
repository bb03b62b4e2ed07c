"""Ends authority requests that no one has decided in time, and deletes old rows.

One timer waits for the next end. Every node has it: each change of a request tells when it ends,
and the first node's transaction ends it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Final

import structlog
import trio

from aether_trio.concurrency.events import AutoResetEvent
from aether_trio.model.access.requests import RequestStatus, ResolveError, expire
from aether_trio.model.clock import Clock
from aether_trio.services.access.changes import AccessChanges, Draft
from aether_trio.services.authority import store
from aether_trio.services.authority.push import REQUEST
from aether_trio.services.authority.requests import resolve
from aether_trio.services.authority.transactions import commit_with_tasks, request_event_row
from aether_trio.services.tasks.engine import Engine
from aether_trio.services.tasks.transaction.task_transaction import TaskTransaction
from aether_trio.storage.base import Program, StorageUnavailable
from aether_trio.storage.retry import RETRY_DELAY_S

logger = structlog.get_logger("aether.authority")

LONGEST_S: Final = 30.0
"""The calendar may jump, so the timer looks at it that often."""
SWEEP_S: Final = 3600.0
KEPT_MS: Final = 30 * 24 * 3600 * 1000
"""How long an ended grant and a resolved request are kept."""


class RequestExpiry:
    """Ends overdue requests within `run`; `sweep_forever` deletes old rows."""

    def __init__(self, engine: Engine, clock: Clock, changes: AccessChanges) -> None:
        self._engine = engine
        self._clock = clock
        self._changes = changes
        self._next_ms = 0
        """When the first pending request ends, at the latest known; 0: none does."""
        self._changed = AutoResetEvent()
        changes.when_applied(REQUEST, self._apply)

    def _apply(self, items: Sequence[tuple[str, Any]], everything: bool) -> None:
        for _, value in items:
            if value is not None and value["status"] == RequestStatus.PENDING.value:
                self._next_ms = min(self._next_ms or value["expires"], value["expires"])
                self._changed.set()

    async def run(self) -> None:
        """End overdue requests until cancelled."""
        while True:
            try:
                await self._end_overdue()
            except StorageUnavailable as error:
                logger.info("overdue authority requests are ended when storage answers", reason=str(error))
                await trio.sleep(RETRY_DELAY_S)
                continue
            while not self._next_ms or self._clock.now_ms() < self._next_ms:
                left_s = (self._next_ms - self._clock.now_ms()) / 1000 if self._next_ms else LONGEST_S
                with trio.move_on_after(min(left_s, LONGEST_S)):
                    await self._changed.wait()

    async def _end_overdue(self) -> None:
        """End all requests that are overdue; note when the next one is."""
        while True:
            self._next_ms = 0
            found_ms = await self._engine.database.read(store.next_expiry)
            self._next_ms = min(filter(None, (self._next_ms, found_ms)), default=0)
            if not self._next_ms or self._next_ms > self._clock.now_ms():
                return
            await commit_with_tasks(self._engine, self._changes, _end_page)

    async def sweep_forever(self) -> None:
        """Delete what has ended long ago, every hour, until cancelled."""
        while True:
            try:
                before_ms = self._clock.now_ms() - KEPT_MS
                for forget in (store.forget_requests, store.forget_grants):
                    while await self._engine.database.run(partial(forget, before_ms)) >= store.FORGET_PAGE:
                        pass
            except StorageUnavailable as error:
                logger.info("old grants and requests are deleted when storage answers", reason=str(error))
            await trio.sleep(SWEEP_S)


def _end_page(tx: TaskTransaction, draft: Draft) -> Program[None]:
    for request_id in (yield from store.overdue(draft.now_ms)):
        current = yield from store.lock_request(request_id)
        if current is None:
            continue
        try:
            after = expire(current, draft.now_ms)
        except ResolveError:
            continue
        yield from resolve(tx, draft, after)
        draft.audit(request_event_row(after, None, draft.now_ms))
