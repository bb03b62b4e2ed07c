"""Serves several transports on one port: ends TLS and detects the protocol.

Under TLS the ALPN answer decides, without one of ours the first plain bytes. What is no transport
of this port gets a short error in its own language. Invariants: before a transport is chosen one
deadline and bounded bytes; after that the port costs nothing, as the transport serves in its task.
"""

from __future__ import annotations

import logging
import socket
import ssl
from collections import Counter
from collections.abc import Collection, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Final

import trio

from aether_trio.transport.socket import first_bytes
from aether_trio.transport.socket.accepted import Accepted, TransportServer
from aether_trio.transport.socket.linger import linger
from aether_trio.transport.socket.tls import TlsSession
from aether_trio.transport.socket.tls_failures import TlsFailures, handshake_problem

log = logging.getLogger(__name__)

_READ_BYTES: Final = 64 * 1024
_LINGER_S: Final = 1.0
"""Reading on after an error, so that the kernel does not replace it with a reset."""


@dataclass(frozen=True, slots=True)
class PortStatistics:
    """Counts of a port's connections: undecided now, and ever chosen or rejected.

    `chosen` counts by transport, `rejects` by reason: silent, timeout, truncated (ended within the
    first word), unknown (protocol), transport_off, tls_unexpected, tls_missing, tls_handshake,
    tls_records (after the handshake: broken, or without data).
    """

    undecided: int
    chosen: Mapping[str, int]
    rejects: Mapping[str, int]


