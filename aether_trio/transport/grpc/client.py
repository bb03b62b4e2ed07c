"""A small gRPC client on trio, for the command line, tests, and other nodes.

    async with open_channel("127.0.0.1", 50051) as channel:
        reply = await channel.unary("/pkg.Service/Method", request, Reply)

No retries, no name resolution beyond getaddrinfo, no balancing. A call's status other than OK is
raised as GRPCError; a connection that breaks or takes no new calls raises LinkBroken.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, Protocol, TypeVar

import h2.events
import trio
from grpclib.const import Status as GrpclibStatus
from grpclib.exceptions import GRPCError
from grpclib.metadata import decode_grpc_message, encode_metadata, encode_timeout

from aether_trio.model.containment import report
from aether_trio.model.errors import StatusError
from aether_trio.transport.grpc.limits import GrpcLimits
from aether_trio.transport.grpc.message_stream import AssemblyBudget, MessageStream
from aether_trio.transport.http2 import flood_budgets, frames
from aether_trio.transport.http2.connection_io import ConnectionIo
from aether_trio.transport.http2.flood_budgets import FloodBudgets
from aether_trio.transport.http2.frame_checks import parse_goaway
from aether_trio.transport.http2.frames import Http2ErrorCode
from aether_trio.transport.http2.h2_engine import H2Engine, SharedH2State
from aether_trio.transport.http2.limits import NO_ALLOWANCES
from aether_trio.transport.http2.statistics import Http2Counters, Http2Statistics
from aether_trio.transport.http2.stream import Http2Stream, StreamHandler
from aether_trio.transport.link import LinkBroken
from aether_trio.transport.socket.tls import TlsSession

__all__ = ["GrpcCall", "GrpcChannel", "open_channel"]

USER_AGENT: Final = "grpc-python-aether-trio"
_TABLE: Final = flood_budgets.allowance_table(NO_ALLOWANCES)
_NO_STATUS: Final = {"grpc-status": "2", "grpc-message": "stream ended without a status"}

M = TypeVar("M")


class ProtobufMessage(Protocol):
    """Protocol: a protobuf message, which can serialize itself."""

    def SerializeToString(self) -> bytes: ...  # noqa: N802


class GrpcCall(StreamHandler):
    """The client's end of one gRPC call, for one reader and one sender at a time."""

    __slots__ = ("_channel", "_decode", "_headers", "_messages", "_stream", "_trailers")

    def __init__(self, stream_id: int, channel: GrpcChannel, reply_type: Any) -> None:
        self._messages = MessageStream(stream_id, self, channel.wire, channel.budget)
        self._stream = self._messages.stream
        self._channel = channel
        self._decode = reply_type.FromString
        self._headers: dict[str, str] = {}
        self._trailers: dict[str, str] = {}

    @property
    def http2(self) -> Http2Stream:
        """The HTTP/2 stream that carries the call."""
        return self._stream

    @property
    def ended(self) -> bool:
        """Whether the server has ended the call."""
        return self._stream.ended

    async def send(self, *messages: ProtobufMessage) -> None:
        """Send messages; return when flow control and the kernel have taken them."""
        await self.send_bytes([message.SerializeToString() for message in messages])

    async def send_bytes(self, batch: list[bytes]) -> None:
        """Send serialized messages. Raises GRPCError (call ended) and LinkBroken (cut)."""
        if self._stream.ended:
            await trio.lowlevel.checkpoint()
            self._raise_for_status()
            raise LinkBroken("cannot send: the server has ended the call")
        self._messages.check_sendable()
        try:
            await self._messages.send(batch)
        except LinkBroken:
            self._raise_if_over()
            raise

    async def end(self) -> None:
        """Half-close the call: tell the server that no more requests follow."""
        await trio.lowlevel.checkpoint()
        if not self._stream.finished and not self._stream.ended:
            self._stream.finished = True
            self._channel.end_of_request(self)

    async def receive_bytes(self) -> Sequence[bytes]:
        """Return serialized replies; [] once the call ended with OK. Raises GRPCError."""
        try:
            batch = await self._messages.receive_batch()
        except StatusError as error:
            raise GRPCError(GrpclibStatus(int(error.status)), error.message) from None
        except LinkBroken:
            if not self._stream.ended:
                raise
            batch = []  # the server said how it ended before the connection broke
        if not batch:
            self._raise_for_status()
        return batch

    async def receive(self) -> list[Any]:
        """Return decoded replies, at least one; [] once the call ended with status OK."""
        return [self._decode(message) for message in await self.receive_bytes()]

    async def __aiter__(self) -> AsyncIterator[Any]:
        while batch := await self.receive():
            for message in batch:
                yield message

    def _raise_if_over(self) -> None:
        if self._stream.ended:
            self._raise_for_status()

    def _raise_for_status(self) -> None:
        http_status = self._headers.get(":status", "200")
        try:
            status = GrpclibStatus(int(self._trailers.get("grpc-status", "2")))
        except ValueError:
            status = GrpclibStatus.UNKNOWN
        if status is not GrpclibStatus.OK:
            message = decode_grpc_message(self._trailers.get("grpc-message", f"HTTP status {http_status}"))
            raise GRPCError(status, message)

    # What the channel says ------------------------------------------------------------------------

    def response(self, headers: dict[str, str], *, is_last: bool) -> None:
        """Store the response headers; with `is_last` they are the trailers as well."""
        self._headers = headers
        if is_last:
            self._trailers = headers

    def trailers(self, headers: dict[str, str]) -> None:
        """Store the trailers, which hold the call's status."""
        self._trailers = headers

    def over(self) -> None:
        """Note that the server has ended the call: with UNKNOWN if no trailers came."""
        self._stream.ended = True
        self._trailers = self._trailers or _NO_STATUS

    # StreamHandler --------------------------------------------------------------------------------

    @property
    def answered(self) -> bool:
        """Whether the server's response headers have arrived."""
        return bool(self._headers)

    def fill(self) -> bool:
        """Send bytes that waited for room in the server's flow-control window."""
        self._channel.wire.plane.send_pending(self._stream)
        return False


