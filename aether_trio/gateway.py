"""The composition root: opens every part as nested async context managers and joins them. The only file that knows all.

Order of opening, and backwards at the end: data directory (locked against a second gateway) -> databases -> log and its
tasks -> sessions and services -> transport -> ops port. A part is handed what it needs when it is made; nothing looks
anything up later.

Draining loses nothing: new streams are refused, GOAWAY asks clients to go, sessions end with UNAVAILABLE so that they
resume elsewhere, then the log settles what it was given.
"""

from __future__ import annotations

import random
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import structlog
import trio

from aether_trio.config import Settings
from aether_trio.gateway_parts import grpc_limits, tcp_settings, watch_metrics
from aether_trio.model.clock import Clock, SystemClock
from aether_trio.model.errors import Status
from aether_trio.model.identity import Identity
from aether_trio.model.ids import IdFactory
from aether_trio.routing.lanes import Lanes
from aether_trio.routing.log import LogLimits, TopicLog, open_log
from aether_trio.routing.outbox import OutboxLimits
from aether_trio.routing.rates import Rates
from aether_trio.routing.retention import Retention, RetentionLimits
from aether_trio.routing.router import Router
from aether_trio.routing.tail import Tail
from aether_trio.routing.work_group import WorkGroups
from aether_trio.services import unbuilt
from aether_trio.services.access import DevAuthorizer
from aether_trio.services.checkpoints import CheckpointService
from aether_trio.services.credentials import CredentialChecker
from aether_trio.services.kv import KvService
from aether_trio.services.presence import PresenceStore
from aether_trio.services.progress import ProgressService
from aether_trio.services.sessions import SessionService
from aether_trio.services.workspaces import WorkspaceSwitch
from aether_trio.session.admission import Claim
from aether_trio.session.dispatch import Dispatcher
from aether_trio.session.registry import Registry
from aether_trio.session.serve import Parts, SessionServer
from aether_trio.session.session import Session
from aether_trio.storage.directory import lock_directory
from aether_trio.storage.sqlite import SqliteDatabase, open_sqlite
from aether_trio.telemetry.health import Health
from aether_trio.telemetry.metrics import Metrics
from aether_trio.telemetry.ops import serve_ops
from aether_trio.transport.grpc.gateway_service import GatewayService
from aether_trio.transport.grpc.health import HealthService
from aether_trio.transport.grpc.reflection import reflection_services
from aether_trio.transport.grpc.server import GrpcServer
from aether_trio.transport.link import Peer
from aether_trio.transport.listener import open_tcp_listeners
from aether_trio.transport.tls import server_context
from aether_trio.version import __version__
from aether_trio.wire.pb import aether_pb2 as pb

logger = structlog.get_logger("aether.gateway")

DRAIN_NOTICE = "the gateway is shutting down; connect again"


class Gateway:
    """A running gateway. Made by `open_gateway`; `address` and `ops_address` are "HOST:PORT"."""

    def __init__(
        self, core: Core, server: GrpcServer, settings: Settings, address: str, ops_address: str | None
    ) -> None:
        self.core = core
        self.address = address
        self.ops_address = ops_address
        self._server = server
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
        core.sessions.draining = True
        deadline_s = self._settings.grpc.drain_deadline_s
        logger.info("draining", sessions=len(core.registry), deadline_s=deadline_s)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._server.drain, deadline_s)
            await core.end_sessions(DRAIN_NOTICE)
        await core.log.drain()
        logger.info("drained")
        self._closed.set()


