"""Runs small SQLite programs in the trio thread; their COMMIT is in the writer's.

    run_small ──▶ waiting ──turn──▶ BEGIN IMMEDIATE · program · … ──▶ writer's thread: COMMIT
                     ▲                                                           │
                     └──────── the next turn ◀──── callers are woken ◀───────────┘

Each statement that another thread runs gives up Python's lock, and has to get it back from a busy
event loop. A transaction of ten statements by key costs a third less CPU here.

Invariants: one thread at a time uses the connection: a turn begins only when the writer's thread
has no work, and hands over all that it has run. Programs take effect in the order in which they
were given: while the thread has work, small programs are queued behind it. The event loop never
waits for a lock of another process, and runs at most TURN_PROGRAMS in one turn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Final

import trio

from aether_trio.storage.sqlite.commit_groups import GroupTransactions, SqliteJob
from aether_trio.storage.sqlite.threads import Item, OpenGroup

TURN_PROGRAMS: Final = 64
"""Programs that run in one turn at most: some 5 ms."""


class WriteQueue:
    """Queues writes of a SQLite file for its writer thread, small ones for trio's."""

    def __init__(
        self, groups: GroupTransactions, thread: SimpleQueue[Item], deliver: Callable[[Sequence[SqliteJob]], None]
    ) -> None:
        self._groups = groups
        self._thread = thread
        self._deliver = deliver
        self._waiting: list[SqliteJob] = []
        self._in_thread = 0
        """Programs that the thread has got and has not answered."""
        self._committing = False
        self._trio = trio.lowlevel.current_trio_token()

    def put(self, job: SqliteJob) -> None:
        """Queue a job for the writer thread."""
        self.flush()
        self._in_thread += 1
        self._thread.put(job)

    def put_small(self, job: SqliteJob) -> None:
        """Queue a small job for the trio thread, after all tasks that are ready now."""
        if self._in_thread:
            self.put(job)
            return
        self._waiting.append(job)
        if len(self._waiting) == 1 and not self._committing:
            self._trio.run_sync_soon(self._turn)

    def flush(self) -> None:
        """Give the small jobs that wait to the writer thread."""
        waiting, self._waiting = self._waiting, []
        self._in_thread += len(waiting)
        for job in waiting:
            self._thread.put(job)

    def answered(self, jobs: Sequence[SqliteJob]) -> None:
        """Deliver a group that the writer thread has finished."""
        if self._committing:
            self._committing = False
            if self._waiting:
                self._trio.run_sync_soon(self._turn)
        else:
            self._in_thread -= len(jobs)
        self._deliver(jobs)

    def _turn(self) -> None:
        if self._committing or not self._waiting:
            return  # the thread has got them
        before = self._groups.connection.total_changes
        jobs = self._waiting[:TURN_PROGRAMS]
        try:
            self._groups.run(jobs, patient=False)
        except Exception:
            # the thread runs them again: it can wait for a lock, and answers with the error
            self.flush()
            return
        del self._waiting[:TURN_PROGRAMS]
        if self._groups.is_open:
            self._committing = True
            self._thread.put(OpenGroup(jobs, before))
        else:
            self._deliver(jobs)
            if self._waiting:
                self._trio.run_sync_soon(self._turn)
