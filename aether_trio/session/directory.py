"""The list of connected participants, as services ask for it.

LocalDirectory    one node: what its registry knows
ClusterDirectory  all nodes of a cluster (cluster/locks/directory.py)
"""

from __future__ import annotations

from typing import Protocol

from aether_trio.model.ownership import (
    DisconnectOutcome,
    DisconnectResult,
    LastSeen,
    SessionFilter,
    SessionList,
    SessionRecord,
)
from aether_trio.session.registry import SessionRegistry

__all__ = ["LocalDirectory", "SessionDirectory"]


class SessionDirectory(Protocol):
    """Which participants are connected.

    The methods that are `async` raise StorageUnavailable.
    """

    async def page(self, wanted: SessionFilter, offset: int, limit: int) -> SessionList:
        """Return at most `limit` live sessions behind the first `offset`."""
        ...

    async def find(self, session_id: str) -> SessionRecord | None:
        """Return the live session with this id."""
        ...

    async def disconnect(self, session_id: str, reason: str) -> DisconnectResult:
        """End a session with CANCELLED and FORCE_DISCONNECT."""
        ...

    async def last_seen(self, identity: str) -> LastSeen:
        """Return the last activity of the participant with this identity."""
        ...

    async def user_last_seen(self, user_id: str) -> LastSeen:
        """Return the last activity in any window of this user."""
        ...

    def moved(self, session: SessionRecord) -> None:
        """Note that a participant has switched to the workspace of this record.

        Never blocks.
        """
        ...

    def pick_service(self, implementation: str) -> str | None:
        """Return the topic of a live instance of a service, each in its turn.

        Never blocks.
        """
        ...


class LocalDirectory:
    """The directory of a gateway without a cluster."""

    def __init__(self, registry: SessionRegistry) -> None:
        self._registry = registry

    async def page(self, wanted: SessionFilter, offset: int, limit: int) -> SessionList:
        """See SessionDirectory."""
        found, total = self._registry.page(wanted.kinds, wanted.workspace, offset, limit)
        return SessionList([session.record for session in found], total)

    async def find(self, session_id: str) -> SessionRecord | None:
        """See SessionDirectory."""
        return self._registry.record(session_id)

    async def disconnect(self, session_id: str, reason: str) -> DisconnectResult:
        """See SessionDirectory."""
        identity = self._registry.disconnect(session_id, reason)
        if identity is None:
            return DisconnectResult(DisconnectOutcome.UNKNOWN)
        return DisconnectResult(DisconnectOutcome.DONE, identity)

    async def last_seen(self, identity: str) -> LastSeen:
        """See SessionDirectory."""
        return self._registry.last_seen(identity)

    async def user_last_seen(self, user_id: str) -> LastSeen:
        """See SessionDirectory."""
        return self._registry.user_last_seen(user_id)

    def moved(self, session: SessionRecord) -> None:
        """See SessionDirectory."""
        self._registry.moved(session)

    def pick_service(self, implementation: str) -> str | None:
        """See SessionDirectory."""
        session = self._registry.pick_service(implementation)
        return session.identity.topic if session is not None else None
