"""A tiny service, a server around it, and a client that speaks raw HTTP/2 frames."""

from __future__ import annotations

import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import hpack
import trio
from grpclib.const import Cardinality, Handler
from grpclib.const import Status as GrpclibStatus
from grpclib.exceptions import GRPCError
from grpclib.health.v1.health_pb2 import HealthCheckRequest

from aether_trio.transport.grpc.server import GrpcServer
from aether_trio.transport.grpc.stream import ServerStream
from aether_trio.transport.http2 import frames
from aether_trio.transport.socket.accepted import Accepted
from aether_trio.transport.socket.listener import Acceptor, TcpSettings, open_tcp_listeners
from aether_trio.transport.socket.listener import Handler as SocketHandler
from tests.helpers.rawh2 import frame

PATIENCE_S = 100_000
"""In trio's time, which some tests make jump by hours; hanging tests are caught by pytest's own
timeout.
"""


class Probe:
    """The service under test. Its messages are HealthCheckRequest: one string."""

    def __init__(self) -> None:
        self.started = trio.Event()
        self.cancelled = trio.Event()
        self.release = trio.Event()
        self.last: ServerStream | None = None

    async def echo(self, stream: ServerStream) -> None:
        while batch := await stream.receive_batch():
            await stream.send_batch(batch)

    async def one(self, stream: ServerStream) -> None:
        await stream.send_message(await stream.recv_message())

    async def hang(self, stream: ServerStream) -> None:
        self.last = stream
        self.started.set()
        try:
            await self.release.wait()
        except trio.Cancelled:
            self.cancelled.set()
            raise

    async def fail(self, stream: ServerStream) -> None:
        request = await stream.recv_message()
        if request.service == "bug":
            raise ZeroDivisionError("secret detail")
        if request.service == "silent":
            return
        async with trio.open_nursery():  # the error arrives wrapped in a group
            raise GRPCError(GrpclibStatus.FAILED_PRECONDITION, request.service)

    async def flood(self, stream: ServerStream) -> None:
        """Answer with as many 1 KiB messages as the request says."""
        request = await stream.recv_message()
        self.last = stream
        self.started.set()
        for number in range(int(request.service)):
            await stream.send_message(HealthCheckRequest(service=f"{number:0>1000}"))

    async def metadata(self, stream: ServerStream) -> None:
        await stream.recv_message()
        seen = stream.metadata
        await stream.send_initial_metadata(metadata={"initial": seen.get("ask", "")})
        await stream.send_message(HealthCheckRequest(service=str(seen.get("raw-bin"))))
        await stream.send_trailing_metadata(metadata={"final-bin": b"\x00\xff"})

    def __mapping__(self) -> dict[str, Handler]:
        both = (HealthCheckRequest, HealthCheckRequest)
        return {
            "/probe.Probe/Echo": Handler(self.echo, Cardinality.STREAM_STREAM, *both),
            "/probe.Probe/One": Handler(self.one, Cardinality.UNARY_UNARY, *both),
            "/probe.Probe/Hang": Handler(self.hang, Cardinality.STREAM_STREAM, *both),
            "/probe.Probe/Fail": Handler(self.fail, Cardinality.UNARY_UNARY, *both),
            "/probe.Probe/Flood": Handler(self.flood, Cardinality.UNARY_STREAM, *both),
            "/probe.Probe/Metadata": Handler(self.metadata, Cardinality.UNARY_UNARY, *both),
        }


def only(server: GrpcServer) -> SocketHandler:
    """Hands `server` every socket, whatever its first bytes."""

    async def handle(sock: socket.socket, address: Any) -> None:
        await server.serve(Accepted(sock, address))

    return handle


class Port(int):
    """A port number that remembers what was opened to it."""

    opened: list[trio.SocketStream]
    accepting: trio.CancelScope

    async def connect(self) -> trio.SocketStream:
        stream = await trio.open_tcp_stream("127.0.0.1", int(self))
        self.opened.append(stream)
        return stream


@asynccontextmanager
async def serving(
    server: GrpcServer, handler: SocketHandler | None = None, *, host: str = "127.0.0.1", tcp: TcpSettings | None = None
) -> AsyncIterator[Port]:
    """The server's port. At the end the server is cancelled, its clients closed."""
    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            listeners = open_tcp_listeners(host, 0)
            nursery.start_soon(server.retire_the_old)
            port = Port(listeners[0].getsockname()[1])
            port.opened = []
            port.accepting = trio.CancelScope()

            async def accept() -> None:
                with port.accepting:
                    await Acceptor(nursery, tcp).serve(listeners, handler or only(server))

            nursery.start_soon(accept)
            try:
                yield port
            finally:
                for stream in port.opened:
                    stream.socket.close()
            nursery.cancel_scope.cancel()


class Frame(NamedTuple):
    kind: int
    flags: int
    stream_id: int
    body: bytes


def parse_frames(content: bytes) -> list[Frame]:
    found = []
    while content:
        word, flags, stream_id = struct.unpack_from(">IBI", content)
        stop = 9 + (word >> 8)
        found.append(Frame(word & 0xFF, flags, stream_id, content[9:stop]))
        content = content[stop:]
    return found


def message(payload: bytes, *, compressed: int = 0) -> bytes:
    return struct.pack(">BI", compressed, len(payload)) + payload


