"""Reads and sends on one HTTP/2 connection, on the server's and the client's side.

The owner says what frames mean: ServerConnection (server_connection.py), or GrpcChannel in our gRPC
client. Sockets are plain non-blocking ones, waited for by trio.lowlevel: the send of trio's own is
async only, and an idle connection is smaller so. The task that opened the socket closes it.

Invariants: one task reads; what is not `async` never blocks and may be called from any task; a
defect ends this connection (model/containment.py) or only the stream that it was found in.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Final, Protocol

import trio

from aether_trio.concurrency.readiness import SocketReader
from aether_trio.transport.http2 import frames
from aether_trio.transport.http2.dataplane import DataPlane, FrameOwner
from aether_trio.transport.http2.frames import Http2Violation
from aether_trio.transport.http2.limits import Http2Limits
from aether_trio.transport.http2.stream import Http2Stream
from aether_trio.transport.socket.writer import BURST_BYTES, Sealer, SocketWriter

if TYPE_CHECKING:
    from aether_trio.transport.http2.flood_budgets import FloodBudgets
    from aether_trio.transport.http2.statistics import Http2Counters

ANSWER_TURNS: Final = 6
"""Turns of the scheduler for a new stream's answer, if that waits for no other thread."""
GOES_ON: Final = ""
"""What `_read` finds when there is no end, but more than a plain call may do."""


class ConnectionOwner(FrameOwner, Protocol):
    """Protocol: the server or client side that owns an HTTP/2 connection."""

    def on_defect(self, error: Exception) -> None:
        """Handle an internal error in sending, which makes the connection useless."""

    def on_half_close(self) -> None:
        """Prepare for the end: our side of the connection is about to be shut down."""


