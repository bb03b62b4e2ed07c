"""`agent.gateway`: asks one gateway process for its health, counters, connections."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from aether_trio.client.operations.enums import HealthCheckStatus, HealthStatus, PrincipalKind
from aether_trio.client.operations.namespace import Namespace
from aether_trio.client.operations.records import Seconds, Wire, member, read, read_optional, to_time
from aether_trio.client.operations.sessions import SessionInfo, SessionPage, connection_filter
from aether_trio.wire.pb import aether_pb2 as pb

_Op = pb.AdminQuery


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayCounters:
    """Counters of one gateway process."""

    agent_connections: int
    task_connections: int
    user_connections: int
    orchestrator_connections: int
    workflow_engine_connected: bool
    metrics_bridge_connected: bool
    total_tasks: int
    pending_tasks: int
    running_tasks: int
    completed_tasks: int
    failed_tasks: int
    messages_per_second: float
    total_messages: int
    active_timers: int
    pending_timers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayDescription:
    """One gateway process: its version, when it was started, and its size."""

    gateway_id: str
    version: str
    started_at: Seconds
    uptime: str
    """For people."""
    runtime: Annotated[str, Wire("go_version")]
    tasks: Annotated[int, Wire("num_goroutines")]
    """Concurrent tasks of its runtime."""
    memory_mb: Annotated[float, Wire("memory_alloc_mb")]
    connections: Annotated[int, Wire("num_connections")]


@dataclass(frozen=True, slots=True, kw_only=True)
class DependencyCheck:
    """The state of one dependency of a gateway; `latency` is a text such as "3ms"."""

    status: HealthCheckStatus
    latency: str
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """The state of a gateway, and the checks it comes from."""

    status: HealthStatus
    timestamp: Seconds
    checks: Mapping[str, DependencyCheck]
    stats: GatewayCounters | None


class GatewayQueries(Namespace):
    """Asks one gateway process for its health, counters and connections."""

    async def health(self) -> Health:
        """Return the health of the gateway, and of what it depends on."""
        health = (await self._do(_Op(op=_Op.GET_HEALTH))).health
        return Health(
            status=member(HealthStatus, health.status),
            timestamp=to_time(health.timestamp),
            checks={name: read(DependencyCheck, one) for name, one in health.checks.items()},
            stats=read_optional(GatewayCounters, health, "stats"),
        )

    async def info(self) -> GatewayDescription:
        """Return which gateway this is, since when it runs, and how big it is."""
        return read(GatewayDescription, (await self._do(_Op(op=_Op.GET_INFO))).info)

    async def stats(self) -> GatewayCounters:
        """Return the counters of the gateway process."""
        return read(GatewayCounters, (await self._do(_Op(op=_Op.GET_STATS))).stats)

    async def connections(
        self,
        *,
        principal_type: PrincipalKind = PrincipalKind.UNSPECIFIED,
        workspace: str = "",
        limit: int = 0,
        offset: int = 0,
    ) -> SessionPage:
        """List the gateway's connections; `agent.sessions.list` lists all gateways'."""
        wanted = connection_filter(principal_type, workspace, limit, offset)
        answer = await self._do(_Op(op=_Op.LIST_CONNECTIONS, filter=wanted))
        return SessionPage(tuple(read(SessionInfo, one) for one in answer.connections), answer.total_count)

    async def connection(self, session_id: str) -> SessionInfo:
        """Return one connection of the gateway. Raises Refused if it is not connected."""
        return read(SessionInfo, (await self._do(_Op(op=_Op.GET_CONNECTION, session_id=session_id))).connection)

    async def _do(self, op: pb.AdminQuery) -> pb.AdminResponse:
        answer: pb.AdminResponse = await self._ask("admin_query", op)
        return answer
