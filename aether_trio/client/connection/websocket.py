"""The WebSocket transport of a client: one protobuf message in each binary message (subprotocol aether.v1.proto).

The transport has no acknowledgements and no offsets. So a publication is confirmed by a barrier behind it (confirmations.py), and a
message counts as done when the gateway has sent it. Two extensions of the gateway do what the framing has frames for: the
refusal of a send says which one it was, and messages are delivered for credit, so that answers are read always and what is
buffered is bounded all the same.
"""

from __future__ import annotations

from typing import Final

import anyio.abc
import wsproto
import wsproto.events as ws
from wsproto.connection import ConnectionState
from wsproto.frame_protocol import CloseReason
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from aether_trio.client.connection.address import WEBSOCKET_PATH
from aether_trio.client.connection.outgoing import Publication, Upstream
from aether_trio.client.connection.transport import WRITE_BYTES, Ended, Hub, Transport
from aether_trio.client.errors import (
    AetherError,
    ConnectionLost,
    PayloadTooLarge,
    ProtocolViolation,
    Refused,
    Unavailable,
    from_status,
)
from aether_trio.client.options import DELIVERY_CREDIT, NUMBERED_SENDS
from aether_trio.wire.pb import aether_pb2 as pb

__all__ = ["SUBPROTOCOL", "WebSocketTransport"]

SUBPROTOCOL: Final = "aether.v1.proto"
_RECONNECT: Final = 4100
"""Plus a gRPC status: come back. From _STAY_AWAY on: do not."""
_STAY_AWAY: Final = 4200
_MAX_MESSAGE_BYTES: Final = 8 * 1024 * 1024
"""The gateway sends less than 4 MiB."""
_MAX_SENT_BYTES: Final = 2 * 1024 * 1024
"""What a gateway takes that is configured as usual; it ends the connection for more."""
_SHARED: Final = 256
"""Publications that nobody waits for share a barrier, at most so many."""
_MAX_REFUSAL_TEXT: Final = 1024


