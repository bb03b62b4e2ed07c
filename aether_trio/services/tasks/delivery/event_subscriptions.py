"""The gateway sends task events to subscribers in the order of their numbers.

    commit ──▶ offer(events) ──▶ is it the next number, and has the client room? ──▶ sent
                                     │ no: the task is behind
                                     ▼
                              read from the table after the position (event_replay.py)

A subscription has a position for each of its tasks, so it misses no event and gets none twice, in
whatever order this node hears of commits. A recursive subscription follows the descendants that
exist and those that are created later: both are read in one snapshot (`beginning`), so a later
child has its "spawned" event after the parent's position.

Invariants: what runs for a subscription runs in its session's nursery. A client that does not read
costs the memory of its positions, and of no event.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final, NamedTuple

import structlog
import trio

from aether_trio.model.errors import Code, RequestError
from aether_trio.model.limits import KIB
from aether_trio.services.tasks.delivery import event_replay
from aether_trio.services.tasks.transaction.interface import RecordedEvent
from aether_trio.session.session import Session
from aether_trio.storage.base import Database, ExecuteMany, Fetch, Program, Row, StorageUnavailable
from aether_trio.storage.retry import RETRY_DELAY_S
from aether_trio.wire.delivery import encode_task_event
from aether_trio.wire.pb import aether_pb2 as pb

logger = structlog.get_logger("aether.tasks")

MAX_SUBSCRIPTIONS: Final = 256
"""Subscriptions of one session."""
MAX_FOLLOWED: Final = 4_096
"""Tasks of one recursive subscription; later descendants beyond it are not followed."""
MAX_OF_SESSION: Final = 4 * MAX_FOLLOWED
"""Tasks of all subscriptions of a session, counted for each subscription."""


STEP_BYTES: Final = 64 * KIB
"""Stored events that are sent in one step of the event loop."""
_SPAWNED: Final = b"spawned"
"""What an event has in it that a child was created."""


@dataclass(slots=True, eq=False)
class EventSubscription:
    """A session's subscription to the events of a task, or of its descendants too.

    `positions` are the numbers of the latest events sent, None while they are read. `behind` are
    tasks whose events are to be read from the table.
    """

    subscription_id: str
    session: Session
    task_id: str
    recursive: bool
    positions: dict[str, int | None] = field(default_factory=dict)
    behind: set[str] = field(default_factory=set)
    request_id: str = ""
    """The id of the request that made the subscription."""
    full: bool = False
    """Whether its client was told that there are more tasks than it follows."""
    reading: bool = False
    closed: bool = False
    read_by_rule: str = ""
    """The workspace that its session must be allowed to read; "": it has a part in the task."""
    on_status: Callable[[], None] | None = None
    """Called after each change of the task's status was sent to one that sees it as its worker."""


