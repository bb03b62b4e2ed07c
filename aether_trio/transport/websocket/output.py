"""Queues what the gateway sends on a WebSocket: pongs, messages, close frame.

Invariants: frames leave in the order pulled, a pong ahead of what is pulled with it; nothing is
pulled while bytes wait for the peer; a defect ends only this connection (model/containment.py).
"""

from __future__ import annotations

import struct
from typing import Final

import trio

from aether_trio.model.containment import report
from aether_trio.transport.link import FrameSource
from aether_trio.transport.socket.accepted import peer_of
from aether_trio.transport.socket.byte_stream import ByteStream
from aether_trio.transport.socket.writer import BURST_BYTES, SocketWriter
from aether_trio.transport.websocket.deliveries import Deliveries
from aether_trio.wire.browser import Codec

PING: Final = b"\x89\x00"
"""A ping without data."""

_FINAL_TEXT: Final = 0x81
_FINAL_BINARY: Final = 0x82
_SHORT: Final = 126
_MIDDLE: Final = 1 << 16


def data_header(kind: int, size: int) -> bytes:
    """Build an unmasked WebSocket frame's header (RFC 6455 section 5.2)."""
    if size < _SHORT:
        return bytes((kind, size))
    if size < _MIDDLE:
        return struct.pack("!BBH", kind, 126, size)
    return struct.pack("!BBQ", kind, 127, size)


class WebSocketOutput:
    """The sending half of a WebSocket connection of the gateway."""

    __slots__ = (
        "_codec", "_deliveries", "_failed", "_kind", "_last", "_pong", "_sent", "_source", "_stopped", "_unflushed",
        "writer",
    )  # fmt: skip

    def __init__(
        self, stream: ByteStream, codec: Codec, nursery: trio.Nursery, deliveries: Deliveries | None = None
    ) -> None:
        self.writer = SocketWriter(self, stream.sock, stream.tls, nursery)
        self._codec = codec
        self._kind = _FINAL_TEXT if codec.text else _FINAL_BINARY
        self._deliveries = deliveries
        self._source: FrameSource | None = None
        self._pong: bytes | None = None
        self._last: bytes | None = None
        self._stopped = self._unflushed = self._sent = self._failed = False

    def attach(self, source: FrameSource) -> None:
        """Set the session's source, from which messages to send are pulled."""
        if self._source is not None:
            raise RuntimeError("attach() was called twice: this link already has a source of messages")
        self._source = source
        if self.writer.is_broken:
            source.cut()

    def pong(self, frame: bytes) -> None:
        """Send a pong, or a ping of ours; of those that wait only the latest is kept."""
        self._pong = frame
        self.writer.kick()

    def ping_if_quiet(self) -> None:
        """Send a ping, unless something was sent since the last call, or waits."""
        if not self._sent and not self.writer.is_writing and not self._stopped:
            self.pong(PING)
        self._sent = False

    def stated(self, data: bytes) -> None:
        """Apply the client's acknowledgement of deliveries. Raises StatusError."""
        assert self._deliveries is not None
        for origin, offset in self._deliveries.stated(data):
            if self._source is not None:
                self._source.acknowledged(origin, offset)

    # -- what the writer asks (WriteSource) --------------------------------------------------------

    def fill(self) -> None:
        """Put pongs, the session's messages and the close frame into the writer's queue."""
        queue = self.writer.queue
        if self._pong is not None:
            queue.append(self._pong)
            self._pong = None
        if self._source is not None and not self._stopped:
            found = self._pull(self._source)
            if found:
                self._unflushed = True
                kind = self._kind
                for data in found:
                    queue += (data_header(kind, len(data)), data)
        if self._last is not None:
            queue.append(self._last)
            self._last = None
        if queue:
            self._sent = True

    def _pull(self, source: FrameSource) -> list[bytes]:
        """Take the session's next messages, encoded for this WebSocket."""
        encode, deliveries = self._codec.encode, self._deliveries
        if deliveries is None:
            return [encode(frame) for frame in source.pull(BURST_BYTES)]
        control = source.pull_control(BURST_BYTES)
        budget = BURST_BYTES - sum(map(len, control))
        found = [encode(frame) for frame in control]
        messages, size = deliveries.room
        if messages and budget > 0:
            pulled = source.pull_deliveries(min(budget, size), messages, flush_is_done=False)
            for frame, origin, offset in pulled:
                found.append(deliveries.deliver(encode(frame), origin, offset, len(frame)))
                budget -= len(frame)
        if budget > 0:
            found += [encode(frame) for frame in source.pull_ephemeral(budget)]
        return found

    def flushed(self) -> bool:
        """Tell the session that the kernel has all bytes; return whether more may follow."""
        source = self._source
        if source is None:
            return False
        if self._unflushed:
            self._unflushed = False
            source.flushed()
        return bool(source.control_bytes or source.delivery_bytes or source.ephemeral_bytes)

    def on_stall(self, *, moved: bool) -> None:
        """Do nothing when the socket is full: the link reports the stall."""

    def on_overflow(self) -> None:
        """Do nothing: a WebSocket queues nothing while its client does not read."""

    def on_broken(self) -> None:
        """Tell the session that its connection has broken."""
        self._pong = self._last = None
        if self._source is not None:
            self._source.cut()

    def on_defect(self, error: Exception) -> None:
        """End the session after an internal error; the second time, cut the connection."""
        if self._source is not None and not self._failed:
            self._failed = self._stopped = True
            self._unflushed = False
            self._source.failed(error)
        else:
            report(error, f"websocket from {peer_of(self.writer.sock)}")
            self.writer.abort()

    # -- ending ------------------------------------------------------------------------------------

    async def finish(self, last: bytes, seconds: float) -> None:
        """Send the close frame `last` behind what was pulled, within `seconds`."""
        self._stopped = True
        self._last = last
        self.writer.kick()
        if not self.writer.is_idle:
            with trio.move_on_after(seconds):
                await self.writer.wait_flushed()

    def release(self) -> None:
        """Send nothing more and drop the session: the socket is about to be closed."""
        self.writer.release()
        self._source = None
