"""A stream on each transport without a client library: it sends exact bytes.

async with open_stream(gateway.address, "framed") as stream:
    await stream.send(agent("w", "a", "1"))
    await stream.acknowledged()
    await stream.send(...)
    answer = await stream.receive()              # raises Ended when the gateway ended it
"""

from __future__ import annotations

import abc
import ssl
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final
from unittest import mock

import trio
import wsproto
import wsproto.events as ws
from grpclib.exceptions import GRPCError

from aether_trio.cli.options import split_address
from aether_trio.client.connection.address import WEBSOCKET_PATH
from aether_trio.model.errors import Status
from aether_trio.transport.grpc.client import GrpcCall, open_channel
from aether_trio.wire import framing
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import settings_for_tests

TRANSPORTS: Final = ("grpc", "framed", "websocket")
LIMIT_S: Final = 300.0
ALPN: Final = {"grpc": ["h2"], "framed": [], "websocket": ["http/1.1"]}
"""What a client of a transport offers under TLS."""
_RECONNECT, _STAY_AWAY = 4100, 4200


class Ended(Exception):
    """The gateway has ended the stream.

    `number` is what the transport said when that is no gRPC status.
    """

    def __init__(self, status: Status | None, text: str, number: int = 0) -> None:
        super().__init__(f"{status.name if status is not None else number}: {text}")
        self.status = status
        self.text = text
        self.number = number


