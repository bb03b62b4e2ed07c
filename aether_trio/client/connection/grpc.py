"""Client side of gRPC: codes messages in the call AetherGateway/Connect on HTTP/2.

The bytes of a message wait in the codec while the gateway's HTTP/2 windows are full, and no further
message is taken meanwhile. What the gateway sends is always read: its deliveries have credit
(message_transport.py), so the windows of this side are opened again at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final
from urllib.parse import unquote

import h2.config
import h2.connection
import h2.events
import h2.exceptions
from h2.errors import ErrorCodes
from h2.frame_buffer import FrameBuffer
from hyperframe.frame import Frame, GoAwayFrame

from aether_trio.client.connection.message_transport import MAX_RECEIVED_BYTES, MessageCodec, ProtocolBreak
from aether_trio.client.connection.transport import ConnectionEnd
from aether_trio.client.errors import PayloadTooLarge, ProtocolViolation, Refused, from_status
from aether_trio.model.errors import RETRYABLE_STATUSES, Status

_PATH: Final = "/aether.v1.AetherGateway/Connect"
_STREAM: Final = 1
_PREFIX_BYTES: Final = 5
"""The prefix of a gRPC message: whether it is compressed, and its length."""
_MAX_SENT_BYTES: Final = 10 * 1024 * 1024
"""The longest message that a gateway takes. It ends the connection for more."""
_WINDOW_BYTES: Final = 1024 * 1024
_BACKLOG_BYTES: Final = 256 * 1024
"""No further message is taken while this much waits for the gateway's window."""


class _FramesWithoutGoAway(FrameBuffer):
    """HTTP/2 frames without a drain's GOAWAY, behind which h2 refuses all others."""

    def __next__(self) -> Frame:
        frame = super().__next__()
        while isinstance(frame, GoAwayFrame) and frame.error_code == ErrorCodes.NO_ERROR:
            frame = super().__next__()
        return frame


