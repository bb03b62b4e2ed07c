"""Handles `task_op`: operations on tasks such as CLAIM, COMPLETE (tasks.md 6.3).

    handle ──▶ OPERATIONS: which move? ──▶ operate: permission, refusals ──▶ TaskTransaction.apply

model/tasks/transitions.py says what each move does to a task.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Final, NamedTuple

import trio

from aether_trio.model.access import AccessLevel
from aether_trio.model.identity import Kind
from aether_trio.model.ids import IdFactory
from aether_trio.model.tasks import Mode, Move, MoveStep, Reason, RefusedMove, StoredStatus, TaskRow, Wait, decide
from aether_trio.model.tasks.form import FormError, check_match
from aether_trio.model.tasks.result import NO_RESULT, ResultError, ResultKind, TaskResult, read_result
from aether_trio.model.tasks.task import AGENT_STARTUP, WorkflowPart
from aether_trio.model.tasks.transitions import RULES, Decision
from aether_trio.model.text import shown, storable
from aether_trio.services.access import Authorizer
from aether_trio.services.tasks.engine import Engine
from aether_trio.services.tasks.handlers.permissions import (
    MANAGE,
    NOT_FOUND,
    WORK,
    Caller,
    is_party,
    may,
    may_be_given,
    waits_for,
)
from aether_trio.services.tasks.handlers.sanitize import reason
from aether_trio.services.tasks.handlers.sessions import TaskSessions
from aether_trio.services.tasks.protobuf import named, show
from aether_trio.services.tasks.transaction import (
    dead_messages,
    payloads,
    results,
    startup,
    states,
    task_rows,
    unused_inputs,
)
from aether_trio.services.tasks.transaction.dead_messages import DEAD_MESSAGE
from aether_trio.services.tasks.transaction.interface import Context, SentStep
from aether_trio.services.tasks.transaction.task_transaction import TaskTransaction
from aether_trio.services.tasks.transaction.worker_choice import may_not_serve
from aether_trio.session.session import Session
from aether_trio.storage.base import Alone, Execute, Fetch, Program, Row, StorageUnavailable, placeholders
from aether_trio.storage.outages import outage
from aether_trio.wire.pb import aether_pb2 as pb

Op = pb.TaskOperation

MAX_DEPENDENCIES: Final = 1_000
MAX_CIRCLE: Final = 10_000
"""Tasks that are read to find out whether tasks would wait for each other in a circle."""
CIRCLE_PART: Final = 50
"""Rows of these that one statement reads: each may name MAX_DEPENDENCIES tasks."""
MAX_TIMEOUT_MS: Final = 10 * 365 * 24 * 3600 * 1000
"""Ten years: longer waits might overflow a column when they are added to a time."""
MAX_WAKE_MS: Final = 2**62


class OperationRule(NamedTuple):
    """The status change (move) and the success message of one operation of `task_op`."""

    move: Move
    message: str
    needs_wait: bool = False
    """Whether the request must have a `wait_spec`."""
    needs_dependencies: bool = False
    """Whether the request must name tasks to wait for, which must be in the task's workspace."""


OPERATIONS: Final[Mapping[int, OperationRule]] = MappingProxyType(
    {
        Op.RETRY: OperationRule(Move.RETRY, "task queued for retry"),
        Op.CANCEL: OperationRule(Move.CANCEL, "task cancelled"),
        Op.COMPLETE: OperationRule(Move.COMPLETE, "task completed"),
        Op.FAIL: OperationRule(Move.FAIL, "task marked as failed"),
        Op.PAUSE: OperationRule(Move.PAUSE, "task paused", needs_wait=True),
        Op.WAIT_FOR: OperationRule(Move.PAUSE, "task waiting on dependencies", needs_dependencies=True),
        Op.RESUME: OperationRule(Move.RESUME, "task resumed"),
        Op.REJECT: OperationRule(Move.REJECT, "task rejected"),
        Op.CLAIM: OperationRule(Move.CLAIM, "task claimed"),
    }
)
"""The operations of the protocol. CONTRIBUTING.md says how to add one."""

