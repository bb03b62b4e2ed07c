"""Where claims and releases of a node become statements: one for all that wait, whichever sessions they are for.

    claim ───────▶ queue ──▶ at most one claim per identity, MAX_BATCH of them:  SELECT * FROM aether_claim(...)
    release ─────▶ queue ──▶ before the claims:                                  SELECT * FROM aether_release(...)
    answer, withdraw ──▶ likewise

One task on the asyncio side works as long as anything waits. While its statement runs the next batch gathers, so a storm of connections
costs a few statements, and a single claim waits for nobody.

What the server does not take together is tried in halves (storage/bisection.py), so that a claim that cannot be written is refused alone.
Every statement is a transaction of its own and may run twice (its answer may get lost with the connection): a claim finds its own row,
a release nothing more to do. A release or an answer that cannot be made now stays in the queue; a claim is refused.

Invariants: a claim is answered exactly once, after its commit; releases of a node take effect in the order given, and before later
claims of the same node; a claim whose caller has been cancelled is released again if it was granted.
"""

from __future__ import annotations

import asyncio
import enum
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import outcome
import structlog
import trio

from aether_trio.cluster.limits import ClusterLimits
from aether_trio.cluster.node.aio import run_again
from aether_trio.cluster.node.lease import Lease, lock_class
from aether_trio.model.ownership import LockRequest, SessionHistory
from aether_trio.storage.base import RefusedError, StorageUnavailable
from aether_trio.storage.bisection import in_halves
from aether_trio.storage.postgres.database import PostgresServer
from aether_trio.storage.postgres.errors import FencedError
from aether_trio.storage.postgres.pool import Pool

logger = structlog.get_logger("aether.cluster")

MAX_BATCH: Final = 256  # claims in a statement: bounds how long their rows stay locked
MAX_RELEASES: Final = 1000
MAX_TRIES: Final = 5
AGAIN_S: Final = 0.5  # before what must be done at some time is tried once more

_CLAIM: Final = "SELECT * FROM aether_claim($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)"
_RELEASE: Final = "SELECT aether_release($1, $2, $3, $4, $5, $6, $7)"
_ANSWER: Final = """
    UPDATE lock_requests SET answer = c.answer FROM unnest($1::text[], $2::int[], $3::text[], $4::text[])
        AS c (identity, asker, session_id, answer)
    WHERE lock_requests.identity = c.identity AND lock_requests.asker = c.asker AND lock_requests.session_id = c.session_id
"""
_WITHDRAW: Final = """
    DELETE FROM lock_requests USING unnest($2::text[], $3::text[]) AS c (identity, session_id)
    WHERE lock_requests.asker = $1 AND lock_requests.identity = c.identity AND lock_requests.session_id = c.session_id
"""


class Answer(enum.StrEnum):
    """What the node of an owner answers to a request for its identity: the column `lock_requests.answer`."""

    NONE = ""
    ALIVE = "alive"
    ENDING = "ending"


@dataclass(frozen=True, slots=True)
class Granted:
    """`node_epoch` is the lease under which the claim was written."""

    epoch: int
    node_epoch: int
    history: SessionHistory | None


@dataclass(frozen=True, slots=True)
class HeldBy:
    """Another node's row. It has been asked; `answer` is what it has said so far."""

    node_id: int
    node_epoch: int
    session_id: str
    answer: Answer


class Full:
    """The workspace has all the connections that it may have."""


class Again:
    """The row was in the way and is not any more."""


Verdict = Granted | HeldBy | Full | Again


@dataclass(frozen=True, slots=True)
class Release:
    """An end of a hold. `epoch` 0 releases the session's hold whatever its epoch; `history` is what a resume continues."""

    identity: str
    session_id: str
    epoch: int
    history: SessionHistory | None = None


@dataclass(frozen=True, slots=True)
class ClaimBatcherStatistics:
    """Since start. `largest` is the largest batch of claims; `failing` is true while releases cannot be made."""

    claims: int
    claim_statements: int
    largest: int
    releases: int
    release_statements: int
    waiting: int
    failing: bool


def _forget(what: object, error: Exception) -> None:
    """It can never be written."""
    logger.error("a hold could not be written about", what=what, reason=str(error))


class _Claim:
    __slots__ = ("request", "task")

    def __init__(self, request: LockRequest, task: trio.lowlevel.Task) -> None:
        self.request = request
        self.task: trio.lowlevel.Task | None = task

    def forget(self, _: Any) -> trio.lowlevel.Abort:
        self.task = None
        return trio.lowlevel.Abort.SUCCEEDED