class GrpcCodec(MessageCodec):
    """Codes and decodes messages in a gRPC call; `authority` is the gateway's name."""

    def __init__(self, authority: str, *, tls: bool) -> None:
        super().__init__()
        self._headers = [
            (":method", "POST"),
            (":scheme", "https" if tls else "http"),
            (":path", _PATH),
            (":authority", authority),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            ("user-agent", "aether-trio"),
        ]
        config = h2.config.H2Configuration(client_side=True, header_encoding="utf-8")
        self._connection = h2.connection.H2Connection(config)
        self._connection.incoming_buffer = _FramesWithoutGoAway()
        self._backlog = bytearray()
        """Bytes of messages that the gateway's window had no room for."""
        self._received = bytearray()
        self._open = False
        self._ending = False

    def greeting(self) -> bytes:
        connection = self._connection
        connection.initiate_connection()
        connection.send_headers(_STREAM, self._headers)
        connection.increment_flow_control_window(_WINDOW_BYTES)
        connection.increment_flow_control_window(_WINDOW_BYTES, _STREAM)
        self._open = True
        return connection.data_to_send()

    @property
    def can_send(self) -> bool:
        return self._open and not self._ending and len(self._backlog) < _BACKLOG_BYTES

    def receive(self, data: bytes) -> Sequence[bytes | ProtocolBreak | ConnectionEnd]:
        found: list[bytes | ProtocolBreak | ConnectionEnd] = []
        try:
            for event in self._connection.receive_data(data):
                self._event(event, found)
            self._flush()
        except h2.exceptions.ProtocolError as error:
            self._open = False
            found.append(ProtocolBreak("BAD_HTTP2", f"the gateway does not speak HTTP/2 as expected: {error}"))
        self._take_output()
        return found

    def _event(self, event: h2.events.Event, found: list[bytes | ProtocolBreak | ConnectionEnd]) -> None:
        match event:
            case h2.events.DataReceived():
                self._connection.acknowledge_received_data(event.flow_controlled_length, _STREAM)
                self._received += event.data
                self._messages(found)
            case h2.events.ResponseReceived() | h2.events.TrailersReceived():
                headers = {str(name): str(value) for name, value in event.headers}
                if (status := headers.get("grpc-status")) is not None:
                    self._open = False
                    found.append(_ended(status, headers))
                elif headers.get(":status", "200") != "200":
                    self._open = False
                    error = Refused(f"HTTP_{headers[':status']}", "this is not the port of a gateway that speaks gRPC")
                    found.append(ConnectionEnd(error, retryable=False))
            case h2.events.StreamReset():
                self._open = False
                found.append(ConnectionEnd(None, retryable=True, why="the gateway reset the stream"))
            case h2.events.ConnectionTerminated():
                self._open = False
                text = (event.additional_data or b"").decode(errors="replace") or "the gateway ended the connection"
                if event.error_code == ErrorCodes.HTTP_1_1_REQUIRED:
                    found.append(ConnectionEnd(Refused("HTTP_1_1_REQUIRED", text), retryable=False))
                else:
                    broken = ProtocolViolation(f"GOAWAY_{int(event.error_code or 0)}", text)
                    found.append(ConnectionEnd(broken, retryable=True))
            case _:
                pass

    def _messages(self, found: list[bytes | ProtocolBreak | ConnectionEnd]) -> None:
        """Take the whole gRPC messages out of the bytes received so far."""
        received = self._received
        while len(received) >= _PREFIX_BYTES:
            size = int.from_bytes(received[1:_PREFIX_BYTES], "big")
            if received[0] or size > MAX_RECEIVED_BYTES:
                why = "a compressed message" if received[0] else "a message that is too long"
                found.append(ProtocolBreak("MESSAGE_TOO_BIG", f"the gateway sent {why}"))
                received.clear()
            elif len(received) < _PREFIX_BYTES + size:
                return
            else:
                found.append(bytes(received[_PREFIX_BYTES : _PREFIX_BYTES + size]))
                del received[: _PREFIX_BYTES + size]

    def frame(self, message: bytes) -> bytes:
        if len(message) > _MAX_SENT_BYTES:
            text = f"a message of {len(message)} bytes is too long; gateways take at most {_MAX_SENT_BYTES} over gRPC"
            raise PayloadTooLarge("MESSAGE_TOO_LARGE", text)
        self._backlog += b"\0" + len(message).to_bytes(4, "big") + message
        self._flush()
        return self._connection.data_to_send()

    def _flush(self) -> None:
        """Pass waiting bytes to HTTP/2, as far as the gateway's windows have room."""
        connection, backlog = self._connection, self._backlog
        while backlog and self._open:
            room = min(connection.local_flow_control_window(_STREAM), connection.max_outbound_frame_size, len(backlog))
            if room <= 0:
                return
            connection.send_data(_STREAM, bytes(backlog[:room]))
            del backlog[:room]
        if self._ending and self._open:
            self._open = False
            connection.end_stream(_STREAM)

    def _take_output(self) -> None:
        if output := self._connection.data_to_send():
            self._pending.append(output)

    def ping(self) -> None:
        if self._open:
            self._connection.ping(b"aether\0\0")
            self._take_output()

    def break_off(self, violation: ProtocolBreak) -> None:
        if self._open:
            self._open = False
            self._connection.reset_stream(_STREAM, ErrorCodes.CANCEL)
            self._take_output()

    def goodbye(self) -> bytes:
        self._ending = True
        self._flush()
        return self._connection.data_to_send()


def _ended(text: str, headers: Mapping[str, str]) -> ConnectionEnd:
    """Return how the connection ended, by its grpc-status and grpc-message."""
    number = int(text) if text.isascii() and text.isdigit() else int(Status.UNKNOWN)
    if number == Status.OK:
        return ConnectionEnd(None, retryable=True, expected=True, why="the gateway ended the connection")
    again = number in RETRYABLE_STATUSES
    error = from_status(number, unquote(headers.get("grpc-message", "")), retryable=again)
    return ConnectionEnd(error, retryable=again)
