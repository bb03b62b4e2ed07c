"""Handles `task_subscription_op`: subscriptions to task events (tasks.md 6.4).

Where several nodes share the database, a node writes to `task_watchers` which tasks its subscribers
follow; the other nodes notify it of new events of these tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import trio

from aether_trio.model.access import AccessLevel
from aether_trio.model.errors import Code, RequestError
from aether_trio.model.ids import IdFactory
from aether_trio.model.tasks import TaskRow
from aether_trio.services.access import Authorizer
from aether_trio.services.tasks.delivery import event_subscriptions
from aether_trio.services.tasks.delivery.event_subscriptions import MAX_SUBSCRIPTIONS, Beginning, EventSubscription
from aether_trio.services.tasks.engine import Engine
from aether_trio.services.tasks.handlers import query
from aether_trio.services.tasks.handlers.permissions import NOT_FOUND, Caller, is_party, load_visible, may
from aether_trio.services.tasks.transaction.task_transaction import TaskTransaction
from aether_trio.session.session import Session
from aether_trio.storage.base import ExecuteMany, Program, StorageUnavailable
from aether_trio.storage.outages import outage
from aether_trio.storage.retry import RETRY_DELAY_S
from aether_trio.wire.pb import aether_pb2 as pb

UNWATCH_PAGE: Final = 100
"""Tasks that one transaction removes from `task_watchers`."""
OPERATION: Final = "task_subscribe"
"""The operation in access rules."""
SLICE: Final = 64
"""Subscriptions that are looked at in one step after a change of access data."""

Op = pb.TaskSubscriptionOperation


class TaskSubscriber:
    """Handles `task_subscription_op`: SUBSCRIBE to task events and UNSUBSCRIBE."""

    def __init__(self, engine: Engine, ids: IdFactory, authorizer: Authorizer) -> None:
        self._engine = engine
        self._ids = ids
        self._authorizer = authorizer

    async def handle(self, session: Session, op: pb.TaskSubscriptionOperation) -> Sequence[pb.DownstreamMessage]:
        """Answer a `task_subscription_op`. A refusal is a sentence in the typed response."""
        response = pb.TaskSubscriptionOperationResponse(client_request_id=op.client_request_id, task_id=op.task_id)
        answer = pb.DownstreamMessage(task_subscription_response=response)
        response = answer.task_subscription_response
        try:
            if op.op == Op.SUBSCRIBE:
                await self._subscribe(session, op, answer)
                return []  # the answer was sent before the first event
            if op.op == Op.UNSUBSCRIBE:
                if not op.subscription_id:
                    response.error = "subscription_id is required"
                else:
                    self._unwatch(self._engine.event_subscriptions.close(session, op.subscription_id))
                    response.subscription_id = op.subscription_id
                    response.success = True
            else:
                response.error = f"unknown task subscription operation {op.op}"
        except StorageUnavailable as error:
            response.error = str(outage(error))
        except RequestError as error:
            response.error = error.message
        return [answer]

    async def end_hidden(self, may_read: Callable[[Session, str], bool]) -> None:
        """End subscriptions that rest on a right to read which their session has lost."""
        subscriptions = self._engine.event_subscriptions
        for count, one in enumerate(subscriptions.by_rule(), 1):
            if not one.closed and not may_read(one.session, one.read_by_rule):
                self._end(one)
            if count % SLICE == 0:
                await trio.lowlevel.checkpoint()

    def _end(self, subscription: EventSubscription) -> None:
        """End a subscription whose session may not see the task any more, and say so."""
        session, subscription_id = subscription.session, subscription.subscription_id
        self._unwatch(self._engine.event_subscriptions.close(session, subscription_id))
        why = f"subscription {subscription_id} has ended: you may not read task {subscription.task_id} any more"
        session.put_error(RequestError(Code.PERMISSION_DENIED, why), subscription.request_id)

    def _look_again_soon(self, subscription: EventSubscription) -> None:
        nursery = subscription.session.nursery
        if nursery is not None:
            nursery.start_soon(self._look_again, subscription, name="task-subscription-right")

    async def _look_again(self, subscription: EventSubscription) -> None:
        """End a worker's subscription when another one has the task."""
        while not subscription.closed:
            try:
                task = await load_visible(
                    self._engine.database,
                    self._authorizer,
                    subscription.session,
                    subscription.task_id,
                    operation=OPERATION,
                )
            except StorageUnavailable:
                await trio.sleep(RETRY_DELAY_S)
                continue
            if task is None and not subscription.closed:
                self._end(subscription)
            return

    def ended(self, session: Session) -> None:
        """End the task subscriptions of a session that has ended. Never blocks."""
        self._unwatch(self._engine.event_subscriptions.close_all(session))

    async def _subscribe(
        self, session: Session, op: pb.TaskSubscriptionOperation, answer: pb.DownstreamMessage
    ) -> None:
        subscriptions = self._engine.event_subscriptions
        if subscriptions.count(session) >= MAX_SUBSCRIPTIONS:
            raise RequestError(Code.QUOTA, f"a session may have at most {MAX_SUBSCRIPTIONS} task subscriptions")
        task = await load_visible(
            self._engine.database,
            self._authorizer,
            session,
            op.task_id,
            operation=OPERATION,
            audit=self._engine.audit,
        )
        if task is None:
            raise RequestError(Code.INVALID_ARGUMENT, NOT_FOUND)
        # One with a part in a task sees that task, and others of the workspace if it may read it.
        recursive = op.recursive and await self._may_read(session, task)
        since_ms = max(op.start_timestamp_unix_ms, 0)
        subscription = EventSubscription(
            self._ids.unique(),
            session,
            task.task_id,
            recursive,
            request_id=op.client_request_id,
            read_by_rule=task.workspace if recursive or not is_party(task, Caller.of(session)) else "",
        )
        if session.identity.text == task.assigned_to != task.creator:
            subscription.on_status = partial(self._look_again_soon, subscription)
        if task.has_children:
            await self._engine.collect_child_events("" if recursive else task.task_id)
        subscriptions.open(subscription, [task.task_id])
        try:
            if subscription.read_by_rule and not await self._may_read(session, task):
                raise RequestError(Code.INVALID_ARGUMENT, NOT_FOUND)  # lost meanwhile
            positions = await self._begin(subscription, task, since_ms)
            if subscription.closed and not session.detached:
                raise RequestError(Code.INVALID_ARGUMENT, NOT_FOUND)
        except BaseException:
            self._unwatch(subscriptions.close(session, subscription.subscription_id))
            raise
        response = answer.task_subscription_response
        response.success = True
        response.subscription_id = subscription.subscription_id
        session.put(answer)
        subscriptions.start(subscription, positions, replay=since_ms > 0)

    async def _may_read(self, session: Session, task: TaskRow) -> bool:
        return await may(self._authorizer, Caller.of(session), task.workspace, OPERATION, AccessLevel.READ)

    async def _begin(self, subscription: EventSubscription, task: TaskRow, since_ms: int) -> dict[str, int]:
        """Return the tasks of a new subscription, with the last event before it of each."""
        database = self._engine.database
        node = self._engine.nodes.node if database.shared else None

        def program() -> Program[Beginning]:
            below = query.descendants(task.task_id, task.workspace, event_subscriptions.MAX_FOLLOWED)
            return event_subscriptions.beginning(
                task.task_id, below if subscription.recursive else None, since_ms, node
            )

        if node is not None:
            await self._watch(subscription.session, [task.task_id])
        while True:
            found = await database.read(program)
            self._engine.event_subscriptions.follow(subscription, found.positions)
            if not found.unwatched or subscription.session.detached:
                return found.positions
            # Their children that are created from now on are watched from their first event.
            await self._watch(subscription.session, found.unwatched)

    async def _watch(self, session: Session, task_ids: Sequence[str]) -> None:
        """Ask other nodes to notify this node of new events of these tasks.

        In one queue with `_unwatch`, so that no row of a session that ends meanwhile stays.
        """

        def mutation(tx: TaskTransaction) -> Program[None]:
            if not session.detached:
                yield from event_subscriptions.watch(task_ids, tx.context.node)

        await self._engine.writes.wait_written(self._engine.writes.put(mutation))

    def _unwatch(self, task_ids: Sequence[str]) -> None:
        if self._engine.database.shared:
            for first in range(0, len(task_ids), UNWATCH_PAGE):
                part = task_ids[first : first + UNWATCH_PAGE]
                self._engine.writes.put(partial(self._unwatch_page, task_ids=part))

    def _unwatch_page(self, tx: TaskTransaction, task_ids: Sequence[str]) -> Program[None]:
        watches = self._engine.event_subscriptions.watches
        gone = [(task_id, tx.context.node) for task_id in task_ids if not watches(task_id)]
        if gone:
            yield ExecuteMany("DELETE FROM task_watchers WHERE task_id = $1 AND node = $2", gone)
