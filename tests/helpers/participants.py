"""One scripted participant on any transport of a running gateway.

async with participant("framed", gateway.addresses["framed"], agent("w", "i", "1")) as one:
    await one.send(message)
    answer = await one.next("kv")
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import trio
from wsproto.events import CloseConnection

from aether_trio.cli.options import split_address
from aether_trio.model.errors import Status, StatusError
from aether_trio.wire import framing
from aether_trio.wire.browser import PROTO, Codec
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.grpc_stream import GrpcStream, open_grpc
from tests.transport.framed.harness import Ended, FramedPeer
from tests.transport.websocket.harness import Client, Closed

TRANSPORTS: Final = ("grpc", "framed", "websocket")
PATIENCE_S: Final = 300.0


class Participant:
    """See the module docstring. Raises StatusError for an end with a status."""

    def __init__(self, raw: GrpcStream | _Framed | _WebSocket) -> None:
        self.raw = raw

    async def send(self, message: pb.UpstreamMessage) -> None:
        """Send one message."""
        await self.raw.send(message)

    async def receive(self) -> pb.DownstreamMessage | None:
        """The next message; None for an end with OK."""
        with trio.fail_after(PATIENCE_S):
            return await self.raw.receive()

    async def next(self, case: str) -> pb.DownstreamMessage:
        """The next message of one kind; others pass."""
        while True:
            message = await self.receive()
            assert message is not None, f"the stream ended with OK; no {case} came"
            if message.WhichOneof("payload") == case:
                return message

    async def status(self) -> Status:
        """Let everything pass until the gateway ends the stream; the status."""
        try:
            while await self.receive() is not None:
                pass
        except StatusError as error:
            return error.status
        return Status.OK

    async def leave(self) -> None:
        """End our side."""
        await self.raw.leave()


class _Framed:
    def __init__(self, peer: FramedPeer) -> None:
        self.peer = peer

    async def send(self, message: pb.UpstreamMessage) -> None:
        await self.peer.request(message)

    async def receive(self) -> pb.DownstreamMessage | None:
        while True:
            try:
                event = await self.peer.next(framing.Event)
            except Ended as ended:
                if ended.error is None:
                    return None
                raise StatusError(Status(ended.error.code), ended.error.message) from None
            if isinstance(event, framing.Envelope | framing.Deliver):
                return pb.DownstreamMessage.FromString(event.message)

    async def leave(self) -> None:
        await self.peer.stream.send_eof()


class _WebSocket:
    def __init__(self, client: Client) -> None:
        self.client = client

    async def send(self, message: pb.UpstreamMessage) -> None:
        await self.client.send(message)

    async def receive(self) -> pb.DownstreamMessage | None:
        try:
            return await self.client.receive()
        except Closed as closed:
            if closed.code == 1000:
                return None
            if closed.code < 4100:
                raise
            raise StatusError(Status(closed.code % 100), closed.reason) from None

    async def leave(self) -> None:
        await self.client.send_bytes(self.client.ws.send(CloseConnection(code=1000)))


@asynccontextmanager
async def participant(
    transport: str, address: str, init: pb.UpstreamMessage, *, codec: Codec = PROTO
) -> AsyncIterator[Participant]:
    """Connect and be acknowledged. Raises StatusError for a refusal."""
    host, port = split_address(address)
    if transport == "grpc":
        async with open_grpc(host, port) as stream:
            yield await _opened(stream, init)
    elif transport == "framed":
        peer = FramedPeer(await trio.open_tcp_stream(host, port))
        async with peer.stream:
            await peer.send(framing.ClientHello())
            await peer.next(framing.ServerHello)
            yield await _opened(_Framed(peer), init)
    else:
        async with await trio.open_tcp_stream(host, port) as tcp:
            client = Client(tcp, codec)
            client.answers_pings = True
            await client.upgrade()
            yield await _opened(_WebSocket(client), init)


async def _opened(raw: GrpcStream | _Framed | _WebSocket, init: pb.UpstreamMessage) -> Participant:
    one = Participant(raw)
    await one.send(init)
    first = await one.receive()
    assert first is not None
    assert first.HasField("connection_ack")
    return one
