"""One participant's place in one topic's log.

A subscription is either *live* (it has been offered everything up to the topic's tail and takes new messages as they
are committed) or *lagging* (its outbox was full, or it has just connected with a backlog; the catch-up reader pages
from the log until it is level again).

Invariants: `position` is the offset last put into the outbox, `position >= cursor`; messages enter the outbox in offset
order without gaps, whichever of the two ways they come; the cursor moves only when bytes have gone to the socket.
"""

from __future__ import annotations

from collections.abc import Callable

from aether_trio.delivery.outbox import Outbox
from aether_trio.log.cursors import CursorStore
from aether_trio.log.topic_state import TopicState


class Subscription:
    """See the module docstring. `consumer` is None for a subscription that starts at the tail each time.

    `renews`: opening and closing, and retention now and then, write the cursor again though it has not moved, so that it is seen
    that it is used. That is for consumers which without a cursor would start at the tail and miss what came while they were away.
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
        state: TopicState,
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
        """Start to take messages; behind the tail means lagging from the start."""
        self.state.subscribers[self] = None
        if self._renews:
            self.delivered(self.position)
        if self.position < self.state.tail:
            self.lag()

    def close(self) -> None:
        """Take no more. Idempotent."""
        if self in self.state.subscribers:
            del self.state.subscribers[self]
            if self._renews:
                self.delivered(self.cursor)

    def renew(self) -> None:
        """See topic_state.Subscriber."""
        if self._renews:
            self.delivered(self.cursor)

    def skip(self, upto: int) -> int:
        """Nothing is left of what is between the position and `upto`: go on behind it. How many messages the consumer has missed.

        The cursor follows as soon as everything in front of the gap is delivered, so the consumer hears of a gap once.
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
        """Leave the rest to the catch-up reader."""
        if not self.lagging:
            self.lagging = True
            self._on_lag(self)

    def offer(self, offset: int, frame: bytes, touched: set[Outbox]) -> None:
        """See topic_state.Subscriber."""
        if self.lagging or offset <= self.position:
            return
        if offset == self.position + 1 and self.outbox.try_deliver(frame, self, offset):
            self.position = offset
            touched.add(self.outbox)
        else:
            self.lag()

    def look(self) -> None:
        """See topic_state.Subscriber."""
        if self.position < self.state.tail:
            self.lag()

    def delivered(self, offset: int) -> None:
        """See outbox.Origin."""
        if self._skip is not None and self._skip[0] <= offset <= self._skip[1]:
            offset, self._skip = self._skip[1], None
        self.cursor = offset
        if self.consumer is not None:
            self._cursors.advance(self.state, self.consumer, offset)

    # -- see outbox.Origin ----------------------------------------------------------------------------------------

    @property
    def topic(self) -> str:
        """The topic's name."""
        return self.state.name

    @property
    def position_done(self) -> int:
        """The cursor."""
        return self.cursor

    shared = False

    @property
    def is_open(self) -> bool:
        """Whether it takes messages."""
        return self in self.state.subscribers

    def acknowledged(self, offset: int) -> None:
        """The consumer is done with everything up to `offset`."""
        if offset > self.cursor:
            self.delivered(offset)
