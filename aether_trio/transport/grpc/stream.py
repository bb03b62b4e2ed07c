"""The server's end of one RPC: what a grpclib-style handler is given, and what our links are built on.

The public coroutines and attributes are those of `grpclib.server.Stream`, so that generated service bases and grpclib's
own reflection service run on it unchanged; `receive_batch`, `source` and `kick` are ours, for the hot path.

One reader and one sender per stream at a time. Every coroutine here is a checkpoint.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping
from typing import TYPE_CHECKING, Any

import trio
from google.protobuf.message import DecodeError
from grpclib.const import Handler
from grpclib.const import Status as GrpclibStatus
from grpclib.exceptions import GRPCError, ProtocolError, StreamTerminatedError
from grpclib.metadata import decode_metadata, encode_metadata

from aether_trio.model.errors import StatusError
from aether_trio.transport.http2 import response_headers
from aether_trio.transport.http2.duplex import DuplexStream
from aether_trio.transport.http2.frames import ErrorCode
from aether_trio.transport.http2.output import BURST_BYTES
from aether_trio.transport.link import FrameSource, LinkBroken, PeerCertificate

if TYPE_CHECKING:
    from multidict import MultiDict

    from aether_trio.transport.http2.server_connection import ServerConnection

MetadataLike = Mapping[str, str | bytes] | Collection[tuple[str, str | bytes]]


class StreamPeer:
    """As `grpclib.protocol.Peer`, plus the verified certificate's content."""

    __slots__ = ("_address", "certificate")

    def __init__(self, address: Any, certificate: PeerCertificate | None) -> None:
        self._address = address
        self.certificate = certificate

    def addr(self) -> Any:
        return self._address

    def cert(self) -> PeerCertificate | None:
        return self.certificate