JOIN_RETRIES_S: Final = (0.01, 0.05, 0.2, 0.5)
"""Pauses until the row of an agent that has just connected to another node is written."""

SEPARATE_MOVES: Final = frozenset({Move.CLAIM, Move.COMPLETE, Move.FAIL})
"""Moves of most workers on most tasks: they read and write one task and its worker."""

HOLDING_MOVES: Final = frozenset({Move.CLAIM, Move.RESUME, Move.PAUSE})
"""After these the caller may hold a task: an owner needs a row among the workers first."""


class OperationRequest(NamedTuple):
    """A participant's request for one operation on one task.

    `wait` belongs to PAUSE and WAIT_FOR; `checked`: its dependencies must be in the task's
    workspace. `number` is the assignment that the caller means, 0 for its latest. A PAUSE with the
    same `request_id` is the same PAUSE.
    """

    task_id: str
    move: Move
    reason: str = ""
    wait: Wait | None = None
    request_id: str = ""
    checked: bool = False
    number: int = 0
    result: TaskResult | None = None
    """What a COMPLETE says the task's result is."""
    first_claim: bool = False
    """Whether this is the first sign that the caller's client says when it begins a task."""
    step: SentStep | None = None
    """Which step of an execution a task is that is completed, if this node knows it."""


class OperationResult(NamedTuple):
    """The result of an operation on a task: the task's row, or why it is refused.

    `tx` is None when nothing was written; `task` is None when the caller may not know of the task.
    `needs`: nothing was done, and an access rule of this workspace has to allow it first, at the
    level `level`; without one `refusal` is the answer to a caller that may know of the task.
    """

    task: TaskRow | None = None
    tx: TaskTransaction | None = None
    refusal: str = ""
    needs: str = ""
    level: AccessLevel = AccessLevel.MANAGE


