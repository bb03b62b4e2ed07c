"""The interface between a session and its transport: one client's messages.

The session reads batches of upstream messages and *offers* downstream bytes; it never pushes them.
A transport pulls when its flow-control window and its socket have room, so a slow peer's backlog
stays in one place, the session's outbox, where it is bounded and may be replaced by a catch-up read
from the log.

Invariants: everything here that is not `async` is callable from any task of the same trio run and
never blocks; `kick` may call back into `FrameSource.pull` and `flushed` before it returns; frames
leave in the order pulled; after the link has ended it pulls no more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeAlias

from aether_trio.model.errors import Status
from aether_trio.wire.framing import Send
from aether_trio.wire.pb.aether_pb2 import UpstreamMessage

if TYPE_CHECKING:
    from aether_trio.delivery.origin import Delivery, Origin
    from aether_trio.delivery.outbox import SendReceipts


Upstream: TypeAlias = UpstreamMessage | Send
"""A transport whose protocol has a frame for sends hands them on as they came."""


@dataclass(frozen=True, slots=True)
class PeerCertificate:
    """Names and serial number in a client's verified TLS certificate."""

    common_name: str
    dns_names: tuple[str, ...] = ()
    serial_number: str = ""
    problem: str = ""
    """Why it cannot be a client's, as the end of a sentence; "" when it can."""


@dataclass(frozen=True, slots=True)
class Peer:
    """The client at the other end of a link: address, transport, headers.

    `address` is "host:port"; `transport` is "grpc", "framed", "websocket" or "memory"; `metadata`
    has lower-case keys.
    """

    address: str
    transport: str
    certificate: PeerCertificate | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    publisher: bytes | None = None
    """Whose sequence numbers this client's sends bear, if they bear any that outlast the connection
    (framed transport).
    """


class LinkBroken(Exception):
    """Raised when the peer vanished without ending its stream (reset, protocol error)."""


class FrameSource(Protocol):
    """Supplies the messages that a link sends: the session's side of the link."""

    def pull(self, max_bytes: int) -> list[bytes]:
        """Take the next encoded messages for the client (DownstreamMessage), in order.

        [] when there is nothing to send. Stops once `max_bytes` is reached, so only the last
        message may go beyond it. Never raises.
        """

    def pull_control(self, max_bytes: int) -> list[bytes]:
        """Take the next answers and signals for the client, and no topic messages.

        A transport that tells kinds apart uses these three instead of `pull`.
        """

    def pull_deliveries(
        self, max_bytes: int, max_messages: int | None = None, *, flush_is_done: bool = True
    ) -> list[Delivery]:
        """Take the next durable topic messages, with their subscription and log offset.

        `flush_is_done` false: positions do not move by `flushed`, but by `acknowledged`.
        """

    def pull_ephemeral(self, max_bytes: int) -> list[bytes]:
        """Take the next ephemeral messages for the client, which no log keeps."""

    def acknowledged(self, origin: Origin, offset: int) -> None:
        """Note that the client has processed a message that `pull_deliveries` gave.

        Nothing happens after a detach.
        """

    control_bytes: int
    delivery_bytes: int
    ephemeral_bytes: int
    """What each kind has waiting."""

    receipts: SendReceipts | None
    """What is to be said of this client's numbered sends; None while it has sent none."""

    def flushed(self) -> None:
        """Note that everything pulled so far is with the kernel; called once per burst."""

    def cut(self) -> None:
        """Tell the session that its stream has broken and pulls nothing more.

        A session that waits for room is to look again. A session that waits for its peer to read
        does not call `receive`, so it would not learn it there.
        """

    def failed(self, error: Exception) -> None:
        """Report that writing this source's messages raised an error.

        The source reports it, drops what waits, and has its session end with UNKNOWN. Never raises.
        """


class Link(Protocol):
    """One client's bidirectional message stream, over whatever transport."""

    peer: Peer

    async def receive(self) -> Sequence[Upstream]:
        """Return the client's next messages, at least one; wait until some arrive.

        An empty sequence means that the peer has ended its side cleanly. Raises LinkBroken when the
        stream was cut, and StatusError (INVALID_ARGUMENT, RESOURCE_EXHAUSTED) when the peer sent
        what cannot be decoded or is over the limit. Backpressure: not calling `receive` stops the
        peer.
        """

    def attach(self, source: FrameSource) -> None:
        """Set the source from which the link pulls the messages that it sends.

        Once, before the first `kick`. A broken link cuts its source at once.
        """

    def accept(self) -> None:
        """Allow messages of full length from now on: the client's session is accepted."""

    def kick(self) -> None:
        """Send what the source has, now or when there is room. Cheap to call twice."""

    @property
    def stalled_since(self) -> float | None:
        """The trio time since which pulled bytes wait for the client; None if none do."""

    def peer_has_ended(self) -> bool:
        """Return whether the stream broke or the client ended it, even with unread input.

        Asked about a session that is held up by something else, when its identity is wanted by
        another one.
        """

    @property
    def has_input(self) -> bool:
        """Whether the client has sent something that `receive` has not returned yet."""

    async def round_trip(self) -> None:
        """Wait for all input that the client sent before it was asked to leave.

        The transport bounds the wait in time. For ever on a transport whose peer is told to go,
        finishes what it has begun, and ends its side.
        """

    async def close(self, status: Status, message: str = "") -> None:
        """End the stream with a status, after sending what was pulled already.

        Idempotent; bounded in time by the transport.
        """
