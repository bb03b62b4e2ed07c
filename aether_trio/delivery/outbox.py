"""What waits to be written to one participant, bounded in bytes; the FrameSource of its link.

Three queues, drained in this order:

* control: acks, replies, errors, signals. Filled by the session's own task, which waits for room before it takes the
  next request, so a client that asks and never reads stops being served, and costs no more than that.
* deliveries: durable messages. When it is full the subscription is marked lagging and its messages stay in the log, to
  be paged in by the catch-up reader (delivery/catchup.py) when there is room. Nothing is dropped.
* ephemeral: updates (progress). When it is full the oldest goes, is counted, and the client is told once.

While its gate is paused (the node has lost its lease) deliveries stay where they are.

Invariants: bytes of deliveries and updates never exceed their limit by more than one message; `flushed` reports a
delivery to its subscription only after the kernel has its bytes; after `detach` only control messages still go out;
`listeners` are called after each flush, and are for those who wait for room.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import trio

from aether_trio.model.containment import report
from aether_trio.model.limits import CLIENT_MESSAGE_BYTES

if TYPE_CHECKING:
    from aether_trio.delivery.receipts import Receipts


class Kickable(Protocol):
    """The part of a Link that an outbox needs."""

    def kick(self) -> None:
        """There is something new to pull."""
        ...


class Gate(Protocol):
    """Whether durable messages may leave."""

    paused: bool
    """It is open whether this node still holds what it holds: they wait, as another node may be delivering them."""


class _OpenGate:
    paused = False


_OPEN = _OpenGate()


class Origin(Protocol):
    """The subscription that a delivery belongs to."""

    @property
    def topic(self) -> str:
        """Its topic's name."""
        ...

    @property
    def position_done(self) -> int:
        """The offset up to which this consumer is known to be done; 0 where that has no meaning."""
        ...

    @property
    def shared(self) -> bool:
        """Whether others take messages of the same topic in turn, so that each is done by itself."""
        ...

    @property
    def is_open(self) -> bool:
        """Whether more may come."""
        ...

    def delivered(self, offset: int) -> None:
        """Everything offered through this outbox up to `offset` has gone to the kernel."""
        ...

    def acknowledged(self, offset: int) -> None:
        """The application is done with everything up to `offset`, or with `offset` alone if `shared`."""
        ...


Delivery = tuple[bytes, Origin, int]
"""A serialized DownstreamMessage, its subscription, its offset there."""


@dataclass(frozen=True, slots=True)
class OutboxLimits:
    """Bytes that may wait in each queue."""

    control_bytes: int = 256 * 1024
    delivery_bytes: int = 256 * 1024
    ephemeral_bytes: int = 64 * 1024


@dataclass(frozen=True, slots=True)
class OutboxStatistics:
    """What waits now, and what was dropped of the updates since start."""

    control_bytes: int
    delivery_bytes: int
    ephemeral_bytes: int
    ephemeral_dropped: int


