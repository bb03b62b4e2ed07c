"""The statuses of a task, their kinds and their numbers (tasks.md 1.2, 1.3).

Several stored statuses share a number on the wire: ASSIGNED and STARTING are QUEUED there, a dead
letter is FAILED.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final


class StoredStatus(enum.StrEnum):
    """The status of a task, as stored; finer than the wire's TaskStatus."""

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

    __hash__ = str.__hash__  # that of Enum is a Python function: too slow here

    wire: int
    """The number of this status in the wire's TaskStatus."""


LIVE: Final = frozenset({StoredStatus.PENDING, StoredStatus.ASSIGNED, StoredStatus.STARTING, StoredStatus.RUNNING})
HELD: Final = frozenset({StoredStatus.ASSIGNED, StoredStatus.STARTING, StoredStatus.RUNNING})
"""Live and assigned: these count as the live tasks of a worker."""
WAITING: Final = frozenset(
    {StoredStatus.WAITING_INPUT, StoredStatus.WAITING_AUTHORITY, StoredStatus.WAITING_DEPENDENCY}
)
"""Paused, with the worker still assigned."""
PAUSED: Final = WAITING | {StoredStatus.HIBERNATED}
TERMINAL: Final = frozenset(
    {StoredStatus.COMPLETED, StoredStatus.FAILED, StoredStatus.CANCELLED, StoredStatus.DLQ, StoredStatus.REJECTED}
)


def is_final(status: StoredStatus, next_retry_ms: int) -> bool:
    """Return whether a task has ended: its status is terminal, and no retry follows."""
    return status in TERMINAL and not next_retry_ms


_WIRE: Final[Mapping[StoredStatus, int]] = MappingProxyType(
    {
        StoredStatus.PENDING: 1,
        StoredStatus.ASSIGNED: 1,
        StoredStatus.STARTING: 1,
        StoredStatus.RUNNING: 2,
        StoredStatus.COMPLETED: 3,
        StoredStatus.FAILED: 4,
        StoredStatus.CANCELLED: 5,
        StoredStatus.WAITING_INPUT: 6,
        StoredStatus.WAITING_AUTHORITY: 7,
        StoredStatus.WAITING_DEPENDENCY: 8,
        StoredStatus.HIBERNATED: 9,
        StoredStatus.REJECTED: 10,
        StoredStatus.DLQ: 4,
    }
)
for _status, _number in _WIRE.items():
    _status.wire = _number  # a property would be called 18 times for a task


def stored_as(wire: int) -> frozenset[StoredStatus]:
    """Return the stored statuses of a TaskStatus number; none for an unknown number.

    The reference's filter finds only `pending` for QUEUED and only `failed` for FAILED. Here a
    filter finds every task that is shown with that number.
    """
    return frozenset(status for status, number in _WIRE.items() if number == wire)


class GraceClass(enum.IntEnum):
    """A task's class, by which it waits for a disconnected worker."""

    UNSPECIFIED = 0
    INTERACTIVE = 1
    BACKGROUND = 2
    BATCH = 3


GRACE_MS: Final[Mapping[int, int]] = MappingProxyType(
    {
        GraceClass.UNSPECIFIED: 30_000,
        GraceClass.INTERACTIVE: 30_000,
        GraceClass.BATCH: 300_000,
        GraceClass.BACKGROUND: 600_000,
    }
)
"""How long a running task waits for its worker to reconnect, by class; fixed at creation."""

NORMAL_PRIORITY: Final = 30


def grace_ms(task_class: int) -> int:
    """Return the grace window of a task class (ms); an unknown one has UNSPECIFIED's."""
    return GRACE_MS.get(task_class, GRACE_MS[GraceClass.UNSPECIFIED])


def priority_of(wire: int) -> int:
    """Return the stored priority of a task: 0 on the wire is NORMAL (tasks.md 1.2)."""
    return wire or NORMAL_PRIORITY
