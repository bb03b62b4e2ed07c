"""Small programs run in the trio thread itself, and only their COMMIT is handed to the writer's thread.

    run_small ──▶ waiting ──turn──▶ BEGIN IMMEDIATE · program · program · …  ──Commit──▶ writer's thread: COMMIT, fsync
                     ▲                                                                            │
                     └────────────── the next turn ◀──────────── callers are woken ◀──────────────┘

Each statement that a thread of its own runs gives up Python's lock and has to get it back from a loop that is busy: two changes of
thread for some microseconds in SQLite. A transaction of ten statements by key costs a third less CPU here, and its programs see no
other thread. What waits for the disk, the commit, stays where it was.

Invariants: the connection is used by one thread at a time: a turn begins only when the thread has nothing in hand, and hands over all
that it has run. Programs take effect in the order in which they were given, whichever way they go: while there is work for the thread,
small programs are queued behind it. The loop is never kept for a lock of another process, nor for more than TURN_PROGRAMS.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Final

import trio

from aether_trio.storage.sqlite.commit_groups import Groups, Job
from aether_trio.storage.sqlite.threads import Commit, Item

TURN_PROGRAMS: Final = 64
"""At most so many are run in one go: some 5 ms."""


class Gate:
    """All writes of a file: which of them the thread runs, and when the loop runs small ones. `deliver` answers jobs."""

    def __init__(self, groups: Groups, thread: SimpleQueue[Item], deliver: Callable[[Sequence[Job]], None]) -> None:
        self._groups = groups
        self._thread = thread
        self._deliver = deliver
        self._waiting: list[Job] = []
        self._in_thread = 0
        """Programs that the thread was given and has not answered."""
        self._committing = False
        self._trio = trio.lowlevel.current_trio_token()

    def put(self, job: Job) -> None:
        """For the thread."""
        self.flush()
        self._in_thread += 1
        self._thread.put(job)

    def put_small(self, job: Job) -> None:
        """For the next turn: after whatever else is ready to run now, so that it takes all that comes at the same time."""
        if self._in_thread:
            self.put(job)
            return
        self._waiting.append(job)
        if len(self._waiting) == 1 and not self._committing:
            self._trio.run_sync_soon(self._turn)

    def flush(self) -> None:
        """Give to the thread what waits for a turn."""
        waiting, self._waiting = self._waiting, []
        self._in_thread += len(waiting)
        for job in waiting:
            self._thread.put(job)

    def answered(self, jobs: Sequence[Job]) -> None:
        """The thread is done with a group."""
        if self._committing:
            self._committing = False
            if self._waiting:
                self._trio.run_sync_soon(self._turn)
        else:
            self._in_thread -= len(jobs)
        self._deliver(jobs)

    def _turn(self) -> None:
        if self._committing or not self._waiting:
            return  # they have been given to the thread
        before = self._groups.connection.total_changes
        jobs = self._waiting[:TURN_PROGRAMS]
        try:
            self._groups.run(jobs, patient=False)
        except Exception:
            self.flush()  # the thread runs them again: it can wait for a lock, and says what is wrong
            return
        del self._waiting[:TURN_PROGRAMS]
        if self._groups.is_open:
            self._committing = True
            self._thread.put(Commit(jobs, before))
        else:
            self._deliver(jobs)
            if self._waiting:
                self._trio.run_sync_soon(self._turn)
