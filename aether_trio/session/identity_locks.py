"""Locks the identity of a session: in the registry, and in a cluster in a table.

    handshake ─▶ take ─▶ (cluster: lock in the table) ─▶ registry
    session ends ─▶ registry ─▶ release ─▶ (cluster: settle its writes, unlock in the table)

An ended session has given up its identity on this node at once. In a cluster its lock in the table
follows when its messages and its cursors are committed, so that a successor on another node
continues where it stopped, and when all its writes are over (storage/session_writes.py), which
also a successor on this node waits for: no session may write after its successor.

Invariants: a session in the registry of a cluster's node has the lock in the table, or has been
told to end; the lock is released after the last write of its session.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Protocol

import structlog
import trio

from aether_trio.concurrency.events import AutoResetEvent
from aether_trio.concurrency.supervision import keep_running
from aether_trio.model.errors import Status, StatusError
from aether_trio.model.ownership import GrantedLock, IdentityLock, LockRequest, SessionHistory
from aether_trio.session.init_connection import Claim
from aether_trio.session.node_sessions import Leaving, NodeSessions
from aether_trio.session.registry import SessionRegistry
from aether_trio.session.session import Session
from aether_trio.storage.base import RefusedError, StorageUnavailable

logger = structlog.get_logger("aether.session")

CURSORS_S = 2.0  # for the cursors of an ended session; messages beyond are sent again


class IdentityLocks(Protocol):
    """Gives sessions the ownership of their identities, one session at a time."""

    async def take(self, session: Session, claim: Claim) -> tuple[Session | None, SessionHistory | None]:
        """Lock the identity for a session; return (displaced session, SessionHistory).

        No checkpoint between the decision and the return. Raises StatusError.
        """

    def release(self, session: Session) -> None:
        """Release the identity of an ended session, if the session has it. Never blocks."""


class LocalIdentityLocks:
    """Locks identities in the SessionRegistry of a gateway without a cluster."""

    def __init__(self, registry: SessionRegistry) -> None:
        self._registry = registry

    async def take(self, session: Session, claim: Claim) -> tuple[Session | None, SessionHistory | None]:
        return self._registry.claim(session, claim.resume_session_id)

    def release(self, session: Session) -> None:
        """Do nothing: the ended session has left the registry already."""


class LockTable(Protocol):
    """The table of the identity locks of all nodes of a cluster."""

    async def claim(self, request: LockRequest) -> GrantedLock:
        """Lock an identity for a session. Raises StatusError and StorageUnavailable.

        A call that is cancelled, or raises StorageUnavailable, gives no lock, but may have taken
        it from the session of this node that the request names.
        """

    def release(self, lock: IdentityLock, history: SessionHistory | None = None) -> bool:
        """Release an identity lock; return whether this node had it."""

    def mine(self, identity: str) -> IdentityLock | None:
        """Return this node's lock of an identity; None without one."""


