"""A participant's Link over one WebSocket.

wsproto checks and takes apart the frames; reading happens in `receive` and nowhere else, so a session that does not call it
stops its peer, and an idle connection is one task. Pings are answered there too, at most once for each read, with the
last one (RFC 6455 section 5.5.3).

Limits: a message is refused as soon as it is longer than `max_message_bytes` (1009), whatever its frames; frames, pings
and pongs above `max_messages_per_s` are not refused: reading pauses until the client is within its rate, ten seconds' worth
ahead, and TCP tells it. The first message is checked for a kind of participant that may come this way, before anybody
looks at its credentials.

How it ends: the peer's close frame is a clean end, whatever its code; a socket that ends without one is a cut. What the peer
did wrong is raised by `receive` after the messages before it.

`rejects` counts by reason: protocol_error, wrong_type, too_long, undecodable, principal; paced is a pause of the reading.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any, Final

import trio
from wsproto.connection import Connection, ConnectionState
from wsproto.events import BytesMessage, CloseConnection, Ping, Pong, TextMessage

from aether_trio.model.errors import Status, StatusError
from aether_trio.model.token_bucket import TokenBucket
from aether_trio.transport.link import FrameSource, LinkBroken, Peer
from aether_trio.transport.liveness import has_ended
from aether_trio.transport.websocket.close_codes import TOO_BIG, UNSUPPORTED_DATA, close_code, close_reason
from aether_trio.transport.websocket.output import Output
from aether_trio.transport.websocket.stream import ByteStream
from aether_trio.wire.browser import Codec
from aether_trio.wire.pb.aether_pb2 import UpstreamMessage

CLOSE_S: Final = 5.0
"""For the peer to read what was pulled already, and the close frame."""
ANSWER_S: Final = 2.0
"""For the peer's own close frame; without it the socket ends all the same."""
ANY_KIND: Final = "*"


