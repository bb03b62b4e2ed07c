"""Serve a client from a script, on WebSocket.

async with scripted_websocket(body) as (peer, line):      # a client does `body`, and was let in
    await line.tell(msg=pb.IncomingMessage(payload=b"x"))
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio
from wsproto import ConnectionType, WSConnection
from wsproto.connection import ConnectionState
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, Event, Ping, Pong, Request

from aether_trio.client import AgentClient
from aether_trio.wire.pb import aether_pb2 as pb
from tests.client.gateways import agent


class WebSocketLine:
    """One connection. `closed` is the client's close frame, once it has come."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.ws = WSConnection(ConnectionType.SERVER)
        self.init = pb.InitConnection()
        self.closed: CloseConnection | None = None
        self._events: deque[Event] = deque()

    async def let_in(self, session_id: str = "s1") -> None:
        """Agree to the upgrade, read init, and answer it."""
        request = await self._event()
        assert isinstance(request, Request)
        await self.stream.send_all(self.ws.send(AcceptConnection(subprotocol=request.subprotocols[0])))
        self.init = (await self.asked()).init
        await self.tell(connection_ack=pb.ConnectionAck(session_id=session_id))

    async def tell(self, **payload: object) -> None:
        message = pb.DownstreamMessage(**payload)  # type: ignore[arg-type]
        await self.say(message.SerializeToString())

    async def say(self, data: bytes, *, finished: bool = True) -> None:
        await self.stream.send_all(self.ws.send(BytesMessage(data=data, message_finished=finished)))

    async def asked(self) -> pb.UpstreamMessage:
        """The next message of the client. Raises trio.EndOfChannel when it has closed."""
        data = b""
        while True:
            event = await self._event()
            if isinstance(event, CloseConnection):
                self.closed = event
                raise trio.EndOfChannel
            assert isinstance(event, BytesMessage)
            data += event.data
            if event.message_finished:
                return pb.UpstreamMessage.FromString(data)

    async def ping(self) -> None:
        """A round trip: the client has read what was sent before."""
        await self.stream.send_all(self.ws.send(Ping()))
        while not isinstance(await self._event(), Pong):
            pass

    async def end(self) -> None:
        """Read until the client closes or cuts, and close."""
        with contextlib.suppress(trio.EndOfChannel, trio.BrokenResourceError):
            while True:
                await self.asked()
        if self.closed is not None and self.ws.state is ConnectionState.REMOTE_CLOSING:
            with contextlib.suppress(trio.BrokenResourceError):
                await self.stream.send_all(self.ws.send(self.closed.response()))
        await self.stream.aclose()

    async def _event(self) -> Event:
        while not self._events:
            data = await self.stream.receive_some()
            self.ws.receive_data(data or None)
            self._events.extend(self.ws.events())
        return self._events.popleft()


class WebSocketPeer:
    """The listener. `address` is a client's."""

    def __init__(self, listener: trio.SocketListener) -> None:
        self._listener = listener
        host, port = listener.socket.getsockname()[:2]
        self.address = f"ws://{host}:{port}"

    async def accept(self, session_id: str = "s1") -> WebSocketLine:
        self.line = WebSocketLine(await self._listener.accept())
        await self.line.let_in(session_id)
        return self.line


@asynccontextmanager
async def scripted_websocket(
    body: Callable[[AgentClient], Awaitable[None]], **options: Any
) -> AsyncIterator[tuple[WebSocketPeer, WebSocketLine]]:
    """Let the agent "a" in, which does `body`; serve it until it leaves."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    with trio.fail_after(300):
        async with listener, trio.open_nursery() as nursery:
            peer = WebSocketPeer(listener)

            async def run() -> None:
                async with agent(peer.address, "a", **options) as a:
                    await body(a)

            nursery.start_soon(run)
            yield peer, await peer.accept()
            await peer.line.end()
