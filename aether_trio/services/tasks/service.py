"""Tasks: the handlers of task_op, task_query and task_subscription_op, and what sessions mean to tasks. create_task is in creation.py.

Every refusal is in the typed answer, as a sentence. A task that the caller may not see is answered like one that does not exist.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Final

from aether_trio.model.access import AccessLevel
from aether_trio.model.errors import AetherError, Code
from aether_trio.model.identity import Identity, Kind
from aether_trio.model.ids import IdFactory
from aether_trio.model.tasks import Move, Reason, Task, Wait
from aether_trio.model.tasks.status import TERMINAL
from aether_trio.model.tasks.table import RULES
from aether_trio.services.access import Authorizer
from aether_trio.services.tasks.delivery import event_subscriptions
from aether_trio.services.tasks.delivery.event_subscriptions import MAX_SUBSCRIPTIONS, Beginning, Subscription
from aether_trio.services.tasks.engine import WATCH, Engine
from aether_trio.services.tasks.handlers import query
from aether_trio.services.tasks.handlers.create import WORKER_KINDS
from aether_trio.services.tasks.handlers.creation import Creation
from aether_trio.services.tasks.handlers.operate import MOVES, Asked, Outcome, operate, read_wait
from aether_trio.services.tasks.handlers.permissions import MANAGE, NOT_FOUND, WORK, Caller, is_party, may
from aether_trio.services.tasks.handlers.protobuf import info, named, show
from aether_trio.services.tasks.handlers.sanitize import reason, storable
from aether_trio.services.tasks.transaction import rows, sessions, tokens
from aether_trio.services.tasks.transaction.guests import is_guest
from aether_trio.services.tasks.transaction.rows import Worker
from aether_trio.services.tasks.transaction.session_batch import Join, Leave
from aether_trio.services.tasks.transaction.work import Context, Work
from aether_trio.services.tasks.write_batcher import Heartbeat
from aether_trio.session.session import Session
from aether_trio.storage.base import ExecuteMany, Program, StorageUnavailable
from aether_trio.storage.outages import outage
from aether_trio.wire.errors import error_response
from aether_trio.wire.pb import aether_pb2 as pb

UNWATCH_PAGE: Final = 100
"""Tasks that a transaction says are followed no more."""

Answers = Sequence[pb.DownstreamMessage]
HasCheckpoint = Callable[[str, str], Awaitable[bool]]


class TaskService:
    """See the module docstring. `capacity` is how many live tasks a worker is given at most.

    `has_checkpoint(identity, key)` says whether a participant has saved a checkpoint. Raises StorageUnavailable.
    """

    def __init__(
        self,
        engine: Engine,
        creation: Creation,
        ids: IdFactory,
        authorizer: Authorizer,
        has_checkpoint: HasCheckpoint,
        *,
        capacity: int,
    ) -> None:
        self.engine = engine
        self.creation = creation
        self._ids = ids
        self._authorizer = authorizer
        self._has_checkpoint = has_checkpoint
        self._capacity = capacity
        self._reports: dict[str, int] = {}
        self._claimers: set[str] = set()
        """Sessions without a declaration whose worker's row says that they claim."""

    # -- task_op ----------------------------------------------------------------------------------------------------

    async def operate(self, session: Session, op: pb.TaskOperation) -> Answers:
        """One move."""
        message = pb.DownstreamMessage(task_op=pb.TaskOperationResponse(request_id=op.request_id))
        response = message.task_op
        try:
            await self._after_reports(session)
            if session.identity.kind is Kind.ORCHESTRATOR:
                # Its word on an agent is judged when it is written that the agent has come, or gone.
                await self.engine.writes.flush()
            await self._operate(session, op, response)
        except StorageUnavailable as error:
            response.error = str(outage(error))
        return [message]

    async def _operate(self, session: Session, op: pb.TaskOperation, response: pb.TaskOperationResponse) -> None:
        known = MOVES.get(op.op)
        if known is None:
            response.error = f"unknown task operation {op.op}"
            return
        move, message = known
        wait = read_wait(op)
        if op.op == pb.TaskOperation.PAUSE and wait is None:
            response.error = "wait_spec is required"
            return
        waits_for_tasks = op.op == pb.TaskOperation.WAIT_FOR
        if waits_for_tasks and (wait is None or not wait.depends_on):
            response.error = "wait_spec.depends_on is required"
            return
        if move in (Move.CLAIM, Move.RESUME, Move.PAUSE):
            await self.engine.guests.enlist(session)
        caller = Caller.of(session)
        task_id, number = named(storable(op.task_id))
        request_id = op.request_id or self._ids.unique()  # a transaction that is not answered is made again
        first = move is Move.CLAIM and not session.numbered and session.session_id not in self._claimers
        asked = Asked(
            task_id,
            move,
            reason(op.reason),
            wait,
            request_id,
            checked=waits_for_tasks,
            number=number,
            first_claim=first,
        )
        outcome = await self._run(caller, asked)
        if outcome.needs:
            needed = WORK if RULES[move].by_worker else MANAGE
            if await may(self._authorizer, caller, outcome.needs, needed):
                outcome = await self._run(replace(caller, allowed=True), asked)
            else:
                outcome = Outcome()
        if outcome.task is None:
            response.error = NOT_FOUND
        elif outcome.refusal:
            response.error = outcome.refusal
        else:
            if first and not session.detached:
                self._claimers.add(session.session_id)
            response.success = True
            response.message = message
            show(response.task, outcome.task, numbered=session.numbered)

    async def _run(self, caller: Caller, asked: Asked) -> Outcome:
        if asked.wait is not None and asked.wait.reason == Reason.HIBERNATION:
            task = await self._load(asked.task_id)
            if task is not None and (problem := await self._checkpoint_problem(task, caller, asked.wait)):
                return Outcome(task, refusal=problem)
        runs: list[int] = []

        def program(context: Context) -> Program[Outcome]:
            runs.append(context.now_ms)
            return operate(context, caller, asked, runs[0] if len(runs) > 1 else 0)

        outcome = await self.engine.run_program(program)
        if outcome.work is not None:
            self.engine.settle(outcome.work)
        return outcome

    async def _checkpoint_problem(self, task: Task, caller: Caller, wait: Wait) -> str:
        """Whether the task's worker has saved the checkpoint that it names. Nobody else is told what a worker has saved."""
        key = wait.checkpoint_key
        if task.assigned_to != caller.name or not key or await self._has_checkpoint(task.assigned_to, key):
            return ""  # or refused otherwise
        return f"checkpoint {key!r} of {task.assigned_to} not found: save it before the task hibernates"

    async def _load(self, task_id: str) -> Task | None:
        return await self.engine.database.read_small(lambda: rows.load(storable(task_id)))

    # -- task_query -------------------------------------------------------------------------------------------------

    async def query(self, session: Session, asked: pb.TaskQuery) -> Answers:
        """GET and LIST."""
        response = pb.TaskQueryResponse(request_id=asked.request_id)
        try:
            await self._after_reports(session)
            if asked.op == pb.TaskQuery.GET:
                await self._get(session, asked.task_id, response)
            elif asked.op == pb.TaskQuery.LIST:
                await self._list(session, asked.filter, response)
            else:
                response.error = f"unknown task query {asked.op}"
        except StorageUnavailable as error:
            response.error = str(outage(error))
        except query.TokenError as error:
            response.error = str(error)
        return [pb.DownstreamMessage(task_query=response)]

    async def _get(self, session: Session, task_id: str, response: pb.TaskQueryResponse) -> None:
        task = await self._visible(session, task_id, "task_query")
        if task is None:
            response.error = NOT_FOUND
            return
        response.success = True
        show(response.task, task, numbered=session.numbered)

    async def _visible(self, session: Session, task_id: str, operation: str) -> Task | None:
        """The task, if this session may see it."""
        task = await self._load(task_id)
        caller = Caller.of(session)
        if task is None or is_party(task, caller):
            return task
        return task if await may(self._authorizer, caller, task.workspace, operation, AccessLevel.READ) else None

    async def _list(self, session: Session, wanted: pb.TaskFilter, response: pb.TaskQueryResponse) -> None:
        """A page of a workspace's tasks: all of them for whoever may read it, else those that the caller has a part in."""
        workspace = wanted.workspace or session.workspace
        if not workspace:
            response.error = "filter.workspace is required: this participant is in no workspace"
            return
        caller = Caller.of(session)
        if await may(self._authorizer, caller, workspace, "task_query", AccessLevel.READ):
            of = query.Part.ANY
        else:
            of = query.Part.OWN if caller.can_reach(workspace) else query.Part.GIVEN
        where, args = query.condition(wanted, workspace, session.identity.text, of)
        limit = query.limit_of(wanted)
        if wanted.parent_task_id and wanted.include_descendants:
            below = await self.engine.database.read(
                lambda: query.descendants(storable(wanted.parent_task_id), workspace, query.MAX_DESCENDANTS + 1)
            )
            if len(below) > query.MAX_DESCENDANTS:
                response.error = f"task {wanted.parent_task_id} has more than {query.MAX_DESCENDANTS} tasks below it"
                return
        page = await self.engine.database.read(lambda: query.list_page(where, args, limit))
        response.success = True
        response.tasks.extend(info(task, numbered=session.numbered) for task in page.tasks)
        response.total_count = len(page.tasks)
        response.next_page_token = page.token

    # -- task_subscription_op ---------------------------------------------------------------------------------------

    async def subscribe(self, session: Session, op: pb.TaskSubscriptionOperation) -> Answers:
        """SUBSCRIBE and UNSUBSCRIBE."""
        response = pb.TaskSubscriptionOperationResponse(client_request_id=op.client_request_id, task_id=op.task_id)
        answer = pb.DownstreamMessage(task_subscription_response=response)
        response = answer.task_subscription_response
        try:
            if op.op == pb.TaskSubscriptionOperation.SUBSCRIBE:
                await self._subscribe(session, op, answer)
                return []  # the answer went out before the first event
            if op.op == pb.TaskSubscriptionOperation.UNSUBSCRIBE:
                if not op.subscription_id:
                    response.error = "subscription_id is required"
                else:
                    self._unwatch(self.engine.hub.close(session, op.subscription_id))
                    response.subscription_id = op.subscription_id
                    response.success = True
            else:
                response.error = f"unknown task subscription operation {op.op}"
        except StorageUnavailable as error:
            response.error = str(outage(error))
        except AetherError as error:
            response.error = error.message
        return [answer]

    async def _subscribe(
        self, session: Session, op: pb.TaskSubscriptionOperation, answer: pb.DownstreamMessage
    ) -> None:
        subscriptions = self.engine.hub
        if subscriptions.count(session) >= MAX_SUBSCRIPTIONS:
            raise AetherError(Code.QUOTA, f"a session may have at most {MAX_SUBSCRIPTIONS} task subscriptions")
        task = await self._visible(session, op.task_id, "task_subscribe")
        if task is None:
            raise AetherError(Code.INVALID_ARGUMENT, NOT_FOUND)
        # A worker from another workspace is shown its own task, and nothing else of that one.
        recursive = op.recursive and session.allows_workspace(task.workspace)
        since_ms = max(op.start_timestamp_unix_ms, 0)
        subscription = Subscription(
            self._ids.unique(), session, task.task_id, recursive, request_id=op.client_request_id
        )
        if task.has_children:
            await self.engine.take_up_children("" if recursive else task.task_id)
        subscriptions.open(subscription, [task.task_id])
        try:
            found = await self._begin(subscription, task, since_ms)
        except BaseException:
            self._unwatch(subscriptions.close(session, subscription.subscription_id))
            raise
        response = answer.task_subscription_response
        response.success = True
        response.subscription_id = subscription.subscription_id
        session.put(answer)
        subscriptions.start(subscription, found, replay=since_ms > 0)

    async def _begin(self, subscription: Subscription, task: Task, since_ms: int) -> dict[str, int]:
        """Where the subscription begins. What is made below the task meanwhile is in it, or told of behind it."""
        database = self.engine.database
        node = self.engine.hints.node if database.shared else None

        def program() -> Program[Beginning]:
            below = query.descendants(task.task_id, task.workspace, event_subscriptions.MAX_FOLLOWED)
            return event_subscriptions.beginning(
                task.task_id, below if subscription.recursive else None, since_ms, node
            )

        if node is not None:
            await self._watch(subscription.session, [task.task_id])
        while True:
            found = await database.read(program)
            self.engine.hub.follow(subscription, found.positions)
            if not found.unwatched or subscription.session.detached:
                return found.positions
            # What is made below these from now on is watched from its beginning.
            await self._watch(subscription.session, found.unwatched)

    async def _watch(self, session: Session, task_ids: Sequence[str]) -> None:
        """Have other nodes tell this one of events. In turn with `_unwatch`, so nothing stays of a session that ends meanwhile."""

        def errand(work: Work) -> Program[None]:
            if not session.detached:
                yield ExecuteMany(WATCH, [(task_id, work.context.node) for task_id in sorted(task_ids)])

        await self.engine.writes.wait_written(self.engine.writes.put(errand))

    def _unwatch(self, task_ids: Sequence[str]) -> None:
        if self.engine.database.shared:
            for first in range(0, len(task_ids), UNWATCH_PAGE):
                part = task_ids[first : first + UNWATCH_PAGE]
                self.engine.writes.put(partial(self._unwatch_page, task_ids=part))

    def _unwatch_page(self, work: Work, task_ids: Sequence[str]) -> Program[None]:
        watches = self.engine.hub.watches
        gone = [(task_id, work.context.node) for task_id in task_ids if not watches(task_id)]
        if gone:
            yield ExecuteMany("DELETE FROM task_watchers WHERE task_id = $1 AND node = $2", gone)

    # -- sessions ---------------------------------------------------------------------------------------------------

    async def admit(self, identity: Identity, credentials: Mapping[str, str]) -> tokens.Admitted | None:
        """Look at a task token among the credentials; None if there is none. Raises StatusError."""
        return await tokens.admit(self.engine.database, identity, credentials, self.engine.clock.now_ms())

    async def checkpoint_owner(self, identity: Identity, key: str) -> Identity | None:
        """Who saved the checkpoint that a task of this worker was hibernated with, when it was another worker's then."""
        if not key or identity.kind not in WORKER_KINDS:
            return None
        try:
            found = await self.engine.database.fetch(
                "SELECT a.worker FROM tasks t JOIN task_attempts a ON a.task_id = t.task_id WHERE t.holder = $1 "
                "AND t.holder <> '' AND t.checkpoint_key = $2 AND a.outcome = 'hibernated' ORDER BY a.epoch DESC LIMIT 1",
                identity.text,
                storable(key),
            )
        except StorageUnavailable:
            return None
        owner = Identity.parse(found[0][0], strict=False) if found else identity
        return owner if owner != identity and _stands_in(identity, owner) else None

    def joined(self, session: Session, *, back: bool, again: bool = False) -> None:
        """A session has been acknowledged. `back`: its client names a session that it continues. `again`: it had been before."""
        identity, wants = session.identity, session.worker_tasks
        takes = identity.kind is Kind.AGENT or (identity.kind is Kind.SERVICE and session.takes_any)
        if is_guest(session):
            if back or again:
                self.engine.guests.came_back(session, again=again)
            return
        if identity.kind not in WORKER_KINDS and not session.task_id:
            return
        worker = Worker(
            identity.text,
            session.session_id,
            self.engine.hints.node,
            identity.workspace,
            identity.implementation,
            takes and wants != 0,
            0,
            min(wants or self._capacity, self._capacity),
            claims=session.numbered,
        )
        joined = sessions.Joined(
            worker, back, session.task_id, session.token, session.lineage, again, lambda: session.detached
        )
        number = self.engine.writes.put(Join(joined), heartbeat=Heartbeat(identity.text))
        if session.task_id:
            self.engine.begins(session.session_id, number)

    def ended(self, session: Session) -> None:
        """A session is over; called once for each that was acknowledged or not."""
        self._reports.pop(session.session_id, None)
        self._claimers.discard(session.session_id)
        self.engine.is_over(session.session_id)
        self._unwatch(self.engine.hub.close_all(session))
        if self.engine.guests.forget(session) or session.identity.kind in WORKER_KINDS or session.task_id:
            left = sessions.Left(
                session.identity.text,
                session.session_id,
                session.finished,
                by_gateway=session.ended_by_gateway,
                let_in=bool(session.lineage),
            )
            self.engine.writes.put(Leave(left))

    # -- progress ---------------------------------------------------------------------------------------------------

    def reported(self, session: Session, report: pb.ProgressReport) -> None:
        """A progress report that names a task: a heartbeat, and an event if it is the reporter's. Never blocks.

        Of a task that has ended, or that another worker has, it is no event but an error: so a worker hears of a cancellation.
        """
        if not report.task_id:
            return
        name, task_id = session.identity.text, storable(report.task_id)
        event = pb.TaskProgressEvent(
            state=report.state, progress=report.completion, message=report.summary, metadata=report.metadata
        )
        lost: list[str] = []
        runs: list[int] = []
        """When this was written; it is written again when a commit was not answered."""

        def errand(work: Work) -> Program[None]:
            lost.clear()
            runs.append(work.context.now_ms)
            task = yield from sessions.touched(work, name, task_id)
            if task is None:
                task = yield from rows.load(task_id)
                if task is None:
                    return
                if name not in (task.assigned_to, task.creator):
                    if (yield from rows.latest_epoch(task_id, name)) is not None:
                        lost.append(f"this assignment of task {task_id} is over: somebody else has it")
                    return
                if task.status in TERMINAL:
                    lost.append(f"task {task_id} has ended: it is {task.status.value}")
                    return
            if len(runs) > 1:
                yield from work.note_again(task, pb.TaskEvent(progress=event), runs[0])
            else:
                yield from work.note(task, pb.TaskEvent(progress=event))

        number = self.engine.writes.offer(
            errand,
            lambda: self._tell_lost(session, report, lost),
            heartbeat=Heartbeat(name, task_id),
            session_id=session.session_id,
            size=report.ByteSize(),
        )
        if number:
            self._reports[session.session_id] = number

    @staticmethod
    def _tell_lost(session: Session, report: pb.ProgressReport, lost: Sequence[str]) -> None:
        if lost and not session.detached:
            session.put(error_response(AetherError(Code.INVALID_ARGUMENT, lost[0]), report.request_id))

    async def _after_reports(self, session: Session) -> None:
        """What a session asks for comes after its own coming and what it has reported."""
        await self.engine.begun(session.session_id)
        number = self._reports.pop(session.session_id, 0)
        if number:
            await self.engine.writes.wait_written(number)


def _stands_in(identity: Identity, other: Identity) -> bool:
    """Whether these are workers of the same kind, so that one may go on where the other one was."""
    same_place = identity.workspace == other.workspace or "" in (identity.workspace, other.workspace)
    return identity.implementation == other.implementation and same_place