class EventSubscriptions:
    """All subscriptions of this node's sessions to task events."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._step = trio.Lock()
        self._by_task: dict[str, dict[EventSubscription, None]] = {}
        self._by_session: dict[str, dict[str, EventSubscription]] = {}
        self._followed: Counter[str] = Counter()
        """How many tasks each session follows."""

    @property
    def watched(self) -> Iterable[str]:
        """The ids of all tasks that subscriptions of this node follow."""
        return self._by_task.keys()

    def watches(self, task_id: str) -> bool:
        """Return whether a subscription of this node follows a task."""
        return task_id in self._by_task

    def by_rule(self) -> list[EventSubscription]:
        """Return the subscriptions that rest on a right to read a workspace."""
        return [one for mine in self._by_session.values() for one in mine.values() if one.read_by_rule]

    def count(self, session: Session) -> int:
        """Return the number of a session's task subscriptions."""
        return len(self._by_session.get(session.session_id, ()))

    def open(self, subscription: EventSubscription, task_ids: Iterable[str]) -> None:
        """Subscribe a session to events of tasks; `start` begins to send them."""
        self._by_session.setdefault(subscription.session.session_id, {})[subscription.subscription_id] = subscription
        for task_id in task_ids:
            self._follow(subscription, task_id, None)

    def _follow(self, subscription: EventSubscription, task_id: str, position: int | None) -> None:
        if task_id not in subscription.positions:
            subscription.positions[task_id] = position
            self._by_task.setdefault(task_id, {})[subscription] = None
            self._followed[subscription.session.session_id] += 1

    def follow(self, subscription: EventSubscription, task_ids: Iterable[str]) -> None:
        """Add descendants of a subscription's task, before `start`. May raise QUOTA."""
        new = [task_id for task_id in task_ids if task_id not in subscription.positions]
        if self._followed[subscription.session.session_id] + len(new) > MAX_OF_SESSION:
            raise RequestError(
                Code.QUOTA,
                f"this session may follow at most {MAX_OF_SESSION} tasks; unsubscribe first",
            )
        for task_id in new:
            self._follow(subscription, task_id, None)

    def start(self, subscription: EventSubscription, positions: dict[str, int], *, replay: bool) -> None:
        """Send a subscriber events after these positions; `replay`: some exist already."""
        for task_id, position in positions.items():
            if task_id in subscription.positions:
                subscription.positions[task_id] = position
                if replay:
                    subscription.behind.add(task_id)
        self._catch_up_soon(subscription)

    def close(self, session: Session, subscription_id: str) -> list[str]:
        """End a task subscription; return the tasks that no subscription follows any more."""
        subscription = self._by_session.get(session.session_id, {}).pop(subscription_id, None)
        return [] if subscription is None else self._drop(subscription)

    def close_all(self, session: Session) -> list[str]:
        """End a session's subscriptions; return the tasks that none follows any more."""
        found = self._by_session.pop(session.session_id, {}).values()
        return [task_id for subscription in found for task_id in self._drop(subscription)]

    def _drop(self, subscription: EventSubscription) -> list[str]:
        subscription.closed = True
        session_id = subscription.session.session_id
        self._followed[session_id] -= len(subscription.positions)
        if self._followed[session_id] <= 0:
            del self._followed[session_id]
        alone = []
        for task_id in subscription.positions:
            followers = self._by_task.get(task_id)
            if followers is not None:
                followers.pop(subscription, None)
                if not followers:
                    del self._by_task[task_id]
                    alone.append(task_id)
        return alone

    def offer(self, events: Iterable[RecordedEvent]) -> None:
        """Send subscribers these committed events, or mark their tasks as behind."""
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
        """Read a task's events for its subscribers ("*": all), as some may be missed."""
        for one in list(self._by_task) if task_id == "*" else [task_id]:
            for subscription in self._by_task.get(one, ()):
                subscription.behind.add(one)
                self._catch_up_soon(subscription)

    async def look_for_missed(self) -> None:
        """Find missed events of followed tasks in the table. Raises StorageUnavailable."""
        followed = list(self._by_task)
        for names, marks in event_replay.in_parts(followed):
            latest = await self._database.fetch(f"SELECT task_id, events FROM tasks WHERE task_id IN ({marks})", *names)  # noqa: S608
            for task_id, number in latest:
                for subscription in self._by_task.get(task_id, ()):
                    if number > (subscription.positions[task_id] or 0):
                        subscription.behind.add(task_id)
                        self._catch_up_soon(subscription)

    def _send(self, subscription: EventSubscription, task_id: str, number: int, encoded: bytes) -> None:
        if number <= (subscription.positions[task_id] or 0):
            return
        subscription.positions[task_id] = number
        subscription.session.put_encoded(encode_task_event(encoded, subscription.subscription_id))
        if subscription.on_status is None and not (subscription.recursive and _SPAWNED in encoded):
            return
        event = pb.TaskEvent.FromString(encoded)
        if subscription.on_status is not None and event.HasField("status_changed"):
            subscription.on_status()
        child = event.child_lifecycle
        if (
            subscription.recursive
            and child.lifecycle == "spawned"
            and child.child_task_id not in subscription.positions
        ):
            of_session = self._followed[subscription.session.session_id]
            if len(subscription.positions) < MAX_FOLLOWED and of_session < MAX_OF_SESSION:
                self._follow(subscription, child.child_task_id, 0)
                subscription.behind.add(child.child_task_id)
                self._catch_up_soon(subscription)
            elif not subscription.full:
                subscription.full = True
                subscription.session.put_error(_too_many(subscription), subscription.request_id)

    def _catch_up_soon(self, subscription: EventSubscription) -> None:
        nursery = subscription.session.nursery
        known = any(subscription.positions[task_id] is not None for task_id in subscription.behind)
        if known and not subscription.reading and not subscription.closed and nursery is not None:
            subscription.reading = True
            nursery.start_soon(self._catch_up, subscription, name="task-events")

    async def _catch_up(self, subscription: EventSubscription) -> None:
        ahead: event_replay.Ahead = {}
        positions, behind = subscription.positions, subscription.behind
        try:
            while not subscription.closed:
                await subscription.session.outbox.wait_control_room()
                wanted = {one: positions[one] or 0 for one in behind if one not in ahead and positions[one] is not None}
                behind.difference_update(wanted)
                wanted |= {one: positions[one] or 0 for one in event_replay.used_up(ahead)}
                if not wanted and not ahead:
                    return
                try:
                    found, ahead = await self._database.read(partial(event_replay.read_on, ahead, wanted))
                except StorageUnavailable as error:
                    logger.warning("a subscriber is sent task events when storage answers", reason=str(error))
                    behind.update(task_id for task_id in wanted if task_id not in ahead)
                    await trio.sleep(RETRY_DELAY_S)
                    continue
                for task_id in await self._send_all(subscription, found):
                    ahead.pop(task_id, None)
                    behind.add(task_id)
        finally:
            subscription.reading = False

    async def _send_all(self, subscription: EventSubscription, found: Sequence[Row]) -> set[str]:
        """Send a subscriber stored events; return the tasks of those it has no room for.

        All subscribers together are sent STEP_BYTES in one step of the event loop.
        """
        size = 0
        for at, (task_id, number, encoded) in enumerate(found):
            size += len(encoded)
            if size > STEP_BYTES:
                size = len(encoded)
                async with self._step:
                    await trio.lowlevel.checkpoint()
            if not subscription.session.outbox.control_has_room:
                return {row[0] for row in found[at:]}
            if subscription.closed:
                break
            self._send(subscription, task_id, number, encoded)
        return set()


