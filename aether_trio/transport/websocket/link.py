"""Carries one client's session over a WebSocket: the gateway's end.

Reading happens in `receive` alone, so a session that does not call it stops its peer, and an idle
connection is one task. Pings are answered there, at most once for each look, with the last one.

Limits: a header that makes a message longer than `max_message_bytes` (1009), or than OPENING_BYTES
before the client is accepted, refuses it; unfinished messages count in the gateway's budget
(transport/socket/unfinished_input.py). After FRAMES_AT_ONCE frames the others have their turn.
Above `max_messages_per_s`, ten seconds' worth ahead, reading pauses. The first message's kind of
participant is checked before its credentials.

The peer's close frame is a clean end, whatever its code; without one a socket's end is a cut.
`receive` raises the peer's mistakes after the messages before them.

`rejects` counts by reason: protocol_error, wrong_type, too_long, undecodable, principal,
unfinished_message; paced is a pause of the reading.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Final

import trio

from aether_trio.concurrency.readiness import SocketReader
from aether_trio.model.errors import Status, StatusError
from aether_trio.model.token_bucket import TokenBucket
from aether_trio.transport.link import FrameSource, HandleNow, LinkBroken, Peer, Upstream
from aether_trio.transport.socket.byte_stream import RECEIVE_BYTES, ByteStream
from aether_trio.transport.socket.liveness import has_ended, has_input
from aether_trio.transport.websocket import frames
from aether_trio.transport.websocket.close_codes import INVALID_TEXT, UNSUPPORTED_DATA, close_code, close_reason
from aether_trio.transport.websocket.deliveries import Deliveries, is_statement
from aether_trio.transport.websocket.frames import CloseCode, FrameError, FrameReader
from aether_trio.transport.websocket.output import PING, WebSocketOutput
from aether_trio.wire.browser import Codec
from aether_trio.wire.framing.constants import OPENING_FRAME_BYTES
from aether_trio.wire.pb.aether_pb2 import UpstreamMessage

if TYPE_CHECKING:
    from aether_trio.transport.socket.unfinished_input import InputAccount

CLOSE_S: Final = 5.0
"""For the peer to read what was pulled already, and the close frame."""
ANSWER_S: Final = 2.0
"""For the peer's own close frame; without it the socket ends all the same."""
ROUND_TRIP_S: Final = 2.0
"""For a pong: longer than any way around the world, shorter than a person waits for a restart."""
ANY_KIND: Final = "*"
FRAMES_AT_ONCE: Final = 256
"""A few tenths of a millisecond; 64 KiB may hold ten thousand."""
OPENING_BYTES: Final = OPENING_FRAME_BYTES
"""Longest message of a client that is not accepted yet, in the bytes of its codec."""


_NOT_PINGED: Final = trio.Event()
_NOT_PINGED.set()


