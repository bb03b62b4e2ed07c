"""The gRPC server: grpclib services on trio.

    server = GrpcServer([Gateway(), health])
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(server.serve, open_tcp_listeners("127.0.0.1", 0))
        ...
        await server.drain(deadline_s=10)
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import trio
from grpclib.const import Handler

from aether_trio.transport.grpc import budgets
from aether_trio.transport.grpc.control import SharedControl
from aether_trio.transport.grpc.limits import GrpcLimits
from aether_trio.transport.grpc.rpc import accept_rpc
from aether_trio.transport.grpc.server_connection import ServerConnection
from aether_trio.transport.grpc.statistics import Counters, GrpcServerStatistics
from aether_trio.transport.listener import Acceptor, TcpSettings


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
    ) -> None:
        self.limits = limits or GrpcLimits()
        self._tcp = tcp or TcpSettings()
        self._handlers: dict[str, Handler] = {}
        for service in services:
            self._handlers.update(service.__mapping__())
        self._allowances = budgets.table(self.limits.allowances)
        self._shared = SharedControl(self.limits, client_side=False)
        self._counters = Counters()
        self._connections: set[ServerConnection] = set()

    def statistics(self) -> GrpcServerStatistics:
        return self._counters.snapshot()

    async def serve(
        self,
        listeners: Sequence[socket.socket],
        *,
        task_status: trio.TaskStatus[Sequence[socket.socket]] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        async with trio.open_nursery() as nursery:
            acceptor = Acceptor(self.handle, nursery, self._tcp)
            nursery.start_soon(acceptor.serve, listeners)
            task_status.started(listeners)

    async def handle(self, sock: socket.socket, head: bytes = b"") -> None:
        """Serve one accepted, non-blocking socket; `head` is what somebody has read from it already."""
        counters = self._counters
        counters.connections_open += 1
        counters.connections_total += 1
        try:
            async with trio.open_nursery() as nursery:
                connection = ServerConnection(
                    sock, None, None, self.limits, self._allowances, self._shared, counters, nursery, self._accept
                )
                self._connections.add(connection)
                await connection.serve(head)
        finally:
            counters.connections_open -= 1
            self._connections.discard(connection)

    def _accept(self, connection: ServerConnection, stream_id: int, headers: list[tuple[bytes, bytes]]) -> None:
        accept_rpc(self._handlers, connection, stream_id, headers)
