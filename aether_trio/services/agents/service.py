"""Handles clients' `agent_op`: registrations and LAUNCH (reference: tasks.md 6.5).

A client without permission gets a typed reply and an ErrorResponse: the reference sends the latter
alone, and a caller of the published SDK then waits for its time limit (sdk.md, scenario 95). Other
errors are in the typed reply's `error`. The reply has the request's id, unlike the reference's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from aether_trio.model.access import AccessLevel
from aether_trio.model.errors import Code, RequestError
from aether_trio.model.identity import Identity, IdentityError
from aether_trio.model.text import shown
from aether_trio.services.access import Authorizer
from aether_trio.services.agents.registry import PROFILE, AgentRegistry, RegistrationRefusal
from aether_trio.services.agents.startup import AgentStarter
from aether_trio.session.session import Session
from aether_trio.storage.base import StorageUnavailable
from aether_trio.storage.outages import outage_text
from aether_trio.wire.error_response import error_response
from aether_trio.wire.pb import aether_pb2 as pb

Op = pb.AgentOperation

_READS: Final = frozenset({Op.LIST, Op.GET, Op.LIST_ORCHESTRATORS})
"""Operations that change nothing: who may read admin/agents may see what can be started.

Who may not administer it sees no launch parameters but the profile.
"""
DEFAULT: Final = "default"  # the workspace and the specifier of a LAUNCH that names none


class AgentService:
    """Handles clients' `agent_op`: registrations, LAUNCH and lists of orchestrators."""

    def __init__(
        self, registry: AgentRegistry, starter: AgentStarter, authorizer: Authorizer, *, strict: bool = True
    ) -> None:
        self._registry = registry
        self._starter = starter
        self._authorizer = authorizer
        self._strict = strict

    async def handle(self, session: Session, op: pb.AgentOperation) -> Sequence[pb.DownstreamMessage]:
        """Perform one agent operation; return the client's messages in order."""
        response = pb.AgentResponse(request_id=op.request_id)
        try:
            level = AccessLevel.READ if op.op in _READS else AccessLevel.ADMIN
            decision = await self._authorizer.check_admin(session, "agents", level, operation="agent_op")
            if not decision.allowed:
                raise RequestError(Code.PERMISSION_DENIED, decision.reason)
            await self._operate(session, op, response)
            if decision.level < AccessLevel.ADMIN:
                for registration in (response.agent, *response.agents):
                    _leave_out_params(registration)
        except RequestError as error:
            response.error = str(error)
            return [pb.DownstreamMessage(agent=response), error_response(error, op.request_id)]
        except StorageUnavailable as error:
            response.error = outage_text(error)
        return [pb.DownstreamMessage(agent=response)]

    async def _operate(self, session: Session, op: pb.AgentOperation, response: pb.AgentResponse) -> None:
        match op.op:
            case Op.REGISTER | Op.UPDATE | Op.DELETE if not session.reaches_everything:
                # A registration counts in every workspace.
                raise RequestError(
                    Code.PERMISSION_DENIED,
                    "registering agents needs a credential that reaches all workspaces; this one does not",
                )
            case Op.LIST:
                await self._list(op.filter, response)
            case Op.GET:
                await self._get(op.implementation, response)
            case Op.REGISTER:
                await self._write(op, op.agent.implementation or op.implementation, response)
            case Op.UPDATE:
                await self._write(op, op.implementation or op.agent.implementation, response)
            case Op.DELETE:
                await self._delete(op.implementation, response)
            case Op.LAUNCH:
                await self._launch(session, op, response)
            case Op.LIST_ORCHESTRATORS:
                await self._orchestrators(response)
            case _:
                response.error = f"unknown agent operation {op.op}"

    async def _list(self, wanted: pb.AgentFilter, response: pb.AgentResponse) -> None:
        offset, limit = max(wanted.offset, 0), max(wanted.limit, 0)
        found, response.total_count = await self._registry.page(wanted.orchestrator_profile, offset, limit)
        response.agents.extend(found)
        response.success = True

    async def _get(self, implementation: str, response: pb.AgentResponse) -> None:
        found = await self._registry.find(implementation)
        if found is None:
            response.error = not_registered(implementation)
            return
        response.agent.CopyFrom(found)
        response.success = True

    async def _write(self, op: pb.AgentOperation, implementation: str, response: pb.AgentResponse) -> None:
        if not op.HasField("agent"):
            response.error = "the field agent is missing: it has the registration to store"
            return
        written = await self._registry.put(op.agent, implementation)
        if isinstance(written, RegistrationRefusal):
            response.error = f"{Code.PREFIX_CONFLICT}: {written.reason}" if written.conflict else written.reason
            return
        response.agent.CopyFrom(written)
        response.message = f"{implementation} is registered"
        response.success = True

    async def _delete(self, implementation: str, response: pb.AgentResponse) -> None:
        if not await self._registry.delete(implementation):
            response.error = not_registered(implementation)
            return
        response.message = f"{implementation} is not registered any more"
        response.success = True

    async def _launch(self, session: Session, op: pb.AgentOperation, response: pb.AgentResponse) -> None:
        params = op.launch_params
        try:
            target = Identity.agent(
                params.workspace or session.workspace or DEFAULT,
                op.implementation,
                params.specifier or DEFAULT,
                strict=self._strict,
            )
        except IdentityError as error:
            response.error = str(error)
            return
        if not session.allows_workspace(target.workspace):
            raise RequestError(Code.PERMISSION_DENIED, f"this credential does not reach workspace {target.workspace}")
        begun = await self._starter.launch(target, params.param_overrides, session.identity.text)
        if begun.problem:
            response.error = begun.problem
        elif begun.task is None:
            response.error = f"{target.text} is connected already"
        elif not (begun.created or begun.woken):
            response.error = f"{target.text} is being started already (task {begun.task.task_id})"
        else:
            response.launch_result.task_id = begun.task.task_id
            text = f"{begun.waits}; the start waits for one" if begun.waits else f"{target.text} is being started"
            response.launch_result.message = response.message = text
            response.success = True

    async def _orchestrators(self, response: pb.AgentResponse) -> None:
        for name, profiles, connected_ms in await self._starter.orchestrators():
            response.orchestrators.add(orchestrator_id=name, profiles=profiles, connected_at=connected_ms // 1000)
        response.total_count = len(response.orchestrators)
        response.success = True


def _leave_out_params(registration: pb.AgentRegistrationInfo) -> None:
    """Leave only the profile: commands and other parameters may have secrets."""
    for name in [name for name in registration.launch_params if name != PROFILE]:
        del registration.launch_params[name]


def not_registered(implementation: str) -> str:
    """Return the error text for an implementation that is not registered."""
    return f"no agent implementation {shown(implementation)} is registered"
