"""Clients of the three transports that begin messages and do not finish them."""

from __future__ import annotations

import struct
import zlib
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import trio

from aether_trio.cli.options import split_address
from aether_trio.gateway import Gateway
from aether_trio.model.errors import Status
from aether_trio.wire import framing
from aether_trio.wire.browser import PROTO
from aether_trio.wire.pb import aether_pb2 as pb
from tests.client.gateways import open_test_gateway
from tests.helpers.rawh2 import RawH2, RawPeer
from tests.transport.framed.harness import FramedPeer
from tests.transport.websocket.harness import Client as WebSocketClient

KIB = 1024
MIB = 1024 * KIB
WAIT_S = 300.0
"""For what must come. A test that waits so long has failed."""
COMPRESSED_HEADERS = (("grpc-encoding", "gzip"),)


@asynccontextmanager
async def gateway_with(**sections: Mapping[str, Any]) -> AsyncIterator[Gateway]:
    """Open a gateway for any kind of principal on every transport, for a limited time."""
    with trio.fail_after(WAIT_S):
        async with open_test_gateway(**sections) as gateway:
            yield gateway


def init_of(name: str, **fields: Any) -> pb.UpstreamMessage:
    identity = pb.AgentIdentity(workspace="w", implementation=name, specifier="1")
    return pb.UpstreamMessage(init=pb.InitConnection(agent=identity, **fields))


def checkpoint_of(size: int) -> bytes:
    """Encode a message of at least `size` bytes, answered with `checkpoint`."""
    operation = pb.CheckpointOperation(op=pb.CheckpointOperation.SAVE, key="k", data=bytes(size), request_id="r")
    return pb.UpstreamMessage(checkpoint_op=operation).SerializeToString()


def gzipped(content: bytes) -> bytes:
    """A gRPC message with its prefix, compressed."""
    packer = zlib.compressobj(9, wbits=31)
    packed = packer.compress(content) + packer.flush()
    return struct.pack(">BI", 1, len(packed)) + packed


class GrpcTalker:
    """One connection; those of the other transports have the same methods."""

    def __init__(self, stream: trio.SocketStream, *, compressed: bool = False) -> None:
        self.peer = RawPeer(stream, RawH2(headers=COMPRESSED_HEADERS if compressed else ()))
        self._waiting: list[pb.DownstreamMessage] = []

    async def greet(self) -> None:
        """Send what precedes the first message of a participant."""

    async def say(self, message: pb.UpstreamMessage) -> None:
        await self.begin(len(content := message.SerializeToString()), content)

    async def begin(self, size: int, content: bytes) -> None:
        """Announce a message of `size` bytes; return when the kernel has its beginning."""
        await self.go_on(struct.pack(">BI", 0, size) + content)

    async def go_on(self, content: bytes) -> None:
        self.peer.h2.send_framed(content)
        await self.peer.flush()
        while self.peer.h2.pending and self.peer.h2.ended is None:
            await self._read()

    async def _read(self) -> None:
        data = await self.peer.stream.receive_some(65_536)
        assert data, "the connection ended without a status"
        self._waiting += [pb.DownstreamMessage.FromString(message) for message in self.peer.h2.feed(data)]
        await self.peer.flush()

    async def answer(self, case: str) -> pb.DownstreamMessage:
        """The next message of this kind, letting others pass."""
        while True:
            while self._waiting:
                message = self._waiting.pop(0)
                if message.WhichOneof("payload") == case:
                    return message
            assert self.peer.h2.ended is None, self.peer.h2.ended
            await self._read()

    async def end(self) -> tuple[Status, str]:
        """How the gateway ended the stream; waits for it."""
        while self.peer.h2.ended is None:
            await self._read()
        return Status(self.peer.h2.ended.status), self.peer.h2.ended.message


class FramedTalker:
    def __init__(self, stream: trio.SocketStream) -> None:
        self.peer = FramedPeer(stream)

    async def greet(self) -> None:
        await self.peer.send(framing.ClientHello())

    async def say(self, message: pb.UpstreamMessage) -> None:
        await self.peer.send(framing.Envelope(message.SerializeToString()))

    async def begin(self, size: int, content: bytes) -> None:
        await self.go_on(struct.pack(">IBB", size, framing.FrameType.ENVELOPE, 0) + content)

    async def go_on(self, content: bytes) -> None:
        await self.peer.send_raw(content)

    async def answer(self, case: str) -> pb.DownstreamMessage:
        return await self.peer.answer(case)

    async def end(self) -> tuple[Status, str]:
        error = await self.peer.until_end()
        assert error is not None
        assert error.retryable
        late = error.code == framing.ErrorCode.TIMEOUT
        return Status.DEADLINE_EXCEEDED if late else Status(error.code), error.message


class WebSocketTalker:
    def __init__(self, stream: trio.SocketStream) -> None:
        self.client = WebSocketClient(stream, PROTO)

    async def greet(self) -> None:
        await self.client.upgrade()

    async def say(self, message: pb.UpstreamMessage) -> None:
        await self.client.send(message)

    async def begin(self, size: int, content: bytes) -> None:
        await self.go_on(b"\x82\xff" + struct.pack(">Q", size) + bytes(4) + content)

    async def go_on(self, content: bytes) -> None:
        await self.client.send_bytes(content)

    async def answer(self, case: str) -> pb.DownstreamMessage:
        return await self.client.next(case)

    async def end(self) -> tuple[Status, str]:
        closed = await self.client.closed()
        assert 4100 <= closed.code < 4200, "it says: connect again"
        return Status(closed.code - 4100), closed.reason


Talker = GrpcTalker | FramedTalker | WebSocketTalker


class Talkers:
    """Opens connections and closes them all at the end."""

    def __init__(self, gateway: Gateway, stack: AsyncExitStack) -> None:
        self._address = split_address(gateway.address)
        self._stack = stack

    async def dial(self, transport: str, *, host: str = "127.0.0.1", compressed: bool = False) -> Talker:
        """Connected and greeted, without a word of the participant's."""
        stream = await trio.open_tcp_stream(*self._address, local_address=host)
        self._stack.callback(stream.socket.close)
        kinds: dict[str, Any] = {"framed": FramedTalker, "websocket": WebSocketTalker}
        talker: Talker = GrpcTalker(stream, compressed=compressed) if transport == "grpc" else kinds[transport](stream)
        await talker.greet()
        return talker

    async def connect(self, transport: str, name: str, **options: Any) -> Talker:
        talker = await self.dial(transport, **options)
        await talker.say(init_of(name))
        await talker.answer("connection_ack")
        return talker


@asynccontextmanager
async def talkers(gateway: Gateway) -> AsyncIterator[Talkers]:
    async with AsyncExitStack() as stack:
        yield Talkers(gateway, stack)
