"""Opens a gateway: its core (core.py), its transports, its ports and the ops port.

Order of opening, and backwards at the end: data directory (locked against a second gateway) ->
databases -> log and its tasks -> sessions and services -> transports -> ports -> ops port.

A drain loses nothing: no client is accepted, each transport asks clients to go, their last requests
are served, sessions end with UNAVAILABLE so that they resume elsewhere, then the log commits what
was appended.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

import structlog
import trio

from aether_trio.config import Settings
from aether_trio.gateway import limits, metrics
from aether_trio.gateway.core import Core, open_core
from aether_trio.gateway.reload import SettingsReload
from aether_trio.services.tasks.handlers.dead_letters import DeadLetters
from aether_trio.telemetry.loop_lag import measure_loop_lag
from aether_trio.telemetry.ops import serve_ops
from aether_trio.transport.framed.server import FramedServer
from aether_trio.transport.grpc.health import SERVING, GrpcHealth
from aether_trio.transport.grpc.link import GrpcLink
from aether_trio.transport.grpc.reflection import with_reflection
from aether_trio.transport.grpc.rpc import told_when_broken
from aether_trio.transport.grpc.server import GrpcServer, Servable
from aether_trio.transport.grpc.stream import ServerStream
from aether_trio.transport.link import Link
from aether_trio.transport.socket.accepted import TransportServer, notice_s
from aether_trio.transport.socket.ports import Ports
from aether_trio.transport.socket.unfinished_input import UnfinishedInput
from aether_trio.transport.websocket.server import HttpServer
from aether_trio.version import __version__
from aether_trio.wire.pb.aether_grpc import AetherGatewayBase

logger = structlog.get_logger("aether.gateway")

DRAIN_NOTICE = "the gateway is shutting down; connect again"


class GatewayService(AetherGatewayBase):
    """The gRPC service AetherGateway: each stream becomes a Link of a session."""

    def __init__(self, serve: Callable[[Link], Awaitable[None]]) -> None:
        self._serve = serve

    @told_when_broken
    def Connect(self, stream: ServerStream) -> Awaitable[None]:  # type: ignore[override]  # noqa: N802
        """Serve one participant's gRPC stream."""
        # Not a coroutine, which would last as long as the stream.
        return self._serve(GrpcLink(stream))


class Gateway:
    """A running gateway with its addresses. Made by `open_gateway`."""

    def __init__(
        self, core: Core, ports: Ports, health: GrpcHealth, settings: Settings, ops_address: str | None
    ) -> None:
        self.reload = SettingsReload(
            settings,
            core.credentials,
            core.credential_ends,
            core.tokens,
            ports,
            core.audit.writer.put,
            core.clock,
        )
        """Takes over new settings of TLS and credentials."""
        self.core = core
        self.address = ports.address
        """HOST:PORT that the transports share; of the first transport when each has its own."""
        self.addresses: Mapping[str, str] = ports.addresses
        """HOST:PORT of each transport that is on: "grpc", "framed", "websocket"."""
        self.ops_address = ops_address
        self._ports = ports
        self._health = health
        self._settings = settings
        self._closed = trio.Event()

    async def wait_closed(self) -> None:
        """Wait until the gateway has drained."""
        await self._closed.wait()

    async def drain(self) -> None:
        """Refuse new clients, ask all to reconnect, commit what was accepted."""
        core = self.core
        if core.sessions.handshake.draining:
            await self._closed.wait()
            return
        core.health.draining()
        self._health.close()
        core.sessions.handshake.stop_admitting()
        deadline_s = self._settings.grpc.drain_deadline_s
        logger.info("draining", sessions=len(core.registry), deadline_s=deadline_s)
        async with trio.open_nursery() as nursery:
            await nursery.start(self._ports.drain, deadline_s)
            await core.sessions.ask_to_reconnect(DRAIN_NOTICE, notice_s(deadline_s))
        await core.log.drain()
        logger.info("drained")
        self._closed.set()


@asynccontextmanager
async def open_gateway(settings: Settings) -> AsyncIterator[Gateway]:
    """Open a gateway until the block ends. Raises OSError, as for a taken port."""
    async with open_core(settings) as core, trio.open_nursery() as nursery:
        health = GrpcHealth()
        transports = _open_transports(core, health, nursery)
        ports = limits.open_ports(settings, transports)
        await nursery.start(ports.serve)
        metrics.watch_ports(core.metrics, ports)
        lag = core.metrics.distribution("aether_event_loop_lag_seconds")
        nursery.start_soon(measure_loop_lag, lag, name="loop-lag")
        ops_address: str | None = None
        if settings.ops.enabled:
            ops_address = await nursery.start(
                lambda task_status: serve_ops(
                    settings.ops,
                    health=core.health,
                    metrics=core.metrics,
                    tail=core.tail.open,
                    resolve=DeadLetters(core.tasks.engine).resolve,
                    dev=settings.gateway.dev,
                    task_status=task_status,
                )
            )
        core.health.serving()
        health.set_status(SERVING)
        gateway = Gateway(core, ports, health, settings, ops_address)
        core.metrics.read("aether_certificate_expiry_timestamp_seconds", lambda: gateway.reload.expiries)
        try:
            yield gateway
        finally:
            nursery.cancel_scope.cancel()


def _open_transports(core: Core, health: GrpcHealth, nursery: trio.Nursery) -> dict[str, TransportServer]:
    """Make the transports that are on, by name; their tasks run in `nursery`."""
    settings, serve = core.settings, core.sessions.serve
    transports: dict[str, TransportServer] = {}
    unfinished = UnfinishedInput(limits.unfinished_limits(settings))
    nursery.start_soon(unfinished.watch, name="unfinished-input")
    metrics.watch_unfinished(core.metrics, unfinished)
    if settings.grpc.enabled:
        services: list[Servable] = [GatewayService(serve), health]
        if settings.grpc.reflection:
            services = with_reflection(services)
        grpc_limits = limits.grpc_limits(settings.grpc, settings.limits.init_bytes)
        transports["grpc"] = grpc = GrpcServer(services, limits=grpc_limits, unfinished=unfinished)
        nursery.start_soon(grpc.retire_the_old, name="grpc-age")
        metrics.watch_transport(core.metrics, "grpc", grpc.statistics)
    if settings.framed.enabled:
        transports["framed"] = framed = FramedServer(
            serve,
            limits.framed_limits(settings),
            nursery,
            agent=f"aether-trio/{__version__}",
            log=core.log.identity,
            unfinished=unfinished,
        )
        metrics.watch_transport(core.metrics, "framed", framed.statistics)
    if settings.websocket.enabled:
        transports["websocket"] = http = HttpServer(
            serve, settings.websocket, nursery, log=core.log.identity.hex(), unfinished=unfinished, hooks=core.webhooks
        )
        nursery.start_soon(http.keep_alive, name="websocket-pings")
        metrics.watch_transport(core.metrics, "websocket", http.statistics)
    return transports