class TaskOperator:
    """Handles `task_op`: one operation of OPERATIONS on one task."""

    def __init__(
        self,
        engine: Engine,
        sessions: TaskSessions,
        ids: IdFactory,
        authorizer: Authorizer,
        has_checkpoint: Callable[[str, str], Awaitable[bool]],
        connected: Callable[[str], Awaitable[bool]],
    ) -> None:
        self._connected = connected
        self._engine = engine
        self._sessions = sessions
        self._ids = ids
        self._authorizer = authorizer
        self._has_checkpoint = has_checkpoint

    async def handle(self, session: Session, op: pb.TaskOperation) -> Sequence[pb.DownstreamMessage]:
        """Answer a `task_op`. A refusal is a sentence in the typed response."""
        message = pb.DownstreamMessage(task_op=pb.TaskOperationResponse(request_id=op.request_id))
        response = message.task_op
        try:
            await self._sessions.wait_written(session)
            if session.identity.kind is Kind.ORCHESTRATOR:
                # Its report on an agent is judged after the agent's begin or end is written.
                await self._engine.writes.flush()
                if op.op in (Op.COMPLETE, Op.FAIL) and self._engine.database.shared:
                    await self._wait_attached(named(storable(op.task_id))[0])
            await self._operate(session, op, response)
        except StorageUnavailable as error:
            response.error = str(outage(error))
        return [message]

    async def _wait_attached(self, task_id: str) -> None:
        """Wait until the agent of a start that has connected to another node is written."""
        for pause_s in JOIN_RETRIES_S:
            task = await self._engine.database.read_small(lambda: task_rows.load(task_id))
            starting = task is not None and task.status is StoredStatus.STARTING
            if task is None or not starting or not await self._connected(task.target):
                return
            await trio.sleep(pause_s)

    async def _operate(self, session: Session, op: pb.TaskOperation, response: pb.TaskOperationResponse) -> None:
        operation = OPERATIONS.get(op.op)
        if operation is None:
            response.error = f"unknown task operation {op.op}"
            return
        try:
            wait, given = read_wait(op), _read_result(op)
            if wait is not None:
                check_match(wait.input_match)
        except (FormError, ResultError) as error:
            response.error = str(error)
            return
        if operation.needs_wait and wait is None:
            response.error = "wait_spec is required"
            return
        if operation.needs_dependencies and (wait is None or not wait.depends_on):
            response.error = "wait_spec.depends_on is required"
            return
        if operation.move in HOLDING_MOVES:
            await self._sessions.register_owner(session)
        caller = Caller.of(session)
        task_id, number = named(storable(op.task_id))
        request = OperationRequest(
            task_id,
            operation.move,
            reason(op.reason),
            wait,
            op.request_id or self._ids.unique(),  # a transaction without an answer is run again
            checked=operation.needs_dependencies,
            number=number,
            result=given,
            first_claim=operation.move is Move.CLAIM and self._sessions.is_first_claim(session),
            step=self._engine.sent_step(task_id) if operation.move is Move.COMPLETE else None,
        )
        result = await self._run(caller, request)
        if result.needs:
            needed = WORK if RULES[request.move].by_worker else MANAGE
            if await may(self._authorizer, caller, result.needs, needed, result.level):
                manages = result.level is AccessLevel.MANAGE
                result = await self._run(replace(caller, allowed=manages, may_answer=True), request)
            if result.needs:
                what = f"task_op {Op.OpType.Name(op.op)}"
                self._engine.audit.denied(session, what, request.task_id, result.needs)
        if result.task is None:
            response.error = NOT_FOUND
        elif result.refusal:
            response.error = result.refusal
        else:
            if request.first_claim:
                self._sessions.claimed(session)
            response.success = True
            response.message = operation.message
            show(response.task, result.task, numbered=session.numbered)

    async def _run(self, caller: Caller, request: OperationRequest) -> OperationResult:
        if request.wait is not None and request.wait.reason == Reason.HIBERNATION:
            task = await self._engine.database.read_small(lambda: task_rows.load(request.task_id))
            if task is not None and (
                problem := await self._checkpoint_problem(task, caller, request.wait.checkpoint_key)
            ):
                return OperationResult(task, refusal=f"{problem} before the task hibernates")
        if request.result is not None and request.result.kind is ResultKind.CHECKPOINT:
            task = await self._engine.database.read_small(lambda: task_rows.load(request.task_id))
            if task is not None and (
                problem := await self._checkpoint_problem(task, caller, request.result.data.decode())
            ):
                return OperationResult(task, refusal=f"{problem} before the task is completed with it")
        runs: list[int] = []

        def program(context: Context) -> Program[OperationResult]:
            runs.append(context.now_ms)
            return operate(context, caller, request, runs[0] if len(runs) > 1 else 0)

        key = request.task_id if request.move in SEPARATE_MOVES else ""
        also = request.step.execution_id if request.step is not None else ""
        return await self._engine.run_program(program, lambda result: result.tx, key=key, also=also)

    async def _checkpoint_problem(self, task: TaskRow, caller: Caller, key: str) -> str:
        """Return why a task's worker cannot name this checkpoint; "" if it can."""
        # Only the worker learns which checkpoints it has; others are refused for other reasons.
        if task.assigned_to != caller.name or not key or key == task.checkpoint_key == states.key_of(task.task_id):
            return ""
        if await self._has_checkpoint(task.assigned_to, key):
            return ""
        return f"checkpoint {key!r} of {task.assigned_to} not found: save it"


