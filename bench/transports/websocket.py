"""The WebSocket transport: RFC 6455 by hand, subprotocol `aether.v1.proto`.

One binary message is one envelope.

Frames of a client are masked, as they must be, with a key of zeros, which leaves the bytes as they
are: the server has the work of any key, the load has none. Nothing is compressed. Messages wait for
the server's 101, which the RFC asks of clients.
"""

from __future__ import annotations

import base64
import hashlib
import struct
from collections.abc import Sequence

from bench.transports.base import ClientCodec, Transport

PATH = "/v1/connect"
SUBPROTOCOL = "aether.v1.proto"
KEY = base64.b64encode(b"the aether bench").decode()
GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
ACCEPT = base64.b64encode(hashlib.sha1(f"{KEY}{GUID}".encode(), usedforsecurity=False).digest()).decode()
"""The answer to KEY, RFC 6455 section 4.2.2."""

FIN = MASKED = 0x80
CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
NORMAL_CLOSURE = 1000
WHOLE_BINARY = FIN | BINARY

_SHORT = struct.Struct(">BBI")  # first byte, length, key
_MEDIUM = struct.Struct(">BBHI")
_LONG = struct.Struct(">BBQI")
_U16 = struct.Struct(">H")
_U64 = struct.Struct(">Q")


def masked(opcode: int, payload: bytes) -> bytes:
    """Encode one whole frame of a client, masked with zeros."""
    size = len(payload)
    if size < 126:
        return _SHORT.pack(FIN | opcode, MASKED | size, 0) + payload
    if size < 65_536:
        return _MEDIUM.pack(FIN | opcode, MASKED | 126, size, 0) + payload
    return _LONG.pack(FIN | opcode, MASKED | 127, size, 0) + payload


class WebSocketTransport(Transport):
    """`Transport` of `ws://`, for agents, whom gateways admit if configured."""

    name = "websocket"
    gateway_args: Sequence[str] = ("--set", "websocket.principals=*", "--set", "websocket.max_messages_per_s=1000000")

    def codec(self, authority: str) -> WebSocketCodec:
        request = (
            f"GET {PATH} HTTP/1.1\r\nHost: {authority}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: {SUBPROTOCOL}\r\n"
            "User-Agent: aether-bench\r\n\r\n"
        )
        return WebSocketCodec(request.encode())


class WebSocketCodec(ClientCodec):
    __slots__ = ("_closed", "_held", "_open", "_partial", "_rest", "_why")

    def __init__(self, request: bytes) -> None:
        super().__init__(request)
        self._held: list[bytes] = []  # frames that wait for the 101
        self._open = self._closed = False
        self._rest = b""  # a frame, or the answer's head, cut by the end of a read
        self._partial: list[bytes] | None = None  # a message in several frames
        self._why = ""

    def send(self, message: bytes) -> None:
        size = len(message)
        if 125 < size < 65_536:  # the hot one, without the detour
            frame = _MEDIUM.pack(WHOLE_BINARY, MASKED | 126, size, 0) + message
        else:
            frame = masked(BINARY, message)
        (self._out if self._open else self._held).append(frame)

    def end(self) -> None:
        if not self._closed:
            self._closed = True
            (self._out if self._open else self._held).append(masked(CLOSE, _U16.pack(NORMAL_CLOSURE)))

    def receive(self, data: bytes) -> list[bytes]:
        """ValueError when the peer breaks the protocol."""
        if self._rest:
            data = self._rest + data
        at, stop = 0, len(data)
        if not self._open:
            at = self._upgraded(data)
            if not at:
                self._rest = data
                return []
        messages: list[bytes] = []
        while stop - at >= 2 and not self.ended:
            size = data[at + 1]
            first = at + 2
            if size == 126:
                if stop - at < 4:
                    break
                (size,) = _U16.unpack_from(data, first)
                first = at + 4
            elif size > 126:
                if size & MASKED:
                    raise ValueError("a server must not mask")
                if stop - at < 10:
                    break
                (size,) = _U64.unpack_from(data, first)
                first = at + 10
            end = first + size
            if end > stop:
                break
            if data[at] == WHOLE_BINARY:
                messages.append(data[first:end])
            else:
                self._other(data[at], data[first:end], messages)
            at = end
        self._rest = data[at:]
        return messages

    def _upgraded(self, data: bytes) -> int:
        """Where frames begin behind the server's 101; 0 before it, or if refused."""
        head, end, _ = data.partition(b"\r\n\r\n")
        if not end:
            return 0
        status, *lines = head.decode("latin-1").split("\r\n")
        if status.split(" ")[1:2] != ["101"]:
            self._why = f"refused the upgrade: {status}"
            self.ended = True
            return 0
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if headers.get("sec-websocket-accept") != ACCEPT or headers.get("sec-websocket-protocol") != SUBPROTOCOL:
            raise ValueError(f"an upgrade to something else: {headers}")
        self._open = True
        self._out += self._held
        self._held.clear()
        return len(head) + len(end)

    def _other(self, first_byte: int, payload: bytes, messages: list[bytes]) -> None:
        opcode, last = first_byte & 0x0F, first_byte & FIN
        if first_byte & 0x70:
            raise ValueError("an extension that this client did not ask for")
        if opcode == PING:
            self._out.append(masked(PONG, payload))
        elif opcode == CLOSE:
            code = f"{_U16.unpack_from(payload)[0]} {payload[2:].decode(errors='replace')}" if payload else "1005"
            self._why = f"WebSocket close {code}".strip()
            if not self._closed:
                self._closed = True
                self._out.append(masked(CLOSE, payload[:2]))
            self.ended = True
        elif opcode == BINARY or (opcode == CONTINUATION and self._partial is not None):
            self._partial = [*(self._partial or ()), payload]
            if last:
                messages.append(b"".join(self._partial))
                self._partial = None
        elif opcode != PONG:
            raise ValueError(f"a frame of opcode {opcode} from a gateway")

    def status(self) -> str:
        return self._why or "OK"