class ServerStream(DuplexStream):
    """See the module. `handler` says which message types travel; `headers` are the request's, pseudo headers included."""

    __slots__ = (
        "_closing",
        "_initial_sent",
        "_message_sent",
        "connection",
        "deadline",
        "handler",
        "headers",
        "scope",
        "source",
        "stalled_since",
    )

    def __init__(
        self,
        stream_id: int,
        connection: ServerConnection,
        handler: Handler,
        headers: list[tuple[str, str]],
        deadline: float | None,
    ) -> None:
        super().__init__(stream_id)
        self.connection = connection
        self.handler = handler
        self.headers: list[tuple[str, str]] = headers
        self.deadline = deadline
        """trio time, from grpc-timeout."""
        self.scope: trio.CancelScope | None = None
        """Cancelled when the stream breaks; None for a stream whose reader is told by LinkBroken instead."""
        self.source: FrameSource | None = None
        self.stalled_since: float | None = None
        self._closing = False
        self._initial_sent = False
        self._message_sent = False

    @property
    def _wire(self) -> ServerConnection:
        return self.connection

    # What the call is ----------------------------------------------------------------------------------------------

    @property
    def metadata(self) -> MultiDict[Any]:
        """The caller's metadata, without HTTP/2's and gRPC's own headers; `-bin` values are bytes.

        Raises GRPCError for a binary value that is none: the caller's mistake, not the handler's.
        """
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
        """A response of one message that has none yet."""
        return not (self._message_sent or self.handler.cardinality.server_streaming)

    @property
    def answered(self) -> bool:
        """See PumpedStream."""
        return self._initial_sent

    @property
    def has_source(self) -> bool:
        """See PumpedStream."""
        return self.source is not None

    @property
    def is_public(self) -> bool:
        """See PumpedStream: gRPC's own services, health and reflection."""
        return self.path.startswith("/grpc.")

    @property
    def user_agent(self) -> str | None:
        return dict(self.headers).get("user-agent")

    @property
    def peer(self) -> StreamPeer:
        return StreamPeer(self.connection.address, self.connection.certificate)

    # Receiving -----------------------------------------------------------------------------------------------------

    async def recv_message(self) -> Any:
        """The next message, decoded; None once the peer has ended its side. As in grpclib, a cut is StreamTerminatedError.

        Raises GRPCError for what is no such message: the caller's mistake, not the handler's.
        """
        try:
            message = await self.receive_one()
        except LinkBroken as error:
            raise StreamTerminatedError(str(error)) from None
        if message is not None:
            await self.connection.wait_answers_room()
        try:
            return None if message is None else self.handler.request_type.FromString(message)
        except DecodeError:
            name = self.handler.request_type.DESCRIPTOR.full_name
            raise GRPCError(GrpclibStatus.INVALID_ARGUMENT, f"the message is no {name}") from None

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        message = await self.recv_message()
        if message is None:
            raise StopAsyncIteration
        return message

    # Sending -------------------------------------------------------------------------------------------------------

    def start_response(self, metadata: MetadataLike = ()) -> None:
        """Put the response headers into the output; they leave with what follows, or at the next pump."""
        if self._initial_sent:
            raise ProtocolError("Initial metadata was already sent")
        self._initial_sent = True
        block = response_headers.RESPONSE
        if metadata:
            block += response_headers.metadata(encode_metadata(metadata))
        self.connection.send_block(self.stream_id, block, end_stream=False)

    async def send_initial_metadata(self, *, metadata: MetadataLike | None = None) -> None:
        if not self.finished:
            self.start_response(metadata or ())
            self.connection.pump()
        await trio.lowlevel.checkpoint()

    async def send_message(self, message: Any) -> None:
        """Send one message; returns when the windows and the kernel have taken it."""
        if not isinstance(message, self.handler.reply_type):
            raise TypeError(f"Message must be of type {self.handler.reply_type!r}, not {type(message)!r}")
        if self._message_sent and not self.handler.cardinality.server_streaming:
            raise ProtocolError("Message was already sent")
        await self.send_batch([message.SerializeToString()])

    async def send_batch(self, batch: list[bytes]) -> None:
        """Send encoded messages; returns when the windows and the kernel have taken them. Raises LinkBroken."""
        self.check_sendable()
        if not self._initial_sent:
            self.start_response()
        self._message_sent = True
        await self._send_and_wait(batch)

    def stop_pulling(self) -> None:
        """Take nothing more from the source; what was taken still goes."""
        self._closing = True

    def fill(self) -> bool:
        """See PumpedStream: what waits first, then what the source has."""
        plane, source, waited = self.connection.plane, self.source, self.pending
        if not plane.send_pending(self):
            if self.pending is not waited:
                self.moved()
            self.stall()
            return False
        if source is None or self._closing:
            return False
        room = plane.room(self)
        if room <= 0:
            plane.blocked[self] = None
            self.stall()
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
        self.connection.dirty[self] = None
        plane.send(self, batch)
        if self.pending is not None:
            self.stall()
            return False
        # A source stops short of what was asked for only when it has nothing more.
        return sum(map(len, batch)) >= asked

    def stall(self) -> None:
        if self.stalled_since is None:
            self.stalled_since = trio.current_time()

    def moved(self) -> None:
        """See PumpedStream. Its client reads, if slowly."""
        if self.stalled_since is not None:
            self.stalled_since = trio.current_time()

    def drained(self) -> None:
        super().drained()
        if self.source is None:
            self.connection.answers_moved()
        elif not self.finished:
            self.stalled_since = None
            try:
                self.source.flushed()
            except Exception as error:
                self.source.failed(error)

    def kick(self) -> None:
        if not self.finished:
            self.connection.kick(self)

    # Ending --------------------------------------------------------------------------------------------------------

    async def send_trailing_metadata(
        self,
        *,
        status: GrpclibStatus = GrpclibStatus.OK,
        status_message: str | None = None,
        status_details: Any = None,
        metadata: MetadataLike | None = None,
    ) -> None:
        """End the RPC. `status_details` is not supported: it needs googleapis' messages, which Aether does not use."""
        if status_details is not None:
            raise NotImplementedError("status_details needs the googleapis messages")
        if status is GrpclibStatus.OK and self.incomplete:
            raise ProtocolError("Unary response with OK status requires a single message to be sent")
        if self in self.connection.dirty and not self.finished:
            await self.wait_drained()
        else:
            await trio.lowlevel.checkpoint()
        self.finish(status.value, status_message, metadata or ())

    def finish(self, status: int, message: str | None, metadata: MetadataLike = ()) -> None:
        """Trailers, now; a trailers-only response when nothing was sent before. Does nothing on an ended stream."""
        if self.finished:
            return
        self.finished = self._closing = True
        block = response_headers.trailers(status, message)
        if not self._initial_sent:
            block = response_headers.OK + block
        if metadata:
            block += response_headers.metadata(encode_metadata(metadata))
        self.connection.send_block(self.stream_id, block, end_stream=True)
        if not self.ended:
            # The peer may still be sending; tell it that nobody reads (RFC 9113 section 8.1).
            self.connection.reset(self, ErrorCode.NO_ERROR)
        self.connection.closed_locally(self)

    @property
    def awaits_rest(self) -> bool:
        """See unfinished.Receiver. A peer whose window is shut because nobody reads is not slow."""
        return self.reading and self.connection.plane.has_room

    def give_up(self, error: StatusError) -> None:
        """See unfinished.Receiver."""
        self.connection.counters.reject("unfinished_message")
        self.connection.plane.fail(self, error)
        self.wake()

    def evict(self, status: int, message: str) -> None:
        """End the RPC from outside: its caller gets the status, its task finds the stream broken."""
        self.finish(status, message)
        self.broken(f"ended by the server: {message}")

    async def cancel(self) -> None:
        """Reset the stream instead of ending it with a status."""
        if not self.finished:
            self.finished = self._closing = True
            self.connection.reset(self, ErrorCode.CANCEL)
            self.connection.closed_locally(self)
        await trio.lowlevel.checkpoint()

    def broken(self, reason: str) -> None:
        if self.broken_reason is None:
            self._closing = True
            super().broken(reason)
            if self.source is not None:
                self.source.cut()
            if self.scope is not None:
                self.scope.cancel()