class GrpcChannel:
    """A client's connection to one gRPC server; `open_channel` makes it."""

    __slots__ = ("_authority", "_calls", "_counters", "_engine", "_failure", "_scheme", "budget", "wire")

    def __init__(
        self, sock: socket.socket, session: TlsSession | None, authority: str, limits: GrpcLimits, nursery: trio.Nursery
    ) -> None:
        shared = SharedH2State(limits, client_side=True)
        self._counters = Http2Counters()
        budgets = FloodBudgets(_TABLE, trio.current_time)
        self.wire = ConnectionIo(self, sock, session, limits, budgets, self._counters, nursery, client_side=True)
        self.budget = AssemblyBudget(limits)
        self._engine = H2Engine(shared, client_side=True)
        self._calls: dict[int, GrpcCall] = {}
        """Those that are open, by the id of their stream."""
        self._authority = authority
        self._scheme = "http" if session is None else "https"
        self._failure: str | None = None
        plane = self.wire.plane
        plane.out += [frames.PREFACE, self._engine.settings(shared), plane.opening_window_update()]

    def statistics(self) -> Http2Statistics:
        return self._counters.snapshot()

    async def run(self) -> None:
        """Read from the server until the connection ends, then break the open calls."""
        self.wire.writer.kick()
        reason = await self.wire.read_until_end()
        self._failure = self._failure or reason
        self.wire.stop()
        for call in list(self._calls.values()):
            call.http2.broken(self._failure)

    def close(self) -> None:
        """Start no more calls and read nothing more; queued bytes are still sent."""
        self.wire.stop()

    async def unary(
        self,
        path: str,
        request: ProtobufMessage,
        reply_type: type[M],
        *,
        metadata: Mapping[str, str | bytes] | None = None,
        timeout: float | None = None,
    ) -> M:
        """Make a unary call: send one request and return the one reply."""
        async with self.stream(path, reply_type, metadata=metadata, timeout=timeout) as call:
            try:
                await call.send(request)
                await call.end()
            except LinkBroken:
                # A server may answer before it has seen that nothing follows, and reset the rest.
                if not call.ended:
                    raise
            replies: list[M] = [reply async for reply in call]
        if len(replies) != 1:
            raise GRPCError(
                GrpclibStatus.INTERNAL, f"{path} is unary, but the server sent {len(replies)} replies instead of one"
            )
        return replies[0]

    @asynccontextmanager
    async def stream(
        self,
        path: str,
        reply_type: type[Any],
        *,
        metadata: Mapping[str, str | bytes] | None = None,
        timeout: float | None = None,
    ) -> AsyncIterator[GrpcCall]:
        """Open a gRPC call for an `async with` block, which cancels it; timeout: seconds."""
        await trio.lowlevel.checkpoint()
        if self._failure is not None or self.wire.closing:
            raise LinkBroken(self._failure or "the channel is closed")
        headers = [
            (":method", "POST"),
            (":scheme", self._scheme),
            (":path", path),
            (":authority", self._authority),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            ("user-agent", USER_AGENT),
        ]
        if timeout is not None:
            headers.append(("grpc-timeout", encode_timeout(timeout)))
        headers += encode_metadata(metadata or {})
        stream_id = self._engine.next_stream_id()
        call = self._calls[stream_id] = GrpcCall(stream_id, self, reply_type)
        encoded = [(name.encode(), value.encode()) for name, value in headers]
        self.wire.plane.open(call.http2)
        self.wire.plane.out.append(self._engine.send_headers(stream_id, encoded, end_stream=False))
        self.wire.writer.kick()
        try:
            if timeout is None:
                yield call
            else:
                with trio.move_on_after(timeout) as scope:
                    yield call
                if scope.cancelled_caught:
                    raise GRPCError(GrpclibStatus.DEADLINE_EXCEEDED, f"the gRPC call {path} exceeded its deadline")
        finally:
            self._close_call(call)

    def end_of_request(self, call: GrpcCall) -> None:
        """Half-close a call's HTTP/2 stream: send END_STREAM."""
        self.wire.plane.out.append(self._engine.end_stream(call.http2.stream_id))
        self.wire.writer.kick()

    def _close_call(self, call: GrpcCall) -> None:
        stream = call.http2
        if self._calls.pop(stream.stream_id, None) is not None:
            self.wire.plane.out.append(self._engine.reset(stream.stream_id, Http2ErrorCode.CANCEL))
            self.wire.plane.close(stream)
            self.wire.dirty.pop(stream, None)
            self._engine.forget(stream.stream_id)
            self.wire.writer.kick()

    # What the connection asks (ConnectionOwner) ---------------------------------------------------

    def on_defect(self, error: Exception) -> None:
        """Report an internal error in sending and abort the connection."""
        report(error, f"grpc with {self._authority}")
        self.wire.writer.abort()

    def on_half_close(self) -> None:
        """Do nothing: a client ends by closing its socket."""

    def control(self, kind: int, flags: int, stream_id: int, frame: bytes) -> None:
        """Handle one HTTP/2 control frame of the server (PING, GOAWAY, HEADERS, ...)."""
        if kind == frames.PING:
            if not flags & frames.ACK:
                self.wire.plane.out.append(frames.ping(frame[frames.HEADER_BYTES :], ack=True))
        elif kind == frames.GOAWAY:
            self._goaway(stream_id, frame)
        elif kind != frames.PRIORITY and kind <= frames.CONTINUATION:
            events = self._engine.receive(frame)
            for event in events:
                self._event(event)
            output = self._engine.take_output()
            if output:
                self.wire.plane.out.append(output)

    def _goaway(self, stream_id: int, frame: bytes) -> None:
        last, code, debug = parse_goaway(stream_id, frame)
        self._failure = f"GOAWAY {code}: {debug}"
        for call_id, call in list(self._calls.items()):
            if call_id > last:
                call.http2.broken(self._failure)

    def _event(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.RemoteSettingsChanged):
            changed = {int(code): setting.new_value for code, setting in event.changed_settings.items()}
            self.wire.plane.peer_settings(changed.get(4), changed.get(5))
            self._engine.settings_changed()
            return
        call = self._calls.get(getattr(event, "stream_id", 0) or 0)
        if call is None:
            return
        if isinstance(event, (h2.events.ResponseReceived, h2.events.TrailersReceived)):
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in event.headers}
            if isinstance(event, h2.events.ResponseReceived):
                call.response(headers, is_last=event.stream_ended is not None)
            else:
                call.trailers(headers)
        elif isinstance(event, h2.events.StreamEnded):
            call.over()
            self.wire.plane.touched.append(call.http2)
        elif isinstance(event, h2.events.StreamReset):
            # After its end it means that the server reads no more of what we send (RFC 9113 section
            # 8.1): the status says why.
            call.http2.broken("ended" if call.ended else f"stream reset by the server ({event.error_code!r})")

    def end_of_stream(self, stream: Http2Stream) -> None:
        """Note that the server ended a call by DATA, without the trailers that gRPC needs."""
        self._engine.end_of_stream(stream.stream_id)
        self._calls[stream.stream_id].over()

    def stream_error(self, stream_id: int, code: Http2ErrorCode, text: str) -> None:
        """Reset one call because of an HTTP/2 error on its stream."""
        call = self._calls.get(stream_id)
        if call is not None:
            self.wire.plane.out.append(self._engine.reset(stream_id, code))
            call.http2.broken(text)


