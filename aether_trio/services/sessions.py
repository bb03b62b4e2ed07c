"""Lists, shows and ends sessions, and answers whether a principal is connected.

Reference: core.md section 9. Filled in here and not there: remote address, last activity, the
reason of a disconnect, `last_seen_at`, a user reference that names no window (any of its windows
counts), and `total_count` as the number of matches before paging. Times on the wire are Unix
seconds.

Beyond the reference, a participant in a workspace that it may read can LIST the sessions there, as
a person in a browser looks for agents. Such a list has no session ids (knowing one is enough to
resume its session) and no addresses.
"""

from __future__ import annotations

from collections.abc import Sequence

from aether_trio.model.clock import Clock
from aether_trio.model.errors import RequestError
from aether_trio.model.identity import Identity, IdentityError, Kind, parse_principal_type
from aether_trio.model.ownership import DisconnectOutcome, SessionFilter, SessionRecord
from aether_trio.model.text import line, shown
from aether_trio.services.access import Authority, Authorizer
from aether_trio.services.last_seen import LastSeenStore
from aether_trio.session.directory import SessionDirectory
from aether_trio.session.session import Session
from aether_trio.storage.base import StorageUnavailable
from aether_trio.storage.outages import outage_text
from aether_trio.wire.pb import aether_pb2 as pb

DEFAULT_PAGE = 100
MAX_PAGE = 1000
MAX_SESSION_ID = 128
"""Characters of a session id in a request; the gateway's ids have 36."""
MAX_REASON = 1024  # characters of a DISCONNECT's reason, cut to fit into a status


