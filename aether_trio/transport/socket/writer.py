"""Sends a connection's bytes, with a task only while the socket has no room.

`kick` asks the source for its next bytes, joins them and hands them to the kernel, from the task
that has the news. Only when the kernel takes less than everything does a task start: it waits for
room, sends the rest, kicks again, and ends. So an idle connection has no writer task.

Invariants:
* bytes leave in the order in which they entered `queue`;
* with a backlog the source is asked for nothing, so a backlog is one burst and one message at most,
  and what is put into `queue` meanwhile is bounded by `max_queued_bytes`;
* what is not `async` never blocks, raises nothing, and may be called from any task of the run;
* a `kick` inside a `kick` leaves the work to the outer one;
* after `abort` or `release`, or when the task is cancelled with a backlog, nothing is sent, and the
  task ends.
"""

from __future__ import annotations

import socket
from typing import Final, Protocol

import trio

from aether_trio.concurrency.events import RepeatedEvent

BURST_BYTES: Final = 64 * 1024
"""What a source should put into the queue for one send."""
BURSTS_PER_KICK: Final = 4
"""Sent by one `kick`. Then other tasks have their turn, and the writer task goes on."""
UNBOUNDED: Final = 1 << 62


class WriteSource(Protocol):
    """Protocol: the connection from which a SocketWriter gets the bytes to send."""

    def fill(self) -> None:
        """Put at most BURST_BYTES and one message to send into the writer's queue."""

    def flushed(self) -> bool:
        """Note that the kernel took all queued bytes, if any; return whether more follow."""

    def on_stall(self, *, moved: bool) -> None:
        """Note that the writer waits for room; `moved`: after sending some of its backlog."""

    def on_overflow(self) -> None:
        """Note that too many bytes wait for a stuck peer; `on_broken` follows."""

    def on_broken(self) -> None:
        """Note, once, that the connection broke or was aborted: nothing more is sent."""

    def on_defect(self, error: Exception) -> None:
        """Handle an internal error that a method of this source raised."""


class Sealer(Protocol):
    """Protocol: encrypts and decrypts a connection's TLS records without a socket."""

    @property
    def ended(self) -> bool:
        """Whether the peer has ended its side of the TLS connection."""

    def seal(self, data: bytes) -> bytes:
        """Encrypt `data` into TLS records."""

    def open(self, data: bytes) -> bytes:
        """Decrypt received TLS records and return the bytes of the complete ones."""


class SentBytes(Protocol):
    """Protocol: counts the bytes that the kernel took."""

    bytes_sent: int


