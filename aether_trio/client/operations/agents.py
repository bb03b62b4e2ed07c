"""`agent.registry`: registers agent implementations, and starts agents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from aether_trio.client.operations.namespace import Namespace
from aether_trio.client.operations.records import Seconds, read, write
from aether_trio.wire.pb import aether_pb2 as pb

_Op = pb.AgentOperation


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceSchema:
    """A family of resources that an agent implementation guards, with its verbs."""

    resource_type_prefix: str
    """No two implementations may have clashing ones."""
    permission_verbs: tuple[str, ...] = ()
    resource_id_schema: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """An agent implementation, with what an orchestrator needs to start it."""

    implementation: str
    orchestrator_profile: str = ""
    description: str = ""
    launch_params: Mapping[str, str] = field(default_factory=dict)
    registered_at: Seconds = None
    updated_at: Seconds = None
    resource_schema: tuple[ResourceSchema, ...] = ()
    capabilities: Mapping[str, bool] = field(default_factory=dict)
    extensions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RegistrationPage:
    """A page of registered implementations, and how many there are in all."""

    registrations: tuple[Registration, ...]
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Orchestrator:
    """An orchestrator that is connected to the gateway."""

    orchestrator_id: str
    profiles: tuple[str, ...]
    connected_at: Seconds


class Registry(Namespace):
    """Registers agent implementations, starts agents, and lists orchestrators."""

    async def list(self, *, orchestrator_profile: str = "", limit: int = 0, offset: int = 0) -> RegistrationPage:
        """List all implementations, or those that one kind of orchestrator starts."""
        wanted = pb.AgentFilter(orchestrator_profile=orchestrator_profile, limit=limit, offset=offset)
        answer = await self._do(_Op(op=_Op.LIST, filter=wanted))
        return RegistrationPage(tuple(read(Registration, one) for one in answer.agents), answer.total_count)

    async def get(self, implementation: str) -> Registration:
        """Return a registered implementation. Raises Refused if there is none."""
        return read(Registration, (await self._do(_Op(op=_Op.GET, implementation=implementation))).agent)

    async def register(self, registration: Registration) -> Registration:
        """Register an agent implementation; AlreadyExists if a resource prefix is taken."""
        return await self._write(_Op.REGISTER, registration)

    async def update(self, registration: Registration) -> Registration:
        """Replace a registered implementation; nothing of the old one is kept."""
        return await self._write(_Op.UPDATE, registration)

    async def delete(self, implementation: str) -> None:
        """Remove a registered implementation."""
        await self._do(_Op(op=_Op.DELETE, implementation=implementation))

    async def launch(
        self,
        implementation: str,
        specifier: str,
        *,
        workspace: str = "",
        param_overrides: Mapping[str, str] | None = None,
    ) -> str:
        """Have an orchestrator start an agent; return the id of the startup task."""
        params = pb.AgentLaunchParams(
            specifier=specifier, workspace=workspace, param_overrides=dict(param_overrides or {})
        )
        answer = await self._do(_Op(op=_Op.LAUNCH, implementation=implementation, launch_params=params))
        return answer.launch_result.task_id

    async def orchestrators(self) -> tuple[Orchestrator, ...]:
        """List the orchestrators that are connected now."""
        answer = await self._do(_Op(op=_Op.LIST_ORCHESTRATORS))
        return tuple(read(Orchestrator, one) for one in answer.orchestrators)

    async def _write(self, kind: pb.AgentOperation.OpType.ValueType, registration: Registration) -> Registration:
        op = _Op(
            op=kind, implementation=registration.implementation, agent=write(registration, pb.AgentRegistrationInfo())
        )
        profile = registration.orchestrator_profile
        if profile and "profile" not in registration.launch_params:
            # It is what decides which orchestrator gets the start.
            op.agent.launch_params["profile"] = profile
        return read(Registration, (await self._do(op)).agent)

    async def _do(self, op: pb.AgentOperation) -> pb.AgentResponse:
        answer: pb.AgentResponse = await self._ask("agent_op", op)
        return answer
