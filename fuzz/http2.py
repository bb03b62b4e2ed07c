"""Fuzz a server's HTTP/2 connection from the preface on, without a socket.

The requests are routed as in the gateway, but no handler runs; a stream is read at once, or never.
What a connection holds is asserted after every read. When nothing is read, splitting changes
neither the messages nor the mistake.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from math import inf
from types import SimpleNamespace
from typing import Any, Final

import hpack
import trio
from grpclib.const import Cardinality, Handler
from grpclib.exceptions import GRPCError
from grpclib.health.v1.health_pb2 import HealthCheckRequest

from aether_trio.transport.grpc.limits import GrpcLimits
from aether_trio.transport.grpc.message_encoding import PREFIX_BYTES, CompressedMessage
from aether_trio.transport.grpc.message_stream import AssemblyBudget
from aether_trio.transport.grpc.rpc import RpcAcceptor
from aether_trio.transport.grpc.stream import ServerStream
from aether_trio.transport.http2 import flood_budgets, frames
from aether_trio.transport.http2.h2_engine import SharedH2State
from aether_trio.transport.http2.server_connection import ServerConnection
from aether_trio.transport.http2.statistics import Http2Counters
from aether_trio.transport.http2.stream import Http2Stream
from aether_trio.transport.socket.accepted import Accepted
from aether_trio.transport.socket.unfinished_input import UnfinishedInput, UnfinishedLimits
from fuzz.feeding import choices, split
from tests.helpers.rawh2 import frame

KIB: Final = 1024
LIMITS: Final = GrpcLimits(
    max_receive_message_bytes=40 * KIB,
    max_assembling_bytes=80 * KIB,
    max_opening_message_bytes=20 * KIB,
    max_unread_bytes=128 * KIB,
    connection_window_bytes=80 * KIB,
    max_concurrent_streams=8,
)
BUDGET: Final = UnfinishedLimits(total_bytes=60 * KIB, free_bytes=4 * KIB)
PATH: Final = "/probe.Probe/Talk"
_SETTINGS: Final = frames.settings({4: 65_535})


async def _never(_stream: Any) -> None:
    raise AssertionError("no handler runs here")


HANDLERS: Final = {PATH: Handler(_never, Cardinality.STREAM_STREAM, HealthCheckRequest, HealthCheckRequest)}


class _Socket:
    """A socket that takes all writes, or `room` bytes."""

    def __init__(self, room: float) -> None:
        self.room = room
        self.ended = False

    def send(self, data: Any) -> int:
        if self.room <= 0:
            raise BlockingIOError
        self.room -= len(data)
        return len(data)

    def shutdown(self, _how: int) -> None:
        self.ended = True


def _start_nothing(*_call: Any, name: object = None) -> None:
    """As a nursery's `start_soon`."""


class Server:
    """A server's connection that is fed with input."""

    def __init__(self, *, reads: bool, accepts: bool, room: float) -> None:
        self.reads = reads
        self.accepts = accepts
        self.unfinished = UnfinishedInput(BUDGET)
        self.counters = Http2Counters()
        self.streams: dict[int, Http2Stream] = {}
        self.messages: dict[int, list[bytes]] = {}
        scope = SimpleNamespace(deadline=inf)
        nursery: Any = SimpleNamespace(cancel_scope=scope, child_tasks=frozenset(), start_soon=_start_nothing)
        sock: Any = _Socket(room)
        address = ("192.0.2.1", 1)
        self.budget = AssemblyBudget(LIMITS, self.unfinished.account(address))
        self.acceptor = RpcAcceptor(HANDLERS, self.budget)
        self.connection = ServerConnection(
            Accepted(sock, address),
            LIMITS,
            flood_budgets.allowance_table(LIMITS.allowances),
            SharedH2State(LIMITS, client_side=False),
            self.counters,
            nursery,
            self._accept,
        )

    def _accept(self, connection: ServerConnection, stream_id: int, headers: list[tuple[str, str]]) -> None:
        self.acceptor(connection, stream_id, headers)
        stream = connection.plane.streams.get(stream_id)
        if stream is not None and isinstance(stream.handler, ServerStream):
            self.streams[stream_id] = stream
            self.messages[stream_id] = []
            if self.accepts:
                stream.handler._messages.accept()
            stream.reading = self.reads
            try:
                assert stream.handler.metadata is not None  # a link looks at it at once
            except GRPCError:
                pass

    def receive(self, data: bytes) -> bool:
        """Receive one read; return False when it was the last."""
        plane, wire = self.connection.plane, self.connection.wire
        while wire.scan(data) and not wire.closing:
            data = b""
        wire.writer.kick()
        goes_on = not wire.closing
        if self.reads:
            for stream_id, stream in self.streams.items():
                while stream_id in plane.streams or stream.inbox:
                    self.messages[stream_id] += plane.take(stream)
                    if not stream.inbox:
                        break
        if goes_on:
            self._check_held()
        return goes_on

    def _check_held(self) -> None:
        connection, plane = self.connection, self.connection.plane
        assert len(plane._tail) < frames.HEADER_BYTES + frames.DEFAULT_FRAME_BYTES + len(frames.PREFACE)
        assert len(plane.streams) <= LIMITS.max_concurrent_streams
        partial = sum(getattr(stream.payload, "partial_bytes", 0) for stream in plane.streams.values())
        held = self.unfinished.statistics()
        assert held.bytes == partial
        assert held.counted_bytes == max(0, partial - BUDGET.free_bytes)
        assert held.counted_bytes <= BUDGET.total_bytes
        unread = sum(stream.unread for stream in plane.streams.values())
        assert unread <= LIMITS.max_unread_bytes + LIMITS.connection_window_bytes
        assert sum(stream.held for stream in plane.streams.values()) == plane._unread >= unread
        assert self.budget.assembling <= LIMITS.max_assembling_bytes
        if not connection.wire.closing:
            assert sum(map(len, plane.out)) <= LIMITS.max_backlog_bytes
        engine = connection.settings_and_headers._h2
        if engine is not None:
            assert engine.buffered_bytes <= LIMITS.max_header_block_bytes + len(frames.PREFACE)
            assert len(engine._h2.streams) <= LIMITS.max_concurrent_streams + 1


