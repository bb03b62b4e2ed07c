"""The gateway's end of one framed (binary protocol) connection: reads and closes.

The session's own task reads in `receive`, so an idle connection is one task, and a session that
does something else stops its client by TCP. Acknowledged deliveries go to their subscriptions,
credit and pings to the output (output.py). A mistake ends the stream after the frames in front of
it were served. Others have their turn after FRAMES_AT_ONCE frames of a read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import trio

from aether_trio.concurrency.readiness import SocketReader
from aether_trio.model.errors import RETRYABLE_STATUSES, Status, StatusError
from aether_trio.transport.framed.output import FramedOutput
from aether_trio.transport.link import FrameSource, LinkBroken, Peer
from aether_trio.transport.socket.linger import linger
from aether_trio.transport.socket.liveness import has_ended, has_input
from aether_trio.wire import framing
from aether_trio.wire.framing import ErrorCode, RemoteProtocolError
from aether_trio.wire.upstream import decode_upstream

if TYPE_CHECKING:
    from aether_trio.transport.framed.limits import FramedLimits
    from aether_trio.transport.framed.statistics import FramedCounters
    from aether_trio.transport.link import HandleNow, Upstream
    from aether_trio.transport.socket.accepted import Accepted
    from aether_trio.transport.socket.unfinished_input import InputAccount

FRAMES_AT_ONCE: Final = 256
"""Half a millisecond; a read may bring ten thousand."""

RETRYABLE_MISTAKES: Final = frozenset({ErrorCode.CALM, ErrorCode.TIMEOUT, ErrorCode.TRUNCATED})
"""Errors without a defect of the client: too fast, too slow, or cut off on the way."""


class FramedLink:
    """Carries one client's session over the framed (binary) protocol, as its Link."""

    __slots__ = (
        "_account", "_closed", "_code", "_counters", "_credits", "_ended", "_failure", "_frames_left", "_frames_since",
        "_handed", "_handle_now", "_held", "_limits", "_pending", "_reader", "accepted", "output", "peer", "sock", "tls",
    )  # fmt: skip

    def __init__(
        self,
        accepted: Accepted,
        output: FramedOutput,
        limits: FramedLimits,
        counters: FramedCounters,
        account: InputAccount,
    ) -> None:
        self.sock = accepted.sock
        self._reader = SocketReader(accepted.sock)
        self.tls = accepted.tls
        self.output = output
        self.peer: Peer
        """Set when the client has said HELLO."""
        self._limits = limits
        self._counters = counters
        self._pending: Sequence[framing.Event] = ()
        self._handed = False
        """Messages are read, and the task in `receive` has not got them yet."""
        self._handle_now: HandleNow | None = None
        self._ended = False
        self._failure: StatusError | LinkBroken | None = None
        """What `receive` raises."""
        self._code: tuple[int, bool] | None = None
        """...and how the ERROR frame says it: its code, and whether to come back."""
        self._account = account
        self._held = 0
        """What the last read has left of a frame that is not whole, in bytes."""
        self.accepted = False
        """Whether the client's session is accepted."""
        self._frames_left = limits.control_frames_burst
        self._frames_since = 0.0
        self._credits = 0
        self._closed = False

    # -- reading -----------------------------------------------------------------------------------

    def receive_nowait(self) -> Sequence[Upstream]:
        """Return the messages that came right behind the HELLO; () for none."""
        events, self._pending = self._pending, ()
        return self._sort(events) if events else ()

    async def receive(self, handle_now: HandleNow | None = None) -> Sequence[Upstream]:
        """Return the client's next messages; an empty list once it has ended its side."""
        self._handle_now = handle_now
        batch: Sequence[Upstream]
        if self._pending:
            await trio.lowlevel.checkpoint()
            if batch := self.receive_nowait():
                return batch
        while True:
            if self._failure is not None:
                raise self._failure
            if self._ended:
                await trio.lowlevel.checkpoint()
                return ()
            if self._can_read_on:
                batch = await self._reader.until(self._read_batch)
                self._handed = False
            else:
                batch = self._sort(await self.read())
            if batch:
                return batch

    def put_back(self, events: Sequence[framing.Event]) -> None:
        """Keep frames that came right behind the HELLO for `receive_nowait` or `receive`."""
        self._pending = events

    async def read(self) -> Sequence[framing.Event]:
        """Return frames that an earlier read left, or wait for the client's next ones."""
        if self._can_read_on:
            return await self._reader.until(self._read_frames)
        await trio.lowlevel.checkpoint()
        return self.decode(b"") if self.output.connection.more else self._end()

    @property
    def _can_read_on(self) -> bool:
        """Whether the next frame is to be read from the socket."""
        return not self.output.connection.more and (self.tls is None or not self.tls.ended)

    def _read_batch(self) -> Sequence[Upstream] | None:
        """Read the socket once; None while the session's task has no reason to wake."""
        events = self._read_frames()
        if events is None:
            return None
        batch: Sequence[Upstream] = self._sort(events)
        if batch and self._handle_now is not None:
            batch = self._handle_now(batch)
        self._handed = bool(batch)
        if batch or self._failure is not None or self._ended or not self._can_read_on:
            return batch
        return None

    def _read_frames(self) -> Sequence[framing.Event] | None:
        """Read the socket once; None while the session's task has no reason to wake."""
        events = self.read_now()
        if events or self._failure is not None or self._ended or not self._can_read_on:
            return events
        return None

    def read_now(self) -> Sequence[framing.Event]:
        """Read the socket once and return the decoded frames. Raises LinkBroken."""
        try:
            data = self._reader.read()
            if data is None:
                return ()
            if not data:
                return self._end()
            self._counters.bytes_received += len(data)
            if self.tls is not None:
                data = self.tls.open(data)
        except OSError as error:
            self.output.writer.abort()
            raise LinkBroken(error.strerror or type(error).__name__) from None
        return self.decode(data)

    def decode(self, data: bytes) -> Sequence[framing.Event]:
        """Decode bytes into frames; keep a protocol error for `receive` to raise."""
        connection = self.output.connection
        try:
            events = connection.receive(data)
        except RemoteProtocolError as error:
            return self._fail(error)
        held, before = connection.held_bytes, self._held
        if held or before:
            self._held = held
            self._account.note(self, held, anew=bool(events))
        return events

    @property
    def awaits_rest(self) -> bool:
        """Whether a task waits for the rest of an unfinished frame."""
        return bool(self._held) and self._reader.is_waiting

    def give_up(self, error: StatusError) -> None:
        """Drop the unfinished frame and let `receive` raise `error`."""
        if self._failure is not None:
            return
        late = error.status is Status.DEADLINE_EXCEEDED
        self._failure = error
        self._code = int(ErrorCode.TIMEOUT if late else error.status), True
        self._counters.reject("unfinished_message")
        self.output.connection.give_up()
        self._reader.wake(())

    def release(self) -> None:
        """Read nothing more and drop an unfinished frame, before the socket is closed."""
        self._reader.release()
        self._account.note(self, 0)

    def _end(self) -> Sequence[framing.Event]:
        self._ended = True
        try:
            self.output.connection.receive_end()
        except RemoteProtocolError as error:
            return self._fail(error)
        return ()

    def fail(self, code: ErrorCode, message: str) -> None:
        """Record that the client broke the protocol; `close` sends it this error."""
        if self._failure is None:
            self._failure = StatusError(Status.INVALID_ARGUMENT, message)
            self._code = int(code), code in RETRYABLE_MISTAKES
            self._account.note(self, 0)
            self._counters.reject(code.name.lower())

    def _fail(self, error: RemoteProtocolError) -> Sequence[framing.Event]:
        self.fail(ErrorCode(error.code), error.message)
        events: Sequence[framing.Event] = error.events
        error.__traceback__ = None
        return events

    def _sort(self, events: Sequence[framing.Event]) -> list[Upstream]:
        """Handle received frames of the protocol itself; return those for the session."""
        batch: list[Upstream] = []
        behind = self._failure
        for event in events:
            if isinstance(event, framing.Send):
                batch.append(event)
            elif isinstance(event, framing.Envelope):
                try:
                    batch.append(decode_upstream(event.message))
                except StatusError as error:
                    self._failure = error
                    self._code = int(Status.INVALID_ARGUMENT), False
                    break
            else:
                _HANDLERS[type(event)](self, event)
                if self._failure is not behind:
                    break
        self.output.kick_if_due()
        return batch

    def _delivered(self, event: framing.Delivered) -> None:
        self.output.acknowledged(event.channel, event.offset)

    def _credit(self, _event: framing.GrantCredit) -> None:
        # One for each delivery is what the simplest client does. More of them is work without a
        # purpose.
        if self._credits < self.output.deliveries:
            self._credits += 1
        else:
            self._count_control()
        self.output.credit_granted()

    def _ping(self, event: framing.Ping) -> None:
        self._count_control()
        self.output.pong = event.number

    def _skipped(self, _event: framing.Skipped) -> None:
        self._count_control()

    def _count_control(self) -> None:
        """Count a control frame against the client's limit; too many fail the connection."""
        limits = self._limits
        now = trio.current_time()
        if self._frames_left < 1:
            gained = (now - self._frames_since) * limits.control_frames_per_s
            self._frames_left = min(self._frames_left + gained, limits.control_frames_burst)
            self._frames_since = now
        elif self._frames_left == limits.control_frames_burst:
            self._frames_since = now
        self._frames_left -= 1
        if self._frames_left < 0:
            self.fail(ErrorCode.CALM, f"more than {limits.control_frames_per_s:g} control frames a second")

    def _leaving(self, _event: framing.GoAway) -> None:
        """Do nothing for a client's GOAWAY: the codec stops deliveries to the client."""

    def _error(self, event: framing.Error) -> None:
        self.output.writer.abort()
        self._failure = self._failure or LinkBroken(f"the client reports an error: {event.message or event.code}")

    # -- the rest of Link --------------------------------------------------------------------------

    def attach(self, source: FrameSource) -> None:
        self.output.attach(source)

    def accept(self) -> None:
        """Mark the client's session as accepted, for the gateway's memory account."""
        self.accepted = True

    def kick(self) -> None:
        self.output.writer.kick()

    @property
    def stalled_since(self) -> float | None:
        """The trio time since which bytes wait for the client to read; None if none wait."""
        return self.output.writer.stalled_since

    def peer_has_ended(self) -> bool:
        return self.output.writer.is_broken or has_ended(self.sock)

    @property
    def has_input(self) -> bool:
        return self._handed or bool(self._pending) or self.output.connection.more or has_input(self.sock)

    async def round_trip(self) -> None:
        """Wait forever if the client was sent GOAWAY (it ends its side); else return."""
        if self.output.connection.state is framing.ConnectionState.LEAVING:
            await trio.sleep_forever()
        await trio.lowlevel.checkpoint()

    @property
    def waits_for_hello(self) -> bool:
        """Whether the client can still send its HELLO: no end and no error so far."""
        return not self._ended and self._failure is None

    async def close(self, status: Status, message: str = "") -> None:
        """Send what was pulled, then an ERROR unless the status is OK, and end our side."""
        if self._closed:
            await trio.lowlevel.checkpoint()
            return
        self._closed = True
        if status is Status.DEADLINE_EXCEEDED and self.output.connection.state is not framing.ConnectionState.LIVE:
            self.fail(ErrorCode.TIMEOUT, message)
        code, retryable = self._code or (int(status), status in RETRYABLE_STATUSES)
        text = self._failure.message if isinstance(self._failure, StatusError) else message
        output = self.output
        output.finish(None if status is Status.OK else framing.Error(code, text, retryable))
        if not output.writer.is_idle:
            with trio.move_on_after(self._limits.close_timeout_s):
                await output.writer.wait_flushed()
        if not self._ended and not output.writer.is_broken:
            await linger(self.sock, self._limits.linger_s)


_HANDLERS: Final[dict[type, Callable[..., None]]] = {
    framing.Delivered: FramedLink._delivered,
    framing.GrantCredit: FramedLink._credit,
    framing.Ping: FramedLink._ping,
    framing.Pong: lambda _link, _event: None,
    framing.Skipped: FramedLink._skipped,
    framing.GoAway: FramedLink._leaving,
    framing.Error: FramedLink._error,
}
