"""Connects a test to the gateway's session code in memory, without sockets.

    async with open_participant(server, hello) as peer:
        peer.send(pb.UpstreamMessage(...))
        message = await peer.next("kv")

`MemoryLink` is a Link (transport/link.py) whose peer is this process. `paused` makes it a reader
that has stopped; `cut` is a reset; `finish` is a clean end.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol

import trio

from aether_trio.model.errors import Status
from aether_trio.transport.link import FrameSource, HandleNow, Link, LinkBroken, Peer, Upstream
from aether_trio.wire.pb import aether_pb2 as pb

PULL_BYTES = 64 * 1024


class Serves(Protocol):
    """A server of links, such as session/lifecycle.py's SessionServer."""

    async def serve(self, link: Link) -> None:
        """Serve one link until its stream ends."""


class StreamEnded(Exception):
    """The gateway has ended the stream, with a status and a message."""

    def __init__(self, status: Status, message: str) -> None:
        super().__init__(f"{status.name}: {message}")
        self.status = status
        self.message = message


class MemoryLink:
    """Both ends of a stream in memory: a gateway's Link, and `send`/`next` for tests."""

    def __init__(self, metadata: Mapping[str, str] | None = None, *, paused: bool = False) -> None:
        self.peer = Peer("memory:0", "memory", metadata=dict(metadata or {}))
        self._source: FrameSource | None = None
        self._upstream: deque[pb.UpstreamMessage] = deque()
        self._downstream: deque[pb.DownstreamMessage] = deque()
        self._news = trio.Event()
        self._arrived = trio.Event()
        self._finished = False
        self._broken = False
        self._paused = paused
        self.stalled_since: float | None = None  # when frames were left unread first (trio's clock)
        self.ended: StreamEnded | None = None

    # -- the gateway's side ------------------------------------------------------------------------

    async def receive(self, handle_now: HandleNow | None = None) -> Sequence[Upstream]:
        """Return the client's messages; () after its clean end. Raises LinkBroken."""
        await trio.lowlevel.checkpoint()
        while not self._upstream:
            if self._broken:
                raise LinkBroken("cut")
            if self._finished:
                return ()
            self._news = trio.Event()
            await self._news.wait()
        # No checkpoint here, as on a socket: a batch that woke its reader is never lost.
        return self.receive_nowait()

    def receive_nowait(self) -> Sequence[pb.UpstreamMessage]:
        """Return the client's messages that wait."""
        batch = tuple(self._upstream)
        self._upstream.clear()
        return batch

    def accept(self) -> None:
        """Do nothing: no received message counts against a bound here."""

    def attach(self, source: FrameSource) -> None:
        """Take the gateway's frames from `source` from now on."""
        self._source = source
        if self._broken:
            source.cut()

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

    def peer_has_ended(self) -> bool:
        """Whether the client's end was cut."""
        return self._broken

    @property
    def has_input(self) -> bool:
        """Whether the client has sent messages that the gateway has not received."""
        return bool(self._upstream)

    async def round_trip(self) -> None:
        """Return at once: everything sent has arrived."""
        await trio.lowlevel.checkpoint()

    async def close(self, status: Status, message: str = "") -> None:
        """End the stream for the client with a status and a message."""
        if self.ended is None:
            self.kick()
            self.ended = StreamEnded(status, message)
            self._arrived.set()
        await trio.lowlevel.checkpoint()

    # -- the client's side -------------------------------------------------------------------------

    def send(self, *messages: pb.UpstreamMessage) -> None:
        """Send messages to the gateway, as one batch."""
        self._upstream.extend(messages)
        self._news.set()

    def finish(self) -> None:
        """End the client's side of the stream cleanly."""
        self._finished = True
        self._news.set()

    def cut(self) -> None:
        """Break the stream, as a reset of the client's connection does."""
        self._broken = True
        self._news.set()
        if self._source is not None:
            self._source.cut()

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
