"""The gateway's gRPC server: runs grpclib services on trio.

Invariant: a connection lives in the task that called `serve` for it, and nowhere else.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from typing import Final, Protocol

import trio
from grpclib.const import Handler

from aether_trio.model.containment import alone
from aether_trio.model.errors import Status
from aether_trio.transport.grpc.decompression import DecompressionTurns
from aether_trio.transport.grpc.limits import GrpcLimits
from aether_trio.transport.grpc.message_stream import AssemblyBudget
from aether_trio.transport.grpc.rpc import RpcAcceptor
from aether_trio.transport.http2 import flood_budgets
from aether_trio.transport.http2.h2_engine import SharedH2State
from aether_trio.transport.http2.server_connection import ServerConnection
from aether_trio.transport.http2.statistics import Http2Counters, Http2Statistics
from aether_trio.transport.socket.accepted import Accepted
from aether_trio.transport.socket.linger import linger
from aether_trio.transport.socket.unfinished_input import UnfinishedInput

_ROUND_TRIP_S: Final = 1.0
"""Waited for the client's word between the two GOAWAYs of a drain."""
_PUBLIC_S: Final = 1.0
"""What calls of the health and reflection services have after the second GOAWAY."""
_GOING: Final = "the server is shutting down"
_AGE_CHECK_S: Final = 10.0


class Servable(Protocol):
    """Protocol: a grpclib service, as generated base classes implement it."""

    def __mapping__(self) -> Mapping[str, Handler]: ...


class GrpcServer:
    """Serves gRPC services; `unfinished` bounds unfinished messages of all transports."""

    def __init__(
        self,
        services: Iterable[Servable],
        *,
        limits: GrpcLimits | None = None,
        randomness: random.Random | None = None,
        unfinished: UnfinishedInput | None = None,
    ) -> None:
        self.limits = limits or GrpcLimits()
        self._random = randomness or random.Random()  # noqa: S311 -- spreads reconnects, protects nothing
        self._handlers: dict[str, Handler] = {}
        for service in services:
            self._handlers.update(service.__mapping__())
        self._allowances = flood_budgets.allowance_table(self.limits.allowances)
        self._shared = SharedH2State(self.limits, client_side=False)
        self._counters = Http2Counters()
        self._connections: set[ServerConnection] = set()
        self._draining = False
        self._unfinished = unfinished or UnfinishedInput()
        self._turns = DecompressionTurns()

    @property
    def connections(self) -> Iterable[ServerConnection]:
        """The gRPC connections that are open now."""
        return tuple(self._connections)

    def statistics(self) -> Http2Statistics:
        return self._counters.snapshot()

    async def serve(self, accepted: Accepted) -> None:
        """Serve one gRPC connection to its end."""
        counters = self._counters
        counters.connections_open += 1
        counters.connections_total += 1
        connection: ServerConnection | None = None
        try:
            async with trio.open_nursery() as nursery:
                account = self._unfinished.account(accepted.address)
                accept = RpcAcceptor(self._handlers, AssemblyBudget(self.limits, account, self._turns))
                connection = ServerConnection(
                    accepted, self.limits, self._allowances, self._shared, counters, nursery, accept
                )
                self._connections.add(connection)
                if self._draining:
                    # Nothing of its is under way.
                    nursery.start_soon(alone, connection.who, connection.drain, 0.0)
                await connection.serve(accepted)
        finally:
            if connection is not None:
                self._connections.discard(connection)
                connection.finish()
            counters.connections_open -= 1
        if connection.lingering:
            await linger(accepted.sock, self.limits.linger_s)

    async def drain(self, deadline_s: float, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Send GOAWAY twice and wait for the RPCs; end the rest after `deadline_s`."""
        self._draining = True
        for count, connection in enumerate(tuple(self._connections)):
            connection.ask_to_leave()
            if count % 64 == 63:
                await trio.lowlevel.checkpoint()
        task_status.started()
        with trio.move_on_after(deadline_s) as scope:
            async with trio.open_nursery() as nursery:
                for connection in tuple(self._connections):
                    nursery.start_soon(alone, connection.who, connection.drain, _ROUND_TRIP_S)
            await self._end_public()
            for connection in tuple(self._connections):
                await connection.wait_ended()
        if scope.cancelled_caught:
            await self._cut_rest()

    async def _end_public(self) -> None:
        """End the health and reflection calls, whose clients decide how long they last."""
        if any(connection.has_public for connection in self._connections):
            await trio.sleep(_PUBLIC_S)
            for connection in tuple(self._connections):
                connection.evict_public(Status.UNAVAILABLE, _GOING)

    async def _cut_rest(self) -> None:
        """End all RPCs with UNAVAILABLE, without waiting for clients that do not read."""
        for connection in tuple(self._connections):
            connection.evict(Status.UNAVAILABLE, _GOING)
            connection.cut()
        for connection in tuple(self._connections):
            await connection.wait_ended()

    async def retire_the_old(self) -> None:
        """Drain connections older than `max_connection_age_s`, in a loop until cancelled.

        Each has an age between 0.9 and 1.1 times that, so that clients do not come back at once.
        """
        max_age_s = self.limits.max_connection_age_s
        if max_age_s is None:
            return
        ages: dict[ServerConnection, float] = {}
        async with trio.open_nursery() as nursery:
            while True:
                await trio.sleep(min(_AGE_CHECK_S, max_age_s / 10))
                now = trio.current_time()
                ages = {
                    connection: ages.get(connection) or max_age_s * self._random.uniform(0.9, 1.1)
                    for connection in self._connections
                }
                for connection, age_s in ages.items():
                    if now - connection.started > age_s and not connection.draining:
                        nursery.start_soon(alone, connection.who, self._retire, connection)

    async def _retire(self, connection: ServerConnection) -> None:
        with trio.move_on_after(self.limits.max_connection_age_grace_s) as scope:
            await connection.drain(_ROUND_TRIP_S)
            await connection.wait_ended()
        if scope.cancelled_caught:
            connection.evict(Status.UNAVAILABLE, "the connection has reached its maximal age")
