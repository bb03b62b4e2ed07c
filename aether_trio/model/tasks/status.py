"""The statuses of a task, what kind each is, and what it is called on the wire (reference: tasks.md 1.2, 1.3).

Several stored statuses share a number on the wire: being assigned and being started still count as QUEUED, a dead letter as FAILED.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final


class Status(enum.StrEnum):
    """As stored."""

    PENDING = "pending"
    ASSIGNED = "assigned"
    STARTING = "starting"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    DLQ = "dlq"
    WAITING_INPUT = "waiting_input"
    WAITING_AUTHORITY = "waiting_authority"
    WAITING_DEPENDENCY = "waiting_dependency"
    HIBERNATED = "hibernated"
    REJECTED = "rejected"

    __hash__ = str.__hash__  # an enumeration's own is a call of Python's, and these are looked up all the time

    @property
    def wire(self) -> int:
        """The number of the protocol's TaskStatus."""
        return _WIRE[self]


LIVE: Final = frozenset({Status.PENDING, Status.ASSIGNED, Status.STARTING, Status.RUNNING})
HELD: Final = frozenset({Status.ASSIGNED, Status.STARTING, Status.RUNNING})
"""Live, and in somebody's hands: these count as the live tasks of a worker."""
WAITING: Final = frozenset({Status.WAITING_INPUT, Status.WAITING_AUTHORITY, Status.WAITING_DEPENDENCY})
"""Paused with the worker still on it."""
PAUSED: Final = WAITING | {Status.HIBERNATED}
TERMINAL: Final = frozenset({Status.COMPLETED, Status.FAILED, Status.CANCELLED, Status.DLQ, Status.REJECTED})


def is_final(status: Status, next_retry_ms: int) -> bool:
    """Whether a task has ended: its status is terminal, and no attempt is to follow."""
    return status in TERMINAL and not next_retry_ms


_WIRE: Final[Mapping[Status, int]] = MappingProxyType(
    {
        Status.PENDING: 1,
        Status.ASSIGNED: 1,
        Status.STARTING: 1,
        Status.RUNNING: 2,
        Status.COMPLETED: 3,
        Status.FAILED: 4,
        Status.CANCELLED: 5,
        Status.WAITING_INPUT: 6,
        Status.WAITING_AUTHORITY: 7,
        Status.WAITING_DEPENDENCY: 8,
        Status.HIBERNATED: 9,
        Status.REJECTED: 10,
        Status.DLQ: 4,
    }
)


def stored_as(wire: int) -> frozenset[Status]:
    """The statuses that a number on the wire stands for; none for a number that the protocol does not know.

    The reference's filter finds only `pending` for QUEUED and only `failed` for FAILED; here a filter finds whatever is shown
    with that number.
    """
    return frozenset(status for status, number in _WIRE.items() if number == wire)


class TaskClass(enum.IntEnum):
    """How patient a task is with its worker. UNSPECIFIED is INTERACTIVE, but for the sweep of stale tasks."""

    UNSPECIFIED = 0
    INTERACTIVE = 1
    BACKGROUND = 2
    BATCH = 3


GRACE_MS: Final[Mapping[int, int]] = MappingProxyType(
    {
        TaskClass.UNSPECIFIED: 30_000,
        TaskClass.INTERACTIVE: 30_000,
        TaskClass.BATCH: 300_000,
        TaskClass.BACKGROUND: 600_000,
    }
)
"""How long a running task waits for its worker to come back, in milliseconds; fixed when the task is created."""

NORMAL_PRIORITY: Final = 30


def grace_ms(task_class: int) -> int:
    """The grace window of a class; a class that the protocol does not know is as patient as an unspecified one."""
    return GRACE_MS.get(task_class, GRACE_MS[TaskClass.UNSPECIFIED])


def priority_of(wire: int) -> int:
    """What a priority on the wire is stored as: 0 is NORMAL, other numbers pass (reference: tasks.md 1.2)."""
    return wire or NORMAL_PRIORITY
