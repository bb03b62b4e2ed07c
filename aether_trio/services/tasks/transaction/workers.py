"""Rows of `task_workers`: the connected participants that may be assigned tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from aether_trio.model.identity import Kind
from aether_trio.model.tasks.task import AGENT_STARTUP, TaskRow
from aether_trio.storage.base import Fetch, Program, Row, placeholders, rounded_up

WORKER_KINDS: Final = frozenset({Kind.AGENT, Kind.UNIQUE_TASK, Kind.TASK, Kind.SERVICE})
"""The kinds of participants that can be assigned tasks of others."""


class Worker(NamedTuple):
    """A connected participant that may be assigned tasks: a row of WORKER_FIELDS.

    `pooled`: also from the pool of its implementation. A frozen dataclass takes five times as long
    to make as a tuple.
    """

    identity: str
    session_id: str
    node: str
    workspace: str
    implementation: str
    pooled: bool
    live: int
    capacity: int
    since_ms: int = 0
    """When its client began: it does not know of tasks without a heartbeat since then."""

    claims: bool = False
    """Whether it says when it begins, so that it has not begun what it has not claimed."""

    def knows_of(self, task: TaskRow) -> bool:
        """Return whether this worker's client has reported on a task, or is its agent."""
        is_its_agent = task.task_type == AGENT_STARTUP and task.target == self.identity
        return is_its_agent or task.heartbeat_ms >= self.since_ms

    @property
    def has_room(self) -> bool:
        return self.live < self.capacity


WORKER_FIELDS: Final = "identity, session_id, node, workspace, implementation, pooled, live, capacity, since_ms, claims"


def read_worker(rows: list[Row]) -> Worker | None:
    """Return the worker in the first row of WORKER_FIELDS; None without rows."""
    return Worker._make(rows[0]) if rows else None


def find_workers(identities: Sequence[str]) -> Program[dict[str, Worker]]:
    """Find the connected workers with these identities."""
    if not identities:
        return {}
    some = rounded_up(identities, 16)
    sql = f"SELECT {WORKER_FIELDS} FROM task_workers WHERE identity IN ({placeholders(len(some))})"  # noqa: S608
    rows: list[Row] = yield Fetch(sql, some)
    return {row[0]: Worker._make(row) for row in rows}
