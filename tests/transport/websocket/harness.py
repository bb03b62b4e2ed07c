"""A real core behind the WebSocket transport, and a client of wsproto."""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import trio
from wsproto import ConnectionType, WSConnection
from wsproto.connection import ConnectionState
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Ping,
    RejectConnection,
    RejectData,
    Request,
    TextMessage,
)

from aether_trio.gateway.core import Core, open_core
from aether_trio.transport.link import Link
from aether_trio.transport.socket.ports import Ports
from aether_trio.transport.socket.tls import TlsFiles
from aether_trio.transport.websocket.server import HttpServer
from aether_trio.wire.browser import CODECS, PROTO, Codec
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import settings_for_tests

WAIT_S = 300.0
"""For whatever must come. A test that waits so long has failed."""


class TransportServer:
    """A WebSocket port; `core` is None when a test's function serves its links."""

    def __init__(self, core: Core | None, server: HttpServer, ports: Ports) -> None:
        self.core = core
        self.server = server
        self.ports = ports
        host, port = ports.address.rsplit(":", 1)
        self.address = (host, int(port))


@asynccontextmanager
async def open_transport(
    serve: Callable[[Link], Awaitable[None]] | None = None,
    *,
    tls: TlsFiles | None = None,
    auth: Mapping[str, Any] | None = None,
    **websocket: Any,
) -> AsyncIterator[TransportServer]:
    """The transport with these settings, in front of a separate core or of `serve`."""
    settings = settings_for_tests(websocket=websocket, auth=auth or {})
    async with AsyncExitStack() as stack:
        core = None
        if serve is None:
            core = await stack.enter_async_context(open_core(settings))
            serve = core.sessions.serve
        nursery = await stack.enter_async_context(trio.open_nursery())
        server = HttpServer(serve, settings.websocket, nursery)
        ports = Ports({"websocket": server}, host="127.0.0.1", port=0, tls=tls)
        await nursery.start(ports.serve)
        yield TransportServer(core, server, ports)
        nursery.cancel_scope.cancel()


class Closed(Exception):
    """The gateway has closed the WebSocket; 1006 when it did not say so."""

    def __init__(self, code: int, reason: str = "") -> None:
        super().__init__(f"{code} {reason}")
        self.code = code
        self.reason = reason


class Rejected(Exception):
    """The upgrade was refused."""

    def __init__(self, status: int, headers: Mapping[str, str], text: str) -> None:
        super().__init__(f"{status} {text}")
        self.status = status
        self.headers = headers
        self.text = text


