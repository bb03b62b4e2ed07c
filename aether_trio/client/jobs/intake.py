"""Keeps the task assignments of a client's worker that it has not begun.

A feed that listens from the client's first connection on, as work comes right behind the answer
that lets it in. A cut empties it: the gateway tells a worker that comes back what it has not
claimed, and may have given the rest to others. What was given back stays: it may be claimed, and
then no gateway tells it again.

Invariants: a task that is in hand is not taken again before its block has ended; what waits is
bounded by what a gateway gives one worker at once, else by IDLE_COUNT and IDLE_BYTES.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import anyio.lowlevel

from aether_trio.client.errors import ConnectionLost
from aether_trio.client.feeds import Feed
from aether_trio.client.operations.records import read
from aether_trio.client.operations.task_values import Assignment
from aether_trio.wire.pb import aether_pb2 as pb

RUN: Final = "workflow_run"
FUNCTION: Final = "function"
"""Type and metadata of the task that is the run of a durable function."""
IDLE_COUNT: Final = 10_000
IDLE_BYTES: Final = 8 * 1024 * 1024
"""Payload bytes that are kept for a program that takes no tasks, the newest ones."""


def is_run(assignment: Assignment | pb.TaskAssignment) -> bool:
    """Return whether an assignment is the run of a durable function."""
    return assignment.task_type == RUN and FUNCTION in assignment.metadata


class AssignmentIntake(Feed[Assignment]):
    """A feed of a worker's task assignments; of each task it keeps the latest."""

    def __init__(self, repeated: Callable[[str], None]) -> None:
        super().__init__(IDLE_COUNT, lossy=True)
        self.taking = False
        """Whether the program takes work: then the gateway bounds what waits."""
        self.in_hand: set[str] = set()
        self._assigned: dict[str, pb.TaskAssignment | Assignment] = {}
        self._bytes = 0
        self._repeated = repeated

    def __len__(self) -> int:
        return len(self._assigned)

    def put(self, thing: Any) -> None:
        """Add a task assignment; on ConnectionLost, drop those not added by `give_back`."""
        if isinstance(thing, ConnectionLost):
            self._assigned = {name: one for name, one in self._assigned.items() if isinstance(one, Assignment)}
            self._bytes = sum(len(one.payload) for one in self._assigned.values())
            return
        if self._closed:
            return
        self.forget(thing.task_id)
        self._assigned[thing.task_id] = thing
        self._bytes += len(thing.payload)
        while not self.taking and (len(self) > IDLE_COUNT or self._bytes > IDLE_BYTES):
            self.forget(next(iter(self._assigned)))
            self.dropped += 1
        if thing.task_id in self.in_hand:
            self._repeated(thing.task_id)
        else:
            self._news.set()

    def has(self, task_id: str) -> bool:
        """Return whether an assignment of this task waits to be taken."""
        return task_id in self._assigned

    def forget(self, task_id: str) -> None:
        """Drop the waiting assignment of this task, if there is one."""
        known = self._assigned.pop(task_id, None)
        if known is not None:
            self._bytes -= len(known.payload)

    def put_down(self, task_id: str) -> None:
        """Note that the worker has ended this task: it may be taken again if reassigned."""
        self.in_hand.discard(task_id)
        if task_id in self._assigned:
            self._news.set()

    def give_back(self, assignment: Assignment) -> None:
        """Put back an assignment that was not begun; it is next, unless a newer one came."""
        task_id = assignment.task_id
        if not self._closed and task_id not in self._assigned:
            self._assigned = {task_id: assignment, **self._assigned}
            self._bytes += len(assignment.payload)
        self.put_down(task_id)

    def take_back(self, assignment: Assignment) -> bool:
        """Take an assignment that was put back. Return False if it no longer waits."""
        return self._assigned.get(assignment.task_id) is assignment and self._take_task(assignment.task_id)

    def _take_task(self, task_id: str) -> bool:
        """Take a waiting task for the worker; return False if the worker has it already."""
        if task_id in self.in_hand:
            return False
        self.forget(task_id)
        self.in_hand.add(task_id)
        return True

    async def __anext__(self) -> Assignment:
        """Wait for an assignment of a task that this worker has not got, and take it."""
        return await self.take()

    async def take(self, *, runs: bool = False) -> Assignment:
        """Wait for a task that this worker has not got: a function's run, or another."""
        self.taking = True
        await anyio.lowlevel.checkpoint()
        while True:
            for task_id, message in self._assigned.items():
                if is_run(message) is runs and self._take_task(task_id):
                    return message if isinstance(message, Assignment) else read(Assignment, message)
            await self._wait_for_news()
