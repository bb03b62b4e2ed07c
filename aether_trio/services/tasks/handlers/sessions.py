"""Queues writes of tasks as sessions of workers begin, end or report progress.

Each puts a mutation into the engine's WriteBatcher. A request of a session waits (`wait_written`)
until what the session did before the request is written.

Workers have a row in `task_workers` as long as they are connected. Other participants (users,
bridges, workflow engines) may only work on tasks that they have created for themselves. Such an
owner has no row until it is about to work on a task (`register_owner`), or resumes a session and
has a task. Then its end means to its tasks what a worker's end does. Owners may not report
progress.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from aether_trio.model.errors import Code, RequestError
from aether_trio.model.identity import Identity, Kind
from aether_trio.model.tasks.result import ResultError, reported_result
from aether_trio.model.tasks.status import TERMINAL
from aether_trio.model.tasks.task import ASSIGNMENT
from aether_trio.model.text import storable
from aether_trio.services.tasks.engine import Engine
from aether_trio.services.tasks.transaction import results, sessions, task_rows, tokens
from aether_trio.services.tasks.transaction.due import Heartbeat
from aether_trio.services.tasks.transaction.sessions import WorkerJoined, WorkerLeft
from aether_trio.services.tasks.transaction.task_transaction import TaskTransaction
from aether_trio.services.tasks.transaction.workers import WORKER_KINDS, Worker
from aether_trio.session.session import Session
from aether_trio.storage.base import Program, StorageUnavailable
from aether_trio.wire.error_response import error_response
from aether_trio.wire.pb import aether_pb2 as pb


def is_owner(session: Session) -> bool:
    """Return whether a session can only work on tasks that its participant created."""
    kind = session.identity.kind
    return kind not in WORKER_KINDS and kind is not Kind.ORCHESTRATOR and not session.task_id


class TaskSessions:
    """Writes joins, ends and progress reports of workers' sessions for their tasks."""

    def __init__(self, engine: Engine, *, capacity: int) -> None:
        self._engine = engine
        self._writes = engine.writes
        self._capacity = capacity
        self._joins: dict[str, int] = {}
        """By session of a task token: the number of its join, until it is known to be written."""
        self._reports: dict[str, int] = {}
        """By session: the number of its latest report, until a request has waited for it."""
        self._claiming: set[str] = set()
        """Sessions that have claimed a task, though their client did not declare that it claims."""
        self._resumed_owners: set[str] = set()
        self._registered_owners: dict[str, int] = {}

    async def admit(self, identity: Identity, credentials: Mapping[str, str]) -> tokens.AdmittedToken | None:
        """Check a task token among the credentials; None without one. Raises StatusError."""
        return await tokens.admit(self._engine.database, identity, credentials, self._engine.clock.now_ms())

    def joined(self, session: Session, *, resumed: bool, rejoined: bool = False) -> None:
        """Write for its tasks that a worker's session has begun. Never blocks.

        `resumed`: its client resumes an earlier session. `rejoined`: it has joined before, and its
        node has a new lease since.
        """
        identity, wanted = session.identity, session.worker_tasks
        if is_owner(session):
            if resumed or rejoined:
                if not rejoined:
                    self._resumed_owners.add(session.session_id)
                registered = session.session_id in self._registered_owners
                self._join_owner(session, resumed=True, rejoined=rejoined, only_if_busy=not registered)
            return
        if identity.kind not in WORKER_KINDS and not session.task_id:
            return
        takes_pool = identity.kind is Kind.AGENT or (identity.kind is Kind.SERVICE and session.takes_any)
        capacity = min(wanted or self._capacity, self._capacity)
        worker = self._worker(session, pooled=takes_pool and wanted != 0, capacity=capacity, claims=session.numbered)
        joined = WorkerJoined(
            worker, resumed, session.task_id, session.token, session.lineage, rejoined, lambda: session.detached
        )
        number = self._writes.put(joined, heartbeat=Heartbeat(identity.text))
        if session.task_id:
            self._joins[session.session_id] = number

    def ended(self, session: Session) -> None:
        """Write for its tasks that a worker's session has ended. Never blocks."""
        self._reports.pop(session.session_id, None)
        self._claiming.discard(session.session_id)
        self._joins.pop(session.session_id, None)
        if self._forget_owner(session) or session.identity.kind in WORKER_KINDS or session.task_id:
            name, by_token = session.identity.text, bool(session.lineage)
            self._writes.put(
                WorkerLeft(name, session.session_id, session.finished, session.ended_by_gateway, by_token=by_token)
            )

    async def register_owner(self, session: Session) -> None:
        """Write a worker's row for a participant that is about to work on its own task."""
        if not is_owner(session):
            return
        number = self._registered_owners.get(session.session_id)
        if number is None:
            resumed = session.session_id in self._resumed_owners
            number = self._join_owner(session, resumed=resumed, rejoined=False, only_if_busy=False)
            self._registered_owners[session.session_id] = number
        await self._writes.wait_written(number)

    def _forget_owner(self, session: Session) -> bool:
        """Forget an ended session; return whether it may have a row in `task_workers`."""
        registered = self._registered_owners.pop(session.session_id, None) is not None
        resumed = session.session_id in self._resumed_owners
        self._resumed_owners.discard(session.session_id)
        return registered or resumed

    def _join_owner(self, session: Session, *, resumed: bool, rejoined: bool, only_if_busy: bool) -> int:
        worker = self._worker(session, pooled=False, capacity=1)
        joined = WorkerJoined(
            worker, resumed, rejoined=rejoined, has_ended=lambda: session.detached, only_if_busy=only_if_busy
        )
        return self._writes.put(joined, heartbeat=Heartbeat(session.identity.text))

    def _worker(self, session: Session, *, pooled: bool, capacity: int, claims: bool = False) -> Worker:
        identity = session.identity
        place = self._engine.nodes.node, identity.workspace, identity.implementation
        return Worker(identity.text, session.session_id, *place, pooled, live=0, capacity=capacity, claims=claims)

    def is_first_claim(self, session: Session) -> bool:
        """Return whether a CLAIM is the first of a client not known to send CLAIMs."""
        return not session.numbered and session.session_id not in self._claiming

    def claimed(self, session: Session) -> None:
        """Remember that a session's client has claimed a task."""
        if not session.detached:
            self._claiming.add(session.session_id)

    def reported(self, session: Session, report: pb.ProgressReport) -> None:
        """Write a worker's progress report as a heartbeat and an event. Never blocks.

        If the task has ended, or another worker has it, the report is no event. The worker is sent
        an error instead, and so learns of a cancellation. A `result` in the metadata becomes the
        task's when the worker completes it. A report with `_assignment` is of that assignment: it
        is late when the same worker was assigned the task anew.
        """
        if not report.task_id:
            return
        name, task_id = session.identity.text, storable(report.task_id)
        metadata = dict(report.metadata)
        assignment = metadata.pop(ASSIGNMENT, "")
        event = pb.TaskProgressEvent(
            state=report.state, progress=report.completion, message=report.summary, metadata=metadata
        )
        try:
            result = reported_result(metadata)
        except ResultError as error:
            _tell_lost(session, report, [str(error)])
            return
        lost: list[str] = []
        runs: list[int] = []
        """When the mutation was run, in ms; it runs again if its commit was not answered."""

        def mutation(tx: TaskTransaction) -> Program[None]:
            lost.clear()
            runs.append(tx.context.now_ms)
            task = yield from sessions.record_heartbeat(tx, name, task_id, assignment)
            if task is None:
                task = yield from task_rows.load(task_id)
                if task is None:
                    return
                if name not in (task.assigned_to, task.creator):
                    if (yield from task_rows.latest_epoch(task_id, name)) is not None:
                        lost.append(f"this assignment of task {task_id} is over: another worker has the task")
                    return
                if task.status in TERMINAL:
                    lost.append(f"task {task_id} has ended: it is {task.status.value}")
                    return
                if assignment and task.assigned_to == name and assignment != str(task.epoch):
                    lost.append(f"this assignment of task {task_id} is over: the task was assigned anew")
                    return
            if task.workflow and task.assigned_to == name:
                problem = yield from tx.context.workflows.used(tx, task, metadata)
                if problem:
                    lost.append(problem)
            if result is not None and task.assigned_to == name:
                yield from results.write(task_id, result)
                yield from tx.write(task, task.changed({"result_bytes": len(result.data)}), "")
            if len(runs) > 1:
                yield from tx.record_event_once(task, pb.TaskEvent(progress=event), runs[0])
            else:
                yield from tx.record_event(task, pb.TaskEvent(progress=event))

        number = self._writes.offer(
            mutation,
            lambda: _tell_lost(session, report, lost),
            heartbeat=Heartbeat(name, task_id),
            session_id=session.session_id,
            size=report.ByteSize(),
        )
        if number:
            self._reports[session.session_id] = number
        elif result is not None:
            text = f"the result in the report on task {task_id} was dropped, as too many reports wait: send it again"
            session.put(error_response(RequestError(Code.BACKPRESSURE, text), report.request_id))

    async def wait_joined(self, session: Session) -> None:
        """Wait until a session that a task token let in is assigned that task."""
        number = self._joins.get(session.session_id, 0)
        if number:
            await self._writes.wait_written(number)
            self._joins.pop(session.session_id, None)

    async def wait_written(self, session: Session) -> None:
        """Wait until the join of a session and its progress reports are in the database."""
        await self.wait_joined(session)
        number = self._reports.pop(session.session_id, 0)
        if number:
            await self._writes.wait_written(number)

    async def checkpoint_owner(self, identity: Identity, key: str) -> Identity | None:
        """Return the other worker whose checkpoint a hibernated task's worker may load."""
        if not key or identity.kind not in WORKER_KINDS:
            return None
        try:
            found = await self._engine.database.fetch(
                "SELECT a.worker FROM tasks t JOIN task_attempts a ON a.task_id = t.task_id WHERE t.holder = $1 "
                "AND t.holder <> '' AND t.checkpoint_key = $2 AND a.outcome = 'hibernated' ORDER BY a.epoch DESC LIMIT 1",
                identity.text,
                storable(key),
            )
        except StorageUnavailable:
            return None
        owner = Identity.parse(found[0][0], strict=False) if found else identity
        return owner if owner != identity and _may_replace(identity, owner) else None


def _tell_lost(session: Session, report: pb.ProgressReport, lost: Sequence[str]) -> None:
    if lost and not session.detached:
        session.put(error_response(RequestError(Code.INVALID_ARGUMENT, lost[0]), report.request_id))


def _may_replace(identity: Identity, other: Identity) -> bool:
    same_place = identity.workspace == other.workspace or "" in (identity.workspace, other.workspace)
    return identity.implementation == other.implementation and same_place
