"""A core behind the framed transport on real sockets, and a client of the codec."""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import trio

from aether_trio.config import Settings
from aether_trio.gateway.core import Core, open_core
from aether_trio.transport.framed.limits import FramedLimits
from aether_trio.transport.framed.server import FramedServer
from aether_trio.transport.socket.accepted import Accepted
from aether_trio.transport.socket.listener import Acceptor, open_tcp_listeners
from aether_trio.wire import framing
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers import core

E = TypeVar("E", bound=framing.Event)

PATIENCE_S = 300
LIMITS = FramedLimits(dedup_s=600, handshake_timeout_s=PATIENCE_S)


class Ended(Exception):
    """The gateway has ended its side; `error` is its ERROR frame, if it sent one."""

    def __init__(self, error: framing.Error | None) -> None:
        super().__init__(repr(error))
        self.error = error


class FramedPeer:
    """One client. `next` takes events of one kind and keeps the others."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.codec = framing.FramedConnection(framing.Side.CLIENT)
        self._events: deque[framing.Event] = deque()
        self.channels: dict[int, framing.Channel] = {}
        self._ended = False
        self.error: framing.Error | None = None

    async def send(self, *events: framing.Event) -> None:
        await self.stream.send_all(b"".join(self.codec.send(event) for event in events))

    async def send_raw(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def request(self, message: pb.UpstreamMessage) -> None:
        await self.send(framing.Envelope(message.SerializeToString()))

    async def open(self, init: pb.UpstreamMessage, **hello: Any) -> pb.ConnectionAck:
        """HELLO and init in one flight; the ack. Raises Ended."""
        await self.send(framing.ClientHello(**hello), framing.Envelope(init.SerializeToString()))
        await self.next(framing.ServerHello)
        return (await self.answer("connection_ack")).connection_ack

    async def _more(self) -> None:
        if self._ended:
            raise Ended(self.error)
        with trio.fail_after(PATIENCE_S):
            try:
                data = await self.stream.receive_some(65536)
            except trio.BrokenResourceError:
                data = b""
        if not data:
            self._ended = True
            return
        for event in self.codec.receive(data):
            if isinstance(event, framing.Channel):
                self.channels[event.channel] = event
            if isinstance(event, framing.Error):
                self.error = event
            self._events.append(event)

    async def next(self, kind: type[E]) -> E:
        """The next event of this kind. Raises Ended."""
        while True:
            for event in self._events:
                if isinstance(event, kind):
                    self._events.remove(event)
                    return event
            await self._more()

    async def acked(self, seq: int) -> None:
        """Wait until this number, and all before it, are acknowledged."""
        while (await self.next(framing.Ack)).seq < seq:
            pass

    async def answer(self, case: str) -> pb.DownstreamMessage:
        while True:
            message = pb.DownstreamMessage.FromString((await self.next(framing.Envelope)).message)
            if message.WhichOneof("payload") == case:
                return message

    async def delivery(self) -> tuple[framing.Deliver, pb.IncomingMessage]:
        event = await self.next(framing.Deliver)
        return event, pb.DownstreamMessage.FromString(event.message).msg

    async def payload(self) -> bytes:
        return (await self.delivery())[1].payload

    async def until_end(self) -> framing.Error | None:
        """Read to the gateway's end; its ERROR."""
        while not self._ended:
            await self._more()
        return self.error

    async def finish(self) -> None:
        """End our side cleanly, and wait for the gateway's end."""
        await self.stream.send_eof()
        await self.until_end()
        await self.stream.aclose()

    def cut(self) -> None:
        sock = self.stream.socket
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        sock.close()


class TransportServer:
    def __init__(self, core: Core, server: FramedServer, port: int) -> None:
        self.core = core
        self.server = server
        self.port = port
        self.peers: list[FramedPeer] = []

    async def dial(self) -> FramedPeer:
        peer = FramedPeer(await trio.open_tcp_stream("127.0.0.1", self.port))
        self.peers.append(peer)
        return peer

    async def connect(self, init: pb.UpstreamMessage, **hello: Any) -> FramedPeer:
        peer = await self.dial()
        await peer.open(init, **hello)
        return peer


def agent(name: str, **fields: Any) -> pb.UpstreamMessage:
    return core.agent("w", name, "1", **fields)


@asynccontextmanager
async def open_transport(
    settings: Settings | None = None, limits: FramedLimits = LIMITS
) -> AsyncIterator[TransportServer]:
    async with open_core(settings or core.settings_for_tests()) as opened, trio.open_nursery() as nursery:
        server = FramedServer(opened.sessions.serve, limits, nursery)

        async def handle(sock: socket.socket, address: Any) -> None:
            await server.serve(Accepted(sock, address))

        listeners = open_tcp_listeners("127.0.0.1", 0)
        port = listeners[0].getsockname()[1]
        nursery.start_soon(Acceptor(nursery).serve, listeners, handle)
        transport = TransportServer(opened, server, port)
        try:
            yield transport
        finally:
            for peer in transport.peers:
                peer.stream.socket.close()
        nursery.cancel_scope.cancel()
