"""The sending half of a connection: writing on demand, and the end of our side.

There is no writer task while the socket accepts what we have: `pump` collects what the streams may send, joins it with
control frames into one buffer and sends that at once, from whatever task had the news. Only when the kernel takes less
than everything does a writer task start; it waits for room, finishes, pumps on, and ends.

Invariants: bytes go out in the order produced; no stream is asked for more while a backlog exists; everything that is not
`async` never blocks and may be called from any task; `pump` raises nothing: a defect ends this connection
(model/containment.py), or only the stream that it was found in (stream.py).
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Final, Protocol

import trio

from aether_trio.model.containment import report
from aether_trio.transport.http2.dataplane import DataPlane
from aether_trio.transport.http2.limits import GrpcLimits
from aether_trio.transport.http2.pumped import PumpedStream
from aether_trio.transport.socket.accepted import peer_of

if TYPE_CHECKING:
    from aether_trio.transport.http2.flood_budgets import Budgets
    from aether_trio.transport.http2.sending import Owner
    from aether_trio.transport.http2.statistics import Counters
    from aether_trio.transport.socket.unfinished_input import Account

BURST_BYTES: Final = 64 * 1024
"""Asked of the streams for one send."""
BURSTS_PER_PUMP: Final = 4
"""Then the others have a turn: the writer task goes on."""


class Sealer(Protocol):
    """TLS without a socket: plain bytes on one side, records on the other. See transport/socket/tls.py."""

    @property
    def ended(self) -> bool:
        """The peer has ended its side."""
        ...

    def seal(self, data: bytes) -> bytes: ...

    def open(self, data: bytes) -> bytes: ...


class Output:
    """What leaves on a socket. `owner` is the connection that this is a part of."""

    __slots__ = (
        "_abandoned",
        "_backlog",
        "_half_close_when_flushed",
        "_pumping",
        "_writing",
        "closing",
        "counters",
        "dirty",
        "limits",
        "nursery",
        "plane",
        "sealer",
        "sock",
    )

    def __init__(
        self,
        owner: Owner,
        sock: socket.socket,
        sealer: Sealer | None,
        limits: GrpcLimits,
        budgets: Budgets,
        counters: Counters,
        nursery: trio.Nursery,
        *,
        client_side: bool,
        account: Account | None = None,
    ) -> None:
        self.sock = sock
        self.sealer = sealer
        self.limits = limits
        self.counters = counters
        self.nursery = nursery
        self.plane = DataPlane(owner, limits, budgets, expect_preface=not client_side, account=account)
        self.closing = False
        """Nothing more is read or started; what is in `out` still goes."""
        self.dirty: dict[PumpedStream, None] = {}
        """Streams whose bytes are not all with the kernel."""
        self._backlog: memoryview | None = None
        self._writing = False
        self._pumping = False
        self._half_close_when_flushed = False
        self._abandoned = False

    @property
    def stalled(self) -> bool:
        """The socket takes nothing at the moment."""
        return self._writing

    def kick(self, stream: PumpedStream) -> None:
        """This stream has something to send."""
        if self._writing or (stream in self.plane.blocked and self.plane.room(stream) <= 0):
            stream.stall()
        self.plane.ready[stream] = None
        if not self._pumping:
            self.pump()

    def pump(self) -> None:
        """Send what there is. Never blocks, raises nothing; called from inside itself it leaves the work to the outer call."""
        if self._abandoned:
            self.plane.out.clear()
            return
        if self._pumping:
            return
        self._pumping = True
        failure: Exception
        try:
            for _ in range(BURSTS_PER_PUMP):
                if self._writing:
                    self._bound_backlog()
                    return
                if self.plane.ready and not self.closing:
                    self._collect()
                if not self.plane.out:
                    self._tell_drained()
                    if not self.plane.ready or self.closing:
                        if self._half_close_when_flushed:
                            self._half_close()
                        return
                elif not self._send_out():
                    return
            self._start_writer()
            return
        except Exception as error:
            failure = error
        finally:
            self._pumping = False
        self.failed(failure)

    def failed(self, error: Exception) -> None:
        """A defect of ours: this connection is of no more use, and its streams hear that it has broken."""
        report(error, f"grpc with {peer_of(self.sock)}")
        self.abandon()

    def _collect(self) -> None:
        plane = self.plane
        ready = plane.ready
        enough = plane.send_window - BURST_BYTES
        while ready:
            stream: PumpedStream = next(iter(ready))  # type: ignore[assignment]
            del ready[stream]
            if stream.fill():
                ready[stream] = None
            if plane.send_window <= enough:
                return

    def _send_out(self) -> bool:
        """Hand `out` to the kernel. False when some of it must wait."""
        out = self.plane.out
        data: bytes = b"".join(out)
        out.clear()
        if self.sealer is not None:
            data = self.sealer.seal(data)
        try:
            sent = self.sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.abandon()
            return False
        self.counters.bytes_sent += sent
        if sent == len(data):
            if self.dirty:
                self._tell_drained()
            return True
        self._backlog = memoryview(data)[sent:]
        self._start_writer()
        return False

    def _tell_drained(self) -> None:
        dirty = self.dirty
        if dirty:
            self.dirty = {}
            for stream in dirty:
                if stream.pending is None:
                    stream.drained()
                else:
                    self.dirty[stream] = None

    def _bound_backlog(self) -> None:
        if sum(map(len, self.plane.out)) > self.limits.max_backlog_bytes:
            self.counters.reject("unread_replies")
            self.abandon()

    def _start_writer(self) -> None:
        if not self._writing:
            self._writing = True
            for stream in (*self.dirty, *self.plane.ready):
                stream.stall()  # type: ignore[attr-defined]
            self.nursery.start_soon(self._write_backlog)

    async def _write_backlog(self) -> None:
        try:
            await self._wait_out_backlog()
        except OSError:
            self.abandon()
            return
        except Exception as error:
            self.failed(error)
            return
        finally:
            self._writing = False
        self.pump()

    async def _wait_out_backlog(self) -> None:
        while True:
            await trio.lowlevel.wait_writable(self.sock)
            backlog = self._backlog
            if backlog is None:
                return
            try:
                sent = self.sock.send(backlog)
            except BlockingIOError:
                continue
            self.counters.bytes_sent += sent
            if sent == len(backlog):
                self._backlog = None
                return
            self._backlog = backlog[sent:]
            for stream in self.dirty:
                if stream.pending is None:  # all that it gave is in the backlog
                    stream.moved()

    # Ending ------------------------------------------------------------------------------------------------------

    def end_when_flushed(self) -> None:
        """Read and start nothing more, send what there is, then end our side; the peer ends its own, and so the reader."""
        self.closing = self._half_close_when_flushed = True
        self.pump()

    def _half_close(self) -> None:
        self._half_close_when_flushed = False
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it is gone already

    def abandon(self) -> None:
        """The socket is of no more use: drop what waits and let the reader see the end. Nothing is drained from here on."""
        self.closing = self._abandoned = True
        self._backlog = None
        self.plane.out.clear()
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it is gone already
