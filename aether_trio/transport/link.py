"""The interface between a session and its transport: one client's messages.

The session *offers* downstream bytes; the transport pulls when its window and its socket have room,
so a slow peer's backlog stays in the session's outbox, where it is bounded and may be replaced by
a catch-up read from the log.

Invariants: what is not `async` is callable from any task of the trio run and never blocks; `kick`
may call `FrameSource.pull` and `flushed` before it returns; frames leave in the order pulled; after
the link has ended it pulls no more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

from aether_trio.model.errors import Status
from aether_trio.wire.framing import Send
from aether_trio.wire.pb.aether_pb2 import UpstreamMessage

if TYPE_CHECKING:
    from aether_trio.delivery.outbox import SendReceipts
    from aether_trio.delivery.outbox_subscription import Delivery, Origin


IN_PROCESS: Final = "in-process"
"""The address of a peer that is a part of the gateway: no socket has such an address."""

Upstream: TypeAlias = UpstreamMessage | Send
"""A transport whose protocol has a frame for sends hands them on as they came."""

HandleNow: TypeAlias = Callable[[Sequence[Upstream]], Sequence[Upstream]]
"""Handles messages at the front of a batch without waiting, and returns the others."""


@dataclass(frozen=True, slots=True)
class PeerCertificate:
    """Names, serial number and end of a client's verified TLS certificate."""

    common_name: str
    dns_names: tuple[str, ...] = ()
    serial_number: str = ""
    problem: str = ""
    """Why it cannot be a client's, as the end of a sentence; "" when it can."""
    issuer: bytes = b""
    """The SHA-256 of its issuer's name in DER, as `revocations.py` compares it."""
    not_after_ms: int = 0
    """The Unix time at which it ends."""


@dataclass(frozen=True, slots=True)
class Peer:
    """Names a session's client: address (host:port), transport, lower-case metadata."""

    address: str
    transport: str
    certificate: PeerCertificate | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    publisher: bytes | None = None
    """The owner of its sends' numbers, if they outlast the connection (framed transport)."""
    part_of_gateway: bool = False
    """Whether it is in this process and needs no credential; no socket's peer is."""
    gives_way: bool = False
    """Whether its session ends as soon as a client wants its identity."""


class LinkBroken(Exception):
    """Raised when the peer vanished without ending its stream (reset, protocol error)."""


class FrameSource(Protocol):
    """Protocol: the session as the source of the messages that its transport sends."""

    def pull(self, max_bytes: int) -> list[bytes]:
        """Take the next encoded messages, in order; [] for none. Never raises.

        Stops once `max_bytes` is reached, so only the last message may go beyond it.
        """

    def pull_control(self, max_bytes: int) -> list[bytes]:
        """Take the next answers and signals for the client, and no topic messages."""

    def pull_deliveries(
        self, max_bytes: int, max_messages: int | None = None, *, flush_is_done: bool = True
    ) -> list[Delivery]:
        """Take the next durable topic messages, with their subscription and log offset.

        `flush_is_done` false: positions do not move by `flushed`, but by `acknowledged`.
        """

    def pull_ephemeral(self, max_bytes: int) -> list[bytes]:
        """Take the next ephemeral messages for the client, which no log keeps."""

    def acknowledged(self, origin: Origin, offset: int) -> None:
        """Note that the client processed a pulled delivery; nothing after a detach."""

    control_bytes: int
    delivery_bytes: int
    ephemeral_bytes: int
    """What each kind has waiting."""

    receipts: SendReceipts | None
    """What is to be said of this client's numbered sends; None while it has sent none."""

    def flushed(self) -> None:
        """Note that everything pulled so far is with the kernel; called once per burst."""

    def cut(self) -> None:
        """Tell the session, which may be waiting for room, that its stream has broken."""

    def failed(self, error: Exception) -> None:
        """End the session with UNKNOWN: writing its messages raised `error`. Never raises."""


class Link(Protocol):
    """Protocol: one client's bidirectional message stream, over any transport."""

    peer: Peer

    async def receive(self, handle_now: HandleNow | None = None) -> Sequence[Upstream]:
        """Return the client's next messages; [] once the peer has ended cleanly.

        While the caller waits, messages that come may be handed to `handle_now`, which saves the
        switch to the caller's task; then only those that it returned are returned here. What it
        raises, this raises.

        Raises LinkBroken (cut) and StatusError (a message that is too long or cannot be decoded).
        Not calling `receive` stops the peer.
        """

    def receive_nowait(self) -> Sequence[Upstream]:
        """Return messages that have arrived and been read already; () for none.

        Raises as `receive`. It reads no socket, and says nothing of the peer's end.
        """

    def attach(self, source: FrameSource) -> None:
        """Set, once, the source of messages to send; a broken link cuts it at once."""

    def accept(self) -> None:
        """Allow messages of full length from now on: the client's session is accepted."""

    def kick(self) -> None:
        """Send the source's messages, now or when there is room. Cheap to call twice."""

    @property
    def stalled_since(self) -> float | None:
        """The trio time since which pulled bytes wait for the client; None if none do."""

    def peer_has_ended(self) -> bool:
        """Return whether the stream broke or the client ended it, even with unread input."""

    @property
    def has_input(self) -> bool:
        """Whether the client has sent something that `receive` has not returned yet."""

    async def round_trip(self) -> None:
        """Wait for input sent before the client was asked to leave, or until it has left."""

    async def close(self, status: Status, message: str = "") -> None:
        """Send pulled messages, then the status that ends the stream. Idempotent."""