def _too_many(subscription: EventSubscription) -> RequestError:
    return RequestError(
        Code.QUOTA,
        f"subscription {subscription.subscription_id} to all below task {subscription.task_id} follows at most "
        f"{MAX_FOLLOWED} tasks, and a session {MAX_OF_SESSION}; those that are made from now on are left out",
    )


class Beginning(NamedTuple):
    """Event positions where a subscription begins, and its tasks that are not watched."""

    positions: dict[str, int]
    unwatched: list[str]


def beginning(task_id: str, below: Program[list[str]] | None, since_ms: int, node: str | None) -> Program[Beginning]:
    """Read the event positions of a task and of the tasks `below` it in one snapshot."""
    wanted = [task_id]
    if below is not None:
        wanted += yield from below
    if len(wanted) > MAX_FOLLOWED:
        raise RequestError(
            Code.QUOTA,
            f"a subscription follows at most {MAX_FOLLOWED} tasks, and task {task_id} has more below it; "
            "follow some of them instead",
        )
    unwatched = []
    if node is not None:
        watched: set[str] = set()
        for names, marks in event_replay.in_parts(wanted):
            found: list[Row] = yield Fetch(
                f"SELECT task_id FROM task_watchers WHERE task_id IN ({marks}) AND node = ${len(names) + 1}",  # noqa: S608
                (*names, node),
            )
            watched.update(one for (one,) in found)
        unwatched = [one for one in wanted if one not in watched]
    return Beginning((yield from positions(wanted, since_ms)), unwatched)


def positions(task_ids: Iterable[str], since_ms: int) -> Program[dict[str, int]]:
    """Return tasks' latest event numbers, or those before the events since `since_ms`."""
    found: dict[str, int] = {}
    for names, marks in event_replay.in_parts(task_ids):
        rows: list[Row] = yield Fetch(f"SELECT task_id, events FROM tasks WHERE task_id IN ({marks})", names)  # noqa: S608
        latest: dict[str, int] = dict.fromkeys(names, 0) | {row[0]: row[1] for row in rows}
        if since_ms > 0:
            rows = yield Fetch(
                f"SELECT task_id, MIN(number) FROM task_events WHERE task_id IN ({marks}) "  # noqa: S608
                f"AND at_ms >= ${len(names) + 1} GROUP BY task_id",
                (*names, since_ms),
            )
            latest |= {task_id: number - 1 for task_id, number in rows}
        found |= latest
    return found


def watch(task_ids: Iterable[str], node: str) -> Program[None]:
    """Write that a node's subscribers follow these tasks, so that others notify it."""
    rows = [(task_id, node) for task_id in sorted(task_ids)]
    if rows:
        yield ExecuteMany("INSERT INTO task_watchers (task_id, node) VALUES ($1, $2) ON CONFLICT DO NOTHING", rows)
