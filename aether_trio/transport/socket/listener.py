"""Opens TCP listeners and accepts their connections.

Plain non-blocking sockets throughout (http2/connection_io.py says why). Invariant: nothing that a
peer or the kernel's limits do ends the accept loop; only cancellation does.
"""

from __future__ import annotations

import errno
import logging
import math
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import trio

from aether_trio.model.containment import report
from aether_trio.transport.socket.accepted import address_text

log = logging.getLogger(__name__)

_PAUSE_S: Final = 0.1
"""After the process or the system ran out of descriptors or memory."""
_QUIET_S: Final = 60.0
_OUT_OF_RESOURCES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_ACCEPTS_PER_TURN: Final = 64
"""Then the connections that were accepted have theirs."""


@dataclass(frozen=True, slots=True)
class TcpSettings:
    """Options of TCP sockets; by the keepalive values a dead peer is found in 50 s."""

    backlog: int = 1024
    max_connections: int = 100_000
    keepalive_idle_s: int = 20
    keepalive_interval_s: int = 10
    keepalive_probes: int = 3
    user_timeout_ms: int = 30_000
    """Longest time without an acknowledgement (TCP_USER_TIMEOUT); 0: the kernel's."""


@dataclass(frozen=True, slots=True)
class ListenerStatistics:
    accepted: int
    open: int
    refused_over_limit: int
    pauses: int


Handler = Callable[[socket.socket, Any], Awaitable[None]]
"""Serves a socket; given the peer's address as `accept` returns it. The socket is closed after it.
"""

_INHERITS: Final = sys.platform == "linux"
"""Accepted sockets have the listener's options (tcp(7)), which saves six system calls."""


def bind_tcp(host: str | None, port: int, *, reuse_port: bool = False) -> list[socket.socket]:
    """Bind sockets to one port on every address of `host`; port 0 picks a free one.

    `host` None: all interfaces. With `reuse_port` processes of this user share it (SO_REUSEPORT).
    """
    bound: list[socket.socket] = []
    try:
        for family, kind, proto, _, address in socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            try:
                one = socket.socket(family, kind, proto)
            except OSError as error:
                if error.errno == errno.EAFNOSUPPORT:
                    continue  # this machine has no IPv6
                raise
            bound.append(one)
            one.setblocking(False)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if reuse_port:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            if port == 0 and len(bound) > 1:
                address = (address[0], bound[0].getsockname()[1], *address[2:])  # noqa: PLW2901
            one.bind(address)
    except BaseException:
        _close_all(bound)
        raise
    if not bound:
        raise OSError(f"cannot listen on {host!r}: this machine supports none of its kinds of addresses")
    return bound


def open_tcp_listeners(
    host: str | None, port: int, *, backlog: int = 1024, reuse_port: bool = False
) -> list[socket.socket]:
    """Bind sockets to one TCP port as `bind_tcp` does, and listen."""
    listeners = bind_tcp(host, port, reuse_port=reuse_port)
    try:
        for listener in listeners:
            listener.listen(backlog)
    except BaseException:
        _close_all(listeners)
        raise
    return listeners


def _close_all(sockets: list[socket.socket]) -> None:
    for one in sockets:
        one.close()


class Acceptor:
    """Accepts TCP connections and runs a handler task for each in `nursery`."""

    def __init__(self, nursery: trio.Nursery, settings: TcpSettings | None = None) -> None:
        self._nursery = nursery
        self._settings = settings or TcpSettings()
        self._accepted = self._open = self._refused = self._pauses = 0
        self._quiet_until = -math.inf

    def statistics(self) -> ListenerStatistics:
        return ListenerStatistics(self._accepted, self._open, self._refused, self._pauses)

    async def serve(self, listeners: Sequence[socket.socket], handler: Handler) -> None:
        """Accept connections until cancelled, then close the listeners."""
        try:
            async with trio.open_nursery() as nursery:
                for listener in listeners:
                    set_options(listener, self._settings)
                    nursery.start_soon(self._accept_from, listener, handler)
        finally:
            for listener in listeners:
                trio.lowlevel.notify_closing(listener)
                listener.close()

    async def _accept_from(self, listener: socket.socket, handler: Handler) -> None:
        while True:
            await trio.lowlevel.wait_readable(listener)
            for _ in range(_ACCEPTS_PER_TURN):
                try:
                    sock, address = listener.accept()
                except BlockingIOError:
                    break
                except OSError as error:
                    if error.errno in _OUT_OF_RESOURCES:
                        self._pauses += 1
                        self._complain(error)
                        await trio.sleep(_PAUSE_S)
                    # Anything else belongs to the connection that was to be accepted (ECONNABORTED,
                    # EPROTO, ...).
                    break
                self._start(sock, address, handler)

    def _complain(self, error: OSError) -> None:
        """Log that no connection can be accepted, at most once a minute."""
        now = trio.current_time()
        if now >= self._quiet_until:
            self._quiet_until = now + _QUIET_S
            advice = ""
            if error.errno in {errno.EMFILE, errno.ENFILE}:
                advice = " Allow the gateway more open files (ulimit -n, LimitNOFILE=), or fewer clients."
            text = "cannot accept connections beside the %s that are open: %s. New clients wait.%s (said once a minute)"
            log.error(text, self._open, error.strerror, advice)

    def _start(self, sock: socket.socket, address: Any, handler: Handler) -> None:
        if self._open >= self._settings.max_connections:
            self._refused += 1
            sock.close()
            return
        try:
            sock.setblocking(False)
            if not _INHERITS:
                set_options(sock, self._settings)
        except OSError:
            sock.close()  # the peer has gone already
            return
        self._accepted += 1
        self._open += 1
        self._nursery.start_soon(self._run, sock, address, handler)

    async def _run(self, sock: socket.socket, address: Any, handler: Handler) -> None:
        try:
            await handler(sock, address)
        except Exception as error:
            report(error, f"accepted from {address_text(address)}")
        finally:
            self._open -= 1
            # Without notify_closing: only tasks of the handler could wait for this socket, and they
            # have ended.
            sock.close()


def set_options(sock: socket.socket, settings: TcpSettings) -> None:
    """Switch Nagle's algorithm off and TCP keepalive on, unless its idle time is 0."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, settings.keepalive_idle_s > 0)
    for name, value in (
        ("TCP_KEEPIDLE", settings.keepalive_idle_s),
        ("TCP_KEEPINTVL", settings.keepalive_interval_s),
        ("TCP_KEEPCNT", settings.keepalive_probes),
        ("TCP_USER_TIMEOUT", settings.user_timeout_ms),
    ):
        option = getattr(socket, name, None)
        # Not every system has each of them.
        if option is not None and (value or name == "TCP_USER_TIMEOUT"):
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
