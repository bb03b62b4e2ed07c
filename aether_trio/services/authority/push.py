"""Tells connected participants of revoked grants, and of authority requests.

Each node does that for its own sessions when it applies a change (services/access/changes.py):
delegates of a revoked grant and of all below it, in all their windows, and the subject of the
revoked one, whose list of those who act for it is shorter now; of a request its requester, its
subject, and those who are asked. A push may be lost with the connection, and is never repeated.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

import structlog
import trio

from aether_trio.concurrency.events import AutoResetEvent
from aether_trio.model.access.grants import PrincipalKey
from aether_trio.model.access.requests import RequestRecord
from aether_trio.model.clock import Clock
from aether_trio.services.access.changes import AccessChanges
from aether_trio.services.authority import store
from aether_trio.services.authority.fields import request_event
from aether_trio.services.authority.known_grants import GRANT
from aether_trio.services.authority.rights import Rights
from aether_trio.session.registry import SessionRegistry
from aether_trio.session.session import Session
from aether_trio.storage.base import Database, StorageUnavailable
from aether_trio.wire.pb import aether_pb2 as pb

logger = structlog.get_logger("aether.authority")

REQUEST: Final = "request"
"""The kind of changes of authority requests: {"status": word} by request id."""
MAX_WAITING: Final = 100_000
"""Changes of which participants are still to be told; older ones are dropped."""
SESSIONS_AT_ONCE: Final = 100
"""Sessions whose rights are asked without a pause."""


class AuthorityPush:
    """Sends revocations and request events to the sessions of this node."""

    def __init__(
        self, database: Database, clock: Clock, registry: SessionRegistry, rights: Rights, changes: AccessChanges
    ) -> None:
        self._database = database
        self._clock = clock
        self._registry = registry
        self._rights = rights
        self._waiting: deque[tuple[str, str, Any]] = deque(maxlen=MAX_WAITING)
        self._added = AutoResetEvent()
        changes.when_applied(GRANT, partial(self._changed, GRANT))
        changes.when_applied(REQUEST, partial(self._changed, REQUEST))

    def _changed(self, kind: str, items: Sequence[tuple[str, Any]], everything: bool) -> None:
        for key, value in items:
            if value is not None and (kind == REQUEST or "revoked" in value):
                self._waiting.append((kind, key, value))
                self._added.set()

    async def run(self) -> None:
        """Tell the sessions of this node what has changed, until cancelled."""
        while True:
            await self._added.wait()
            while self._waiting:
                kind, key, value = self._waiting.popleft()
                try:
                    if kind == GRANT:
                        await self._tell_revoked(key, value["revoked"])
                    else:
                        await self._tell_request(key)
                except StorageUnavailable as error:
                    logger.info("participants are not told of a change of authority", kind=kind, reason=str(error))

    async def _tell_revoked(self, grant_id: str, revoked_ms: int) -> None:
        if not len(self._registry):
            return
        for found_id, root_id, delegate, subject in await self._database.read(partial(store.tree_below, grant_id)):
            notice = pb.AuthorityGrantRevocation(
                grant_id=found_id, root_grant_id=root_id, revoked_at=revoked_ms // 1000, cascade=found_id != grant_id
            )
            # One notice is enough for the subject, however many grants are below this one.
            for key in {delegate, subject} if found_id == grant_id else {delegate}:
                for session in self._sessions_of(key):
                    session.put(pb.DownstreamMessage(authority_grant_revocation=notice))

    async def _tell_request(self, request_id: str) -> None:
        if not len(self._registry):
            return
        record = await self._database.read_small(partial(store.load_request, request_id))
        if record is None:
            return
        message = pb.DownstreamMessage(authority_request_event=request_event(record, self._clock.now_ms()))
        told = {record.requester, record.subject, record.route.principal} - {None}
        for key in told:
            for session in self._sessions_of(key):
                session.put(message)
        if record.route.capability:
            await self._tell_holders(record, told, message)

    async def _tell_holders(
        self, record: RequestRecord, told: set[PrincipalKey | None], message: pb.DownstreamMessage
    ) -> None:
        """Tell those who hold the capability that a request is routed to."""
        for number, session in enumerate(self._registry, 1):
            if number % SESSIONS_AT_ONCE == 0:
                await trio.lowlevel.checkpoint()
            if PrincipalKey.of(session.identity) in told or not _listens(session):
                continue
            if self._rights.holds(session, record.route.capability):
                session.put(message)

    def _sessions_of(self, key: PrincipalKey | None) -> list[Session]:
        """Return the connected sessions of a principal: of a user, all windows."""
        if key is None:
            return []
        if key.type_name == "user":
            found = self._registry.windows(key.id)
        else:
            session = self._registry.holder(key.id)
            found = [] if session is None else [session]
        return [session for session in found if _listens(session)]


def _listens(session: Session) -> bool:
    """Return whether a session may be sent a push: its client is acknowledged."""
    return session.acknowledged and not session.detached