class SocketWriter:
    """Writes the bytes of a connection (`source`) to its socket, without blocking."""

    __slots__ = (
        "_again", "_backlog", "_counters", "_flushed", "_kicking", "_max_queued_bytes", "_nursery", "_source", "_tls",
        "is_broken", "is_writing", "queue", "sock", "stalled_since",
    )  # fmt: skip

    def __init__(
        self,
        source: WriteSource,
        sock: socket.socket,
        tls: Sealer | None,
        nursery: trio.Nursery,
        *,
        counters: SentBytes | None = None,
        queue: list[bytes | memoryview] | None = None,
        max_queued_bytes: int = UNBOUNDED,
    ) -> None:
        self.sock = sock
        self.queue: list[bytes | memoryview] = [] if queue is None else queue
        """What leaves with the next send, in order. Anyone may append; `kick` sends it."""
        self.is_writing = False
        """Whether the socket takes nothing at the moment, and the task waits for room."""
        self.is_broken = False
        self.stalled_since: float | None = None
        """trio time since when the kernel has taken nothing of what waits; None when nothing waits.
        """
        self._source: WriteSource | None = source
        self._tls = tls
        self._nursery = nursery
        self._counters = counters
        self._max_queued_bytes = max_queued_bytes
        self._backlog: memoryview | None = None
        self._kicking = self._again = False
        self._flushed: RepeatedEvent | None = None

    @property
    def is_idle(self) -> bool:
        """Whether the kernel has all bytes, or nothing will be sent any more."""
        return self.is_broken or not (self.is_writing or self.queue)

    @property
    def backlog_bytes(self) -> int:
        """The bytes that the kernel has not taken yet."""
        return 0 if self._backlog is None else len(self._backlog)

    def kick(self) -> None:
        """Send what the source has, now or as soon as there is room. Cheap to call twice."""
        if self._kicking:
            self._again = True
            return
        source = self._source
        if self.is_broken or source is None:
            self.queue.clear()
            return
        if self.is_writing:
            if self.queue and sum(map(len, self.queue)) > self._max_queued_bytes:
                source.on_overflow()
                self.abort()
            return
        failure: Exception
        self._kicking = True
        try:
            self._send_bursts(source)
            return
        except Exception as error:
            failure = error
        finally:
            self._kicking = False
        source.on_defect(failure)

    def _send_bursts(self, source: WriteSource) -> None:
        queue = self.queue
        for _ in range(BURSTS_PER_KICK):
            self._again = False
            source.fill()
            if queue:
                if not self._send():
                    return
                more = source.flushed()
            else:
                source.flushed()
                more = False
            if not (more or self._again or queue) or self.is_broken:
                if self._flushed is not None:
                    self._flushed.set()
                return
        self._start_task(source)

    def _send(self) -> bool:
        """Hand the queued bytes to the kernel; return whether it took all of them."""
        if self.is_broken:
            return False
        queue = self.queue
        data = b"".join(queue)
        queue.clear()
        try:
            if self._tls is not None:
                data = self._tls.seal(data)
            sent = self.sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.abort()
            return False
        if self._counters is not None:
            self._counters.bytes_sent += sent
        if sent == len(data):
            return True
        self._backlog = memoryview(data)[sent:]
        if self._source is not None:
            self._start_task(self._source)
        return False

    # -- the task ----------------------------------------------------------------------------------

    def _start_task(self, source: WriteSource) -> None:
        # Also without a backlog: the next burst may find a socket without room, and no other task
        # would send then.
        self.is_writing = True
        self.stalled_since = trio.current_time()
        self._nursery.start_soon(self._write, name="socket-writer")
        source.on_stall(moved=False)

    async def _write(self) -> None:
        """Wait until the kernel has the backlog; then send what was queued meanwhile."""
        failure: Exception | None = None
        try:
            await self._write_backlog()
        except (OSError, trio.ClosedResourceError):
            self.abort()
        except trio.Cancelled:
            if self._backlog is not None:
                self.is_broken = True  # the middle of a message is missing
                self._drop()
            raise
        except Exception as error:
            failure = error
        finally:
            self.is_writing = False
            self.stalled_since = None
        source = self._source
        if source is not None and not self.is_broken:
            try:
                if failure is None and not self.queue:
                    source.flushed()
            except Exception as error:
                failure = error
            if failure is not None:
                source.on_defect(failure)
                if self._backlog is not None:
                    self.abort()  # the middle of a message is missing
        self.kick()

    async def _write_backlog(self) -> None:
        while not self.is_broken:
            await trio.lowlevel.wait_writable(self.sock)
            backlog = self._backlog
            if backlog is None:
                return
            try:
                sent = self.sock.send(backlog)
            except BlockingIOError:
                continue
            if self._counters is not None:
                self._counters.bytes_sent += sent
            if sent == len(backlog):
                self._backlog = None
                return
            self._backlog = backlog[sent:]
            self.stalled_since = trio.current_time()  # the peer reads, if slowly
            if self._source is not None:
                self._source.on_stall(moved=True)

    # -- ending ------------------------------------------------------------------------------------

    async def wait_flushed(self) -> None:
        """Wait until the kernel has all bytes or the connection broke. A checkpoint."""
        await trio.lowlevel.checkpoint()
        while not self.is_idle:
            if self._flushed is None:
                self._flushed = RepeatedEvent()
            await self._flushed.wait()

    def abort(self) -> None:
        """Drop waiting bytes and shut the socket down, which ends its reader. Idempotent."""
        if self.is_broken:
            return
        self.is_broken = True
        self._drop()
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the peer was faster
        if self._source is not None:
            self._source.on_broken()

    def release(self) -> None:
        """Send nothing more and drop the source, before the socket is closed. Idempotent."""
        self.is_broken = True
        self._drop()
        self._source = None
        if self.is_writing:
            trio.lowlevel.notify_closing(self.sock)

    def _drop(self) -> None:
        self._backlog = self.stalled_since = None
        self.queue.clear()
        self._tell_flushed()

    def _tell_flushed(self) -> None:
        if self._flushed is not None:
            self._flushed.set()
