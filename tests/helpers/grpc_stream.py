"""One gRPC stream of a participant, over the native client."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

from grpclib.exceptions import GRPCError

from aether_trio.model.errors import Status, StatusError
from aether_trio.transport.grpc.client import GrpcCall, open_channel
from aether_trio.wire.pb import aether_pb2 as pb


class GrpcStream:
    """Messages out and in; raises StatusError when the gateway ends the stream."""

    def __init__(self, call: GrpcCall) -> None:
        self._call = call
        self._waiting: list[pb.DownstreamMessage] = []

    async def send(self, message: pb.UpstreamMessage) -> None:
        await self.send_bytes(message.SerializeToString())

    async def send_bytes(self, *messages: bytes) -> None:
        try:
            await self._call.send_bytes(list(messages))
        except GRPCError as error:
            raise _status(error) from None

    async def receive(self) -> pb.DownstreamMessage | None:
        """The next message; None when the gateway has ended the stream with OK."""
        if not self._waiting:
            try:
                batch: Sequence[pb.DownstreamMessage] = await self._call.receive()
            except GRPCError as error:
                raise _status(error) from None
            if not batch:
                return None
            self._waiting = list(reversed(batch))
        return self._waiting.pop()

    async def leave(self) -> None:
        """End our side, so that the gateway sees a goodbye and not a broken stream."""
        await self._call.end()


def _status(error: GRPCError) -> StatusError:
    return StatusError(Status(error.status.value), error.message or "")


@asynccontextmanager
async def open_grpc(
    host: str, port: int, *, tls: ssl.SSLContext | None = None, metadata: Mapping[str, str] | None = None
) -> AsyncIterator[GrpcStream]:
    async with (
        open_channel(host, port, tls=tls) as channel,
        channel.stream("/aether.v1.AetherGateway/Connect", pb.DownstreamMessage, metadata=metadata) as call,
    ):
        stream = GrpcStream(call)
        yield stream
        await stream.leave()