class WebSocketTransport(Transport):
    """See the module docstring. `authority` is the Host of the HTTP request."""

    def __init__(
        self, stream: anyio.abc.ByteStream, hub: Hub, ping_interval_s: float | None, *, authority: str
    ) -> None:
        super().__init__(stream, hub, ping_interval_s)
        self._authority = authority
        self._connection = wsproto.WSConnection(wsproto.ConnectionType.CLIENT)
        self._begun = bytearray()
        """Of a message that is not whole yet."""
        self._accepted = False
        self._refusal: tuple[int, bytearray] | None = None
        self._sent = 0
        """SendMessages of this connection, which the gateway counts, too."""
        self._credit_messages = self._credit_bytes = 0
        """What the gateway may still deliver."""

    # -- the first words

    def greet(self, init: pb.InitConnection) -> bytes:
        messages, size = self._credit_messages, self._credit_bytes = self._hub.inbox.hello_credit()
        for uri, version in ((NUMBERED_SENDS, ""), (DELIVERY_CREDIT, f"{messages}/{size}")):
            init.extensions.append(pb.ExtensionDeclaration(uri=uri, version=version, required=True))
        self._init = init
        return self._connection.send(
            ws.Request(host=self._authority, target=WEBSOCKET_PATH, subprotocols=[SUBPROTOCOL])
        )

    def _welcome(self, subprotocol: str | None) -> None:
        if subprotocol != SUBPROTOCOL:
            text = f"the gateway chose the subprotocol {subprotocol!r}, not {SUBPROTOCOL!r}"
            self._ended = Ended(ProtocolViolation("BAD_SUBPROTOCOL", text), retryable=False)
            return
        self._accepted = True
        self._control.append(self._frame(pb.UpstreamMessage(init=self._init).SerializeToString()))

    async def open(self, init: pb.InitConnection) -> pb.ConnectionAck:
        await self._stream.send(self.greet(init))
        while self.ack is None:
            if self._control:
                await self._stream.send(self._take_control())
            if self._ended is not None:
                raise self._ended.error or anyio.BrokenResourceError(self._ended.why)
            if (data := await self._read()) is None:
                if self._refusal is not None:
                    raise _http_error(*self._refusal)
                raise anyio.BrokenResourceError("the gateway ended the connection before it let us in")
            self.feed(data)
        return self.ack

    # -- from the gateway

    def feed(self, data: bytes) -> None:
        try:
            self._connection.receive_data(data)
            for event in self._connection.events():
                self._event(event)
        except RemoteProtocolError as error:
            if self._ended is None:
                text = f"the gateway does not speak WebSocket as expected: {error}"
                self._ended = Ended(ProtocolViolation("BAD_WEBSOCKET", text), retryable=self.ack is not None)

    def _event(self, event: ws.Event) -> None:
        match event:
            case ws.BytesMessage() | ws.TextMessage():
                if isinstance(event, ws.TextMessage):
                    self._close(CloseReason.UNSUPPORTED_DATA, "the gateway sent text")
                else:
                    self._piece(bytes(event.data), last=event.message_finished)
            case ws.Ping():
                self._control.append(self._connection.send(event.response()))
            case ws.AcceptConnection():
                self._welcome(event.subprotocol)
            case ws.RejectConnection():
                self._refusal = (event.status_code, bytearray())
                if not event.has_body:
                    self._ended = Ended(_http_error(*self._refusal), retryable=_may_come_back(event.status_code))
            case ws.RejectData():
                self._rejected(bytes(event.data), last=event.body_finished)
            case ws.CloseConnection():
                if self._connection.state is ConnectionState.REMOTE_CLOSING:
                    self._control.append(self._connection.send(event.response()))
                if self._ended is None:
                    self._ended = _ended(int(event.code), event.reason or "", expected=self._said_goodbye)
            case _:
                pass

    def _rejected(self, data: bytes, *, last: bool) -> None:
        assert self._refusal is not None
        status, body = self._refusal
        body += data[: _MAX_REFUSAL_TEXT - len(body)]
        if last:
            self._ended = Ended(_http_error(status, body), retryable=_may_come_back(status))

    def _piece(self, data: bytes, *, last: bool) -> None:
        if len(self._begun) + len(data) > _MAX_MESSAGE_BYTES:
            self._close(CloseReason.MESSAGE_TOO_BIG, "the gateway sent a message that is too long")
            return
        if self._begun or not last:
            self._begun += data
        if not last:
            return
        whole = data
        if self._begun:
            whole, self._begun = bytes(self._begun), bytearray()
        try:
            message = pb.DownstreamMessage.FromString(whole)
        except Exception:  # protobuf's DecodeError is of another module in each implementation
            self._close(CloseReason.INVALID_FRAME_PAYLOAD_DATA, "the gateway sent what is no DownstreamMessage")
            return
        if message.HasField("msg"):
            if self._credit_messages <= 0 or self._credit_bytes <= 0:
                self._close(CloseReason.PROTOCOL_ERROR, "the gateway delivered more than it had credit for")
                return
            self._credit_messages -= 1
            self._credit_bytes -= len(whole)
            self._hub.inbox.deliver_plain(message.msg, len(whole))
        elif self.ack is None and message.HasField("connection_ack"):
            self.accepted(message.connection_ack)
        else:
            self.downstream(message)

    def _close(self, code: CloseReason, why: str) -> None:
        if self._ended is None:
            self._ended = Ended(ProtocolViolation(code.name, why), retryable=self.ack is not None)
            self._control.append(self._connection.send(ws.CloseConnection(code, why)))

    # -- to the gateway

    def _frame(self, message: bytes) -> bytes:
        if len(message) > _MAX_SENT_BYTES:
            text = f"a message of {len(message)} bytes; WebSocket takes {_MAX_SENT_BYTES} here, the framing (aether://) more"
            raise PayloadTooLarge("MESSAGE_TOO_LARGE", text)
        return self._connection.send(ws.BytesMessage(message))

    def _take_control(self) -> bytes:
        control, self._control = self._control, []
        return b"".join(control)

    def collect(self) -> bytes:
        frames = [self._take_control()]
        if self._connection.state is not ConnectionState.OPEN:
            return frames[0]
        grant = self._hub.inbox.grant_due(self._credit_messages, self._credit_bytes)
        if grant is not None:
            frames.append(self._grant(*grant))
        frames += self._hub.outbox.pull(self, WRITE_BYTES, starting=not (self._leaving or self.draining))
        if self.confirmations.shared:
            frames.append(self.confirmations.guard(self._frame))
        return b"".join(frames)

    def _grant(self, messages: int, size: int) -> bytes:
        self._credit_messages += messages
        self._credit_bytes += size
        return self._frame(
            pb.UpstreamMessage(active_extensions=[f"{DELIVERY_CREDIT}:{messages}:{size}"]).SerializeToString()
        )

    def encode_publication(self, publication: Publication) -> bytes | None:
        message = pb.SendMessage.FromString(publication.extra) if publication.extra else pb.SendMessage()
        message.target_topic = publication.topic
        message.payload = publication.payload
        message.message_type = pb.MessageType.ValueType(publication.message_type)
        frame = self._frame(pb.UpstreamMessage(send=message).SerializeToString())
        self._sent += 1

        def settle(error: AetherError | None) -> None:
            if not isinstance(error, ConnectionLost):  # what is in doubt is the outbox's to decide
                self._hub.outbox.settle(publication, error)

        if publication.confirm:
            return self.confirmations.alone(frame, settle, self._frame, self._sent)
        self.confirmations.together(settle, self._sent)
        if self.confirmations.shared >= _SHARED:
            frame += self.confirmations.guard(self._frame)
        return frame

    def encode_upstream(self, upstream: Upstream) -> bytes:
        frame = self._frame(upstream.data)
        number = 0
        if upstream.unanswered and pb.UpstreamMessage.FromString(upstream.data).HasField("send"):
            number = self._sent = self._sent + 1
        return self.confirming(upstream, frame, self._frame, number)

    def ping(self) -> None:
        if self._connection.state is ConnectionState.OPEN:
            self._control.append(self._connection.send(ws.Ping()))

    async def goodbye(self) -> None:
        try:
            words = self._connection.send(ws.CloseConnection(CloseReason.NORMAL_CLOSURE))
        except LocalProtocolError:
            return  # it is closing already
        await self._stream.send(words)


def _ended(code: int, reason: str, *, expected: bool) -> Ended:
    """What a close code means."""
    if code in {CloseReason.NORMAL_CLOSURE, CloseReason.NO_STATUS_RCVD}:
        return Ended(None, retryable=True, expected=expected, why=reason or "the gateway closed the connection")
    if _RECONNECT < code < _STAY_AWAY:
        return Ended(from_status(code - _RECONNECT, reason, retryable=True), retryable=True)
    if _STAY_AWAY < code < _STAY_AWAY + 100:
        return Ended(from_status(code - _STAY_AWAY, reason, retryable=False), retryable=False)
    again = code in {CloseReason.GOING_AWAY, CloseReason.ABNORMAL_CLOSURE, 1012, 1013, 1014}
    return Ended(ProtocolViolation(f"CLOSE_{code}", reason, retryable=again), retryable=again)


def _may_come_back(status: int) -> bool:
    return status in {408, 425, 429} or status >= 500


def _http_error(status: int, body: bytes | bytearray) -> AetherError:
    text = bytes(body).decode(errors="replace").strip() or "the gateway refused the WebSocket"
    kind = Unavailable if _may_come_back(status) else Refused
    return kind(f"HTTP_{status}", text, retryable=_may_come_back(status))
