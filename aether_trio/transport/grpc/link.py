"""Carries one client's session over a gRPC stream (AetherGateway/Connect)."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from aether_trio.model.errors import Status, StatusError
from aether_trio.model.limits import Limits
from aether_trio.transport.grpc.stream import ServerStream
from aether_trio.transport.link import FrameSource, HandleNow, LinkBroken, Peer, Upstream
from aether_trio.transport.socket.accepted import address_text
from aether_trio.wire.error_response import shortened
from aether_trio.wire.pb.aether_pb2 import UpstreamMessage
from aether_trio.wire.upstream import decode_upstream


class GrpcLink:
    """Carries one client's session over a gRPC stream, as its Link. Raises LinkBroken."""

    __slots__ = ("_failure", "_handle_now", "_rest", "_stream", "peer")

    def __init__(self, stream: ServerStream) -> None:
        self._stream = stream
        self._failure: Exception | None = None
        """What `receive` raises, when the messages in front of it have been handled."""
        self._handle_now: HandleNow | None = None
        self._rest: Sequence[Upstream] = ()
        """What `_handle_now` has left for the reader that it wakes."""
        metadata = {key: value for key, value in stream.metadata.items() if isinstance(value, str)}
        user_agent = stream.user_agent
        if user_agent is not None:
            metadata["user-agent"] = user_agent
        self.peer = Peer(address_text(stream.peer.addr()), "grpc", stream.connection.certificate, metadata)
        stream.drop_scope()
        stream.drop_headers()

    async def receive(self, handle_now: HandleNow | None = None) -> Sequence[Upstream]:
        if self._failure is not None:
            await trio.lowlevel.checkpoint()
            raise self._failure
        self._handle_now = handle_now
        try:
            encoded = await self._stream.receive_batch(None if handle_now is None else self._offer)
        except (StatusError, LinkBroken):
            if not self._rest:
                raise
            encoded = []  # the next call raises it
        rest, self._rest = self._rest, ()
        messages = [*rest, *self._decode(encoded)]
        if not messages and self._failure is not None:
            raise self._failure
        return messages

    def _decode(self, encoded: Sequence[bytes]) -> list[UpstreamMessage]:
        """Decode messages up to the first bad one, whose error becomes `_failure`."""
        messages: list[UpstreamMessage] = []
        if self._failure is None:
            for message in encoded:
                try:
                    messages.append(decode_upstream(message))
                except StatusError as error:
                    self._failure = error
                    break
        return messages

    def _offer(self) -> bool:
        """Handle messages that have come, if possible; return whether `receive` wakes."""
        assert self._handle_now is not None
        try:
            messages = self._decode(self._stream.take_now())
            if messages:
                self._rest = self._handle_now(messages)
        except Exception as error:
            self._failure = error
        return bool(self._rest) or self._failure is not None

    def receive_nowait(self) -> Sequence[UpstreamMessage]:
        """Return messages that have arrived already, up to a bad one."""
        return self._decode(self._stream.receive_nowait())

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
        # What `_offer` has taken, and the task in `receive` has not got yet, is not handled.
        return bool(self._rest) or self._stream.has_input

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
