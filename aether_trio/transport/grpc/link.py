"""Carries one client's session over a gRPC stream (AetherGateway/Connect)."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from aether_trio.model.errors import Status, StatusError
from aether_trio.model.limits import Limits
from aether_trio.transport.grpc.stream import ServerStream
from aether_trio.transport.link import FrameSource, LinkBroken, Peer
from aether_trio.transport.socket.accepted import address_text
from aether_trio.wire.error_response import shortened
from aether_trio.wire.pb.aether_pb2 import UpstreamMessage
from aether_trio.wire.upstream import decode_upstream


class GrpcLink:
    """Carries one client's session over a gRPC stream, as its Link. Raises LinkBroken."""

    __slots__ = ("_failure", "_stream", "peer")

    def __init__(self, stream: ServerStream) -> None:
        self._stream = stream
        self._failure: StatusError | None = None
        """What `receive` raises, when the messages in front of it have been handled."""
        metadata = {key: value for key, value in stream.metadata.items() if isinstance(value, str)}
        user_agent = stream.user_agent
        if user_agent is not None:
            metadata["user-agent"] = user_agent
        self.peer = Peer(address_text(stream.peer.addr()), "grpc", stream.connection.certificate, metadata)
        stream.drop_scope()
        stream.drop_headers()

    async def receive(self) -> Sequence[UpstreamMessage]:
        if self._failure is not None:
            await trio.lowlevel.checkpoint()
            raise self._failure
        messages = []
        for message in await self._stream.receive_batch():
            try:
                messages.append(decode_upstream(message))
            except StatusError as error:
                if not messages:
                    raise
                self._failure = error
                break
        return messages

    def attach(self, source: FrameSource) -> None:
        self._stream.attach(source)

    def kick(self) -> None:
        self._stream.kick()

    def accept(self) -> None:
        self._stream.accept()

    @property
    def stalled_since(self) -> float | None:
        return self._stream.stalled_since

    def peer_has_ended(self) -> bool:
        """Return whether the client has ended its stream or the stream has broken."""
        return self._stream.peer_has_ended

    @property
    def has_input(self) -> bool:
        return self._stream.has_input

    async def round_trip(self) -> None:
        """Wait until the client has answered the PING that was sent with GOAWAY."""
        await self._stream.connection.wait_round_trip()

    async def close(self, status: Status, message: str = "") -> None:
        """Send pulled messages, then trailers with `status`, within a bounded time."""
        stream = self._stream
        if stream.finished:
            await trio.lowlevel.checkpoint()
            return
        stream.stop_pulling()
        if stream.is_draining:
            with trio.move_on_after(stream.connection.limits.close_timeout_s):
                try:
                    await stream.wait_drained()
                except LinkBroken:
                    return
        else:
            await trio.lowlevel.checkpoint()
        stream.finish(status, shortened(message, Limits.status_text_bytes))
