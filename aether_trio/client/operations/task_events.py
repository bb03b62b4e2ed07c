"""`agent.tasks`, in part: follows the events of tasks, and receives assignments.

A subscription ends with its session, so a follower is told of a reconnect by the end of its events
(ConnectionLost) and subscribes again, from the last event it saw.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeAlias

import anyio

from aether_trio.client.errors import AetherError, ConnectionLost
from aether_trio.client.operations.enums import TaskStatus
from aether_trio.client.operations.namespace import Namespace
from aether_trio.client.operations.records import from_time, read, to_time
from aether_trio.client.operations.requests import RequestEvent, request_event
from aether_trio.client.operations.streams import ConvertedFeed
from aether_trio.client.operations.task_values import Assignment, Hibernated
from aether_trio.wire.pb import aether_pb2 as pb

_Sub = pb.TaskSubscriptionOperation


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusChanged:
    """Event: a task changed its state."""

    from_status: TaskStatus
    to_status: TaskStatus
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskProgressed:
    """Event: a task reported progress, from 0 to 1, or -1 when unknown."""

    state: str
    progress: float
    message: str
    metadata: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildChanged:
    """Event: a child of the task changed; `lifecycle` is a word for what it did."""

    child_task_id: str
    child_status: TaskStatus
    lifecycle: str


Happening: TypeAlias = StatusChanged | TaskProgressed | ChildChanged | RequestEvent


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskEvent:
    """An event of a followed task."""

    task_id: str
    emitted_at: datetime | None
    workspace: str
    parent_task_id: str
    subscription_id: str
    event: Happening | None
    """None for a kind that a later protocol has added."""


def task_event(message: pb.TaskEvent) -> TaskEvent:
    """Convert the protobuf message of a received task event to its value."""
    return TaskEvent(
        task_id=message.task_id,
        emitted_at=to_time(message.emitted_at_unix_ms, "ms"),
        workspace=message.workspace,
        parent_task_id=message.parent_task_id,
        subscription_id=message.subscription_id,
        event=_happening(message),
    )


def _happening(message: pb.TaskEvent) -> Happening | None:
    match message.WhichOneof("event"):
        case "status_changed":
            return read(StatusChanged, message.status_changed)
        case "progress":
            return read(TaskProgressed, message.progress)
        case "child_lifecycle":
            return read(ChildChanged, message.child_lifecycle)
        case "authority_request":
            return request_event(message.authority_request.event)
        case _:
            return None


class TaskFeeds(Namespace):
    """Follows the events of tasks, and receives a worker's assignments."""

    async def subscribe(self, task_id: str, *, recursive: bool = False, since: datetime | None = None) -> str:
        """Subscribe to the events of a task, from `since` on; return the subscription id."""
        op = _Sub(
            op=_Sub.SUBSCRIBE, task_id=task_id, recursive=recursive, start_timestamp_unix_ms=from_time(since, "ms")
        )
        answer: pb.TaskSubscriptionOperationResponse = await self._ask("task_subscription_op", op)
        return answer.subscription_id

    async def unsubscribe(self, subscription_id: str, *, task_id: str = "") -> None:
        """End a subscription to the events of a task."""
        op = _Sub(op=_Sub.UNSUBSCRIBE, task_id=task_id, subscription_id=subscription_id)
        await self._ask("task_subscription_op", op)

    @asynccontextmanager
    async def follow(
        self, task_id: str, *, recursive: bool = False, since: datetime | None = None, capacity: int = 1024
    ) -> AsyncIterator[AsyncIterator[TaskEvent]]:
        """Yield the events of a task, while the block lasts.

            async with agent.tasks.follow(task_id) as events:
                async for event in events: ...

        The iteration raises ConnectionLost after a cut, and FeedOverflow if more than `capacity`
        events were not read.
        """
        with self._exchange_feed("task_event", match=lambda event: True, capacity=capacity) as feed:
            subscription = await self.subscribe(task_id, recursive=recursive, since=since)
            over = False
            try:
                yield ConvertedFeed(feed, lambda message: _event_of(subscription, message))
            except ConnectionLost:
                over = True  # with its session
                raise
            finally:
                with anyio.CancelScope(shield=True):
                    try:
                        if not over:
                            await self.within(5).unsubscribe(subscription, task_id=task_id)
                    except AetherError:
                        pass  # it ends with the session in any case

    @asynccontextmanager
    async def assignments(self, *, capacity: int = 1024) -> AsyncIterator[AsyncIterator[Assignment]]:
        """Yield assignments to this participant in the block; those before it are missed."""
        with self._feed("task_assignment", capacity=capacity) as feed:
            yield ConvertedFeed(feed, lambda message: read(Assignment, message))

    @asynccontextmanager
    async def hibernations(self, *, capacity: int = 1024) -> AsyncIterator[AsyncIterator[Hibernated]]:
        """Yield this worker's tasks that begin to hibernate, while the block lasts."""
        with self._feed("task_hibernated", capacity=capacity) as feed:
            yield ConvertedFeed(feed, lambda message: read(Hibernated, message))


def _event_of(subscription: str, message: Any) -> TaskEvent | None:
    """Convert a task event of this subscription; return None for another one's."""
    if isinstance(message, ConnectionLost):
        raise message
    # Sorted here and not by the feed: an event may precede the answer that names its subscription.
    return task_event(message) if message.subscription_id in {"", subscription} else None
