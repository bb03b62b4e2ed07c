"""An accepted connection, and the interface of the transports that serve it.

The Acceptor closes the socket, plain and non-blocking, after the transport's `serve`.
"""

from __future__ import annotations

import socket
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, Final, Protocol

import trio

from aether_trio.transport.link import PeerCertificate
from aether_trio.transport.socket.tls import TlsSession


def address_text(address: Any) -> str:
    """Format a socket address from `accept` or `getpeername` as "host:port"."""
    if not isinstance(address, tuple):
        return "unknown"
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def peer_of(sock: socket.socket) -> str:
    """Return a socket's remote address for logs; "unknown" when the peer has gone."""
    try:
        return address_text(sock.getpeername())
    except OSError:
        return "unknown"


@dataclass(slots=True)
class Accepted:
    """One accepted connection; `head` is what was read already, decrypted."""

    sock: socket.socket
    address: Any
    """As `accept` returned it."""
    tls: TlsSession | None = None
    head: bytes = b""

    @property
    def peer_address(self) -> str:
        """The client's address as "host:port", for people."""
        return address_text(self.address)

    @property
    def certificate(self) -> PeerCertificate | None:
        """The client's verified TLS certificate; None when it showed none."""
        return None if self.tls is None else self.tls.peer_certificate()


_NOTICE_SHARE: Final = 0.9
"""Of a drain's deadline; the rest is for telling remaining clients why they are cut."""


def notice_s(deadline_s: float) -> float:
    """Return the seconds that GOAWAY gives clients in a drain of `deadline_s` seconds."""
    return deadline_s * _NOTICE_SHARE


class TransportServer(Protocol):
    """Protocol: the gateway's server for one transport (gRPC, framed, WebSocket)."""

    def serve(self, accepted: Accepted) -> Coroutine[Any, Any, None]:
        """Serve one connection to its end. Raises nothing but cancellation."""

    async def drain(self, deadline_s: float, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Ask all clients to leave, call `started()`, and cut the rest at `deadline_s`."""
