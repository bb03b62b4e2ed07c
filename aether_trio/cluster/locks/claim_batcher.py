"""Writes a cluster node's claims and releases of identity locks in batches.

    claim ───────▶ queue ─▶ at most one claim per identity, MAX_BATCH of them: aether_claim(...)
    release ─────▶ queue ─▶ before the claims: aether_release(...)
    answer, withdraw ─▶ likewise

One asyncio task works while anything waits. While its statement runs the next batch gathers, so a
thousand connections at once cost a few statements, and a single claim waits for no other.

Items that the server refuses together are tried in halves (storage/bisection.py), so a claim that
cannot be written is refused alone. Every statement is a transaction, and may run twice: a claim
finds its own row then, a release nothing more to do. While storage is unavailable releases and
answers stay queued, and claims are refused (why this is no Batcher of concurrency/batcher.py).

Invariants: a claim is answered exactly once, after its commit; releases of a node take effect in
the order given, and before later claims of the same node; a claim whose caller has been cancelled
leaves no request. Its lock, and that of a claim whose answer was lost, is the caller's to release.
"""

from __future__ import annotations

import asyncio
import enum
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import outcome
import structlog
import trio

from aether_trio.cluster.node.lease import Lease, lock_class
from aether_trio.cluster.node.postgres_calls import run_repeatable
from aether_trio.cluster.timeouts import ClusterLimits
from aether_trio.concurrency.events import RepeatedEvent
from aether_trio.model.ownership import LockRequest, SessionHistory
from aether_trio.storage.base import RefusedError, StorageUnavailable
from aether_trio.storage.bisection import in_halves
from aether_trio.storage.postgres.database import PostgresServer
from aether_trio.storage.postgres.errors import FencedError
from aether_trio.storage.postgres.pool import Pool
from aether_trio.storage.retry import RETRY_DELAY_S

logger = structlog.get_logger("aether.cluster")

MAX_BATCH: Final = 256  # claims of one statement: bounds how long their rows stay locked
MAX_RELEASES: Final = 1000
MAX_TRIES: Final = 5

_CLAIM: Final = "SELECT * FROM aether_claim($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)"
_CLAIM_COLUMNS: Final = (
    "identity", "kind", "workspace", "implementation", "session_id", "resume_session_id", "takes_any", "connected_ms",
    "peer", "client_sdk", "client_version",
)  # fmt: skip
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


class OwnerAnswer(enum.StrEnum):
    """How the node that owns an identity answers another node that requests it."""

    NONE = ""
    ALIVE = "alive"
    ENDING = "ending"


@dataclass(frozen=True, slots=True)
class Granted:
    """The answer to a lock claim that succeeded, under the node's lease `node_epoch`."""

    epoch: int
    node_epoch: int
    history: SessionHistory | None


@dataclass(frozen=True, slots=True)
class HeldBy:
    """The answer to a lock claim of another node's identity, and that node's `answer`."""

    node_id: int
    node_epoch: int
    session_id: str
    answer: OwnerAnswer


class Full:
    """The answer to a lock claim whose workspace has all the connections it may have."""


class Again:
    """The answer to a lock claim whose row changed meanwhile: claim again."""


Verdict = Granted | HeldBy | Full | Again


@dataclass(frozen=True, slots=True)
class Release:
    """A queued release of a session's identity lock of this `epoch` (0: any epoch)."""

    identity: str
    session_id: str
    epoch: int
    history: SessionHistory | None = None


@dataclass(slots=True)
class ClaimBatcherStatistics:
    """Counters of batches of lock claims; `failing`: releases cannot be written."""

    claims: int = 0
    claim_statements: int = 0
    largest: int = 0
    releases: int = 0
    release_statements: int = 0
    waiting: int = 0
    failing: bool = False


def _forget(what: object, error: Exception) -> None:
    logger.error(
        "PostgreSQL refuses the release of an identity lock, or the answer to a request for one; it is dropped",
        what=what,
        reason=str(error),
    )


class _Claim:
    __slots__ = ("request", "task")

    def __init__(self, request: LockRequest, task: trio.lowlevel.Task) -> None:
        self.request = request
        self.task: trio.lowlevel.Task | None = task

    def forget(self, _: Any) -> trio.lowlevel.Abort:
        self.task = None
        return trio.lowlevel.Abort.SUCCEEDED


