"""A small native gRPC client on the same data plane: for our command line, our tests, and services on other nodes.

    async with open_channel("127.0.0.1", 50051) as channel:
        reply = await channel.unary("/pkg.Service/Method", request, Reply)
        async with channel.stream("/aether.v1.AetherGateway/Connect", DownstreamMessage) as call:
            await call.send(init)
            async for message in call: ...

No retries, no name resolution beyond getaddrinfo, no balancing. A call's status other than OK is raised as GRPCError; a
connection that breaks, or is no longer usable for new calls, raises LinkBroken.
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

from aether_trio.transport.grpc import budgets, frames
from aether_trio.transport.grpc.budgets import Budgets
from aether_trio.transport.grpc.connection import Connection, PumpedStream
from aether_trio.transport.grpc.control import SharedControl
from aether_trio.transport.grpc.data_stream import DataStream
from aether_trio.transport.grpc.frames import UINT32, ErrorCode, ProtocolViolation
from aether_trio.transport.grpc.limits import NO_ALLOWANCES, GrpcLimits
from aether_trio.transport.grpc.statistics import Counters, GrpcServerStatistics
from aether_trio.transport.link import LinkBroken
from aether_trio.transport.tls import TlsSession

USER_AGENT: Final = "grpc-python-aether-trio"
_TABLE: Final = budgets.table(NO_ALLOWANCES)


class Message(Protocol):
    """A protobuf message class, seen from here."""

    def SerializeToString(self) -> bytes: ...  # noqa: N802


M = TypeVar("M")


class Call(PumpedStream):
    """One RPC. One reader and one sender at a time."""

    __slots__ = ("_broken", "_channel", "_decode", "_events", "_sent_end", "headers", "trailers")

    def __init__(self, stream_id: int, channel: Channel, reply_type: Any) -> None:
        super().__init__(stream_id)
        self._channel = channel
        self._decode = reply_type.FromString
        self._broken: str | None = None
        self._sent_end = False
        self._events = trio.Event()
        self.headers: dict[str, str] = {}
        self.trailers: dict[str, str] = {}

    # Called by the connection

    def fill(self) -> bool:
        self._channel.plane.send_pending(self)
        return False

    def drained(self) -> None:
        self.wake()

    def wake(self) -> None:
        self._events.set()
        self._events = trio.Event()

    def broken(self, reason: str) -> None:
        self._broken = self._broken or reason
        self.wake()

    # Called by the user

    async def send(self, *messages: Message) -> None:
        """Send; returns when the peer's windows and the kernel have taken it all."""
        await self.send_bytes([message.SerializeToString() for message in messages])

    async def send_bytes(self, batch: list[bytes]) -> None:
        channel = self._channel
        self._check(sending=True)
        channel.dirty[self] = None
        channel.plane.send(self, batch)
        channel.pump()
        await trio.lowlevel.checkpoint()
        while self in channel.dirty:
            self._check(sending=True)
            await self._events.wait()

    async def end(self) -> None:
        """Say that nothing more will be sent."""
        await trio.lowlevel.checkpoint()
        if not self._sent_end and self._broken is None and not self.ended:
            self._sent_end = True
            self._channel.plane.out.append(self._channel.control_plane.end_stream(self.stream_id))
            self._channel.pump()

    async def receive_bytes(self) -> Sequence[bytes]:
        """The messages that have arrived, at least one; [] after status OK. Raises GRPCError for any other status."""
        await trio.lowlevel.checkpoint()
        while True:
            if self.inbox:
                batch = self._channel.plane.take(self)
                self._channel.pump()
                return batch
            if self.failure is not None:
                raise GRPCError(GrpclibStatus(int(self.failure.status)), self.failure.message)
            if self.ended and self.trailers:
                self._raise_for_status()
                return []
            self._check()
            self.reading = True
            if self.unread:
                self._channel.plane.take(self)
                self._channel.pump()
            try:
                await self._events.wait()
            finally:
                self.reading = False

    async def receive(self) -> list[Any]:
        """As `receive_bytes`, decoded."""
        return [self._decode(message) for message in await self.receive_bytes()]

    async def __aiter__(self) -> AsyncIterator[Any]:
        while batch := await self.receive():
            for message in batch:
                yield message

    def _check(self, *, sending: bool = False) -> None:
        if sending and self.ended and self.trailers:
            self._raise_for_status()
            raise LinkBroken("the server has ended the call")
        if self._broken is not None:
            raise LinkBroken(self._broken)

    def _raise_for_status(self) -> None:
        http_status = self.headers.get(":status", "200")
        try:
            status = GrpclibStatus(int(self.trailers.get("grpc-status", "2")))
        except ValueError:
            status = GrpclibStatus.UNKNOWN
        if status is not GrpclibStatus.OK:
            message = decode_grpc_message(self.trailers.get("grpc-message", f"HTTP status {http_status}"))
            raise GRPCError(status, message)