class ConnectionIo:
    """Reads, sends and ends one HTTP/2 connection; its owner interprets the frames."""

    __slots__ = (
        "_half_close_due", "_opened", "_owner", "_reader", "_sealer", "closing", "counters", "dirty", "limits", "plane", "writer",
    )  # fmt: skip

    def __init__(
        self,
        owner: ConnectionOwner,
        sock: socket.socket,
        sealer: Sealer | None,
        limits: Http2Limits,
        budgets: FloodBudgets,
        counters: Http2Counters,
        nursery: trio.Nursery,
        *,
        client_side: bool,
    ) -> None:
        self._owner = owner
        self._reader = SocketReader(sock)
        self._sealer = sealer
        self.limits = limits
        self.counters = counters
        self.plane = DataPlane(owner, limits, budgets, expect_preface=not client_side)
        self.writer = SocketWriter(
            self,
            sock,
            sealer,
            nursery,
            counters=counters,
            queue=self.plane.out,
            max_queued_bytes=limits.max_backlog_bytes,
        )
        self.dirty: dict[Http2Stream, None] = {}
        """Streams whose bytes are not all with the kernel."""
        self.closing = False
        """Whether nothing more is read or started; what is in `plane.out` still goes."""
        self._opened = False
        """Whether the bytes being served have opened a stream."""
        self._half_close_due = False

    # Reading --------------------------------------------------------------------------------------

    async def read_until_end(self) -> str:
        """Read and process frames until the connection ends; return the reason."""
        try:
            while self._sealer is None or not self._sealer.ended:
                reason = await self._reader.until(self._read)
                if reason is not GOES_ON:
                    return reason
                if not await self._finish_read():
                    return "closed"
            return "end of connection"
        finally:
            self._reader.release()

    def _read(self) -> str | None:
        """Read the socket once; None while the connection's task has no reason to wake.

        Return why the connection ends, or GOES_ON when the task is to go on with this read.
        """
        try:
            data = self._reader.read()
            if data is None:
                return None
            if not data:
                return "end of connection"
            self.counters.bytes_received += len(data)
            if self._sealer is not None:
                data = self._sealer.open(data)
        except OSError as error:
            return error.strerror or type(error).__name__
        if self.scan(data) or self._opened or (self._sealer is not None and self._sealer.ended):
            return GOES_ON
        return None if self._answer_read() else "closed"

    async def received(self, data: bytes) -> bool:
        """Process the bytes of one read; return False when the connection is ending."""
        self.scan(data)
        return await self._finish_read()

    async def _finish_read(self) -> bool:
        """Process what `scan` left of a read; return False when the connection is ending."""
        plane = self.plane
        while plane.more:
            # Other tasks have their turn before more of the read is looked at; what is to be sent
            # leaves with the last of it.
            await trio.lowlevel.checkpoint()
            if self.closing:
                return False
            self.scan(b"")
        if self._opened:
            self._opened = False
            if plane.out and not plane.ready and not self.closing:
                await self._let_answer()
        return self._answer_read()

    def _answer_read(self) -> bool:
        """Send what a read has brought about; return False when the connection is ending."""
        if self.plane.out or self.plane.ready:
            self.writer.kick()
        return not self.closing

    def scan(self, data: bytes) -> bool:
        """Parse received bytes; return whether more is left, which `scan(b"")` parses."""
        plane = self.plane
        try:
            plane.receive(data)
        except Http2Violation as violation:
            self._violated(violation)
            return False
        if plane.touched:
            touched, plane.touched = plane.touched, []
            for stream in touched:
                stream.wake()
        return plane.more

    async def _let_answer(self) -> None:
        """Let new streams' handlers answer first, so that one write takes all frames."""
        for _ in range(ANSWER_TURNS):
            await trio.lowlevel.cancel_shielded_checkpoint()
            if not self.plane.out:
                return

    def _violated(self, violation: Http2Violation) -> None:
        """Send GOAWAY once and stop reading: the peer broke an HTTP/2 rule."""
        self.counters.reject(violation.reason)
        if not self.closing:
            self.closing = True
            self.plane.out.append(frames.goaway(self.plane.highest_stream_id, violation.code, violation.debug))
            self.writer.kick()

    # Streams --------------------------------------------------------------------------------------

    def note_opened(self) -> None:
        """Note that the bytes being parsed have opened a stream, which may answer soon."""
        self._opened = True

    def wait_for_news(self, stream: Http2Stream, offer: Callable[[], bool] | None = None) -> Awaitable[object]:
        """Wait until a stream has a message or its end. A checkpoint; await it at once.

        `offer` is that of Http2Stream.park_reader.
        """
        # No coroutine: an idle stream waits here, and a coroutine costs 0.5 KiB.
        if stream.has_news:
            return trio.lowlevel.checkpoint()  # noqa: ASYNC105 -- the caller awaits it
        if stream.unread:
            # Parts of a message that must be read before the rest can come.
            self.take(stream)
        return stream.park_reader(offer)

    def take(self, stream: Http2Stream) -> list[bytes]:
        """Take the received messages of a stream and give their room back to the peer."""
        plane = self.plane
        waited = len(plane.out)
        batch = plane.take(stream)
        if len(plane.out) > waited:
            self.writer.kick()  # what waited before has a reason (see `received`)
        return batch

    async def send(self, stream: Http2Stream, pieces: Sequence[bytes]) -> None:
        """Send bytes as DATA; return when the kernel has them, or the stream has broken."""
        self.dirty[stream] = None
        if self.writer.is_writing:
            # Framed now it would be memory that a peer which does not read makes us hold, for as
            # many streams as it has.
            self.plane.hold(stream, pieces)
            self.kick(stream)
        else:
            self.plane.send(stream, pieces)
            self.writer.kick()
        await self.wait_drained(stream)

    async def wait_drained(self, stream: Http2Stream) -> None:
        """Wait until the kernel has all bytes of a stream or it broke. A checkpoint."""
        if stream in self.dirty:
            await stream.park_sender()
        else:
            await trio.lowlevel.checkpoint()

    def kick(self, stream: Http2Stream) -> None:
        """Let a stream send what it has, now or as soon as there is room."""
        plane = self.plane
        if self.writer.is_writing or (stream in plane.blocked and plane.room(stream) <= 0):
            stream.handler.on_stall()
        plane.ready[stream] = None
        self.writer.kick()

    # What the writer asks (WriteSource) -----------------------------------------------------------

    def fill(self) -> None:
        """Let the streams that have something to send fill the queue, in turns."""
        plane = self.plane
        ready = plane.ready
        if not ready or self.closing:
            return
        enough = plane.send_window - BURST_BYTES
        while ready:
            stream = next(iter(ready))
            del ready[stream]
            if stream.handler.fill():
                ready[stream] = None
            if plane.send_window <= enough:
                return
        ready.clear()  # frees the 0.2 KiB of its table

    def flushed(self) -> bool:
        """Resume senders whose bytes the kernel took; return whether more may follow."""
        dirty = self.dirty
        if dirty:
            self.dirty = {}
            for stream in dirty:
                if stream.pending is None:
                    stream.drained()
                else:
                    self.dirty[stream] = None
        plane = self.plane
        if plane.ready and not self.closing:
            return True
        if self._half_close_due and not plane.out:
            self._half_close()
        return False

    def on_stall(self, *, moved: bool) -> None:
        """Tell the streams concerned that their bytes wait for the peer to read."""
        if moved:
            for stream in self.dirty:
                if stream.pending is None:  # all that it gave is in the backlog
                    stream.handler.on_moved()
        else:
            for stream in (*self.dirty, *self.plane.ready):
                stream.handler.on_stall()

    def on_overflow(self) -> None:
        """Count a peer that does not read the replies to its frames."""
        self.counters.reject("unread_replies")

    def on_broken(self) -> None:
        """Read and start nothing more: the connection has broken."""
        self.closing = True

    def on_defect(self, error: Exception) -> None:
        """Pass an internal error in sending on to the connection's owner."""
        self._owner.on_defect(error)

    # Ending ---------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Read and start nothing more; queued bytes are still sent."""
        self.closing = True

    def end_when_flushed(self) -> None:
        """Read nothing more, send what is queued, then shut down our side."""
        self.closing = self._half_close_due = True
        self.writer.kick()

    def _half_close(self) -> None:
        self._half_close_due = False
        self._owner.on_half_close()
        try:
            self.writer.sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it is gone already
