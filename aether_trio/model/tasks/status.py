"""The statuses of a task, their kinds and their numbers (tasks.md 1.2, 1.3).

Several stored statuses share a number on the wire: ASSIGNED and STARTING are QUEUED there, a dead
letter is FAILED.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final


class Status(enum.StrEnum):
    """The status of a task, as stored."""

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

    __hash__ = str.__hash__  # that of Enum is a Python function, and statuses are looked up all the time

    @property
    def wire(self) -> int:
        """The number of this status in the protocol's TaskStatus."""
        return _WIRE[self]


LIVE: Final = frozenset({Status.PENDING, Status.ASSIGNED, Status.STARTING, Status.RUNNING})
HELD: Final = frozenset({Status.ASSIGNED, Status.STARTING, Status.RUNNING})
"""Live and assigned: these count as the live tasks of a worker."""
WAITING: Final = frozenset({Status.WAITING_INPUT, Status.WAITING_AUTHORITY, Status.WAITING_DEPENDENCY})
"""Paused, with the worker still assigned."""
PAUSED: Final = WAITING | {Status.HIBERNATED}
TERMINAL: Final = frozenset({Status.COMPLETED, Status.FAILED, Status.CANCELLED, Status.DLQ, Status.REJECTED})


def is_final(status: Status, next_retry_ms: int) -> bool:
    """Return whether a task has ended: its status is terminal, and no retry follows."""
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
    """Return the statuses of a number on the wire; none for an unknown number.

    The reference's filter finds only `pending` for QUEUED and only `failed` for FAILED. Here a
    filter finds every task that is shown with that number.
    """
    return frozenset(status for status, number in _WIRE.items() if number == wire)


class TaskClass(enum.IntEnum):
    """How patient a task is with its worker.

    UNSPECIFIED is treated as INTERACTIVE, but not cancelled when it is stale.
    """

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
"""Grace window in milliseconds, by class; fixed when the task is created.

A running task waits so long for its worker to reconnect.
"""

NORMAL_PRIORITY: Final = 30


def grace_ms(task_class: int) -> int:
    """Return the grace window of a class; of an unknown class, that of UNSPECIFIED."""
    return GRACE_MS.get(task_class, GRACE_MS[TaskClass.UNSPECIFIED])


def priority_of(wire: int) -> int:
    """Return the stored priority: 0 on the wire is NORMAL (reference: tasks.md 1.2)."""
    return wire or NORMAL_PRIORITY
