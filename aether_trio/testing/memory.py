"""Connects a test to the gateway's session code in memory, without sockets.

    async with open_participant(server, hello) as peer:
        peer.send(pb.UpstreamMessage(...))
        message = await peer.next("kv")

`MemoryLink` is an InProcessLink (transport/in_process.py) that reads at once what the gateway
sends. `paused` makes it a reader that has stopped; `cut` is a reset; `finish` is a clean end.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Protocol

import trio

from aether_trio.transport.in_process import InProcessLink, StreamEnded
from aether_trio.transport.link import Link, Peer
from aether_trio.wire.pb import aether_pb2 as pb

__all__ = ["MemoryLink", "Serves", "StreamEnded", "agent", "message_to", "open_participant"]

PULL_BYTES = 64 * 1024


class Serves(Protocol):
    """A server of links, such as session/lifecycle.py's SessionServer."""

    async def serve(self, link: Link) -> None:
        """Serve one link until its stream ends."""


class MemoryLink(InProcessLink):
    """Both ends of a stream in memory: a gateway's Link, and `send`/`next` for tests."""

    def __init__(self, metadata: Mapping[str, str] | None = None, *, paused: bool = False) -> None:
        super().__init__(Peer("memory:0", "memory", metadata=dict(metadata or {})))
        self._downstream: deque[pb.DownstreamMessage] = deque()
        self._paused = paused

    def kick(self) -> None:
        """Pull the gateway's frames and decode them for the client, unless paused."""
        source = self._source
        if source is None or self._broken or self.ended is not None:
            return
        if self._paused:
            if self.stalled_since is None:
                self.stalled_since = trio.current_time()
            return
        self.stalled_since = None
        while frames := source.pull(PULL_BYTES):
            self._downstream.extend(pb.DownstreamMessage.FromString(frame) for frame in frames)
        source.flushed()
        self._arrived.set()

    def pause(self) -> None:
        """Let the client stop reading what the gateway sends."""
        self._paused = True

    def resume(self) -> None:
        """Let the client read again."""
        self._paused = False
        self.kick()

    async def receive_message(self) -> pb.DownstreamMessage:
        """Return the gateway's next message. Raises StreamEnded after the last."""
        while not self._downstream:
            if self.ended is not None:
                raise self.ended
            self._arrived = trio.Event()
            await self._arrived.wait()
        await trio.lowlevel.checkpoint()
        return self._downstream.popleft()

    async def next(self, case: str) -> pb.DownstreamMessage:
        """Return the next message of one kind, dropping others. Raises StreamEnded."""
        while True:
            message = await self.receive_message()
            if message.WhichOneof("payload") == case:
                return message

    def waiting(self, case: str) -> list[pb.DownstreamMessage]:
        """Return the received messages of one kind that were not taken yet."""
        return [message for message in self._downstream if message.WhichOneof("payload") == case]

    async def wait_end(self) -> StreamEnded:
        """Drop the gateway's messages until it ends the stream; return how it ended."""
        while True:
            try:
                await self.receive_message()
            except StreamEnded as ended:
                return ended


def agent(workspace: str, implementation: str, specifier: str, **init: Any) -> pb.UpstreamMessage:
    """Return the InitConnection of an agent; `init` are its other fields."""
    identity = pb.AgentIdentity(workspace=workspace, implementation=implementation, specifier=specifier)
    return pb.UpstreamMessage(init=pb.InitConnection(agent=identity, **init))


def message_to(topic: str, payload: bytes, message_type: pb.MessageType.ValueType = pb.OPAQUE) -> pb.UpstreamMessage:
    """Return a SendMessage to a topic."""
    return pb.UpstreamMessage(send=pb.SendMessage(target_topic=topic, payload=payload, message_type=message_type))


@asynccontextmanager
async def open_participant(
    server: Serves, hello: pb.UpstreamMessage, *, metadata: Mapping[str, str] | None = None, wait_ack: bool = True
) -> AsyncIterator[MemoryLink]:
    """Connect a scripted client in memory; its side finishes cleanly at exit."""
    link = MemoryLink(metadata)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve, link)
        link.send(hello)
        if wait_ack:
            await link.next("connection_ack")
        yield link
        link.finish()