class WebSocketLink:
    """See transport.link.Link. Made when the upgrade has been answered; `early` came right behind the request."""

    __slots__ = (
        "_close_as",
        "_codec",
        "_deaf",
        "_ended",
        "_failure",
        "_kinds",
        "_max_bytes",
        "_output",
        "_owed",
        "_part",
        "_rate",
        "_rejects",
        "_stream",
        "_ws",
        "peer",
    )

    def __init__(
        self,
        stream: ByteStream,
        ws: Connection,
        codec: Codec,
        peer: Peer,
        nursery: trio.Nursery,
        *,
        kinds: Collection[str],
        max_message_bytes: int,
        rate: TokenBucket,
        rejects: Counter[str],
    ) -> None:
        self.peer = peer
        self._stream = stream
        self._ws = ws
        self._codec = codec
        self._output = Output(stream, codec, nursery)
        self._kinds: Collection[str] | None = None if ANY_KIND in kinds else kinds
        self._max_bytes = max_message_bytes
        self._rate = rate
        self._rejects = rejects
        self._owed = 0
        """Frames that were read and not yet taken from the bucket."""
        self._part: bytearray | None = None
        """The message of which more is to come."""
        self._failure: StatusError | None = None
        self._close_as: int | None = None
        self._deaf = False
        """The peer's bytes are no frames any more."""
        self._ended: CloseConnection | None = None

    # -- reading --------------------------------------------------------------------------------------------------

    async def receive(self) -> Sequence[UpstreamMessage]:
        """See Link."""
        if self._failure is not None or self._ended is not None:
            await trio.lowlevel.checkpoint()
        while self._failure is None and self._ended is None:
            if self._owed:
                await self._pace()
            batch = self._take(await self._read())
            if batch:
                return batch
        if self._failure is not None:
            raise self._failure
        return ()

    async def _read(self) -> bytes:
        try:
            data = await self._stream.receive()
        except OSError as error:
            self._output.abandon()
            raise LinkBroken(error.strerror or type(error).__name__) from None
        if not data:
            self._output.abandon()
            raise LinkBroken("the connection ended without a close frame")
        return data

    async def _pace(self) -> None:
        """Wait until the client is within its rate. A checkpoint only if it is not."""
        rate = self._rate
        most = int(rate.burst)
        while self._owed:
            count = min(self._owed, most)
            wait_s = rate.take(trio.current_time(), count)
            if wait_s:
                self._rejects["paced"] += 1
                await trio.sleep(wait_s)
            else:
                self._owed -= count

    def _take(self, data: bytes) -> list[UpstreamMessage]:
        batch: list[UpstreamMessage] = []
        ping: Ping | None = None
        self._ws.receive_data(data)
        for event in self._ws.events():
            if isinstance(event, (BytesMessage, TextMessage)):
                self._owed += event.frame_finished
                try:
                    message = self._assemble(event)
                except StatusError as error:
                    self._failure = error
                    break
                if message is not None:
                    batch.append(message)
            elif isinstance(event, Ping):
                ping = event
                self._owed += 1
            elif isinstance(event, Pong):
                self._owed += 1
            elif isinstance(event, CloseConnection):
                self._ends(event)
                break
        if ping is not None and self._ended is None:
            self._output.pong(self._ws.send(ping.response()))
        return batch

    def _assemble(self, event: BytesMessage | TextMessage) -> UpstreamMessage | None:
        """The message, when it is whole. Raises StatusError."""
        data: Any = event.data
        text = type(data) is str
        if text is not self._codec.text:
            self._close_as = UNSUPPORTED_DATA
            self._rejects["wrong_type"] += 1
            kind = "text" if self._codec.text else "binary"
            raise StatusError(Status.INVALID_ARGUMENT, f"the messages of {self._codec.subprotocol} are {kind}")
        part = self._part
        if part is None and event.message_finished:
            self._check_size(len(data) if not text or data.isascii() else len(data.encode()))
            return self._decode(data)
        if part is None:
            part = self._part = bytearray()
        part += data.encode() if text else data
        self._check_size(len(part))
        if not event.message_finished:
            return None
        self._part = None
        return self._decode(bytes(part))

    def _check_size(self, size: int) -> None:
        if size > self._max_bytes:
            self._part = None
            self._close_as = TOO_BIG
            self._rejects["too_long"] += 1
            raise StatusError(Status.RESOURCE_EXHAUSTED, f"a message is longer than {self._max_bytes} bytes")

    def _decode(self, data: bytes | str) -> UpstreamMessage:
        try:
            message = self._codec.decode(data)
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

    def _ends(self, event: CloseConnection) -> None:
        if self._ws.state is ConnectionState.OPEN:
            # Not a close frame, but wsproto's way to report a frame that is none.
            self._close_as = int(event.code)
            self._deaf = True
            self._rejects["protocol_error"] += 1
            self._failure = StatusError(Status.INVALID_ARGUMENT, event.reason or "not a WebSocket frame")
        else:
            self._ended = event

    # -- writing --------------------------------------------------------------------------------------------------

    def attach(self, source: FrameSource) -> None:
        """See Link."""
        if self._output.source is not None:
            raise RuntimeError("a link has one source; attach it once")
        self._output.source = source
        if self._output.broken:
            source.cut()

    def kick(self) -> None:
        """See Link."""
        self._output.pump()

    def ping_if_quiet(self) -> None:
        """Send a ping, unless something was sent since the last call."""
        self._output.ping_if_quiet()

    @property
    def stalled_since(self) -> float | None:
        """See Link."""
        return self._output.stalled_since

    def peer_has_ended(self) -> bool:
        """See Link."""
        return self._output.broken or has_ended(self._stream.sock)

    # -- ending ---------------------------------------------------------------------------------------------------

    async def close(self, status: Status, message: str = "") -> None:
        """See Link. Sends the close frame (close_codes.py) and waits up to ANSWER_S for the peer's."""
        output, ws = self._output, self._ws
        if output.broken or ws.state not in (ConnectionState.OPEN, ConnectionState.REMOTE_CLOSING):
            await trio.lowlevel.checkpoint()
            return
        failed = self._failure is not None and self._close_as is not None and message == self._failure.message
        if self._ended is not None:
            last = self._ended.response()
        else:
            code = self._close_as if failed and self._close_as is not None else close_code(status)
            last = CloseConnection(code=code, reason=close_reason(message) or None)
        await output.finish(bytes(ws.send(last)), CLOSE_S)
        if self._ended is None and output.idle and not output.broken:
            await self._await_answer()
        output.release()

    async def _await_answer(self) -> None:
        """Read and drop until the peer's close frame, or its end.

        A socket closed with unread bytes in it sends a reset, and that makes the peer's kernel drop our close frame.
        """
        self._part = None
        with trio.move_on_after(ANSWER_S):
            if self._deaf:
                # Its frames mean nothing any more, so only its end will tell; and it is to see ours.
                self._stream.shutdown(socket.SHUT_WR)
                while await self._stream.receive_or_end():
                    pass
                return
            data = b"-"
            while data and not any(isinstance(event, CloseConnection) for event in self._ws.events()):
                data = await self._stream.receive_or_end()
                self._ws.receive_data(data)

    def release(self) -> None:
        """The socket is about to be closed. Called by the lane, when the link has been served."""
        self._output.release()