class Outbox:
    """See the module docstring."""

    __slots__ = (
        "_control",
        "_deliveries",
        "_ephemeral",
        "_flushing",
        "_gate",
        "_link",
        "_on_cut",
        "_on_ephemeral_drop",
        "_on_failure",
        "_on_passed_over",
        "_room",
        "broken",
        "closed",
        "control_bytes",
        "credit_bytes",
        "credit_messages",
        "delivery_bytes",
        "ephemeral_bytes",
        "ephemeral_dropped",
        "limits",
        "listeners",
        "receipts",
        "takes_no_more",
    )

    def __init__(
        self,
        link: Kickable,
        limits: OutboxLimits,
        on_ephemeral_drop: Callable[[], None],
        on_cut: Callable[[], None] | None = None,
        gate: Gate = _OPEN,
        on_failure: Callable[[Exception], None] | None = None,
        on_passed_over: Callable[[str, int, int], None] | None = None,
    ) -> None:
        self._link = link
        self._gate = gate
        self._on_cut = on_cut
        self._on_failure = on_failure
        self._on_passed_over = on_passed_over
        self.limits = limits
        # Lists: an empty deque has 620 bytes, and what is pulled is mostly all that there is.
        self._control: list[bytes] = []
        self._deliveries: list[Delivery] = []
        self._ephemeral: list[bytes] = []
        self._flushing: dict[Origin, int] = {}
        self._room: trio.Event | None = None
        self._on_ephemeral_drop = on_ephemeral_drop
        self.listeners: tuple[Callable[[], None], ...] = ()
        self.control_bytes = 0
        self.delivery_bytes = 0
        self.ephemeral_bytes = 0
        self.ephemeral_dropped = 0
        self.receipts: Receipts | None = None
        """Of a client that numbers its sends; its link asks for them (transport/framed)."""
        self.credit_messages: int | None = None
        self.credit_bytes = 0
        """What `pull` may still deliver to a client that grants credit; None: any number."""
        self.closed = False
        self.takes_no_more = False
        """Its participant is leaving: what is not queued yet stays in the log, or goes to other workers."""
        self.broken = False

    # -- filling --------------------------------------------------------------------------------------------------

    def put_control(self, *frames: bytes) -> None:
        """Queue replies and try to write them."""
        self.queue_control(*frames)
        self._link.kick()

    def queue_control(self, *frames: bytes) -> None:
        """Queue replies. The caller kicks."""
        for frame in frames:
            self._control.append(frame)
            self.control_bytes += len(frame)

    @property
    def control_has_room(self) -> bool:
        """Whether another request may be taken from this client. Of a broken link the reader is to hear, so: yes."""
        return self.control_bytes < self.limits.control_bytes or self.broken

    async def wait_control_room(self) -> None:
        """Wait until `control_has_room`."""
        while not self.control_has_room:
            if self._room is None:
                self._room = trio.Event()
            await self._room.wait()

    def try_deliver(self, frame: bytes, origin: Origin, offset: int) -> bool:
        """Queue a durable message; False when there is no room. The caller kicks, once for many.

        One that is larger than any client takes is passed over, and its consumer is told.
        """
        size = len(frame)
        if size > CLIENT_MESSAGE_BYTES:
            return self._pass_over(origin, offset, size)
        waiting = self.delivery_bytes
        if waiting and waiting + size > self.limits.delivery_bytes:
            # The burst may be ahead of a socket that is free: give the link one chance before calling it lag.
            self._link.kick()
            waiting = self.delivery_bytes
            if waiting and waiting + size > self.limits.delivery_bytes:
                return False
        if self.closed or self.takes_no_more:
            return False
        self._deliveries.append((frame, origin, offset))
        self.delivery_bytes = waiting + size
        return True

    def _pass_over(self, origin: Origin, offset: int, size: int) -> bool:
        """No client takes it, now or later; waiting for room would hold up the topic. Its consumer is told."""
        if self.closed:
            return False
        if self._on_passed_over is not None:
            self._on_passed_over(origin.topic, offset, size)
        if origin.shared or origin.position_done == offset - 1:
            origin.acknowledged(offset)
        return True

    @property
    def wants_deliveries(self) -> bool:
        """Whether a catch-up reader should page in more: at most half full."""
        return not (self.closed or self.takes_no_more) and self.delivery_bytes * 2 <= self.limits.delivery_bytes

    def put_ephemeral(self, frame: bytes) -> None:
        """Queue an ephemeral update, dropping the oldest ones when it does not fit. The caller kicks."""
        if self.closed:
            return
        self._ephemeral.append(frame)
        self.ephemeral_bytes += len(frame)
        dropped = 0
        while self.ephemeral_bytes > self.limits.ephemeral_bytes and len(self._ephemeral) > 1:
            self.ephemeral_bytes -= len(self._ephemeral.pop(0))
            dropped += 1
        if dropped:
            self.ephemeral_dropped += dropped
            self._on_ephemeral_drop()

    def kick(self) -> None:
        """Let the link write what it can."""
        if not self.closed:
            self._link.kick()

    # -- FrameSource ----------------------------------------------------------------------------------------------

    def pull(self, max_bytes: int) -> list[bytes]:
        """See FrameSource."""
        frames = self.pull_control(max_bytes)
        budget = max_bytes - sum(map(len, frames)) if frames else max_bytes
        if self._deliveries and budget > 0:
            for frame, _, _ in self._pull_credited(budget):
                frames.append(frame)
                budget -= len(frame)
        if self._ephemeral and budget > 0:
            frames += self.pull_ephemeral(budget)
        return frames

    def _pull_credited(self, max_bytes: int) -> list[Delivery]:
        if self.credit_messages is None:
            return self.pull_deliveries(max_bytes)
        if self.credit_messages <= 0 or self.credit_bytes <= 0:
            return []
        found = self.pull_deliveries(min(max_bytes, self.credit_bytes), self.credit_messages)
        self.credit_messages -= len(found)
        self.credit_bytes -= sum(len(frame) for frame, _, _ in found)
        return found

    def grant(self, messages: int, size: int) -> None:
        """The client takes so many more messages, and bytes of messages."""
        self.credit_messages = (self.credit_messages or 0) + messages
        self.credit_bytes += size
        self.kick()

    def pull_control(self, max_bytes: int) -> list[bytes]:
        """See FrameSource."""
        if self.control_bytes <= max_bytes:
            frames, self._control = self._control, []
            self.control_bytes = 0
        else:
            frames = _take(self._control, max_bytes)
            self.control_bytes -= sum(map(len, frames))
        if self._room is not None and (self.control_has_room or not self._control):
            self._room.set()
            self._room = None
        return frames

    def pull_deliveries(
        self, max_bytes: int, max_messages: int | None = None, *, flush_is_done: bool = True
    ) -> list[Delivery]:
        """See FrameSource."""
        if self._gate.paused:
            return []
        deliveries = self._deliveries
        if self.delivery_bytes <= max_bytes and (max_messages is None or len(deliveries) <= max_messages):
            found, self._deliveries = deliveries, []
            self.delivery_bytes = 0
        else:
            count = taken = 0
            while taken < max_bytes and count < len(deliveries) and count != max_messages:
                taken += len(deliveries[count][0])
                count += 1
            found = deliveries[:count]
            del deliveries[:count]
            self.delivery_bytes -= taken
        if flush_is_done:
            flushing = self._flushing
            for _, origin, offset in found:
                flushing[origin] = offset
        return found

    def pull_ephemeral(self, max_bytes: int) -> list[bytes]:
        """See FrameSource."""
        if self.ephemeral_bytes <= max_bytes:
            frames, self._ephemeral = self._ephemeral, []
            self.ephemeral_bytes = 0
        else:
            frames = _take(self._ephemeral, max_bytes)
            self.ephemeral_bytes -= sum(map(len, frames))
        return frames

    def acknowledged(self, origin: Origin, offset: int) -> None:
        """See FrameSource."""
        if not self.closed:
            origin.acknowledged(offset)

    def flushed(self) -> None:
        """See FrameSource."""
        if self._flushing:
            done, self._flushing = self._flushing, {}
            for origin, offset in done.items():
                origin.delivered(offset)
        for drained in self.listeners:
            drained()

    def cut(self) -> None:
        """See FrameSource."""
        self.broken = True
        if self._room is not None:
            self._room.set()
            self._room = None
        if self._on_cut is not None:
            self._on_cut()

    def failed(self, error: Exception) -> None:
        """See FrameSource."""
        self._control.clear()
        self.control_bytes = 0
        if self._room is not None:
            self._room.set()
            self._room = None
        if self._on_failure is not None:
            self._on_failure(error)
        else:
            report(error, "a connection whose session has ended")

    def withdraw(self, origins: Collection[Origin]) -> None:
        """Take back the deliveries that are queued for these; they remain in the log behind their cursors."""
        if self._deliveries:
            self._deliveries = [entry for entry in self._deliveries if entry[1] not in origins]
            self.delivery_bytes = sum(len(entry[0]) for entry in self._deliveries)

    def detach(self) -> None:
        """Drop deliveries and updates for good; durable messages remain in the log behind their cursors. Idempotent.

        What was pulled and not flushed no longer moves a cursor, because somebody else may hold it from now on.
        """
        self.closed = True
        self._deliveries.clear()
        self._ephemeral.clear()
        self._flushing = {}
        self.delivery_bytes = self.ephemeral_bytes = 0
        self.listeners = ()
        # `receipts` stay: what is settled by now the client may still be told.

    def forget(self) -> None:
        """The link is closed: let go of it and of the owner, which both refer to this."""
        self._link = _NO_LINK
        self.receipts = None
        self._on_cut = None
        self._on_failure = None
        self._on_passed_over = None
        self._on_ephemeral_drop = _nothing

    async def wait_control_sent(self) -> None:
        """Wait until every control message has been pulled, or the link has broken."""
        while self._control and not self.broken:
            if self._room is None:
                self._room = trio.Event()
            await self._room.wait()

    def listen(self, drained: Callable[[], None]) -> None:
        """Call `drained` after each flush, from now on."""
        self.listeners = (*self.listeners, drained)

    def unlisten(self, drained: Callable[[], None]) -> None:
        """Undo `listen`. Idempotent."""
        self.listeners = tuple(one for one in self.listeners if one != drained)

    def statistics(self) -> OutboxStatistics:
        """What waits now."""
        return OutboxStatistics(self.control_bytes, self.delivery_bytes, self.ephemeral_bytes, self.ephemeral_dropped)


def _take(frames: list[bytes], max_bytes: int) -> list[bytes]:
    """Cut off the front: until `max_bytes` are reached, the last frame going beyond it."""
    count = 0
    while max_bytes > 0 and count < len(frames):
        max_bytes -= len(frames[count])
        count += 1
    taken = frames[:count]
    del frames[:count]
    return taken


def _nothing() -> None:
    """Nobody is told."""


class _NoLink:
    """Where a forgotten outbox kicks."""

    __slots__ = ()

    def kick(self) -> None:
        """Nothing is pulled any more."""


_NO_LINK = _NoLink()