def talk(stream_bytes: bytes, step: int, reader: int) -> tuple[dict[int, list[bytes]], dict[str, int]]:
    """Feed the server; return the messages of each stream, and its refusals."""
    server = Server(reads=bool(reader & 1), accepts=bool(reader & 2), room=inf if reader & 4 else 4 * KIB)
    for part in split(stream_bytes, step):
        if not server.receive(part):
            break
    for stream_id, stream in server.streams.items():
        server.messages[stream_id] += stream.inbox
        for message in server.messages[stream_id]:
            if not isinstance(message, CompressedMessage):
                assert len(message) <= LIMITS.max_receive_message_bytes
    server.connection.break_streams("end")
    assert not server.unfinished.statistics().messages
    assert not server.counters.streams_open
    return server.messages, dict(server.counters.rejects)


def check(data: bytes) -> None:
    """Check an input: three bytes of choices, and the stream; runs in trio."""
    assert trio.lowlevel.in_trio_run()
    (start, reader, step), stream = choices(data, 3)
    stream_bytes = stream if start & 1 else frames.PREFACE + _SETTINGS + stream
    found = talk(stream_bytes, step, reader)
    if not reader & 1 and reader & 4:
        assert talk(stream_bytes, 0, reader)[0] == found[0], f"split into {step}"


def request(stream_id: int, *more: tuple[str, str], path: str = PATH, end: bool = False) -> bytes:
    fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "a"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        *more,
    ]
    block = hpack.Encoder().encode(fields)
    return frame(frames.HEADERS, frames.END_HEADERS | (frames.END_STREAM if end else 0), stream_id, block)


def _data(stream_id: int, content: bytes, flags: int = 0) -> bytes:
    return frame(frames.DATA, flags, stream_id, content)


def seeds() -> Iterator[bytes]:
    message = struct.pack(">BI", 0, 5) + b"hello"
    begun = struct.pack(">BI", 0, 30_000)
    block = hpack.Encoder().encode([("x-more", "y" * 50)])
    streams = [
        request(1) + _data(1, message) + _data(1, message[:7]) + _data(1, message[7:], frames.END_STREAM),
        request(1, ("grpc-encoding", "gzip")) + _data(1, struct.pack(">BI", 1, 3) + b"abc"),
        b"".join(request(number) + _data(number, begun + bytes(9000)) for number in (1, 3, 5, 7, 9)),
        request(1) + _data(1, b"\x03" + message + bytes(3), frames.PADDED),
        request(1, path="/nothing/Here") + request(3, ("te", "x")) + request(5, ("grpc-timeout", "5S"), end=True),
        frame(frames.HEADERS, 0, 1, block[:10]) + frame(frames.CONTINUATION, frames.END_HEADERS, 1, block[10:]),
        frames.ping(b"12345678") * 5 + frames.window_update(0, 1000) + frame(frames.PRIORITY, 0, 1, bytes(5)),
        request(1) + frames.rst_stream(1, frames.Http2ErrorCode.CANCEL) + _data(1, message),
        _SETTINGS * 3 + frame(frames.SETTINGS, frames.ACK, 0, b"") + request(1),
        frames.settings({1: 0, 2: 0, 3: 100, 4: 1 << 30, 5: 1 << 20, 6: 8192, 99: 1}) + request(1) + request(3),
        frames.goaway(0, frames.Http2ErrorCode.NO_ERROR, "bye") + request(1),
        frame(0xEE, 0, 0, b"unknown") + frame(frames.PUSH_PROMISE, 4, 1, bytes(8)),
        _data(0, b"") + _data(1, b""),
    ]
    for number, stream in enumerate(streams):
        for reader in (4, 5, 7, 1):
            yield bytes((0, reader, 3 + number)) + stream
    yield b"\1\5\2" + frames.PREFACE[:20]
    yield b"\1\5\0" + b"GET / HTTP/1.1\r\n\r\n"


assert LIMITS.opening_bytes + PREFIX_BYTES < LIMITS.max_receive_message_bytes
