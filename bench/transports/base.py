"""The base of a transport: a sans-I/O codec, and the shape of its messages.

A transport that carries protobuf envelopes takes everything from `bench.wire`. One with other
frames for messages (the framed transport) answers `publication_prefix` in its own bytes, and hands
on what it receives as the envelopes that its frames stand for. Scenarios need not know.
"""

from __future__ import annotations

from collections.abc import Sequence

from bench import wire


class ClientCodec:
    """A sans-I/O codec of one connection; `take` begins with its opening."""

    __slots__ = ("_out", "ended")

    half_closes = False
    """The end of this side is the socket's FIN, and so is the peer's; otherwise both are bytes."""

    ack_frames = 0
    """How many acknowledgements of publications have come; 0 on a transport without them."""

    def __init__(self, opening: bytes) -> None:
        self._out = [opening]
        self.ended = False
        """The peer has ended the stream, in whatever way."""

    def status(self) -> str:
        """How the stream ended: "OK", or a status and its text; slow."""
        raise NotImplementedError

    def send(self, message: bytes) -> None:
        """Queue one message; `take` gives it when the peer's flow control allows."""
        raise NotImplementedError

    def end(self) -> None:
        """Queue the end of this side's stream, if that is bytes."""

    def unsettled(self) -> int:
        """How many publications have no acknowledgement; 0 on transports without them."""
        return 0

    def take(self) -> bytes:
        """Take the bytes to write now, b"" for none."""
        out = self._out
        if not out:
            return b""
        data = out[0] if len(out) == 1 else b"".join(out)
        out.clear()
        return data

    def receive(self, data: bytes) -> list[bytes]:
        """The messages that `data` completes; answers to control frames are for `take`."""
        raise NotImplementedError


class Transport:
    """How messages are written on one transport, and its codecs."""

    name: str

    gateway_args: Sequence[str] = ()
    """What a gateway that is started for this transport is told besides."""

    def codec(self, authority: str) -> ClientCodec:
        """A codec for a connection to `authority` ("host:port")."""
        raise NotImplementedError

    def publication_prefix(self, topic: str, payload_bytes: int, more: bytes = b"") -> bytes:
        """The bytes of a message in front of its payload, for `ClientCodec.send`.

        `more` are further fields of the SendMessage, encoded.
        """
        return wire.send_prefix(topic, payload_bytes, more)
