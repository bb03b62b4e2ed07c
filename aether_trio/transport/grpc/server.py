"""The gRPC server: grpclib services on trio.

    server = GrpcServer([gateway, health])
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve, open_tcp_listeners("127.0.0.1", 0))
        ...
        await server.drain(deadline_s=10)

`serve` returns once it has been drained. Invariant: a connection lives in `serve`'s nursery and nowhere else.
"""

from __future__ import annotations

import logging
import random
import socket
import ssl
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Protocol

import trio
from grpclib.const import Handler

from aether_trio.model.errors import Status
from aether_trio.transport.grpc import budgets
from aether_trio.transport.grpc.control import SharedControl
from aether_trio.transport.grpc.limits import GrpcLimits
from aether_trio.transport.grpc.linger import linger
from aether_trio.transport.grpc.rpc import accept_rpc
from aether_trio.transport.grpc.server_connection import ServerConnection
from aether_trio.transport.grpc.statistics import Counters, GrpcServerStatistics
from aether_trio.transport.listener import Acceptor, ListenerStatistics, TcpSettings
from aether_trio.transport.tls import ALPN_H2, TlsSession

log = logging.getLogger(__name__)

_ROUND_TRIP_S: Final = 1.0
"""Waited for the client's word between the two GOAWAYs of a drain."""
_AGE_CHECK_S: Final = 10.0


class Servable(Protocol):
    """A grpclib service: what generated bases implement."""

    def __mapping__(self) -> Mapping[str, Handler]: ...


class GrpcServer:
    """Serves `services` on listening sockets until cancelled or drained."""

    def __init__(
        self,
        services: Iterable[Servable],
        *,
        limits: GrpcLimits | None = None,
        tcp: TcpSettings | None = None,
        tls: ssl.SSLContext | None = None,
        randomness: random.Random | None = None,
    ) -> None:
        self.limits = limits or GrpcLimits()
        self._tcp = tcp or TcpSettings()
        self._tls = tls
        self._random = randomness or random.Random()  # noqa: S311 -- spreads reconnects, protects nothing
        self._handlers: dict[str, Handler] = {}
        for service in services:
            self._handlers.update(service.__mapping__())
        self._allowances = budgets.table(self.limits.allowances)
        self._shared = SharedControl(self.limits, client_side=False)
        self._counters = Counters()
        self._connections: set[ServerConnection] = set()
        self._draining = False
        self._acceptor: Acceptor | None = None
        self._accepting: trio.CancelScope | None = None

    @property
    def connections(self) -> Iterable[ServerConnection]:
        """Those that are open now."""
        return tuple(self._connections)

    def statistics(self) -> GrpcServerStatistics:
        return self._counters.snapshot()

    def listener_statistics(self) -> ListenerStatistics:
        return ListenerStatistics(0, 0, 0, 0) if self._acceptor is None else self._acceptor.statistics()

    async def serve(
        self,
        listeners: Sequence[socket.socket],
        *,
        task_status: trio.TaskStatus[Sequence[socket.socket]] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Accept and serve. Takes over the listeners and closes them."""
        async with trio.open_nursery() as nursery:
            self._acceptor = Acceptor(self.handle, nursery, self._tcp)
            with trio.CancelScope() as self._accepting:
                async with trio.open_nursery() as accepting:
                    accepting.start_soon(self._acceptor.serve, listeners)
                    if self.limits.max_connection_age_s is not None:
                        accepting.start_soon(self._retire_the_old, nursery, self.limits.max_connection_age_s)
                    task_status.started(listeners)

    async def handle(self, sock: socket.socket, address: Any, head: bytes = b"") -> None:
        """Serve one accepted, non-blocking socket to its end. `head` is what somebody has read from it already."""
        counters = self._counters
        counters.connections_open += 1
        counters.connections_total += 1
        try:
            session = None
            if self._tls is not None:
                session = await self._handshake(self._tls, sock, head)
                if session is None:
                    return
                head = session.open(b"")
            await self._serve_connection(sock, address, session, head)
        finally:
            counters.connections_open -= 1

    async def _handshake(self, context: ssl.SSLContext, sock: socket.socket, head: bytes) -> TlsSession | None:
        session = TlsSession(context)
        with trio.move_on_after(self.limits.handshake_timeout_s) as scope:
            try:
                await session.handshake(sock, head)
            except OSError as error:  # ssl.SSLError is one
                log.debug("TLS handshake failed: %s", error)
                self._counters.reject("tls_handshake")
                return None
        if scope.cancelled_caught:
            self._counters.reject("tls_handshake_timeout")
            return None
        if session.alpn not in (ALPN_H2, None):
            self._counters.reject("alpn")
            return None
        return session

    async def _serve_connection(
        self, sock: socket.socket, address: Any, session: TlsSession | None, head: bytes
    ) -> None:
        connection: ServerConnection | None = None
        try:
            async with trio.open_nursery() as nursery:
                connection = ServerConnection(
                    sock,
                    address,
                    session,
                    None if session is None else session.peer_certificate(),
                    self.limits,
                    self._allowances,
                    self._shared,
                    self._counters,
                    nursery,
                    self._accept,
                )
                self._connections.add(connection)
                if self._draining:
                    nursery.start_soon(connection.drain, _ROUND_TRIP_S)
                await connection.serve(head)
        finally:
            if connection is not None:
                self._connections.discard(connection)
                connection.finish()
        if connection.lingering:
            await linger(sock, self.limits.linger_s)

    def _accept(self, connection: ServerConnection, stream_id: int, headers: list[tuple[str, str]]) -> None:
        accept_rpc(self._handlers, connection, stream_id, headers)

    async def drain(self, deadline_s: float) -> None:
        """Stop accepting, say GOAWAY twice, let RPCs end by themselves, and after `deadline_s` end them with UNAVAILABLE."""
        self._draining = True
        if self._accepting is not None:
            self._accepting.cancel()
        with trio.move_on_after(deadline_s) as scope:
            async with trio.open_nursery() as nursery:
                for connection in tuple(self._connections):
                    nursery.start_soon(connection.drain, _ROUND_TRIP_S)
            for connection in tuple(self._connections):
                await connection.wait_ended()
        if scope.cancelled_caught:
            await self._end_rest()

    async def _end_rest(self) -> None:
        for connection in tuple(self._connections):
            connection.evict(Status.UNAVAILABLE, "the server is shutting down")
        for connection in tuple(self._connections):
            await connection.wait_ended()

    async def _retire_the_old(self, nursery: trio.Nursery, max_age_s: float) -> None:
        """Drain connections beyond their age, each with its own tenth of jitter so that clients do not come back at once."""
        ages: dict[ServerConnection, float] = {}
        while True:
            await trio.sleep(min(_AGE_CHECK_S, max_age_s / 10))
            now = trio.current_time()
            ages = {
                connection: ages.get(connection) or max_age_s * self._random.uniform(0.9, 1.1)
                for connection in self._connections
            }
            for connection, age_s in ages.items():
                if now - connection.started > age_s and not connection.draining:
                    nursery.start_soon(self._retire, connection)

    async def _retire(self, connection: ServerConnection) -> None:
        with trio.move_on_after(self.limits.max_connection_age_grace_s) as scope:
            await connection.drain(_ROUND_TRIP_S)
            await connection.wait_ended()
        if scope.cancelled_caught:
            connection.evict(Status.UNAVAILABLE, "the connection has reached its maximal age")
