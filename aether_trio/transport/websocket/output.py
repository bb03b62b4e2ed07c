"""The sending half of a WebSocket connection: pulled, framed and sent from whatever task had the news.

There is no writer task while the kernel takes what there is: `pump` pulls what the session has, frames it and sends it as
one buffer. When the kernel takes less, a task waits for room, sends the rest, pumps on and ends.

Invariants: frames leave in the order pulled, a pong ahead of what is pulled with it; nothing is pulled while
bytes wait; everything that is not `async` never blocks and may be called from any task of the run; after `abandon` or
`release` nothing is sent and no task is left. `pump` is called by the tasks of others and raises nothing: a defect ends
this connection (model/containment.py).
"""

from __future__ import annotations

import struct
from typing import Final

import trio

from aether_trio.model.containment import report
from aether_trio.transport.link import FrameSource
from aether_trio.transport.socket.accepted import peer_of
from aether_trio.transport.socket.byte_stream import ByteStream
from aether_trio.transport.websocket.deliveries import Deliveries
from aether_trio.wire.browser import Codec

BURST_BYTES: Final = 64 * 1024
"""Pulled for one send."""
BURSTS_PER_PUMP: Final = 4
"""Then the others have a turn: a task goes on."""

PING: Final = b"\x89\x00"
"""A ping without data."""

_FINAL_TEXT: Final = 0x81
_FINAL_BINARY: Final = 0x82
_SHORT: Final = 126
_MIDDLE: Final = 1 << 16


def data_header(kind: int, size: int) -> bytes:
    """In front of `size` bytes that a server sends as one unfragmented, unmasked frame (RFC 6455 section 5.2)."""
    if size < _SHORT:
        return bytes((kind, size))
    if size < _MIDDLE:
        return struct.pack("!BBH", kind, 126, size)
    return struct.pack("!BBQ", kind, 127, size)


