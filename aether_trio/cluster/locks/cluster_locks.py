"""Who holds which identity, cluster-wide: a row decides, and a handover happens only when the old holder has ended or is fenced.

    claim ──▶ free, or void (its lease has ended)      granted
          ──▶ held by another node
                its lease can be taken                 declare it dead; granted
                it answers "alive"                     ALREADY_EXISTS
                it agrees, and releases the row        granted
                no word for `lease_grace_s`            end its lease session, declare it dead; granted

A question is a row of `lock_requests` with a hint over the bus: the hint makes it quick, and the holder's look at its lease finds what was not
heard. So only a node that cannot look at its own lease (stopped, stuck, cut off from the database) is taken for dead.

What this node holds is known here, by identity (`mine`), and for this node's own sessions the caller decides as it always did: a claim
that names the session that holds the identity replaces it, another one is refused at once.

Invariants: an identity has at most one claim of this node under way; `mine` has a hold only after its commit and until it is given back,
lost or taken over; what is in the database for this node and not in `mine` is given back when somebody asks for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import structlog
import trio

from aether_trio.cluster.limits import ClusterLimits
from aether_trio.cluster.locks.claim_batcher import Answer, ClaimBatcher, Full, Granted, HeldBy, Release
from aether_trio.cluster.node.bus import ALL, Bus
from aether_trio.cluster.node.lease import Lease, LeaseState, Rows
from aether_trio.cluster.node.liveness import Nodes
from aether_trio.cluster.session_host import SessionHost
from aether_trio.model.containment import alone
from aether_trio.model.errors import Status, StatusError
from aether_trio.model.ownership import GrantedLock, IdentityLock, LockRequest, SessionHistory
from aether_trio.storage.base import StorageUnavailable

logger = structlog.get_logger("aether.cluster")

ASK: Final = "ask"
NEWS: Final = "news"
FIRST_LOOK_S: Final = 0.05
"""After the first question: the server may be about to notice that the holder's process was killed. Doubled up to `ask_again_s`."""
QUESTIONS_AT_ONCE: Final = 1000

_QUESTIONS: Final = """
    SELECT a.identity, a.asker, a.session_id, a.resume_id, a.answer, h.session_id, h.epoch
    FROM lock_requests a CROSS JOIN LATERAL (SELECT * FROM identity_locks x WHERE x.identity = a.identity OFFSET 0) AS h
    WHERE h.node_id = $1 AND h.ended_ms IS NULL AND a.answer <> 'alive' AND a.asked_ms > aether_now_ms() - $2::bigint
    ORDER BY a.asked_ms LIMIT $3
"""


@dataclass(frozen=True, slots=True)
class HoldsStatistics:
    """`held` now; the rest since start. `taken_over` are holds that this node gave to another one, `lost` those it lost."""

    held: int
    claimed: int
    refused: int
    taken_over: int
    lost: int
    questions: int


@dataclass(frozen=True, slots=True)
class _Question:
    """A row of `lock_requests` beside the row of `identity_locks` that it is about."""

    identity: str
    asker: int
    asking_session: str
    resume_id: str
    answer: str
    session_id: str
    epoch: int