@asynccontextmanager
async def open_channel(
    host: str,
    port: int,
    *,
    tls: ssl.SSLContext | None = None,
    server_hostname: str | None = None,
    limits: GrpcLimits | None = None,
) -> AsyncIterator[GrpcChannel]:
    """Connect to a gRPC server for the `async with` block. Raises OSError."""
    sock = await _connect(host, port)
    try:
        session = None
        if tls is not None:
            session = TlsSession(tls, server_hostname=server_hostname or host, server_side=False)
            await session.handshake(sock)
        async with _bare_nursery() as nursery:
            channel = GrpcChannel(sock, session, f"{host}:{port}", limits or GrpcLimits(), nursery)
            nursery.start_soon(channel.run)
            try:
                yield channel
            finally:
                channel.close()
                nursery.cancel_scope.cancel()
    finally:
        trio.lowlevel.notify_closing(sock)
        sock.close()


@asynccontextmanager
async def _bare_nursery() -> AsyncIterator[trio.Nursery]:
    """Open a nursery that raises its block's error without an exception group."""
    error: BaseException | None = None
    async with trio.open_nursery() as nursery:
        try:
            yield nursery
        except BaseException as raised:
            error = raised
            nursery.cancel_scope.cancel()
    if error is not None:
        raise error


async def _connect(host: str, port: int) -> socket.socket:
    stream = await trio.open_tcp_stream(host, port)
    # The same kind of socket as on the server's side, taken over from trio's by duplicating its
    # descriptor.
    sock = socket.fromfd(stream.socket.fileno(), stream.socket.family, stream.socket.type)
    await stream.aclose()
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock
