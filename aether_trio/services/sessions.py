"""Who is connected: session list, get and disconnect, and the connection status of one principal.

Reference: core.md section 9. Filled in here and not there: remote address, last activity, the reason of a disconnect,
`last_seen_at`, a user reference that names no window (any of its windows counts), and `total_count` as the number of
matches before paging. Times on the wire are Unix seconds.

One thing more than the reference: whoever is in a workspace, and may read it, may LIST who else is there. A person in a
browser is to see the agents to talk to, and need not be an administrator for it. Such a list leaves out what gives power over
others or tells where they are: session ids (who knows one may take its session over) and addresses.
"""

from __future__ import annotations

from collections.abc import Sequence

from aether_trio.model.clock import Clock
from aether_trio.model.errors import Status
from aether_trio.model.identity import Identity, IdentityError, Kind, parse_principal_type
from aether_trio.services.access import Authorizer
from aether_trio.services.presence import PresenceStore
from aether_trio.session.registry import Registry
from aether_trio.session.session import Session
from aether_trio.storage.base import StorageUnavailable
from aether_trio.wire.pb import aether_pb2 as pb

DEFAULT_PAGE = 100
MAX_PAGE = 1000


class SessionService:
    """Handles `session_op` and `connection_status_request`."""

    def __init__(self, registry: Registry, presence: PresenceStore, authorizer: Authorizer, clock: Clock) -> None:
        self._registry = registry
        self._presence = presence
        self._authorizer = authorizer
        self._clock = clock

    # -- session_op -----------------------------------------------------------------------------------------------

    async def operate(self, session: Session, op: pb.SessionOperation) -> Sequence[pb.DownstreamMessage]:
        """LIST, GET or DISCONNECT; every refusal is in the typed reply."""
        response = pb.SessionOperationResponse(request_id=op.request_id)
        decision = await self._authorizer.check_admin(session.identity, "sessions", operation="session_op")
        if not decision.allowed:
            if await self._may_look_around(session, op):
                self._list(op.filter, response)
                for connection in response.connections:
                    connection.ClearField("session_id")
                    connection.ClearField("remote_addr")
            else:
                response.error = decision.reason
        elif op.op == pb.SessionOperation.LIST:
            self._list(op.filter, response)
        elif op.op == pb.SessionOperation.GET:
            self._get(op.session_id, response)
        elif op.op == pb.SessionOperation.DISCONNECT:
            self._disconnect(op.session_id, op.reason, response)
        else:
            response.error = f"unknown session operation {op.op}"
        return [pb.DownstreamMessage(session_response=response)]

    async def _may_look_around(self, session: Session, op: pb.SessionOperation) -> bool:
        """Whether this is a LIST of the session's own workspace, which it may read."""
        workspace = session.workspace
        if op.op != pb.SessionOperation.LIST or not workspace or op.filter.workspace != workspace:
            return False
        return (await self._authorizer.check_workspace(session.identity, workspace, operation="session_op")).allowed

    def _list(self, wanted: pb.ConnectionFilter, response: pb.SessionOperationResponse) -> None:
        found = [
            session
            for session in self._registry
            if (not wanted.type or int(session.identity.wire_type) == wanted.type)
            and (not wanted.workspace or session.workspace == wanted.workspace)
        ]
        found.sort(key=lambda session: session.identity.text)
        limit = min(wanted.limit, MAX_PAGE) if wanted.limit > 0 else DEFAULT_PAGE
        start = max(wanted.offset, 0)
        response.connections.extend(self._info(session) for session in found[start : start + limit])
        response.total_count = len(found)
        response.success = True

    def _get(self, session_id: str, response: pb.SessionOperationResponse) -> None:
        session = self._registry.session(session_id)
        if session is None:
            response.error = f"no session {session_id!r} is connected"
            return
        response.connection.CopyFrom(self._info(session))
        response.success = True

    def _disconnect(self, session_id: str, reason: str, response: pb.SessionOperationResponse) -> None:
        session = self._registry.session(session_id)
        if session is None:
            response.error = f"no session {session_id!r} is connected"
            return
        session.end(Status.CANCELLED, reason or "disconnected by an operator", pb.Signal.FORCE_DISCONNECT)
        response.message = f"{session.identity.text} was disconnected"
        response.success = True

    def _info(self, session: Session) -> pb.ConnectionInfo:
        identity = session.identity
        return pb.ConnectionInfo(
            session_id=session.session_id,
            type=pb.PrincipalType.ValueType(identity.wire_type),
            identity=identity.text,
            workspace=session.workspace,
            implementation="" if identity.kind is Kind.USER else identity.implementation,
            specifier="" if identity.kind is Kind.USER else identity.specifier,
            connected_at=session.connected_ms // 1000,
            duration=_duration(self._clock.now_ms() - session.connected_ms),
            remote_addr=session.link.peer.address,
            last_activity=session.last_activity_ms // 1000,
        )

    # -- connection_status_request --------------------------------------------------------------------------------

    async def status(self, session: Session, request: pb.ConnectionStatusRequest) -> Sequence[pb.DownstreamMessage]:
        """Whether a principal is connected, and when it was last seen; every refusal is in the typed reply."""
        response = pb.ConnectionStatusResponse(request_id=request.request_id)
        try:
            await self._status(session, request.principal, response)
        except IdentityError as error:
            response.error = f"principal: {error}"
        except StorageUnavailable as error:
            response.error = f"the gateway's storage does not answer: {error}"
        return [pb.DownstreamMessage(connection_status_response=response)]

    async def _status(
        self, session: Session, principal: pb.PrincipalRef, response: pb.ConnectionStatusResponse
    ) -> None:
        user_id, identity = _read_principal(principal)
        own = session.identity
        itself = (identity is not None and identity == own) or (user_id and own.user_id == user_id)
        if not itself:
            decision = await self._authorizer.check_query_connections(own)
            if not decision.allowed:
                response.error = decision.reason
                return
        if identity is None:
            live = [one for one in self._registry if one.identity.user_id == user_id]
        else:
            holder = self._registry.holder(identity.text)
            live = [holder] if holder is not None else []
        if live:
            response.last_seen_at = max(one.last_activity_ms for one in live) // 1000
        elif identity is not None:
            seen = await self._presence.seen(identity.text)
            response.last_seen_at = seen.last_seen_ms // 1000 if seen is not None else 0
        else:
            response.last_seen_at = await self._presence.user_seen_ms(user_id) // 1000
        response.ok = True
        response.connected = bool(live)


def _read_principal(principal: pb.PrincipalRef) -> tuple[str, Identity | None]:
    """(user id, None) for a user as a whole, ("", identity) for anybody else. Raises IdentityError."""
    kind = parse_principal_type(principal.principal_type)
    name = principal.principal_id
    if kind.type_name == "user" and not name.startswith("us::"):
        return Identity.user(name, "any").user_id, None
    identity = Identity.parse(name)
    if identity.type_name != kind.type_name:
        raise IdentityError(f"{name} is a {identity.type_name}, not a {kind.type_name}")
    return "", identity


def _duration(ms: int) -> str:
    """As people write it: 42s, 1m30s, 2h0m5s."""
    seconds = max(ms, 0) // 1000
    hours, minutes = seconds // 3600, seconds // 60 % 60
    text = f"{hours}h{minutes}m" if hours else f"{minutes}m" if minutes else ""
    return f"{text}{seconds % 60}s"