class SessionService:
    """Handles `session_op` and `connection_status_request` of clients."""

    def __init__(self, directory: SessionDirectory, store: LastSeenStore, authorizer: Authorizer, clock: Clock) -> None:
        self._directory = directory
        self._store = store
        self._authorizer = authorizer
        self._clock = clock

    async def operate(self, session: Session, op: pb.SessionOperation) -> Sequence[pb.DownstreamMessage]:
        """Perform LIST, GET or DISCONNECT; a refusal is in the typed reply."""
        reply = pb.SessionOperationResponse(request_id=op.request_id)
        try:
            context = op.authorization if op.HasField("authorization") else None
            authority = await self._authorizer.authority(session, context)
            decision = await self._authorizer.check_admin(
                session, "sessions", operation="session_op", authority=authority
            )
            if decision.allowed:
                await self._operate(session, op, reply)
            elif await self._may_look_around(session, op, authority):
                await self._list(op.filter, reply)
                for connection in reply.connections:
                    connection.ClearField("session_id")
                    connection.ClearField("remote_addr")
            else:
                reply.error = decision.reason
        except RequestError as error:
            reply.error = error.message
        except StorageUnavailable as error:
            reply.error = outage_text(error)
        return [pb.DownstreamMessage(session_response=reply)]

    async def _operate(self, session: Session, op: pb.SessionOperation, reply: pb.SessionOperationResponse) -> None:
        if op.op == pb.SessionOperation.LIST:
            await self._list_for_administrator(session, op.filter, reply)
        elif op.op == pb.SessionOperation.GET:
            await self._get(session, op.session_id, reply)
        elif op.op == pb.SessionOperation.DISCONNECT:
            await self._disconnect(session, op, reply)
        else:
            reply.error = f"unknown session operation {op.op}"

    async def _may_look_around(self, session: Session, op: pb.SessionOperation, authority: Authority) -> bool:
        """Whether a request is a LIST of the session's workspace, which it may read."""
        workspace = session.workspace
        if op.op != pb.SessionOperation.LIST or not workspace or op.filter.workspace != workspace:
            return False
        decision = await self._authorizer.check_workspace(
            session, workspace, operation="session_op", authority=authority
        )
        return decision.allowed

    async def _list(self, wanted: pb.ConnectionFilter, reply: pb.SessionOperationResponse) -> None:
        kinds = frozenset(kind for kind in Kind if int(kind.principal_type) == wanted.type)
        if wanted.type and not kinds:
            reply.success = True  # an unknown kind has no sessions
            return
        limit = min(wanted.limit, MAX_PAGE) if wanted.limit > 0 else DEFAULT_PAGE
        page = await self._directory.page(SessionFilter(kinds, wanted.workspace), max(wanted.offset, 0), limit)
        reply.connections.extend(self._info(connection) for connection in page.sessions)
        reply.total_count = page.total
        reply.success = True

    async def _list_for_administrator(
        self, session: Session, wanted: pb.ConnectionFilter, reply: pb.SessionOperationResponse
    ) -> None:
        if wanted.workspace and not session.allows_workspace(wanted.workspace):
            reply.error = f"this credential does not reach workspace {shown(wanted.workspace)}"
        elif not wanted.workspace and not session.reaches_everything:
            reply.error = "this credential does not reach all workspaces; name one in filter.workspace"
        else:
            await self._list(wanted, reply)

    async def _find(self, session: Session, session_id: str) -> SessionRecord | None:
        if len(session_id) > MAX_SESSION_ID or "\0" in session_id:
            return None  # the gateway's ids are shorter, and PostgreSQL's text has no zero byte
        found = await self._directory.find(session_id)
        return found if found is not None and session.reaches(found.identity, found.workspace) else None

    async def _get(self, session: Session, session_id: str, reply: pb.SessionOperationResponse) -> None:
        connection = await self._find(session, session_id)
        if connection is None:
            reply.error = f"no session {shown(session_id)} is connected"
            return
        reply.connection.CopyFrom(self._info(connection))
        reply.success = True

    async def _disconnect(self, session: Session, op: pb.SessionOperation, reply: pb.SessionOperationResponse) -> None:
        if await self._find(session, op.session_id) is None:
            reply.error = f"no session {shown(op.session_id)} is connected"
            return
        disconnected = await self._directory.disconnect(op.session_id, line(op.reason, MAX_REASON))
        if disconnected.outcome is DisconnectOutcome.UNKNOWN:
            reply.error = f"no session {shown(op.session_id)} is connected"
        elif disconnected.outcome is DisconnectOutcome.UNCONFIRMED:
            reply.error = (
                f"the node that has {disconnected.identity} has not confirmed the end; it ends the session when it "
                "reads the request, so check whether it is connected before asking again"
            )
        else:
            reply.message = f"{disconnected.identity} was disconnected"
            reply.success = True

    def _info(self, connection: SessionRecord) -> pb.ConnectionInfo:
        identity = connection.identity
        return pb.ConnectionInfo(
            session_id=connection.session_id,
            type=pb.PrincipalType.ValueType(identity.wire_type),
            identity=identity.text,
            workspace=connection.workspace,
            implementation="" if identity.kind is Kind.USER else identity.implementation,
            specifier="" if identity.kind is Kind.USER else identity.specifier,
            connected_at=connection.connected_ms // 1000,
            duration=_duration(self._clock.now_ms() - connection.connected_ms),
            remote_addr=connection.peer,
            last_activity=connection.last_activity_ms // 1000,
        )

    async def status(self, session: Session, request: pb.ConnectionStatusRequest) -> Sequence[pb.DownstreamMessage]:
        """Answer whether and when a principal was connected; a refusal is in the reply."""
        reply = pb.ConnectionStatusResponse(request_id=request.request_id)
        try:
            await self._status(session, request.principal, reply)
        except IdentityError as error:
            reply.error = f"principal: {error}"
        except StorageUnavailable as error:
            reply.error = outage_text(error)
        return [pb.DownstreamMessage(connection_status_response=reply)]

    async def _status(self, session: Session, principal: pb.PrincipalRef, reply: pb.ConnectionStatusResponse) -> None:
        user_id, identity = _read_principal(principal)
        own = session.identity
        itself = (identity is not None and identity == own) or (user_id and own.user_id == user_id)
        if not itself:
            decision = await self._authorizer.check_query_connections(session)
            if not decision.allowed:
                reply.error = decision.reason
                return
            if not (session.reaches(identity) if identity is not None else session.reaches_everything):
                reply.error = f"this credential does not reach {identity or shown(user_id)}"
                return
        if identity is None:
            seen = await self._directory.user_last_seen(user_id)
            last_ms = 0 if seen.connected else await self._store.user_seen_ms(user_id)
        else:
            seen = await self._directory.last_seen(identity.text)
            before = None if seen.connected else await self._store.seen(identity.text)
            last_ms = before.last_seen_ms if before is not None else 0
        reply.ok = True
        reply.connected = seen.connected
        reply.last_seen_at = max(seen.last_ms, last_ms) // 1000


def _read_principal(principal: pb.PrincipalRef) -> tuple[str, Identity | None]:
    """Return (user id, None) for a user, else ("", identity). Raises IdentityError."""
    kind = parse_principal_type(principal.principal_type)
    name = principal.principal_id
    if kind.type_name == "user" and not name.startswith("us::"):
        return Identity.user(name, "any").user_id, None
    identity = Identity.parse(name)
    if identity.type_name != kind.type_name:
        raise IdentityError(f"{name} is a {identity.type_name}, not a {kind.type_name}")
    return "", identity


def _duration(ms: int) -> str:
    """Return a duration for people: 42s, 1m30s, 2h0m5s."""
    seconds = max(ms, 0) // 1000
    hours, minutes = seconds // 3600, seconds // 60 % 60
    text = f"{hours}h{minutes}m" if hours else f"{minutes}m" if minutes else ""
    return f"{text}{seconds % 60}s"
