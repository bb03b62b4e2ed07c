"""The catch-up reader: pages from the log for subscriptions that are not level with the tail.

One task per session, and only while something of it lags. It reads a page when the outbox is at most half full, so a
stuck peer costs its outbox and nothing else, and a peer that reads again is served at the pace at which it reads.

Joining the live stream needs no lock: the test "position has reached the tail" and the clearing of the flag happen
without a checkpoint in between, and the fan-out of a message is one step as well. A message is therefore either paged
in here or offered live, and `Subscription.offer` ignores what was paged in already.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog
import trio

from aether_trio.routing.log import TopicLog
from aether_trio.routing.outbox import Outbox
from aether_trio.routing.subscription import Subscription
from aether_trio.storage.base import StorageUnavailable

logger = structlog.get_logger("aether.catchup")

PAGE_ROWS = 256
RETRY_S = 0.5
"""Pause before a page is read again after the engine could not be read."""


class CatchUp:
    """Serves the lagging subscriptions of one outbox. `on_gap(subscription, count)`: retention was faster."""

    __slots__ = ("_drained", "_lagging", "_log", "_nursery", "_on_gap", "_outbox", "_running")

    def __init__(
        self, log: TopicLog, outbox: Outbox, nursery: trio.Nursery, on_gap: Callable[[Subscription, int], None]
    ) -> None:
        self._log = log
        self._outbox = outbox
        self._nursery = nursery
        self._on_gap = on_gap
        self._lagging: dict[Subscription, None] = {}
        self._running = False
        self._drained = trio.Event()

    def add(self, subscription: Subscription) -> None:
        """Bring this subscription level. Never blocks."""
        self._lagging[subscription] = None
        if not self._running:
            self._running = True
            self._nursery.start_soon(self._run, name="catch-up")

    def remove(self, subscription: Subscription) -> None:
        """The subscription has been closed."""
        self._lagging.pop(subscription, None)

    async def _run(self) -> None:
        self._outbox.listen(self._drain)
        try:
            while self._lagging:
                for subscription in list(self._lagging):
                    await self._wait_room()
                    if subscription in self._lagging:
                        await self._page(subscription)
        finally:
            self._running = False
            self._outbox.unlisten(self._drain)

    def _drain(self) -> None:
        self._drained.set()

    async def _wait_room(self) -> None:
        while not self._outbox.wants_deliveries:
            if self._outbox.closed:
                await trio.sleep_forever()  # the session is ending; its nursery cancels this task
            self._drained = trio.Event()
            await self._drained.wait()

    async def _page(self, subscription: Subscription) -> None:
        state = subscription.state
        try:
            rows = await self._log.read(
                state, subscription.position, rows=PAGE_ROWS, max_bytes=self._outbox.limits.delivery_bytes // 2
            )
        except StorageUnavailable as error:
            logger.warning("catch-up read failed, trying again", topic=state.name, reason=str(error))
            await trio.sleep(RETRY_S)
            return
        for offset, _, frame in rows:
            if offset > subscription.position + 1:
                self._on_gap(subscription, offset - subscription.position - 1)
            if not self._outbox.try_deliver(frame, subscription, offset):
                break
            subscription.position = offset
        else:
            if not rows and subscription.position < state.tail:
                # Retention took the rest.
                self._on_gap(subscription, state.tail - subscription.position)
                subscription.position = state.tail
        if subscription.position >= state.tail:
            subscription.lagging = False
            self._lagging.pop(subscription, None)
        self._outbox.kick()
