"""Subscriptions to task events: what was written is handed on in the order of its numbers, from memory if possible, else from the table.

    commit ──▶ offer(events) ──▶ subscription: the next number, and the client has room ──▶ sent
                                     │ a gap, or no room: the task is behind
                                     ▼
                              catch up: read from the table behind the position, until level

A subscription has a position for each of its tasks. It is sent an event only when its number is the next one, so it never misses one,
never sees one twice, and it does not matter in which order commits are heard of, here or from other nodes.

A recursive subscription has the descendants that there are, and takes up those that are made later.

Invariants: whatever runs for a subscription runs in its session's nursery; a client that does not read costs the positions and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

import structlog
import trio

from aether_trio.services.tasks.transaction import Recorded
from aether_trio.session.session import Session
from aether_trio.storage.base import Database, Fetch, Program, Row, StorageUnavailable
from aether_trio.wire.pb import aether_pb2 as pb

logger = structlog.get_logger("aether.tasks")

PAGE: Final = 100
MAX_SUBSCRIPTIONS: Final = 256
"""Of one session."""
MAX_FOLLOWED: Final = 4_096
"""Tasks of one recursive subscription; descendants that are made later are not taken up beyond it."""
RETRY_S: Final = 1.0


@dataclass(slots=True, eq=False)
class Subscription:
    """`positions` are the numbers of the latest events sent, None while it is being read. `behind` are tasks to be read from the table."""

    subscription_id: str
    session: Session
    task_id: str
    recursive: bool
    positions: dict[str, int | None] = field(default_factory=dict)
    behind: set[str] = field(default_factory=set)
    reading: bool = False
    closed: bool = False


class Hub:
    """All subscriptions of a node."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._by_task: dict[str, dict[Subscription, None]] = {}
        self._by_session: dict[str, dict[str, Subscription]] = {}

    @property
    def watched(self) -> Iterable[str]:
        """Every task that somebody here follows."""
        return self._by_task.keys()

    def watches(self, task_id: str) -> bool:
        """Whether somebody here follows a task."""
        return task_id in self._by_task

    def count(self, session: Session) -> int:
        """How many subscriptions a session has."""
        return len(self._by_session.get(session.session_id, ()))

    # -- subscribing ------------------------------------------------------------------------------------------------

    def open(self, subscription: Subscription, task_ids: Iterable[str]) -> None:
        """Follow these tasks from now on; what happens until `start` is remembered as being behind."""
        self._by_session.setdefault(subscription.session.session_id, {})[subscription.subscription_id] = subscription
        for task_id in task_ids:
            self._follow(subscription, task_id, None)

    def _follow(self, subscription: Subscription, task_id: str, position: int | None) -> None:
        if task_id not in subscription.positions:
            subscription.positions[task_id] = position
            self._by_task.setdefault(task_id, {})[subscription] = None

    def start(self, subscription: Subscription, positions: dict[str, int], *, replay: bool) -> None:
        """Begin to send, behind these positions; with `replay` there is something behind them already."""
        for task_id, position in positions.items():
            if task_id in subscription.positions:
                subscription.positions[task_id] = position
                if replay:
                    subscription.behind.add(task_id)
        self._catch_up_soon(subscription)

    def close(self, session: Session, subscription_id: str) -> list[str]:
        """End a subscription; the tasks that nobody here follows any more. Idempotent."""
        subscription = self._by_session.get(session.session_id, {}).pop(subscription_id, None)
        return [] if subscription is None else self._drop(subscription)

    def close_all(self, session: Session) -> list[str]:
        """End a session's subscriptions; the tasks that nobody here follows any more."""
        found = self._by_session.pop(session.session_id, {}).values()
        return [task_id for subscription in found for task_id in self._drop(subscription)]

    def _drop(self, subscription: Subscription) -> list[str]:
        subscription.closed = True
        alone = []
        for task_id in subscription.positions:
            followers = self._by_task.get(task_id)
            if followers is not None:
                followers.pop(subscription, None)
                if not followers:
                    del self._by_task[task_id]
                    alone.append(task_id)
        return alone

    # -- sending ----------------------------------------------------------------------------------------------------

    def offer(self, events: Iterable[Recorded]) -> None:
        """These have been committed. Never blocks."""
        for event in events:
            for subscription in tuple(self._by_task.get(event.task_id, ())):
                position = subscription.positions[event.task_id]
                if position is not None and event.number <= position:
                    continue
                ready = position is not None and not subscription.reading and not subscription.behind
                if ready and event.number == (position or 0) + 1 and subscription.session.outbox.control_has_room:
                    self._send(subscription, event.task_id, event.number, event.event)
                else:
                    subscription.behind.add(event.task_id)
                    self._catch_up_soon(subscription)

    def look(self, task_id: str) -> None:
        """There may be events of this task ("*": of any) that were not offered here."""
        for one in list(self._by_task) if task_id == "*" else [task_id]:
            for subscription in self._by_task.get(one, ()):
                subscription.behind.add(one)
                self._catch_up_soon(subscription)

    def _send(self, subscription: Subscription, task_id: str, number: int, encoded: bytes) -> None:
        subscription.positions[task_id] = number
        event = pb.TaskEvent.FromString(encoded)
        event.subscription_id = subscription.subscription_id
        subscription.session.put(pb.DownstreamMessage(task_event=event))
        child = event.child_lifecycle
        if subscription.recursive and child.lifecycle == "spawned" and len(subscription.positions) < MAX_FOLLOWED:
            self._follow(subscription, child.child_task_id, 0)
            subscription.behind.add(child.child_task_id)

    def _catch_up_soon(self, subscription: Subscription) -> None:
        nursery = subscription.session.nursery
        known = any(subscription.positions[task_id] is not None for task_id in subscription.behind)
        if known and not subscription.reading and not subscription.closed and nursery is not None:
            subscription.reading = True
            nursery.start_soon(self._catch_up, subscription, name="task-events")

    async def _catch_up(self, subscription: Subscription) -> None:
        try:
            while not subscription.closed:
                if not (behind := [one for one in subscription.behind if subscription.positions[one] is not None]):
                    return
                await subscription.session.outbox.wait_control_room()
                subscription.behind.difference_update(behind)
                wanted = {task_id: subscription.positions[task_id] or 0 for task_id in behind}
                try:
                    found = await self._database.read(lambda wanted=wanted: _events(wanted))  # type: ignore[misc]
                except StorageUnavailable as error:
                    logger.warning("task events not read, trying again", reason=str(error))
                    subscription.behind.update(behind)
                    await trio.sleep(RETRY_S)
                    continue
                await self._send_all(subscription, found)
        finally:
            subscription.reading = False

    async def _send_all(self, subscription: Subscription, found: list[Row]) -> None:
        """In the order in which they happened; a page of each task, so the last of a full one says that there is more."""
        counts: dict[str, int] = {}
        for task_id, number, _, encoded in found:
            if not subscription.session.outbox.control_has_room:
                await subscription.session.outbox.wait_control_room()
            if subscription.closed:
                return
            counts[task_id] = counts.get(task_id, 0) + 1
            self._send(subscription, task_id, number, encoded)
        subscription.behind.update(task_id for task_id, count in counts.items() if count == PAGE)


def _events(wanted: dict[str, int]) -> Program[list[Row]]:
    found: list[Row] = []
    for task_id, position in wanted.items():
        found += yield Fetch(
            "SELECT task_id, number, at_ms, event FROM task_events WHERE task_id = $1 AND number > $2 "
            "ORDER BY number LIMIT $3",
            (task_id, position, PAGE),
        )
    if len(wanted) > 1:
        found.sort(key=lambda row: row[2])  # stable: within a task by number, as times of one task only grow
    return found


def positions(task_ids: Iterable[str], since_ms: int) -> Program[dict[str, int]]:
    """Where a subscription begins: behind everything, or before the first event at or after `since_ms`."""
    found: dict[str, int] = {}
    for task_id in task_ids:
        rows: list[Row] = yield Fetch("SELECT events FROM tasks WHERE task_id = $1", (task_id,))
        latest = rows[0][0] if rows else 0
        if since_ms > 0:
            rows = yield Fetch(
                "SELECT MIN(number) FROM task_events WHERE task_id = $1 AND at_ms >= $2", (task_id, since_ms)
            )
            latest = latest if rows[0][0] is None else rows[0][0] - 1
        found[task_id] = latest
    return found
