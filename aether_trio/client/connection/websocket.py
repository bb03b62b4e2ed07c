"""Client side of WebSocket: one protobuf message in each binary message."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import wsproto
import wsproto.events as ws
from wsproto.connection import ConnectionState
from wsproto.frame_protocol import CloseReason
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from aether_trio.client.connection.address import WEBSOCKET_PATH
from aether_trio.client.connection.message_transport import MAX_RECEIVED_BYTES, MessageCodec, ProtocolBreak
from aether_trio.client.connection.transport import ConnectionEnd
from aether_trio.client.errors import AetherError, PayloadTooLarge, ProtocolViolation, Refused, Unavailable, from_status

WEBSOCKET_SUBPROTOCOL: Final = "aether.v1.proto"
_RECONNECT: Final = 4100
"""Base of close codes that say "come back", plus a gRPC status; then "stay away"."""
_STAY_AWAY: Final = 4200
_MAX_SENT_BYTES: Final = 2 * 1024 * 1024
"""The longest message that a gateway takes by default. It ends the connection for more."""
_MAX_REFUSAL_TEXT: Final = 1024


class WebSocketCodec(MessageCodec):
    """Codes and decodes messages on a WebSocket; `authority` is its Host header."""

    def __init__(self, authority: str) -> None:
        super().__init__()
        self._authority = authority
        self._connection = wsproto.WSConnection(wsproto.ConnectionType.CLIENT)
        self._partial = bytearray()
        """The beginning of a message that is not whole yet."""
        self._accepted = False
        self._refusal: tuple[int, bytearray] | None = None

    def greeting(self) -> bytes:
        request = ws.Request(host=self._authority, target=WEBSOCKET_PATH, subprotocols=[WEBSOCKET_SUBPROTOCOL])
        return self._connection.send(request)

    @property
    def can_send(self) -> bool:
        return self._accepted and self._connection.state is ConnectionState.OPEN

    @property
    def refusal(self) -> AetherError | None:
        return None if self._refusal is None else _http_error(*self._refusal)

    def receive(self, data: bytes) -> Sequence[bytes | ProtocolBreak | ConnectionEnd]:
        found: list[bytes | ProtocolBreak | ConnectionEnd] = []
        try:
            self._connection.receive_data(data)
            for event in self._connection.events():
                self._event(event, found)
        except RemoteProtocolError as error:
            found.append(ProtocolBreak("BAD_WEBSOCKET", f"the gateway does not speak WebSocket as expected: {error}"))
        return found

    def _event(self, event: ws.Event, found: list[bytes | ProtocolBreak | ConnectionEnd]) -> None:
        match event:
            case ws.BytesMessage():
                self._piece(bytes(event.data), event.message_finished, found)
            case ws.TextMessage():
                found.append(ProtocolBreak(CloseReason.UNSUPPORTED_DATA.name, "the gateway sent text"))
            case ws.Ping():
                self._pending.append(self._connection.send(event.response()))
            case ws.AcceptConnection():
                if event.subprotocol == WEBSOCKET_SUBPROTOCOL:
                    self._accepted = True
                else:
                    text = f"the gateway chose the subprotocol {event.subprotocol!r}, not {WEBSOCKET_SUBPROTOCOL!r}"
                    found.append(ConnectionEnd(ProtocolViolation("BAD_SUBPROTOCOL", text), retryable=False))
            case ws.RejectConnection():
                self._refusal = (event.status_code, bytearray())
                if not event.has_body:
                    found.append(ConnectionEnd(self.refusal, retryable=_may_come_back(event.status_code)))
            case ws.RejectData():
                assert self._refusal is not None
                status, body = self._refusal
                body += bytes(event.data)[: _MAX_REFUSAL_TEXT - len(body)]
                if event.body_finished:
                    found.append(ConnectionEnd(self.refusal, retryable=_may_come_back(status)))
            case ws.CloseConnection():
                if self._connection.state is ConnectionState.REMOTE_CLOSING:
                    self._pending.append(self._connection.send(event.response()))
                found.append(_ended(int(event.code), event.reason or ""))
            case _:
                pass

    def _piece(self, data: bytes, last: bool, found: list[bytes | ProtocolBreak | ConnectionEnd]) -> None:
        if len(self._partial) + len(data) > MAX_RECEIVED_BYTES:
            found.append(ProtocolBreak(CloseReason.MESSAGE_TOO_BIG.name, "the gateway sent a message that is too long"))
        elif not last:
            self._partial += data
        elif self._partial:
            whole, self._partial = bytes(self._partial + data), bytearray()
            found.append(whole)
        else:
            found.append(data)

    def frame(self, message: bytes) -> bytes:
        if len(message) > _MAX_SENT_BYTES:
            text = f"a message of {len(message)} bytes is too long; WebSocket takes {_MAX_SENT_BYTES}, aether:// more"
            raise PayloadTooLarge("MESSAGE_TOO_LARGE", text)
        return self._connection.send(ws.BytesMessage(message))

    def ping(self) -> None:
        if self._connection.state is ConnectionState.OPEN:
            self._pending.append(self._connection.send(ws.Ping()))

    def break_off(self, violation: ProtocolBreak) -> None:
        # Behind the broken rule, the same bytes may hold the gateway's close frame.
        if violation.code in CloseReason.__members__ and self._connection.state is ConnectionState.OPEN:
            reason = CloseReason[violation.code]
            self._pending.append(self._connection.send(ws.CloseConnection(reason, violation.why)))

    def goodbye(self) -> bytes:
        try:
            return self._connection.send(ws.CloseConnection(CloseReason.NORMAL_CLOSURE))
        except LocalProtocolError:
            return b""  # it is closing already


def _ended(code: int, reason: str) -> ConnectionEnd:
    """Return how the connection ended, by its WebSocket close code and reason."""
    if code in {CloseReason.NORMAL_CLOSURE, CloseReason.NO_STATUS_RCVD}:
        return ConnectionEnd(None, retryable=True, expected=True, why=reason or "the gateway closed the connection")
    if _RECONNECT < code < _STAY_AWAY:
        return ConnectionEnd(from_status(code - _RECONNECT, reason, retryable=True), retryable=True)
    if _STAY_AWAY < code < _STAY_AWAY + 100:
        return ConnectionEnd(from_status(code - _STAY_AWAY, reason, retryable=False), retryable=False)
    again = code in {CloseReason.GOING_AWAY, CloseReason.ABNORMAL_CLOSURE, 1012, 1013, 1014}
    return ConnectionEnd(ProtocolViolation(f"CLOSE_{code}", reason, retryable=again), retryable=again)


def _may_come_back(status: int) -> bool:
    return status in {408, 425, 429} or status >= 500


def _http_error(status: int, body: bytes | bytearray) -> AetherError:
    text = bytes(body).decode(errors="replace").strip() or "the gateway refused the WebSocket"
    kind = Unavailable if _may_come_back(status) else Refused
    return kind(f"HTTP_{status}", text, retryable=_may_come_back(status))
