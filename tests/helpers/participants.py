"""One scripted participant on any transport of a running gateway.

async with participant("framed", gateway.addresses["framed"], agent("w", "i", "1")) as one:
    await one.send(message)
    answer = await one.next("kv")

`connection` opens one that has sent nothing so far.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
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

    async def send(self, *messages: pb.UpstreamMessage) -> None:
        await self.raw.send_bytes(*(message.SerializeToString() for message in messages))

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

    async def end(self, *, until: str = "") -> tuple[Status | int, str]:
        """Let messages pass until the gateway ends the stream, or one of this kind comes.

        Return the end's status, or the transport's code when that is no status, and its text;
        (OK, "") for a message.
        """
        try:
            while (message := await self.receive()) is not None:
                if message.WhichOneof("payload") == until:
                    return Status.OK, ""
        except StatusError as error:
            return error.status, error.message
        except Closed as closed:
            return closed.code, closed.reason
        assert not until, "the stream ended with OK"
        return Status.OK, ""

    async def status(self) -> Status | int:
        """Let everything pass until the gateway ends the stream; the status."""
        return (await self.end())[0]

    async def leave(self) -> None:
        await self.raw.leave()


class _Framed:
    def __init__(self, peer: FramedPeer) -> None:
        self.peer = peer

    async def send_bytes(self, *messages: bytes) -> None:
        for message in messages:
            try:
                data = self.peer.codec.send(framing.Envelope(message))
            except framing.LocalProtocolError:  # which the gateway is to notice itself
                data = framing.encode_envelope(message)
            await self.peer.send_raw(data)

    async def receive(self) -> pb.DownstreamMessage | None:
        while True:
            try:
                event = await self.peer.next(framing.Event)
            except Ended as ended:
                if ended.error is None:
                    return None
                if ended.error.code > max(Status):
                    raise Closed(ended.error.code, ended.error.message) from None
                raise StatusError(Status(ended.error.code), ended.error.message) from None
            if isinstance(event, framing.Envelope | framing.Deliver):
                return pb.DownstreamMessage.FromString(event.message)

    async def leave(self) -> None:
        await self.peer.stream.send_eof()


class _WebSocket:
    def __init__(self, client: Client) -> None:
        self.client = client

    async def send_bytes(self, *messages: bytes) -> None:
        if self.client.codec is not PROTO:
            await self.client.send(*map(pb.UpstreamMessage.FromString, messages))
            return
        await self.client.send_bytes(b"".join(self.client.frame(message) for message in messages))

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
async def connection(
    transport: str,
    address: str,
    *,
    codec: Codec = PROTO,
    tls: ssl.SSLContext | None = None,
    metadata: Mapping[str, str] | None = None,
) -> AsyncIterator[Participant]:
    """Connect, with a first message to follow; `metadata` is gRPC's."""
    host, port = split_address(address)
    if transport == "grpc":
        async with open_grpc(host, port, tls=tls, metadata=metadata) as grpc:
            yield Participant(grpc)
        return
    tcp = await trio.open_tcp_stream(host, port)
    async with tcp if tls is None else trio.SSLStream(tcp, tls, server_hostname=host, https_compatible=True) as stream:
        if transport == "framed":
            peer = FramedPeer(stream)  # type: ignore[arg-type]
            await peer.send(framing.ClientHello())
            await peer.next(framing.ServerHello)
            yield Participant(_Framed(peer))
        else:
            client = Client(stream, codec)
            client.answers_pings = True
            await client.upgrade()
            yield Participant(_WebSocket(client))


@asynccontextmanager
async def participant(
    transport: str, address: str, init: pb.UpstreamMessage, *, codec: Codec = PROTO, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Participant]:
    """Connect and be acknowledged. Raises StatusError for a refusal."""
    async with connection(transport, address, codec=codec, tls=tls) as one:
        await one.send(init)
        first = await one.receive()
        assert first is not None
        assert first.HasField("connection_ack")
        yield one


async def admission(
    transport: str,
    address: str,
    hello: pb.UpstreamMessage | bytes,
    *,
    tls: ssl.SSLContext | None = None,
    metadata: Mapping[str, str] | None = None,
) -> tuple[Status | int, str]:
    """Say hello: OK for an acknowledgement, else the status and text of the refusal."""
    async with connection(transport, address, tls=tls, metadata=metadata) as one:
        with suppress(trio.BrokenResourceError, StatusError):  # the gateway may have read enough
            await one.raw.send_bytes(hello if isinstance(hello, bytes) else hello.SerializeToString())
        return await one.end(until="connection_ack")
