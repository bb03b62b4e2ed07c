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

from aether_trio.delivery.outbox import Outbox
from aether_trio.delivery.subscription import Subscription
from aether_trio.log.topic_log import TopicLog
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
        self._drained: trio.Event | None = None

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
                    if subscription in self._lagging and not await self._page(subscription):
                        await self._wait_drained()
        finally:
            self._running = False
            self._drained = None
            self._outbox.unlisten(self._drain)

    def _drain(self) -> None:
        if self._drained is not None:
            self._drained.set()

    async def _wait_drained(self) -> None:
        """Wait for the next flush since `_drained` was made."""
        assert self._drained is not None
        await self._drained.wait()

    async def _wait_room(self) -> None:
        while not self._outbox.wants_deliveries:
            if self._outbox.closed:
                await trio.sleep_forever()  # the session is ending; its nursery cancels this task
            self._drained = trio.Event()
            await self._wait_drained()

    async def _page(self, subscription: Subscription) -> bool:
        """Read a page and queue it. False when a message found no room: then wait for `_drained` before the next try.

        The outbox may be nearly empty and still have no room for a large message; asking it again would not help.
        """
        state = subscription.state
        tail = state.tail  # what the page can know of: more may be committed while it is read
        try:
            rows = await self._log.read(
                state, subscription.position, rows=PAGE_ROWS, max_bytes=self._outbox.limits.delivery_bytes // 2
            )
        except StorageUnavailable as error:
            logger.warning("catch-up read failed, trying again", topic=state.name, reason=str(error))
            await trio.sleep(RETRY_S)
            return True
        if subscription not in self._lagging:
            return True  # closed in the meantime
        taken = True
        for offset, _, frame in rows:
            taken = self._outbox.try_deliver(frame, subscription, offset)
            if not taken:
                break
            self._move_to(subscription, offset - 1)
            subscription.position = offset
        if not rows:
            self._move_to(subscription, tail)  # retention took the rest
        if subscription.position >= state.tail:
            subscription.lagging = False
            self._lagging.pop(subscription, None)
        self._drained = trio.Event()
        self._outbox.kick()
        return taken

    def _move_to(self, subscription: Subscription, offset: int) -> None:
        if offset > subscription.position and (missed := subscription.skip(offset)):
            self._on_gap(subscription, missed)
