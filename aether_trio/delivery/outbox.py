"""The outbox of one participant: bounded queues of what its connection writes.

Three queues, drained in this order:

* control: acknowledgements, replies, errors, signals. The session's own task fills it, and waits
  for room before it takes the next request, so a client that asks and never reads is no longer
  served.
* deliveries: durable messages. When it is full, the subscription is marked lagging and its messages
  stay in the log; the catch-up reader (delivery/catchup.py) reads them when there is room.
* ephemeral: progress updates. When it is full, the oldest one is dropped and counted, and the
  client is told once.

While the gate is paused (the node may have lost its lease) deliveries stay in their queue.

Invariants: bytes of deliveries and updates never exceed their limit by more than one message;
`flushed` reports a delivery to its subscription only after the kernel has its bytes; after `detach`
only control messages still go out; `listeners` are called after each flush.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Protocol

from aether_trio.concurrency.events import RepeatedEvent
from aether_trio.concurrency.kicks import Kickable
from aether_trio.delivery.outbox_subscription import Delivery, Origin
from aether_trio.delivery.oversized_messages import skip_oversized_message
from aether_trio.model.containment import report
from aether_trio.model.errors import RequestError
from aether_trio.model.limits import CLIENT_MESSAGE_BYTES


class DeliveryGate(Protocol):
    """Says whether durable messages may leave this node."""

    paused: bool
    """Whether deliveries wait, as this node may have lost its lease to another one."""


class _OpenGate:
    paused = False


_OPEN = _OpenGate()


class SendReceipts(Protocol):
    """Receipts of a client's numbered sends, which the link asks for when it writes."""

    @property
    def due(self) -> bool:
        """Whether `take` has receipts or refusals to write."""

    def take(self) -> tuple[list[tuple[int, RequestError]], int]:
        """Take refused sends, and the number up to which all are settled (0: no news)."""


@dataclass(frozen=True, slots=True)
class OutboxLimits:
    """Limits of the bytes that may wait in each queue of an outbox."""

    control_bytes: int = 256 * 1024
    delivery_bytes: int = 256 * 1024
    ephemeral_bytes: int = 64 * 1024


