"""A client that sends hand-made bytes over a real socket, and reads the answers."""

from __future__ import annotations

import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeVar

import msgpack
import trio

from aether_trio.wire.framing import Deliver, Event, FrameDecoder, FrameType, ServerHello

E = TypeVar("E", bound=Event)

LIMIT_S = 300
PREFACE = b"\xaeAETHER\x01"
MIB = 1024 * 1024


def frame(kind: int, body: bytes = b"", flags: int = 0) -> bytes:
    return struct.pack(">IBB", len(body), kind, flags) + body


def header(kind: FrameType, size: int) -> bytes:
    """Of a frame whose body does not come."""
    return struct.pack(">IBB", size, kind, 0)


def hello(**keys: object) -> bytes:
    return frame(FrameType.HELLO, msgpack.packb(keys))


def init(specifier: str) -> bytes:
    parts = (b"default", b"adversary", specifier.encode())
    agent = b"".join(bytes((number << 3 | 2, len(part))) + part for number, part in enumerate(parts, 1))
    opening = bytes((0x0A, len(agent))) + agent
    return frame(FrameType.ENVELOPE, bytes((0x0A, len(opening))) + opening)


def send(seq: int, topic: bytes = b"ag::default::adversary::sink", payload: bytes = b"x") -> bytes:
    return frame(FrameType.SEND, struct.pack(">qHHI", seq, 1, len(topic), 0) + topic + payload)


def live(specifier: str = "1", **keys: object) -> bytes:
    return PREFACE + hello(**keys) + init(specifier)


def delivered(channel: int, offset: int) -> bytes:
    return frame(FrameType.DELIVERED, struct.pack(">Iq", channel, offset))


def credit(messages: int, size: int) -> bytes:
    return frame(FrameType.CREDIT, struct.pack(">qq", messages, size))


def ping(number: int) -> bytes:
    return frame(FrameType.PING, struct.pack(">Q", number))


class Adversary:
    """A client without manners: sends what it is told to, and reads events."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self._decoder = FrameDecoder()
        self._events: list[Event] = []

    async def say(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def go_live(self, specifier: str = "1", **keys: object) -> ServerHello:
        """Say HELLO and init; the gateway's HELLO."""
        await self.say(live(specifier, **keys))
        return await self.next(ServerHello)

    async def next(self, kind: type[E]) -> E:
        while True:
            for at, event in enumerate(self._events):
                if isinstance(event, kind):
                    del self._events[: at + 1]
                    return event
            self._events.clear()
            data = await self.stream.receive_some(65536)
            assert data, f"the stream has ended without a {kind.__name__}"
            self._events += self._decoder.receive(data)

    async def end_our_side(self) -> None:
        """FIN. The gateway may have gone already."""
        try:
            await self.stream.send_eof()  # type: ignore[attr-defined]
        except (OSError, trio.BrokenResourceError):
            pass

    async def finish(self) -> None:
        """End our side, and see the gateway's end."""
        await self.end_our_side()
        await self.end()

    async def end(self) -> None:
        """Read to the end of the stream, which must be clean: no reset."""
        while await self.stream.receive_some(65536):
            pass


@asynccontextmanager
async def connected(address: str, context: ssl.SSLContext | None = None) -> AsyncIterator[Adversary]:
    host, _, port = address.rpartition(":")
    with trio.fail_after(LIMIT_S):
        stream: trio.abc.Stream = await trio.open_tcp_stream(host, int(port))
        if context is not None:
            stream = trio.SSLStream(stream, context, server_hostname="localhost", https_compatible=True)
        async with stream:
            yield Adversary(stream)


async def is_well(address: str, context: ssl.SSLContext | None = None) -> None:
    """The gateway lets a client in, commits a message and delivers it."""
    async with connected(address, context) as peer:
        await peer.go_live("well")
        await peer.say(send(1, b"ag::default::adversary::well", b"ping"))
        assert (await peer.next(Deliver)).message.count(b"ping") == 1
        if context is None:
            await peer.finish()
