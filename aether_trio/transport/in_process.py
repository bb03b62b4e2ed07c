"""A Link whose client is in the gateway's own process, without a socket.

    link = InProcessLink(Peer(IN_PROCESS, IN_PROCESS, part_of_gateway=True))
    nursery.start_soon(server.serve, link)
    link.send(hello)
    page = await link.deliveries(max_messages=256, max_bytes=MIB)
    link.acknowledge(page[-1])

Deliveries stay in the session's outbox until `deliveries` takes them, so a client that is slow is
served from the log as any other one. Its position moves with `acknowledge` alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import trio

from aether_trio.delivery.outbox_subscription import Delivery
from aether_trio.model.errors import Status
from aether_trio.model.limits import MIB
from aether_trio.transport.link import FrameSource, HandleNow, LinkBroken, Peer, Upstream
from aether_trio.wire.pb import aether_pb2 as pb


class StreamEnded(Exception):
    """The gateway has ended the stream, with a status and a message."""

    def __init__(self, status: Status, message: str) -> None:
        super().__init__(f"{status.name}: {message}")
        self.status = status
        self.message = message


class InProcessLink:
    """Both ends of a stream in this process: a gateway's Link, and its client's side."""

    def __init__(self, peer: Peer, on_control: Callable[[pb.DownstreamMessage], None] = lambda message: None) -> None:
        """`on_control` is called with each answer and signal, in the client's task."""
        self.peer = peer
        self._on_control = on_control
        self._source: FrameSource | None = None
        self._upstream: deque[pb.UpstreamMessage] = deque()
        self._news = trio.Event()
        self._arrived = trio.Event()
        self._finished = False
        self._broken = False
        self.stalled_since: float | None = None  # the session's outbox is the only queue
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
        """Take the gateway's messages from `source` from now on."""
        self._source = source
        if self._broken:
            source.cut()

    def kick(self) -> None:
        """Wake the client, which pulls what there is."""
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

    async def deliveries(self, max_messages: int, max_bytes: int) -> list[Delivery]:
        """Wait for durable messages and take the next ones. Raises StreamEnded at the end."""
        await trio.lowlevel.checkpoint()
        while True:
            self._arrived = trio.Event()
            if self._source is not None:
                for frame in self._source.pull_control(MIB):
                    self._on_control(pb.DownstreamMessage.FromString(frame))
                if self.ended is None and (page := self._take(max_messages, max_bytes)):
                    return page
            if self.ended is not None:
                raise self.ended
            await self._arrived.wait()

    def _take(self, max_messages: int, max_bytes: int) -> list[Delivery]:
        assert self._source is not None
        page = self._source.pull_deliveries(max_bytes, max_messages, flush_is_done=False)
        self._source.flushed()  # the log may fill the outbox again
        return page

    def acknowledge(self, delivery: Delivery) -> None:
        """Move the client's position behind a delivery, and all before it."""
        _, origin, offset = delivery
        if self._source is not None:
            self._source.acknowledged(origin, offset)