class _ConnectionRefused(Exception):
    """Raised when a connection cannot be served; `text`, if any, tells the client why."""

    def __init__(self, reason: str, text: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.text = text


class Port:
    """Picks a transport by a connection's first bytes; `tls` None: a plaintext port."""

    def __init__(
        self,
        transports: Mapping[str, TransportServer],
        *,
        tls: ssl.SSLContext | None = None,
        first_bytes_timeout_s: float = 10.0,
    ) -> None:
        if not transports:
            raise ValueError("a port was made without any transport; give it one at least")
        self._transports = dict(transports)
        self.transports = tuple(transports)
        """The names of the transports that the port serves."""
        self._tls = tls
        self._timeout_s = first_bytes_timeout_s
        self._speaks = first_bytes.speaks(list(self._transports), tls=tls is not None)
        self._by_alpn = {first_bytes.ALPN[name]: name for name in self._transports}
        self._chosen = Counter(dict.fromkeys(self._transports, 0))
        self._rejects: Counter[str] = Counter()
        self._undecided = 0
        self._failures = TlsFailures()

    def use_tls(self, context: ssl.SSLContext) -> None:
        """Serve new connections of a TLS port with another context."""
        assert self._tls is not None
        self._tls = context

    def statistics(self) -> PortStatistics:
        return PortStatistics(self._undecided, dict(self._chosen), dict(self._rejects))

    def serve(self, sock: socket.socket, address: Any) -> Coroutine[Any, Any, None]:
        """Detect the transport of one accepted socket and serve the socket to its end."""
        # Not a coroutine, which would keep 0.25 KiB for as long as the connection lasts.
        accepted = Accepted(sock, address)
        transport = self._at_once(accepted)
        return self._serve_undecided(accepted) if transport is None else transport.serve(accepted)

    async def _serve_undecided(self, accepted: Accepted) -> None:
        transport = await self._decide(accepted)
        if transport is not None:
            await transport.serve(accepted)

    def _at_once(self, accepted: Accepted) -> TransportServer | None:
        try:
            accepted.head = accepted.sock.recv(_READ_BYTES)
        except OSError:
            return None  # nothing yet; or the next look finds the end
        if self._tls is not None:
            return None
        name = first_bytes.transport_of(accepted.head)
        return self._transport(name) if name in self._transports else None

    def _transport(self, name: str) -> TransportServer:
        self._chosen[name] += 1
        return self._transports[name]

    async def _decide(self, accepted: Accepted) -> TransportServer | None:
        """Return the connection's transport; None when the connection was refused."""
        self._undecided += 1
        try:
            with trio.fail_after(self._timeout_s):
                if self._tls is not None and (transport := await self._end_tls(accepted, self._tls)) is not None:
                    return transport
                return await self._look(accepted)
        except trio.TooSlowError:
            self._rejects["timeout"] += 1
        except _ConnectionRefused as refused:
            self._rejects[refused.reason] += 1
            await self._say(accepted, refused.text)
        except OSError as error:  # ssl.SSLError is one
            log.debug("connection ended before its first bytes: %s", error)
            self._rejects["silent" if accepted.tls is None and not accepted.head else "truncated"] += 1
        finally:
            self._undecided -= 1
        return None

    async def _end_tls(self, accepted: Accepted, context: ssl.SSLContext) -> TransportServer | None:
        """Do the TLS handshake; return the transport if the client's ALPN names it."""
        if not accepted.head:
            accepted.head = await _receive(accepted.sock)
        if not accepted.head:
            raise _ConnectionRefused("silent")
        if accepted.head[0] != first_bytes.TLS_HANDSHAKE:
            self._failures.tell(accepted.sock, "the client does not speak TLS, which this port requires")
            raise _ConnectionRefused("tls_missing", f"TLS is required here: {self._speaks}")
        session = TlsSession(context)
        try:
            await session.handshake(accepted.sock, accepted.head)
        except OSError as error:
            self._failures.tell(accepted.sock, handshake_problem(error))
            raise _ConnectionRefused("tls_handshake") from error
        accepted.tls = session
        accepted.head = session.open(b"")
        name = None if session.alpn is None else self._by_alpn.get(session.alpn)
        return None if name is None else self._transport(name)

    async def _look(self, accepted: Accepted) -> TransportServer:
        """Read until the client's first bytes show which transport it speaks."""
        while True:
            head = accepted.head
            name = first_bytes.transport_of(head)
            if name is not None:
                if name not in self._transports:
                    raise _ConnectionRefused(
                        "transport_off", f"the client's protocol is not spoken here: {self._speaks}"
                    )
                return self._transport(name)
            if not first_bytes.may_become_one(head):
                if accepted.tls is None and head[0] == first_bytes.TLS_HANDSHAKE:
                    self._failures.tell(accepted.sock, "the client began TLS, and this port is without TLS")
                    raise _ConnectionRefused(
                        "tls_unexpected", f"the client began TLS, but there is no TLS here: {self._speaks}, without TLS"
                    )
                raise _ConnectionRefused("unknown", f"the first bytes are not understood: {self._speaks}")
            data = b"" if accepted.tls is not None and accepted.tls.ended else await _receive(accepted.sock)
            if not data and not head:
                raise _ConnectionRefused("silent")
            if not data:
                raise _ConnectionRefused("truncated", f"the connection ended too early: {self._speaks}")
            if accepted.tls is not None:
                try:
                    data = accepted.tls.open(data)
                except ssl.SSLError as error:
                    raise _ConnectionRefused("tls_records") from error
            accepted.head = head + data

    async def _say(self, accepted: Accepted, text: str) -> None:
        try:
            if text:
                answer = first_bytes.refusal(accepted.head, text)
                accepted.sock.send(answer if accepted.tls is None else accepted.tls.seal(answer))
        except OSError:
            return  # it has gone
        await linger(accepted.sock, _LINGER_S)


def alpn_of(transports: Collection[str]) -> list[str]:
    """Return the ALPN protocols that a TLS port with these transports offers."""
    return [protocol for transport, protocol in first_bytes.ALPN.items() if transport in transports]


async def _receive(sock: socket.socket) -> bytes:
    while True:
        await trio.lowlevel.wait_readable(sock)
        try:
            return sock.recv(_READ_BYTES)
        except BlockingIOError:
            pass
