"""Group commit on PostgreSQL: lanes that take what waits and run it as one transaction each.

    trio tasks ──▶ queue ──▶ lane 1:  BEGIN · program · program · … · COMMIT      one lane = one connection
         ▲                ├▶ lane 2:  …                                           opened when the queue is long
         └──── the callers of a group are woken together, after its COMMIT

asyncpg cannot pipeline, so every statement is a round trip; what a group saves is BEGIN, COMMIT, the flush to disk and what its
programs write aside (base.Aside: one round trip for many), and what lanes save is the wait for the network. Programs of two lanes
may touch the same row; then one transaction is told so by the server (SERIALIZABLE) and runs again. To keep that rare a second
lane opens only when GROUP_BEFORE_LANE programs wait, and after a conflict the lanes close one by one down to one, which cannot
conflict with itself; they come back after CALM_GROUPS.

Another node can conflict all the same. A group that has lost takes the database's turn, an advisory lock, before it begins, and so do the
POLITE_GROUPS that follow it on this node: what several nodes write to all the time (the tasks of a pool) makes each of them lose once, and
from then on their groups come one after another, where they would otherwise spoil each other until one had lost too often.

A group runs without savepoints first. When a program raises, the group is rolled back and run again with each in its own savepoint, so
that the one that raises leaves no trace in the others' commit.

A fence (postgres.py) is that of the moment when a program was submitted, and a group has one: what a node wrote under a lease
that has ended is refused, even when it has a new one by the time the group runs. A statement that has the fence in itself
(FENCE_HERE) and is alone needs one round trip and no BEGIN.

Invariants: a job is answered exactly once; nothing is answered before the COMMIT that contains it; a connection goes back to the
pool only outside of a transaction; a group whose connection is lost before its COMMIT was sent runs again elsewhere, and one that is
lost after it is answered CommitUnknown.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from aether_trio.storage.base import CommitUnknown, StorageUnavailable
from aether_trio.storage.postgres_connections import PostgresLimits
from aether_trio.storage.postgres_errors import Fault, FencedError, describe, fault
from aether_trio.storage.postgres_pool import Pool, Spawn
from aether_trio.storage.postgres_statements import Asides, Job, drive, roll_back, within

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

Deliver = Callable[[Sequence[Job]], None]


class _SpoiledError(Exception):
    """A program raised in a group that has no savepoints."""


@dataclass(slots=True)
class _Attempt:
    """What has become of a group so far."""

    isolated: bool = False
    committing: bool = False
    conflicts: int = 0
    losses: int = 0


class Writer:
    """The queue and the lanes of one logical database. Runs on the asyncio side."""

    def __init__(
        self, name: str, pool: Pool, spawn: Spawn, loop: Any, deliver: Deliver, limits: PostgresLimits
    ) -> None:
        self._name = name
        self.pool = pool
        self._spawn = spawn
        self._loop = loop
        self._deliver = deliver
        self._limits = limits
        self._queue: deque[Job] = deque()
        self._lanes = 0
        self._lanes_allowed = pool.most
        self._calm = 0
        self._polite = 0
        self._hurry: asyncio.TimerHandle | None = None
        self._random = random.Random()  # noqa: S311  # spreads the pauses of groups that fight
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
        try:
            while self._queue and self._lanes <= self._lanes_allowed:
                jobs = self._take()
                try:
                    await self._run(jobs)
                except Exception as exc:  # a defect of ours: answer rather than strand the callers
                    self._fail(jobs, exc)
                self._deliver(jobs)
        finally:
            self._lanes -= 1

    def _take(self) -> list[Job]:
        share = -(-len(self._queue) // self._lanes)
        count = min(max(share, GROUP_BEFORE_LANE), MAX_GROUP, len(self._queue))
        fence = self._queue[0].fence
        jobs: list[Job] = []
        while len(jobs) < count and self._queue[0].fence == fence:
            jobs.append(self._queue.popleft())
        return jobs

    async def _run(self, jobs: list[Job]) -> None:
        """Run a group until it is committed or refused; every job has its answer afterwards."""
        attempt = _Attempt()
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
                self.pool.release(connection, healthy=healthy)
                if not await self._may_go_on(kind, attempt):
                    if kind is Fault.SLOW and len(jobs) > 1:
                        return await self._run_each(jobs)
                    if kind is Fault.FENCED:
                        return self._fail(jobs, exc, FencedError)
                    unknown = attempt.committing and kind is Fault.CONNECTION
                    return self._fail(jobs, exc, CommitUnknown if unknown else StorageUnavailable)
            else:
                self.pool.release(connection)
                return self._succeeded(jobs)

    async def _may_go_on(self, kind: Fault, attempt: _Attempt) -> bool:
        """After an error: whether the group is to run again (now: a pause that the error asks for is over)."""
        if kind is Fault.CONNECTION:
            self.pool.discard_idle()  # most often the server went away, and they with it
            self.losses += 1
            attempt.losses += 1
            return attempt.losses < MAX_LOSSES and not attempt.committing
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

    async def _run_each(self, jobs: list[Job]) -> None:
        """One of them takes too long: find out which, without failing the others."""
        for job in jobs:
            await self._run([job])

    async def _attempt(self, connection: Any, jobs: Sequence[Job], attempt: _Attempt) -> None:
        turn = self._polite > 0 and await self._take_turn(connection)
        try:
            fence = jobs[0].fence
            if len(jobs) == 1 and jobs[0].single and (jobs[0].fenced or not fence):
                await self._attempt_single(connection, jobs[0], attempt)
                return
            await connection.execute(f"BEGIN; {fence}" if fence else "BEGIN")
            await self._drive_all(connection, jobs, isolated=attempt.isolated)
            if all(job.error is not None for job in jobs):
                await connection.execute("ROLLBACK")
                return
            attempt.committing = True
            status = await connection.execute("COMMIT")
            assert status == "COMMIT", status  # "ROLLBACK" would be a transaction that had failed unnoticed
        finally:
            if turn and await roll_back(connection):
                await connection.execute("SELECT pg_advisory_unlock_all()")

    async def _take_turn(self, connection: Any) -> bool:
        """Wait for the database's turn; False if it was not to be had in time: the group goes on without it, and may lose again."""
        try:
            await connection.execute("SELECT pg_advisory_lock(hashtextextended($1, 0))", f"aether turn {self._name}")
        except Exception as exc:
            if fault(exc, connection) is not Fault.SLOW:
                raise
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