def operate(context: Context, caller: Caller, request: OperationRequest, since_ms: int = 0) -> Program[OperationResult]:
    """Apply a participant's operation on a task in one transaction, if it may.

    `since_ms`: an earlier run began at that moment, and it is not known whether it was committed.
    """
    tx = TaskTransaction(context)
    if request.step is None:
        task = yield from tx.load(request.task_id)
    else:
        task = yield from context.workflows.load_step(tx, request.task_id, request.step)
    if task is None:
        return OperationResult()
    if not _is_separate(task, caller, request.move):
        if context.shared:
            if not (yield from _ends_apart(context, tx, task, caller, request)):
                yield Alone()
        elif context.live_rows is not None and (_is_tied(task) or task.workflow != WorkflowPart.STEP):
            # What ends with the step of an execution is written by `tx` alone.
            context.live_rows.forget()
    epoch: int | None = task.epoch
    if caller.name != task.assigned_to:
        epoch = yield from task_rows.latest_epoch(task.task_id, caller.name)
    if request.number and epoch is not None:
        # A participant of the same name may have the task by now, or this request may be late.
        epoch = request.number
    # A worker that has lost the task is told so; that gives it no right to cancel the task.
    had_it = epoch is not None and RULES[request.move].by_worker
    its_turn = RULES[request.move].by_worker and (
        task.ended_by == caller.name
        or (waits_for(task, caller) and not may_not_serve(context, caller.name, caller.identity.workspace, task))
    )
    if not caller.allowed:
        party = is_party(task, caller)
        wait = None if had_it else _wait_for_principal(task, request.move)
        if wait is not None and not wait.is_expected(caller.identity):
            why = f"the task waits for {shown(wait.expected_principal)}"
            return OperationResult(task if party else None, refusal=why, needs=task.workspace)
        if not (party or had_it or its_turn):
            answers = wait is not None and request.move is Move.RESUME
            if since_ms and caller.may_answer and (yield from _was_made(tx, task, request, since_ms)):
                return OperationResult(task, tx)
            if not (answers and caller.may_answer):
                level = AccessLevel.READWRITE if answers else AccessLevel.MANAGE
                return OperationResult(needs=task.workspace, level=level)
    if since_ms and (yield from _was_made(tx, task, request, since_ms)):
        return OperationResult(task, tx)
    refusal = _check_part(task, request.move)
    refusal = refusal or _check_claim(task, caller, request) or _check_resume(task, caller, request)
    if not refusal and request.move is Move.RETRY and task.workflow:
        refusal = yield from context.workflows.retry_problem(task)
    if refusal or (refusal := (yield from _check_wait(tx, task, caller, request))):
        return OperationResult(task, refusal=refusal)
    present = True
    if request.move is Move.RESUME and task.assigned_to:
        present = yield from tx.worker_is_present(task)
    pause_key = _pause_key(task, caller, request, epoch)
    wait = request.wait
    if wait is not None and request.move is Move.PAUSE:
        wait = wait.named(task.events, pause_key)
    facts = tx.facts(
        caller.name,
        caller_epoch=epoch,
        reason=request.reason,
        wait=wait,
        pause_key=pause_key,
        present=present,
        result_bytes=NO_RESULT if request.result is None else len(request.result.data),
    )
    if (
        request.result is not None
        and request.result.kind is ResultKind.CHECKPOINT
        and caller.name != task.assigned_to
        and isinstance(decide(task, request.move, facts), MoveStep)
    ):
        # It would be the worker's checkpoint, which those who see the task would read.
        return OperationResult(task, refusal="only the worker of a task can give it a checkpoint as its result")
    if (
        request.wait is not None
        and isinstance(decide(task, request.move, facts), MoveStep)
        and (circle := (yield from _check_circle(tx, task, request.wait)))
    ):
        return OperationResult(task, refusal=circle)
    decision: Decision | None = None
    if task.category == DEAD_MESSAGE and request.move is Move.RETRY:
        payload = yield from payloads.load(task.task_id)
        decision = yield from dead_messages.requeue(tx, task, payload, caller.name)
    elif task.status is StoredStatus.DLQ and request.move is Move.CANCEL:
        decision = yield from dead_messages.discard(tx, task, caller.name)
    elif task.task_type == AGENT_STARTUP:
        if refusal := startup.refusal_of(task, request.move, caller.name, epoch):
            return OperationResult(task, refusal=refusal)
        if request.result is not None and caller.identity.kind is Kind.ORCHESTRATOR:
            return OperationResult(task, refusal="the start of an agent has no result: only its agent may give it one")
        if epoch is not None and request.number and not (yield from startup.was_given(task, caller.name, epoch)):
            return OperationResult(task, refusal=f"this assignment is over: number {epoch} was not yours")
        if request.move is Move.FAIL and epoch is not None:
            decision = yield from startup.report_failure(tx, task, caller.name, epoch, request.reason)
        elif request.move is Move.COMPLETE and epoch is not None:
            decision = yield from startup.report_done(tx, task, caller.name, epoch)
        elif request.move is Move.REJECT and epoch is not None:
            decision = yield from startup.give_back(tx, task, caller.name, epoch)
        elif request.move is Move.CLAIM and epoch is not None:
            decision = startup.confirm_launch(task, caller.name, epoch)
    if decision is None:
        if request.result is not None:
            tx.results[task.task_id] = request.result
        decision = yield from tx.apply(task, request.move, facts)
    if isinstance(decision, RefusedMove):
        # A report that is refused may have been noted (startup.report_failure).
        return OperationResult(task, tx if tx.written else None, refusal=decision.text)
    if request.result is not None and request.move is Move.COMPLETE:
        if isinstance(decision, MoveStep):
            yield from results.write(task.task_id, request.result, small=context.small)
        elif (yield from results.load(task)) != request.result:
            return OperationResult(task, refusal="the task was completed with another result")
    if request.first_claim:
        yield Execute("UPDATE task_workers SET claims = 1 WHERE identity = $1", (caller.name,))
    after = decision.after if isinstance(decision, MoveStep) else task
    if after.status is StoredStatus.PENDING:  # or what has become of it by now
        after = (yield from task_rows.load(task.task_id)) or task
    if after.status is StoredStatus.WAITING_DEPENDENCY and request.wait is not None:
        yield from _wait_for(tx, after, request.wait)
        after = (yield from task_rows.load(task.task_id)) or after
    if request.move is Move.PAUSE and after.status is StoredStatus.WAITING_AUTHORITY and request.wait is not None:
        yield from context.grants.begin_wait(tx, after, storable(request.wait.authority_request_id))
        after = (yield from task_rows.load(task.task_id)) or after
    if request.move is Move.PAUSE and after.status is StoredStatus.WAITING_INPUT and (yield from _use_input(tx, after)):
        after = (yield from task_rows.load(task.task_id)) or after
    return OperationResult(after, tx)


