"""Group commit on PostgreSQL: lanes that take what waits and run it as one transaction each.

    trio tasks ──▶ queue ──▶ lane 1:  BEGIN · program · program · … · COMMIT      one lane = one connection
         ▲                ├▶ lane 2:  …                                           opened when the queue is long
         └──── the callers of a group are woken together, after its COMMIT

asyncpg cannot pipeline, so every statement is a round trip; what a group saves is BEGIN, COMMIT, the flush to disk and what its
programs write aside (base.Deferred: one round trip for many), and what lanes save is the wait for the network. Programs of two lanes
may touch the same row; then one transaction is told so by the server (SERIALIZABLE) and runs again. To keep that rare a second
lane opens only when GROUP_BEFORE_LANE programs wait, and after a conflict the lanes close one by one down to one, which cannot
conflict with itself; they come back after CALM_GROUPS.

Another node can conflict all the same. A group that has lost takes the database's turn, the lock of a table without rows, when it begins, and
so do the POLITE_GROUPS that follow it on this node: what several nodes write to all the time (the tasks of a pool) makes each of them lose
once, and from then on their groups come one after another, where they would otherwise spoil each other until one had lost too often. LOCK
TABLE takes no snapshot, so what the one before has committed is seen; and the turn ends with its transaction, as does whatever holds that
open: with the lease, by the fence, or by the limits on time.

A group runs without savepoints first. When a program raises, the group is rolled back and run again with each in its own savepoint, so
that the one that raises leaves no trace in the others' commit.

A fence (postgres.py) is that of the moment when a program was submitted, and a group has one: what a node wrote under a lease
that has ended is refused, even when it has a new one by the time the group runs. A statement that has the fence in itself
(FENCE_HERE) and is alone needs one round trip and no BEGIN.

Each group writes its number into the row of its lane (schema/marks.py), in the round trip of BEGIN. When its connection is lost before the
COMMIT was answered, its server process is ended (postgres_lost.py), and then that row says what has become of it: it is answered, or runs again.
Only when the server cannot be asked for `patience_s` its programs are CommitUnknown, and nothing else is written before it is decided.

Invariants: a job is answered exactly once; nothing is answered before the COMMIT that contains it; a connection goes back to the
pool only outside of a transaction; no group begins while one whose connection was lost may still take effect.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NamedTuple

from aether_trio.storage.base import CommitUnknown, StorageUnavailable
from aether_trio.storage.postgres.connections import PostgresLimits
from aether_trio.storage.postgres.errors import Fault, FencedError, describe, fault
from aether_trio.storage.postgres.lost_commits import Backend
from aether_trio.storage.postgres.migrate import turn_table
from aether_trio.storage.postgres.pool import Pool, Spawn
from aether_trio.storage.postgres.statements import Asides, Job, drive, roll_back, within

MAX_GROUP: Final = (
    128  # programs a commit: bounds how long the first of them waits for the last, and what a conflict costs
)
GROUP_BEFORE_LANE: Final = 8  # waiting programs before another lane is worth its BEGIN and COMMIT
CALM_GROUPS: Final = 50  # groups without a conflict before another lane may open again
MAX_CONFLICTS: Final = 12
POLITE_GROUPS: Final = 100  # that take their turn after a conflict
MAX_LOSSES: Final = 3  # connections a group may lose: its program could be what kills the server
FIRST_PAUSE_S: Final = 0.002  # doubled with every conflict
LONGEST_PAUSE_S: Final = 0.1
HURRY_S: Final = 0.05  # that a short queue waits for the lanes that are open
ASK_AGAIN_S: Final = 0.2  # between two attempts to ask what has become of a group

_COMMITTED: Final = "SELECT 1 FROM commit_marks WHERE writer = $1 AND lane = $2 AND number >= $3"
# Whoever has the turn and has not been heard of for longer than any transaction may be idle.
_CLEAR_TURN: Final = """
    SELECT pg_terminate_backend(l.pid) FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
    WHERE l.locktype = 'relation' AND l.relation = $1::text::regclass AND l.mode = 'ExclusiveLock' AND l.granted
        AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
        AND a.wait_event = 'ClientRead' AND a.state_change < now() - $2 * interval '1 second'