class Channel(Connection):
    """One connection to a server. Made by `open_channel`."""

    __slots__ = ("_authority", "_failure", "_scheme")

    def __init__(
        self, sock: socket.socket, session: TlsSession | None, authority: str, limits: GrpcLimits, nursery: trio.Nursery
    ) -> None:
        shared = SharedControl(limits, client_side=True)
        counters = Counters()
        super().__init__(
            sock, session, limits, Budgets(_TABLE, trio.current_time), shared, counters, nursery, client_side=True
        )
        self._authority = authority
        self._scheme = "http" if session is None else "https"
        self._failure: str | None = None
        self.plane.out += [frames.PREFACE, self.control_plane.settings(shared), self.plane.opening_window_update()]

    def statistics(self) -> GrpcServerStatistics:
        return self.counters.snapshot()

    async def run(self) -> None:
        """Read until the connection ends."""
        self.pump()
        reason = await self.read_until_end()
        self._end(reason)

    def _end(self, reason: str) -> None:
        self._failure = self._failure or reason
        self.closing = True
        for stream in list(self.plane.streams.values()):
            assert isinstance(stream, Call)
            stream.broken(self._failure)

    async def unary(
        self,
        path: str,
        request: Message,
        reply_type: type[M],
        *,
        metadata: Mapping[str, str | bytes] | None = None,
        timeout: float | None = None,
    ) -> M:
        """One request, one reply."""
        async with self.stream(path, reply_type, metadata=metadata, timeout=timeout) as call:
            await call.send(request)
            await call.end()
            replies: list[M] = [reply async for reply in call]
        if len(replies) != 1:
            raise GRPCError(GrpclibStatus.INTERNAL, f"{len(replies)} replies to a unary call")
        return replies[0]

    @asynccontextmanager
    async def stream(
        self,
        path: str,
        reply_type: type[Any],
        *,
        metadata: Mapping[str, str | bytes] | None = None,
        timeout: float | None = None,
    ) -> AsyncIterator[Call]:
        """A call of any shape; leaving the block cancels what is not over. `timeout` in seconds also goes to the server."""
        await trio.lowlevel.checkpoint()
        if self._failure is not None or self.closing:
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
        call = Call(self.control_plane.next_stream_id(), self, reply_type)
        encoded = [(name.encode(), value.encode()) for name, value in headers]
        self.plane.open(call)
        self.plane.out.append(self.control_plane.send_headers(call.stream_id, encoded, end_stream=False))
        self.pump()
        try:
            if timeout is None:
                yield call
            else:
                with trio.move_on_after(timeout) as scope:
                    yield call
                if scope.cancelled_caught:
                    raise GRPCError(GrpclibStatus.DEADLINE_EXCEEDED, "Deadline exceeded")
        finally:
            self._close_call(call)

    def _close_call(self, call: Call) -> None:
        if call.stream_id in self.plane.streams:
            self.plane.out.append(self.control_plane.reset(call.stream_id, ErrorCode.CANCEL))
            self._forget(call)
            self.pump()

    def _forget(self, call: Call) -> None:
        self.plane.close(call)
        self.dirty.pop(call, None)
        self.control_plane.forget(call.stream_id)

    # Owner of the data plane

    def control(self, kind: int, flags: int, stream_id: int, frame: bytes) -> None:
        if kind == frames.PING:
            if not flags & frames.ACK:
                self.plane.out.append(frames.ping(frame[frames.HEADER_BYTES :], ack=True))
        elif kind == frames.GOAWAY:
            self._goaway(frame)
        elif kind != frames.PRIORITY and kind <= frames.CONTINUATION:
            events = self.control_plane.receive(frame)
            for event in events:
                self._event(event)
            output = self.control_plane.take_output()
            if output:
                self.plane.out.append(output)

    def _goaway(self, frame: bytes) -> None:
        if len(frame) < frames.HEADER_BYTES + 8:
            raise ProtocolViolation(ErrorCode.FRAME_SIZE_ERROR, "frame_size", "malformed GOAWAY")
        last = UINT32.unpack_from(frame, frames.HEADER_BYTES)[0] & frames.STREAM_MASK
        code = UINT32.unpack_from(frame, frames.HEADER_BYTES + 4)[0]
        self._failure = f"GOAWAY {code}: {frame[frames.HEADER_BYTES + 8 :].decode('utf-8', 'replace')}"
        for stream_id, stream in list(self.plane.streams.items()):
            if stream_id > last:
                assert isinstance(stream, Call)
                stream.broken(self._failure)

    def _event(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.RemoteSettingsChanged):
            changed = {int(code): setting.new_value for code, setting in event.changed_settings.items()}
            self.plane.peer_settings(changed.get(4), changed.get(5))
            self.control_plane.settings_changed()
            return
        call = self.plane.streams.get(getattr(event, "stream_id", 0) or 0)
        if not isinstance(call, Call):
            return
        if isinstance(event, (h2.events.ResponseReceived, h2.events.TrailersReceived)):
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in event.headers}
            if isinstance(event, h2.events.ResponseReceived):
                call.headers = headers
                if event.stream_ended is not None:
                    call.trailers = headers
            else:
                call.trailers = headers
        elif isinstance(event, h2.events.StreamEnded):
            call.ended = True
            call.trailers = call.trailers or {"grpc-status": "2", "grpc-message": "stream ended without a status"}
            self.plane.touched.append(call)
        elif isinstance(event, h2.events.StreamReset) and not call.ended:
            call.broken(f"stream reset by the server ({event.error_code!r})")

    def end_of_stream(self, stream: DataStream) -> None:
        """The server ended a call by DATA, without trailers: no gRPC server does."""
        super().end_of_stream(stream)
        assert isinstance(stream, Call)
        stream.trailers = {"grpc-status": "2", "grpc-message": "stream ended without a status"}

    def stream_error(self, stream_id: int, code: ErrorCode, text: str) -> None:
        call = self.plane.streams.get(stream_id)
        if isinstance(call, Call):
            self.plane.out.append(self.control_plane.reset(stream_id, code))
            call.broken(text)