class _Raw:
    """Serialized bytes where a message is expected."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def SerializeToString(self) -> bytes:  # noqa: N802  # protobuf's name
        return self._data


class Stream(abc.ABC):
    """See the module docstring."""

    @abc.abstractmethod
    async def send_bytes(self, *messages: bytes) -> None:
        """Send serialized messages."""

    @abc.abstractmethod
    async def receive(self) -> pb.DownstreamMessage:
        """The next message. Raises Ended."""

    @abc.abstractmethod
    async def leave(self) -> None:
        """End our side."""

    async def send(self, *messages: pb.UpstreamMessage) -> None:
        """Send messages."""
        await self.send_bytes(*(message.SerializeToString() for message in messages))

    async def next(self, case: str) -> Any:
        """The payload of the next message of one kind, letting others pass. Raises Ended."""
        while True:
            message = await self.receive()
            if message.WhichOneof("payload") == case:
                return getattr(message, case)

    async def acknowledged(self) -> pb.ConnectionAck:
        """Wait for the acknowledgement. Raises Ended."""
        ack: pb.ConnectionAck = await self.next("connection_ack")
        return ack

    async def ended(self) -> Ended:
        """Let everything pass until the end."""
        while True:
            try:
                await self.receive()
            except Ended as ended:
                return ended


class _Grpc(Stream):
    def __init__(self, call: GrpcCall) -> None:
        self._call = call
        self._waiting: deque[pb.DownstreamMessage] = deque()

    async def send_bytes(self, *messages: bytes) -> None:
        for message in messages:
            try:
                await self._call.send(_Raw(message))
            except GRPCError as error:
                raise Ended(Status(error.status.value), error.message or "") from None

    async def receive(self) -> pb.DownstreamMessage:
        while not self._waiting:
            try:
                batch = await self._call.receive()
            except GRPCError as error:
                raise Ended(Status(error.status.value), error.message or "") from None
            if not batch:
                raise Ended(Status.OK, "")
            self._waiting.extend(batch)
        return self._waiting.popleft()

    async def leave(self) -> None:
        await self._call.end()


class FramedStream(Stream):
    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._connection = framing.FramedConnection(framing.Side.CLIENT)
        self._events: deque[framing.Event] = deque()
        self._greeting = self._connection.send(framing.ClientHello())
        self.nacks: list[framing.Nack] = []
        """Of numbered sends that were refused."""

    async def send_event(self, event: framing.Event) -> None:
        """Send any frame."""
        await self._stream.send_all(self._connection.send(event))

    async def send_bytes(self, *messages: bytes) -> None:
        data, self._greeting = self._greeting, b""
        for message in messages:
            try:
                data += self._connection.send(framing.Envelope(message))
            except framing.LocalProtocolError:  # which the gateway is to notice itself
                data += framing.encode_envelope(message)
        await self._stream.send_all(data)

    async def receive(self) -> pb.DownstreamMessage:
        while True:
            while self._events:
                event = self._events.popleft()
                if isinstance(event, framing.Envelope | framing.Deliver):
                    return pb.DownstreamMessage.FromString(event.message)
                if isinstance(event, framing.Error):
                    status = Status(event.code) if event.code <= max(Status) else None
                    raise Ended(status, event.message, event.code)
                if isinstance(event, framing.Nack):
                    self.nacks.append(event)
            data = await self._stream.receive_some()
            if not data:
                raise Ended(Status.OK, "")
            self._events.extend(self._connection.receive(data))

    async def leave(self) -> None:
        if isinstance(self._stream, trio.SocketStream):
            await self._stream.send_eof()


class _WebSocket(Stream):
    def __init__(self, stream: trio.abc.Stream, host: str) -> None:
        self._stream = stream
        self._connection = wsproto.WSConnection(wsproto.ConnectionType.CLIENT)
        self._host = host
        self._data = bytearray()

    async def upgrade(self) -> None:
        request = ws.Request(host=self._host, target=WEBSOCKET_PATH, subprotocols=["aether.v1.proto"])
        await self._stream.send_all(self._connection.send(request))
        assert isinstance(await self._event(), ws.AcceptConnection)

    async def _event(self) -> ws.Event:
        while True:
            for event in self._connection.events():
                return event
            self._connection.receive_data(await self._stream.receive_some() or None)

    async def send_bytes(self, *messages: bytes) -> None:
        for message in messages:
            await self._stream.send_all(self._connection.send(ws.BytesMessage(message)))

    async def receive(self) -> pb.DownstreamMessage:
        while True:
            event = await self._event()
            if isinstance(event, ws.BytesMessage):
                self._data += event.data
                if event.message_finished:
                    data, self._data = bytes(self._data), bytearray()
                    return pb.DownstreamMessage.FromString(data)
            elif isinstance(event, ws.CloseConnection):
                raise Ended(_status(event.code), event.reason or "", event.code)

    async def leave(self) -> None:
        if self._connection.state is wsproto.ConnectionState.OPEN:
            await self._stream.send_all(self._connection.send(ws.CloseConnection(code=1000)))


def _status(code: int) -> Status | None:
    if code == 1000:
        return Status.OK
    for base in (_STAY_AWAY, _RECONNECT):
        if code >= base:
            return Status(code - base)
    return None


@asynccontextmanager
async def open_stream(
    address: str,
    transport: str,
    *,
    tls: ssl.SSLContext | None = None,
    metadata: Mapping[str, str] | None = None,
    local_host: str | None = None,
) -> AsyncIterator[Stream]:
    """Connect on one transport, from an address of our own.

    At the end our side ends, and the socket is closed.
    """
    host, port = split_address(address)
    dial = partial(trio.open_tcp_stream, local_address=local_host)
    with trio.fail_after(LIMIT_S), mock.patch.object(trio, "open_tcp_stream", dial):
        if transport == "grpc":
            async with (
                open_channel(host, port, tls=tls) as channel,
                channel.stream("/aether.v1.AetherGateway/Connect", pb.DownstreamMessage, metadata=metadata) as call,
            ):
                yield _Grpc(call)
            return
        opened: trio.abc.Stream = await trio.open_tcp_stream(host, port)
        if tls is not None:
            opened = trio.SSLStream(opened, tls, server_hostname=host, https_compatible=True)
        async with opened:
            stream: Stream
            if transport == "framed":
                stream = FramedStream(opened)
            else:
                stream = socket = _WebSocket(opened, address)
                await socket.upgrade()
            yield stream
            await stream.leave()


def gateway_settings(**sections: Mapping[str, Any]) -> Any:
    """Give settings with free ports, no files, and all principals on all transports."""
    defaults: dict[str, dict[str, Any]] = {
        "gateway": {"ephemeral": True, "port": 0},
        "ops": {"enabled": False},
        "websocket": {"principals": ("*",)},
    }
    for name, fields in sections.items():
        defaults[name] = {**defaults.get(name, {}), **fields}
    return settings_for_tests(**defaults)