def _wait_for_principal(task: TaskRow, move: Move) -> Wait | None:
    """Return the wait for a certain principal that a move would end or replace."""
    wait = task.waits_for if move in (Move.RESUME, Move.PAUSE) else None
    return wait if wait is not None and wait.expected_principal else None


def _is_separate(task: TaskRow, caller: Caller, move: Move) -> bool:
    """Return whether a worker's move of its task leaves other tasks' rows alone.

    But for the waiting tasks that its worker is assigned next.
    """
    tied = _is_tied(task) or (task.workflow and not (move is Move.CLAIM and task.workflow == WorkflowPart.STEP))
    return _is_mine(task, caller) and not tied and task.task_type != AGENT_STARTUP


def _ends_apart(
    context: Context, tx: TaskTransaction, task: TaskRow, caller: Caller, request: OperationRequest
) -> Program[bool]:
    """Return whether a worker's COMPLETE of a step leaves other tasks' rows alone.

    But for those of its execution, whose id is the program's second key.
    """
    if request.move is not Move.COMPLETE or task.workflow != WorkflowPart.STEP:
        return False
    if not _is_mine(task, caller) or _is_tied(task) or task.task_type == AGENT_STARTUP:
        return False
    return (yield from context.workflows.ends_apart(tx, task))


def _is_mine(task: TaskRow, caller: Caller) -> bool:
    return task.assigned_to == caller.name and task.status in (StoredStatus.ASSIGNED, StoredStatus.RUNNING)


def _is_tied(task: TaskRow) -> bool:
    """Return whether the end of a task changes more than workflows do."""
    return bool(task.has_children or task.awaited or task.tokens or task.input_offset or task.grants)