class Core:
    """Everything between the transports and the databases."""

    def __init__(
        self,
        settings: Settings,
        clock: Clock,
        ids: IdFactory,
        log: TopicLog,
        state: SqliteDatabase,
        nursery: trio.Nursery,
    ) -> None:
        limits = settings.limits
        strict = settings.gateway.strict_identifier_charset
        self.settings = settings
        self.clock = clock
        self.log = log
        self.health = Health()
        self.metrics = Metrics()
        self.lanes = Lanes()
        self.registry = Registry(limits.connections_per_workspace)
        self.authorizer = DevAuthorizer()
        self.credentials = CredentialChecker(settings.auth, clock)
        self.presence = PresenceStore(state, clock)
        rates = Rates(limits, clock)
        self.router = Router(log, rates, limits, self.authorizer, self._pick_service, strict=strict)
        self.dispatcher = Dispatcher(log)
        self.kv = KvService(state, clock, limits, self.authorizer)
        self.checkpoints = CheckpointService(state, clock, limits)
        self.tail = Tail(log, self.lanes, clock)
        self._register(rates, strict)
        self.sessions = SessionServer(
            Parts(
                clock=clock,
                ids=ids,
                limits=limits,
                outbox_limits=OutboxLimits(delivery_bytes=settings.log.outbox_bytes),
                log=log,
                lanes=self.lanes,
                groups=WorkGroups(log, nursery),
                rates=rates,
                router=self.router,
                registry=self.registry,
                dispatcher=self.dispatcher,
                authenticate=self._authenticate,
                recall=self.presence.recall,
                config_snapshot=self._config_snapshot,
                ended=self._ended,
                server_version=__version__,
                strict_charset=strict,
                init_wait_s=limits.init_wait_s,
            )
        )

    def _register(self, rates: Rates, strict: bool) -> None:
        register = self.dispatcher.register
        sessions = SessionService(self.registry, self.presence, self.authorizer, self.clock)

        async def kv_op(session: Session, op: pb.KVOperation) -> list[pb.DownstreamMessage]:
            return await self.kv.handle(session.identity, op)

        async def checkpoint_op(session: Session, op: pb.CheckpointOperation) -> list[pb.DownstreamMessage]:
            return [pb.DownstreamMessage(checkpoint=await self.checkpoints.handle(session.identity, op))]

        register("kv_op", kv_op)
        register("checkpoint_op", checkpoint_op)
        register("progress", ProgressService(self.lanes, rates, self.clock).handle)
        register("switch_workspace", WorkspaceSwitch(self.authorizer, strict=strict).handle)
        register("session_op", sessions.operate)
        register("connection_status_request", sessions.status)
        unbuilt.register(self.dispatcher)

    def _pick_service(self, implementation: str) -> str | None:
        session = self.registry.pick_service(implementation)
        return session.identity.topic if session is not None else None

    def _authenticate(self, identity: Identity, claim: Claim, peer: Peer) -> Callable[[str], bool]:
        return self.credentials.check(identity, claim.credentials, peer.certificate).allows_workspace

    async def _config_snapshot(self, identity: Identity) -> pb.ConfigSnapshot:
        in_workspace, everywhere = await self.kv.exclusive_snapshot(identity)
        return pb.ConfigSnapshot(workspace_exclusive_kv=in_workspace, global_exclusive_kv=everywhere)

    def _ended(self, session: Session) -> None:
        self.presence.ended(session)
        self.metrics.connection_duration.observe(
            (self.clock.now_ms() - session.connected_ms) / 1000,
            (session.identity.workspace, session.identity.type_name),
        )

    async def end_sessions(self, reason: str) -> None:
        """End every session with UNAVAILABLE, in slices, so that its client resumes at once.

        The published Python SDK's blocking client takes GRACEFUL_DISCONNECT for the end of everything, so Python
        clients are only given the status, which both of its clients answer by reconnecting.
        """
        for count, session in enumerate(self.registry):
            signal = None if session.client.sdk == "python" else pb.Signal.GRACEFUL_DISCONNECT
            session.end(Status.UNAVAILABLE, reason, signal)
            if count % 64 == 63:
                await trio.lowlevel.checkpoint()


@asynccontextmanager
async def open_core(
    settings: Settings, *, clock: Clock | None = None, randomness: random.Random | None = None
) -> AsyncIterator[Core]:
    """The gateway without its sockets: databases, log, services. Tests give a clock and a seeded `randomness`."""
    clock = clock or SystemClock(trio.current_time)
    ids = IdFactory(randomness or random.SystemRandom())
    storage = settings.storage
    async with AsyncExitStack() as stack:

        async def open_database(name: str) -> SqliteDatabase:
            path = None if settings.gateway.ephemeral else Path(settings.gateway.data_dir) / f"{name}.db"
            return await stack.enter_async_context(
                open_sqlite(path, name=name, readers=storage.readers, synchronous=storage.synchronous)
            )

        if not settings.gateway.ephemeral:
            stack.enter_context(lock_directory(Path(settings.gateway.data_dir)))
        state = await open_database("state")
        log_database = await open_database("log")
        log = await stack.enter_async_context(open_log(log_database, clock, log_limits(settings)))
        nursery = await stack.enter_async_context(trio.open_nursery())
        core = Core(settings, clock, ids, log, state, nursery)
        core.health.add_probe(
            "log", lambda: "the last group could not be written" if log.statistics().storage_failing else None
        )
        retention = Retention(log_database, clock, retention_limits(settings))
        watch_metrics(core.metrics, core, state, log_database, retention)
        nursery.start_soon(retention.sweep_forever, name="retention")
        nursery.start_soon(core.presence.run, name="presence")
        nursery.start_soon(core.kv.sweep_forever, name="kv-sweep")
        nursery.start_soon(core.checkpoints.sweep_forever, name="checkpoint-sweep")
        try:
            yield core
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 5):
                await core.presence.flush_at_end()
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def open_gateway(settings: Settings) -> AsyncIterator[Gateway]:
    """A gateway that serves. Raises OSError when a port is taken or the data directory is in use."""
    async with open_core(settings) as core, trio.open_nursery() as nursery:
        tls = server_context(settings.tls) if settings.tls.cert else None
        health = HealthService()
        services = [GatewayService(core.sessions.serve), health]
        if settings.grpc.reflection:
            services += reflection_services()
        server = GrpcServer(services, limits=grpc_limits(settings.grpc), tcp=tcp_settings(settings.grpc), tls=tls)
        listeners = open_tcp_listeners(settings.gateway.host, settings.gateway.port)
        await nursery.start(server.serve, listeners)
        core.metrics.watch("grpc", server.statistics)
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
        gateway = Gateway(core, server, settings, _address(listeners), ops_address)
        try:
            yield gateway
        finally:
            nursery.cancel_scope.cancel()


def _address(listeners: list[socket.socket]) -> str:
    host, port = listeners[0].getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def log_limits(settings: Settings) -> LogLimits:
    """The log's limits as configured."""
    log = settings.log
    return LogLimits(
        pending_bytes=log.pending_bytes,
        group_messages=log.group_max_messages,
        group_bytes=log.group_max_bytes,
        cursor_flush_s=log.offset_flush_s,
    )


def retention_limits(settings: Settings) -> RetentionLimits:
    """What the log keeps, as configured."""
    log = settings.log
    return RetentionLimits(
        age_s=log.retention_age_s,
        topic_bytes=log.retention_bytes,
        cursor_age_s=log.offset_retention_age_s,
        sweep_s=log.retention_sweep_s,
    )
