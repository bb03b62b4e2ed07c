"""Operations on workflows: one function for each number of WorkflowOperation.

Wire, command line and REST all call `perform`. The numbers up to 26 are the reference's (tasks.md
6.6); those from 100 are ours, in the open enum of the protocol. A thing that the caller may not see
is answered like one that does not exist.

READ in a workspace is enough to list and get; READWRITE to define, run, signal, answer, cancel and
retry. What is defined acts for the participant that has defined it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, Final, Protocol

from aether_trio.model.access import AccessLevel
from aether_trio.model.identity import IdentityError, check_token
from aether_trio.model.ids import IdFactory
from aether_trio.model.limits import MIB
from aether_trio.model.tasks import Move
from aether_trio.model.tasks.form import APPROVE, CHOICE, DECISION, REJECT, TEXT
from aether_trio.model.tasks.task import WorkflowPart
from aether_trio.model.text import shown
from aether_trio.model.workflows.definition import Graph, Json
from aether_trio.model.workflows.go_names import go_time
from aether_trio.model.workflows.happenings import (
    CancelAsked,
    Happening,
    PauseAsked,
    ResumeAsked,
    SignalReceived,
    StepPlace,
)
from aether_trio.model.workflows.interpreter import signal_problem
from aether_trio.model.workflows.keys import place_key
from aether_trio.model.workflows.state import State
from aether_trio.services.access.changes import with_caveat
from aether_trio.services.tasks.engine import Engine
from aether_trio.services.tasks.transaction import task_rows, unused_inputs
from aether_trio.services.tasks.transaction.interface import Context
from aether_trio.services.tasks.transaction.task_transaction import TaskTransaction
from aether_trio.services.tasks.transaction.unused_inputs import TaskInput
from aether_trio.services.workflows.actions.performer import (
    KeyReused,
    find_key,
    move_key,
    operation_key,
    request_hash,
    take_key,
)
from aether_trio.services.workflows.documents.compilation_thread import compile_in_thread
from aether_trio.services.workflows.documents.json_thread import SMALL_BYTES, in_json_thread
from aether_trio.services.workflows.documents.json_values import (
    JsonError,
    write_entry,
    write_json,
    write_list,
    write_object,
)
from aether_trio.services.workflows.executions import budgets, execution_rows
from aether_trio.services.workflows.executions.advancing import Executions
from aether_trio.services.workflows.executions.execution_rows import ExecutionRow
from aether_trio.services.workflows.executions.execution_view import execution_view, listed_execution
from aether_trio.services.workflows.executions.functions import FUNCTION, CommandError
from aether_trio.services.workflows.executions.new_executions import QUEUED, Begin, StartRefused
from aether_trio.services.workflows.executions.turns import read_state
from aether_trio.services.workflows.flow import flow_rows
from aether_trio.services.workflows.flow.flow_stops import stop_queued
from aether_trio.services.workflows.requests.applying import APPLY
from aether_trio.services.workflows.requests.asked import (
    OperationAnswer,
    OperationAsked,
    OperationError,
    WorkspaceAccess,
    is_number,
    page_answer,
)
from aether_trio.services.workflows.requests.made_operations import MadeOperation
from aether_trio.services.workflows.requests.reach import within_reach
from aether_trio.services.workflows.schedules.schedule_operations import PAUSE_SCHEDULE, RESUME_SCHEDULE
from aether_trio.services.workflows.stored import definitions
from aether_trio.services.workflows.stored.definitions import EVERYWHERE, StoredDefinition
from aether_trio.session.session import Session
from aether_trio.storage.base import MissedWriteError, Program
from aether_trio.wire.pb import aether_pb2 as pb

Op = pb.WorkflowOperation

RUN: Final = 100
SIGNAL: Final = 101
PAUSE: Final = 102
RESUME: Final = 103
RETRY: Final = 104
HISTORY: Final = 105
ANSWER: Final = 106
"""Numbers of our operations; docs/wire.md lists them."""

DEFINING: Final = frozenset(
    {
        Op.CREATE_WORKFLOW, Op.DELETE_WORKFLOW, Op.CREATE_RULE, Op.UPDATE_RULE, Op.DELETE_RULE, Op.CREATE_SCHEDULE,
        Op.UPSERT_SCHEDULE, Op.DELETE_SCHEDULE, Op.CREATE_STATE_MACHINE, Op.DELETE_STATE_MACHINE, APPLY,
        PAUSE_SCHEDULE, RESUME_SCHEDULE,
    }
)  # fmt: skip
"""Operations that may change which events of the gateway are taken."""
BUDGET: Final = StepPlace("budget")
"""How an answer names the question of a budget."""

MAX_DATA_BYTES: Final = 1 * MIB
PAGE: Final = 100
HISTORY_PAGE: Final = 500
MAX_SIGNAL_BYTES: Final = 64 * 1024
RUNNING: Final = (QUEUED, "running", "paused", "compensating", "cancelling")


class OperationFamily(Protocol):
    """Operations of another file, by their numbers."""

    @property
    def table(self) -> Mapping[int, Callable[[OperationAsked], Awaitable[OperationAnswer]]]: ...


ReadWorkflow = Callable[[dict[str, Any], str, int], tuple[StoredDefinition, Graph, list[str]]]
"""Checks a workflow's document for an owner, at a moment.

