"""What a lane gives the bench: a sans-I/O codec per connection, and the shape of its messages.

A lane that carries protobuf envelopes takes everything from `bench.wire`. One with a faster frame for SEND and DELIVER
(the framed lane will) answers `publication_prefix` and `payload_at` in its own bytes, and scenarios need not know.
"""

from __future__ import annotations

from typing import Protocol


class ClientCodec(Protocol):
    """One connection's bytes; a new one has its opening in `take`. Never touches a socket; never blocks."""

    ended: bool
    """The peer has ended the stream, in whatever way."""

    def status(self) -> str:
        """How the stream ended: "OK", or a status and its text. Slow; for the one who asks why."""
        ...

    def send(self, message: bytes) -> None:
        """Queue one message; it leaves with `take` as soon as the peer's flow control lets it."""
        ...

    def end(self) -> None:
        """Queue the clean end of this side's stream."""
        ...

    def take(self) -> bytes:
        """The bytes to write now, which the caller then owns; b"" when there are none."""
        ...

    def receive(self, data: bytes) -> list[bytes]:
        """The whole messages that `data` completes. Answers to the peer's control frames wait in `take`."""
        ...


class Lane(Protocol):
    """A kind of connection."""

    name: str

    def codec(self, authority: str) -> ClientCodec:
        """A fresh codec for a connection to `authority` ("host:port")."""
        ...

    def publication_prefix(self, topic: str, payload_bytes: int) -> bytes:
        """What makes, with a payload of that many bytes behind it, one message for `ClientCodec.send`."""
        ...

    def payload_at(self, message: bytes) -> int:
        """Where a delivery's payload begins; -1 when the message is no delivery."""
        ...
