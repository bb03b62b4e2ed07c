"""Locks identities across the cluster: one table row per identity, one owner.

    claim ─▶ free, or void (its lease has ended)    granted
          ─▶ locked by another node
               its lease can be taken               declare that node dead; granted
               it answers "alive"                   ALREADY_EXISTS
               it agrees, and releases the lock     granted
               no answer for `lease_grace_s`        end its lease, declare it dead; granted

A lock passes to another node only when its session has ended or is fenced. A request is a row of
`lock_requests` and a notification over the bus. The notification makes it quick; the node of the
owner finds requests whose notification was lost when it probes its lease. So only a node that
cannot probe its own lease (stopped, stuck, cut off from the database) is declared dead.

The locks of this node are known here, by identity (`mine`). Between two sessions of this node a
claim decides at once: one that names the owning session takes its place, another is refused.

Invariants: an identity has at most one claim of this node under way; `mine` has a lock only after
its commit, and until it is released, lost or taken over; a lock of this node that is in the
database and not in `mine` is released when another node requests it. A takeover that was cancelled,
or got no answer, may have the lock in the database: then it is released with the lock in `mine`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import structlog
import trio

from aether_trio.cluster.errors import LeaseLost
from aether_trio.cluster.locks.claim_batcher import ClaimBatcher, Full, Granted, HeldBy, OwnerAnswer, Release
from aether_trio.cluster.node.bus import ALL, Bus
from aether_trio.cluster.node.lease import Lease, LeaseState, LockRows
from aether_trio.cluster.node.liveness import Nodes
from aether_trio.cluster.session_host import SessionHost
from aether_trio.cluster.timeouts import ClusterLimits
from aether_trio.concurrency.events import AutoResetEvent
from aether_trio.model.containment import alone
from aether_trio.model.errors import Status, StatusError
from aether_trio.model.ownership import (
    GrantedLock,
    IdentityLock,
    LockRequest,
    SessionHistory,
    duplicate_identity,
    workspace_full,
)
from aether_trio.storage.base import RefusedError, StorageUnavailable

logger = structlog.get_logger("aether.cluster")

ASK: Final = "ask"
NEWS: Final = "news"
FIRST_LOOK_S: Final = 0.05  # before the second attempt; the pause doubles up to `ask_again_s`
QUESTIONS_AT_ONCE: Final = 1000

_QUESTIONS: Final = """
    SELECT a.identity, a.asker, a.session_id, a.resume_id, a.answer, h.session_id, h.epoch
    FROM lock_requests a CROSS JOIN LATERAL (SELECT * FROM identity_locks x WHERE x.identity = a.identity OFFSET 0) AS h
    WHERE h.node_id = $1 AND h.ended_ms IS NULL AND a.answer <> 'alive' AND a.asked_ms > aether_now_ms() - $2::bigint
    ORDER BY a.asked_ms LIMIT $3
