"""The client's end of one RPC."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import trio
from grpclib.const import Status as GrpclibStatus
from grpclib.exceptions import GRPCError
from grpclib.metadata import decode_grpc_message

from aether_trio.model.errors import StatusError
from aether_trio.transport.http2.duplex import DuplexStream
from aether_trio.transport.link import LinkBroken

if TYPE_CHECKING:
    from aether_trio.transport.grpc.client import Channel


class Message(Protocol):
    """A protobuf message class, seen from here."""

    def SerializeToString(self) -> bytes: ...  # noqa: N802


class Call(DuplexStream):
    """One RPC. One reader and one sender at a time."""

    __slots__ = ("_channel", "_decode", "headers", "trailers")

    def __init__(self, stream_id: int, channel: Channel, reply_type: Any) -> None:
        super().__init__(stream_id)
        self._channel = channel
        self._decode = reply_type.FromString
        self.headers: dict[str, str] = {}
        self.trailers: dict[str, str] = {}

    @property
    def _wire(self) -> Channel:
        return self._channel

    def fill(self) -> bool:
        self._channel.plane.send_pending(self)
        return False

    async def send(self, *messages: Message) -> None:
        """Send; returns when the peer's windows and the kernel have taken it all."""
        await self.send_bytes([message.SerializeToString() for message in messages])

    async def send_bytes(self, batch: list[bytes]) -> None:
        """As `send`, encoded. Raises GRPCError when the server has ended the call, LinkBroken when it broke."""
        if self.ended:
            await trio.lowlevel.checkpoint()
            self._raise_for_status()
            raise LinkBroken("the server has ended the call")
        self.check_sendable()
        try:
            await self._send_and_wait(batch)
        except LinkBroken:
            self._raise_if_over()
            raise

    async def end(self) -> None:
        """Say that nothing more will be sent."""
        await trio.lowlevel.checkpoint()
        if not self.finished and not self.ended:
            self.finished = True
            self._channel.plane.out.append(self._channel.control_plane.end_stream(self.stream_id))
            self._channel.pump()

    async def receive_bytes(self) -> Sequence[bytes]:
        """The messages that have arrived, at least one; [] after status OK. Raises GRPCError for any other status."""
        try:
            batch = await self.receive_batch()
        except StatusError as error:
            raise GRPCError(GrpclibStatus(int(error.status)), error.message) from None
        except LinkBroken:
            if not self.ended:
                raise
            batch = []  # the server said how it ended before the connection broke
        if not batch:
            self._raise_for_status()
        return batch

    async def receive(self) -> list[Any]:
        """As `receive_bytes`, decoded."""
        return [self._decode(message) for message in await self.receive_bytes()]

    async def __aiter__(self) -> AsyncIterator[Any]:
        while batch := await self.receive():
            for message in batch:
                yield message

    def _raise_if_over(self) -> None:
        if self.ended:
            self._raise_for_status()

    def _raise_for_status(self) -> None:
        http_status = self.headers.get(":status", "200")
        try:
            status = GrpclibStatus(int(self.trailers.get("grpc-status", "2")))
        except ValueError:
            status = GrpclibStatus.UNKNOWN
        if status is not GrpclibStatus.OK:
            message = decode_grpc_message(self.trailers.get("grpc-message", f"HTTP status {http_status}"))
            raise GRPCError(status, message)