class Output:
    """See the module docstring."""

    __slots__ = (
        "_again",
        "_backlog",
        "_codec",
        "_deliveries",
        "_drained",
        "_failed",
        "_kind",
        "_last",
        "_nursery",
        "_pong",
        "_pumping",
        "_sent",
        "_stopped",
        "_stream",
        "_unflushed",
        "_writer",
        "broken",
        "source",
        "stalled_since",
    )

    def __init__(
        self, stream: ByteStream, codec: Codec, nursery: trio.Nursery, deliveries: Deliveries | None = None
    ) -> None:
        self._stream = stream
        self._codec = codec
        self._kind = _FINAL_TEXT if codec.text else _FINAL_BINARY
        self._deliveries = deliveries
        self._nursery = nursery
        self.source: FrameSource | None = None
        self.stalled_since: float | None = None
        self.broken = False
        self._pong: bytes | None = None
        self._last: bytes | None = None
        self._backlog: memoryview | None = None
        self._writer: trio.CancelScope | None = None
        self._drained: trio.Event | None = None
        self._pumping = self._again = self._stopped = self._unflushed = self._sent = self._failed = False

    @property
    def idle(self) -> bool:
        """Everything pulled and the last frame are with the kernel, or never will be."""
        return self.broken or (self._writer is None and self._last is None and not self._unflushed)

    def pong(self, frame: bytes) -> None:
        """Answer a ping. Of the answers that wait for room only the latest is kept (RFC 6455 section 5.5.3)."""
        self._pong = frame
        self.pump()

    def ping_if_quiet(self) -> None:
        """Send a ping, unless something was sent since the last call, or waits."""
        if not self._sent and self._writer is None and not self._stopped:
            self.pong(PING)
        self._sent = False

    def pump(self) -> None:
        """Send what there is. Never blocks, raises nothing; called from inside itself it leaves the work to the outer call."""
        if self._pumping:
            self._again = True
            return
        if self._writer is not None or self.broken:
            return
        self._pumping = True
        failure: Exception
        try:
            for _ in range(BURSTS_PER_PUMP):
                if not self._send_burst():
                    return
            self._start_writer()
            return
        except Exception as error:
            failure = error
        finally:
            self._pumping = False
        self._fail(failure)

    def _fail(self, error: Exception) -> None:
        """A defect of the gateway: the session ends and its client is told; without one, or at the second time, cut."""
        if self.source is not None and not self._failed:
            self._failed = self._stopped = True
            self._unflushed = False
            self.source.failed(error)
        else:
            report(error, f"websocket from {peer_of(self._stream.sock)}")
            self.abandon()

    def _send_burst(self) -> bool:
        """Whether there may be more to send now."""
        parts: list[bytes] = []
        if self._pong is not None:
            parts.append(self._pong)
            self._pong = None
        if self.source is not None and not self._stopped:
            found = self._pull(self.source)
            if found:
                self._unflushed = True
                kind = self._kind
                for data in found:
                    parts += (data_header(kind, len(data)), data)
        if self._last is not None:
            parts.append(self._last)
            self._last = None
        if not parts:
            self._again = False
            self._tell_flushed()  # which may bring something
            return self._again
        self._sent = True
        try:
            self._backlog = self._stream.send(b"".join(parts))
        except OSError:
            self.abandon()
            return False
        if self._backlog is None:
            self._tell_flushed()
            return True
        self._start_writer()
        return False

    def _pull(self, source: FrameSource) -> list[bytes]:
        """What the session has, in the bytes of the codec; of deliveries that are acknowledged what the client has room for."""
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

    def stated(self, data: bytes) -> None:
        """What the client says of its deliveries. The caller pumps, as there may be room. Raises StatusError."""
        assert self._deliveries is not None
        for origin, offset in self._deliveries.stated(data):
            if self.source is not None:
                self.source.acknowledged(origin, offset)

    def _tell_flushed(self) -> None:
        if self._unflushed:
            self._unflushed = False
            if self.source is not None:
                self.source.flushed()
        self._tell_drained()

    def _tell_drained(self) -> None:
        if self._drained is not None:
            self._drained.set()
            self._drained = None

    def _start_writer(self) -> None:
        # Also when nothing is left of the burst: the next may find a socket without room, and then nobody sends.
        self.stalled_since = trio.current_time()
        self._writer = trio.CancelScope()
        self._nursery.start_soon(self._write_backlog, self._writer)

    async def _write_backlog(self, scope: trio.CancelScope) -> None:
        with scope:
            try:
                await self._wait_out_backlog()
            except OSError:
                self.abandon()
                return
            except Exception as error:
                self._fail(error)
            finally:
                self._writer = None
            self.stalled_since = None
            if self.broken:
                return  # what waited was dropped
            try:
                self._tell_flushed()
            except Exception as error:
                self._fail(error)
            self.pump()

    async def _wait_out_backlog(self) -> None:
        while not self.broken:
            await trio.lowlevel.wait_writable(self._stream.sock)
            backlog = self._backlog
            if backlog is None:
                return
            self._backlog = self._stream.send_rest(backlog)
            if self._backlog is None:
                return
            if len(self._backlog) < len(backlog):
                self.stalled_since = trio.current_time()  # it reads, if slowly

    # -- ending ---------------------------------------------------------------------------------------------------

    async def finish(self, last: bytes, seconds: float) -> None:
        """Pull no more; send what was pulled and then `last`, if the peer makes room for it within `seconds`."""
        self._stopped = True
        self._last = last
        self.pump()
        with trio.move_on_after(seconds):
            while not self.idle:
                self._drained = self._drained or trio.Event()
                await self._drained.wait()

    def abandon(self) -> None:
        """The connection is of no more use: drop what waits, let the reader see the end, tell the source. Idempotent."""
        if self.broken:
            return
        self.broken = True
        self.stalled_since = None
        self._backlog = None
        self._pong = self._last = None
        self._stream.shutdown()
        self._tell_drained()
        if self.source is not None:
            self.source.cut()

    def release(self) -> None:
        """The socket is about to be closed: nobody may wait for it any more."""
        self.broken = True
        self.source = self._backlog = None
        if self._writer is not None:
            self._writer.cancel()
