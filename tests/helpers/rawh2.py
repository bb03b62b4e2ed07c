"""A gRPC client for load and faults: the bench's hand-made HTTP/2, with windows.

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

from bench.transports import grpc as codec
from bench.transports.grpc import DEFAULT_WINDOW, MAX_WINDOW, STREAM, frame

__all__ = ["DEFAULT_WINDOW", "MAX_WINDOW", "Disconnected", "Ended", "RawH2", "RawPeer", "open_raw_peer"]

REQUEST_HEADERS = (
    (":method", "POST"),
    (":scheme", "http"),
    (":path", codec.PATH),
    (":authority", "gateway"),
    ("te", "trailers"),
    ("content-type", "application/grpc"),
)


@dataclass(frozen=True, slots=True)
class Ended:
    """How the stream ended; a connection that was simply cut has no Ended."""

    status: int
    message: str


class RawH2:
    """A sans-I/O client of one stream; the first `outgoing` has the preface, too."""

    def __init__(
        self, *, window: int = MAX_WINDOW, keep_window_open: bool = True, headers: tuple[tuple[str, str], ...] = ()
    ) -> None:
        self._keep_open = keep_window_open
        self._window = window
        self._ungranted = 0
        opening = codec.PREFACE + frame(codec.SETTINGS, 0, 0, struct.pack(">HI", codec.INITIAL_WINDOW_SIZE, window))
        if window > DEFAULT_WINDOW:
            opening += frame(codec.WINDOW_UPDATE, 0, 0, struct.pack(">I", window - DEFAULT_WINDOW))
        block = hpack.Encoder().encode((*REQUEST_HEADERS, *headers))
        self._codec = codec.GrpcCodec(opening + frame(codec.HEADERS, codec.END_HEADERS, STREAM, block))

    @property
    def pending(self) -> int:
        """Bytes of messages that wait for the server's window."""
        return sum(len(held) for held in self._codec._held if held)

    @property
    def goaway(self) -> bool:
        return bool(self._codec._goaway)

    @property
    def ended(self) -> Ended | None:
        if not self._codec.ended:
            return None
        decoder = hpack.Decoder()  # every block in its order, for its table
        headers = dict(header for block in self._codec._blocks for header in decoder.decode(block))
        if "grpc-status" not in headers and self._codec._reset:
            return Ended(1, self._codec._reset)
        return Ended(int(headers.get("grpc-status", "2")), headers.get("grpc-message", ""))

    def send(self, payload: bytes) -> None:
        """Queue one message (a serialised UpstreamMessage)."""
        self._codec.send(payload)

    def send_framed(self, framed: bytes) -> None:
        """Queue bytes that are gRPC messages already."""
        self._codec._held.append(framed)
        self._codec._pump()

    def half_close(self) -> None:
        self._codec.end()

    def reset_stream(self) -> None:
        self._codec._out.append(frame(codec.RST_STREAM, 0, STREAM, struct.pack(">I", 8)))

    def grant(self, amount: int) -> None:
        """Open the window by so many bytes, of the stream and of the connection."""
        credit = struct.pack(">I", amount)
        self._codec._out += [frame(codec.WINDOW_UPDATE, 0, stream, credit) for stream in (0, STREAM)]

    def shut(self) -> None:
        """Grant nothing more."""
        self._keep_open = False

    def reopen(self) -> None:
        """Keep the window open from now on, and give back what was taken while it was not."""
        self._keep_open = True
        self.grant(max(1, self._ungranted))
        self._ungranted = 0

    def outgoing(self) -> bytes:
        return self._codec.take()

    def feed(self, data: bytes) -> list[bytes]:
        """Take bytes off the wire; the serialised DownstreamMessages that they complete."""
        messages = self._codec.receive(data)
        self._ungranted += self._codec._received
        self._codec._received = 0
        if self._keep_open and self._ungranted > self._window // 2:
            self.grant(self._ungranted)
            self._ungranted = 0
        return messages


class Disconnected(Exception):
    """The server is gone: end of file, or a reset."""


class RawPeer:
    """A RawH2 on a trio socket; one task sends, another one keeps receiving."""

    def __init__(self, stream: trio.SocketStream, h2: RawH2) -> None:
        self.stream, self.h2 = stream, h2
        self._writing = trio.Lock()
        self._fed = trio.Event()

    async def flush(self) -> None:
        """Write what is due, unless another task is writing and takes it along."""
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
        """The next messages, or [] after a status; raises Disconnected."""
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
