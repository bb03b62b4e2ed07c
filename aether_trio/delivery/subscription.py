"""A participant's subscription: its place in the log of one topic.

A subscription is either *live* or *lagging*. A live one has been offered all messages up to the
topic's tail, and takes new messages as they are committed. A lagging one is behind, because its
outbox was full or because it has just connected with a backlog; the catch-up reader reads the log
for it until it has reached the tail.

Invariants: `position` is the offset last put into the outbox, and `position >= cursor`; messages
enter the outbox in the order of their offsets, without gaps, live or by catch-up; the cursor moves
only when bytes have gone to the socket.
"""

from __future__ import annotations

from collections.abc import Callable

from aether_trio.concurrency.kicks import Kickable
from aether_trio.delivery.outbox import Outbox
from aether_trio.log.cursors import CursorStore
from aether_trio.log.topic_cache import CachedTopic


class Subscription:
    """One participant's place in one topic, which offers messages to its outbox.

    `consumer` is None for a subscription that starts at the tail each time. With `renews`, opening,
    closing, and retention now and then write the cursor again though it has not moved, so that
    retention keeps it. That is for consumers that would start at the tail without a cursor, and
    miss the messages of their absence.
    """

    reads = True
    __slots__ = (
        "_cursors",
        "_on_lag",
        "_renews",
        "_skip",
        "consumer",
        "cursor",
        "lagging",
        "outbox",
        "position",
        "state",
    )

    def __init__(
        self,
        state: CachedTopic,
        outbox: Outbox,
        cursors: CursorStore,
        consumer: str | None,
        position: int,
        on_lag: Callable[[Subscription], None],
        *,
        renews: bool = False,
    ) -> None:
        self.state = state
        self.outbox = outbox
        self._cursors = cursors
        self.consumer = consumer
        self.position = self.cursor = position
        self._renews = renews
        self._skip: tuple[int, int] | None = None
        self.lagging = False
        self._on_lag = on_lag

    def open(self) -> None:
        """Start to take messages; a subscription behind the tail lags from the start."""
        self.state.subscribers[self] = None
        if self._renews:
            self.delivered(self.position)
        if self.position < self.state.tail:
            self.lag()

    def close(self) -> None:
        """Take no further messages. Idempotent."""
        if self in self.state.subscribers:
            del self.state.subscribers[self]
            if self._renews:
                self.delivered(self.cursor)

    def renew(self) -> None:
        """Write the unchanged cursor again if `renews` is set, so that retention keeps it."""
        if self._renews:
            self.delivered(self.cursor)

    def skip(self, upto: int) -> int:
        """Go on behind `upto`, as retention deleted messages; return how many it missed.

        The cursor follows when all messages in front of the gap are delivered.
        """
        before = self._skip[0] if self._skip is not None and self._skip[1] == self.position else self.position
        missed = max(upto - max(self.position, self.state.base), 0)
        self.position = upto
        if self.cursor >= before:
            self.delivered(upto)
        else:
            self._skip = before, upto
        return missed

    def lag(self) -> None:
        """Leave further messages to the catch-up reader."""
        if not self.lagging:
            self.lagging = True
            self._on_lag(self)

    def offer(self, offset: int, frame: bytes, touched: set[Kickable]) -> None:
        """Put a committed message into the outbox, or lag. Never blocks."""
        if self.lagging or offset <= self.position:
            return
        if offset == self.position + 1 and self.outbox.try_deliver(frame, self, offset):
            self.position = offset
            touched.add(self.outbox)
        else:
            self.lag()

    def look(self) -> None:
        """Lag if the topic's tail has moved beyond the position."""
        if self.position < self.state.tail:
            self.lag()

    def delivered(self, offset: int) -> None:
        """Move the cursor, as the operating system has all messages up to `offset`."""
        if self._skip is not None and self._skip[0] <= offset <= self._skip[1]:
            offset, self._skip = self._skip[1], None
        self.cursor = offset
        if self.consumer is not None:
            self._cursors.advance(self.state, self.consumer, offset)

    @property
    def topic(self) -> str:
        return self.state.name

    @property
    def position_done(self) -> int:
        return self.cursor

    shared = False

    @property
    def is_open(self) -> bool:
        return self in self.state.subscribers

    def acknowledged(self, offset: int) -> None:
        """Move the cursor, as the consumer is done with all messages up to `offset`."""
        if offset > self.cursor:
            self.delivered(offset)
