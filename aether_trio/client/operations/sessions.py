"""`agent.sessions`: lists connected participants, and ends their sessions.

All but `connection_status` need the right to administer sessions. `list` also serves the members of
a workspace, without session ids and addresses.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

from aether_trio.client.operations.enums import PrincipalKind
from aether_trio.client.operations.namespace import Namespace
from aether_trio.client.operations.principals import Authorization, Principal, authorization_context, principal_ref
from aether_trio.client.operations.records import Seconds, Wire, read, to_time
from aether_trio.wire.pb import aether_pb2 as pb

_Op = pb.SessionOperation


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionInfo:
    """The session of a connected participant."""

    session_id: str
    principal_type: Annotated[PrincipalKind, Wire("type")]
    identity: str
    workspace: str
    implementation: str
    specifier: str
    connected_at: Seconds
    duration: str
    """For people, such as "1m30s"."""
    remote_address: Annotated[str, Wire("remote_addr")]
    last_activity: Seconds


@dataclass(frozen=True, slots=True)
class SessionPage:
    """A page of sessions, and how many there are in all."""

    sessions: tuple[SessionInfo, ...]
    total: int


@dataclass(frozen=True, slots=True)
class Presence:
    """Whether a participant is connected; `last_seen` is None if never or unknown."""

    connected: bool
    last_seen: datetime | None


def connection_filter(principal_type: PrincipalKind, workspace: str, limit: int, offset: int) -> pb.ConnectionFilter:
    """Make the filter message of a query for sessions; empty arguments do not count."""
    kind = pb.PrincipalType.ValueType(principal_type)
    return pb.ConnectionFilter(type=kind, workspace=workspace, limit=limit, offset=offset)


class Sessions(Namespace):
    """Lists connected participants, and ends their sessions."""

    async def list(
        self,
        *,
        principal_type: PrincipalKind = PrincipalKind.UNSPECIFIED,
        workspace: str = "",
        limit: int = 0,
        offset: int = 0,
        authorization: Authorization | None = None,
    ) -> SessionPage:
        """List sessions by participant type and workspace, by default 100, at most 1,000."""
        wanted = connection_filter(principal_type, workspace, limit, offset)
        answer = await self._do(_Op(op=_Op.LIST, filter=wanted), authorization)
        return SessionPage(tuple(read(SessionInfo, one) for one in answer.connections), answer.total_count)

    async def get(self, session_id: str, *, authorization: Authorization | None = None) -> SessionInfo:
        """Ask the gateway for the session of an identity. Raises Refused if it has none."""
        answer = await self._do(_Op(op=_Op.GET, session_id=session_id), authorization)
        return read(SessionInfo, answer.connection)

    async def disconnect(
        self, session_id: str, *, reason: str = "", authorization: Authorization | None = None
    ) -> None:
        """End a session; its client is told the reason, and does not reconnect."""
        await self._do(_Op(op=_Op.DISCONNECT, session_id=session_id, reason=reason), authorization)

    async def connection_status(self, principal: Principal | str) -> Presence:
        """Return whether a principal is connected. Each may ask about itself."""
        request = pb.ConnectionStatusRequest(principal=principal_ref(principal))
        answer: pb.ConnectionStatusResponse = await self._ask("connection_status_request", request)
        return Presence(answer.connected, to_time(answer.last_seen_at))

    async def _do(self, op: pb.SessionOperation, authorization: Authorization | None) -> pb.SessionOperationResponse:
        context = authorization_context(authorization)
        if context is not None:
            op.authorization.CopyFrom(context)
        answer: pb.SessionOperationResponse = await self._ask("session_op", op)
        return answer
