"""How a session comes to hold its identity: on one node by the registry alone, in a cluster by a row that all nodes agree on.

    serve ──▶ take ──▶ (cluster: claim the row) ──▶ registry
    session ends ──▶ registry ──▶ let_go ──▶ (cluster: settle what it appended and read, then release the row)

A session that has ended on this node has let go of its identity here at once. Its row follows as soon as its messages and its
cursors are committed, so that a successor on another node reads on where it stopped, and all that it has asked for is over, as the
database goes on with a program whose caller is gone (storage/pending.py): what a session writes is never written after what its successor
writes. On this node a successor that takes over waits for the same before it is acknowledged.

A node that stood still may have been taken for dead, and others hold what it believes to hold. So while its lease is lost it hands out no
durable message, and when the lease is back it forgets the positions of those that it has lost: their holders have not had what was
delivered here.

Invariants: whoever is in the registry of a node in a cluster has the row, or has been told to end; the row is released after the last
write for its session; while `paused`, no session reads input, and none is sent a durable message.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import structlog
import trio

from aether_trio.concurrency.supervision import keep_running
from aether_trio.log.topic_log import TopicLog
from aether_trio.model.errors import Status, StatusError
from aether_trio.model.ownership import GrantedLock, IdentityLock, LockRequest, SessionHistory
from aether_trio.session.admission import Claim
from aether_trio.session.registry import Registry
from aether_trio.session.session import Session
from aether_trio.storage.base import RefusedError, StorageUnavailable

logger = structlog.get_logger("aether.session")

CURSORS_S = 2.0
"""How long the row of an ended session waits for its positions; what is not known of them by then is delivered again."""
LEAVING_S = 0.1
"""How long another node's claimant waits for a session that may just be ending."""


class IdentityLocks(Protocol):
    """See the module docstring."""

    paused: bool
    """Whether input and durable messages are to wait: it is open what this node holds. See outbox.Gate."""

    async def wait_input(self) -> None:
        """Wait until `paused` is false."""
        ...

    async def take(self, session: Session, claim: Claim) -> tuple[Session | None, SessionHistory | None]:
        """Make `session` the holder: (displaced session of this node, history to continue). Raises StatusError.

        No checkpoint between the decision and the return.
        """
        ...

    async def wait_over(self, session: Session) -> None:
        """After `take`: wait until nothing may be written any more of those that had the identity on this node before."""
        ...

    def let_go(self, session: Session) -> None:
        """The session has ended. Never blocks; for a session that holds nothing it does nothing."""
        ...


class LocalHolding:
    """One node: the registry decides."""

    paused = False

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def wait_input(self) -> None:
        """See IdentityLocks."""

    async def take(self, session: Session, claim: Claim) -> tuple[Session | None, SessionHistory | None]:
        """See IdentityLocks."""
        return self._registry.claim(session, claim.resume_session_id)

    async def wait_over(self, session: Session) -> None:
        """See IdentityLocks. A file is written in the order in which programs were given: its successor's come behind."""

    def let_go(self, session: Session) -> None:
        """See IdentityLocks."""


class Rows(Protocol):
    """The part of the cluster's Holds that is needed here (cluster/locks/cluster_locks.py)."""

    async def claim(self, request: LockRequest) -> GrantedLock:
        """Become the holder of an identity. Raises StatusError and StorageUnavailable."""
        ...

    def release(self, hold: IdentityLock, history: SessionHistory | None = None) -> bool:
        """Give an identity back."""
        ...

    def mine(self, identity: str) -> IdentityLock | None:
        """This node's hold of an identity."""
        ...

    def releasing(self) -> list[str]:
        """The identities that were given back, and of which the others do not know yet."""
        ...


@dataclass(slots=True)
class _Leaving:
    """An identity with sessions that have ended and whose rows are not released: two, when the second one took over while the first ended."""

    workspace: str
    sessions: int = 0
    over: trio.Event = field(default_factory=trio.Event)


