"""What the cluster calls of a node's sessions: protocols that session/ implements."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

from aether_trio.model.ownership import IdentityLock, LastSeen, SessionRecord

__all__ = ["LocalSessions", "SessionHost"]


class SessionHost(Protocol):
    """Pauses and ends sessions with a node's lease; one step each, but for `yields`."""

    def lease_lost(self) -> None:
        """Pause all sessions of the node, once: its identity locks may not be its own."""

    def lease_back(self, lost: Sequence[IdentityLock], kept: Collection[str] | None) -> None:
        """Resume the node's sessions, and end those of the `lost` locks.

        `kept` None: the node was not declared dead. Otherwise no other node has taken these
        identities.
        """

    def lease_gone(self) -> None:
        """End every session of the node, without releases: other nodes may have its locks."""

    def leaving(self) -> Sequence[str]:
        """Return identities of ended sessions whose locks are not released yet."""

    async def yields(self, lock: IdentityLock, resume_session_id: str) -> bool:
        """Return whether a session here has ended for the node that wants its identity.

        That node's session resumes `resume_session_id`; "" for none. True: the session has ended,
        its appends and cursors are committed, and its lock is released.
        """


class LocalSessions(Protocol):
    """The live sessions of this node, as the cluster's directory asks for them."""

    def record(self, session_id: str) -> SessionRecord | None:
        """Return the listed facts of a live session of this node; None if there is none."""

    def session_id_of(self, identity: str) -> str | None:
        """Return the id of the live session of an identity on this node; None without one."""

    def disconnect(self, session_id: str, reason: str) -> str | None:
        """End a session of this node in one step; return its identity, None if not live."""

    def last_seen(self, identity: str) -> LastSeen:
        """Return the last activity of an identity's session on this node."""

    def user_last_seen(self, user_id: str) -> LastSeen:
        """Return the last activity in a user's windows on this node."""

    def instances(self, implementation: str) -> list[str]:
        """Return the topics of a service's live instances on this node."""