def _pause_key(task: TaskRow, caller: Caller, request: OperationRequest, epoch: int | None) -> str:
    """Return a key that is equal for repeated requests of the same PAUSE; else ""."""
    if request.move is not Move.PAUSE or request.wait is None or not request.request_id:
        return ""
    number = task.epoch if epoch is None else epoch
    text = "\0".join((caller.name, str(number), request.request_id, request.wait.in_order()))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _use_input(tx: TaskTransaction, task: TaskRow) -> Program[bool]:
    """Wake a task if an input that it waits for is kept; return whether one was."""
    if not task.input_offset or task.waits_for is None:
        return False
    kept = yield from unused_inputs.kept(task.task_id)
    tx.charge(len(kept))
    for one in kept:
        if task.waits_for.takes(one.metadata, one.sender):
            yield from unused_inputs.use(task.task_id, one.offset)
            yield from unused_inputs.note_used(task, one)
            yield from tx.wake(task)
            return True
    return False


def _was_made(tx: TaskTransaction, task: TaskRow, request: OperationRequest, since_ms: int) -> Program[bool]:
    """Return whether a task's events show that an earlier run of the operation did it."""
    wanted = _LEADS_TO.get(request.move)
    if wanted is None:
        return False
    for event in (yield from tx.events_since(task.task_id, since_ms)):
        changed = event.status_changed
        if event.HasField("status_changed") and changed.to_status in wanted:
            return request.move is not Move.FAIL or changed.reason == (request.reason or "task failed")
    return False


_LEADS_TO: Final[Mapping[Move, frozenset[int]]] = MappingProxyType(
    {
        Move.RETRY: frozenset({pb.TASK_STATUS_QUEUED}),
        Move.RESUME: frozenset({pb.TASK_STATUS_QUEUED, pb.TASK_STATUS_RUNNING}),
        Move.FAIL: frozenset({pb.TASK_STATUS_FAILED}),
    }
)
"""The statuses in the events of moves after which a task may change again at once."""


def _check_claim(task: TaskRow, caller: Caller, request: OperationRequest) -> str:
    """Return why a caller may not CLAIM a pool's task; "" if it may."""
    if request.move is not Move.CLAIM or task.status is not StoredStatus.PENDING or task.mode is not Mode.POOL:
        return ""
    if may_be_given(task, caller.identity):
        return ""
    if task.task_type == AGENT_STARTUP:
        return "an agent's start is assigned to an orchestrator only"
    return f"the task is for workers of {task.target_implementation}"


def _check_part(task: TaskRow, move: Move) -> str:
    """Return why a part of a workflow may not be moved by a client; else ""."""
    if task.workflow & WorkflowPart.RUN and move not in (Move.CANCEL, Move.RETRY):
        return f"an execution of a workflow moves with its steps: {move.value} is for tasks of workers"
    if task.workflow & WorkflowPart.QUESTION and move is not Move.CANCEL:
        return f"the task is a question to a person: answer it, or cancel it; {move.value} is for tasks of workers"
    runs = task.workflow & (WorkflowPart.RUN | WorkflowPart.FUNCTION)
    if task.workflow & WorkflowPart.STEP and not runs and move is Move.RETRY and task.is_final:
        return f"the task is a step of execution {task.parent_task_id}: retry the execution"
    return ""


def _check_resume(task: TaskRow, caller: Caller, request: OperationRequest) -> str:
    """Return why RESUME is refused: by a late block, or of a question; else ""."""
    if request.move is not Move.RESUME:
        return ""
    if request.number and request.number != task.epoch:
        return f"this assignment is over: the task was assigned anew ({task.epoch}, yours was {request.number})"
    if task.status is not StoredStatus.WAITING_INPUT:
        return ""
    wait = task.waits_for
    if wait is None or wait.form is None or caller.name == task.assigned_to:
        return ""
    return "the task waits for the answer to a question: send it an input whose decision is approve or reject"