Returns what is stored, its graph, and the keys that were ignored.

Raises ValueError.
"""


class WorkflowOperations:
    """Performs operations on workflows."""

    def __init__(
        self,
        engine: Engine,
        executions: Executions,
        access: WorkspaceAccess,
        ids: IdFactory,
        read_workflow: ReadWorkflow,
        spread: Callable[[], Awaitable[str]],
        *others: OperationFamily,
        strict: bool = True,
    ) -> None:
        """`spread` waits until all nodes know what is committed; it says which do not."""
        self._spread = spread
        self._engine = engine
        self._executions = executions
        self._access = access
        self._ids = ids
        self._read_workflow = read_workflow
        self._strict = strict
        self._table: Final[Mapping[int, Callable[[OperationAsked], Awaitable[OperationAnswer]]]] = MappingProxyType(
            {
                Op.LIST_WORKFLOWS: self._list_workflows,
                Op.GET_WORKFLOW: self._get_workflow,
                Op.CREATE_WORKFLOW: self._create_workflow,
                Op.DELETE_WORKFLOW: self._delete_workflow,
                Op.LIST_EXECUTIONS: self._list_executions,
                Op.GET_EXECUTION: self._get_execution,
                Op.CANCEL_EXECUTION: self._cancel_execution,
                RUN: self._run,
                SIGNAL: self._signal,
                PAUSE: self._pause,
                RESUME: self._resume,
                RETRY: self._retry,
                HISTORY: self._history,
                ANSWER: self._answer,
                **{number: perform for family in others for number, perform in family.table.items()},
            }
        )

    async def operate(self, session: Session, op: pb.WorkflowOperation) -> pb.WorkflowResponse:
        """Perform an operation as it came on the wire. Raises StorageUnavailable."""
        request = OperationAsked(session, op.op, op.id, op.secondary_id, op.workspace, op.data, op.status_filter)
        try:
            answer = await self.perform(request)
        except OperationError as error:
            return pb.WorkflowResponse(error=str(error))
        data = answer.data
        if not isinstance(data, bytes):
            data = b"" if data is None else write_json(data)
        return pb.WorkflowResponse(success=True, data=data, message=answer.message, total_count=answer.total)

    async def perform(self, request: OperationAsked) -> OperationAnswer:
        """Perform an operation. Raises OperationError and StorageUnavailable."""
        operation = self._table.get(request.op)
        if operation is None:
            raise OperationError(f"unknown workflow operation {request.op}")
        if len(request.data) > MAX_DATA_BYTES:
            raise OperationError(f"data has {len(request.data)} bytes; at most {MAX_DATA_BYTES} are allowed")
        for name in ("id", "secondary_id", "status"):
            if "\0" in getattr(request, name):
                raise OperationError(f"{name} has a zero byte")
        if request.workspace not in ("", EVERYWHERE):
            try:
                check_token(request.workspace, "workspace", strict=self._strict)
            except IdentityError as error:
                raise OperationError(str(error)) from None
        answer = await operation(request)
        if request.op in DEFINING and (caveat := await self._spread()):
            return answer._replace(message=with_caveat(answer.message, caveat))
        return answer

    # -- definitions -------------------------------------------------------------------------------

    async def _list_workflows(self, request: OperationAsked) -> OperationAnswer:
        workspaces = await self._access.visible(request)
        page = await request.page()
        place = page.place()
        found = await self._engine.database.read(
            lambda: definitions.newest_of_workspaces(workspaces, page.limit + 1, place)
        )
        return page_answer(found, page, shown_definition, lambda one: place_key(one.workspace, one.id))

    async def _get_workflow(self, request: OperationAsked) -> OperationAnswer:
        stored = await self._find(request, AccessLevel.READ)
        return OperationAnswer(shown_definition(stored))

    async def _find(self, request: OperationAsked, level: AccessLevel) -> StoredDefinition:
        workspace = request.own_workspace
        stored = await self._engine.database.read_small(
            lambda: definitions.newest(workspace, request.id, also_inactive=level is AccessLevel.READ)
        )
        if stored is None or await self._access.problem(request.session, stored.workspace, AccessLevel.READ):
            raise OperationError(f"workflow {shown(request.id)} not found in workspace {shown(workspace)}")
        if level > AccessLevel.READ:
            await self._access.need(request.session, stored.workspace, level)
        return stored

    async def _create_workflow(self, request: OperationAsked) -> OperationAnswer:
        document = await request.document()
        if request.workspace and "workspace" not in {key.lower() for key in document}:
            document["workspace"] = request.workspace
        try:
            owner, now_ms = request.session.identity.text, self._engine.clock.now_ms()
            stored, graph, ignored = await compile_in_thread(
                partial(self._read_workflow, document, owner, now_ms), len(request.data)
            )
        except ValueError as error:
            raise OperationError(str(error)) from None
        await within_reach(self._access, request.session, graph)
        made = await self._engine.result(lambda _: _put(stored), known=True)
        if made is None:
            raise OperationError(
                f"version {stored.version} of workflow {stored.id} exists with other content: give another version"
            )
        message = f"workflow {made.id} version {made.version}"
        if ignored:
            message += f"; unknown keys were ignored: {', '.join(map(shown, ignored))}"
        return OperationAnswer(shown_definition(made), message)

    async def _delete_workflow(self, request: OperationAsked) -> OperationAnswer:
        stored = await self._find(request, AccessLevel.READWRITE)
        now_ms = self._engine.clock.now_ms()

        def page(tx: TaskTransaction) -> Program[None]:
            yield from definitions.deactivate(stored.workspace, stored.id, now_ms)
            yield from stop_queued(tx, flow_rows.WORKFLOW, stored.workspace, stored.id)

        await self._engine.result(page)
        return OperationAnswer(message=f"workflow {stored.id} is deactivated in all versions")

    # -- executions --------------------------------------------------------------------------------

    async def _run(self, request: OperationAsked) -> OperationAnswer:
        """Start an execution; `secondary_id` is an idempotency key.

        With a key that was used the answer is that of the first request, if that had the same
        input, also if the execution has ended or the workflow is deleted.
        """
        workspace, name = request.own_workspace, request.id
        await self._access.need(request.session, workspace)
        begin = await _begin(request)
        task_id = self._ids.dated(self._engine.clock.now_ms())
        key = operation_key("run", workspace, name, request.secondary_id) if request.secondary_id else b""
        same = await _hash(request, begin.input) if key else b""
        words = [""]
        made = MadeOperation(task_id)
        known = self._executions.definitions
        remembered = known.remembered(workspace, name)

        def program(context: Context) -> Program[tuple[TaskTransaction, str]]:
            tx = TaskTransaction(context)
            if taken_in := (yield from made.subject()):
                return tx, taken_in
            if key and (other := (yield from take_key(tx, key, task_id, same))):
                return tx, other
            stored = remembered
            if stored is None:
                stored = yield from definitions.newest(workspace, name)
                if stored is None:
                    raise OperationError(f"workflow {shown(name)} not found in workspace {shown(workspace)}")
                if context.shared:
                    known.remember(workspace, name, stored)
            run_id = yield from self._executions.start(tx, stored, workspace, begin, task_id=task_id)
            if remembered is not None:
                yield from definitions.check_newest(remembered, workspace, task_id)
            if run_id != task_id:
                yield from made.note(tx, run_id)
            if key and run_id != task_id:
                yield from move_key(key, run_id)
            row = None if self._executions.begins(tx, run_id) else (yield from execution_rows.load(run_id))
            if row is not None and row.status == QUEUED:
                words[0] = "waits for its turn" if run_id == task_id else "takes it in, and waits for more"
            return tx, run_id

        async def start() -> str:
            separate = "" if key else task_id
            _, run_id = await self._engine.run_program(program, lambda result: result[0], key=separate, known=True)
            return run_id

        try:
            try:
                execution_id = await start()
            except (MissedWriteError, StartRefused):
                if remembered is None:
                    raise
                # There may be a newer version, which a refused start has not looked for.
                known.forget(workspace, name)
                remembered = None
                execution_id = await start()
        except (StartRefused, KeyReused) as error:
            raise OperationError(str(error)) from None
        text = "has begun" if execution_id == task_id else "had begun with this key"
        return OperationAnswer(
            {"execution_id": execution_id}, f"execution {execution_id} of workflow {name} {words[0] or text}"
        )

    async def _list_executions(self, request: OperationAsked) -> OperationAnswer:
        """List executions, the newest first; the place of one is its id."""
        workspaces, page = await self._access.visible(request), await request.page(PAGE)
        statuses: tuple[str, ...] = RUNNING if request.status in ("", "running") else (request.status,)
        if request.status == "all":
            statuses = ()
        workflow = request.id

        def program() -> Program[list[ExecutionRow] | None]:
            before = None
            if page.after:
                started_ms = yield from execution_rows.started(page.after)
                if started_ms is None:
                    return None
                before = started_ms, page.after
            return (yield from execution_rows.newest(workspaces, statuses, workflow, page.limit + 1, before))

        found = await self._engine.database.read(program)
        if found is None:
            raise page.wrong()
        return page_answer(found, page, listed_execution, lambda row: row.execution_id)

    async def _execution(self, request: OperationAsked, level: AccessLevel) -> ExecutionRow:
        row = await self._engine.database.read_small(lambda: execution_rows.load(request.id))
        if row is None or await self._access.problem(request.session, row.workspace, AccessLevel.READ):
            raise OperationError(f"execution {shown(request.id)} not found")
        if level > AccessLevel.READ:
            await self._access.need(request.session, row.workspace, level)
        return row

    async def _get_execution(self, request: OperationAsked) -> OperationAnswer:
        """Show an execution; `secondary_id`: only STEP, or its item STEP[ITEM]."""
        row = await self._execution(request, AccessLevel.READ)
        only = place_from(request.secondary_id) if request.secondary_id else None
        view = await self._engine.database.read(lambda: execution_view(row, only))
        found = await in_json_thread(partial(view.write, only), view.size)
        if found is None:
            raise OperationError(f"execution {row.execution_id} has no step {shown(request.secondary_id)}")
        return OperationAnswer(found)

    async def _cancel_execution(self, request: OperationAsked) -> OperationAnswer:
        row = await self._execution(request, AccessLevel.READWRITE)
        by = request.session.identity.text
        if row.kind == FUNCTION and row.status != QUEUED:
            await self._happen(row, lambda at_ms: CancelAsked(at_ms=at_ms, reason=request.secondary_id, by=by))
            return OperationAnswer(message=f"the function of execution {row.execution_id} is told to end")
        problem = await self._move(row.execution_id, Move.CANCEL, by)
        if problem:
            raise OperationError(problem)
        return OperationAnswer(message=f"execution {row.execution_id} is cancelled")

    async def _retry(self, request: OperationAsked) -> OperationAnswer:
        row = await self._execution(request, AccessLevel.READWRITE)
        problem = await self._move(row.execution_id, Move.RETRY, request.session.identity.text)
        if problem:
            raise OperationError(problem)
        return OperationAnswer(message=f"execution {row.execution_id} goes on with the steps that have failed")

    async def _move(self, task_id: str, move: Move, by: str) -> str:
        """Move the task of an execution; return why that is refused, or ""."""
        made = MadeOperation(self._ids.unique())

        def program(context: Context) -> Program[tuple[TaskTransaction, str]]:
            tx = TaskTransaction(context)
            if (yield from made.subject()):
                return tx, ""
            task = yield from task_rows.load(task_id)
            if task is None:
                return tx, f"execution {task_id} not found"
            if move is Move.RETRY and (problem := (yield from execution_rows.retry_problem(task_id))):
                return tx, problem
            if move is Move.CANCEL and task.is_final:
                return tx, f"execution {task_id} has ended: it is {task.status.value}"
            decision = yield from tx.apply(task, move, tx.facts(by))
            if problem := getattr(decision, "text", ""):
                return tx, problem
            yield from made.note(tx, task_id)
            return tx, ""

        _, problem = await self._engine.run_program(program, lambda result: result[0])
        return problem

    async def _signal(self, request: OperationAsked) -> OperationAnswer:
        """Send a signal; `status` is an idempotency key: with it the signal comes once."""
        row = await self._execution(request, AccessLevel.READWRITE)
        if not request.secondary_id:
            raise OperationError("secondary_id is the name of the signal")
        if len(request.data) > MAX_SIGNAL_BYTES:
            raise OperationError(f"a signal has at most {MAX_SIGNAL_BYTES} bytes of data")
        data = await request.json(None)
        by = request.session.identity.text
        key = same = b""
        if request.status:
            key = operation_key("signal", row.execution_id, request.status)
            same = await _hash(request, [request.secondary_id, data])
        told = partial(SignalReceived, name=request.secondary_id, data=data, by=by)
        await self._happen(row, lambda at_ms: told(at_ms=at_ms), key, same)
        return OperationAnswer(message=f"signal {request.secondary_id} is delivered")

    async def _answer(self, request: OperationAsked) -> OperationAnswer:
        """Answer the question of a step; `secondary_id` is STEP, or STEP[ITEM]."""
        row = await self._execution(request, AccessLevel.READ)
        place = place_from(request.secondary_id)
        fields = await request.document()
        approved = fields.get("approved", True)
        if not isinstance(approved, bool):
            raise OperationError("approved is true or false")
        metadata = {DECISION: APPROVE if approved else REJECT}
        for name in (CHOICE, TEXT):
            if not isinstance(fields.get(name, ""), str):
                raise OperationError(f"{name} is a text")
            if fields.get(name):
                metadata[name] = fields[name]
        payload = write_json(fields["data"]) if "data" in fields else b""
        identity = request.session.identity
        may_write = not await self._access.problem(request.session, row.workspace, AccessLevel.READWRITE)
        made = MadeOperation(self._ids.unique())

        def program(context: Context) -> Program[tuple[TaskTransaction, str]]:
            tx = TaskTransaction(context)
            if (yield from made.subject()):
                return tx, ""
            task_id = yield from execution_rows.task_of(row.execution_id, place)
            if not task_id and place == BUDGET:
                task_id = yield from execution_rows.task_of(row.execution_id, budgets.PLACE)
            task = (yield from task_rows.load(task_id)) if task_id else None
            wait = None if task is None else task.waits_for
            if task is None or wait is None or not task.workflow & WorkflowPart.QUESTION:
                return tx, f"step {shown(request.secondary_id)} of execution {row.execution_id} asks nothing now"
            if not wait.is_expected(identity):
                return tx, f"the question is for {shown(wait.expected_principal)}"
            if not wait.expected_principal and not may_write:
                return tx, f"answering needs READWRITE in workspace {row.workspace}"
            if problem := self._executions.answer_problem(wait, metadata, fields.get("data")):
                return tx, problem
            yield from unused_inputs.note_used(task, TaskInput(0, metadata, identity.text, payload))
            yield from tx.wake(task)
            yield from made.note(tx, row.execution_id)
            return tx, ""

        _, problem = await self._engine.run_program(program, lambda result: result[0])
        if problem:
            raise OperationError(problem)
        return OperationAnswer(message=f"step {request.secondary_id} of execution {row.execution_id} is answered")

    async def _pause(self, request: OperationAsked) -> OperationAnswer:
        row = await self._execution(request, AccessLevel.READWRITE)
        by = request.session.identity.text
        await self._happen(row, lambda at_ms: PauseAsked(at_ms=at_ms, by=by, reason=request.secondary_id))
        return OperationAnswer(message=f"execution {row.execution_id} is paused")

    async def _resume(self, request: OperationAsked) -> OperationAnswer:
        row = await self._execution(request, AccessLevel.READWRITE)
        by = request.session.identity.text
        await self._happen(row, lambda at_ms: ResumeAsked(at_ms=at_ms, by=by))
        return OperationAnswer(message=f"execution {row.execution_id} goes on")

    async def _happen(
        self, row: ExecutionRow, happening: Callable[[int], Happening], key: bytes = b"", same: bytes = b""
    ) -> None:
        """Let something happen to an execution that has not ended; with a `key` once."""
        operation_id = self._ids.unique()
        made = MadeOperation(operation_id)

        def program(context: Context) -> Program[tuple[TaskTransaction, str]]:
            tx = TaskTransaction(context)
            if (yield from made.subject()):
                return tx, ""
            if key and (yield from find_key(tx, key, same)):
                return tx, ""
            current = yield from execution_rows.load(row.execution_id)
            if current is None or current.completed_ms:
                return tx, f"execution {row.execution_id} has ended"
            if current.status == QUEUED:
                return tx, f"execution {row.execution_id} has not begun: it waits for its turn"
            told = happening(context.now_ms)
            if isinstance(told, SignalReceived) and current.kind != FUNCTION:
                place = current.defined_in, current.workflow_id, current.version
                graph = yield from self._executions.definitions.graph(*place, small=context.small)
                state = State.from_json(read_state(current.state))
                if graph is not None and (problem := signal_problem(graph, state, told.name, told.data)):
                    return tx, problem
            yield from self._executions.happen(tx, row.execution_id, told)
            if key:
                yield from take_key(tx, key, operation_id, same)
            yield from made.note(tx, row.execution_id)
            return tx, ""

        try:
            _, problem = await self._engine.run_program(program, lambda result: result[0])
        except (CommandError, KeyReused) as error:
            raise OperationError(str(error)) from None
        if problem:
            raise OperationError(problem)

    async def _history(self, request: OperationAsked) -> OperationAnswer:
        row = await self._execution(request, AccessLevel.READ)
        if request.secondary_id and not is_number(request.secondary_id):
            raise OperationError("secondary_id is the number of the entry after which the page begins")
        after = int(request.secondary_id or 0)
        entries = await self._engine.database.read(
            lambda: execution_rows.history(row.execution_id, after, HISTORY_PAGE)
        )
        if await self._engine.database.read_small(lambda: execution_rows.is_going(row)):
            raise OperationError(f"execution {shown(request.id)} not found: its history is being deleted")
        found = [write_entry({"number": number, "at": go_time(at_ms)}, entry) for number, at_ms, entry in entries]
        return OperationAnswer(write_list(found), total=row.entries)


async def _begin(request: OperationAsked) -> Begin:
    """Return what an execution is told that RUN starts. Raises OperationError."""
    given, written = await request.json({}), b""
    if len(request.data) > SMALL_BYTES:
        try:
            written = await in_json_thread(partial(write_json, given), len(request.data))
        except JsonError as error:
            raise OperationError(f"the input of workflow {shown(request.id)}: {error}") from None
    return Begin(given, request.session.identity.text, written=written)


async def _hash(request: OperationAsked, given: Json) -> bytes:
    """Return a hash that repeated requests have in common. Raises OperationError."""
    try:
        return await in_json_thread(partial(request_hash, given), len(request.data))
    except JsonError as error:
        raise OperationError(f"data is not JSON: {error}") from None


def _put(stored: StoredDefinition) -> Program[StoredDefinition | None]:
    """Insert a version; return the stored one if it has the same content, else None."""
    if (yield from definitions.insert(stored)):
        return stored
    existing = yield from definitions.load(stored.workspace, stored.id, stored.version)
    if existing is not None and existing.digest == stored.digest and existing.active:
        return existing
    return None


def place_from(text: str) -> StepPlace:
    """Read a step, or an item of one: STEP or STEP[ITEM]. Raises OperationError."""
    step, bracket, item = text.partition("[")
    if not bracket:
        return StepPlace(step)
    number = item.removesuffix("]")
    if not item.endswith("]") or not (number.isascii() and number.isdigit()) or len(number) > 9:
        raise OperationError(f"{shown(text)} is neither STEP nor STEP[ITEM]")
    return StepPlace(step, int(number))


def shown_definition(stored: StoredDefinition) -> bytes:
    """Return a definition with the names of the reference."""
    fields = {
        "ID": stored.id,
        "Version": stored.version,
        "Workspace": stored.workspace,
        "Active": stored.active,
        "CreatedAt": go_time(stored.created_ms),
        "UpdatedAt": go_time(stored.updated_ms),
        "Owner": stored.owner,
    }
    return write_object(fields, Definition=stored.document)
