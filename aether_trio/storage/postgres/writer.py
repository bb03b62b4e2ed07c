"""Group commit on PostgreSQL: programs that wait share one transaction.

    trio tasks ──▶ queue ──▶ writer connection 1:  BEGIN · program · program · … · COMMIT
         ▲                ├▶ writer connection 2:  …         opened when the queue is long
         └──── the callers of a group are woken together, after its COMMIT

asyncpg cannot pipeline, so each statement is a round trip. A group saves BEGIN, COMMIT, the flush
to disk, and the round trips of deferred writes and of programs that run interleaved
(interleaving.py). Several writer connections save the wait for the network, but their programs may
touch the same row; then the server fails one of the transactions (SERIALIZABLE), which runs again.
So a second connection opens only when PROGRAMS_PER_CONNECTION programs wait; after a conflict the
connections close one by one down to one, and open again after CALM_GROUPS.

Other nodes can conflict all the same. A group that has lost takes the database's turn when it
begins: the lock of a table without rows. So do the POLITE_GROUPS that follow it on this node. Where
several nodes write to the same rows all the time (the tasks of a pool), each of them loses once,
and from then on their groups come one after another. LOCK TABLE takes no snapshot, so a group with
the turn sees what the one before has committed.
Meanwhile a queue has TURN_CONNECTIONS open: all of them wait for each other, and the pool is shared
with other databases, which need not wait for this turn.

A group runs without savepoints first. When a program raises, the group is rolled back and run again
with each program in its own savepoint.

A fence (database.py) is that of the moment when a program was submitted, and a group has one fence.
So a program of a lease that has ended is refused, even when the node has a new lease by the time
the group runs. A statement that has the fence in itself (FENCE_HERE) and is alone needs one round
trip and no BEGIN.

Each group writes its number into the row of its writer connection (schema/commit_marks.py), in the
round trip of BEGIN. When the connection is lost before the COMMIT was answered, its server process
is ended (lost_commits.py). Then that row says whether the group was committed. Only when the server
cannot be asked for `patience_s`, its programs are CommitUnknown, and no group begins before that is
decided.

Invariants: a job is answered exactly once, after the COMMIT that contains it; a connection goes
back to the pool only outside of a transaction; no group begins while one whose connection was lost
may still take effect.
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
from aether_trio.storage.postgres.errors import FencedError, PostgresFault, describe, fault
from aether_trio.storage.postgres.interleaving import drive_group
from aether_trio.storage.postgres.lost_commits import ServerProcess
from aether_trio.storage.postgres.merged_writes import WriteMerger
from aether_trio.storage.postgres.migrate import turn_table
from aether_trio.storage.postgres.pool import Pool, Spawn
from aether_trio.storage.postgres.statements import PostgresJob, drive, roll_back, within

MAX_GROUP: Final = 128
"""Programs a commit: bounds how long the first waits for the last, and what a conflict costs."""
PROGRAMS_PER_CONNECTION: Final = 8
"""Programs that wait before another writer connection is worth its BEGIN and COMMIT."""
KEYED_PER_CONNECTION: Final = 64
"""The same for programs that run interleaved: the more of them share a group the better."""
CALM_GROUPS: Final = 50
"""Groups without a conflict before another writer connection may open again."""
MAX_CONFLICTS: Final = 12
POLITE_GROUPS: Final = 100
"""Groups that take the turn after a conflict."""
TURN_CONNECTIONS: Final = 2
"""Writer connections that take turns: one writes, and one waits; others of the pool stay free."""
MAX_LOSSES: Final = 3
"""Connections a group may lose: its program could be what kills the server."""
FIRST_PAUSE_S: Final = 0.002
"""Longest pause after the first conflict of a group; doubled with each conflict."""
LONGEST_PAUSE_S: Final = 0.1
HURRY_S: Final = 0.05
"""How long a short queue waits for the writer connections that are open."""
ASK_AGAIN_S: Final = 0.2
"""Between two attempts to find out whether a group was committed."""

_COMMITTED: Final = "SELECT 1 FROM commit_marks WHERE writer = $1 AND connection = $2 AND number >= $3"
# Ends the process that has the turn, if it has been idle for longer than any transaction may be.
_CLEAR_TURN: Final = """
    SELECT pg_terminate_backend(l.pid) FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
    WHERE l.locktype = 'relation' AND l.relation = $1::text::regclass AND l.mode = 'ExclusiveLock' AND l.granted
        AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
        AND a.wait_event = 'ClientRead' AND a.state_change < now() - $2 * interval '1 second'