"""


@dataclass(frozen=True, slots=True)
class ClusterLocksStatistics:
    """Identity locks that this node has (`held`), and counters of claims since start.

    `taken_over` are locks that this node gave to another one, `lost` those of an ended lease.
    """

    held: int
    claimed: int
    refused: int
    taken_over: int
    lost: int
    questions: int


@dataclass(frozen=True, slots=True)
class _Question:
    """Another node's request for an identity, and this node's lock of that identity."""

    identity: str
    asker: int
    asking_session: str
    resume_id: str
    answer: str
    session_id: str
    epoch: int


class ClusterLocks:
    """This node's identity locks: claims more, and answers requests of other nodes."""

    def __init__(
        self,
        lease: Lease,
        nodes: Nodes,
        bus: Bus,
        host: SessionHost,
        limits: ClusterLimits,
        make_batcher: Callable[[Callable[[Sequence[str]], None]], ClaimBatcher],
        connections_of: Callable[[str], int],
    ) -> None:
        self._lease = lease
        self._nodes = nodes
        self._bus = bus
        self._host = host
        self._limits = limits
        self._connections_of = connections_of
        self.batcher = make_batcher(self._on_written)
        self._mine: dict[str, IdentityLock] = {}
        self._claiming: dict[str, trio.Event] = {}
        self._waiting: dict[str, AutoResetEvent] = {}
        self._wanted: dict[str, set[int]] = {}
        self._answering: set[tuple[str, int, str]] = set()
        self._unanswered: dict[str, list[str]] = {}
        """Sessions whose claim may have taken the lock in the database from that in `_mine`."""
        self._releasing: set[str] = set()
        self._questions = AutoResetEvent()
        self._claimed = self._refused = self._taken_over = self._lost = self._asked = 0
        self.on_change: list[Callable[[Sequence[str]], None]] = []
        """Called in one step, after the commit, with identities that this node has locked or
        released."""
        bus.handle(ASK, self._on_ask)
        bus.handle(NEWS, self._on_lock_news)

    def mine(self, identity: str) -> IdentityLock | None:
        """Return this node's lock of an identity; None without one."""
        return self._mine.get(identity)

    def statistics(self) -> ClusterLocksStatistics:
        """Return the number of identity locks, and counters of claims since start."""
        return ClusterLocksStatistics(
            len(self._mine), self._claimed, self._refused, self._taken_over, self._lost, self._asked
        )

    # -- claiming ----------------------------------------------------------------------------------

    async def claim(self, request: LockRequest) -> GrantedLock:
        """Lock an identity for a session; if another node owns it, ask that node.

        Raises StatusError ALREADY_EXISTS when a session owns it that `resume_session_id` does not
        name, RESOURCE_EXHAUSTED when its workspace is full, UNAVAILABLE when the owner does not
        end; StorageUnavailable, also while the node has no lease. A cancelled caller does not have
        the lock.
        """
        identity = request.identity
        while (other := self._claiming.get(identity)) is not None:
            await other.wait()
        held = self._mine.get(identity)
        if held is not None and held.session_id != request.resume_session_id:
            raise self._refusal(request)
        done = self._claiming[identity] = trio.Event()
        # From before the first attempt, so that no notification after it is missed.
        self._waiting[identity] = AutoResetEvent()
        asked: list[HeldBy] = []
        try:
            return await self._claim(request, asked)
        except (StatusError, RefusedError, LeaseLost):
            raise  # without a lease the node loses all its locks
        except BaseException:
            self._release_unanswered(request)
            raise
        finally:
            del self._claiming[identity]
            done.set()
            del self._waiting[identity]
            if asked:
                self.batcher.withdraw(identity, request.session_id)

    async def _claim(self, request: LockRequest, asked: list[HeldBy]) -> GrantedLock:
        since, pause_s = trio.current_time(), FIRST_LOOK_S
        looked_for_dead = False
        while True:
            await self._lease.wait_held()
            verdict = await self.batcher.claim(request)
            if isinstance(verdict, Granted):
                if verdict.node_epoch != self._lease.epoch or self._lease.state is not LeaseState.HELD:
                    # Granted under a lease that has ended since, or too late to be among the rows
                    # with which a lost lease comes back (`reconcile`).
                    continue
                lock = self._mine[request.identity] = IdentityLock(request.identity, request.session_id, verdict.epoch)
                self._unanswered.pop(request.identity, None)
                self._claimed += 1
                self._changed((request.identity,))
                last = asked[-1] if asked else None
                return GrantedLock(lock, verdict.history, (last.node_id, last.session_id) if last is not None else None)
            if isinstance(verdict, Full):
                if looked_for_dead or not await self._nodes.find_dead():
                    self._refused += 1
                    raise workspace_full(request.workspace, self._connections_of(request.workspace))
                looked_for_dead = True
            elif isinstance(verdict, HeldBy):
                if not asked or (asked[-1].node_id, asked[-1].session_id) != (verdict.node_id, verdict.session_id):
                    since, pause_s = trio.current_time(), FIRST_LOOK_S
                asked.append(verdict)
                await self._wait_for(request, verdict, trio.current_time() - since, pause_s)
                pause_s = min(2 * pause_s, self._limits.ask_again_s)

    async def _wait_for(self, request: LockRequest, holder: HeldBy, waited_s: float, pause_s: float) -> None:
        """Ask the owner's node; return when to claim again. Raises StatusError."""
        if await self._nodes.declare_dead(holder.node_id, holder.node_epoch):
            return
        if holder.answer is OwnerAnswer.ALIVE:
            raise self._refusal(request)
        if holder.answer is OwnerAnswer.NONE and waited_s >= self._limits.lease_grace_s:
            await self._nodes.cut_off(holder.node_id)
            return
        if waited_s >= self._limits.ending_s:
            raise StatusError(
                Status.UNAVAILABLE, f"the session that holds {request.identity} has not ended yet; connect again"
            )
        self._bus.send(holder.node_id, ASK, request.identity)
        if holder.answer is OwnerAnswer.NONE:
            # The grace is not to end in the middle of a pause.
            pause_s = min(pause_s, max(self._limits.lease_grace_s - waited_s, FIRST_LOOK_S))
        with trio.move_on_after(pause_s):
            await self._waiting[request.identity].wait()

    def _refusal(self, request: LockRequest) -> StatusError:
        self._refused += 1
        return duplicate_identity(request.identity)

    # -- releasing ---------------------------------------------------------------------------------

    def release(self, lock: IdentityLock, history: SessionHistory | None = None) -> bool:
        """Queue the release of an identity lock; return whether this node had the lock."""
        if self._mine.get(lock.identity) != lock:
            return False
        del self._mine[lock.identity]
        self._releasing.add(lock.identity)
        self.batcher.release(Release(lock.identity, lock.session_id, lock.epoch, history))
        for session_id in self._unanswered.pop(lock.identity, ()):
            self.batcher.release(Release(lock.identity, session_id, 0, history))
        return True

    def _release_unanswered(self, request: LockRequest) -> None:
        """Release a lock that a claim may have taken; a lock in `_mine` is released first."""
        if request.identity in self._mine:
            self._unanswered.setdefault(request.identity, []).append(request.session_id)
        else:
            self.batcher.release(Release(request.identity, request.session_id, 0))

    def releasing(self) -> list[str]:
        """Return the identities whose release by this node is not written yet."""
        return [identity for identity in self._releasing if identity not in self._mine]

    def _on_written(self, identities: Sequence[str]) -> None:
        self._releasing.difference_update(identities)
        self._changed(identities)
        for identity in identities:
            for asker in self._wanted.pop(identity, ()):
                self._bus.send(asker, NEWS, identity)

    def _changed(self, identities: Sequence[str]) -> None:
        for notify in self.on_change:
            notify(identities)

    # -- the lease ---------------------------------------------------------------------------------

    def reconcile(self, rows: LockRows) -> list[IdentityLock]:
        """Forget and return the identity locks that the `rows` of a regained lease lack."""
        lost = [lock for lock in self._mine.values() if (lock.identity, lock.session_id) not in rows]
        for lock in lost:
            del self._mine[lock.identity]
            self._unanswered.pop(lock.identity, None)
            self.batcher.release(Release(lock.identity, lock.session_id, lock.epoch))
        self._lost += len(lost)
        for identity, session_id in rows:
            if identity not in self._mine and identity not in self._claiming:
                self.batcher.release(Release(identity, session_id, 0))
        return lost

    def forget(self) -> None:
        """Forget all identity locks of this node: its lease has ended."""
        self._lost += len(self._mine)
        self._mine.clear()
        self._unanswered.clear()
        self._wanted.clear()
        self._releasing.clear()
        self.batcher.forget_releases()

    # -- requests of other nodes -------------------------------------------------------------------

    def look(self) -> None:
        """Look soon for other nodes' requests for identities of this node."""
        self._questions.set()

    async def run(self) -> None:
        """Answer other nodes' requests for identities of this node until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                await self._questions.wait()
                try:
                    rows = await self._nodes.fetch(
                        _QUESTIONS,
                        self._lease.node_id,
                        int(3000 * max(self._limits.ask_again_s, self._limits.probe_s)),
                        QUESTIONS_AT_ONCE,
                    )
                except StorageUnavailable as exc:
                    logger.info(
                        "requests of other nodes for identities could not be read; the next probe reads them",
                        reason=str(exc),
                    )
                    continue
                for question in (_Question(*row) for row in rows):
                    self._consider(question, nursery)

    def _consider(self, question: _Question, nursery: trio.Nursery) -> None:
        key = (question.identity, question.asker, question.asking_session)
        if key in self._answering:
            if not question.answer:
                self._answer(question, OwnerAnswer.ENDING)
            return
        lock = self._mine.get(question.identity)
        if question.session_id in self._unanswered.get(question.identity, ()):
            # It goes with the lock of the session that was to be displaced, which ends.
            self._answer(question, OwnerAnswer.ENDING)
        elif lock is None or lock.session_id != question.session_id:
            if question.identity not in self._claiming:
                # The session has ended, and its release is under way or got lost.
                self._wanted.setdefault(question.identity, set()).add(question.asker)
                self.batcher.release(Release(question.identity, question.session_id, question.epoch))
        else:
            self._asked += 1
            self._answering.add(key)
            nursery.start_soon(alone, f"a claim for {question.identity}", self._ask_session, question, lock, key)

    async def _ask_session(self, question: _Question, lock: IdentityLock, key: tuple[str, int, str]) -> None:
        try:
            self._wanted.setdefault(question.identity, set()).add(question.asker)
            free = await self._host.yields(lock, question.resume_id)
            if free:
                self._taken_over += 1
                if not self.release(lock):  # the session has: then notify the asker
                    self.batcher.release(Release(lock.identity, lock.session_id, lock.epoch))
            elif self._mine.get(question.identity) == lock:
                self._answer(question, OwnerAnswer.ALIVE)
        finally:
            self._answering.discard(key)

    def _answer(self, question: _Question, answer: OwnerAnswer) -> None:
        self._wanted.setdefault(question.identity, set()).add(question.asker)
        self.batcher.answer(question.identity, question.asker, question.asking_session, answer)

    def _on_ask(self, sender: int, identity: str) -> None:
        self.look()
        if identity != ALL and identity not in self._mine and identity not in self._claiming:
            # Its release may be committed before the request can be read: then only this release
            # notifies the asking node.
            self._wanted.setdefault(identity, set()).add(sender)
            self.batcher.release(Release(identity, "", 0))

    def _on_lock_news(self, _sender: int, identity: str) -> None:
        if identity == ALL:
            for event in self._waiting.values():
                event.set()
        elif identity in self._waiting:
            self._waiting[identity].set()