@asynccontextmanager
async def open_channel(
    host: str,
    port: int,
    *,
    tls: ssl.SSLContext | None = None,
    server_hostname: str | None = None,
    limits: GrpcLimits | None = None,
) -> AsyncIterator[Channel]:
    """Connect; the channel's task lives in the block. Raises OSError when there is no connection."""
    sock = await _connect(host, port)
    try:
        session = None
        if tls is not None:
            session = TlsSession(tls, server_hostname=server_hostname or host, server_side=False)
            await session.handshake(sock)
        async with _bare_nursery() as nursery:
            channel = Channel(sock, session, f"{host}:{port}", limits or GrpcLimits(), nursery)
            nursery.start_soon(channel.run)
            try:
                yield channel
            finally:
                channel.closing = True
                nursery.cancel_scope.cancel()
    finally:
        trio.lowlevel.notify_closing(sock)
        sock.close()


@asynccontextmanager
async def _bare_nursery() -> AsyncIterator[trio.Nursery]:
    """A nursery whose block raises as if there were no nursery, so that users can catch GRPCError around a channel."""
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
    # The same kind of socket as on the server's side, taken over from trio's by duplicating its descriptor.
    sock = socket.fromfd(stream.socket.fileno(), stream.socket.family, stream.socket.type)
    await stream.aclose()
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock
