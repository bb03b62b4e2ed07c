"""The protocols of a node's sessions, which session/ implements for the cluster."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

from aether_trio.model.ownership import IdentityLock, LastSeen, SessionRecord

__all__ = ["LocalSessions", "SessionHost"]


class SessionHost(Protocol):
    """What happens to a node's sessions with its lease (session/node_sessions.py).

    All methods but `yields` are one step, without a checkpoint, and raise nothing.
    """

    def lease_lost(self) -> None:
        """Pause: it is not known whether this node's locks are still its own.

        Called once, until one of the next two is called.
        """
        ...

    def lease_back(self, lost: Sequence[IdentityLock], kept: Collection[str] | None) -> None:
        """Resume, and end the sessions of the `lost` locks.

        Other nodes have taken these locks, or the table has lost them. `kept` None: this node was
        not declared dead. Otherwise it was, and no other node has taken these identities meanwhile.
        """
        ...

    def lease_gone(self) -> None:
        """End every session: other nodes may have taken all locks.

        None of them needs a release.
        """
        ...

    def leaving(self) -> Sequence[str]:
        """Return the identities of ended sessions whose locks are not released yet."""
        ...

    async def yields(self, lock: IdentityLock, resume_session_id: str) -> bool:
        """Answer another node that requests `lock.identity`.

        Its session resumes `resume_session_id`; "" for none. Returns False when this node's session
        lives on. True: the session has ended, its appends and cursors are committed, and its lock
        is released.
        """
        ...


class LocalSessions(Protocol):
    """What a node's registry knows of its live sessions (session/registry.py)."""

    def record(self, session_id: str) -> SessionRecord | None:
        """Return what listings say of the session."""
        ...

    def disconnect(self, session_id: str, reason: str) -> str | None:
        """End the session; return its identity, None if it is not live.

        One step, without a checkpoint.
        """
        ...

    def last_seen(self, identity: str) -> LastSeen:
        """Return the last activity of the session of this identity."""
        ...

    def user_last_seen(self, user_id: str) -> LastSeen:
        """Return the last activity in the windows of this user."""
        ...

    def instances(self, implementation: str) -> list[str]:
        """Return the topics of the live instances of a service."""
        ...
