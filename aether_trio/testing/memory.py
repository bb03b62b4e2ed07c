"""Script a client's side of a stream against the session code, without sockets.

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
from aether_trio.transport.link import FrameSource, Link, LinkBroken, Peer
from aether_trio.wire.pb import aether_pb2 as pb

PULL_BYTES = 64 * 1024


class Serves(Protocol):
    """What can serve a link: session/lifecycle.py's SessionServer."""

    async def serve(self, link: Link) -> None:
        """Serve one stream."""
        ...


class StreamEnded(Exception):
    """The gateway has ended the stream."""

    def __init__(self, status: Status, message: str) -> None:
        super().__init__(f"{status.name}: {message}")
        self.status = status
        self.message = message


class MemoryLink:
    """Both ends of a stream: a Link for the gateway, `send`/`next` for the test."""

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
        self._stalled_since: float | None = None
        self.ended: StreamEnded | None = None
        self.pulled_bytes = 0

    # -- the gateway's side ------------------------------------------------------------------------

    async def receive(self) -> Sequence[pb.UpstreamMessage]:
        """See Link."""
        await trio.lowlevel.checkpoint()
        while not self._upstream:
            if self._broken:
                raise LinkBroken("cut")
            if self._finished:
                return ()
            self._news = trio.Event()
            await self._news.wait()
        # No checkpoint here: like a socket's transport, a batch that has woken its reader is handed
        # over though it is cancelled.
        batch = tuple(self._upstream)
        self._upstream.clear()
        return batch

    def accept(self) -> None:
        """See Link. Nothing is bounded here."""

    def attach(self, source: FrameSource) -> None:
        """See Link."""
        self._source = source
        if self._broken:
            source.cut()

    def kick(self) -> None:
        """See Link."""
        source = self._source
        if source is None or self._broken or self.ended is not None:
            return
        if self._paused:
            if self._stalled_since is None:
                self._stalled_since = trio.current_time()
            return
        self._stalled_since = None
        while frames := source.pull(PULL_BYTES):
            for frame in frames:
                self.pulled_bytes += len(frame)
                self._downstream.append(pb.DownstreamMessage.FromString(frame))
        source.flushed()
        self._arrived.set()

    @property
    def stalled_since(self) -> float | None:
        """See Link."""
        return self._stalled_since

    def peer_has_ended(self) -> bool:
        """See Link."""
        return self._broken

    @property
    def has_input(self) -> bool:
        """See Link."""
        return bool(self._upstream)

    async def round_trip(self) -> None:
        """See Link."""
        await trio.lowlevel.checkpoint()

    async def close(self, status: Status, message: str = "") -> None:
        """See Link."""
        if self.ended is None:
            self.kick()
            self.ended = StreamEnded(status, message)
            self._arrived.set()
        await trio.lowlevel.checkpoint()

    # -- the client's side -------------------------------------------------------------------------

    def send(self, *messages: pb.UpstreamMessage) -> None:
        """Give the gateway messages, as one batch."""
        self._upstream.extend(messages)
        self._news.set()

    def finish(self) -> None:
        """End the client's side cleanly."""
        self._finished = True
        self._news.set()

    def cut(self) -> None:
        """Vanish."""
        self._broken = True
        self._news.set()
        if self._source is not None:
            self._source.cut()

    def pause(self) -> None:
        """Stop reading."""
        self._paused = True

    def resume(self) -> None:
        """Read again."""
        self._paused = False
        self.kick()

    async def receive_message(self) -> pb.DownstreamMessage:
        """The next message. Raises StreamEnded behind the last one."""
        while not self._downstream:
            if self.ended is not None:
                raise self.ended
            self._arrived = trio.Event()
            await self._arrived.wait()
        await trio.lowlevel.checkpoint()
        return self._downstream.popleft()

    async def next(self, case: str) -> pb.DownstreamMessage:
        """The next message of one kind, letting others pass. Raises StreamEnded."""
        while True:
            message = await self.receive_message()
            if message.WhichOneof("payload") == case:
                return message

    def waiting(self, case: str) -> list[pb.DownstreamMessage]:
        """Messages of one kind that have arrived and were not taken, without waiting."""
        return [message for message in self._downstream if message.WhichOneof("payload") == case]

    async def wait_end(self) -> StreamEnded:
        """Let everything pass until the gateway ends the stream; how it ended."""
        while True:
            try:
                await self.receive_message()
            except StreamEnded as ended:
                return ended


def agent(workspace: str, implementation: str, specifier: str, **init: Any) -> pb.UpstreamMessage:
    """The InitConnection of an agent."""
    identity = pb.AgentIdentity(workspace=workspace, implementation=implementation, specifier=specifier)
    return pb.UpstreamMessage(init=pb.InitConnection(agent=identity, **init))


def message_to(topic: str, payload: bytes, message_type: pb.MessageType.ValueType = pb.OPAQUE) -> pb.UpstreamMessage:
    """A SendMessage."""
    return pb.UpstreamMessage(send=pb.SendMessage(target_topic=topic, payload=payload, message_type=message_type))


@asynccontextmanager
async def open_participant(
    server: Serves, hello: pb.UpstreamMessage, *, metadata: Mapping[str, str] | None = None, wait_ack: bool = True
) -> AsyncIterator[MemoryLink]:
    """Connect a scripted participant.

    At the end its side finishes cleanly, unless it was cut before.
    """
    link = MemoryLink(metadata)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve, link)
        link.send(hello)
        if wait_ack:
            await link.next("connection_ack")
        yield link
        link.finish()