class ClusterLocks:
    """See the module docstring. `run` answers questions; it is this object's only task of its own."""

    def __init__(
        self,
        lease: Lease,
        nodes: Nodes,
        bus: Bus,
        host: SessionHost,
        limits: ClusterLimits,
        make_desk: Callable[[Callable[[Sequence[str]], None]], ClaimBatcher],
    ) -> None:
        self._lease = lease
        self._nodes = nodes
        self._bus = bus
        self._host = host
        self._limits = limits
        self.desk = make_desk(self._tell_askers)
        self._mine: dict[str, IdentityLock] = {}
        self._claiming: dict[str, trio.Event] = {}
        self._waiting: dict[str, trio.Event] = {}
        self._wanted: dict[str, set[int]] = {}
        self._answering: set[tuple[str, int, str]] = set()
        self._releasing: set[str] = set()
        self._questions = trio.Event()
        self._claimed = self._refused = self._taken_over = self._lost = self._asked = 0
        self.on_change: Callable[[Sequence[str]], None] = lambda _: None
        """Told which identities this node has come to hold or has given back, after the commit, in one step."""
        bus.handle(ASK, self._hear_ask)
        bus.handle(NEWS, self._hear_news)

    def mine(self, identity: str) -> IdentityLock | None:
        """This node's hold of an identity."""
        return self._mine.get(identity)

    def statistics(self) -> HoldsStatistics:
        """What is held, and what has happened."""
        return HoldsStatistics(len(self._mine), self._claimed, self._refused, self._taken_over, self._lost, self._asked)

    # -- claiming -------------------------------------------------------------------------------------------------

    async def claim(self, request: LockRequest) -> GrantedLock:
        """Become the holder of an identity. A caller that is cancelled holds nothing.

        Raises StatusError ALREADY_EXISTS when a session holds it that `resume_session_id` does not name, RESOURCE_EXHAUSTED when its
        workspace is full, UNAVAILABLE when its holder does not come to an end; StorageUnavailable, also when there is no lease.
        """
        identity = request.identity
        while (other := self._claiming.get(identity)) is not None:
            await other.wait()
        held = self._mine.get(identity)
        if held is not None and held.session_id != request.resume_session_id:
            raise self._refusal(request)
        done = self._claiming[identity] = trio.Event()
        asked: list[HeldBy] = []
        try:
            return await self._claim(request, asked)
        finally:
            del self._claiming[identity]
            done.set()
            self._waiting.pop(identity, None)
            if asked:
                self.desk.withdraw(identity, request.session_id)

    async def _claim(self, request: LockRequest, asked: list[HeldBy]) -> GrantedLock:
        since, pause_s = trio.current_time(), FIRST_LOOK_S
        looked_for_dead = False
        while True:
            await self._lease.wait_held()
            if asked:
                self._waiting[request.identity] = (
                    trio.Event()
                )  # before the look, so that what comes after it is not missed
            verdict = await self.desk.claim(request)
            if isinstance(verdict, Granted):
                if verdict.node_epoch != self._lease.epoch or self._lease.state is LeaseState.AWAY:
                    continue  # granted under a lease that has ended since
                hold = self._mine[request.identity] = IdentityLock(request.identity, request.session_id, verdict.epoch)
                self._claimed += 1
                self.on_change((request.identity,))
                last = asked[-1] if asked else None
                return GrantedLock(hold, verdict.history, (last.node_id, last.session_id) if last is not None else None)
            if isinstance(verdict, Full):
                if looked_for_dead or not await self._nodes.find_dead():
                    self._refused += 1
                    raise _full(request, self._limits.connections_per_workspace)
                looked_for_dead = True
            elif isinstance(verdict, HeldBy):
                if not asked or (asked[-1].node_id, asked[-1].session_id) != (verdict.node_id, verdict.session_id):
                    since, pause_s = trio.current_time(), FIRST_LOOK_S
                asked.append(verdict)
                await self._wait_for(request, verdict, trio.current_time() - since, pause_s)
                pause_s = min(2 * pause_s, self._limits.ask_again_s)

    async def _wait_for(self, request: LockRequest, holder: HeldBy, waited_s: float, pause_s: float) -> None:
        """One round with a holder on another node; the claim is worth another try afterwards. Raises StatusError."""
        if await self._nodes.declare_dead(holder.node_id, holder.node_epoch):
            return
        if holder.answer is Answer.ALIVE:
            raise self._refusal(request)
        if holder.answer is Answer.NONE and waited_s >= self._limits.lease_grace_s:
            await self._nodes.cut_off(holder.node_id)
            return
        if waited_s >= self._limits.ending_s:
            raise StatusError(
                Status.UNAVAILABLE, f"the session that holds {request.identity} has not ended yet; connect again"
            )
        news = self._waiting.setdefault(request.identity, trio.Event())
        self._bus.send(holder.node_id, ASK, request.identity)
        if holder.answer is Answer.NONE:
            # The grace is not to end in the middle of a pause.
            pause_s = min(pause_s, max(self._limits.lease_grace_s - waited_s, FIRST_LOOK_S))
        with trio.move_on_after(pause_s):
            await news.wait()

    def _refusal(self, request: LockRequest) -> StatusError:
        self._refused += 1
        return StatusError(
            Status.ALREADY_EXISTS,
            f"DuplicateIdentityError: {request.identity} is connected already; close that connection, or name its session "
            "in resume_session_id to take over",
        )

    # -- giving back ----------------------------------------------------------------------------------------------

    def release(self, hold: IdentityLock, history: SessionHistory | None = None) -> bool:
        """Give an identity back, in one step; says whether it was still this hold's. `history` is for whoever resumes it."""
        if self._mine.get(hold.identity) != hold:
            return False
        del self._mine[hold.identity]
        self._releasing.add(hold.identity)
        self.desk.release(Release(hold.identity, hold.session_id, hold.epoch, history))
        return True

    def releasing(self) -> list[str]:
        """The identities that this node has given back, and of which the others do not know yet."""
        return [identity for identity in self._releasing if identity not in self._mine]

    def _tell_askers(self, identities: Sequence[str]) -> None:
        self._releasing.difference_update(identities)
        self.on_change(identities)
        for identity in identities:
            for asker in self._wanted.pop(identity, ()):
                self._bus.send(asker, NEWS, identity)

    # -- the lease ------------------------------------------------------------------------------------------------

    def reconcile(self, rows: Rows) -> list[IdentityLock]:
        """The lease is back and this is what it holds: what was lost is forgotten, and returned."""
        lost = [hold for hold in self._mine.values() if (hold.identity, hold.session_id) not in rows]
        for hold in lost:
            del self._mine[hold.identity]
            self.desk.release(Release(hold.identity, hold.session_id, hold.epoch))
        self._lost += len(lost)
        for identity, session_id in rows:
            if identity not in self._mine and identity not in self._claiming:
                self.desk.release(Release(identity, session_id, 0))
        return lost

    def forget(self) -> None:
        """The lease is gone: nothing is held."""
        self._lost += len(self._mine)
        self._mine.clear()
        self._wanted.clear()
        self._releasing.clear()
        self.desk.forget_releases()

    # -- being asked ----------------------------------------------------------------------------------------------

    def look(self) -> None:
        """Somebody may have asked."""
        self._questions.set()

    async def run(self) -> None:
        """Answer questions until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                await self._questions.wait()
                self._questions = trio.Event()
                try:
                    rows = await self._nodes.fetch(
                        _QUESTIONS,
                        self._lease.node_id,
                        int(3000 * max(self._limits.ask_again_s, self._limits.probe_s)),
                        QUESTIONS_AT_ONCE,
                    )
                except StorageUnavailable as exc:
                    logger.info("questions could not be read", reason=str(exc))
                    continue
                for question in (_Question(*row) for row in rows):
                    self._consider(question, nursery)

    def _consider(self, question: _Question, nursery: trio.Nursery) -> None:
        key = (question.identity, question.asker, question.asking_session)
        if key in self._answering:
            if not question.answer:
                self._answer(question, Answer.ENDING)
            return
        hold = self._mine.get(question.identity)
        if hold is None or hold.session_id != question.session_id:
            if question.identity not in self._claiming:
                # It has ended, and its release is on its way or got lost.
                self._wanted.setdefault(question.identity, set()).add(question.asker)
                self.desk.release(Release(question.identity, question.session_id, question.epoch))
            return
        self._asked += 1
        self._answering.add(key)
        nursery.start_soon(alone, f"a claim for {question.identity}", self._ask_host, question, hold, key)

    async def _ask_host(self, question: _Question, hold: IdentityLock, key: tuple[str, int, str]) -> None:
        try:
            self._wanted.setdefault(question.identity, set()).add(question.asker)
            free = await self._host.yields(hold, question.resume_id)
            if free:
                self._taken_over += 1
                if not self.release(hold):  # the host has: then this is only there to tell the asker
                    self.desk.release(Release(hold.identity, hold.session_id, hold.epoch))
            elif self._mine.get(question.identity) == hold:
                self._answer(question, Answer.ALIVE)
        finally:
            self._answering.discard(key)

    def _answer(self, question: _Question, answer: Answer) -> None:
        self._wanted.setdefault(question.identity, set()).add(question.asker)
        self.desk.answer(question.identity, question.asker, question.asking_session, answer)

    def _hear_ask(self, sender: int, identity: str) -> None:
        self.look()
        if identity != ALL and identity not in self._mine and identity not in self._claiming:
            # Its release may be committed before the question can be read: then nothing else would tell the asker.
            self._wanted.setdefault(identity, set()).add(sender)
            self.desk.release(Release(identity, "", 0))

    def _hear_news(self, _sender: int, identity: str) -> None:
        if identity == ALL:
            for event in self._waiting.values():
                event.set()
        elif identity in self._waiting:
            self._waiting[identity].set()


def _full(request: LockRequest, limit: int) -> StatusError:
    return StatusError(
        Status.RESOURCE_EXHAUSTED,
        f"workspace {request.workspace} has {limit} connections, which is its limit (limits.connections_per_workspace)",
    )