class ClaimBatcher:
    """See the module docstring. `on_news` is told which identities were released or answered for, after the commit, in one step."""

    def __init__(
        self,
        server: PostgresServer,
        lease: Lease,
        pool: Pool,
        limits: ClusterLimits,
        on_news: Callable[[Sequence[str]], None],
    ) -> None:
        self._server = server
        self._lease = lease
        self._pool = pool
        self._statement_s = limits.statement_s
        self._quota = limits.connections_per_workspace
        self._quota_class = lock_class(server.schema, "workspace quota")
        self._on_news = on_news
        self._claims: deque[_Claim] = deque()
        self._releases: deque[Release] = deque()
        self._answers: dict[tuple[str, int, str], Answer] = {}
        self._withdrawals: dict[tuple[str, str], None] = {}
        self._working = False
        self._idle = trio.Event()
        self._idle.set()
        self._later: asyncio.TimerHandle | None = None
        self._failing = False
        self._claimed = self._claim_statements = self._largest = self._released = self._release_statements = 0

    def statistics(self) -> ClaimBatcherStatistics:
        """What it has done."""
        return ClaimBatcherStatistics(
            self._claimed,
            self._claim_statements,
            self._largest,
            self._released,
            self._release_statements,
            len(self._claims) + len(self._releases),
            self._failing,
        )

    async def claim(self, request: LockRequest) -> Verdict:
        """Try once to become the holder. Raises StorageUnavailable, of which FencedError is one kind."""
        claim = _Claim(request, trio.lowlevel.current_task())
        self._claims.append(claim)
        self._work_soon()
        verdict: Verdict = await trio.lowlevel.wait_task_rescheduled(claim.forget)
        return verdict

    def release(self, release: Release) -> None:
        """Give a hold back, as soon as possible. Compares first, so it may be called for what somebody else has by now."""
        self._releases.append(release)
        self._work_soon()

    def answer(self, identity: str, asker: int, session_id: str, answer: Answer) -> None:
        """Tell the node `asker` what becomes of what it has asked for the session `session_id`."""
        self._answers[identity, asker, session_id] = answer
        self._work_soon()

    def withdraw(self, identity: str, session_id: str) -> None:
        """This session wants that identity no more."""
        self._withdrawals[identity, session_id] = None
        self._work_soon()

    def forget_releases(self) -> None:
        """The lease is gone and all its holds with it: there is nothing to give back."""
        self._releases.clear()
        self._answers.clear()
        self._withdrawals.clear()

    async def settled(self) -> None:
        """Wait until nothing waits."""
        await self._idle.wait()

    # -- on the asyncio side --------------------------------------------------------------------------------------

    def _work_soon(self) -> None:
        self._idle = self._idle if not self._idle.is_set() else trio.Event()
        if not self._working:
            self._working = True
            if self._later is not None:
                self._later.cancel()
                self._later = None
            self._server.spawn(self._work())

    async def _work(self) -> None:
        """Until nothing waits, or what waits has to wait longer."""
        try:
            while self._claims or self._releases or self._answers or self._withdrawals:
                ended = await self._end_some()
                if self._claims:
                    await self._claim_some()
                elif not ended:
                    break
        finally:
            self._working = False
            if self._releases or self._answers or self._withdrawals:
                self._later = self._server.loop.call_later(AGAIN_S, self._work_soon)
            else:
                self._idle.set()

    async def _end_some(self) -> bool:
        """Releases, answers, withdrawals. What fails is in its queue again."""
        releases = [self._releases.popleft() for _ in range(min(len(self._releases), MAX_RELEASES))]
        answers, self._answers = self._answers, {}
        withdrawals, self._withdrawals = self._withdrawals, {}
        try:
            if releases:
                rows = await in_halves(releases, self._release, _forget)
                self._released += len(rows)
                released, releases = releases, []
                self._on_news([one.identity for one in released])
            if answers:
                await in_halves(list(answers.items()), self._write_answers, _forget)
                answered, answers = answers, {}
                self._on_news([identity for identity, _, _ in answered])
            if withdrawals:
                await in_halves(list(withdrawals), self._withdraw, _forget)
                withdrawals = {}
        except StorageUnavailable:
            self._failing = True
            self._releases.extendleft(reversed(releases))
            self._answers = {**answers, **self._answers}
            self._withdrawals = {**withdrawals, **self._withdrawals}
            return False
        self._failing = False
        return True

    async def _release(self, releases: Sequence[Release]) -> list[Any]:
        histories = [one.history or SessionHistory("", 0, 0) for one in releases]
        rows: list[Any] = await self._run(
            lambda connection: connection.fetch(
                _RELEASE,
                self._lease.node_id,
                [one.identity for one in releases],
                [one.session_id for one in releases],
                [one.epoch for one in releases],
                [one.session_id for one in histories],
                [one.initial_connection_ms for one in histories],
                [one.reconnections for one in histories],
            )
        )
        self._release_statements += 1
        return rows

    async def _write_answers(self, answers: Sequence[tuple[tuple[str, int, str], Answer]]) -> list[Any]:
        identities, askers, sessions = zip(*(key for key, _ in answers), strict=True)
        values = [answer.value for _, answer in answers]
        await self._run(lambda c: c.execute(_ANSWER, list(identities), list(askers), list(sessions), values))
        return []

    async def _withdraw(self, withdrawals: Sequence[tuple[str, str]]) -> list[Any]:
        identities, sessions = zip(*withdrawals, strict=True)
        await self._run(lambda c: c.execute(_WITHDRAW, self._lease.node_id, list(identities), list(sessions)))
        return []

    async def _claim_some(self) -> None:
        batch: dict[str, _Claim] = {}
        later: deque[_Claim] = deque()
        while self._claims and len(batch) < MAX_BATCH:
            claim = self._claims.popleft()
            if claim.task is None:
                continue
            if claim.request.identity in batch:
                later.append(claim)
            else:
                batch[claim.request.identity] = claim
        self._claims.extendleft(reversed(later))
        if not batch:
            return
        node_epoch = self._lease.epoch
        refused: list[_Claim] = []

        def refuse(claim: _Claim, error: Exception) -> None:
            refused.append(claim)
            self._deliver(claim, outcome.Error(RefusedError(str(error))))

        try:
            rows = await in_halves(list(batch.values()), partial(self._claim, node_epoch), refuse)
        except Exception as exc:
            claims = [claim for claim in batch.values() if claim not in refused]
            if isinstance(exc, FencedError):
                self._lease.suspect()
            for claim in claims:
                kind = FencedError if isinstance(exc, FencedError) else StorageUnavailable
                self._deliver(claim, outcome.Error(kind(str(exc))))
            # Whether it is ours is not known if the answer was lost: then it is not.
            self._releases.extend(Release(one.request.identity, one.request.session_id, 0) for one in claims)
            return
        self._largest = max(self._largest, len(batch))
        verdicts = {row[0]: _verdict(row, node_epoch) for row in rows}
        for identity, claim in batch.items():
            if claim in refused:
                continue
            self._claimed += 1
            verdict = verdicts.get(identity) or Again()
            if not self._deliver(claim, outcome.Value(verdict)) and isinstance(verdict, Granted):
                self._releases.append(Release(identity, claim.request.session_id, verdict.epoch))

    async def _claim(self, node_epoch: int, claims: Sequence[_Claim]) -> list[Any]:
        requests = [claim.request for claim in claims]
        rows: list[Any] = await self._run(partial(self._claim_on, node_epoch, requests))
        self._claim_statements += 1
        return rows

    async def _claim_on(self, node_epoch: int, requests: Sequence[LockRequest], connection: Any) -> Any:
        return await connection.fetch(
            _CLAIM,
            self._lease.node_id,
            node_epoch,
            self._quota_class,
            self._quota,
            [one.identity for one in requests],
            [one.kind for one in requests],
            [one.workspace for one in requests],
            [one.implementation for one in requests],
            [one.session_id for one in requests],
            [one.resume_session_id for one in requests],
            [one.takes_any for one in requests],
            [one.connected_ms for one in requests],
            [one.peer for one in requests],
            [one.client_sdk for one in requests],
            [one.client_version for one in requests],
        )

    @staticmethod
    def _deliver(claim: _Claim, result: outcome.Outcome[Verdict]) -> bool:
        task, claim.task = claim.task, None
        if task is None:
            return False
        trio.lowlevel.reschedule(task, result)
        return True

    async def _run(self, work: Callable[[Any], Any]) -> Any:
        """One statement, again when its connection was lost or another transaction was first. Raises StorageUnavailable."""
        return await run_again(self._pool, self._statement_s, MAX_TRIES, work)


def _verdict(row: Any, node_epoch: int) -> Verdict:
    _, verdict, epoch, previous_id, initial_ms, reconnections, holder, holder_epoch, holder_session, answer = row
    if verdict == "taken":
        history = SessionHistory(previous_id, initial_ms, reconnections - 1) if previous_id else None
        return Granted(epoch, node_epoch, history)
    if verdict == "held":
        return HeldBy(holder, holder_epoch, holder_session, Answer(answer))
    return Full()