class ClusterHolding:
    """A node of a cluster. Also the cluster's SessionHost (cluster/records.py). `run` must run while sessions live.

    Made before the cluster is joined, which needs it: `rows` is given afterwards by `join`.
    """

    def __init__(self, registry: Registry, log: TopicLog, now_ms: Callable[[], int]) -> None:
        self._registry = registry
        self._log = log
        self._now_ms = now_ms
        self._rows: Rows | None = None
        self._held: dict[str, IdentityLock] = {}
        self._leaving: dict[str, _Leaving] = {}
        self._ended: list[tuple[Session, IdentityLock]] = []
        self._work = trio.Event()
        self._input = trio.Event()
        self.paused = False

    def join(self, rows: Rows) -> None:
        """The cluster is there."""
        self._rows = rows

    async def wait_input(self) -> None:
        """See IdentityLocks."""
        while self.paused:
            await self._input.wait()

    # -- taking -----------------------------------------------------------------------------------------------------

    async def take(self, session: Session, claim: Claim) -> tuple[Session | None, SessionHistory | None]:
        """See IdentityLocks."""
        assert self._rows is not None, "sessions come after the cluster"
        name = claim.identity.text
        await self._wait_left(name)
        holder = self._registry.holder(name)
        if holder is not None and holder.session_id != claim.resume_session_id:
            return self._registry.claim(session, claim.resume_session_id)  # which says why not
        try:
            claimed = await self._claim(self._rows, _request(session, claim))
        except RefusedError as error:
            raise StatusError(
                Status.INVALID_ARGUMENT, f"what this connection says of itself cannot be stored: {error}"
            ) from None
        except StorageUnavailable as error:
            raise StatusError(Status.UNAVAILABLE, f"the gateway's storage does not answer: {error}") from None
        stale = self._registry.holder(name)
        if stale is not None and stale.session_id != claim.resume_session_id:
            stale.end(Status.CANCELLED, f"session {session.session_id} holds this identity now")
        displaced, history = self._registry.claim(session, claim.resume_session_id)
        self._held[session.session_id] = claimed.lock
        before = displaced or stale
        session.own(before.pending if before is not None else None, claimed.lock)
        if displaced is None:
            # This node's memory of an ended session may be older than another node's session.
            history = claimed.history
        return displaced, history

    async def wait_over(self, session: Session) -> None:
        """See IdentityLocks."""
        if session.pending is not None:
            await session.pending.wait_none()

    async def _claim(self, rows: Rows, request: LockRequest) -> GrantedLock:
        leaving: list[_Leaving] | None = None
        while True:
            try:
                return await rows.claim(request)
            except StatusError as refusal:
                if refusal.status is not Status.RESOURCE_EXHAUSTED:
                    raise
                # A session that leaves this workspace counts until its row is released. One place is enough: another session may take
                # long to leave. The claim does not wait for sessions that leave later.
                if leaving is None:
                    leaving = [one for one in self._leaving.values() if one.workspace == request.workspace]
                if not leaving:
                    raise
            await _wait_any_over(leaving)
            leaving = [one for one in leaving if not one.over.is_set()]

    # -- letting go -------------------------------------------------------------------------------------------------

    def let_go(self, session: Session) -> None:
        """See IdentityLocks."""
        hold = self._held.pop(session.session_id, None)
        if hold is None or self._rows is None or self._rows.mine(hold.identity) != hold:
            return  # never held, or somebody else does by now
        self._leaving.setdefault(hold.identity, _Leaving(session.identity.workspace)).sessions += 1
        self._ended.append((session, hold))
        self._work.set()

    def leaving(self) -> list[str]:
        """The identities whose session has ended here and whose row does not say so yet."""
        return [*self._leaving, *(self._rows.releasing() if self._rows is not None else ())]

    async def _wait_left(self, name: str) -> None:
        while (leaving := self._leaving.get(name)) is not None:
            await leaving.over.wait()

    async def run(self) -> None:
        """Release the rows of ended sessions, until cancelled."""
        async with trio.open_nursery() as nursery:
            # Inside of the nursery: those that wait in it would be forgotten with it, and their identities never free.
            await keep_running("locks", partial(self._release_ended, nursery))

    async def _release_ended(self, nursery: trio.Nursery) -> None:
        while True:
            await self._work.wait()
            self._work = trio.Event()
            ended = []
            for one in self._ended:
                if _is_over(one[0]):
                    ended.append(one)
                else:
                    nursery.start_soon(self._wait_over, *one)
            self._ended = []
            if not ended:
                continue
            try:
                # Without a limit: the log ends its own attempts. A message that is committed after its sender's successor has begun
                # would be out of order, and its number would not be known there.
                await self._log.wait_settled(max(session.sender.last_append for session, _ in ended))
                with trio.move_on_after(CURSORS_S):
                    await self._log.cursors.save()
            finally:
                # If this node ends before that: what is not settled is given back with the lease, without which it cannot be written.
                # After a mistake it is looked at again.
                if left := [one for one in ended if not self._log.is_settled(one[0].sender.last_append)]:
                    self._ended[:0] = left
                    self._work.set()
                self._release([one for one in ended if one not in left])

    async def _wait_over(self, session: Session, hold: IdentityLock) -> None:
        """Without a limit: the database decides within its own, and the row is free with the lease, if that ends."""
        assert session.pending is not None
        await session.pending.wait_none()
        self._ended.append((session, hold))
        self._work.set()

    def _release(self, ended: Sequence[tuple[Session, IdentityLock]]) -> None:
        assert self._rows is not None
        for session, hold in ended:
            history = session.history
            self._rows.release(
                hold, SessionHistory(history.session_id, history.initial_connection_ms, history.reconnections)
            )
            leaving = self._leaving[hold.identity]
            leaving.sessions -= 1
            if not leaving.sessions:
                del self._leaving[hold.identity]
                leaving.over.set()

    # -- SessionHost ------------------------------------------------------------------------------------------------

    def lease_lost(self) -> None:
        """See SessionHost."""
        if not self.paused:
            logger.warning("the lease is lost: input waits", sessions=len(self._registry))
            self.paused = True
            self._input = trio.Event()

    def lease_back(self, lost: Sequence[IdentityLock], kept: Collection[str] | None) -> None:
        """See SessionHost."""
        if lost:
            self._log.void()
        for hold in lost:
            session = self._registry.session(hold.session_id)
            if session is not None:
                session.end(Status.CANCELLED, "another node has taken over this identity")
        # Behind the ends, which may move a position. Those that were given back since the lease ended are not kept either.
        if kept is not None:
            self._log.cursors.drop(kept.__contains__)
        self._go_on()

    def lease_gone(self) -> None:
        """See SessionHost."""
        self._log.void()
        self._held.clear()
        for session in self._registry:
            session.end(Status.UNAVAILABLE, "this gateway has lost its place in the cluster; connect again")
        self._log.cursors.drop(lambda _: False)
        self._go_on()

    def _go_on(self) -> None:
        if self.paused:
            logger.info("the lease is settled: input goes on", sessions=len(self._registry))
        self.paused = False
        self._input.set()
        for session in self._registry:
            if session.outbox.delivery_bytes:
                session.outbox.kick()

    async def asked(self, hold: IdentityLock, resume_session_id: str) -> bool:
        """See SessionHost."""
        session = self._registry.session(hold.session_id)
        if session is not None:
            if resume_session_id == hold.session_id:
                session.end(Status.CANCELLED, "a session on another node has taken over this identity")
            elif session.link.peer_has_ended():
                session.end(Status.CANCELLED, "the stream had ended")
            else:
                with trio.move_on_after(LEAVING_S):
                    await session.wait_detached()
                if not session.detached:
                    return False
        await self._wait_left(hold.identity)
        return True


async def _wait_any_over(leaving: Sequence[_Leaving]) -> None:
    async with trio.open_nursery() as nursery:

        async def wait(one: _Leaving) -> None:
            await one.over.wait()
            nursery.cancel_scope.cancel()

        for one in leaving:
            nursery.start_soon(wait, one)


def _is_over(session: Session) -> bool:
    return session.pending is None or not session.pending.count


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