def settings(**values: int) -> bytes:
    codes = {"table": 1, "push": 2, "streams": 3, "window": 4, "frame": 5, "headers": 6}
    return frame(
        frames.SETTINGS, 0, 0, b"".join(struct.pack(">HI", codes[key], value) for key, value in values.items())
    )


def data(stream_id: int, body: bytes, *, end: bool = False) -> bytes:
    return frame(frames.DATA, frames.END_STREAM if end else 0, stream_id, body)


def header_frames(first: bytes, *rest: bytes, end: bool = False) -> bytes:
    """Request 1 in these pieces. Without `end` its header block goes on."""
    flags = [0] * (len(rest) - 1) + [frames.END_HEADERS if end else 0]
    more = (frame(frames.CONTINUATION, flag, 1, piece) for flag, piece in zip(flags, rest, strict=True))
    return frame(frames.HEADERS, 0, 1, first) + b"".join(more)


class RawClient:
    """One connection, which answers nothing but SETTINGS."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._buffer = b""
        self._decoder = hpack.Decoder()
        self._encoder = hpack.Encoder()
        self._encoder.header_table_size = 0
        self.seen: list[Frame] = []
        self.acks_settings = True

    @classmethod
    async def bare(cls, port: Port) -> RawClient:
        """Connected, without a word said."""
        return cls(await port.connect())

    @classmethod
    async def connect(cls, port: Port, first: bytes | None = None) -> RawClient:
        client = await cls.bare(port)
        await client.send(frames.PREFACE + (settings() if first is None else first))
        return client

    async def send(self, *parts: bytes) -> None:
        await self.stream.send_all(b"".join(parts))

    def block(self, path: str = "/probe.Probe/Echo", **more: str | None) -> bytes:
        headers: dict[str, str | None] = {
            ":method": "POST",
            ":scheme": "http",
            ":path": path,
            ":authority": "test",
            "te": "trailers",
            "content-type": "application/grpc",
        }
        headers.update({key.replace("__", ":").replace("_", "-"): value for key, value in more.items()})
        return bytes(self._encoder.encode([(key, value) for key, value in headers.items() if value is not None]))

    def request(
        self, stream_id: int, path: str = "/probe.Probe/Echo", *, end: bool = False, **more: str | None
    ) -> bytes:
        flags = frames.END_HEADERS | (frames.END_STREAM if end else 0)
        return frame(frames.HEADERS, flags, stream_id, self.block(path, **more))

    async def next(self) -> Frame | None:
        """The next frame, acks given; None at the end of the connection."""
        while True:
            if len(self._buffer) >= 9:
                word, flags, stream_id = struct.unpack_from(">IBI", self._buffer)
                stop = 9 + (word >> 8)
                if len(self._buffer) >= stop:
                    found = Frame(word & 0xFF, flags, stream_id, self._buffer[9:stop])
                    self._buffer = self._buffer[stop:]
                    self.seen.append(found)
                    if found.kind == frames.SETTINGS and not found.flags & frames.ACK and self.acks_settings:
                        await self._send_quietly(frame(frames.SETTINGS, frames.ACK, 0))
                    return found
            try:
                received = await self.stream.receive_some(65_536)
            except trio.BrokenResourceError:
                return None
            if not received:
                return None
            self._buffer += received

    async def _send_quietly(self, content: bytes) -> None:
        try:
            await self.send(content)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # a test that provokes the end reads on to see it

    async def until(self, wanted: Callable[[Frame], bool]) -> Frame:
        while (found := await self.next()) is not None:
            if wanted(found):
                return found
        raise AssertionError(f"the connection ended before the wanted frame; seen: {self.seen[-10:]}")

    async def until_kind(self, kind: int, *, stream_id: int | None = None) -> Frame:
        return await self.until(lambda f: f.kind == kind and stream_id in (None, f.stream_id))

    async def barrier(self) -> None:
        """Wait until the server has looked at what was sent."""
        await self.send(frames.ping(b"barrier!"))
        await self.until_kind(frames.PING)

    async def reset_code(self, stream_id: int) -> int:
        return int.from_bytes((await self.until_kind(frames.RST_STREAM, stream_id=stream_id)).body)

    async def rest(self) -> list[Frame]:
        while await self.next() is not None:
            pass
        return self.seen

    async def goaway(self) -> tuple[int, int, str]:
        """(last stream, error code, debug text) of the next GOAWAY."""
        body = (await self.until_kind(frames.GOAWAY)).body
        last, code = struct.unpack_from(">II", body)
        return last, code, body[8:].decode()

    async def payload(self, stream_id: int, size: int) -> bytes:
        have = bytearray()
        while len(have) < size:
            have += (await self.until_kind(frames.DATA, stream_id=stream_id)).body
        return bytes(have)

    async def trailers(self, stream_id: int) -> dict[str, str]:
        while True:
            found = await self.until_kind(frames.HEADERS, stream_id=stream_id)
            headers = self.decode(found)
            if found.flags & frames.END_STREAM:
                return headers

    def decode(self, found: Frame) -> dict[str, Any]:
        return dict(self._decoder.decode(found.body))


@asynccontextmanager
async def connected(server: GrpcServer) -> AsyncIterator[RawClient]:
    """A client of `server`, which is served until the end of the block."""
    async with serving(server) as port:
        yield await RawClient.connect(port)
