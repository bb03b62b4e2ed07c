"""Counts waiting tasks, dead letters and waiting starts, for metrics.

Each query reads one partial index, which has only such rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from aether_trio.storage.base import Fetch, Program, Row

# Names of pools' queues begin with it (model/tasks/waiting_queue.py); ";" comes after ":".
_FIRST, _AFTER = "pool::", "pool:;"
_POOLS: Final = (
    "SELECT queue, count(*), min(order_us) FROM tasks WHERE queue <> '' AND queue >= $1 AND queue < $2 GROUP BY queue"
)
_TARGETED: Final = "SELECT count(*), min(order_us) FROM tasks WHERE queue <> '' AND {}"


@dataclass(frozen=True, slots=True)
class TaskBacklog:
    """What waits in the database; times are Unix ms, None where nothing waits.

    `pools` has (workspace, implementation, tasks, creation of the oldest).
    """

    pools: Sequence[tuple[str, str, int, int]]
    targeted: int
    oldest_targeted_ms: int | None
    dead_letters: int
    oldest_dead_letter_ms: int | None
    starts: int


def read() -> Program[TaskBacklog]:
    """Count what waits."""
    found: list[Row] = yield Fetch(_POOLS, (_FIRST, _AFTER))
    pools = []
    for queue, tasks, oldest_us in found:
        _, workspace, implementation = queue.split("::", 2)
        pools.append((workspace, implementation, tasks, oldest_us // 1000))
    targeted = 0
    times: list[int] = []
    # Two ranges of the index; with OR it would be read as a whole.
    for bound, value in (("queue < $1", _FIRST), ("queue >= $1", _AFTER)):
        [(tasks, oldest_us)] = yield Fetch(_TARGETED.format(bound), (value,))
        targeted += tasks
        if oldest_us is not None:
            times.append(oldest_us // 1000)
    [(letters, buried_ms)] = yield Fetch("SELECT count(*), min(buried_ms) FROM task_dead_letters WHERE resolved_ms = 0")
    [(starts,)] = yield Fetch("SELECT count(*) FROM agent_starts WHERE waits = 1")
    return TaskBacklog(pools, targeted, min(times, default=None), letters, buried_ms, starts)
