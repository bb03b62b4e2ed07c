"""The interface of a transport: a sans-I/O codec, and the shape of its messages.

A transport that carries protobuf envelopes takes everything from `bench.wire`. One with other
frames for messages (the framed transport) answers `publication_prefix` in its own bytes, and hands
on what it receives as the envelopes that its frames stand for. Scenarios need not know.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class ClientCodec(Protocol):
    """One connection's bytes; a new one has its opening in `take`.

    Never touches a socket; never blocks.
    """

    ended: bool
    """The peer has ended the stream, in whatever way."""

    half_closes: bool
    """The end of this side is the socket's FIN, and so is the peer's; otherwise both are bytes."""

    def status(self) -> str:
        """How the stream ended: "OK", or a status and its text.

        Slow; for the one who asks why.
        """
        ...

    def send(self, message: bytes) -> None:
        """Queue one message; `take` gives it when the peer's flow control allows."""
        ...

    def end(self) -> None:
        """Queue the clean end of this side's stream, where that is bytes."""
        ...

    ack_frames: int
    """How many acknowledgements of publications have come; 0 on a transport without them."""

    def unsettled(self) -> int:
        """How many publications the peer has not acknowledged.

        0 on a transport without acknowledgements.
        """
        ...

    def take(self) -> bytes:
        """The bytes to write now, which the caller then owns; b"" when there are none."""
        ...

    def receive(self, data: bytes) -> list[bytes]:
        """The whole messages that `data` completes.

        Answers to the peer's control frames wait in `take`.
        """
        ...


class Transport(Protocol):
    """A kind of connection."""

    name: str

    gateway_args: Sequence[str]
    """What a gateway that is started for this transport is told besides."""

    def codec(self, authority: str) -> ClientCodec:
        """A fresh codec for a connection to `authority` ("host:port")."""
        ...

    def publication_prefix(self, topic: str, payload_bytes: int) -> bytes:
        """What makes, with a payload of that many bytes behind it, one message for
        `ClientCodec.send`.
        """
        ...

    def payload_at(self, message: bytes) -> int:
        """Where a delivery's payload begins; -1 when the message is no delivery."""
        ...
