"""What runs for tasks on one node, and how anything is written: one transaction, and then what follows from it.

    perform(program) ──▶ database.run ──▶ settle: assignments to sessions, events to subscribers, notices, the next due moment, hints

The database decides everything. What is held here in memory (subscriptions, assignments on their way, the next due moment) can be lost.
A transaction whose commit was not answered is made again, as every move knows whether it has been made; afterwards workers of this
node are told again what they have been assigned, and subscribers look at the table.

Invariants: a worker's row bears the name of its node's lease (hints.py); when that has ended, some node ends the sessions under it, and
each page of that is one transaction; a node that has another lease joins its sessions again (`renewed`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

import structlog
import trio

from aether_trio.concurrency.kicks import Kicks
from aether_trio.concurrency.supervision import keep_running
from aether_trio.delivery.ephemeral_topics import EphemeralTopics
from aether_trio.log.topic_log import TopicLog
from aether_trio.model.clock import Clock
from aether_trio.model.errors import Status as StreamStatus
from aether_trio.model.tasks import Status, Task
from aether_trio.model.tasks.due import TimeLimits
from aether_trio.services.tasks import nodes
from aether_trio.services.tasks.delivery import status_updates
from aether_trio.services.tasks.delivery.assignments import AssignmentSender
from aether_trio.services.tasks.delivery.event_subscriptions import EventSubscriptions
from aether_trio.services.tasks.delivery.input_consumer import InputConsumer
from aether_trio.services.tasks.delivery.outbox_publisher import OutboxPublisher
from aether_trio.services.tasks.nodes import TaskNodes
from aether_trio.services.tasks.protobuf import descriptor
from aether_trio.services.tasks.starter import AgentHooks
from aether_trio.services.tasks.timer import TaskTimer
from aether_trio.services.tasks.transaction import child_events, due, retention, sessions, startup, task_rows, tokens
from aether_trio.services.tasks.transaction.interface import Context, LargeError, NewAssignment, Transaction
from aether_trio.services.tasks.transaction.session_batch import merge
from aether_trio.services.tasks.transaction.task_transaction import Mutation, TaskTransaction
from aether_trio.services.tasks.transaction.workers import WORKER_FIELDS, read_worker
from aether_trio.services.tasks.write_batcher import WriteBatcher
from aether_trio.session.registry import Registry
from aether_trio.storage.base import (
    CommitUnknown,
    Database,
    Execute,
    ExecuteMany,
    Fetch,
    Program,
    ProgramFactory,
    Row,
    StorageUnavailable,
)
from aether_trio.wire.pb import aether_pb2 as pb

logger = structlog.get_logger("aether.tasks")

T = TypeVar("T")

UNSURE_TRIES: Final = 5
UNSURE_PAUSE_S: Final = 0.2
LOOK_S: Final = 5.0
"""Between two looks for what other nodes may have left, where there are any."""
SETTLE_S: Final = 5.0
"""For the sessions that have just ended, when the gateway stops. What is not written then, the next life or another node does."""
RECOVER_PAGE: Final = 50
COLLECT_PAGE: Final = 100
AGAIN_PAGE: Final = 200
"""Workers, and tasks with those of one worker more, that are told again in one transaction."""
NOTICE_S: Final = 0.01
"""For so long a notice waits for something to share a write with: nobody sees a bar move more often."""


WATCH: Final = "INSERT INTO task_watchers (task_id, node) VALUES ($1, $2) ON CONFLICT DO NOTHING"


@dataclass(frozen=True, slots=True)
class TaskStatistics:
    """Of this node: assignments sent, rows looked at because they were due, progress reports and inputs dropped, tasks that somebody follows."""

    assignments: int
    due: int
    reports_dropped: int
    inputs_dropped: int
    followed: int


class Engine:
    """See the module docstring. `run` must run while it is used."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        limits: TimeLimits,
        uniform: Callable[[], float],
        registry: Registry,
        ephemeral_topics: EphemeralTopics,
        log: TopicLog,
        others: TaskNodes,
        agents: AgentHooks,
        random_bytes: Callable[[int], bytes],
    ) -> None:
        self._agents = agents
        self.database = database
        self.clock = clock
        self._locking: Database = database.separate_queue(locking=True)
        self.nodes = others
        self.event_subscriptions = EventSubscriptions(database)
        self._assignment_kicks = Kicks()
        self.assignments = AssignmentSender(database, self._assignment_kicks.add, self.run_program, random_bytes)
        self._status_kicks = Kicks(NOTICE_S)
        self.writes = WriteBatcher(self._perform_errand, merge)
        self.follow_ups = WriteBatcher(self._perform_errand, max_group=1)
        """Pages of what follows from a move, each in a transaction of its own: whoever comes or reports meanwhile waits for one of them."""
        self.timer = TaskTimer(database, clock, self._fire, self.writes.flush_within)
        self.input_consumer = InputConsumer(log, database, self.perform)
        self.outbox_publisher = OutboxPublisher(database, log, lambda: others.node)
        self._limits = limits
        self._uniform = uniform
        self._registry = registry
        self._ephemeral_topics = ephemeral_topics
        self._collecting = trio.Event()
        others.on_notification(nodes.ASSIGNMENTS, lambda _: self._collecting.set())
        others.on_notification(nodes.EVENTS, self.event_subscriptions.look)
        others.on_notification(nodes.HIBERNATED, self._hibernated_elsewhere)
        others.on_notification(nodes.ENDED_SESSIONS, self._end_outlived)
        self._absent_unseen = trio.Event()
        """A gateway has ended that may have been about to ask for the start of an agent."""
        self._child_events_written = trio.Event()
        """There may be events of children that are to be told to their parents' logs."""
        self._child_events_written.set()
        self._hibernated: set[str] = set()
        self._ended: frozenset[str] = frozenset()
        """Leases whose end has been dealt with."""

    def statistics(self) -> TaskStatistics:
        """Counters since start."""
        followed = sum(1 for _ in self.event_subscriptions.watched)
        return TaskStatistics(
            self.assignments.pushed, self.timer.fired, self.writes.dropped, self.input_consumer.dropped, followed
        )

    # -- writing ----------------------------------------------------------------------------------------------------

    def context(self, *, small: bool = False) -> Context:
        """What a transaction of now is told."""
        return Context(self.clock.now_ms(), self.nodes.node, self._limits, self.database.shared, small, self._uniform)

    async def run_program(self, program: Callable[[Context], Program[T]]) -> T:
        """Run one that is mostly small; again, if it is not known whether it was committed. The caller settles.

        Raises StorageUnavailable.
        """
        if not self.database.shared:
            try:
                return await self._run(program, self.database.run_small, small=True)
            except LargeError:
                pass
        return await self._run(program, self.database.run)

    async def _run(
        self,
        program: Callable[[Context], Program[T]],
        run: Callable[[ProgramFactory[T]], Awaitable[T]],
        *,
        small: bool = False,
    ) -> T:
        for attempt in range(UNSURE_TRIES):
            context = self.context(small=small)
            try:
                result = await run(lambda context=context: program(context))  # type: ignore[misc]
            except CommitUnknown:
                if attempt == UNSURE_TRIES - 1:
                    self._make_up()
                    raise
                await trio.sleep(UNSURE_PAUSE_S)
                continue
            if attempt:
                self._make_up()
            return result
        raise AssertionError

    async def perform(self, mutation: Mutation, *, locking: bool = False) -> TaskTransaction:
        """One transaction of a program on a TaskTransaction, and what follows from it.

        `locking`: as of `Database.beside`. Raises StorageUnavailable.
        """

        def program(context: Context) -> Program[TaskTransaction]:
            tx = TaskTransaction(context)
            yield from mutation(tx)
            return tx

        tx = await self._run(program, self._locking.run if locking else self.database.run)
        self.after_commit(tx)
        return tx

    async def _perform_errand(self, mutation: Mutation) -> None:
        await self.perform(mutation)

    def _make_up(self) -> None:
        """A transaction may have taken effect whose pushes and events nobody here knows."""
        logger.warning("it was not known whether a transaction on tasks was committed; it was made again")
        self.timer.look()
        self.event_subscriptions.look("*")
        self.writes.put(_push_again)
        self.writes.put(_find_outlived)
        self.writes.put(TaskTransaction.find_unfinished)
        self._absent_unseen.set()
        self._child_events_written.set()
        self.outbox_publisher.wake()

    def after_commit(self, tx: TaskTransaction) -> None:
        """What follows from a transaction that is committed. Never blocks."""
        # Whose they are is said by the names of then: this node may have another lease by now.
        here = tx.context.node
        for push in tx.effects.assignments:
            self._push(push, here)
        if tx.effects.events:
            self.event_subscriptions.offer(tx.effects.events)
        for task in tx.effects.status_changes:
            status_updates.publish(self._ephemeral_topics, task, tx.context.now_ms, self._status_kicks.add)
        for node, task_id in tx.effects.watching_nodes:
            self.nodes.notify(node, nodes.EVENTS, task_id)
        for node, session_id in tx.effects.sessions_to_end:
            if node == here:
                self._end_outlived(session_id)
            else:
                self.nodes.notify(node, nodes.ENDED_SESSIONS, session_id)
        for task, node in tx.effects.hibernated:
            self._tell_hibernated(task, node, here)
        self.timer.note(tx.due_ms)
        if tx.effects.child_events:
            self._child_events_written.set()
        if tx.effects.outbox:
            self.outbox_publisher.wake()
        for identity in tx.effects.lost_agents:
            self._agents.gateway_lost(identity)
        for identity in tx.effects.absent_targets:
            self._agents.target_absent(identity)
        for mutation in tx.effects.follow_ups:
            self.follow_ups.put(mutation)
        for task_id in tx.effects.unfinished:
            self.follow_ups.put(lambda tx, task_id=task_id: tx.wake_dependents(task_id))  # type: ignore[misc]

    def _push(self, push: NewAssignment, here: str) -> None:
        if push.worker.node != here:
            self.nodes.notify(push.worker.node, nodes.ASSIGNMENTS)
            return
        session = self._registry.session(push.worker.session_id)
        if session is not None:
            self.assignments.push(session, push.task, push.payload)

    def _end_outlived(self, session_id: str) -> None:
        session = self._registry.session(session_id)
        if session is not None:
            session.end_after_answer(
                StreamStatus.UNAUTHENTICATED, "the task of this session's token, or of its maker's, has ended"
            )

    def _tell_hibernated(self, task: Task, node: str, here: str) -> None:
        if node != here:
            self.nodes.notify(node, nodes.HIBERNATED, task.task_id)
            return
        session = self._registry.holder(task.assigned_to)
        # Before its acknowledgement a client takes any message for that.
        if session is not None and session.acknowledged:
            told = pb.TaskHibernated(task_id=task.task_id, descriptor=descriptor(task))
            session.put(pb.DownstreamMessage(task_hibernated=told))

    def _hibernated_elsewhere(self, task_id: str) -> None:
        self._hibernated.add(task_id)
        self._collecting.set()

    # -- a lease that was lost --------------------------------------------------------------------------------------

    def renewed(self) -> None:
        """This node was taken for dead and has another name from now on: what it follows is written again under that. Its sessions join
        again (TaskService.joined). Never blocks."""
        self.writes.put(self._watch_again)
        self.event_subscriptions.look("*")
        self._collecting.set()
        self.outbox_publisher.wake()

    def _watch_again(self, tx: TaskTransaction) -> Program[None]:
        watched = sorted(self.event_subscriptions.watched)
        if watched:
            yield ExecuteMany(WATCH, [(task_id, tx.context.node) for task_id in watched])

    # -- running ----------------------------------------------------------------------------------------------------

    async def recover(self) -> None:
        """End the sessions of nodes that are gone, and what they had begun. Raises StorageUnavailable.

        A node that has left no row was in the middle of something all the same: what follows from what its clients had done.
        """
        ended = await self.nodes.ended_leases()
        if await self._let_go_by_nodes_that_are_gone() or ended - self._ended:
            await self.perform(TaskTransaction.find_unfinished)
            self.input_consumer.look()
            self._absent_unseen.set()
        self._ended = ended

    async def _let_go_by_nodes_that_are_gone(self) -> bool:
        """End the sessions of nodes that are gone; whether there are any."""
        found = await self.database.read(sessions.nodes_with_rows)
        gone = await self.nodes.ended_among(found)
        for node in gone:
            page = partial(sessions.end_sessions_of, node=node, page=RECOVER_PAGE)
            while await self._result(page) >= RECOVER_PAGE:
                pass
            logger.info("the workers of a node that is gone have been let go", node=node)
        return bool(gone)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run until the block ends. What gone nodes left is dealt with before the block begins."""
        self._ended = await self.nodes.ended_leases()
        began_ms = self.clock.now_ms()
        await self._let_go_by_nodes_that_are_gone()
        if await self.nodes.is_only_node():
            while await self._result(partial(sessions.restart_graces, before_ms=began_ms)) >= sessions.EXCUSE_PAGE:
                pass
        await self.perform(TaskTransaction.find_unfinished)
        await self.database.execute("DELETE FROM task_watchers WHERE node = $1", self.nodes.node)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.writes.run, name="task-desk")
            nursery.start_soon(self.follow_ups.run, name="task-follow-ups")
            nursery.start_soon(keep_running, "task-assignments", self._assignment_kicks.run, name="task-assignments")
            nursery.start_soon(keep_running, "task-notices", self._status_kicks.run, name="task-notices")
            nursery.start_soon(keep_running, "task-clockwork", self.timer.run, name="task-clockwork")
            nursery.start_soon(keep_running, "task-outbox", self.outbox_publisher.run, name="task-outbox")
            nursery.start_soon(keep_running, "task-housekeeping", self._keep_house, name="task-housekeeping")
            nursery.start_soon(keep_running, "task-inputs", self.input_consumer.run, name="task-inputs")
            nursery.start_soon(keep_running, "task-children", self._tell_parents, name="task-children")
            self._absent_unseen.set()
            nursery.start_soon(keep_running, "task-absent", self._call_absent, name="task-absent")
            if self.database.shared:
                nursery.start_soon(keep_running, "task-collect", self._collect_forever, name="task-collect")
                nursery.start_soon(keep_running, "task-nodes", self._watch_nodes, name="task-nodes")
            yield
            with trio.move_on_after(SETTLE_S, shield=True):
                await self.writes.flush()
            nursery.cancel_scope.cancel()

    async def _fire(self, unheard: due.SilenceExcuse) -> int:
        return await self._result(lambda tx: due.fire(tx, shared=self.database.shared, unheard=unheard))

    async def _result(self, page: Callable[[TaskTransaction], Program[T]], *, locking: bool = False) -> T:
        """`perform` something; what it returns."""
        results: list[T] = []

        def mutation(tx: TaskTransaction) -> Program[None]:
            results.append((yield from page(tx)))

        await self.perform(mutation, locking=locking)
        return results[-1]

    async def _keep_house(self) -> None:
        while True:
            await trio.sleep(retention.INTERVAL_S)
            self.input_consumer.look()  # of an append whose commit is in doubt nothing is heard
            self._child_events_written.set()  # nor of a transaction
            try:
                for page in (retention.forget_memories, retention.forget_resolved):
                    while await self._result(page) >= retention.PAGE:
                        pass
            except StorageUnavailable as error:
                logger.info("what is old is kept for now", reason=str(error))

    async def _watch_nodes(self) -> None:
        while True:
            await trio.sleep(LOOK_S)
            try:
                await self.recover()
                node = self.nodes.node
                for session_id in await self.database.read(lambda node=node: tokens.sessions_to_end(node)):  # type: ignore[misc]
                    self._end_outlived(session_id)
                await self.event_subscriptions.look_for_missed()
            except StorageUnavailable as error:
                logger.info("nodes that are gone wait for storage", reason=str(error))
            self._child_events_written.set()  # the node that left them may be gone

    async def collect_child_events(self, task_id: str = "") -> None:
        """Have the log of a task, or every log, tell what children have done until now. Raises StorageUnavailable."""
        where, args = (" WHERE task_id = $1", (task_id,)) if task_id else ("", ())
        if not await self.database.fetch(f"SELECT 1 FROM task_child_events{where} LIMIT 1", *args):  # noqa: S608
            return
        names = [task_id] if task_id else await self._collect_unlocked_child_events()
        of = child_events.collect_for_locking if self.database.shared else child_events.collect_for
        for name in names:
            while await self._result(partial(of, task_id=name), locking=True) >= child_events.PAGE:
                pass

    async def _collect_unlocked_child_events(self) -> Collection[str]:
        """Take up what is there for every log; the tasks that others had locked are left."""
        locked: frozenset[str] = frozenset()
        last = 0
        while True:
            page: Callable[[Transaction], Program[child_events.Collected]] = child_events.collect
            if self.database.shared:
                page = partial(child_events.collect_locking, after=last, without=locked)
            taken = await self._result(page, locking=True)
            locked |= taken.locked
            last = taken.last
            if not last:
                return locked

    async def _tell_parents(self) -> None:
        while True:
            await self._child_events_written.wait()
            self._child_events_written = trio.Event()
            try:
                if await self._collect_unlocked_child_events():
                    self._child_events_written.set()
            except StorageUnavailable as error:
                logger.info("events of children wait for storage", reason=str(error))
                self._child_events_written.set()
                await trio.sleep(LOOK_S)
            await trio.sleep(child_events.GATHER_S)

    async def _call_absent(self) -> None:
        """Have those started that tasks wait for, and that a gateway which is gone has not: with its memory its calls are lost."""
        while True:
            await self._absent_unseen.wait()
            await trio.sleep(LOOK_S)  # the clients of that gateway reconnect meanwhile
            self._absent_unseen = trio.Event()
            after = ""
            try:
                while True:
                    names, after = await self.database.read(partial(startup.absent_targets, after))
                    for name in names:
                        self._agents.target_absent(name)
                    if not after:
                        break
            except BaseException as error:
                self._absent_unseen.set()
                if not isinstance(error, StorageUnavailable):
                    raise
                logger.info("who is absent is called when storage answers", reason=str(error))

    async def _collect_forever(self) -> None:
        """Take up assignments that other nodes made for workers of this one."""
        while True:
            with trio.move_on_after(LOOK_S):
                await self._collecting.wait()
            self._collecting = trio.Event()
            asleep, self._hibernated = self._hibernated, set()
            try:
                while await self._result(_collect) >= COLLECT_PAGE:
                    pass
                here = self.nodes.node
                for task_id in asleep:
                    task = await self.database.read_small(lambda task_id=task_id: task_rows.load(task_id))  # type: ignore[misc]
                    if (
                        task is not None
                        and task.status is Status.HIBERNATED
                        and self._registry.holder(task.assigned_to)
                    ):
                        self._tell_hibernated(task, here, here)
            except StorageUnavailable as error:
                logger.info("assignments of other nodes wait for storage", reason=str(error))


def _collect(tx: TaskTransaction) -> Program[int]:
    """Take up a page of what other nodes assigned to workers of this one; how many assignments."""
    found: list[Row] = yield Fetch(
        "SELECT task_id, epoch FROM task_attempts WHERE node = $1 AND pushed = 0 ORDER BY task_id, epoch LIMIT $2",
        (tx.context.node, COLLECT_PAGE),
    )
    for task_id, epoch in found:
        yield Execute("UPDATE task_attempts SET pushed = 1 WHERE task_id = $1 AND epoch = $2", (task_id, epoch))
        yield from _push_one(tx, task_id, epoch)
    return len(found)


def _find_outlived(tx: TaskTransaction) -> Program[None]:
    """End the sessions of this node that nobody could be told of."""
    node = tx.context.node
    tx.effects.sessions_to_end.extend((node, session_id) for session_id in (yield from tokens.sessions_to_end(node)))


def _push_one(tx: TaskTransaction, task_id: str, epoch: int) -> Program[None]:
    task = yield from task_rows.load(task_id)
    if task is None or task.epoch != epoch or task.status not in (Status.ASSIGNED, Status.STARTING):
        return
    worker = yield from tx.find_worker(task.assigned_to)
    if worker is not None:
        payload = yield from tx.payload_of(task_id)
        tx.effects.assignments.append(NewAssignment(task, worker, payload))


def _push_again(tx: TaskTransaction, after: str = "") -> Program[None]:
    """Tell the workers of this node everything that they have been assigned and have not begun; a page of tasks in a transaction."""
    found: list[Row] = yield Fetch(
        f"SELECT {WORKER_FIELDS} FROM task_workers WHERE node = $1 AND identity > $2 ORDER BY identity LIMIT $3",  # noqa: S608
        (tx.context.node, after, AGAIN_PAGE),
    )
    for row in found:
        worker = read_worker([row])
        assert worker is not None
        after = worker.identity
        held = yield from task_rows.select(
            "holder = $1 AND holder <> '' AND status IN ('assigned', 'starting') ORDER BY order_us",
            (worker.identity,),
        )
        for task in held:
            payload = yield from tx.payload_of(task.task_id)
            tx.effects.assignments.append(NewAssignment(task, worker, payload))
        if len(tx.effects.assignments) >= AGAIN_PAGE:
            break
    if (found and after != found[-1][0]) or len(found) == AGAIN_PAGE:
        tx.effects.follow_ups.append(partial(_push_again, after=after))
