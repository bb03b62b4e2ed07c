"""Pauses, resumes and ends the sessions of a cluster node as its lease changes.

A node that stood still may have been declared dead, and other nodes may own what it believes to
own. So while its lease is lost the node handles no input and delivers no durable message. When the
lease is back, the node forgets the cursors of the identities that it has lost: their new owners
were not sent what was delivered here.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import structlog
import trio

from aether_trio.log.topic_log import TopicLog
from aether_trio.model.errors import Status
from aether_trio.model.ownership import IdentityLock
from aether_trio.session.duplicate_grace import GAVE_WAY, yields_at_once
from aether_trio.session.lease_gate import LeaseGate
from aether_trio.session.registry import SessionRegistry

logger = structlog.get_logger("aether.session")

LEAVING_S = 0.1  # how long a request from another node waits for a session that may be ending


@dataclass(slots=True)
class Leaving:
    """The ended sessions of one identity whose identity lock is not released."""

    workspace: str
    sessions: int = 0
    over: trio.Event = field(default_factory=trio.Event)


class NodeSessions:
    """The sessions of a cluster node: live ones, and ended ones that still have locks."""

    def __init__(self, registry: SessionRegistry, log: TopicLog) -> None:
        self.registry = registry
        self.log = log
        self.gate = LeaseGate()
        self._leaving: dict[str, Leaving] = {}

    # -- sessions that have ended ------------------------------------------------------------------

    def begin_leaving(self, identity: str, workspace: str) -> None:
        """Note that a session has ended whose identity lock is to be released."""
        self._leaving.setdefault(identity, Leaving(workspace)).sessions += 1

    def end_leaving(self, identity: str) -> None:
        """Note that the identity lock of an ended session is released."""
        leaving = self._leaving[identity]
        leaving.sessions -= 1
        if not leaving.sessions:
            del self._leaving[identity]
            leaving.over.set()

    def leaving(self) -> list[str]:
        return list(self._leaving)

    def leaving_workspace(self, workspace: str) -> list[Leaving]:
        """Return the ended sessions that still count as connections of a workspace."""
        return [one for one in self._leaving.values() if one.workspace == workspace]

    async def wait_left(self, identity: str) -> None:
        """Wait until no ended session of this node keeps the lock of the identity."""
        while (leaving := self._leaving.get(identity)) is not None:
            await leaving.over.wait()

    # -- SessionHost -------------------------------------------------------------------------------

    def lease_lost(self) -> None:
        if not self.gate.paused:
            logger.warning(
                "this node lost its lease in the cluster; its sessions handle no input until it is back",
                sessions=len(self.registry),
            )
            self.gate.pause()

    def lease_back(self, lost: Sequence[IdentityLock], kept: Collection[str] | None) -> None:
        if lost:
            self.log.void()
        for lock in lost:
            session = self.registry.session(lock.session_id)
            if session is not None:
                session.end(Status.CANCELLED, "another node has taken over this identity")
        # After the ends, which may move a cursor. Locks released since are not kept either.
        if kept is not None:
            self.log.cursors.drop(kept.__contains__)
        self._resume()

    def lease_gone(self) -> None:
        self.log.void()
        for session in self.registry:
            session.end(Status.UNAVAILABLE, "this gateway has lost its place in the cluster; connect again")
        self.log.cursors.drop(lambda _: False)
        self._resume()

    def _resume(self) -> None:
        if self.gate.paused:
            logger.info(
                "this node's lease in the cluster is back, or gone for good; its sessions handle input again",
                sessions=len(self.registry),
            )
        self.gate.resume()
        for session in self.registry:
            if session.outbox.delivery_bytes:
                session.outbox.kick()

    async def yields(self, lock: IdentityLock, resume_session_id: str) -> bool:
        session = self.registry.session(lock.session_id)
        if session is not None:
            if resume_session_id == lock.session_id:
                session.end(Status.CANCELLED, "a session on another node has taken over this identity")
            elif yields_at_once(session, resume_session_id):
                session.end(Status.CANCELLED, GAVE_WAY)
            elif session.link.peer_has_ended():
                session.end(Status.CANCELLED, "the stream had ended")
            else:
                with trio.move_on_after(LEAVING_S):
                    await session.wait_detached()
                if not session.detached:
                    return False
        await self.wait_left(lock.identity)
        return True
