"""Serve a client from a script, on a real socket.

async with scripted(body) as (peer, line):     # a client does `body`, and was let in on `line`
    send = await line.next(framing.Send)
    await line.say(framing.Ack(send.seq))
    line = await peer.cut()                    # its next connection
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final, TypeVar

import trio

from aether_trio.client import AgentClient
from aether_trio.wire import framing
from aether_trio.wire.framing import FramedConnection, Side
from aether_trio.wire.pb import aether_pb2 as pb
from tests.client.gateways import agent

E = TypeVar("E")
AGENT_A: Final = partial(agent, specifier="a")


class EndOfLine(AssertionError):
    """The client has ended its side while the test waited for something."""


class Line:
    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.connection = FramedConnection(Side.SERVER)
        self.seen: deque[framing.Event] = deque()
        self.hello: framing.ClientHello | None = None
        self.init: pb.InitConnection | None = None
        self._ended = False

    async def greet(self, hello: framing.ServerHello | None = None) -> None:
        """Read HELLO and init, and answer the HELLO."""
        self.hello = await self.next(framing.ClientHello)
        await self.say(hello or framing.ServerHello(dedup_s=60))
        envelope = await self.next(framing.Envelope)
        self.init = pb.UpstreamMessage.FromString(envelope.message).init

    async def let_in(self, session_id: str = "s1", **fields: object) -> None:
        await self.tell(connection_ack=pb.ConnectionAck(session_id=session_id, **fields))  # type: ignore[arg-type]

    async def say(self, *events: framing.Event) -> None:
        await self.stream.send_all(b"".join(self.connection.send(event) for event in events))

    async def tell(self, **payload: object) -> None:
        message = pb.DownstreamMessage(**payload)  # type: ignore[arg-type]
        await self.say(framing.Envelope(message.SerializeToString()))

    async def next(self, kind: type[E]) -> E:
        """The next event of this kind; those of other kinds before it are dropped."""
        while True:
            while self.seen:
                event = self.seen.popleft()
                if isinstance(event, kind):
                    return event
            await self._read()

    async def asked(self) -> pb.UpstreamMessage:
        return pb.UpstreamMessage.FromString((await self.next(framing.Envelope)).message)

    async def _read(self) -> None:
        data = await self.stream.receive_some()
        if not data:
            raise EndOfLine
        self.seen.extend(self.connection.receive(data))

    async def end(self) -> list[framing.Event]:
        """Read until the client ends its side, end ours, and return what it said."""
        try:
            while not self._ended:
                await self._read()
        except EndOfLine:
            pass
        await self.close()
        return list(self.seen)

    async def close(self) -> None:
        self._ended = True
        await self.stream.aclose()


class Peer:
    """The listener. `address` is a client's."""

    line: Line
    """The latest connection."""

    def __init__(self, listener: trio.SocketListener) -> None:
        self._listener = listener
        self._lines: list[Line] = []
        self._sessions = 0
        host, port = listener.socket.getsockname()[:2]
        self.address = f"aether://{host}:{port}"

    async def knock(self) -> Line:
        """A connection that has said nothing yet."""
        self.line = Line(await self._listener.accept())
        self._lines.append(self.line)
        return self.line

    async def accept(self, hello: framing.ServerHello | None = None) -> Line:
        """A connection that was let in, the n-th one as session "sn"."""
        line = await self.knock()
        await line.greet(hello)
        self._sessions += 1
        await line.let_in(f"s{self._sessions}")
        return line

    async def cut(self, hello: framing.ServerHello | None = None) -> Line:
        """End the latest connection hard, and let the client in on the next one."""
        await self.line.close()
        return await self.accept(hello)

    def drop(self) -> None:
        """Close every connection, so that a failed test leaves no socket to a later one."""
        for line in self._lines:
            line.stream.socket.close()


@asynccontextmanager
async def open_peer() -> AsyncIterator[Peer]:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        peer = Peer(listener)
        try:
            yield peer
        finally:
            peer.drop()


@asynccontextmanager
async def scripted(
    body: Callable[[AgentClient], Awaitable[None]],
    *,
    client: Callable[..., AgentClient] = AGENT_A,
    hello: framing.ServerHello | None = None,
    **options: Any,
) -> AsyncIterator[tuple[Peer, Line]]:
    """Let a client in, which does `body`; serve it until it leaves."""
    async with open_peer() as peer, trio.open_nursery() as nursery:

        async def run() -> None:
            async with client(peer.address, **options) as a:
                await body(a)

        nursery.start_soon(run)
        yield peer, await peer.accept(hello)
        await peer.line.end()


def incoming(payload: bytes, source: str = "ag::w::i::a") -> bytes:
    return pb.DownstreamMessage(msg=pb.IncomingMessage(source_topic=source, payload=payload)).SerializeToString()
