"""The catch-up reader: reads the log for subscriptions that lag behind it.

One task per session, which runs only while a subscription of the session lags. It reads a page when
the outbox is at most half full. So a client that stops reading costs its outbox and no more, and a
client that reads again is served at its own pace.

A subscription joins the live stream without a lock: there is no checkpoint between the test "the
position has reached the tail" and the clearing of the flag, and the fan-out of a message is one
step as well. So a message is either read here or offered live, and `Subscription.offer` ignores
messages that were read here.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog
import trio

from aether_trio.delivery.outbox import Outbox
from aether_trio.delivery.subscription import Subscription
from aether_trio.log.topic_log import TopicLog
from aether_trio.storage.base import StorageUnavailable
from aether_trio.storage.retry import RETRY_DELAY_S

logger = structlog.get_logger("aether.catchup")

PAGE_ROWS = 256


class CatchUp:
    """Reads the log for lagging subscriptions; reports deleted messages to `on_gap`."""

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

    def add(self, subscription: Subscription) -> None:
        """Read for this subscription until it has reached the tail. Never blocks."""
        self._lagging[subscription] = None
        if not self._running:
            self._running = True
            self._nursery.start_soon(self._run, name="catch-up")

    def remove(self, subscription: Subscription) -> None:
        """Read no more for this subscription, which was closed."""
        self._lagging.pop(subscription, None)

    async def _run(self) -> None:
        self._drained = trio.Event()
        self._outbox.listen(self._flushed)
        try:
            while self._lagging:
                for subscription in list(self._lagging):
                    await self._wait_room()
                    if subscription in self._lagging and not await self._page(subscription):
                        await self._drained.wait()
        finally:
            self._running = False
            self._outbox.unlisten(self._flushed)
            del self._drained  # 280 bytes, in a session that rarely lags

    def _flushed(self) -> None:
        self._drained.set()

    async def _wait_room(self) -> None:
        while not self._outbox.wants_deliveries:
            if self._outbox.closed:
                await trio.sleep_forever()  # the session is ending; its nursery cancels this task
            self._drained = trio.Event()
            await self._drained.wait()

    async def _page(self, subscription: Subscription) -> bool:
        """Queue a page of a topic's messages in the outbox; return False if it is full.

        Then await `_drained`: another page would not help before the next flush.
        """
        topic = subscription.state
        # what the page can know of: further messages may be committed during the read
        tail = topic.tail
        try:
            rows = await self._log.read(
                topic, subscription.position, rows=PAGE_ROWS, max_bytes=self._outbox.limits.delivery_bytes // 2
            )
        except StorageUnavailable as error:
            # The next subscription has its turn: perhaps only this topic cannot be read.
            logger.warning(
                "the catch-up of a subscription waits until storage answers", topic=topic.name, reason=str(error)
            )
            await trio.sleep(RETRY_DELAY_S)
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
        if subscription.position >= topic.tail:
            subscription.lagging = False
            self._lagging.pop(subscription, None)
        self._drained = trio.Event()
        self._outbox.kick()
        return taken

    def _move_to(self, subscription: Subscription, offset: int) -> None:
        if offset > subscription.position and (missed := subscription.skip(offset)):
            self._on_gap(subscription, missed)