class ClaimBatcher:
    """Writes queued claims and releases of identity locks; tells `on_written` of them.

    `connections_of(workspace)` is how many connections it may have on all nodes; 0: any number.
    """

    def __init__(
        self,
        server: PostgresServer,
        lease: Lease,
        pool: Pool,
        limits: ClusterLimits,
        connections_of: Callable[[str], int],
        on_written: Callable[[Sequence[str]], None],
    ) -> None:
        self._server = server
        self._lease = lease
        self._pool = pool
        self._statement_s = limits.statement_s
        self._connections_of = connections_of
        self._quota_class = lock_class(server.schema, "workspace quota")
        self._on_written = on_written
        self._claims: deque[_Claim] = deque()
        self._releases: deque[Release] = deque()
        self._answers: dict[tuple[str, int, str], OwnerAnswer] = {}
        self._withdrawals: dict[tuple[str, str], None] = {}
        self._working = False
        self._settled = RepeatedEvent()
        self._later: asyncio.TimerHandle | None = None
        self._counts = ClaimBatcherStatistics()

    def statistics(self) -> ClaimBatcherStatistics:
        """Return the counters since start, and how many claims and releases wait."""
        return replace(self._counts, waiting=len(self._claims) + len(self._releases))

    async def claim(self, request: LockRequest) -> Verdict:
        """Try once to lock an identity; return the verdict. Raises StorageUnavailable.

        A call that is cancelled or raises may have locked it; a `release` afterwards ends that.
        """
        claim = _Claim(request, trio.lowlevel.current_task())
        self._claims.append(claim)
        self._work_soon()
        verdict: Verdict = await trio.lowlevel.wait_task_rescheduled(claim.forget)
        return verdict

    def release(self, release: Release) -> None:
        """Queue the release of a session's identity lock; another session's lock stays."""
        self._releases.append(release)
        self._work_soon()

    def answer(self, identity: str, asker: int, session_id: str, answer: OwnerAnswer) -> None:
        """Queue the answer to the node `asker`, whose session requests an identity."""
        self._answers[identity, asker, session_id] = answer
        self._work_soon()

    def withdraw(self, identity: str, session_id: str) -> None:
        """Queue the withdrawal of a session's request for another node's identity."""
        self._withdrawals[identity, session_id] = None
        self._work_soon()

    def forget_releases(self) -> None:
        """Drop queued releases and answers: the node's lease has ended, and its locks."""
        self._releases.clear()
        self._answers.clear()
        self._withdrawals.clear()

    async def settled(self) -> None:
        """Wait until all queued releases and answers are written."""
        while self._working or self._owes:
            await self._settled.wait()

    @property
    def _owes(self) -> bool:
        return bool(self._releases or self._answers or self._withdrawals)

    # -- on the asyncio side -----------------------------------------------------------------------

    def _work_soon(self) -> None:
        if not self._working:
            self._working = True
            if self._later is not None:
                self._later.cancel()
                self._later = None
            self._server.spawn(self._work())

    async def _work(self) -> None:
        try:
            while self._claims or self._owes:
                ended = await self._end_some()
                if self._claims:
                    await self._claim_some()
                elif not ended:
                    break
        finally:
            self._working = False
            if self._owes:
                self._later = self._server.loop.call_later(RETRY_DELAY_S, self._work_soon)
            else:
                self._settled.set()

    async def _end_some(self) -> bool:
        """Write releases, answers and withdrawals; after a failure they wait again."""
        releases = [self._releases.popleft() for _ in range(min(len(self._releases), MAX_RELEASES))]
        answers, self._answers = self._answers, {}
        withdrawals, self._withdrawals = self._withdrawals, {}
        try:
            if releases:
                rows = await in_halves(releases, self._release, _forget)
                self._counts.releases += len(rows)
                released, releases = releases, []
                self._on_written([one.identity for one in released])
            if answers:
                await in_halves(list(answers.items()), self._write_answers, _forget)
                answered, answers = answers, {}
                self._on_written([identity for identity, _, _ in answered])
            if withdrawals:
                await in_halves(list(withdrawals), self._withdraw, _forget)
                withdrawals = {}
        except StorageUnavailable:
            self._counts.failing = True
            self._releases.extendleft(reversed(releases))
            self._answers = {**answers, **self._answers}
            self._withdrawals = {**withdrawals, **self._withdrawals}
            return False
        self._counts.failing = False
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
        self._counts.release_statements += 1
        return rows

    async def _write_answers(self, answers: Sequence[tuple[tuple[str, int, str], OwnerAnswer]]) -> list[Any]:
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
            return
        self._counts.largest = max(self._counts.largest, len(batch))
        verdicts = {row[0]: _verdict(row, node_epoch) for row in rows}
        for identity, claim in batch.items():
            if claim in refused:
                continue
            self._counts.claims += 1
            verdict = verdicts.get(identity) or Again()
            if not self._deliver(claim, outcome.Value(verdict)) and isinstance(verdict, HeldBy):
                self._withdrawals[identity, claim.request.session_id] = None

    async def _claim(self, node_epoch: int, claims: Sequence[_Claim]) -> list[Any]:
        requests = [claim.request for claim in claims]
        quotas = [self._connections_of(one.workspace) if one.workspace else 0 for one in requests]
        arguments = [self._lease.node_id, node_epoch, self._quota_class, quotas]
        columns = [[getattr(one, name) for one in requests] for name in _CLAIM_COLUMNS]
        rows: list[Any] = await self._run(lambda connection: connection.fetch(_CLAIM, *arguments, *columns))
        self._counts.claim_statements += 1
        return rows

    @staticmethod
    def _deliver(claim: _Claim, result: outcome.Outcome[Verdict]) -> bool:
        task, claim.task = claim.task, None
        if task is None:
            return False
        trio.lowlevel.reschedule(task, result)
        return True

    async def _run(self, work: Callable[[Any], Any]) -> Any:
        return await run_repeatable(self._pool, self._statement_s, MAX_TRIES, work)


def _verdict(row: Any, node_epoch: int) -> Verdict:
    _, verdict, epoch, previous_id, initial_ms, reconnections, holder, holder_epoch, holder_session, answer = row
    if verdict == "taken":
        history = SessionHistory(previous_id, initial_ms, reconnections - 1) if previous_id else None
        return Granted(epoch, node_epoch, history)
    if verdict == "held":
        return HeldBy(holder, holder_epoch, holder_session, OwnerAnswer(answer))
    return Full()