class Client:
    """One WebSocket. Deadlines are inside: nothing here waits longer than WAIT_S."""

    def __init__(self, stream: trio.abc.Stream, codec: Codec = PROTO) -> None:
        self.stream = stream
        self.codec = codec
        self.ws = WSConnection(ConnectionType.CLIENT)
        self.events: list[Event] = []
        self._part = b""
        self.answers_pings = False

    async def upgrade(self, path: str = "/v1/connect", **options: Any) -> AcceptConnection:
        """Ask for the upgrade. Raises Rejected."""
        options.setdefault("host", "localhost")
        options.setdefault("subprotocols", [self.codec.subprotocol])
        await self.stream.send_all(self.ws.send(Request(target=path, **options)))
        event = await self.next_event()
        if isinstance(event, RejectConnection):
            text = b""
            while event.has_body:
                part = await self.next_event()
                assert isinstance(part, RejectData)
                text += part.data
                if part.body_finished:
                    break
            headers = {name.decode().lower(): value.decode() for name, value in event.headers}
            raise Rejected(event.status_code, headers, text.decode())
        assert isinstance(event, AcceptConnection)
        return event

    async def next_event(self) -> Event:
        """The next event of any kind; Closed(1006) when the connection ends without one."""
        with trio.fail_after(WAIT_S):
            while not self.events:
                try:
                    data = await self.stream.receive_some(65536)
                except trio.BrokenResourceError:
                    data = b""
                if not data:
                    raise Closed(1006)
                self.ws.receive_data(data)
                self.events.extend(self.ws.events())
        return self.events.pop(0)

    async def receive_data(self) -> bytes:
        """The data of the next message. Answers a close frame, and raises Closed."""
        while True:
            event = await self.next_event()
            if isinstance(event, (BytesMessage, TextMessage)):
                assert isinstance(event, TextMessage) is self.codec.text
                self._part += event.data.encode() if isinstance(event, TextMessage) else event.data
                if event.message_finished:
                    data, self._part = self._part, b""
                    return data
            elif isinstance(event, Ping) and self.answers_pings:
                await self.stream.send_all(self.ws.send(event.response()))
            elif isinstance(event, CloseConnection):
                if self.ws.state is ConnectionState.REMOTE_CLOSING:
                    await self.stream.send_all(self.ws.send(event.response()))
                raise Closed(int(event.code), event.reason or "")

    async def receive(self) -> pb.DownstreamMessage:
        return self.codec.decode_downstream(await self.receive_data())

    async def next(self, case: str) -> pb.DownstreamMessage:
        """The next message of one kind, letting others pass."""
        while True:
            message = await self.receive()
            if message.WhichOneof("payload") == case:
                return message

    async def closed(self) -> Closed:
        """Let everything pass until the gateway closes; how it did."""
        while True:
            try:
                await self.receive_data()
            except Closed as closed:
                return closed

    def frames(self, *messages: pb.UpstreamMessage) -> bytes:
        """These messages, as bytes for the socket."""
        return b"".join(self.frame(self.codec.encode_upstream(message)) for message in messages)

    def frame(self, data: bytes, *, finished: bool = True) -> bytes:
        event = (
            TextMessage(data=data.decode(), message_finished=finished)
            if self.codec.text
            else BytesMessage(data=data, message_finished=finished)
        )
        return self.ws.send(event)

    async def send(self, *messages: pb.UpstreamMessage) -> None:
        await self.send_bytes(self.frames(*messages))

    async def send_bytes(self, data: bytes) -> None:
        with trio.fail_after(WAIT_S):
            await self.stream.send_all(data)

    async def ping(self, payload: bytes = b"") -> None:
        await self.send_bytes(self.ws.send(Ping(payload=payload)))

    async def cut(self, *, reset: bool) -> None:
        """End the connection without a close frame."""
        if reset:
            assert isinstance(self.stream, trio.SocketStream)
            self.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        await self.stream.aclose()

    async def close(self, code: int = 1000, reason: str | None = None) -> Closed:
        """Say goodbye; what the gateway answers."""
        await self.send_bytes(self.ws.send(CloseConnection(code=code, reason=reason)))
        return await self.closed()


@asynccontextmanager
async def open_socket(
    transport: TransportServer, codec: Codec | str = PROTO, *, tls: ssl.SSLContext | None = None, **upgrade: Any
) -> AsyncIterator[Client]:
    """An upgraded WebSocket, over TLS if there is a context."""
    chosen = CODECS[codec] if isinstance(codec, str) else codec
    async with await trio.open_tcp_stream(*transport.address) as tcp:
        client = Client(tcp if tls is None else trio.SSLStream(tcp, tls, server_hostname="localhost"), chosen)
        await client.upgrade(**upgrade)
        yield client


@asynccontextmanager
async def open_window(
    transport: TransportServer,
    user_id: str = "ada",
    window_id: str = "w1",
    codec: Codec | str = PROTO,
    *,
    tls: ssl.SSLContext | None = None,
    **init: Any,
) -> AsyncIterator[Client]:
    async with open_socket(transport, codec, tls=tls) as client:
        await client.send(hello(user_id, window_id, **init))
        await client.next("connection_ack")
        yield client


def hello(user_id: str = "ada", window_id: str = "w1", **init: Any) -> pb.UpstreamMessage:
    identity = pb.UserIdentity(user_id=user_id, window_id=window_id)
    return pb.UpstreamMessage(init=pb.InitConnection(user=identity, **init))
