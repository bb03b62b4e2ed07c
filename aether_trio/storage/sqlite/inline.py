"""Runs small SQLite programs in the trio thread, and has them synced without one.

    run_small ──▶ waiting ──turn──▶ BEGIN IMMEDIATE · program · … · COMMIT ──▶ kernel: sync
                     ▲                                                              │
                     └──────── the next turn ◀──── callers are woken ◀──────────────┘

Each statement that another thread runs gives up Python's lock, and has to get it back from a busy
event loop; and a change of thread costs as much as the rest of a small commit. A COMMIT here writes
to the page cache and does not wait for the disk (wal.py). Without a KernelSync the writer's thread
syncs; it also commits after a checkpoint, since that COMMIT syncs the header of the log.

Invariants: one thread at a time uses the connection: a turn begins only when the writer's thread
has no work and the last group is durable, and hands over all that it has run and not finished.
Programs take effect in the order in which they were given: while the thread has work, small
programs are queued behind it. The event loop never waits for a lock of another process, and runs at
most TURN_PROGRAMS in one turn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Final

import trio

from aether_trio.concurrency.events import RepeatedEvent
from aether_trio.storage.base import Program
from aether_trio.storage.sqlite.commit_groups import GroupTransactions, JobKind, SqliteJob
from aether_trio.storage.sqlite.kernel_sync import KernelSync
from aether_trio.storage.sqlite.threads import CheckpointThread, Item, OpenGroup
from aether_trio.storage.sqlite.wal import WriteAheadLog

TURN_PROGRAMS: Final = 64
"""Programs that run in one turn at most: some 5 ms."""

Deliver = Callable[[Sequence[SqliteJob]], None]


class WriteQueue:
    """Queues writes of a SQLite file for its writer thread, small ones for trio's."""

    def __init__(
        self, groups: GroupTransactions, thread: SimpleQueue[Item], deliver: Deliver, log: WriteAheadLog | None
    ) -> None:
        self._groups = groups
        self._thread = thread
        self._deliver = deliver
        self._log = log
        self.kernel_sync: KernelSync | None = None
        """Syncs the log; None where a thread has to."""
        self.checkpointer: CheckpointThread | None = None
        self._waiting: list[SqliteJob] = []
        self._has_leader = False
        """Whether a caller or the end of a group will begin the next turn."""
        self._in_thread = 0
        """Programs that the thread has got and has not answered."""
        self._ending: OpenGroup | None = None
        """The group of the last turn, until it is durable."""
        self._in_kernel = False
        """Whether the kernel is syncing that group."""
        self._held: list[SqliteJob] = []
        """Jobs for the thread, which gets them when the kernel has synced."""
        self._is_checkpointing = False
        """Whether a checkpoint was begun, and its rest is not copied yet."""
        self._answered = RepeatedEvent()
        self._trio = trio.lowlevel.current_trio_token()

    def put(self, job: SqliteJob) -> None:
        """Queue a job for the writer thread."""
        self.flush()
        self._give(job)

    def put_small(self, job: SqliteJob) -> bool:
        """Queue a small job for the trio thread; True: the caller is to call `turn` soon."""
        if self._in_thread:
            self.put(job)
            return False
        self._waiting.append(job)
        if self._ending is not None or self._has_leader:
            return False
        self._has_leader = True
        return True

    def flush(self) -> None:
        """Give the small jobs that wait to the writer thread."""
        waiting, self._waiting = self._waiting, []
        for job in waiting:
            self._give(job)

    def _give(self, job: SqliteJob) -> None:
        # A sync of the thread might take away the error of the kernel's, of which it is told once.
        self._in_thread += 1
        if self._in_kernel:
            self._held.append(job)
        else:
            self._thread.put(job)

    def answered(self, jobs: Sequence[SqliteJob]) -> None:
        """Deliver a group that the writer thread has finished."""
        if self._ending is not None and jobs is self._ending.jobs:
            self._ended(self._ending)
            return
        self._in_thread -= len(jobs)
        answered = [job for job in jobs if job.kind is not JobKind.CHECKPOINT]
        if len(answered) < len(jobs):
            self._is_checkpointing = False
        self._finish(answered)

    def synced(self, errno: int) -> None:
        """Deliver a group that the kernel has synced, or failed to."""
        group = self._ending
        assert group is not None, "nothing is being synced"
        self._in_kernel = False
        if errno:
            group.errno = errno
            self._thread.put(group)
            self._release_held()  # in front of what is put from here on
            return
        self._groups.statistics.committed(len(group.jobs), self._groups.connection.total_changes - group.rows)
        self._ended(group)

    async def wait_durable(self) -> None:
        """Wait until what a reader can see now is durable, or known not to be."""
        log = self._log
        if log is None or not log.is_synced:
            return
        if self._ending is not None:
            await self._answered.wait()
        for _ in range(2):  # the first answer may be that of the group before
            if log.unsynced:
                await self._answered.wait()

    async def stop(self) -> None:
        """End the thread behind all that waits. Nothing may be put from here on."""
        self.flush()
        while self._ending is not None:
            await self._answered.wait()
        self._thread.put(None)

    def copied(self) -> None:
        """Have the writer thread copy the rest of a log of which most is copied."""
        self.put(SqliteJob(_nothing, JobKind.CHECKPOINT))

    def turn(self) -> None:
        """Run what waits as a group, and have it synced."""
        self._has_leader = False
        if not self._may_run:
            return
        self._run_group()
        if self._may_run:
            self._has_leader = True
            self._trio.run_sync_soon(self.turn)  # other tasks have their turn

    @property
    def _may_run(self) -> bool:
        return bool(self._waiting) and self._ending is None and not self._in_thread

    def _run_group(self) -> None:
        log, groups = self._log, self._groups
        if log is not None and log.broken:
            self.flush()
            return
        before = groups.connection.total_changes
        jobs = self._waiting[:TURN_PROGRAMS]
        try:
            if log is not None and log.is_synced:
                groups.sync_commits(False)
            groups.run(jobs, patient=False)
        except Exception:
            # the thread runs them again: it can wait for a lock, and answers with the error
            self.flush()
            return
        del self._waiting[:TURN_PROGRAMS]
        if not groups.is_open:
            self._finish(jobs)
            return
        group = self._ending = OpenGroup(jobs, before)
        if log is not None and (log.restarts or (log.is_synced and self.kernel_sync is None)):
            self._thread.put(group)
            return
        try:
            groups.commit()
        except Exception as exc:
            group.failure = exc
            self._thread.put(group)
            return
        group.committed = True
        if log is not None and log.is_synced:
            assert self.kernel_sync is not None
            try:
                self.kernel_sync.submit()
                self._in_kernel = True
            except OSError:
                self._thread.put(group)
        else:
            groups.statistics.committed(len(jobs), groups.connection.total_changes - before)
            self._ending = None
            self._finish(jobs)

    def _ended(self, group: OpenGroup) -> None:
        self._ending = None
        self._release_held()
        self._finish(group.jobs)
        if not self._has_leader:
            self.turn()

    def _release_held(self) -> None:
        held, self._held = self._held, []
        for job in held:
            self._thread.put(job)

    def _finish(self, jobs: Sequence[SqliteJob]) -> None:
        self._answered.set()
        if jobs and self._log is not None and self.checkpointer is not None:
            is_due = self._log.note_group()
            if is_due and not self._is_checkpointing:
                self._is_checkpointing = True
                self.checkpointer.start_checkpoint()
        self._deliver(jobs)


def _nothing() -> Program[None]:
    """Stand for the program of a job that has none."""
    yield from ()
