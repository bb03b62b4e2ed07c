"""Lists and finds connected participants, for the services of a gateway.

LocalDirectory    one node: what its registry knows
ClusterDirectory  all nodes of a cluster (cluster/locks/directory.py)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from aether_trio.model.ownership import (
    DisconnectOutcome,
    DisconnectResult,
    LastSeen,
    SessionFilter,
    SessionList,
    SessionRecord,
    WorkspaceUse,
)
from aether_trio.session.registry import SessionRegistry

__all__ = ["LocalDirectory", "SessionDirectory"]


class SessionDirectory(Protocol):
    """Lists connected participants; `async` methods raise StorageUnavailable."""

    async def page(self, wanted: SessionFilter, offset: int, limit: int) -> SessionList:
        """Return at most `limit` live sessions, after the first `offset` that match."""

    async def use(self, workspace: str = "") -> Mapping[str, WorkspaceUse]:
        """Count the participants in each workspace that has one, or in a workspace."""

    async def find(self, session_id: str) -> SessionRecord | None:
        """Return the live session with this id; None without one."""

    async def holder(self, identity: str) -> SessionRecord | None:
        """Return the live session of an identity; None without one."""

    async def disconnect(self, session_id: str, reason: str) -> DisconnectResult:
        """End a session, whose client is told not to connect again."""

    async def last_seen(self, identity: str) -> LastSeen:
        """Return whether an identity is connected, and its last activity."""

    async def user_last_seen(self, user_id: str) -> LastSeen:
        """Return whether a user has a connected window, and the last activity in any."""

    def moved(self, session: SessionRecord) -> None:
        """Note that the user of a session has switched to a workspace. Never blocks."""

    def pick_service(self, implementation: str) -> str | None:
        """Return the topic of the next live instance of a service, in turn. Never blocks."""


class LocalDirectory:
    """The SessionDirectory of a gateway without a cluster."""

    def __init__(self, registry: SessionRegistry) -> None:
        self._registry = registry

    async def page(self, wanted: SessionFilter, offset: int, limit: int) -> SessionList:
        found, total = self._registry.page(wanted.kinds, wanted.workspace, offset, limit)
        return SessionList([session.record for session in found], total)

    async def use(self, workspace: str = "") -> Mapping[str, WorkspaceUse]:
        return self._registry.use(workspace)

    async def find(self, session_id: str) -> SessionRecord | None:
        return self._registry.record(session_id)

    async def holder(self, identity: str) -> SessionRecord | None:
        session = self._registry.holder(identity)
        return None if session is None else session.record

    async def disconnect(self, session_id: str, reason: str) -> DisconnectResult:
        identity = self._registry.disconnect(session_id, reason)
        return DisconnectResult(DisconnectOutcome.DONE if identity else DisconnectOutcome.UNKNOWN, identity or "")

    async def last_seen(self, identity: str) -> LastSeen:
        return self._registry.last_seen(identity)

    async def user_last_seen(self, user_id: str) -> LastSeen:
        return self._registry.user_last_seen(user_id)

    def moved(self, session: SessionRecord) -> None:
        self._registry.moved(session)

    def pick_service(self, implementation: str) -> str | None:
        session = self._registry.pick_service(implementation)
        return session.identity.topic if session is not None else None