class NodeIdentityLocks:
    """The IdentityLocks of a cluster node; `run` must run while sessions live."""

    def __init__(self, sessions: NodeSessions, table: LockTable) -> None:
        self._sessions = sessions
        self._registry = sessions.registry
        self._log = sessions.log
        self._table = table
        self._ended: list[tuple[Session, IdentityLock]] = []
        self._work = AutoResetEvent()

    # -- taking ------------------------------------------------------------------------------------

    async def take(self, session: Session, claim: Claim) -> tuple[Session | None, SessionHistory | None]:
        name = claim.identity.text
        await self._sessions.wait_left(name)
        holder = self._registry.holder(name)
        if holder is not None and holder.session_id != claim.resume_session_id:
            return self._registry.claim(session, claim.resume_session_id)  # raises the refusal
        try:
            granted = await self._claim(_request(session, claim))
        except RefusedError as error:
            raise StatusError(
                Status.INVALID_ARGUMENT, f"a value of this InitConnection cannot be stored: {error}"
            ) from None
        except StatusError:
            raise
        except BaseException as error:
            if holder is not None:
                # The claim may have taken the lock from it; then it is released for other nodes.
                holder.end(Status.CANCELLED, f"session {session.session_id} was to take over this identity")
            if isinstance(error, StorageUnavailable):
                raise StatusError(Status.UNAVAILABLE, f"the gateway's storage does not answer: {error}") from None
            raise
        stale = self._registry.holder(name)
        if stale is not None and stale.session_id != claim.resume_session_id:
            stale.end(Status.CANCELLED, f"session {session.session_id} holds this identity now")
        displaced, history = self._registry.claim(session, claim.resume_session_id)
        before = displaced or stale or holder  # which may have ended during the claim
        session.own(before.pending if before is not None else None, granted.lock)
        if before is not None:
            # The lock is now released with this session's last message, and not before theirs.
            session.sender.last_append = before.sender.last_append
        if displaced is None:
            # This node's memory of an ended session may be older than another node's session.
            history = granted.history
        return displaced, history

    async def _claim(self, request: LockRequest) -> GrantedLock:
        leaving: list[Leaving] | None = None
        while True:
            try:
                return await self._table.claim(request)
            except StatusError as refusal:
                if refusal.status is not Status.RESOURCE_EXHAUSTED:
                    raise
                # An ended session counts as a connection of its workspace until its lock is
                # released. One place is enough: another session may take long. The claim does not
                # wait for sessions that end later.
                if leaving is None:
                    leaving = self._sessions.leaving_workspace(request.workspace)
                if not leaving:
                    raise
            await _wait_any_over(leaving)
            leaving = [one for one in leaving if not one.over.is_set()]

    # -- releasing ---------------------------------------------------------------------------------

    def release(self, session: Session) -> None:
        lock = session.lock
        if lock is None or self._table.mine(lock.identity) != lock:
            return  # it never had the lock, or another session has it by now
        self._sessions.begin_leaving(lock.identity, session.identity.workspace)
        self._ended.append((session, lock))
        self._work.set()

    async def run(self) -> None:
        """Release the locks of ended sessions after their last writes, until cancelled."""
        async with trio.open_nursery() as nursery:
            # Not inside of what is restarted: the nursery's tasks would end with it, and their
            # locks would never be free.
            await keep_running("identity locks", partial(self._release_ended, nursery))

    async def _release_ended(self, nursery: trio.Nursery) -> None:
        while True:
            await self._work.wait()
            ended = []
            for session, lock in self._ended:
                if session.pending is None or not session.pending.count:
                    ended.append((session, lock))
                else:
                    nursery.start_soon(self._wait_programs, session, lock)
            self._ended = []
            if not ended:
                continue
            try:
                # Without a limit: the log ends its attempts. A message that is committed after its
                # sender's successor has begun would be out of order, and have an unknown number.
                await self._log.wait_settled(max(session.sender.last_append for session, _ in ended))
                with trio.move_on_after(CURSORS_S):
                    await self._log.cursors.save()
            finally:
                # If this node ends here: unsettled sessions' locks are released with the lease,
                # without which nothing is written. After an exception they are looked at again.
                if left := [one for one in ended if not self._log.is_settled(one[0].sender.last_append)]:
                    self._ended[:0] = left
                    self._work.set()
                self._release([one for one in ended if one not in left])

    async def _wait_programs(self, session: Session, lock: IdentityLock) -> None:
        assert session.pending is not None
        await session.pending.wait_none()  # no limit: the database has one
        self._ended.append((session, lock))
        self._work.set()

    def _release(self, ended: Sequence[tuple[Session, IdentityLock]]) -> None:
        for session, lock in ended:
            self._table.release(lock, session.history)
            self._sessions.end_leaving(lock.identity)


async def _wait_any_over(leaving: Sequence[Leaving]) -> None:
    async with trio.open_nursery() as nursery:

        async def wait(one: Leaving) -> None:
            await one.over.wait()
            nursery.cancel_scope.cancel()

        for one in leaving:
            nursery.start_soon(wait, one)


def _request(session: Session, claim: Claim) -> LockRequest:
    identity = claim.identity
    return LockRequest(
        identity.text,
        session.session_id,
        identity.kind.value,
        session.connected_ms,
        workspace=identity.workspace,
        implementation=identity.implementation,
        resume_session_id=claim.resume_session_id,
        takes_any=session.takes_any,
        peer=session.link.peer.address,
        client_sdk=session.client.sdk,
        client_version=session.client.version,
    )
