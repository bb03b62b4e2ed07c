"""The gRPC transport by the bench's HTTP/2 codec, on a gevent socket.

What the gateway sees is the same as from grpcio, one connection and one call for each user; what
the load pays is a tenth.
"""

from __future__ import annotations

from bench.transports.grpc import GrpcTransport
from loadtests.links.base import EOF, OK, Ended, Link, Opening, init_bytes
from loadtests.links.tcp import Tcp

_TRANSPORT = GrpcTransport()


def code_of(status: str) -> str:
    """The name in what `ClientCodec.status` says: OK, a status, or what is left."""
    from aether_trio.model.errors import Status

    words = status.split()
    if words[:2] == ["gRPC", "status"] and words[2].isdigit() and int(words[2]) in set(Status):
        return Status(int(words[2])).name
    return OK if status == OK else (words[0].upper() if words else EOF)


class RawGrpcLink(Link):
    """Nothing is acknowledged."""

    def __init__(self, opening: Opening) -> None:
        super().__init__(opening)
        host = f"[{opening.host}]" if ":" in opening.host else opening.host
        self._codec = _TRANSPORT.codec(f"{host}:{opening.port}")
        self._tcp: Tcp | None = None
        self._early: list[bytes] = []

    def open(self) -> None:
        """See `Link.open`."""
        self._tcp = Tcp(self.opening)
        self.send(init_bytes(self.opening))
        while not self._early:
            self._early = self._some()
        self.greeted(self._early.pop(0))

    def receive(self) -> list[bytes]:
        """See `Link.receive`."""
        if self._early:
            early, self._early = self._early, []
            return early
        while True:
            messages = self._some()
            if messages:
                return messages

    def _some(self) -> list[bytes]:
        assert self._tcp is not None
        codec = self._codec
        if codec.ended:
            status = codec.status()
            raise Ended(code_of(status), status)
        data = self._tcp.receive()
        if not data:
            raise Ended(EOF, "the connection ended without a status")
        messages = codec.receive(data)
        self._flush()
        return messages

    def _flush(self) -> None:
        data = self._codec.take()
        if data and self._tcp is not None:
            self._tcp.send(data)

    def send(self, message: bytes) -> None:
        """See `Link.send`."""
        self._codec.send(message)
        self._flush()

    def leave(self) -> None:
        """See `Link.leave`."""
        self._codec.end()
        self._flush()

    def cut(self) -> None:
        """See `Link.cut`."""
        if self._tcp is not None:
            self._tcp.cut()

    def close(self) -> None:
        """See `Link.close`."""
        if self._tcp is not None:
            self._tcp.close()
