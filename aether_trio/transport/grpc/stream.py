"""The server's end of one RPC, with the interface of `grpclib.server.Stream`.

So generated service bases and grpclib's reflection run on it unchanged; `receive_batch`, `attach`
and `kick` are ours, for the hot path. One reader and one sender at a time; every coroutine is a
checkpoint.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import trio
from google.protobuf.message import DecodeError
from grpclib.const import Handler
from grpclib.const import Status as GrpclibStatus
from grpclib.exceptions import GRPCError, ProtocolError, StreamTerminatedError
from grpclib.metadata import decode_metadata, encode_metadata

from aether_trio.transport.grpc import message_encoding, response_headers
from aether_trio.transport.grpc.message_stream import AssemblyBudget, MessageStream
from aether_trio.transport.http2.frames import Http2ErrorCode
from aether_trio.transport.http2.stream import Http2Stream, StreamHandler
from aether_trio.transport.link import FrameSource, LinkBroken, PeerCertificate
from aether_trio.transport.socket.writer import BURST_BYTES

if TYPE_CHECKING:
    from multidict import MultiDict

    from aether_trio.transport.http2.server_connection import ServerConnection

MetadataLike = Mapping[str, str | bytes] | Collection[tuple[str, str | bytes]]


class StreamPeer:
    """The client's address and certificate, with the interface of grpclib's Peer."""

    __slots__ = ("_address", "certificate")

    def __init__(self, address: Any, certificate: PeerCertificate | None) -> None:
        self._address = address
        self.certificate = certificate

    def addr(self) -> Any:
        return self._address

    def cert(self) -> PeerCertificate | None:
        return self.certificate


class ServerStream(StreamHandler):
    """The server's end of one RPC; `headers` include the pseudo headers of HTTP/2."""

    __slots__ = (
        "_closing", "_initial_sent", "_message_sent", "_messages", "_scope", "_source", "_stream", "connection",
        "deadline", "handler", "headers", "stalled_since",
    )  # fmt: skip

    def __init__(
        self,
        stream_id: int,
        connection: ServerConnection,
        budget: AssemblyBudget,
        handler: Handler,
        headers: list[tuple[str, str]],
        *,
        encoding: str = "identity",
        deadline: float | None = None,
    ) -> None:
        self._messages = MessageStream(stream_id, self, connection.wire, budget, encoding=encoding)
        self._stream = self._messages.stream
        self.connection = connection
        self.handler = handler
        self.headers: list[tuple[str, str]] = headers
        self.deadline = deadline
        """trio time, from grpc-timeout."""
        self._scope: trio.CancelScope | None = None
        """Cancelled when the stream breaks; None when its reader gets LinkBroken instead."""
        self.stalled_since: float | None = None
        """trio time since when what it sends waits for room; None when nothing waits."""
        self._source: FrameSource | None = None
        self._closing = False
        self._initial_sent = False
        self._message_sent = False

    @property
    def http2(self) -> Http2Stream:
        """The HTTP/2 stream that carries the RPC."""
        return self._stream

    def scope_until_broken(self) -> trio.CancelScope:
        """Make the RPC task's cancel scope, which ends at the deadline or with the stream."""
        self._scope = trio.CancelScope() if self.deadline is None else trio.CancelScope(deadline=self.deadline)
        return self._scope

    def drop_scope(self) -> None:
        """Stop cancelling the handler when its stream breaks; it sees LinkBroken instead."""
        self._scope = None

    def drop_headers(self) -> None:
        """Drop the request's headers except its path, as an idle stream should be small."""
        self.headers = [(":path", self.path)]

    # What the call is -----------------------------------------------------------------------------

    @property
    def metadata(self) -> MultiDict[Any]:
        """The caller's metadata; `-bin` values are bytes. Raises GRPCError for a bad one."""
        try:
            return decode_metadata(self.headers)
        except ValueError as error:
            raise GRPCError(GrpclibStatus.INTERNAL, f"malformed binary metadata: {error}") from error

    @property
    def path(self) -> str:
        """The method's full name, "/package.Service/Method"."""
        return dict(self.headers).get(":path", "")

    @property
    def incomplete(self) -> bool:
        """Whether a unary response has not been sent yet."""
        return not (self._message_sent or self.handler.cardinality.server_streaming)

    @property
    def answered(self) -> bool:
        """Whether the response headers have been sent."""
        return self._initial_sent

    @property
    def has_source(self) -> bool:
        """Whether the messages to send are pulled from a session."""
        return self._source is not None

    @property
    def is_public(self) -> bool:
        """Whether the call needs no credential: gRPC health and reflection."""
        return self.path.startswith("/grpc.")

    @property
    def finished(self) -> bool:
        """Whether the RPC's status was sent, or its stream broke."""
        return self._stream.finished

    @property
    def broken_reason(self) -> str | None:
        """Why the stream has ended abnormally; None when it has not."""
        return self._stream.broken_reason

    @property
    def peer_has_ended(self) -> bool:
        """Whether the stream has broken, or the client has ended its side."""
        return self._stream.broken_reason is not None or self._stream.ended

    @property
    def has_input(self) -> bool:
        """Whether the client has sent something that was not read."""
        return bool(self._stream.inbox) or bool(self._stream.unread)

    @property
    def user_agent(self) -> str | None:
        return dict(self.headers).get("user-agent")

    @property
    def peer(self) -> StreamPeer:
        return StreamPeer(self.connection.address, self.connection.certificate)

    # Receiving ------------------------------------------------------------------------------------

    def accept(self) -> None:
        """Allow messages of full length from now on: the client's session is accepted."""
        self._messages.accept()
        self.connection.plane.accepts()

    def receive_batch(self, offer: Callable[[], bool] | None = None) -> Awaitable[list[bytes]]:
        """Return the client's next messages, serialized. Await the result at once.

        `offer` is that of MessageStream.receive_batch.
        """
        return self._messages.receive_batch(offer)

    def take_now(self) -> list[bytes]:
        """Take what has come without waiting; [] when a message is to be decompressed."""
        return self._messages.take_now()

    def receive_nowait(self) -> Sequence[bytes]:
        """Return messages that have arrived already, serialized; () for none."""
        return self._messages.receive_nowait()

    async def recv_message(self) -> Any:
        """Return the next decoded message; None at the end. Raises as grpclib's stream."""
        try:
            message = await self._messages.receive_one()
        except LinkBroken as error:
            raise StreamTerminatedError(str(error)) from None
        if message is not None:
            await self.connection.wait_answers_room()
        try:
            return None if message is None else self.handler.request_type.FromString(message)
        except DecodeError:
            name = self.handler.request_type.DESCRIPTOR.full_name
            raise GRPCError(GrpclibStatus.INVALID_ARGUMENT, f"the request cannot be decoded as a {name}") from None

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        message = await self.recv_message()
        if message is None:
            raise StopAsyncIteration
        return message

    # Sending --------------------------------------------------------------------------------------

    def start_response(self, metadata: MetadataLike = ()) -> None:
        """Queue the response headers; they leave with the next bytes sent."""
        if self._initial_sent:
            raise ProtocolError("Initial metadata was already sent")
        self._initial_sent = True
        block = response_headers.RESPONSE
        if metadata:
            block += response_headers.metadata(encode_metadata(metadata))
        self.connection.send_block(self._stream.stream_id, block, end_stream=False)

    async def send_initial_metadata(self, *, metadata: MetadataLike | None = None) -> None:
        if not self._stream.finished:
            self.start_response(metadata or ())
            self.connection.wire.writer.kick()
        await trio.lowlevel.checkpoint()

    async def send_message(self, message: Any) -> None:
        """Send one message; return when flow control and the kernel have taken it."""
        if not isinstance(message, self.handler.reply_type):
            raise TypeError(f"Message must be of type {self.handler.reply_type!r}, not {type(message)!r}")
        if self._message_sent and not self.handler.cardinality.server_streaming:
            raise ProtocolError("Message was already sent")
        await self.send_batch([message.SerializeToString()])

    async def send_batch(self, batch: list[bytes]) -> None:
        """Send serialized messages and wait for the kernel. Raises LinkBroken."""
        self._messages.check_sendable()
        if not self._initial_sent:
            self.start_response()
        self._message_sent = True
        await self._messages.send(batch)

    async def wait_drained(self) -> None:
        """Wait until the kernel has taken all bytes sent so far. Raises LinkBroken."""
        await self._messages.wait_drained()

    @property
    def is_draining(self) -> bool:
        """Whether bytes that were sent have not reached the kernel yet."""
        return self._messages.is_draining

    def attach(self, source: FrameSource) -> None:
        """Set the session's source, from which messages to send are pulled."""
        if self._source is not None:
            raise RuntimeError("attach() was called twice: this link already has a source of messages")
        self._source = source
        if self._stream.broken_reason is not None:
            source.cut()

    def stop_pulling(self) -> None:
        """Pull nothing more from the session; what was pulled is still sent."""
        self._closing = True

    def fill(self) -> bool:
        """Send bytes that waited for the client's window, then the session's messages."""
        stream, wire, source = self._stream, self.connection.wire, self._source
        plane, waited = wire.plane, stream.pending
        if not plane.send_pending(stream):
            if stream.pending is not waited:
                self.on_moved()
            self.on_stall()
            return False
        if source is None or self._closing:
            return False
        room = plane.room(stream)
        if room <= 0:
            plane.blocked[stream] = None
            self.on_stall()
            return False
        asked = min(room, BURST_BYTES)
        try:
            batch = source.pull(asked)
        except Exception as error:
            source.failed(error)  # of this stream, not of the connection that it shares
            return False
        if not batch:
            self.stalled_since = None
            return False
        if not self._initial_sent:
            self.start_response()
        wire.dirty[stream] = None
        plane.send(stream, message_encoding.with_prefixes(batch))
        if stream.pending is not None:
            self.on_stall()
            return False
        # A source stops short of what was asked for only when it has nothing more.
        return sum(map(len, batch)) >= asked

    def on_stall(self) -> None:
        """Note since when bytes wait for the client to make room."""
        if self.stalled_since is None:
            self.stalled_since = trio.current_time()

    def on_moved(self) -> None:
        """Restart the stall clock: the client reads, if slowly."""
        if self.stalled_since is not None:
            self.stalled_since = trio.current_time()

    def on_drained(self) -> None:
        """Tell the session, or a waiting handler, that all bytes have left."""
        if self._source is None:
            self.connection.answers_moved()
        elif not self._stream.finished:
            self.stalled_since = None
            try:
                self._source.flushed()
            except Exception as error:
                self._source.failed(error)

    def kick(self) -> None:
        """Send the session's messages, now or as soon as there is room."""
        if not self._stream.finished:
            self.connection.wire.kick(self._stream)

    # Ending ---------------------------------------------------------------------------------------

    async def send_trailing_metadata(
        self,
        *,
        status: GrpclibStatus = GrpclibStatus.OK,
        status_message: str | None = None,
        status_details: Any = None,
        metadata: MetadataLike | None = None,
    ) -> None:
        """End the RPC with a status and trailing metadata."""
        if status_details is not None:
            raise NotImplementedError("status_details is not supported: it needs the googleapis messages")
        if status is GrpclibStatus.OK and self.incomplete:
            raise ProtocolError("Unary response with OK status requires a single message to be sent")
        if self._messages.is_draining and not self._stream.finished:
            await self._messages.wait_drained()
        else:
            await trio.lowlevel.checkpoint()
        self.finish(status.value, status_message, metadata or ())

    def finish(self, status: int, message: str | None, metadata: MetadataLike = ()) -> None:
        """Send the RPC's status as trailers, with headers if none were sent. Idempotent."""
        if self._stream.finished:
            return
        self._stream.finished = self._closing = True
        block = response_headers.trailers(status, message)
        if not self._initial_sent:
            block = response_headers.OK + block
        if metadata:
            block += response_headers.metadata(encode_metadata(metadata))
        self.connection.send_block(self._stream.stream_id, block, end_stream=True)
        if not self._stream.ended:
            # The peer may still be sending; tell it that the server reads no more (RFC 9113 section
            # 8.1).
            self.connection.reset(self._stream, Http2ErrorCode.NO_ERROR)
        self.connection.closed_locally(self._stream)

    def evict(self, status: int, message: str) -> None:
        """End the RPC with a status for the client; its handler finds the stream broken."""
        self.finish(status, message)
        self._stream.broken(f"ended by the server: {message}")

    async def cancel(self) -> None:
        """Reset the RPC's stream instead of ending it with a status."""
        if not self._stream.finished:
            self._stream.finished = self._closing = True
            self.connection.reset(self._stream, Http2ErrorCode.CANCEL)
            self.connection.closed_locally(self._stream)
        await trio.lowlevel.checkpoint()

    def on_broken(self) -> None:
        """Tell the session and cancel the handler: the RPC's stream has broken."""
        self._closing = True
        if self._source is not None:
            self._source.cut()
        if self._scope is not None:
            self._scope.cancel()

    def release(self) -> None:
        """Drop all received messages: the RPC's task has ended."""
        self._messages.release()