class Outbox:
    """Queues what a participant's connection writes; see the top of this file."""

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
        "_on_oversized",
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
        gate: DeliveryGate = _OPEN,
        on_failure: Callable[[Exception], None] | None = None,
        on_oversized: Callable[[str, int, int], None] | None = None,
    ) -> None:
        self._link = link
        self._gate = gate
        self._on_cut = on_cut
        self._on_failure = on_failure
        self._on_oversized = on_oversized
        self.limits = limits
        # Lists: an empty deque has 620 bytes, and a pull mostly takes a whole queue.
        self._control: list[bytes] = []
        self._deliveries: list[Delivery] = []
        self._ephemeral: list[bytes] = []
        self._flushing: dict[Origin, int] = {}
        self._room = RepeatedEvent()
        self._on_ephemeral_drop = on_ephemeral_drop
        self.listeners: tuple[Callable[[], None], ...] = ()
        self.control_bytes = 0
        self.delivery_bytes = 0
        self.ephemeral_bytes = 0
        self.ephemeral_dropped = 0
        self.receipts: SendReceipts | None = None
        """The receipts of a client that numbers its sends; its link asks for them."""
        self.credit_messages: int | None = None
        """How many messages `pull` may still deliver, if the client grants credit."""
        self.credit_bytes = 0
        """How many bytes of messages `pull` may still deliver to a client that grants credit."""
        self.closed = False
        self.takes_no_more = False
        """Whether the participant is leaving, so that further messages stay in the log."""
        self.broken = False

    def put_control(self, *frames: bytes) -> None:
        """Queue replies to the client and have the link write them."""
        self.queue_control(*frames)
        self._link.kick()

    def queue_control(self, *frames: bytes) -> None:
        """Queue replies to the client; the link writes them after the next kick."""
        for frame in frames:
            self._control.append(frame)
            self.control_bytes += len(frame)

    @property
    def control_has_room(self) -> bool:
        """Whether another request may be taken from the client, or its link is broken."""
        return self.control_bytes < self.limits.control_bytes or self.broken

    async def wait_control_room(self) -> None:
        """Wait until another request may be taken from this client."""
        while not self.control_has_room:
            await self._room.wait()

    def try_deliver(self, frame: bytes, origin: Origin, offset: int) -> bool:
        """Queue a durable message for the next kick; return False if there is no room."""
        size = len(frame)
        if size > CLIENT_MESSAGE_BYTES:
            return not self.closed and skip_oversized_message(origin, offset, size, self._on_oversized)
        waiting = self.delivery_bytes
        if waiting and waiting + size > self.limits.delivery_bytes:
            # The burst may be ahead of a socket that is free: give the link one chance before
            # calling it lag.
            self._link.kick()
            waiting = self.delivery_bytes
            if waiting and waiting + size > self.limits.delivery_bytes:
                return False
        if self.closed or self.takes_no_more:
            return False
        self._deliveries.append((frame, origin, offset))
        self.delivery_bytes = waiting + size
        return True

    @property
    def wants_deliveries(self) -> bool:
        """Whether the catch-up reader should read a page: the queue is half empty."""
        return not (self.closed or self.takes_no_more) and self.delivery_bytes * 2 <= self.limits.delivery_bytes

    def put_ephemeral(self, frame: bytes) -> None:
        """Queue a progress update for the next kick; if there is no room, drop the oldest."""
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
        """Have the link write what it can, unless the outbox is detached."""
        if not self.closed:
            self._link.kick()

    def pull(self, max_bytes: int) -> list[bytes]:
        """Take frames for the link: `max_bytes`, and one frame beyond at most."""
        frames: list[bytes] = []
        budget = max_bytes
        if self._control:
            frames = self.pull_control(max_bytes)
            budget -= sum(map(len, frames))
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
        """Add to the client's credit of messages and bytes of messages, and write."""
        self.credit_messages = (self.credit_messages or 0) + messages
        self.credit_bytes += size
        self.kick()

    def report_receipts(self, receipts: SendReceipts) -> None:
        """Give the link the queue of receipts (ACKs, NACKs) that it writes to the client."""
        self.receipts = receipts

    def stop_deliveries(self) -> None:
        """Queue no further deliveries, as the participant is leaving."""
        self.takes_no_more = True

    def pull_control(self, max_bytes: int) -> list[bytes]:
        """Take control frames for the link, as `pull` does."""
        if self.control_bytes <= max_bytes:
            frames, self._control = self._control, []
            self.control_bytes = 0
        else:
            frames = _take_frames(self._control, max_bytes)
            self.control_bytes -= sum(map(len, frames))
        if not self._control or self.control_has_room:
            self._room.set()
        return frames

    def pull_deliveries(
        self, max_bytes: int, max_messages: int | None = None, *, flush_is_done: bool = True
    ) -> list[Delivery]:
        """Take durable messages for the link; `flush_is_done`: `flushed` advances cursors."""
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
        """Take progress updates for the link, as `pull` does."""
        if self.ephemeral_bytes <= max_bytes:
            frames, self._ephemeral = self._ephemeral, []
            self.ephemeral_bytes = 0
        else:
            frames = _take_frames(self._ephemeral, max_bytes)
            self.ephemeral_bytes -= sum(map(len, frames))
        return frames

    def acknowledged(self, origin: Origin, offset: int) -> None:
        """Note that the application is done with a delivery; ignored after a detach."""
        if not self.closed:
            origin.acknowledged(offset)

    def flushed(self) -> None:
        """Note that the operating system has all pulled frames; advance subscriptions."""
        if self._flushing:
            done, self._flushing = self._flushing, {}
            for origin, offset in done.items():
                origin.delivered(offset)
        for drained in self.listeners:
            drained()

    def cut(self) -> None:
        """Note that the client's stream broke, and wake the tasks that wait for room."""
        self.broken = True
        self._room.set()
        if self._on_cut is not None:
            self._on_cut()

    def failed(self, error: Exception) -> None:
        """Drop waiting replies and end the session, as writing raised (a defect)."""
        self._control.clear()
        self.control_bytes = 0
        self._room.set()
        if self._on_failure is not None:
            self._on_failure(error)
        else:
            report(error, "a connection whose session has ended")

    def withdraw(self, origins: Collection[Origin]) -> None:
        """Take back the queued deliveries of these subscriptions; they stay in the log."""
        if self._deliveries:
            self._deliveries = [entry for entry in self._deliveries if entry[1] not in origins]
            self.delivery_bytes = sum(len(entry[0]) for entry in self._deliveries)

    def detach(self) -> None:
        """Drop deliveries and updates for good, before another session may take over."""
        self.closed = True
        self._deliveries.clear()
        self._ephemeral.clear()
        self._flushing = {}
        self.delivery_bytes = self.ephemeral_bytes = 0
        self.listeners = ()
        # `receipts` stay: the client may still be told what is settled by now.

    def forget(self) -> None:
        """Drop references to the closed link and the session, which refer to the outbox."""
        self._link = _NO_LINK
        self.receipts = None
        self._on_cut = None
        self._on_failure = None
        self._on_oversized = None
        self._on_ephemeral_drop = lambda: None

    async def wait_control_sent(self) -> None:
        """Wait until every control message has been pulled, or the link has broken."""
        while self._control and not self.broken:
            await self._room.wait()

    def listen(self, drained: Callable[[], None]) -> None:
        """Call `drained` after each flush from now on."""
        self.listeners = (*self.listeners, drained)

    def unlisten(self, drained: Callable[[], None]) -> None:
        """Call `drained` no more after flushes. Idempotent."""
        self.listeners = tuple(one for one in self.listeners if one != drained)


def _take_frames(frames: list[bytes], max_bytes: int) -> list[bytes]:
    """Take frames from the front up to `max_bytes`; the last may go beyond it."""
    count = 0
    while max_bytes > 0 and count < len(frames):
        max_bytes -= len(frames[count])
        count += 1
    taken = frames[:count]
    del frames[:count]
    return taken


class _NoLink:
    """Stands in for the link of a forgotten outbox."""

    def kick(self) -> None:
        """Do nothing, as nothing is pulled any more."""


_NO_LINK = _NoLink()
