"""A gRPC client for load and faults: hand-made HTTP/2 frames, without I/O.

Bytes in, whole gRPC messages out. It costs a few microseconds a message, where grpcio costs a
hundred, and it does what no proper client would: it can leave its window shut, stop reading, or
advertise a window of 2 GiB and never say another word.

Invariants: `feed` never blocks and keeps at most one incomplete frame and one incomplete message;
what `outgoing` returned must reach the socket in that order; DATA respects the server's windows, so
`pending` bytes may wait for a later `feed`.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import hpack
import trio

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
MAX_WINDOW = 2**31 - 1
DEFAULT_WINDOW = 65_535
STREAM = 1

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0x0, 0x1, 0x3, 0x4, 0x6, 0x7, 0x8
END_STREAM = ACK = 0x1
END_HEADERS = 0x4
INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE = 0x4, 0x5

REQUEST_HEADERS = (
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/aether.v1.AetherGateway/Connect"),
    (":authority", "gateway"),
    ("te", "trailers"),
    ("content-type", "application/grpc"),
)


@dataclass(frozen=True, slots=True)
class Ended:
    """How the stream ended; a connection that was simply cut has no Ended."""

    status: int
    message: str


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">IBI", len(payload) << 8 | kind, flags, stream) + payload


def grpc_message(payload: bytes) -> bytes:
    return b"\0" + len(payload).to_bytes(4, "big") + payload


class RawH2:
    """Sans-I/O client of one open Connect stream.

    The first `outgoing` holds preface, settings and headers."""

    def __init__(
        self, *, window: int = MAX_WINDOW, keep_window_open: bool = True, headers: tuple[tuple[str, str], ...] = ()
    ) -> None:
        self._keep_open = keep_window_open
        self._window = window
        self._ungranted = 0
        self._in = bytearray()
        self._body = bytearray()
        self._pending = bytearray()
        self._half_close_wanted = False
        self._stream_credit = self._connection_credit = DEFAULT_WINDOW
        self._peer_initial_window = DEFAULT_WINDOW
        self._peer_max_frame = 16_384
        self._decoder = hpack.Decoder()
        self.ended: Ended | None = None
        self.goaway = False
        block = hpack.Encoder().encode((*REQUEST_HEADERS, *headers))
        self._out = bytearray(PREFACE)
        self._out += frame(SETTINGS, 0, 0, struct.pack(">HI", INITIAL_WINDOW_SIZE, window))
        if window > DEFAULT_WINDOW:
            self._out += frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", window - DEFAULT_WINDOW))
        self._out += frame(HEADERS, END_HEADERS, STREAM, block)

    @property
    def pending(self) -> int:
        """Bytes of messages that wait for the server's window."""
        return len(self._pending)

    def send(self, payload: bytes) -> None:
        """Queue one message (a serialised UpstreamMessage)."""
        self._pending += grpc_message(payload)
        self._pump()

    def send_framed(self, framed: bytes) -> None:
        """Queue bytes that are gRPC messages already."""
        self._pending += framed
        self._pump()

    def half_close(self) -> None:
        self._half_close_wanted = True
        self._pump()

    def reset_stream(self) -> None:
        """RST_STREAM with CANCEL."""
        self._out += frame(RST_STREAM, 0, STREAM, struct.pack(">I", 8))

    def grant(self, amount: int) -> None:
        """Open the window by so many bytes, of the stream and of the connection."""
        for stream in (0, STREAM):
            self._out += frame(WINDOW_UPDATE, 0, stream, struct.pack(">I", amount))

    def shut(self) -> None:
        """Grant nothing more."""
        self._keep_open = False

    def reopen(self) -> None:
        """Keep the window open from now on, and give back what was taken while it was not."""
        self._keep_open = True
        self.grant(max(1, self._ungranted))
        self._ungranted = 0

    def outgoing(self) -> bytes:
        """Take what must be written now."""
        out = bytes(self._out)
        self._out.clear()
        return out

    def _pump(self) -> None:
        while self._pending:
            room = min(self._stream_credit, self._connection_credit, self._peer_max_frame, len(self._pending))
            if room <= 0:
                return
            self._out += frame(DATA, 0, STREAM, bytes(self._pending[:room]))
            del self._pending[:room]
            self._stream_credit -= room
            self._connection_credit -= room
        if self._half_close_wanted:
            self._half_close_wanted = False
            self._out += frame(DATA, END_STREAM, STREAM)

    def feed(self, data: bytes) -> list[bytes]:
        """Take bytes off the wire; the messages that they complete, each a serialised
        DownstreamMessage.
        """
        self._in += data
        buffer, offset = self._in, 0
        while len(buffer) - offset >= 9:
            length = int.from_bytes(buffer[offset : offset + 3], "big")
            if len(buffer) - offset < 9 + length:
                break
            kind, flags = buffer[offset + 3], buffer[offset + 4]
            stream = int.from_bytes(buffer[offset + 5 : offset + 9], "big")
            payload = bytes(buffer[offset + 9 : offset + 9 + length])
            offset += 9 + length
            if kind == DATA:
                self._body += payload
                self._consume(length)
            else:
                self._control(kind, flags, stream, payload)
        del buffer[:offset]
        return self._messages()

    def _messages(self) -> list[bytes]:
        body, offset, messages = self._body, 0, []
        while len(body) - offset >= 5:
            end = offset + 5 + int.from_bytes(body[offset + 1 : offset + 5], "big")
            if end > len(body):
                break
            messages.append(bytes(body[offset + 5 : end]))
            offset = end
        del body[:offset]
        return messages

    def _consume(self, amount: int) -> None:
        self._ungranted += amount
        if self._keep_open and self._ungranted > self._window // 2:
            self.grant(self._ungranted)
            self._ungranted = 0

    def _control(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == SETTINGS and not flags & ACK:
            for key, value in struct.iter_unpack(">HI", payload):
                if key == INITIAL_WINDOW_SIZE:
                    self._stream_credit += value - self._peer_initial_window
                    self._peer_initial_window = value
                elif key == MAX_FRAME_SIZE:
                    self._peer_max_frame = value
            self._out += frame(SETTINGS, ACK, 0)
            self._pump()
        elif kind == PING and not flags & ACK:
            self._out += frame(PING, ACK, 0, payload)
        elif kind == WINDOW_UPDATE:
            amount = int.from_bytes(payload, "big")
            if stream == STREAM:
                self._stream_credit += amount
            else:
                self._connection_credit += amount
            self._pump()
        elif kind == HEADERS:
            # Neither padding nor priority nor CONTINUATION: the gateway under test sends none.
            headers = dict(self._decoder.decode(payload))
            if flags & END_STREAM:
                self.ended = Ended(int(headers.get("grpc-status", "2")), headers.get("grpc-message", ""))
        elif kind == RST_STREAM and self.ended is None:
            self.ended = Ended(1, f"reset by the server with code {int.from_bytes(payload, 'big')}")
        elif kind == GOAWAY:
            self.goaway = True


class Disconnected(Exception):
    """The server is gone: end of file, or a reset."""


class RawPeer:
    """A RawH2 on a trio socket.

    One task may send while another receives; sending may wait for windows, so keep receiving.
    """

    def __init__(self, stream: trio.SocketStream, h2: RawH2) -> None:
        self.stream, self.h2 = stream, h2
        self._writing = trio.Lock()
        self._fed = trio.Event()

    async def flush(self) -> None:
        """Write what is due.

        When another task is writing, it takes this along, so that a reader never waits for a
        writer.
        """
        while not self._writing.locked():
            async with self._writing:
                out = self.h2.outgoing()
                if not out:
                    return
                try:
                    await self.stream.send_all(out)
                except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                    raise Disconnected(str(error)) from error

    async def send(self, *payloads: bytes) -> None:
        """Send messages; returns when the socket has taken all of them."""
        for payload in payloads:
            self.h2.send(payload)
        await self.flush()
        while self.h2.pending:
            self._fed = trio.Event()
            await self._fed.wait()
            await self.flush()

    async def receive(self) -> list[bytes]:
        """The next messages, at least one, or [] once the stream has ended with a status.

        Raises Disconnected.
        """
        while True:
            try:
                data = await self.stream.receive_some(262_144)
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                raise Disconnected(str(error)) from error
            if not data:
                raise Disconnected("end of file")
            messages = self.h2.feed(data)
            self._fed.set()
            await self.flush()
            if messages or self.h2.ended:
                return messages


@contextlib.asynccontextmanager
async def open_raw_peer(address: str, init: bytes, **settings: Any) -> AsyncIterator[RawPeer]:
    """Connect and send a first message with InitConnection; end without a close."""
    host, _, port = address.rpartition(":")
    peer = RawPeer(await trio.open_tcp_stream(host, int(port)), RawH2(**settings))
    try:
        await peer.send(init)
        yield peer
    finally:
        await trio.aclose_forcefully(peer.stream)
