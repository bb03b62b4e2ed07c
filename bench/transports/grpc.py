"""The gRPC transport: HTTP/2 frames written by hand for a single stream.

The opening is the same bytes for every connection of a target (RFC 9113 sections 3.4 and 6.5, and a
header block of literals that are never indexed), so it is made once. Receive windows are opened to
their maximum at once and topped up every gibibyte, so that the bench never throttles a server. Send
windows are honoured: what does not fit waits in `_held`. Response headers are kept undecoded until
the bench asks why a stream ended, because HPACK costs more than a message.
"""

from __future__ import annotations

import struct
from collections import deque

from bench.transports.base import ClientCodec, Transport

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
ACK_FLAG = END_STREAM = 0x1
END_HEADERS, PADDED, PRIORITY = 0x4, 0x8, 0x20
INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE, ENABLE_PUSH = 0x4, 0x5, 0x2
MAX_WINDOW = 2**31 - 1
DEFAULT_WINDOW = 65_535
TOP_UP_BYTES = 2**30
"""Received bytes after which credit is returned; half of the window, so the peer never sees its
end.
"""

PATH = "/aether.v1.AetherGateway/Connect"
STREAM = 1

_FRAME = struct.Struct(">BHBBL")  # 24-bit length as 8 + 16 bits, type, flags, stream
# A DATA frame's header and the 5-byte gRPC prefix in one go.
_DATA_MESSAGE = struct.Struct(">BHBBLBL")
_MESSAGE = struct.Struct(">BL")


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Encode one HTTP/2 frame; `payload` under 16 MiB."""
    return _FRAME.pack(len(payload) >> 16, len(payload) & 0xFFFF, kind, flags, stream) + payload


def header_block(authority: str) -> bytes:
    """Encode request headers for HPACK (RFC 7541), never indexed in its table."""

    def literal(index: int, name: str, value: str) -> bytes:
        raw = value.encode()
        assert len(raw) < 127, "a longer value needs HPACK's continued lengths"
        start = bytes((index,)) if index and index < 15 else bytes((0,)) + bytes((len(name),)) + name.encode()
        return start + bytes((len(raw),)) + raw

    return (
        b"\x83\x86"  # :method POST, :scheme http
        + literal(4, ":path", PATH)
        + literal(1, ":authority", authority)
        + literal(0, "te", "trailers")
        + literal(0, "content-type", "application/grpc")
        + literal(0, "user-agent", "aether-bench")
    )


class GrpcTransport(Transport):
    name = "grpc"

    def __init__(self) -> None:
        self._openings: dict[str, bytes] = {}

    def codec(self, authority: str) -> GrpcCodec:
        opening = self._openings.get(authority)
        if opening is None:
            settings = struct.pack(">HLHL", ENABLE_PUSH, 0, INITIAL_WINDOW_SIZE, MAX_WINDOW)
            opening = self._openings[authority] = (
                PREFACE
                + frame(SETTINGS, 0, 0, settings)
                + frame(WINDOW_UPDATE, 0, 0, struct.pack(">L", MAX_WINDOW - DEFAULT_WINDOW))
                + frame(HEADERS, END_HEADERS, STREAM, header_block(authority))
            )
        return GrpcCodec(opening)


class GrpcCodec(ClientCodec):
    __slots__ = (
        "_blocks", "_connection_window", "_goaway", "_held", "_initial_window", "_last_block", "_max_frame", "_out",
        "_partial", "_received", "_reset", "_rest", "_stream_window",
    )  # fmt: skip

    def __init__(self, opening: bytes) -> None:
        super().__init__(opening)
        # DATA payloads waiting for window; None ends the stream.
        self._held: deque[bytes | None] = deque()
        self._connection_window = self._stream_window = self._initial_window = DEFAULT_WINDOW
        self._max_frame = 16_384
        self._rest = b""  # a frame cut by the end of a read
        self._partial = bytearray()  # a gRPC message cut by the end of a frame
        self._received = 0
        self._blocks: list[bytes] = []
        self._last_block = False
        self._reset = self._goaway = ""

    def send(self, message: bytes) -> None:
        size = len(message) + 5
        if self._held or size > self._max_frame or size > self._stream_window or size > self._connection_window:
            self._held.append(_MESSAGE.pack(0, len(message)) + message)
            self._pump()
            return
        self._stream_window -= size
        self._connection_window -= size
        header = _DATA_MESSAGE.pack(size >> 16, size & 0xFFFF, DATA, 0, STREAM, 0, size - 5)
        self._out.append(header + message)

    def end(self) -> None:
        self._held.append(None)
        self._pump()

    def receive(self, data: bytes) -> list[bytes]:
        """ValueError when the peer breaks the framing."""
        if self._rest:
            data = self._rest + data
        at, stop = 0, len(data)
        messages: list[bytes] = []
        while stop - at >= 9:
            high, low, kind, flags, stream = _FRAME.unpack_from(data, at)
            first = at + 9
            last = first + (high << 16 | low)
            if last > stop:
                break
            if kind == DATA:
                self._received += last - first
                if flags & PADDED:
                    self._split(data, first + 1, last - data[first], messages)
                else:
                    self._split(data, first, last, messages)
                if flags & END_STREAM:
                    self.ended = True
            else:
                self._control(kind, flags, stream, data[first:last])
            at = last
        self._rest = data[at:]
        if self._received >= TOP_UP_BYTES:
            credit = struct.pack(">L", self._received)
            self._out += [frame(WINDOW_UPDATE, 0, 0, credit), frame(WINDOW_UPDATE, 0, STREAM, credit)]
            self._received = 0
        return messages

    def _split(self, data: bytes, at: int, last: int, messages: list[bytes]) -> None:
        """Cut gRPC messages out of one frame's payload."""
        if self._partial:
            self._partial += data[at:last]
            data = bytes(self._partial)
            at, last = 0, len(data)
            self._partial.clear()
        while last - at >= 5:
            compressed, size = _MESSAGE.unpack_from(data, at)
            if compressed:
                raise ValueError("the server compresses, though this client did not offer to decompress")
            end = at + 5 + size
            if end > last:
                break
            messages.append(data[at + 5 : end])
            at = end
        if at < last:
            self._partial += data[at:last]

    def _control(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == WINDOW_UPDATE:
            credit = int.from_bytes(payload, "big") & MAX_WINDOW
            if stream:
                self._stream_window += credit
            else:
                self._connection_window += credit
            self._pump()
        elif kind == SETTINGS and not flags & ACK_FLAG:
            for key, value in struct.iter_unpack(">HL", payload):
                # Moves the live stream by the difference, RFC 9113 section 6.9.2.
                if key == INITIAL_WINDOW_SIZE:
                    self._stream_window += value - self._initial_window
                    self._initial_window = value
                elif key == MAX_FRAME_SIZE:
                    self._max_frame = value
            self._out.append(frame(SETTINGS, ACK_FLAG, 0, b""))
            self._pump()
        elif kind == PING and not flags & ACK_FLAG:
            self._out.append(frame(PING, ACK_FLAG, 0, payload))
        elif kind == HEADERS:
            if flags & PADDED:
                payload = payload[1 : len(payload) - payload[0]]
            if flags & PRIORITY:
                payload = payload[5:]
            self._blocks.append(payload)
            self._last_block = bool(flags & END_STREAM)
            if flags & END_HEADERS and self._last_block:
                self.ended = True
        elif kind == CONTINUATION:
            self._blocks[-1] += payload
            if flags & END_HEADERS and self._last_block:
                self.ended = True
        elif kind == RST_STREAM:
            self._reset = f"reset with HTTP/2 error {int.from_bytes(payload, 'big')}"
            self.ended = True
        elif kind == GOAWAY:
            self._goaway = (
                f"GOAWAY {int.from_bytes(payload[4:8], 'big')} {payload[8:].decode(errors='replace')}".strip()
            )

    def _pump(self) -> None:
        """Turn held payloads into DATA frames, as far as both windows reach."""
        while self._held:
            payload = self._held[0]
            if payload is None:
                self._out.append(frame(DATA, END_STREAM, STREAM, b""))
                self._held.popleft()
                continue
            room = min(self._stream_window, self._connection_window, self._max_frame)
            if room <= 0:
                return
            piece, rest = payload[:room], payload[room:]
            self._stream_window -= len(piece)
            self._connection_window -= len(piece)
            self._out.append(frame(DATA, 0, STREAM, piece))
            if rest:
                self._held[0] = rest
            else:
                self._held.popleft()

    def status(self) -> str:
        """Say how the stream ended, from all header blocks in order."""
        from hpack import Decoder

        decoder = Decoder()
        found: dict[str, str] = {}
        for block in self._blocks:
            found |= {_text(name): _text(value) for name, value in decoder.decode(block)}
        code = found.get("grpc-status")
        if code == "0":
            return "OK"
        if code is not None:
            return f"gRPC status {code} {found.get('grpc-message', '')}".strip()
        return self._reset or self._goaway or f"no gRPC status (HTTP status {found.get(':status', 'none')})"


def _text(raw: bytes | str) -> str:
    return raw.decode(errors="replace") if isinstance(raw, bytes) else raw