def _check_wait(tx: TaskTransaction, task: TaskRow, caller: Caller, request: OperationRequest) -> Program[str]:
    """Return why a task may not begin to wait as PAUSE or WAIT_FOR asks; "" if it may."""
    wait = request.wait
    if request.move is not Move.PAUSE or wait is None:
        return ""
    if len(wait.depends_on) > MAX_DEPENDENCIES:
        return f"a task may wait for at most {MAX_DEPENDENCIES} others"
    if task.task_id in wait.depends_on:
        return "a task cannot wait for itself"
    if wait.reason == Reason.HIBERNATION and not task.assigned_to:
        return "a task without a worker cannot hibernate"
    if wait.reason == Reason.HIBERNATION and caller.name != task.assigned_to:
        return "only the worker of a task can hibernate it: the next worker goes on from its checkpoint"
    if request.checked:
        tx.charge(len(wait.depends_on))
        for task_id in wait.depends_on:
            rows_found: list[Row] = yield Fetch("SELECT workspace FROM tasks WHERE task_id = $1", (task_id,))
            if not rows_found or rows_found[0][0] != task.workspace:
                return f"dependency {task_id} not found"
    return ""


def _check_circle(tx: TaskTransaction, task: TaskRow, wait: Wait) -> Program[str]:
    """Return why a task would wait for its own end in a circle; "" if it would not.

    The rows of waiting tasks say what they wait for. A task for which no other has ever waited is
    in no circle, and costs no statement here.
    """
    if not task.awaited or wait.status is not StoredStatus.WAITING_DEPENDENCY:
        return ""
    via = {task_id: task_id for task_id in wait.depends_on}
    ahead = list(via)
    while ahead:
        part, ahead = ahead[:CIRCLE_PART], ahead[CIRCLE_PART:]
        tx.charge(len(part))
        marks = placeholders(len(part), first=3)
        found: list[Row] = yield Fetch(
            f"SELECT task_id, wait FROM tasks WHERE workspace = $1 AND status = $2 AND task_id IN ({marks})",  # noqa: S608
            (task.workspace, StoredStatus.WAITING_DEPENDENCY.value, *part),
        )
        for waiting_id, text in found:
            for task_id in Wait.from_json(text).depends_on:
                if task_id == task.task_id:
                    return f"{via[waiting_id]} waits for this task, itself or through others: neither would ever go on"
                if task_id not in via:
                    via[task_id] = via[waiting_id]
                    ahead.append(task_id)
            if len(via) > MAX_CIRCLE:
                return f"the task would wait, itself or through others, for more than {MAX_CIRCLE} tasks"
    return ""


def _wait_for(tx: TaskTransaction, task: TaskRow, wait: Wait) -> Program[None]:
    """Write which tasks a task waits for; wake it if all of them have ended."""
    yield Execute("DELETE FROM task_dependents WHERE task_id = $1", (task.task_id,))
    if (yield from tx.add_dependencies(task, wait)):
        yield from tx.wake(task)


def read_wait(op: pb.TaskOperation) -> Wait | None:
    """Convert the wait_spec of a PAUSE or WAIT_FOR to a Wait; None without one."""
    if not op.HasField("wait_spec") or op.op == Op.COMPLETE:
        return None
    spec = op.wait_spec
    asleep = spec.hibernation
    return Wait(
        reason=Reason.DEPENDENCY if op.op == Op.WAIT_FOR else int(spec.reason),
        expected_principal=spec.expected_principal,
        input_match=dict(spec.input_match),
        authority_request_id=spec.authority_request_id,
        depends_on=tuple(storable(task_id) for task_id in spec.depends_on if task_id),
        wake_on_any=spec.wake_on_any,
        timeout_ms=min(max(spec.timeout_ms, 0), MAX_TIMEOUT_MS),
        wake_ms=min(max(spec.scheduled_wake_unix_ms, 0), MAX_WAKE_MS),
        checkpoint_key=storable(asleep.checkpoint_key),
        resume_session_id=storable(asleep.resume_session_id),
        wake_event_types=tuple(asleep.wake_event_types),
        escalation=asleep.escalation_policy,
    )


def _read_result(op: pb.TaskOperation) -> TaskResult | None:
    """Return the result that a COMPLETE carries; None without one. Raises ResultError."""
    return read_result(op.wait_spec.input_match) if op.op == Op.COMPLETE and op.HasField("wait_spec") else None
