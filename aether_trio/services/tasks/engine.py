"""The gateway's task engine: runs transactions on tasks and acts on their commits.

    perform(mutation) ──▶ database.run ──▶ after_commit: assignments to sessions, events to
        subscribers, status updates, the next due moment, notifications to other nodes

Subscriptions, assignments to be sent and the next due moment are in memory and may be lost. A
transaction whose commit was not answered runs again, as every move recognizes that it was made.
Afterwards workers are sent their assignments again, and subscribers read the table. A client that
is cut while its transaction is committed leaves `after_commit` to the engine.

Invariants: a worker's row names the lease of its node (nodes.py). When a lease has ended, some node
ends the sessions under it. A node with a new lease joins its sessions again (`renewed`).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol, TypeVar

import structlog
import trio
from outcome import Outcome

from aether_trio.concurrency.events import AutoResetEvent
from aether_trio.concurrency.kicks import Kicks
from aether_trio.concurrency.supervision import keep_running
from aether_trio.delivery.ephemeral_topics import EphemeralTopics
from aether_trio.log.topic_log import TopicLog
from aether_trio.model.audit import AuditEvent
from aether_trio.model.clock import Clock
from aether_trio.model.containment import report
from aether_trio.model.errors import Status
from aether_trio.model.tasks import StoredStatus, TaskRow
from aether_trio.model.tasks.task import WorkflowPart
from aether_trio.model.tasks.timed_transitions import TimeLimits
from aether_trio.services.access.changes import Draft
from aether_trio.services.tasks import nodes
from aether_trio.services.tasks.audit_events import TaskAudit
from aether_trio.services.tasks.delivery import status_updates
from aether_trio.services.tasks.delivery.assignment_push import AssignmentSender
from aether_trio.services.tasks.delivery.event_subscriptions import EventSubscriptions, watch
from aether_trio.services.tasks.delivery.input_consumer import InputConsumer
from aether_trio.services.tasks.delivery.outbox_publisher import OutboxPublisher
from aether_trio.services.tasks.nodes import TaskNodes
from aether_trio.services.tasks.pool_access import PoolAccess
from aether_trio.services.tasks.protobuf import descriptor
from aether_trio.services.tasks.starter import AgentHooks
from aether_trio.services.tasks.timer import TaskTimer
from aether_trio.services.tasks.transaction import child_events, due, retention, sessions, startup, task_rows, tokens
from aether_trio.services.tasks.transaction.interface import (
    NO_TASK_GRANTS,
    NO_TASK_WORKFLOWS,
    ChangeRefused,
    Context,
    LargeError,
    NewAssignment,
    NotReadyError,
    SentStep,
    TaskGrants,
    TaskWorkflows,
)
from aether_trio.services.tasks.transaction.live_rows import LiveRows
from aether_trio.services.tasks.transaction.session_batch import merge
from aether_trio.services.tasks.transaction.task_transaction import Mutation, TaskTransaction
from aether_trio.services.tasks.transaction.worker_choice import (
    COLLECT_PAGE,
    fill_service,
    send_again,
    send_of_other_nodes,
)
from aether_trio.services.tasks.write_batcher import WriteBatcher
from aether_trio.session.registry import SessionRegistry
from aether_trio.storage.base import (
    Abandoned,
    CommitUnknown,
    Database,
    Program,
    ProgramFactory,
    RefusedError,
    StorageUnavailable,
)
from aether_trio.storage.existing_names import ExistingNames
from aether_trio.wire.pb import aether_pb2 as pb

logger = structlog.get_logger("aether.tasks")

T = TypeVar("T")

IN_DOUBT_TRIES: Final = 5
IN_DOUBT_PAUSE_S: Final = 0.2
CHECK_S: Final = 5.0
"""Seconds between two checks for what other nodes have left."""
SETTLE_S: Final = 5.0
"""How long a stopping gateway writes the ends of sessions; others write the rest."""
RECOVER_PAGE: Final = 50
MAX_STEPS: Final = 10_000
STATUS_UPDATE_S: Final = 0.01
"""How long a status update waits to share a write with other updates."""


class AppliedChanges(Protocol):
    """Ends changes of access data that transactions on tasks make (AccessChanges)."""

    def finish(self, draft: Draft) -> Program[None]:
        """End a change in the current transaction: write version, items, audit rows."""

    def write_audit(self, events: Sequence[AuditEvent], now_ms: int) -> Program[object]:
        """Write the audit rows of another transaction on the same database."""

    def apply(self, draft: Draft) -> None:
        """Apply a change on this node after its commit, and notify the others."""


class NoChanges:
    """The AppliedChanges of a task engine without authority."""

    def finish(self, draft: Draft) -> Program[None]:
        yield from ()

    def write_audit(self, events: Sequence[AuditEvent], now_ms: int) -> Program[object]:
        yield from ()
        return None

    def apply(self, draft: Draft) -> None:
        """Do nothing: there are no changes."""


NO_CHANGES: Final = NoChanges()

OUTCOMES: Final = {
    StoredStatus.COMPLETED: "completed",
    StoredStatus.FAILED: "failed",
    StoredStatus.CANCELLED: "cancelled",
    StoredStatus.REJECTED: "rejected",
    StoredStatus.DLQ: "dead_letter",
}
RETRY: Final = "retry"
"""The outcome of an attempt that failed and is followed by another one."""


class _Run(Protocol[T]):
    """Protocol: one of the methods of Database that run a program."""

    async def __call__(self, program: ProgramFactory[T], *, abandoned: Abandoned[T]) -> T: ...


@dataclass(frozen=True, slots=True)
class TaskStatistics:
    """Counters of this node's task engine since its start."""

    assignments: int
    due: int
    reports_dropped: int
    inputs_dropped: int
    followed: int


