"""Orders and queues what the gateway sends on a framed (binary) connection.

In each burst: receipts of the client's sends, answers and signals, deliveries within the client's
credit, ephemeral updates. Invariants: nothing is pulled from the session while a backlog exists;
nothing here blocks; a defect ends this connection and no other (model/containment.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from aether_trio.model.containment import report
from aether_trio.transport.link import FrameSource
from aether_trio.transport.socket.accepted import address_text
from aether_trio.transport.socket.writer import BURST_BYTES, SocketWriter
from aether_trio.wire import framing
from aether_trio.wire.framing import deliver_header, encode_ack, encode_channel, encode_channel_closed
from aether_trio.wire.framing.ledger import OpenChannel

if TYPE_CHECKING:
    from aether_trio.delivery.outbox_subscription import Origin
    from aether_trio.transport.framed.statistics import FramedCounters
    from aether_trio.transport.socket.accepted import Accepted

CHANNELS_BEFORE_SWEEP: Final = 16
"""Topics left before this many are open stay, as DELIVEREDs may be on their way."""


_NO_CHANNELS: Final[dict[Origin, tuple[int, OpenChannel]]] = {}
_NO_ORIGINS: Final[dict[int, Origin]] = {}
"""Both of all connections to which nothing was delivered; never written to."""


class FramedOutput:
    """Sends on one framed connection of the gateway; `connection` encodes the frames."""

    __slots__ = (
        "_address", "_channels", "_due", "_failed", "_finished", "_finishing", "_last", "_next_channel", "_origins",
        "_source", "_unflushed", "connection", "deliveries", "pong", "writer",
    )  # fmt: skip

    def __init__(
        self, accepted: Accepted, connection: framing.FramedConnection, nursery: trio.Nursery, counters: FramedCounters
    ) -> None:
        self.writer = SocketWriter(self, accepted.sock, accepted.tls, nursery, counters=counters)
        self.connection = connection
        self._address = accepted.address
        self._source: FrameSource | None = None
        self._channels = _NO_CHANNELS
        self._origins = _NO_ORIGINS
        self._next_channel = 0
        self._due = self._unflushed = False
        self._finishing = self._finished = self._failed = False
        self._last: framing.Error | None = None
        self.pong: int | None = None
        """The number of the last PING that was not answered yet."""
        self.deliveries = 0

    # -- what the link says ------------------------------------------------------------------------

    def attach(self, source: FrameSource) -> None:
        """Set the session's source, from which messages to send are pulled."""
        if self._source is not None:
            raise RuntimeError("attach() was called twice: this link already has a source of messages")
        self._source = source
        if self.writer.is_broken:
            source.cut()

    def put(self, event: framing.Event) -> None:
        """Queue a frame of the protocol itself, such as HELLO; the next kick sends it."""
        self.writer.queue.append(self.connection.send(event))

    def send_goaway(self, event: framing.GoAway) -> None:
        """Send GOAWAY to a live client that was not sent one before."""
        if self.connection.state is framing.ConnectionState.LIVE and not self._finishing and not self.writer.is_broken:
            self.put(event)
            self.writer.kick()

    def acknowledged(self, number: int, offset: int) -> None:
        """Pass the client's acknowledgement of a delivery on to the session."""
        origin = self._origins.get(number)
        if origin is not None and self._source is not None:
            self._source.acknowledged(origin, offset)

    def credit_granted(self) -> None:
        """Note that the client granted delivery credit; `kick_if_due` sends then."""
        self._due = True

    def kick_if_due(self) -> None:
        """Send now if the frames just read brought credit or a PING to answer."""
        if self._due or self.pong is not None:
            self._due = False
            self.writer.kick()

    # -- what the writer asks (WriteSource) --------------------------------------------------------

    def fill(self) -> None:
        """Put the session's next messages, or its last ERROR, into the writer's queue."""
        queue = self.writer.queue
        if not self._finished and not self._failed:
            if self.pong is not None:  # also of a client that has not said who it is
                queue.append(self.connection.send(framing.Pong(self.pong)))
                self.pong = None
            if self._source is not None:
                self._collect_from(self._source, queue)
        if not queue and self._finishing and not self._finished:
            self._finished = True
            if self._last is not None:
                queue.append(self.connection.send(self._last))
        if queue:
            self._unflushed = True

    def flushed(self) -> bool:
        """Tell the session that the kernel has all bytes; return whether more may follow."""
        source = self._source
        if source is None:
            return self._finishing
        if self._unflushed:
            self._unflushed = False
            source.flushed()
        return bool(source.control_bytes or source.delivery_bytes or source.ephemeral_bytes or self._finishing)

    def on_stall(self, *, moved: bool) -> None:
        """Do nothing when the socket is full: the link reports the stall."""

    def on_overflow(self) -> None:
        """Do nothing: only two frames are ever queued beside the session's messages."""

    def on_broken(self) -> None:
        """Tell the session that its connection has broken."""
        if self._source is not None:
            self._source.cut()

    def on_defect(self, error: Exception) -> None:
        """End the session after an internal error; the second time, cut the connection."""
        if self._source is not None and not self._failed:
            self._failed = True
            self._source.failed(error)
        else:
            report(error, f"framed from {address_text(self._address)}")
            self.writer.abort()

    # -- one burst ---------------------------------------------------------------------------------

    def _collect_from(self, source: FrameSource, parts: list[bytes | memoryview]) -> None:
        if source.receipts is not None:
            self._add_receipts(source, parts)
        if source.control_bytes:
            parts += self.connection.send_envelopes(source.pull_control(BURST_BYTES))
        if source.delivery_bytes and self.connection.deliverable:
            self._add_deliveries(source, parts)
        if source.ephemeral_bytes:
            parts += self.connection.send_envelopes(source.pull_ephemeral(BURST_BYTES))

    def _add_receipts(self, source: FrameSource, parts: list[bytes | memoryview]) -> None:
        assert source.receipts is not None
        refused, acked = source.receipts.take()
        for seq, error in refused:
            nack = framing.Nack(seq, error.code, error.message, error.retryable, error.retry_after_ms)
            parts.append(self.connection.send(nack))
        if acked:
            self.connection.sequence.ack(acked)
            parts.append(encode_ack(acked))

    def _add_deliveries(self, source: FrameSource, parts: list[bytes | memoryview]) -> None:
        connection = self.connection
        credit = connection.credit
        channels = self._channels
        bounded = credit.bounded
        max_messages = credit.message_count
        max_bytes = BURST_BYTES
        if bounded and credit.byte_count is not None:
            max_bytes = min(max_bytes, credit.byte_count)
        deliveries = source.pull_deliveries(max_bytes, max_messages, flush_is_done=not connection.delivery_acks)
        for message, origin, offset in deliveries:
            found = channels.get(origin)
            if found is None:
                if not origin.is_open:
                    # It was given up while this waited: its topic may have a channel of a
                    # successor.
                    continue
                found = self._open(origin, parts)
                channels = self._channels
            number, channel = found
            size = len(message)
            parts.append(deliver_header(number, offset, size))
            parts.append(message)
            # The codec's own bookkeeping (Connection.count_deliver), without its checks of what
            # cannot be otherwise here.
            if offset > channel.position:  # noqa: PLR1730 -- max() is a call for each delivery
                channel.position = offset
            if bounded:
                credit.take(size)
        self.deliveries += len(deliveries)

    def _open(self, origin: Origin, parts: list[bytes | memoryview]) -> tuple[int, OpenChannel]:
        if not self._channels:
            self._channels, self._origins = {}, {}
        channels, ledger = self._channels, self.connection.channels
        many = len(channels) >= CHANNELS_BEFORE_SWEEP
        for old in [one for one in channels if not one.is_open and (many or one.topic == origin.topic)]:
            number, _ = channels.pop(old)
            del self._origins[number]
            ledger.close(number)
            parts.append(encode_channel_closed(number))
        # Never one that was used: a DELIVERED for the old topic may be on its way.
        number = self._next_channel
        self._next_channel += 1
        position = origin.position_done
        ledger.open(number, origin.topic, position, shared=origin.shared)
        parts.append(encode_channel(number, origin.topic, position, shared=origin.shared))
        channel = ledger.get(number)
        assert channel is not None
        found = channels[origin] = (number, channel)
        self._origins[number] = origin
        return found

    # -- ending ------------------------------------------------------------------------------------

    def finish(self, last: framing.Error | None) -> None:
        """Pull no more; send what is queued and then `last` as the kernel takes it."""
        self._last = last
        self._finishing = True
        self.writer.kick()

    def release(self) -> None:
        """Send nothing more and drop the session: the connection is over."""
        self.writer.release()
        self._source = None
        self._channels = _NO_CHANNELS
        self._origins = _NO_ORIGINS
