"""The running gateway: a core (core.py), the listener and its lanes, and the ops port. The top of the composition.

Order of opening, and backwards at the end: data directory (locked against a second gateway) -> databases -> log and its
tasks -> sessions and services -> transport -> ops port.

Draining loses nothing: new streams are refused, GOAWAY asks clients to go, sessions end with UNAVAILABLE so that they
resume elsewhere, then the log settles what it was given.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import structlog
import trio

from aether_trio import wiring
from aether_trio.config import Settings
from aether_trio.core import Core, open_core
from aether_trio.telemetry.ops import serve_ops
from aether_trio.transport.grpc.health import NOT_SERVING, SERVING, Health
from aether_trio.transport.grpc.link import GrpcLink
from aether_trio.transport.grpc.reflection import with_reflection
from aether_trio.transport.grpc.rpc import told_when_broken
from aether_trio.transport.grpc.server import GrpcServer, Servable
from aether_trio.transport.grpc.stream import ServerStream
from aether_trio.transport.link import Link
from aether_trio.transport.listener import open_tcp_listeners
from aether_trio.transport.tls import server_context
from aether_trio.wire.pb.aether_grpc import AetherGatewayBase

logger = structlog.get_logger("aether.gateway")

DRAIN_NOTICE = "the gateway is shutting down; connect again"


class GatewayService(AetherGatewayBase):
    """AetherGateway/Connect: each stream becomes a Link for the session server."""

    def __init__(self, serve: Callable[[Link], Awaitable[None]]) -> None:
        self._serve = serve

    @told_when_broken
    async def Connect(self, stream: ServerStream) -> None:  # type: ignore[override]  # noqa: N802
        """Serve one participant."""
        await self._serve(GrpcLink(stream))


class Gateway:
    """A running gateway. Made by `open_gateway`; `address` and `ops_address` are "HOST:PORT"."""

    def __init__(
        self,
        core: Core,
        server: GrpcServer,
        health: Health,
        settings: Settings,
        address: str,
        ops_address: str | None,
    ) -> None:
        self.core = core
        self.address = address
        self.ops_address = ops_address
        self._server = server
        self._health = health
        self._settings = settings
        self._closed = trio.Event()

    async def wait_closed(self) -> None:
        """Wait until a drain has finished."""
        await self._closed.wait()

    async def drain(self) -> None:
        """Refuse new work, let clients go elsewhere, settle what was accepted. Safe to call twice."""
        core = self.core
        if core.sessions.draining:
            await self._closed.wait()
            return
        core.health.draining()
        self._health.set_status(NOT_SERVING)
        core.sessions.draining = True
        deadline_s = self._settings.grpc.drain_deadline_s
        logger.info("draining", sessions=len(core.registry), deadline_s=deadline_s)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._server.drain, deadline_s)
            await core.end_sessions(DRAIN_NOTICE)
        await core.log.drain()
        logger.info("drained")
        self._closed.set()


@asynccontextmanager
async def open_gateway(settings: Settings) -> AsyncIterator[Gateway]:
    """A gateway that serves. Raises OSError when a port is taken or the data directory is in use."""
    async with open_core(settings) as core, trio.open_nursery() as nursery:
        certificates = wiring.tls_settings(settings.tls)
        health = Health()
        services: list[Servable] = [GatewayService(core.sessions.serve), health]
        if settings.grpc.reflection:
            services = with_reflection(services)
        server = GrpcServer(
            services,
            limits=wiring.grpc_limits(settings.grpc),
            tcp=wiring.tcp_settings(settings.grpc),
            tls=server_context(certificates) if certificates is not None else None,
        )
        listeners = open_tcp_listeners(settings.gateway.host, settings.gateway.port)
        address = _address(listeners)
        await nursery.start(server.serve, listeners)
        wiring.watch_server(core.metrics, server)
        ops_address: str | None = None
        if settings.ops.enabled:
            ops_address = await nursery.start(
                lambda task_status: serve_ops(
                    settings.ops,
                    health=core.health,
                    metrics=core.metrics,
                    tail=core.tail.open,
                    dev=settings.gateway.dev,
                    task_status=task_status,
                )
            )
        core.health.serving()
        health.set_status(SERVING)
        gateway = Gateway(core, server, health, settings, address, ops_address)
        try:
            yield gateway
        finally:
            nursery.cancel_scope.cancel()


def _address(listeners: list[socket.socket]) -> str:
    host, port = listeners[0].getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