class Engine:
    """Runs transactions on tasks and, within `running`, the tasks' background loops."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        limits: TimeLimits,
        uniform: Callable[[], float],
        registry: SessionRegistry,
        ephemeral_topics: EphemeralTopics,
        log: TopicLog,
        task_nodes: TaskNodes,
        agents: AgentHooks,
        random_bytes: Callable[[int], bytes],
        grants: TaskGrants = NO_TASK_GRANTS,
        access: AppliedChanges = NO_CHANGES,
        may_read: Callable[[str, str], bool] = lambda service, workspace: True,
        audit: TaskAudit | None = None,
        workflows: TaskWorkflows = NO_TASK_WORKFLOWS,
    ) -> None:
        self._workflows = workflows
        self._folding: set[str] = set()
        """Executions of workflows for which `TaskWorkflows.fold` is queued."""
        self._agents = agents
        self._grants = grants
        self._access = access
        self.pools = PoolAccess(may_read)
        self.database = database
        self.clock = clock
        self.audit = audit or TaskAudit(clock)
        self._locking: Database = database.separate_queue(locking=True)
        self.nodes = task_nodes
        self.event_subscriptions = EventSubscriptions(database)
        self._assignment_kicks = Kicks()
        self.assignments = AssignmentSender(
            database, self._assignment_kicks.add, self.run_program, random_bytes, self.audit
        )
        self._status_kicks = Kicks(STATUS_UPDATE_S)
        self.writes = WriteBatcher(self.perform, merge)
        self.follow_ups = WriteBatcher(self.perform, max_group=1)
        """Further pages of work, one to a transaction, so a session waits for one page at most."""
        self.timer = TaskTimer(database, clock, self._fire, self.writes.flush_within)
        self.input_consumer = InputConsumer(log, database, self.perform)
        self.outbox_publisher = OutboxPublisher(database, log, lambda: task_nodes.node)
        self.started: ExistingNames[str] = ExistingNames()
        """The agents that may have been started: rows of `agent_starts`."""
        self._limits = limits
        self._uniform = uniform
        self._registry = registry
        self._ephemeral_topics = ephemeral_topics
        self._assigned_elsewhere = AutoResetEvent()
        task_nodes.on_notification(nodes.ASSIGNMENTS, lambda _: self._assigned_elsewhere.set())
        task_nodes.on_notification(nodes.EVENTS, self.event_subscriptions.look)
        task_nodes.on_notification(nodes.HIBERNATED, self._hibernated_elsewhere)
        task_nodes.on_notification(nodes.ENDED_SESSIONS, self._end_session)
        task_nodes.on_notification(nodes.ENDED_PROCESSES, self._end_process)
        self._absent_unseen = AutoResetEvent()
        """Set when a gateway has ended that may have been about to start an agent."""
        self._child_events_written = AutoResetEvent()
        """Set when child events may wait for the logs of their parents."""
        self._child_events_wanted = AutoResetEvent()
        """Set when such events are to be moved soon."""
        self._all_child_events_wanted = False
        """Whether that is true of all of them, and not of those with subscribers alone."""
        self._collect_child_events_soon()
        self._hibernated: set[str] = set()
        self._live_rows = LiveRows()
        self._sent_steps: dict[str, SentStep] = {}
        """The latest MAX_STEPS steps that were sent to workers, by task."""
        self._in_doubt = False
        """Whether the commit of a transaction was in doubt since the node got its lease."""
        self._left: deque[Callable[[], None]] = deque()
        """Ended programs whose callers were cancelled, with effects to be done."""
        self._left_added = AutoResetEvent()
        self.outcomes = dict.fromkeys(OUTCOMES.values(), 0) | {RETRY: 0}
        """How attempts at tasks have ended, since the start."""
        self._ended: frozenset[str] = frozenset()
        """Leases whose end this node has handled."""

    def statistics(self) -> TaskStatistics:
        """Return this node's counters of assignments, due rows and drops since its start."""
        dropped, followed = self.writes.dropped, sum(1 for _ in self.event_subscriptions.watched)
        return TaskStatistics(self.assignments.pushed, self.timer.fired, dropped, self.input_consumer.dropped, followed)

    def context(self, *, small: bool = False, again: bool = False, live_rows: LiveRows | None = None) -> Context:
        """Return time, node and limits for a transaction on tasks that begins now."""
        return Context(
            self.clock.now_ms(),
            self.nodes.node,
            self._limits,
            self.database.shared,
            small,
            again,
            live_rows,
            self._uniform,
            self.started.add,
            self._grants,
            self.pools.may_serve,
            self._workflows,
        )

    async def run_program(
        self,
        program: Callable[[Context], Program[T]],
        changed: Callable[[T], TaskTransaction | None],
        *,
        key: str = "",
        also: str = "",
        known: bool = False,
    ) -> T:
        """Commit a change of tasks, do its effects, and return the program's result.

        `changed(result)` is the transaction with its effects, if there are any. `key`: the id of
        the one task on which the program decides, and `also` that of a further one
        (`Database.run_keyed`). `known`: no statement but
        those of its TaskTransaction changes rows of tasks (LiveRows), as with a key.
        """
        if self.database.shared:
            run = partial(self.database.run_keyed, key=key, also=also) if key else self.database.run
            return await self._run(program, run, changed)
        live_rows = self._live_rows if key or known else None
        try:
            return await self._run(program, self.database.run_small, changed, small=True, live_rows=live_rows)
        except LargeError:
            return await self._run(program, self.database.run, changed, live_rows=live_rows)

    async def _run(
        self,
        program: Callable[[Context], Program[T]],
        run: _Run[T],
        changed: Callable[[T], TaskTransaction | None],
        *,
        small: bool = False,
        live_rows: LiveRows | None = None,
    ) -> T:
        """Run a program, again if its commit is unknown; then do its effects."""
        if live_rows is None and not self.database.shared:
            program = partial(self._forgetting, program)
        run = partial(run, abandoned=partial(self._abandoned, changed))
        program = partial(self._finishing, program, changed)
        result: T = await self._run_until_known(program, run, small=small, live_rows=live_rows)
        tx = changed(result)
        if tx is not None:
            self.after_commit(tx)
        return result

    async def _run_until_known(
        self,
        program: Callable[[Context], Program[T]],
        run: Callable[[ProgramFactory[T]], Awaitable[T]],
        *,
        small: bool,
        live_rows: LiveRows | None,
    ) -> T:
        in_doubt = 0
        try:
            while True:
                context = self.context(small=small, again=in_doubt > 0, live_rows=live_rows)
                try:
                    return await run(partial(program, context))
                except StorageUnavailable as error:
                    if isinstance(error, RefusedError) or not (in_doubt or isinstance(error, CommitUnknown)):
                        raise
                    in_doubt += 1
                    if in_doubt == IN_DOUBT_TRIES:
                        # The first try may be committed, whatever the last one says.
                        raise CommitUnknown(str(error)) from error
                    await trio.sleep(IN_DOUBT_PAUSE_S)
                except NotReadyError as error:
                    await error.prepare()
        finally:
            if in_doubt:
                self._send_all_again()

    def _abandoned(self, changed: Callable[[T], TaskTransaction | None], ended: Outcome[T]) -> None:
        """Leave a cancelled caller's effects to `_finish_abandoned`.

        It is called from within the database. Never blocks.
        """
        self._left.append(partial(self._finish, changed, ended))
        self._left_added.set()

    def _finish(self, changed: Callable[[T], TaskTransaction | None], ended: Outcome[T]) -> None:
        try:
            tx = changed(ended.unwrap())
            if tx is not None:
                self.after_commit(tx)
        except CommitUnknown:
            self._send_all_again()  # in a group that begins when this one is decided
        except (StorageUnavailable, LargeError, NotReadyError, ChangeRefused) as error:
            logger.debug("a change of tasks whose client has left was not made", reason=str(error))
        except Exception as error:
            report(error, "a client that has left while its change of tasks was committed")

    async def _finish_abandoned(self) -> None:
        while True:
            await self._left_added.wait()
            while self._left:
                self._left.popleft()()

    def _forgetting(self, program: Callable[[Context], Program[T]], context: Context) -> Program[T]:
        """Run a program that may write rows of tasks without `TaskTransaction.write`."""
        self._live_rows.forget()
        return (yield from program(context))

    def _finishing(
        self, program: Callable[[Context], Program[T]], changed: Callable[[T], TaskTransaction | None], context: Context
    ) -> Program[T]:
        """Run a program; end its change of access data, and write its audit rows."""
        result = yield from program(context)
        tx = changed(result)
        if tx is not None:
            for draft in tx.effects.access_changes:
                yield from self._access.finish(draft)
            if tx.effects.audit_rows:
                yield from self._access.write_audit(tx.effects.audit_rows, context.now_ms)
        return result

    async def perform(self, mutation: Mutation, *, locking: bool = False, known: bool = False) -> TaskTransaction:
        """Commit a change of tasks and do its effects.

        `locking`: Database.separate_queue. `known`: as in `run_program`.
        """

        def program(context: Context) -> Program[TaskTransaction]:
            tx = TaskTransaction(context)
            yield from mutation(tx)
            return tx

        live_rows = self._live_rows if known and not self.database.shared else None
        run = self._locking.run if locking else self.database.run
        return await self._run(program, run, lambda tx: tx, live_rows=live_rows)

    async def result(
        self, page: Callable[[TaskTransaction], Program[T]], *, locking: bool = False, known: bool = False
    ) -> T:
        """Run a program of one transaction on tasks with `perform`; return its result."""
        results: list[T] = []

        def mutation(tx: TaskTransaction) -> Program[None]:
            results.append((yield from page(tx)))

        await self.perform(mutation, locking=locking, known=known)
        return results[-1]

    async def _small_result(self, page: Callable[[TaskTransaction], Program[T]]) -> T:
        """Run a program of one transaction that is small; return its result."""

        def program(context: Context) -> Program[tuple[TaskTransaction, T]]:
            tx = TaskTransaction(context)
            return tx, (yield from page(tx))

        _, found = await self.run_program(program, lambda result: result[0], known=True)
        return found

    def _send_all_again(self) -> None:
        """Send assignments and events of tasks again, as a commit was in doubt."""
        logger.warning("the commit of a transaction on tasks was not answered: its effects are done again")
        self._in_doubt = True
        self.timer.look()
        self.event_subscriptions.look("*")
        self.writes.put(send_again)
        self.writes.put(_find_sessions_to_end)
        self.writes.put(TaskTransaction.find_unfinished)
        self._absent_unseen.set()
        self._collect_child_events_soon()
        self.outbox_publisher.wake()

    def fill_services(self) -> None:
        """Assign services tasks of pools that they may serve from now on. Never blocks."""
        for service in self.pools.newly_allowed():
            self.writes.put(partial(fill_service, identity=service))

    def after_commit(self, tx: TaskTransaction) -> None:
        """Send assignments, events and notifications of a committed transaction on tasks."""
        # Compare with the lease of the transaction: this node may have another one by now.
        here = tx.context.node
        if tx.context.live_rows is not None:
            tx.context.live_rows.committed(tx.written.values(), tx, tx.generation)
        for push in tx.effects.assignments:
            self._push(push, here)
        if tx.effects.events:
            self.event_subscriptions.offer(tx.effects.events)
        for task in tx.effects.status_changes:
            if (outcome := OUTCOMES.get(task.status)) is not None:
                self.outcomes[RETRY if task.next_retry_ms else outcome] += 1
            status_updates.publish(self._ephemeral_topics, task, tx.context.now_ms, self._status_kicks.add)
        for node, task_id in tx.effects.watching_nodes:
            self.nodes.notify(node, nodes.EVENTS, task_id)
        for node, session_id in tx.effects.sessions_to_end:
            if node == here:
                self._end_session(session_id)
            else:
                self.nodes.notify(node, nodes.ENDED_SESSIONS, session_id)
        for node, session_id in tx.effects.ended_processes:
            if node == here:
                self._end_process(session_id)
            else:
                self.nodes.notify(node, nodes.ENDED_PROCESSES, session_id)
        for task, node in tx.effects.hibernated:
            self._tell_hibernated(task, node, here)
        self.timer.note(tx.due_ms)
        if self.pools.waiting:
            self.fill_services()
        if tx.effects.child_events:
            self._note_child_events(tx)
        if tx.effects.outbox:
            self.outbox_publisher.wake()
        for draft in tx.effects.access_changes:
            self._access.apply(draft)
        for identity in tx.effects.lost_agents:
            self._agents.gateway_lost(identity)
        for identity in tx.effects.crashed_agents:
            self._agents.agent_crashed(identity)
        for identity in tx.effects.absent_targets:
            self._agents.target_absent(identity)
        for execution_id in tx.effects.arrivals - self._folding:
            self._folding.add(execution_id)
            self.follow_ups.put(partial(self._fold, execution_id=execution_id))
        for mutation in tx.effects.follow_ups:
            self.follow_ups.put(mutation)
        for task_id in tx.effects.unfinished:
            self.follow_ups.put(partial(TaskTransaction.wake_dependents, task_id=task_id))

    def _fold(self, tx: TaskTransaction, execution_id: str) -> Program[None]:
        self._folding.discard(execution_id)  # ends that are written from now on need another page
        yield from self._workflows.fold(tx, execution_id)

    def _push(self, push: NewAssignment, here: str) -> None:
        if push.worker.node != here:
            self.nodes.notify(push.worker.node, nodes.ASSIGNMENTS)
            return
        session = self._registry.session(push.worker.session_id)
        if session is not None:
            if self.database.shared and push.task.workflow == WorkflowPart.STEP:
                self._note_step(push.task)
            self.assignments.push(session, push.task, push.payload)

    def _note_step(self, task: TaskRow) -> None:
        step = self._workflows.sent(task)
        if step is None:
            return
        self._sent_steps[task.task_id] = step
        if len(self._sent_steps) > MAX_STEPS:
            del self._sent_steps[next(iter(self._sent_steps))]

    def sent_step(self, task_id: str) -> SentStep | None:
        """Return, once, which step a task is that this node has sent out.

        None: it is not known. PostgreSQL runs ends of steps of different executions interleaved.
        """
        return self._sent_steps.pop(task_id, None)

    def _end_session(self, session_id: str) -> None:
        session = self._registry.session(session_id)
        if session is not None:
            text = "the task of this session's token, or of its maker's, has ended"
            session.end_after_answer(Status.UNAUTHENTICATED, text)

    def _end_process(self, session_id: str) -> None:
        session = self._registry.session(session_id)
        if session is not None:
            session.end_after_input(Status.CANCELLED, "its orchestrator has reported that its process has ended")

    def _tell_hibernated(self, task: TaskRow, node: str, here: str) -> None:
        if node != here:
            self.nodes.notify(node, nodes.HIBERNATED, task.task_id)
            return
        session = self._registry.holder(task.assigned_to)
        # A client takes any message before its acknowledgement for the acknowledgement.
        if session is not None and session.acknowledged:
            told = pb.TaskHibernated(task_id=task.task_id, descriptor=descriptor(task))
            session.put(pb.DownstreamMessage(task_hibernated=told))

    def _hibernated_elsewhere(self, task_id: str) -> None:
        self._hibernated.add(task_id)
        self._assigned_elsewhere.set()

    def renewed(self) -> None:
        """Write under the node's new lease which tasks its subscribers follow."""
        self.writes.put(self._watch_again)
        self.event_subscriptions.look("*")
        self._assigned_elsewhere.set()
        self.outbox_publisher.wake()

    def rejoined(self) -> None:
        """Send assignments again that were in doubt under the node's former lease.

        Called once the sessions' rejoins are queued: before them, the node has no workers.
        """
        if self._in_doubt:
            self._in_doubt = False
            self.writes.put(send_again)

    def _watch_again(self, tx: TaskTransaction) -> Program[None]:
        yield from watch(self.event_subscriptions.watched, tx.context.node)

    async def recover(self) -> None:
        """Handle the sessions and tasks that ended nodes left. Raises StorageUnavailable."""
        ended = await self.nodes.ended_leases()
        # A node that left no row may still have ended in the middle of its clients' requests.
        if await self._end_sessions_of_ended_nodes() or ended - self._ended:
            await self.perform(TaskTransaction.find_unfinished)
            self.input_consumer.look()
            self._absent_unseen.set()
        self._ended = ended

    async def _end_sessions_of_ended_nodes(self) -> bool:
        """End the worker sessions of ended nodes; return whether there were such nodes."""
        found = await self.database.read(sessions.nodes_with_rows)
        gone = await self.nodes.ended_among(found)
        for node in gone:
            page = partial(sessions.end_sessions_of, node=node, page=RECOVER_PAGE)
            while await self.result(page) >= RECOVER_PAGE:
                pass
            logger.info("ended the worker sessions of a node that has ended", node=node)
        return bool(gone)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Handle what ended nodes left, then run the task engine's loops during the block."""
        self._ended = await self.nodes.ended_leases()
        began_ms = self.clock.now_ms()
        await self._end_sessions_of_ended_nodes()
        if await self.nodes.is_only_node():
            while await self.result(partial(sessions.restart_graces, before_ms=began_ms)) >= sessions.EXCUSE_PAGE:
                pass
        await self.perform(TaskTransaction.find_unfinished)
        await self.database.execute("DELETE FROM task_watchers WHERE node = $1", self.nodes.node)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.writes.run, name="task-writes")
            nursery.start_soon(self.follow_ups.run, name="task-follow-ups")
            nursery.start_soon(keep_running, "task-abandoned", self._finish_abandoned, name="task-abandoned")
            nursery.start_soon(keep_running, "task-started-agents", self._load_started, name="task-started-agents")
            nursery.start_soon(keep_running, "task-assignments", self._assignment_kicks.run, name="task-assignments")
            nursery.start_soon(keep_running, "task-status-updates", self._status_kicks.run, name="task-status-updates")
            nursery.start_soon(keep_running, "task-timer", self.timer.run, name="task-timer")
            nursery.start_soon(keep_running, "task-outbox", self.outbox_publisher.run, name="task-outbox")
            nursery.start_soon(keep_running, "task-retention", self._sweep, name="task-retention")
            nursery.start_soon(keep_running, "task-inputs", self.input_consumer.run, name="task-inputs")
            nursery.start_soon(keep_running, "task-children", self._collect_child_events_forever, name="task-children")
            self._absent_unseen.set()
            nursery.start_soon(keep_running, "task-absent", self._report_absent_again, name="task-absent")
            if self.database.shared:
                nursery.start_soon(keep_running, "task-collect", self._collect_forever, name="task-collect")
                nursery.start_soon(keep_running, "task-nodes", self._check_nodes, name="task-nodes")
            yield
            with trio.move_on_after(SETTLE_S, shield=True):
                await self.writes.flush()
            nursery.cancel_scope.cancel()

    async def _load_started(self) -> None:
        await self.started.load(self.database, startup.started_names, "", "names of started agents", logger)

    async def _fire(self, excuse: due.SilenceExcuse) -> int:
        def page(tx: TaskTransaction) -> Program[int]:
            fired = yield from due.fire(tx, shared=self.database.shared, excuse=excuse)
            return fired + (yield from self._workflows.fire(tx))

        try:
            found = await self.result(page)
        except StorageUnavailable:
            raise
        except Exception as error:
            if not self._workflows.settled(error):
                await self._fire_apart(excuse, error)
            return 1  # it is due again, but for what is put off
        self._workflows.settled(None)
        return found

    async def _fire_apart(self, excuse: due.SilenceExcuse, error: Exception) -> None:
        """Handle due moments one by one, as one in a page of them raises an error.

        It is put off: the database refuses what its transaction writes.
        """
        logger.warning("a due moment of tasks cannot be handled, and is looked for", reason=str(error))
        shared = self.database.shared
        for _ in range(due.PAGE):
            looked: list[str] = []
            try:
                if not await self.result(partial(due.fire, shared=shared, excuse=excuse, one=True, looked=looked)):
                    break
            except StorageUnavailable:
                raise
            except Exception as failure:
                if not looked:
                    raise
                report(failure, f"the due moment of task {looked[-1]}, which is put off")
                await self.result(partial(due.put_off, task_id=looked[-1]))
        for _ in range(due.PAGE):
            try:
                if not await self.result(partial(self._workflows.fire, one=True)):
                    return
            except StorageUnavailable:
                raise
            except Exception as failure:
                if not self._workflows.settled(failure):
                    raise
            else:
                self._workflows.settled(None)

    async def _sweep(self) -> None:
        while True:
            await trio.sleep(retention.INTERVAL_S)
            self.input_consumer.look()  # an append whose commit is in doubt notifies no node
            self._child_events_written.set()  # nor for such a transaction
            try:
                for page in (retention.forget_memories, retention.forget_resolved):
                    while await self.result(page) >= retention.PAGE:
                        pass
                await self.forget_workflow_letters()
            except StorageUnavailable as error:
                logger.info("old rows of tasks are deleted when storage answers", reason=str(error))

    async def forget_workflow_letters(self) -> None:
        """Delete the oldest dead letters of workflows beyond their number."""
        newest = await self.database.read(partial(retention.first_beyond, self._limits.workflow_letters))
        after: retention.LetterAge | None = retention.NO_LETTER
        while newest != retention.NO_LETTER and after is not None:
            page = partial(retention.forget_workflow_letters, after=after, newest=newest)
            after = await self.result(page)

    async def _check_nodes(self) -> None:
        while True:
            await trio.sleep(CHECK_S)
            try:
                await self.recover()
                for session_id in await self.database.read(partial(tokens.sessions_to_end, self.nodes.node)):
                    self._end_session(session_id)
                for session_id in await self.database.read(
                    partial(tokens.sessions_of_ended_processes, self.nodes.node)
                ):
                    self._end_process(session_id)
                await self.event_subscriptions.look_for_missed()
            except StorageUnavailable as error:
                logger.info("worker sessions of ended nodes are ended once storage answers again", reason=str(error))
            self._child_events_written.set()  # the node that added them may have ended

    def _collect_child_events_soon(self) -> None:
        self._all_child_events_wanted = True
        self._child_events_written.set()
        self._child_events_wanted.set()

    def _note_child_events(self, tx: TaskTransaction) -> None:
        """Have child events of a transaction moved: soon if a client follows their parent."""
        self._child_events_written.set()
        if self.database.shared:
            followed = bool(tx.effects.child_events - tx.unwatched)
        else:
            followed = any(map(self.event_subscriptions.watches, tx.effects.child_events))
        if followed:
            self._child_events_wanted.set()

    async def collect_child_events(self, task_id: str = "") -> None:
        """Append events of child tasks to the log of one parent, or of all parents ("")."""
        where, args = (" WHERE task_id = $1", (task_id,)) if task_id else ("", ())
        if not await self.database.fetch(f"SELECT 1 FROM task_child_events{where} LIMIT 1", *args):  # noqa: S608
            return
        names = [task_id] if task_id else await self._collect_unlocked_child_events(child_events.ALL)
        of = child_events.collect_for_locking if self.database.shared else child_events.collect_for
        for name in names:
            while await self.result(partial(of, task_id=name), locking=True) >= child_events.PAGE:
                pass

    async def _collect_unlocked_child_events(self, up_to: int) -> Collection[str]:
        """Append child events to the logs of unlocked parents; return the locked parents.

        Events behind the row `up_to` may wait if no client follows their parents.
        """
        locked: frozenset[str] = frozenset()
        last = 0
        while True:
            if self.database.shared:
                page = partial(child_events.collect_locking, after=last, up_to=up_to, without=locked)
                taken = await self.result(page, locking=True, known=True)
            else:
                taken = await self._small_result(partial(child_events.collect, up_to=up_to))
            locked |= taken.locked
            last = taken.last
            if not last:
                return locked

    async def _collect_child_events_forever(self) -> None:
        old = new = 0
        read_at = -math.inf
        while True:
            await self._child_events_written.wait()
            with trio.move_on_after(child_events.UNWATCHED_S) as waiting:
                await self._child_events_wanted.wait()
            wanted, self._all_child_events_wanted = self._all_child_events_wanted, False
            if not self.database.shared:
                wanted = wanted or not waiting.cancelled_caught
            try:
                if trio.current_time() >= read_at + child_events.UNWATCHED_S:
                    old, new = new, await self.database.read_small(child_events.newest)
                    read_at = trio.current_time()
                if await self._collect_unlocked_child_events(child_events.ALL if wanted else old):
                    self._child_events_written.set()
                    self._child_events_wanted.set()
                elif new > old and not wanted:
                    self._child_events_written.set()
            except StorageUnavailable as error:
                logger.info("parents' logs get events of child tasks when storage answers", reason=str(error))
                self._collect_child_events_soon()
                await trio.sleep(CHECK_S)
            await trio.sleep(child_events.GATHER_S)

    async def _report_absent_again(self) -> None:
        """Start absent agents for which tasks wait, if an ended gateway has not done it."""
        while True:
            await self._absent_unseen.wait()
            await trio.sleep(CHECK_S)  # the clients of that gateway reconnect meanwhile
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
                logger.info("absent agents for waiting tasks are started when storage answers", reason=str(error))

    async def _collect_forever(self) -> None:
        """Send this node's workers the assignments that other nodes have made for them."""
        while True:
            with trio.move_on_after(CHECK_S):
                await self._assigned_elsewhere.wait()
            try:
                while await self.result(send_of_other_nodes) >= COLLECT_PAGE:
                    pass
                here = self.nodes.node
                for task_id in tuple(self._hibernated):
                    # Before the read: it may not see what is told of meanwhile.
                    self._hibernated.discard(task_id)
                    try:
                        task = await self.database.read_small(partial(task_rows.load, task_id))
                    except BaseException:
                        self._hibernated.add(task_id)
                        raise
                    if task is not None and task.status is StoredStatus.HIBERNATED:
                        self._tell_hibernated(task, here, here)
            except StorageUnavailable as error:
                logger.info("assignments that other nodes made are sent when storage answers", reason=str(error))


def _find_sessions_to_end(tx: TaskTransaction) -> Program[None]:
    """Find this node's sessions whose task token was revoked, to end them."""
    node = tx.context.node
    tx.effects.sessions_to_end.extend((node, session_id) for session_id in (yield from tokens.sessions_to_end(node)))
