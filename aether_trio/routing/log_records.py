"""What is set for the topic log, and what it tells of itself."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LogLimits:
    """`pending_bytes`/`pending_messages` wait for a commit at most; a group takes at most
    `group_messages`, and about `group_bytes`."""

    pending_bytes: int = 16 * 1024 * 1024
    pending_messages: int = 20_000
    group_messages: int = 4_000
    group_bytes: int = 4 * 1024 * 1024
    cursor_flush_s: float = 0.25
    partition_ms: int = 3 * 3600 * 1000
    """Of a shared database only: how long a stretch of time lies in one table (partitions.py)."""


@dataclass(frozen=True, slots=True)
class LogStatistics:
    """Counters since start, and what waits now. `settled - refused` messages are durable."""

    appended: int
    settled: int
    refused: int
    groups: int
    pending_messages: int
    pending_bytes: int
    topics: int
    subscriptions: int
    storage_failing: bool