"""

Deliver = Callable[[Sequence[Job]], None]


class _Mark(NamedTuple):
    """What a group writes of itself."""

    lane: int
    number: int


class _SpoiledError(Exception):
    """A program raised in a group that has no savepoints."""


@dataclass(slots=True)
class _Attempt:
    """What has become of a group so far."""

    mark: _Mark
    isolated: bool = False
    committing: bool = False
    recognized: bool = False
    """Its statement is recognized by its caller, and has no mark."""
    conflicts: int = 0
    losses: int = 0


class Writer:
    """The queue and the lanes of one logical database. Runs on the asyncio side."""

    def __init__(
        self,
        name: str,
        pool: Pool,
        spawn: Spawn,
        loop: Any,
        deliver: Deliver,
        limits: PostgresLimits,
        *,
        locking: bool = False,
    ) -> None:
        self._name = name
        self.pool = pool
        self._spawn = spawn
        self._loop = loop
        self._deliver = deliver
        self._limits = limits
        self._begins = "BEGIN ISOLATION LEVEL READ COMMITTED" if locking else "BEGIN"
        self._queue: deque[Job] = deque()
        self._turn = turn_table(name)
        self._lanes = 0
        self._numbers: list[int] = []
        """Of each lane's last group."""
        self._idle_lanes: list[int] = []
        self._lanes_allowed = pool.most
        self._calm = 0
        self._polite = 0
        self._hurry: asyncio.TimerHandle | None = None
        self._random = random.Random()  # noqa: S311  # spreads the pauses of groups that fight
        self._id = f"{random.SystemRandom().getrandbits(96):024x}"
        self.groups = 0
        self.programs = 0
        self.rows = 0
        self.largest_group = 0
        self.failed_groups = 0
        self.conflicts = 0
        self.losses = 0
        self.failing = False
        self.last_error = ""

    @property
    def idle(self) -> bool:
        """Nothing waits, and nothing runs."""
        return not self._lanes

    def put(self, job: Job) -> None:
        """Queue a job; a lane takes it at the loop's next round."""
        self._queue.append(job)
        if self._lanes < self._lanes_allowed:
            if len(self._queue) > self._lanes * GROUP_BEFORE_LANE:
                self._open_lane()
            elif self._hurry is None:
                self._hurry = self._loop.call_later(HURRY_S, self._relieve)

    def _open_lane(self) -> None:
        self._lanes += 1
        self._spawn(self._lane())

    def _relieve(self) -> None:
        """What waits since the timer was set may wait behind a lock that somebody holds: open a lane beside it."""
        self._hurry = None
        if self._queue and self._lanes < self._lanes_allowed:
            self._open_lane()

    async def _lane(self) -> None:
        if not self._idle_lanes:
            self._idle_lanes.append(len(self._numbers))
            self._numbers.append(0)
        lane = self._idle_lanes.pop()
        try:
            while self._queue and self._lanes <= self._lanes_allowed:
                jobs = self._take()
                try:
                    await self._run(jobs, lane)
                except Exception as exc:  # a defect of ours: answer rather than strand the callers
                    self._fail(jobs, exc)
                self._deliver(jobs)
        finally:
            self._lanes -= 1
            self._idle_lanes.append(lane)

    def _take(self) -> list[Job]:
        share = -(-len(self._queue) // self._lanes)
        count = min(max(share, GROUP_BEFORE_LANE), MAX_GROUP, len(self._queue))
        fence = self._queue[0].fence
        jobs: list[Job] = []
        while len(jobs) < count and self._queue[0].fence == fence:
            jobs.append(self._queue.popleft())
        return jobs

    async def _run(self, jobs: list[Job], lane: int) -> None:
        """Run a group until it is committed or refused; every job has its answer afterwards."""
        self._numbers[lane] += 1
        attempt = _Attempt(_Mark(lane, self._numbers[lane]))
        while True:
            try:
                connection = await self.pool.acquire()
            except StorageUnavailable as exc:
                return self._fail(jobs, exc)
            attempt.committing = False
            try:
                await within(connection, self._limits.transaction_s, partial(self._attempt, connection, jobs, attempt))
            except _SpoiledError:
                attempt.isolated = True
                self.pool.release(connection)
            except Exception as exc:
                kind = fault(exc, connection)
                healthy = kind is not Fault.CONNECTION and await roll_back(connection)
                if kind is Fault.CONNECTION:
                    self.pool.discard_idle()  # most often the server went away, and they with it
                    self.losses += 1
                    attempt.losses += 1
                if attempt.committing and kind is Fault.CONNECTION:
                    lost = self.pool.lost.add(connection)
                    self.pool.release(connection, healthy=False)
                    committed = await self._find_out(lost, attempt)
                    if committed is None:
                        return self._leave_open(jobs, lost, exc)
                    if committed:
                        return self._succeeded(jobs)
                    if attempt.recognized:
                        return self._fail(jobs, exc, CommitUnknown)
                else:
                    self.pool.release(connection, healthy=healthy)
                if not await self._may_go_on(kind, attempt):
                    if kind is Fault.SLOW and len(jobs) > 1:
                        return await self._run_each(jobs, lane)
                    return self._fail(jobs, exc, FencedError if kind is Fault.FENCED else StorageUnavailable)
            else:
                self.pool.release(connection)
                return self._succeeded(jobs)

    async def _find_out(self, lost: Backend, attempt: _Attempt) -> bool | None:
        """Whether a group whose connection was lost in its commit is committed; None when that was not to be learnt in time.

        One without a mark: False when it is decided, and only its caller can see how.
        """
        give_up = self._loop.time() + self._limits.patience_s
        while True:
            try:
                connection = await self.pool.acquire()
            except StorageUnavailable:
                return None
            try:
                committed = await within(
                    connection, self._limits.transaction_s, partial(self._look_up, connection, attempt)
                )
            except Exception as exc:
                kind = fault(exc, connection)
                self.pool.release(connection, healthy=kind is not Fault.CONNECTION)
                if kind is Fault.CONNECTION:
                    self.pool.discard_idle()
                if self._loop.time() >= give_up:
                    return None
                await asyncio.sleep(ASK_AGAIN_S)
            else:
                assert lost not in self.pool.lost
                self.pool.release(connection)
                return committed

    async def _look_up(self, connection: Any, attempt: _Attempt) -> bool:
        await self.pool.lost.end_all(connection)
        if attempt.recognized:
            return False
        return bool(await connection.fetch(_COMMITTED, self._id, *attempt.mark))

    def _leave_open(self, jobs: Sequence[Job], lost: Backend, cause: Exception) -> None:
        """Answer, although it may take effect: it is over when its process is known to have ended."""

        def over() -> None:
            for job in jobs:
                job.over()

        self._fail(jobs, cause, CommitUnknown)
        for job in jobs:
            job.undecided = True
        self.pool.lost.when_ended(lost, over)
        self._spawn(self._end_lost())

    async def _end_lost(self) -> None:
        """Until nothing of what is lost may take effect: somebody may wait for that, though nothing is to be written."""
        while self.pool.lost and not self.pool.closed:
            try:
                connection = await self.pool.acquire()
            except StorageUnavailable:
                await asyncio.sleep(ASK_AGAIN_S)
                continue
            try:
                await within(connection, self._limits.transaction_s, partial(self.pool.lost.end_all, connection))
            except Exception as exc:
                self.pool.release(connection, healthy=fault(exc, connection) is not Fault.CONNECTION)
                await asyncio.sleep(ASK_AGAIN_S)
            else:
                self.pool.release(connection)

    async def _may_go_on(self, kind: Fault, attempt: _Attempt) -> bool:
        """After an error: whether the group is to run again (now: a pause that the error asks for is over)."""
        if kind is Fault.CONNECTION:
            return attempt.losses < MAX_LOSSES
        if kind is Fault.CONFLICT:
            self.conflicts += 1
            attempt.conflicts += 1
            self._calm = 0
            self._polite = POLITE_GROUPS
            self._lanes_allowed = max(self._lanes_allowed - 1, 1)
            pause_s = min(FIRST_PAUSE_S * 2**attempt.conflicts, LONGEST_PAUSE_S)
            await asyncio.sleep(pause_s * self._random.random())
            return attempt.conflicts < MAX_CONFLICTS
        return False

    async def _run_each(self, jobs: list[Job], lane: int) -> None:
        """One of them takes too long: find out which, without failing the others."""
        for job in jobs:
            await self._run([job], lane)

    async def _attempt(self, connection: Any, jobs: Sequence[Job], attempt: _Attempt) -> None:
        if self.pool.lost:
            await self.pool.lost.end_all(connection)
        attempt.recognized = len(jobs) == 1 and jobs[0].recognized
        if attempt.recognized:
            await self._attempt_single(connection, jobs[0], attempt)
            return
        await self._begin(connection, jobs[0].fence, attempt.mark)
        await self._drive_all(connection, jobs, isolated=attempt.isolated)
        if all(job.error is not None for job in jobs):
            await connection.execute("ROLLBACK")
            return
        attempt.committing = True
        status = await connection.execute("COMMIT")
        assert status == "COMMIT", status  # "ROLLBACK" would be a transaction that had failed unnoticed

    async def _begin(self, connection: Any, fence: str, mark: _Mark) -> None:
        """BEGIN, and in the same round trip the turn, the fence and the mark."""
        first = f"{fence + '; ' if fence else ''}SELECT aether_mark_commit('{self._id}', {mark.lane}, {mark.number})"
        if self._polite and await self._begin_in_turn(connection, first):
            return
        await connection.execute(f"{self._begins}; {first}")

    async def _begin_in_turn(self, connection: Any, first: str) -> bool:
        """False if the turn was not to be had in time: the group goes on without it, and may lose again."""
        try:
            await connection.execute(f"{self._begins}; LOCK TABLE {self._turn} IN EXCLUSIVE MODE; {first}")
        except Exception as exc:
            if fault(exc, connection) is not Fault.SLOW:
                raise
            await connection.execute("ROLLBACK")
            await connection.fetch(_CLEAR_TURN, self._turn, self._limits.idle_in_transaction_s)
            return False
        return True

    @staticmethod
    async def _attempt_single(connection: Any, job: Job, attempt: _Attempt) -> None:
        attempt.committing = True
        job.error = None
        try:
            job.value = await drive(connection, job)
        except Exception as exc:
            if fault(exc, connection) is not Fault.PROGRAM:
                raise
            job.error = exc

    @staticmethod
    async def _drive_all(connection: Any, jobs: Sequence[Job], *, isolated: bool) -> None:
        asides = Asides()
        for number, job in enumerate(jobs):
            if isolated:
                await connection.execute("RELEASE program; SAVEPOINT program" if number else "SAVEPOINT program")
            job.error = None
            try:
                job.value = await drive(connection, job, None if isolated else asides)
                if number == len(jobs) - 1:
                    await asides.write(connection)
            except Exception as exc:
                if fault(exc, connection) is not Fault.PROGRAM:
                    raise
                if isolated:
                    await connection.execute("ROLLBACK TO program")
                elif len(jobs) > 1:
                    await connection.execute("ROLLBACK")
                    raise _SpoiledError from exc
                job.error = exc

    def _succeeded(self, jobs: Sequence[Job]) -> None:
        self.failing = False
        self._polite = max(self._polite - 1, 0)
        self.groups += 1
        self.programs += len(jobs)
        self.rows += sum(job.rows for job in jobs if job.error is None)
        self.largest_group = max(self.largest_group, len(jobs))
        self._calm += 1
        if self._calm >= CALM_GROUPS and self._lanes_allowed < self.pool.most:
            self._calm = 0
            self._lanes_allowed += 1

    def _fail(self, jobs: Sequence[Job], cause: Exception, kind: type[StorageUnavailable] = StorageUnavailable) -> None:
        self.failed_groups += 1
        self.failing = True
        self.last_error = describe(cause)
        text = str(cause) if isinstance(cause, StorageUnavailable) else describe(cause)
        for job in jobs:
            job.fail(kind(f"{self._name}: {text}"), cause)