"""

Deliver = Callable[[Sequence[PostgresJob]], None]


class _Mark(NamedTuple):
    """The row of a writer connection by which a lost group's commit is recognized."""

    connection: int
    number: int


class _TransactionSpoiledError(Exception):
    """An operation failed in a transaction shared without savepoints: redo one by one."""


@dataclass(slots=True)
class _Attempt:
    """The state of a commit group that is being written."""

    mark: _Mark
    isolated: bool = False
    committing: bool = False
    recognized: bool = False
    """Whether its caller recognizes its statement, which then has no mark."""
    conflicts: int = 0
    losses: int = 0


class PostgresWriter:
    """Commits programs of one database in groups; with `locking`, at READ COMMITTED."""

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
        self._queue: deque[PostgresJob] = deque()
        self._turn = turn_table(name)
        self._open = 0
        """Writer connections that run groups now."""
        self._most_open = pool.most
        self._group_numbers: list[int] = []
        """The number of the last group of each writer connection."""
        self._free_connections: list[int] = []
        """Indexes into `_group_numbers` of writer connections that are closed."""
        self._calm = 0
        self._polite = 0
        self._hurry: asyncio.TimerHandle | None = None
        self._merger = WriteMerger()
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
        """Whether no program waits or runs."""
        return not self._open

    @property
    def _allowed(self) -> int:
        """How many writer connections may be open now."""
        return min(self._most_open, TURN_CONNECTIONS) if self._polite else self._most_open

    def put(self, job: PostgresJob) -> None:
        """Queue a job; a writer connection takes it in the loop's next turn."""
        self._queue.append(job)
        job.queued_at = self._loop.time()
        if self._open < self._allowed:
            enough = KEYED_PER_CONNECTION if job.key else PROGRAMS_PER_CONNECTION
            if len(self._queue) > self._open * enough:
                self._open_connection()
            elif self._hurry is None:
                self._hurry = self._loop.call_later(HURRY_S, self._open_for_waiting)

    def _open_connection(self) -> None:
        self._open += 1
        self._spawn(self._write_groups())

    def _open_for_waiting(self) -> None:
        """Open a writer connection for programs that may wait behind a row lock."""
        self._hurry = None
        if not self._queue or self._open >= self._allowed:
            return
        due = self._queue[0].queued_at + HURRY_S
        if self._loop.time() >= due:
            self._open_connection()
        else:  # the open connections are busy, and not stuck
            self._hurry = self._loop.call_at(due, self._open_for_waiting)

    async def _write_groups(self) -> None:
        """Run groups on one writer connection until the queue is empty."""
        if not self._free_connections:
            self._free_connections.append(len(self._group_numbers))
            self._group_numbers.append(0)
        index = self._free_connections.pop()
        try:
            while self._queue and self._open <= self._allowed:
                jobs = self._take()
                try:
                    await self._run(jobs, index)
                except Exception as exc:
                    # a defect of the engine: answer, so that no caller waits for ever
                    self._fail(jobs, exc)
                self._deliver(jobs)
        finally:
            self._open -= 1
            self._free_connections.append(index)

    def _take(self) -> list[PostgresJob]:
        share = -(-len(self._queue) // self._open)
        enough = KEYED_PER_CONNECTION if self._queue[0].key else PROGRAMS_PER_CONNECTION
        count = min(max(share, enough), MAX_GROUP, len(self._queue))
        fence = self._queue[0].fence
        jobs: list[PostgresJob] = []
        while len(jobs) < count and self._queue[0].fence == fence:
            jobs.append(self._queue.popleft())
        return jobs

    async def _run(self, jobs: list[PostgresJob], index: int) -> None:
        """Run a group until it is committed or refused, and each job is answered."""
        self._group_numbers[index] += 1
        attempt = _Attempt(_Mark(index, self._group_numbers[index]))
        while True:
            try:
                connection = await self.pool.acquire()
            except StorageUnavailable as exc:
                return self._fail(jobs, exc)
            attempt.committing = False
            began = self._loop.time()
            try:
                await within(connection, self._limits.transaction_s, partial(self._attempt, connection, jobs, attempt))
            except _TransactionSpoiledError:
                attempt.isolated = True
                self.pool.release(connection)
            except Exception as exc:
                kind = fault(exc, connection)
                healthy = kind is not PostgresFault.CONNECTION and await roll_back(connection)
                if kind is PostgresFault.CONNECTION:
                    # most often the server has gone, and with it all its connections
                    self.pool.discard_idle()
                    self.losses += 1
                    attempt.losses += 1
                if attempt.committing and kind is PostgresFault.CONNECTION:
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
                    if len(jobs) > 1 and self._loop.time() - began >= self._limits.transaction_s:
                        return await self._run_each(jobs, index)  # together they take too long
                if not await self._may_go_on(kind, attempt):
                    if kind is PostgresFault.SLOW and len(jobs) > 1:
                        return await self._run_each(jobs, index)
                    return self._fail(jobs, exc, FencedError if kind is PostgresFault.FENCED else StorageUnavailable)
            else:
                self.pool.release(connection)
                return self._succeeded(jobs)

    async def _find_out(self, lost: ServerProcess, attempt: _Attempt) -> bool | None:
        """Ask whether a group with a lost connection is committed; None without an answer."""
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
                self.pool.release(connection, healthy=kind is not PostgresFault.CONNECTION)
                if kind is PostgresFault.CONNECTION:
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

    def _leave_open(self, jobs: Sequence[PostgresJob], lost: ServerProcess, cause: Exception) -> None:
        """Fail jobs with CommitUnknown; they are over when their server process ends."""

        def over() -> None:
            for job in jobs:
                job.over()

        self._fail(jobs, cause, CommitUnknown)
        for job in jobs:
            job.undecided = True
        self.pool.lost.when_ended(lost, over)
        self._spawn(self._end_lost())

    async def _end_lost(self) -> None:
        """End the server processes of lost connections, for whose writes sessions wait."""
        while self.pool.lost and not self.pool.closed:
            try:
                connection = await self.pool.acquire()
            except StorageUnavailable:
                await asyncio.sleep(ASK_AGAIN_S)
                continue
            try:
                await within(connection, self._limits.transaction_s, partial(self.pool.lost.end_all, connection))
            except Exception as exc:
                self.pool.release(connection, healthy=fault(exc, connection) is not PostgresFault.CONNECTION)
                await asyncio.sleep(ASK_AGAIN_S)
            else:
                self.pool.release(connection)

    async def _may_go_on(self, kind: PostgresFault, attempt: _Attempt) -> bool:
        """Whether a failed group is to run again, now that its pause is over."""
        if kind is PostgresFault.CONNECTION:
            return attempt.losses < MAX_LOSSES
        if kind is PostgresFault.CONFLICT:
            self.conflicts += 1
            attempt.conflicts += 1
            self._calm = 0
            self._polite = POLITE_GROUPS
            self._most_open = max(self._most_open - 1, 1)
            pause_s = min(FIRST_PAUSE_S * 2**attempt.conflicts, LONGEST_PAUSE_S)
            await asyncio.sleep(pause_s * self._random.random())
            return attempt.conflicts < MAX_CONFLICTS
        return False

    async def _run_each(self, jobs: list[PostgresJob], index: int) -> None:
        """Run each job of a group alone, because one or all of them take too long."""
        for job in jobs:
            await self._run([job], index)

    async def _attempt(self, connection: Any, jobs: Sequence[PostgresJob], attempt: _Attempt) -> None:
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
        assert status == "COMMIT", status  # "ROLLBACK": the transaction had failed unnoticed

    async def _begin(self, connection: Any, fence: str, mark: _Mark) -> None:
        """Begin a transaction with its lease fence and commit mark, in one round trip."""
        first = (
            f"{fence + '; ' if fence else ''}SELECT aether_mark_commit('{self._id}', {mark.connection}, {mark.number})"
        )
        if self._polite and await self._begin_in_turn(connection, first):
            return
        await connection.execute(f"{self._begins}; {first}")

    async def _begin_in_turn(self, connection: Any, first: str) -> bool:
        """Begin a transaction with the lock for the nodes' turns; False: no lock in time."""
        try:
            await connection.execute(f"{self._begins}; LOCK TABLE {self._turn} IN EXCLUSIVE MODE; {first}")
        except Exception as exc:
            if fault(exc, connection) is not PostgresFault.SLOW:
                raise
            await connection.execute("ROLLBACK")
            await connection.fetch(_CLEAR_TURN, self._turn, self._limits.idle_in_transaction_s)
            return False
        return True

    @staticmethod
    async def _attempt_single(connection: Any, job: PostgresJob, attempt: _Attempt) -> None:
        attempt.committing = True
        job.error = None
        try:
            job.value = await drive(connection, job)
        except Exception as exc:
            if fault(exc, connection) is not PostgresFault.PROGRAM:
                raise
            job.error = exc

    async def _drive_all(self, connection: Any, jobs: Sequence[PostgresJob], *, isolated: bool) -> None:
        for job in jobs:
            job.error = None
        if isolated:
            await _drive_isolated(connection, jobs)
            return
        try:
            await drive_group(connection, jobs, self._merger)
        except Exception as exc:
            if fault(exc, connection) is not PostgresFault.PROGRAM:
                raise
            if len(jobs) > 1:
                await connection.execute("ROLLBACK")
                raise _TransactionSpoiledError from exc
            jobs[0].error = exc

    def _succeeded(self, jobs: Sequence[PostgresJob]) -> None:
        self.failing = False
        self._polite = max(self._polite - 1, 0)
        self.groups += 1
        self.programs += len(jobs)
        self.rows += sum(job.rows for job in jobs if job.error is None)
        self.largest_group = max(self.largest_group, len(jobs))
        self._calm += 1
        if self._calm >= CALM_GROUPS and self._most_open < self.pool.most:
            self._calm = 0
            self._most_open += 1

    def _fail(
        self, jobs: Sequence[PostgresJob], cause: Exception, kind: type[StorageUnavailable] = StorageUnavailable
    ) -> None:
        self.failed_groups += 1
        self.failing = True
        self.last_error = describe(cause)
        text = str(cause) if isinstance(cause, StorageUnavailable) else describe(cause)
        for job in jobs:
            job.fail(kind(f"{self._name}: {text}"), cause)


async def _drive_isolated(connection: Any, jobs: Sequence[PostgresJob]) -> None:
    """Run each program in its own savepoint; put results and errors into the jobs."""
    for number, job in enumerate(jobs):
        await connection.execute("RELEASE program; SAVEPOINT program" if number else "SAVEPOINT program")
        try:
            job.value = await drive(connection, job)
        except Exception as exc:
            if fault(exc, connection) is not PostgresFault.PROGRAM:
                raise
            await connection.execute("ROLLBACK TO program")
            job.error = exc