class WebSocketLink:
    """Carries one client's session over a WebSocket, as its Link."""

    __slots__ = (
        "_account", "_close_as", "_closing", "_codec", "_deaf", "_deliveries", "_ended", "_failure", "_frames",
        "_handed", "_handle_now", "_kinds", "_max_bytes", "_more", "_output", "_owed", "_ponged", "_rate", "_reader", "_rejects", "_stream",
        "accepted", "peer",
    )  # fmt: skip

    def __init__(
        self,
        stream: ByteStream,
        codec: Codec,
        peer: Peer,
        nursery: trio.Nursery,
        *,
        kinds: Collection[str],
        max_message_bytes: int,
        rate: TokenBucket,
        rejects: Counter[str],
        account: InputAccount,
        deliveries: Deliveries | None = None,
    ) -> None:
        self.peer = peer
        self.accepted = False
        """Whether the client's session is accepted."""
        self._stream = stream
        self._reader = SocketReader(stream.sock)
        self._frames = FrameReader(min(max_message_bytes, OPENING_BYTES))
        self._account = account
        self._handle_now: HandleNow | None = None
        self._handed = False
        """Messages are read, and the task in `receive` has not got them yet."""
        self._more = False
        """Whole frames may wait in the reader."""
        self._closing = False
        self._codec = codec
        self._deliveries = deliveries
        self._output = WebSocketOutput(stream, codec, nursery, deliveries)
        self._kinds: Collection[str] | None = None if ANY_KIND in kinds else kinds
        self._max_bytes = max_message_bytes
        self._rate = rate
        self._rejects = rejects
        self._owed = 0
        """Frames that were read and not yet taken from the bucket."""
        self._failure: StatusError | None = None
        self._close_as: int | None = None
        self._deaf = False
        """The peer's bytes are no frames any more."""
        self._ended: frames.CloseFrame | None = None
        self._ponged = _NOT_PINGED

    # -- reading -----------------------------------------------------------------------------------

    async def receive(self, handle_now: HandleNow | None = None) -> Sequence[Upstream]:
        """Return the client's next messages; an empty sequence after its close frame."""
        self._handle_now = handle_now
        batch: Sequence[Upstream]
        if self._failure is not None or self._ended is not None:
            await trio.lowlevel.checkpoint()
        while self._failure is None and self._ended is None:
            if self._owed:
                await self._pace()
            if self._more:
                await trio.lowlevel.checkpoint()
                batch = self._take()
            elif self._stream.head or self._tls_ended:
                batch = self._feed(await self._stream.receive())
            else:
                batch = await self._reader.until(self._read)
                self._handed = False
            if batch:
                return batch
        if self._failure is not None:
            raise self._failure
        return ()

    def receive_nowait(self) -> Sequence[UpstreamMessage]:
        """Return (): a client knows only from the upgrade's answer that it may send."""
        return ()

    @property
    def _tls_ended(self) -> bool:
        return self._stream.tls is not None and self._stream.tls.ended

    def _read(self) -> Sequence[Upstream] | None:
        """Read the socket once; None while the session's task has no reason to wake."""
        try:
            data = self._reader.read()
            if data is None:
                return None
            if data and self._stream.tls is not None:
                data = self._stream.tls.open(data)
                if not data and not self._tls_ended:
                    return None
        except OSError as error:
            self._output.writer.abort()
            raise LinkBroken(error.strerror or type(error).__name__) from None
        batch: Sequence[Upstream] = self._feed(data)
        if batch and self._handle_now is not None:
            batch = self._handle_now(batch)
        self._handed = bool(batch)
        if batch or self._failure is not None or self._ended is not None or self._more or self._tls_ended:
            return batch
        return None if self._settle_rate() == 0 else batch

    def _feed(self, data: bytes) -> list[UpstreamMessage]:
        """Parse received bytes into messages. Raises LinkBroken at the end of input."""
        if not data:
            self._output.writer.abort()
            raise LinkBroken("the client's connection ended without a WebSocket close frame")
        self._frames.feed(data)
        return self._take()

    async def _pace(self) -> None:
        """Wait until the client is within its message rate; no checkpoint if it is."""
        while wait_s := self._settle_rate():
            self._rejects["paced"] += 1
            await trio.sleep(wait_s)

    def _settle_rate(self) -> float:
        """Take read frames from the bucket; return the seconds to wait, or 0."""
        rate = self._rate
        most = int(rate.burst)
        while self._owed:
            count = min(self._owed, most)
            wait_s = rate.take(trio.current_time(), count)
            if wait_s:
                return wait_s
            self._owed -= count
        return 0.0

    def _take(self) -> list[UpstreamMessage]:
        """Parse up to FRAMES_AT_ONCE frames and return the messages in them."""
        reader, batch = self._frames, list[UpstreamMessage]()
        ping: frames.PingFrame | None = None
        count, anew, room = 0, False, False
        try:
            while count < FRAMES_AT_ONCE and (event := reader.next()) is not None:
                count += 1
                kind = type(event)
                if kind is frames.DataFrame:
                    anew = True
                    if self._deliveries is not None and event.text and is_statement(event.data):  # type: ignore[union-attr]
                        self._output.stated(event.data)  # type: ignore[union-attr]
                        room = True
                    else:
                        batch.append(self._decode(event))  # type: ignore[arg-type]
                elif kind is frames.PingFrame:
                    ping = event  # type: ignore[assignment]
                elif kind is frames.PongFrame:
                    self._ponged.set()
                elif kind is frames.CloseFrame:
                    self._ended = event  # type: ignore[assignment]
                    break
        except FrameError as error:
            self._fail(error)
        except StatusError as error:
            self._failure = error
        self._owed += count
        self._more = count == FRAMES_AT_ONCE and self._failure is None
        held = 0 if self._failure is not None else reader.held_bytes
        if held or self._account.begun:
            self._account.note(self, held, anew=anew)
        if ping is not None and self._ended is None:
            self._output.pong(frames.pong_frame(ping.payload))
        elif room:
            self._output.writer.kick()
        return batch

    def _fail(self, error: FrameError) -> None:
        self._close_as = int(error.code)
        self._deaf = True
        if error.code is CloseCode.TOO_BIG:
            self._rejects["too_long"] += 1
            self._failure = StatusError(Status.RESOURCE_EXHAUSTED, str(error))
        else:
            self._rejects["protocol_error"] += 1
            self._failure = StatusError(Status.INVALID_ARGUMENT, str(error))

    @property
    def awaits_rest(self) -> bool:
        """Whether a task waits for the rest of an unfinished message."""
        return bool(self._frames.held_bytes) and self._reader.is_waiting

    def give_up(self, error: StatusError) -> None:
        """Drop the unfinished message and let `receive` raise `error`."""
        if self._failure is None and self._ended is None:
            self._failure = error
            self._rejects["unfinished_message"] += 1
            self._frames.give_up()
            self._deaf = True
            self._reader.wake(())

    def _decode(self, event: frames.DataFrame) -> UpstreamMessage:
        """Decode a WebSocket message to an UpstreamMessage. Raises StatusError."""
        if event.text is not self._codec.text:
            self._close_as = UNSUPPORTED_DATA
            self._rejects["wrong_type"] += 1
            wanted = "text" if self._codec.text else "binary"
            raise StatusError(
                Status.INVALID_ARGUMENT, f"wrong kind of message: {self._codec.subprotocol} has {wanted} messages"
            )
        try:
            message = self._codec.decode(event.data.decode() if event.text else event.data)
        except UnicodeDecodeError:
            self._close_as = INVALID_TEXT
            self._rejects["protocol_error"] += 1
            raise StatusError(Status.INVALID_ARGUMENT, "a WebSocket text message is not UTF-8") from None
        except StatusError:
            self._rejects["undecodable"] += 1
            raise
        if self._kinds is not None:
            kind = message.init.WhichOneof("client_type")
            if kind is not None and kind not in self._kinds:
                self._rejects["principal"] += 1
                allowed = ", ".join(sorted(self._kinds))
                raise StatusError(
                    Status.PERMISSION_DENIED, f"{kind} may not connect over WebSocket here; these may: {allowed}"
                )
            self._kinds = None  # the first message only; a second init is the session's to refuse
        return message

    # -- writing -----------------------------------------------------------------------------------

    def attach(self, source: FrameSource) -> None:
        self._output.attach(source)

    def accept(self) -> None:
        """Allow messages of full length from now on: the client's session is accepted."""
        self.accepted = True
        self._frames.max_message_bytes = self._max_bytes

    def kick(self) -> None:
        self._output.writer.kick()

    def ping_if_quiet(self) -> None:
        """Send a ping, unless something was sent since the last call."""
        self._output.ping_if_quiet()

    @property
    def stalled_since(self) -> float | None:
        return self._output.writer.stalled_since

    def peer_has_ended(self) -> bool:
        return self._output.writer.is_broken or has_ended(self._stream.sock)

    @property
    def has_input(self) -> bool:
        return self._handed or self._more or bool(self._frames.held_bytes) or has_input(self._stream.sock)

    async def round_trip(self) -> None:
        """Send a ping and wait for a pong to this or an earlier one, at most ROUND_TRIP_S."""
        self._ponged = trio.Event()
        self._output.pong(PING)
        with trio.move_on_after(ROUND_TRIP_S):
            await self._ponged.wait()

    # -- ending ------------------------------------------------------------------------------------

    async def close(self, status: Status, message: str = "") -> None:
        """Send a close frame with the status; wait up to ANSWER_S for the peer's own."""
        output = self._output
        if output.writer.is_broken or self._closing:
            await trio.lowlevel.checkpoint()
            return
        self._closing = True
        failed = self._failure is not None and self._close_as is not None and message == self._failure.message
        if self._ended is not None:
            last = frames.close_frame(self._ended.code, close_reason(self._ended.reason))
        else:
            code = self._close_as if failed and self._close_as is not None else close_code(status)
            last = frames.close_frame(code, close_reason(message))
        await output.finish(last, CLOSE_S)
        if self._ended is None and output.writer.is_idle and not output.writer.is_broken:
            await self._await_answer()
        output.release()

    async def _await_answer(self) -> None:
        """Drop input until the client's close frame, so no reset makes it lose ours."""
        self._account.note(self, 0)
        with trio.move_on_after(ANSWER_S):
            if not self._deaf and not self._frames.held_bytes and await self._read_to_close():
                return
            # Its frames mean nothing any more, so only its end will tell; and it is to see ours.
            self._frames.give_up()
            self._stream.shutdown(socket.SHUT_WR)
            while await self._stream.receive_or_end():
                pass

    async def _read_to_close(self) -> bool:
        """Drop frames until a close frame; False when the rest is too much to parse."""
        reader = self._frames
        reader.max_message_bytes = RECEIVE_BYTES
        event: frames.Event | None = None
        while True:
            try:
                for _ in range(FRAMES_AT_ONCE):
                    event = reader.next()
                    if event is None or type(event) is frames.CloseFrame:
                        break
            except FrameError:
                return False
            if type(event) is frames.CloseFrame:
                return True
            if event is not None:
                await trio.lowlevel.checkpoint()
                continue
            data = await self._stream.receive_or_end()
            if not data:
                return True
            reader.feed(data)

    def release(self) -> None:
        """Send nothing more and drop unfinished input: the socket is about to be closed."""
        self._reader.release()
        self._account.note(self, 0)
        self._output.release()
