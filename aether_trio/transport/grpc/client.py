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
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

import h2.events
import trio
from grpclib.const import Status as GrpclibStatus
from grpclib.exceptions import GRPCError
from grpclib.metadata import encode_metadata, encode_timeout

from aether_trio.transport.grpc.call import Call, Message
from aether_trio.transport.http2 import flood_budgets, frames
from aether_trio.transport.http2.connection import Connection
from aether_trio.transport.http2.control import ControlPlane, SharedControl
from aether_trio.transport.http2.data_stream import DataStream
from aether_trio.transport.http2.flood_budgets import Budgets
from aether_trio.transport.http2.frame_checks import parse_goaway
from aether_trio.transport.http2.frames import ErrorCode
from aether_trio.transport.http2.limits import NO_ALLOWANCES, GrpcLimits
from aether_trio.transport.http2.statistics import Counters, GrpcServerStatistics
from aether_trio.transport.link import LinkBroken
from aether_trio.transport.socket.tls import TlsSession

__all__ = ["Call", "Channel", "open_channel"]

USER_AGENT: Final = "grpc-python-aether-trio"
_TABLE: Final = flood_budgets.table(NO_ALLOWANCES)


M = TypeVar("M")


class Channel(Connection):
    """One connection to a server. Made by `open_channel`."""

    __slots__ = ("_authority", "_failure", "_scheme", "control_plane")

    def __init__(
        self, sock: socket.socket, session: TlsSession | None, authority: str, limits: GrpcLimits, nursery: trio.Nursery
    ) -> None:
        shared = SharedControl(limits, client_side=True)
        counters = Counters()
        super().__init__(sock, session, limits, Budgets(_TABLE, trio.current_time), counters, nursery, client_side=True)
        self.control_plane = ControlPlane(shared, client_side=True)
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
            try:
                await call.send(request)
                await call.end()
            except LinkBroken:
                if (
                    not call.ended
                ):  # or the server has answered before it saw that nothing follows, and has reset the rest
                    raise
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
            self._goaway(stream_id, frame)
        elif kind != frames.PRIORITY and kind <= frames.CONTINUATION:
            events = self.control_plane.receive(frame)
            for event in events:
                self._event(event)
            output = self.control_plane.take_output()
            if output:
                self.plane.out.append(output)

    def _goaway(self, stream_id: int, frame: bytes) -> None:
        last, code, debug = parse_goaway(stream_id, frame)
        self._failure = f"GOAWAY {code}: {debug}"
        for call_id, call in list(self.plane.streams.items()):
            if call_id > last:
                assert isinstance(call, Call)
                call.broken(self._failure)

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
        elif isinstance(event, h2.events.StreamReset):
            # After its end it means that nobody reads what we still send (RFC 9113 section 8.1): the status says why.
            call.broken("ended" if call.ended else f"stream reset by the server ({event.error_code!r})")

    def end_of_stream(self, stream: DataStream) -> None:
        """The server ended a call by DATA, without trailers: no gRPC server does."""
        self.control_plane.end_of_stream(stream.stream_id)
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
