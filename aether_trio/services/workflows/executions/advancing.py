"""Moves executions of workflows on, in the transactions of tasks.

    a step's task ends ──▶ its row in workflow_steps ──▶ the interpreter ──▶ history, state, and
        what follows: child tasks, events, questions, timers, the end of the execution

All of that is one transaction, the one that ends the task: there is no moment between two steps. An
item of a map leaves its end in `workflow_arrivals` instead, and its execution takes in a page of
them at a time, so the items do not queue for one row.

Invariants: a step's task counts while its row of `workflow_steps` names it, so each end is taken
once. A defect of the interpreter pauses its execution and no other one. The owner of the definition
must be allowed whatever an execution does, at the moment when it does it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple, Protocol

import structlog

from aether_trio.model.access import AccessLevel
from aether_trio.model.containment import report
from aether_trio.model.limits import MIB
from aether_trio.model.tasks import Move, StoredStatus, TaskRow, Wait
from aether_trio.model.tasks.form import APPROVE, DECISION, FORM
from aether_trio.model.tasks.result import NO_RESULT, ResultKind, TaskResult
from aether_trio.model.tasks.task import WorkflowPart
from aether_trio.model.text import storable
from aether_trio.model.workflows import flow_control
from aether_trio.model.workflows.definition import (
    NO_BUDGET,
    NO_FLOW_CONTROL,
    Action,
    ActionType,
    Compute,
    FlowGate,
    Graph,
    Json,
    Pace,
    StartTerms,
)
from aether_trio.model.workflows.flow_control import DropReason, DropRun, FlowItem, gathers
from aether_trio.model.workflows.happenings import (
    BEGUN_AT_ONCE,
    TRIGGER,
    AskPerson,
    CancelAsked,
    CancelStep,
    CloseWait,
    Command,
    ContinueExecution,
    DoAction,
    EndExecution,
    EventReceived,
    Forked,
    Happening,
    ItemsEnded,
    KeepResult,
    LimitReached,
    MarkStep,
    Need,
    NeedItems,
    NeedResults,
    OpenWait,
    PauseAsked,
    PauseExecution,
    ResumeAsked,
    RetryAsked,
    SignalReceived,
    Started,
    StartExecution,
    StepEnded,
    StepPlace,
    TimePassed,
)
from aether_trio.model.workflows.hops import Hops, decode, extend
from aether_trio.model.workflows.interpreter import advance
from aether_trio.model.workflows.state import ExecutionStatus, State
from aether_trio.services.tasks.transaction import results, task_rows, unused_inputs
from aether_trio.services.tasks.transaction.interface import LargeError, SentStep, Transaction
from aether_trio.services.workflows.actions.performer import (
    ENGINE,
    ActionRefused,
    Actions,
    Cause,
    Child,
    create_task,
)
from aether_trio.services.workflows.documents.json_values import JsonError, read_json, write_json
from aether_trio.services.workflows.executions import budgets, execution_rows, families
from aether_trio.services.workflows.executions.budgets import Used
from aether_trio.services.workflows.executions.execution_rows import UNDO, ExecutionRow, StoredFork
from aether_trio.services.workflows.executions.families import AT_ONCE, COUNTED_DEPTH, ExecutionFamily, PutOff
from aether_trio.services.workflows.executions.history_entries import (
    NO_RESULTS,
    decode_happening,
    encode_entry,
    encode_happening,
)
from aether_trio.services.workflows.executions.new_executions import (
    QUEUED,
    Begin,
    ExecutionPosition,
    StartDropped,
    StartRefused,
    new_execution,
)
from aether_trio.services.workflows.executions.questions import new_question
from aether_trio.services.workflows.executions.step_tasks import (
    child_id,
    item_of,
    key_of,
    place_metadata,
    place_of,
    result_json,
    stored_place,
)
from aether_trio.services.workflows.executions.turns import (
    ExecutionTurn,
    LoadedExecution,
    functions_in,
    read_state,
    turn_of,
)
from aether_trio.services.workflows.executions.waits import KeptEvent, OpenedWait, Waits, events_of, taker_of
from aether_trio.services.workflows.flow import flow_rows
from aether_trio.services.workflows.flow.admission import (
    BEGIN_PAGE,
    BEGIN_TIMER,
    DROPPED,
    EVERYTHING,
    Admission,
    Admitted,
    FlowEffect,
    FlowError,
    FlowPool,
    FlowStart,
    RunBegins,
    begin_later,
    compute_keys,
)
from aether_trio.services.workflows.flow.admission import TIMER as FLOW_TIMER
from aether_trio.services.workflows.flow.flow_rows import FlowOwner
from aether_trio.services.workflows.stored import definitions, timers
from aether_trio.services.workflows.stored.definitions import Definitions, StoredDefinition
from aether_trio.services.workflows.stored.timers import SET_BACK_MS
from aether_trio.storage.base import Alone, Fetch, Program, Row

logger = structlog.get_logger("aether.workflows")

TIMER: Final = "execution"
"""The kind of the timers of executions."""
MAX_DEPTH: Final = 16
MAX_ENTRIES: Final = 50_000
MAX_HISTORY_BYTES: Final = 50 * MIB
WARN_PART: Final = 5
"""A history is warned of when it has a fifth of its bound."""
FIND_PAGE: Final = 1_000
SMALL_COMMANDS: Final = 20
"""More commands are not done while the event loop waits."""
UNDOING_MS: Final = 60_000
"""After it an execution is looked at again that is to be forgotten, but undoes steps."""
FORGOTTEN_ROWS: Final = 2_000
"""Rows of executions that a transaction deletes, as others wait for it."""
FEW_ENTRIES: Final = 100
"""An execution with no longer history is forgotten at once."""
AT_ONCE_MS: Final = 1
LATER_MS: Final = 1_000
"""The pause after a moment at which the interpreter has done nothing."""
_NEW_STATE: Final = write_json(State.new().to_json())
_OUTCOMES: Final = {StoredStatus.COMPLETED: "completed", StoredStatus.CANCELLED: "cancelled"}


class HistoryLimit(NamedTuple):
    """How long the history of an execution may become before the execution fails."""

    entries: int = MAX_ENTRIES
    bytes: int = MAX_HISTORY_BYTES


class FunctionRuns(Protocol):
    """What executions need of the runs of durable functions (functions.py)."""

    def start(
        self,
        tx: Transaction,
        stored: StoredDefinition,
        workspace: str,
        begin: Begin,
        position: ExecutionPosition,
    ) -> Program[None]:
        """Start a run of a stored function, or let it wait. Raises StartRefused."""

    def begin(self, tx: Transaction, execution_id: str) -> Program[None]:
        """Let a run begin that was queued."""

    def happen(self, tx: Transaction, execution_id: str, happening: Happening) -> Program[bool]:
        """Let something happen to the run of a function; return False if it is none."""

    def event_arrived(self, tx: Transaction, wait: OpenedWait, kept: KeptEvent) -> Program[bool]:
        """Let an event reach an open wait; return False if it is not a function's."""

    def execution_over(self, tx: Transaction, task: TaskRow, ended: EndExecution) -> Program[None]:
        """Take the end of an execution that a function has begun as a step."""


class _DefectError(Exception):
    """The interpreter has raised what no document, worker or event can cause."""


class Executions:
    """Starts executions and moves them on (engine/hook.py).

    `validate(schema, value)` returns how a value breaks a JSON Schema, or "".
    """

    def __init__(
        self,
        stored: Definitions,
        actions: Actions,
        validate: Callable[[Any, Json], str],
        functions: FunctionRuns,
        history_limit: HistoryLimit,
        max_descendants: int,
        admission: Admission,
        waits: Waits,
    ) -> None:
        self.definitions = stored
        self._max_descendants = max_descendants
        self._admission = admission
        self._history_limit = history_limit
        self._functions = functions
        self._actions = actions
        self._validate = validate
        self.waits: Final = waits
        self.latest_start_ms = 0
        """The latest moment of a start that flow control has taken in, as this node knows."""

    # -- from the transactions of tasks ------------------------------------------------------------

    def ended(self, tx: Transaction, task: TaskRow) -> Program[None]:
        """Move on the execution whose step has ended, or which has ended itself."""
        turn = turn_of(tx)
        if task.workflow & WorkflowPart.RUN:
            queued = (yield from self._queued(task)) if task.workflow & WorkflowPart.FLOW else None
            if queued is not None:
                yield from self._end_queued(tx, turn, queued, task)
            elif task.task_id not in turn.ending:
                # Ended by a client or a deadline: its steps are ended, and compensated.
                reason = task.error or "the task of the execution has ended"
                turn.queue.append((task.task_id, CancelAsked(at_ms=tx.context.now_ms, reason=reason, by=task.ended_by)))
        elif task.workflow & WorkflowPart.STEP:
            yield from self._step_ended(tx, turn, task)
        yield from self._drive(tx, turn)

    def load_step(self, tx: Transaction, task_id: str, step: SentStep) -> Program[TaskRow | None]:
        """Load a step's task, and its execution if that ends apart (`ends_apart`)."""
        place = StepPlace(step.step, step.item)
        found = yield from execution_rows.load_step(task_id, step.execution_id, WorkflowPart.RUN, place)
        if found is None:
            return None
        if not found.watchers:
            tx.unwatched.add(task_id)
        if (above := found.above) is not None:
            turn = turn_of(tx)
            turn.loaded[step.execution_id] = LoadedExecution(above.row, State.from_json(read_state(above.row.state)))
            if above.is_open:
                turn.open.add(task_id)
            tx.note_loaded(above.task, above.left)
            if not above.watchers:
                tx.unwatched.add(step.execution_id)
        return found.task

    def ends_apart(self, tx: Transaction, task: TaskRow) -> Program[bool]:
        """Return whether the completion of a step decides on no rows of other tasks.

        But for those of the execution that `load_step` has loaded. The end of an item is taken in
        later. Otherwise no other step may be open, as it would be cancelled if the execution fails.
        """
        yield from ()
        place, _, compensates, is_item = place_of(task)
        if is_item:
            return True
        loaded = turn_of(tx).loaded.get(task.parent_task_id)
        if compensates or loaded is None:
            return False
        row = loaded.row
        graph = self.definitions.compiled(row.defined_in, row.workflow_id, row.version)
        return graph is not None and _is_separate(graph) and loaded.state.open == {place.step}

    def reopened(self, tx: Transaction, before: TaskRow, after: TaskRow) -> Program[None]:
        """Go on with a retried execution, or take the answer to a question."""
        if after.workflow & WorkflowPart.QUESTION:
            yield from self._answered(tx, before, after)
            return
        now_ms = tx.context.now_ms
        row = yield from execution_rows.load(after.task_id)
        if row is not None and row.completed_ms and not row.entries:
            # It was cancelled while it was queued.
            row.generation, row.completed_ms, row.error = row.generation + 1, 0, ""
            yield from execution_rows.save(row)
            yield from self._begin_late(tx, row, after)
            return
        running = after.changed({"status": StoredStatus.RUNNING, "started_ms": now_ms, "result_bytes": NO_RESULT})
        yield from tx.write(after, running, "")
        turn = turn_of(tx)
        turn.queue.append((after.task_id, RetryAsked(at_ms=now_ms)))
        yield from self._drive(tx, turn)

    def forget_part(self, tx: Transaction, task: TaskRow) -> Program[int]:
        """Delete a part of the rows of an ended execution that has many.

        Return in how many ms more of them may go, 0 if those that are left may go with its task:
        many executions may be due at once. None is tried again when that has begun. One that undoes
        steps is kept.
        """
        if not task.workflow & (WorkflowPart.RUN | WorkflowPart.FUNCTION):
            return 0
        row = yield from execution_rows.load(task.task_id)
        if row is None:
            return 0
        if not row.completed_ms and task.workflow & WorkflowPart.RUN:
            return UNDOING_MS
        turn = turn_of(tx)
        if turn.forgotten >= FORGOTTEN_ROWS:
            return AT_ONCE_MS
        if row.entries <= FEW_ENTRIES:
            turn.forgotten += row.entries
            return 0
        most = FORGOTTEN_ROWS - turn.forgotten
        deleted = yield from execution_rows.delete_part(task.task_id, most)
        turn.forgotten += deleted
        return AT_ONCE_MS if deleted == most else 0

    def forgotten(self, task: TaskRow) -> Program[None]:
        """Delete what belongs to an execution whose task is deleted."""
        if task.workflow & (WorkflowPart.RUN | WorkflowPart.FUNCTION):
            yield from execution_rows.delete(task.task_id)

    def fold(self, tx: Transaction, execution_id: str) -> Program[None]:
        """Let an execution take in a page of its items that have ended."""
        entries = yield from execution_rows.take_arrivals(execution_id, BEGUN_AT_ONCE)
        if not entries:
            return
        if len(entries) == BEGUN_AT_ONCE:
            tx.effects.arrivals.add(execution_id)
        ended = tuple(one for one in map(decode_happening, entries) if isinstance(one, StepEnded))
        turn = turn_of(tx)
        turn.queue.append((execution_id, ItemsEnded(at_ms=tx.context.now_ms, ended=ended)))
        yield from self._drive(tx, turn)

    def find_unfinished(self, tx: Transaction) -> Program[None]:
        """Find executions with items that an ended process has not taken in."""
        found: list[Row] = yield Fetch("SELECT DISTINCT execution_id FROM workflow_arrivals LIMIT $1", (FIND_PAGE,))
        tx.effects.arrivals.update(execution_id for (execution_id,) in found)
        yield from self._admission.find_waiting(tx)
        yield from timers.make_due((BEGIN_TIMER, families.TIMER), tx.context.now_ms)
        self.latest_start_ms = max(self.latest_start_ms, (yield from flow_rows.newest_ms()))

    def find_set_back(self, tx: Transaction, latest_ms: int) -> Program[None]:
        """Look at the gates of flow control if the clock is behind its latest moment."""
        if tx.context.now_ms < max(latest_ms, self.latest_start_ms) - SET_BACK_MS:
            yield from self._admission.find_delayed(tx)
            yield from timers.make_due((BEGIN_TIMER, families.TIMER), tx.context.now_ms)

    def time_passed(self, tx: Transaction, execution_id: str) -> Program[None]:
        """Let the due moment of an execution come."""
        turn = turn_of(tx)
        turn.queue.append((execution_id, TimePassed(at_ms=tx.context.now_ms)))
        yield from self._drive(tx, turn)

    # -- budgets -----------------------------------------------------------------------------------

    def used(self, tx: Transaction, task: TaskRow, metadata: Mapping[str, str]) -> Program[str]:
        """Sum up what a worker reports to have used for a task.

        An execution whose budget is used up by it is paused. Return what is wrong with the report,
        or "".
        """
        usage, problem = budgets.read_usage(metadata)
        parts = WorkflowPart.FUNCTION | WorkflowPart.STEP | WorkflowPart.CALLED
        if not usage or not task.workflow & parts:
            return problem
        own_id = task.task_id if task.workflow & WorkflowPart.FUNCTION else task.parent_task_id
        for name, value in usage.items():
            more = yield from budgets.note(own_id, task, name, value)
            above_id = own_id if more else ""
            while above_id:
                row = yield from execution_rows.load(above_id)
                if row is None:
                    break
                used = yield from budgets.add(above_id, name, more)
                yield from self._check_budget(tx, row, name, used)
                above_id = row.parent_id
        return problem

    def _check_budget(self, tx: Transaction, row: ExecutionRow, name: str, used: Used) -> Program[None]:
        """Pause an execution that has used up its budget of something."""
        if row.status not in ("running", "paused"):
            return
        terms = yield from self.definitions.terms(row.defined_in, row.workflow_id, row.version)
        budget = 0.0 if terms is None else terms.budget.usage.get(name, 0.0)
        if not budget or used.total < (used.allowance or budget):
            return
        reason = f"the budget of {used.allowance or budget:g} {name} is used up: {used.total:g} are used"
        yield from self._pause_for_budget(tx, row, reason)

    def _pause_for_budget(self, tx: Transaction, row: ExecutionRow, reason: str) -> Program[None]:
        yield from budgets.ask(tx, row, reason)
        yield from self.happen(tx, row.execution_id, PauseAsked(at_ms=tx.context.now_ms, reason=reason))

    def budget_answered(self, tx: Transaction, task: TaskRow) -> Program[None]:
        """Let an execution go on, or end it, as a person has answered."""
        execution_id, now_ms = task.parent_task_id, tx.context.now_ms
        row = yield from execution_rows.load(execution_id)
        result = tx.results.get(task.task_id)
        answer = {} if result is None else read_json(result.data)
        done = task.status is StoredStatus.COMPLETED
        status = "completed" if done else "cancelled"
        data = None if result is None else result.data
        yield from execution_rows.end_step(execution_id, budgets.PLACE, task.task_id, now_ms, status, "", "", data)
        if row is None or row.completed_ms or not done:
            return
        by = str(answer.get("by", ""))
        goes_on: Happening
        if answer.get("approved") and answer.get("choice") != budgets.END:
            terms = yield from self.definitions.terms(row.defined_in, row.workflow_id, row.version)
            if terms is not None:
                yield from budgets.grant(execution_id, terms.budget.usage)
            goes_on = ResumeAsked(at_ms=now_ms, by=by)
        else:
            error = f"the budget is used up, and {by or 'a person'} has ended the execution"
            goes_on = LimitReached(at_ms=now_ms, error=error, error_type=budgets.USED_UP)
        yield from self.happen(tx, execution_id, goes_on)

    def _check_rate(self, tx: Transaction, terms: StartTerms, row: ExecutionRow) -> Program[None]:
        """Pause an execution with which more begin within an hour than the budget allows."""
        limit = terms.budget.runs_per_hour
        if not limit:
            return
        place = f"budget/{flow_rows.pool_of(row.workspace, row.defined_in, row.workflow_id)}"
        gate = FlowGate(rate=Pace(limit=limit, period_ms=budgets.HOUR_MS))
        state = yield from flow_rows.load_gate(place)
        step = flow_control.arrive(gate, state, FlowItem(row.execution_id), tx.context.now_ms)
        yield from flow_rows.save_gate(place, step.state)
        yield from timers.set_timer(FLOW_TIMER, place, step.due_ms)
        if any(isinstance(one, DropRun) for one in step.decisions):
            reason = f"the budget of {limit} executions of {row.workflow_id} an hour is used up"
            yield from self._pause_for_budget(tx, row, reason)

    def _check_rate_of_function(self, tx: Transaction, execution_id: str) -> Program[None]:
        run = functions_in(tx).get(execution_id)
        if run is None:
            return  # its program has run before, and was committed
        row = run.row
        terms = yield from self.definitions.terms(row.defined_in, row.workflow_id, row.version)
        if terms is not None and terms.budget.runs_per_hour:
            yield from self._check_rate(tx, terms, row)

    # -- from operations ---------------------------------------------------------------------------

    def start(
        self,
        tx: Transaction,
        stored: StoredDefinition,
        workspace: str,
        begin: Begin,
        *,
        task_id: str,
        parent: ExecutionRow | None = None,
        part: WorkflowPart = WorkflowPart.NONE,
        place: dict[str, str] | None = None,
    ) -> Program[str]:
        """Start an execution of a stored version, under this task id.

        Return the id of the execution with this input: flow control may gather several. Raises
        StartRefused and StartDropped; nothing is written then.
        """
        if tx.context.again and (yield from task_rows.load(task_id)) is not None:
            return task_id  # this program has run before, and was committed
        if begin.written and tx.context.small:
            raise LargeError
        turn, continues = turn_of(tx), begin.continues
        depth = parent.depth + 1 if parent is not None else 0 if continues is None else continues.depth
        if depth >= MAX_DEPTH:
            raise StartRefused(f"workflow {stored.id} would run {depth + 1} deep; at most {MAX_DEPTH} are allowed")
        family: ExecutionFamily | None = None
        if parent is not None:
            tx.charge(moved=1)
            if depth >= COUNTED_DEPTH:
                family = yield from self._check_family(turn, stored, parent)
        # The one in whose execution this is a step starts it, and the other one acts in it.
        above = parent if parent is not None else None if begin.instead_of else continues
        for owner in dict.fromkeys((stored.owner, stored.owner if above is None else above.owner)):
            if problem := self._actions.allowed(owner, workspace, AccessLevel.READWRITE, tx.context.now_ms):
                raise StartRefused(problem)
        graph: Graph | None = None
        terms: StartTerms
        if stored.is_function:
            terms = self.definitions.terms_of_function(stored)
        else:
            small = tx.context.small
            graph = yield from self.definitions.graph(stored.workspace, stored.id, stored.version, small=small)
            assert graph is not None
            terms = graph
            if graph.input_schema is not None and (problem := self._validate(graph.input_schema, begin.input)):
                raise StartRefused(f"the input of workflow {stored.id} is not as declared: {problem}")
        if tx.context.shared and (graph is None or self._admission.most or begin.fork or not _is_separate(graph)):
            yield Alone()
        if graph is not None and (problem := (yield from self.waits.problem(workspace, events_of(graph)))):
            raise StartRefused(f"workflow {stored.id}: {problem}")
        admitted = yield from self._admit(tx, stored, terms, workspace, begin, task_id, parent)
        if admitted.run_id not in ("", task_id):
            yield from self.perform_flow(tx, admitted.effects)
            return admitted.run_id
        if admitted.run_id:
            part |= WorkflowPart.FLOW
        queued = bool(admitted.run_id) and not admitted.begins
        is_caused = parent is not None or (continues is not None and graph is not None)
        put_off = not queued and is_caused and turn.begun >= AT_ONCE
        if put_off:
            part |= WorkflowPart.FLOW
        elif not queued:
            turn.begun += 1
        position = ExecutionPosition(task_id, parent, depth, part, place or {}, queued or put_off)
        try:
            if graph is None:
                yield from self._functions.start(tx, stored, workspace, begin, position)
                if not position.queued:
                    yield from self._check_rate_of_function(tx, task_id)
            else:
                yield from self._start_graph(tx, stored, graph, workspace, begin, position)
        except StartRefused:
            # The caller may commit what others get by this.
            yield from self.perform_flow(tx, admitted.effects)
            yield from self.flow_ended(tx, task_id)
            raise
        if family is not None and parent is not None:
            before = turn.families[parent.root_id].executions  # with those that it has started
            turn.families[parent.root_id] = family._replace(executions=before + 1)
            yield from families.count(family.id)
        if continues is not None and depth:
            yield from families.join(task_id, continues.root_id)
        if put_off:
            yield from families.put_off(tx, task_id if parent is None else parent.root_id, task_id, PutOff.BEGIN)
        yield from self.perform_flow(tx, admitted.effects)
        return task_id

    def _check_family(
        self, turn: ExecutionTurn, stored: StoredDefinition, parent: ExecutionRow
    ) -> Program[ExecutionFamily]:
        """Return the family of what a parent starts. Raises StartRefused if it is full."""
        family = turn.families.get(parent.root_id) or (yield from families.load(parent.root_id))
        turn.families[parent.root_id] = family
        if family.executions >= self._max_descendants:
            raise StartRefused(
                f"workflow {stored.id} is not started: sub-workflows have started {family.executions} executions below "
                f"execution {family.id}, and may start {self._max_descendants} (workflow.max_descendants)"
            )
        return family

    def _start_graph(
        self,
        tx: Transaction,
        stored: StoredDefinition,
        graph: Graph,
        workspace: str,
        begin: Begin,
        position: ExecutionPosition,
    ) -> Program[None]:
        try:
            trigger = begin.written or write_json(begin.input)
        except JsonError as error:
            raise StartRefused(f"the input of workflow {stored.id}: {error}") from None
        state = _with_signals(begin.signals) if begin.signals else _NEW_STATE
        task, row = new_execution(tx, self._actions, stored, workspace, begin, position, trigger, state=state)
        if tx.context.small and len(trigger) > results.SMALL_BYTES:
            raise LargeError
        now_ms = tx.context.now_ms
        task.workflow = WorkflowPart.RUN | position.part
        if not position.queued:
            task.status, task.started_ms, task.running_ms = StoredStatus.RUNNING, now_ms, now_ms
        task.has_children = 1  # its steps need not write that
        if position.parent is not None:
            tx.known_parents.add(position.parent.execution_id)
        if not (yield from tx.create(task, trigger)):
            return  # this program has run before, and was committed
        if (fork := begin.fork) is None and not position.queued:
            yield from self._begin(tx, graph, row, begin.input, new=True)
            return
        yield from execution_rows.insert(row)
        if fork is not None:
            yield from execution_rows.copy_steps(fork.origin, row.execution_id, fork.kept.whole, fork.kept.partly)
            kept = write_json(fork.kept.state)
            yield from execution_rows.insert_fork(StoredFork(row.execution_id, fork.origin, fork.step, now_ms, kept))
        if not position.queued:
            yield from self._begin(tx, graph, row, begin.input, None if fork is None else fork.kept.state)

    def _begin(
        self,
        tx: Transaction,
        graph: Graph,
        row: ExecutionRow,
        given: Json,
        kept: dict[str, Json] | None = None,
        *,
        new: bool = False,
    ) -> Program[None]:
        """Begin an execution; `kept` is what a fork has kept, `new`: it has no row."""
        turn = turn_of(tx)
        yield from self.waits.begin(row.execution_id, row.workspace, events_of(graph))
        turn.loaded[row.execution_id] = LoadedExecution(row, State.new(), new=new)
        now_ms = tx.context.now_ms
        begins: Started | Forked
        if kept is None or (fork := (yield from execution_rows.fork_of(row.execution_id))) is None:
            begins = Started(at_ms=now_ms, trigger=given, execution_id=row.execution_id, workspace=row.workspace)
        else:
            begins = Forked(
                at_ms=now_ms, trigger=given, execution_id=row.execution_id, workspace=row.workspace,
                origin=fork.origin, step=fork.step, kept=kept,
            )  # fmt: skip
        turn.queue.append((row.execution_id, begins))
        if row.state != _NEW_STATE:
            # Its senders were told that they are delivered.
            for name, data, by in State.from_json(read_state(row.state)).signals:
                told = SignalReceived(at_ms=now_ms, name=name, data=data, by=by)
                turn.queue.append((row.execution_id, told))
        yield from self._check_rate(tx, graph, row)
        yield from self._drive(tx, turn)

    # -- flow control ------------------------------------------------------------------------------

    def _admit(
        self,
        tx: Transaction,
        stored: StoredDefinition,
        terms: StartTerms,
        workspace: str,
        begin: Begin,
        task_id: str,
        parent: ExecutionRow | None,
    ) -> Program[Admitted]:
        """Ask flow control whether an execution may begin.

        One without a run id takes no part in it.
        """
        flow = terms.flow
        if begin.fork is not None and gathers(flow):
            flow = NO_FLOW_CONTROL  # its input is that of starts which were gathered
        pools: list[FlowPool] = []
        if terms.max_executions:
            pools.append(FlowPool(flow_rows.pool_of(workspace, stored.workspace, stored.id), terms.max_executions))
        if parent is None and self._admission.most:
            # One below another one takes no further place: those above would wait for it.
            pools.append(FlowPool(EVERYTHING, self._admission.most))
        if not flow.gates and not pools:
            return Admitted()
        self.latest_start_ms = max(self.latest_start_ms, tx.context.now_ms)
        if begin.instead_of and (yield from self._admission.hand_over(tx, begin.instead_of, task_id)):
            return Admitted(task_id, begins=True)
        if parent is not None:
            if (yield from self._is_below_itself(stored, parent)):
                return Admitted()  # it would wait for the one that waits for it
            if gathers(flow):
                raise StartRefused(
                    f"workflow {stored.id} gathers its starts (debounce or batch): a step cannot wait for its own one"
                )
        try:
            env = {"trigger": begin.input, "inputs": begin.input}
            keys = compute_keys(flow, env, tx.context.now_ms)
            start = FlowStart(
                task_id,
                FlowOwner(flow_rows.WORKFLOW, workspace, stored.workspace, stored.id),
                flow,
                keys,
                (begin.written or write_json(begin.input)) if gathers(flow) else b"",
                tuple(pools),
                begin.origin,
            )
            admitted = yield from self._admission.arrive(tx, start)
        except (FlowError, JsonError) as error:
            raise StartRefused(f"workflow {stored.id}: {error}") from None
        if admitted.dropped is not None and not admitted.run_id:
            text = f"workflow {stored.id} is not started: {DROPPED[admitted.dropped]}"
            raise StartRefused(text) if admitted.dropped is DropReason.FULL else StartDropped(text)
        return admitted

    def _is_below_itself(self, stored: StoredDefinition, parent: ExecutionRow) -> Program[bool]:
        above: ExecutionRow | None = parent
        while above is not None:
            if (above.defined_in, above.workflow_id) == (stored.workspace, stored.id):
                return True
            above = (yield from execution_rows.load(above.parent_id)) if above.parent_id else None
        return False

    def perform_flow(self, tx: Transaction, effects: Sequence[FlowEffect]) -> Program[None]:
        """Let executions begin, or cancel them, as flow control says."""
        turn = turn_of(tx)
        for effect in effects:
            if not isinstance(effect, RunBegins):
                yield from self.stop(tx, effect.run_id, f"{DROPPED[effect.reason]} (flow control)")
            elif turn.begun < BEGIN_PAGE and not tx.is_full:
                turn.begun += 1
                yield from self._begin_queued(tx, effect.run_id)
            else:
                yield from begin_later(tx, flow_rows.WORKFLOW, effect.run_id)

    def stop(self, tx: Transaction, execution_id: str, reason: str) -> Program[None]:
        """Cancel an execution for a reason."""
        task = yield from task_rows.load(execution_id)
        if task is not None and not task.is_final:
            tx.charge(moved=1)
            yield from tx.apply(task, Move.CANCEL, tx.facts(reason=reason))

    def put_off_due(self, tx: Transaction, root_id: str) -> Program[None]:
        """Cancel and begin some of what was put off below a root."""
        turn = turn_of(tx)
        for row in (yield from families.first_put_off(root_id)):
            if row.what is PutOff.CANCEL:
                if turn.cancelled >= AT_ONCE:
                    break
                turn.cancelled += 1
                task = yield from task_rows.load(row.execution_id)
                if task is not None:
                    yield from self.stop(tx, row.execution_id, _cancelled_by(task.parent_task_id))
            elif turn.begun < AT_ONCE:
                turn.begun += 1
                yield from self._begin_queued(tx, row.execution_id)
            else:
                break
            yield from families.take(row)
        yield from families.go_on(tx, root_id)

    def flow_ended(self, tx: Transaction, execution_id: str) -> Program[None]:
        """Let others begin as an execution has ended."""
        yield from self.perform_flow(tx, (yield from self._admission.ended(tx, execution_id)))

    def _queued(self, task: TaskRow) -> Program[ExecutionRow | None]:
        """Load the execution of a task if it has not begun."""
        row = yield from execution_rows.load(task.task_id)
        return row if row is not None and row.status == QUEUED else None

    def _begin_queued(self, tx: Transaction, execution_id: str) -> Program[None]:
        """Begin an execution whose turn has come, if it still may."""
        row, task = (yield from execution_rows.load(execution_id)), (yield from task_rows.load(execution_id))
        if row is None or row.status != QUEUED or task is None or task.is_final:
            yield from self.flow_ended(tx, execution_id)
            return
        tx.charge(moved=1)
        now_ms = tx.context.now_ms
        if (yield from definitions.newest_active(row.defined_in, row.workflow_id)) is None:
            yield from self.stop(tx, execution_id, f"{DROPPED[DropReason.DEACTIVATED]} (flow control)")
            return
        if problem := self._actions.allowed(row.owner, row.workspace, AccessLevel.READWRITE, now_ms):
            facts = tx.facts(ENGINE, reason=problem, error_type="PERMISSION_DENIED")
            yield from tx.apply(task, Move.FAIL, facts)
            return
        if row.kind == "function":
            row.status, row.started_ms = "running", now_ms
            yield from execution_rows.begin(row)
            yield from self._functions.begin(tx, execution_id)
            yield from self._check_rate_of_function(tx, execution_id)
            yield from tx.wake(task)
            return
        yield from self._gather(tx, row)
        yield from self._begin_late(tx, row, task)

    def _gather(self, tx: Transaction, row: ExecutionRow) -> Program[None]:
        """Let what flow control has gathered for an execution be its input."""
        graph = yield from self.definitions.graph(row.defined_in, row.workflow_id, row.version, small=tx.context.small)
        if graph is None or not gathers(graph.flow):
            return
        if (yield from execution_rows.fork_of(row.execution_id)) is None:
            items = yield from flow_rows.items_of(row.execution_id)
            row.trigger_data = write_json(
                {"items": [json.loads(data) for data in (row.trigger_data, *(data for _, data in items))]}
            )

    def _begin_late(self, tx: Transaction, row: ExecutionRow, task: TaskRow) -> Program[None]:
        """Begin an execution that was queued, or that has ended before it began."""
        now_ms = tx.context.now_ms
        row.status, row.started_ms = "running", now_ms
        graph = yield from self.definitions.graph(row.defined_in, row.workflow_id, row.version, small=tx.context.small)
        assert graph is not None
        fork = yield from execution_rows.fork_of(row.execution_id)
        yield from execution_rows.begin(row)
        running = {
            "status": StoredStatus.RUNNING,
            "started_ms": now_ms,
            "running_ms": now_ms,
            "wait": "",
            "updated_ms": now_ms,
        }
        yield from tx.write(task, task.changed(running), "")
        kept = None if fork is None else read_state(fork.kept)
        yield from self._begin(tx, graph, row, read_json(row.trigger_data), kept)

    def _end_queued(self, tx: Transaction, turn: ExecutionTurn, row: ExecutionRow, task: TaskRow) -> Program[None]:
        """End an execution that has not begun."""
        if row.kind == "graph":
            yield from self._gather(tx, row)
        row.status = "cancelled" if task.status is StoredStatus.CANCELLED else "failed"
        row.completed_ms, row.error = tx.context.now_ms, task.error
        yield from execution_rows.begin(row)
        yield from execution_rows.save(row)
        yield from self._tell_parent(
            tx, turn, task, EndExecution(status=row.status, error=task.error, error_type=task.error_type), None
        )
        yield from self.flow_ended(tx, row.execution_id)

    def begins(self, tx: Transaction, execution_id: str) -> bool:
        """Return whether an execution of a graph begins in this transaction."""
        return execution_id in turn_of(tx).loaded

    def happen(self, tx: Transaction, execution_id: str, happening: Happening) -> Program[None]:
        """Let something happen to an execution: a signal, a pause, an event."""
        if (yield from self._functions.happen(tx, execution_id, happening)):
            return
        turn = turn_of(tx)
        turn.queue.append((execution_id, happening))
        yield from self._drive(tx, turn)

    def event_arrived(self, tx: Transaction, wait: OpenedWait, kept: KeptEvent) -> Program[None]:
        """Let an event that is kept reach an open wait, which may leave it."""
        if (yield from self._functions.event_arrived(tx, wait, kept)):
            return
        turn = turn_of(tx)
        self._give_kept(turn, wait.execution_id, wait.place, wait.taker, kept, tx.context.now_ms)
        yield from self._drive(tx, turn)

    # -- the interpreter's turn --------------------------------------------------------------------

    def _drive(self, tx: Transaction, turn: ExecutionTurn) -> Program[None]:
        """Handle everything that happens, and what that causes; then save."""
        if turn.running:
            return
        turn.running = True
        while turn.queue:
            execution_id, happening = turn.queue.popleft()
            loaded = yield from self._load(turn, execution_id)
            if loaded is not None:
                yield from self._advance(tx, turn, loaded, happening)
                if isinstance(happening, EventReceived):
                    yield from self._left_open(turn, execution_id, happening.place, tx.context.now_ms)
        for loaded in turn.loaded.values():
            if loaded.changed:
                yield from self._save(tx, loaded)
        turn.running = False

    def _load(self, turn: ExecutionTurn, execution_id: str) -> Program[LoadedExecution | None]:
        found = turn.loaded.get(execution_id)
        if found is None:
            row = yield from execution_rows.load(execution_id)
            if row is None:
                return None
            found = turn.loaded[execution_id] = LoadedExecution(row, State.from_json(read_state(row.state)))
        found.given = turn.given.setdefault(execution_id, found.given)
        return found

    def _save(self, tx: Transaction, loaded: LoadedExecution) -> Program[None]:
        row, state = loaded.row, loaded.state
        loaded.changed = False
        if not row.completed_ms:
            row.status = state.status
        due_ms = state.due_ms
        if due_ms and due_ms <= tx.context.now_ms and due_ms == row.due_ms:
            due_ms = tx.context.now_ms + LATER_MS
        if due_ms != row.due_ms:
            row.due_ms = due_ms
            yield from timers.set_timer(TIMER, row.execution_id, due_ms)
        tx.effects.note_due(due_ms)
        if loaded.new:
            yield from self._insert(loaded)
        elif loaded.inserted != execution_rows.changing(row):
            yield from execution_rows.save(row)
            loaded.inserted = ()

    def _insert(self, loaded: LoadedExecution) -> Program[None]:
        """Write the row of a new execution, which need not be saved if it stays as it is."""
        row = loaded.row
        row.status, loaded.new = loaded.state.status, False
        loaded.inserted = execution_rows.changing(row)
        yield from execution_rows.insert(row)

    def _advance(
        self, tx: Transaction, turn: ExecutionTurn, loaded: LoadedExecution, happening: Happening
    ) -> Program[None]:
        row = loaded.row
        graph = yield from self.definitions.graph(row.defined_in, row.workflow_id, row.version, small=tx.context.small)
        if graph is None:
            yield from self._stop(loaded, f"version {row.version} of workflow {row.workflow_id} is gone")
            return
        was_going = loaded.state.status in (ExecutionStatus.RUNNING, ExecutionStatus.PAUSED)
        running = advance(graph, loaded.state, happening, validate=self._validate)
        try:
            commands = yield from self._run(loaded, running)
            if was_going and (found := self._refused_event(row, commands, tx.context.now_ms)):
                problem, error_type = found
                loaded.state = State.from_json(read_state(row.state))
                again = [happening]
                if isinstance(happening, (Started, Forked)):
                    again = [replace(happening, refused=problem, error_type=error_type)]
                else:
                    again.append(LimitReached(at_ms=happening.at_ms, error=problem, error_type=error_type))
                turn.queue.extendleft((row.execution_id, one) for one in again)
                return
            commands = self._with_refused_undoing(row, commands, tx.context.now_ms)
            entry = encode_entry(happening, commands, _replaced(loaded, happening, commands))
        except (_DefectError, JsonError) as error:
            report(error, "an execution of a workflow, which is paused")
            yield from self._stop(loaded, f"a defect of the gateway: {error}")
            return
        if tx.context.small and len(commands) > SMALL_COMMANDS:
            raise LargeError
        encoded = write_json(loaded.state.to_json())
        if not commands and encoded == row.state:
            # It was late, or came twice. The moment of one that time has moved is set anew.
            loaded.changed = loaded.changed or isinstance(happening, TimePassed)
            return
        loaded.changed, row.state = True, encoded
        if isinstance(happening, RetryAsked):
            row.generation, row.completed_ms, row.error = row.generation + 1, 0, ""
            yield from self.waits.begin(row.execution_id, row.workspace, events_of(graph))
        yield from execution_rows.record(row, happening.at_ms, entry)
        if loaded.new:
            yield from self._insert(loaded)
        self._check_history(turn, loaded, happening.at_ms, len(entry))
        for command in commands:
            yield from self._do(tx, turn, loaded, graph, command)

    def _refused_event(self, row: ExecutionRow, commands: Sequence[Command], now_ms: int) -> tuple[str, str] | None:
        """Return why the owner may not emit an event of these commands, and its type.

        For the interpreter such a step has ended with its begin, so nothing may follow from it.
        """
        for one in commands:
            if isinstance(one, DoAction) and one.action.type is ActionType.EMIT_EVENT and not one.compensates:
                refused = self._actions.refusal(one.action.workspace or row.workspace, row.owner, now_ms)
                if refused is not None:
                    return f"step '{one.place.step}': {refused}", refused.error_type
        return None

    def _with_refused_undoing(self, row: ExecutionRow, commands: list[Command], now_ms: int) -> list[Command]:
        """Return commands that mark steps whose undoing emits an event that is refused.

        For the interpreter they are undone; what follows is the same.
        """
        problems: dict[StepPlace, ActionRefused] = {}
        for one in commands:
            if isinstance(one, DoAction) and one.action.type is ActionType.EMIT_EVENT and one.compensates:
                refused = self._actions.refusal(one.action.workspace or row.workspace, row.owner, now_ms)
                if refused is not None:
                    problems[one.place] = refused
        if not problems:
            return commands
        return [
            replace(one, status="compensation_failed", error=str(problem), error_type=problem.error_type)
            if isinstance(one, MarkStep) and one.status == "compensated" and (problem := problems.get(one.place))
            else one
            for one in commands
        ]

    def _check_history(self, turn: ExecutionTurn, loaded: LoadedExecution, at_ms: int, added: int) -> None:
        """Fail an execution whose history is too long; warn of one that comes near it."""
        row, limit = loaded.row, self._history_limit
        if row.entries >= limit.entries or row.bytes >= limit.bytes:
            if loaded.state.status == ExecutionStatus.RUNNING:
                text = (
                    f"the history has {row.entries} entries and {row.bytes} bytes; at most {limit.entries} and "
                    f"{limit.bytes} are allowed: let a step continue_as, which begins a fresh one"
                )
                turn.queue.append((row.execution_id, LimitReached(at_ms=at_ms, error=text)))
            return
        entries, size = limit.entries // WARN_PART, limit.bytes // WARN_PART
        if row.entries == entries or row.bytes - added < size <= row.bytes:
            logger.warning(
                "the history of an execution has a fifth of its bound: let a step continue_as",
                execution=row.execution_id, workflow=row.workflow_id, entries=row.entries, bytes=row.bytes,
            )  # fmt: skip

    def _run(self, loaded: LoadedExecution, running: Generator[Need, Json, list[Command]]) -> Program[list[Command]]:
        """Run the interpreter, and answer what it asks for."""
        answer: Json = None
        while True:
            try:
                need = running.send(answer)
            except StopIteration as done:
                commands: list[Command] = done.value
                return commands
            except Exception as error:
                raise _DefectError(f"{type(error).__name__}: {error}") from error
            answer = yield from self._answer(loaded, need)

    def _answer(self, loaded: LoadedExecution, need: Need) -> Program[Json]:
        row = loaded.row
        if isinstance(need, NeedItems):
            found = yield from execution_rows.items_of(row.execution_id, need.step)
            return [item_of(*one) for one in found]
        if isinstance(need, NeedResults):
            kept = yield from execution_rows.inputs_and_results(row.execution_id, need.steps)
            stored_results = {step: kept.get(step, (None, None))[1] for step in need.steps}
            return {step: None if data is None else read_json(bytes(data)) for step, data in stored_results.items()}
        if need.place == TRIGGER:
            return read_json(row.trigger_data)
        if need.place not in loaded.results:
            if need.place in loaded.given:
                stored = loaded.given[need.place]
            else:
                stored = yield from execution_rows.result_of(row.execution_id, need.place)
            loaded.results[need.place] = None if stored is None else read_json(stored)
        return loaded.results[need.place]

    def _stop(self, loaded: LoadedExecution, why: str) -> Program[None]:
        """Leave an execution as it was stored, paused with a reason."""
        loaded.state = State.from_json(read_state(loaded.row.state))
        loaded.state.status = ExecutionStatus.PAUSED
        loaded.row.state, loaded.row.error = write_json(loaded.state.to_json()), storable(why)
        loaded.changed = True
        yield from ()

    # -- what follows ------------------------------------------------------------------------------

    def _do(
        self, tx: Transaction, turn: ExecutionTurn, loaded: LoadedExecution, graph: Graph, command: Command
    ) -> Program[None]:
        row, now_ms = loaded.row, tx.context.now_ms
        match command:
            case DoAction():
                yield from self._act(tx, turn, loaded, graph, command)
            case StartExecution():
                yield from self._start_child(tx, turn, loaded, graph, command)
            case AskPerson():
                yield from self._ask(tx, turn, loaded, graph, command)
            case CancelStep():
                yield from self._cancel_step(tx, turn, row, command.place)
            case KeepResult():
                loaded.forget(command.place)  # what is read again has floats
                data = write_json(command.result)
                yield from execution_rows.keep_result(row.execution_id, command.place, now_ms, data)
            case MarkStep():
                yield from execution_rows.mark_step(
                    row.execution_id, command.place, now_ms, command.status, command.error, command.error_type
                )
            case EndExecution():
                yield from self._end(tx, turn, loaded, graph, command)
            case ContinueExecution():
                yield from self._continue(tx, turn, loaded, graph, command)
            case PauseExecution():
                row.error = storable(command.reason)
                yield from budgets.ask(tx, row, command.reason)
            case OpenWait():
                yield from self._open_wait(turn, row, graph, command, now_ms)
            case CloseWait():
                yield from self._close_wait(turn, row, command.place)

    def _act(
        self, tx: Transaction, turn: ExecutionTurn, loaded: LoadedExecution, graph: Graph, command: DoAction
    ) -> Program[None]:
        row, place = loaded.row, stored_place(command)
        is_item = place.item >= 0 and graph.steps[command.place.step].for_each is not None
        metadata = place_metadata(row.execution_id, command, is_item=is_item)
        cause = Cause(key_of(row, place, command.attempt), row.owner, row.workspace, _hops(row, command.action))
        child = Child(row.execution_id, row.root_id, row.correlation_id, metadata, command.timeout_ms)
        tx.known_parents.add(row.execution_id)
        try:
            task = yield from self._actions.perform(tx, command.action, command.values, cause, child)
        except ActionRefused as error:
            self._failed_at_once(tx, turn, row, command, str(error), error.error_type)
            return
        if task is not None:
            given = write_json(command.values)
            loaded.forget(place)
            yield from execution_rows.begin_step(
                row.execution_id, place, command.attempt, task.task_id, tx.context.now_ms, "running", given
            )

    def _start_child(
        self, tx: Transaction, turn: ExecutionTurn, loaded: LoadedExecution, graph: Graph, command: StartExecution
    ) -> Program[None]:
        row = loaded.row
        is_item = command.place.item >= 0 and graph.steps[command.place.step].for_each is not None
        stored = yield from definitions.newest(row.workspace, command.workflow)
        if stored is None:
            text = f"there is no workflow {command.workflow} in workspace {row.workspace}"
            self._failed_at_once(tx, turn, row, command, text, "UNKNOWN_WORKFLOW")
            return
        task_id = child_id(tx.context.now_ms, row, command.place, command.attempt)
        try:
            yield from self.start(
                tx,
                stored,
                row.workspace,
                Begin(command.input, row.owner, hops=decode(row.hops)),
                task_id=task_id,
                parent=row,
                part=WorkflowPart.STEP,
                place=place_metadata(row.execution_id, command, is_item=is_item),
            )
        except StartRefused as error:
            error_type = "START_DROPPED" if isinstance(error, StartDropped) else "START_REFUSED"
            self._failed_at_once(tx, turn, row, command, str(error), error_type)
            return
        given = write_json(command.input)
        loaded.forget(command.place)
        yield from execution_rows.begin_step(
            row.execution_id, command.place, command.attempt, task_id, tx.context.now_ms, "running", given
        )

    def _ask(
        self, tx: Transaction, turn: ExecutionTurn, loaded: LoadedExecution, graph: Graph, command: AskPerson
    ) -> Program[None]:
        row, place = loaded.row, command.place
        if problem := self._actions.allowed(row.owner, row.workspace, AccessLevel.READWRITE, tx.context.now_ms):
            self._failed_at_once(tx, turn, row, command, problem, "PERMISSION_DENIED")
            return
        form: dict[str, Json] = {"question": command.question}
        if command.choices:
            form["choices"] = list(command.choices)
        if command.text:
            form["text"] = command.text
        if command.form is not None:
            form["form"] = command.form
        wait = Wait(expected_principal=command.of, input_match={FORM: write_json(form).decode()})
        open_id = yield from execution_rows.task_of(row.execution_id, place)
        asked = (yield from task_rows.load(open_id)) if open_id else None
        if asked is not None and asked.status is StoredStatus.WAITING_INPUT:
            # An escalation: another person is asked.
            yield from tx.write(asked, asked.changed({"wait": wait.named(asked.events + 1, open_id).to_json()}), "")
            return
        is_item = place.item >= 0 and graph.steps[place.step].for_each is not None
        metadata = place_metadata(row.execution_id, command, is_item=is_item)
        task_id = child_id(tx.context.now_ms, row, place, command.attempt)
        task = new_question(tx, row, task_id, wait, metadata, WorkflowPart.STEP)
        tx.known_parents.add(row.execution_id)
        yield from create_task(tx, task, b"")
        loaded.forget(place)
        yield from execution_rows.begin_step(
            row.execution_id, place, command.attempt, task_id, tx.context.now_ms, "waiting", write_json(form)
        )

    def _answered(self, tx: Transaction, before: TaskRow, after: TaskRow) -> Program[None]:
        """Complete a question with its answer; ask again if that is not as the form says."""
        used = yield from unused_inputs.used(before)
        wait = before.waits_for
        if used is None or wait is None:
            yield from tx.write(after, before, "")
            return
        data: Json = None
        if used.payload:
            try:
                data = read_json(used.payload)
            except (ValueError, RecursionError):
                data = None
        approved = used.metadata.get(DECISION) == APPROVE
        if self.answer_problem(wait, used.metadata, data):
            yield from tx.write(after, before.changed({"updated_ms": tx.context.now_ms}), "")
            return
        answer = {
            "approved": approved,
            "choice": used.metadata.get("choice", ""),
            "text": used.metadata.get("text", ""),
            "data": data,
            "by": used.sender,
        }
        result = TaskResult(ResultKind.JSON, write_json(answer))
        tx.results[after.task_id] = result
        facts = tx.facts(ENGINE, result_bytes=len(result.data))
        yield from tx.apply(after, Move.COMPLETE, facts)
        yield from results.write(after.task_id, result, small=tx.context.small)

    def answer_problem(self, wait: Wait, metadata: Mapping[str, str], data: Json) -> str:
        """Return why this is no answer to a question; "" if it is one."""
        form = wait.form
        if form is None:
            return "the task asks nothing"
        if not form.is_answer(metadata):
            return f"choice is one of {', '.join(form.choices)}" if form.choices else "this question has no choices"
        schema = json.loads(wait.input_match[FORM]).get("form")
        if schema is None or metadata.get(DECISION) != APPROVE:
            return ""
        problem = self._validate(schema, data)
        return f"data is not as the form says: {problem}" if problem else ""

    def _cancel_step(self, tx: Transaction, turn: ExecutionTurn, row: ExecutionRow, place: StepPlace) -> Program[None]:
        task_id = yield from execution_rows.task_of(row.execution_id, place)
        task = (yield from task_rows.load(task_id)) if task_id else None
        if task is None or task.is_final:
            return
        if task.workflow & (WorkflowPart.RUN | WorkflowPart.FUNCTION):
            if turn.cancelled >= AT_ONCE:
                yield from families.put_off(tx, row.root_id, task_id, PutOff.CANCEL)
                return
            turn.cancelled += 1
        yield from self.stop(tx, task_id, _cancelled_by(row.execution_id))

    def _open_wait(
        self, turn: ExecutionTurn, row: ExecutionRow, graph: Graph, command: OpenWait, now_ms: int
    ) -> Program[None]:
        """Let a step wait for an event; one that came since the execution began counts."""
        yield from execution_rows.mark_step(row.execution_id, command.place, now_ms, "waiting", "", "")
        taker = taker_of(graph, command.place)
        kept = yield from self.waits.open(row.execution_id, row.workspace, command, taker)
        self._give_kept(turn, row.execution_id, command.place, taker, kept, now_ms)

    def _give_kept(
        self, turn: ExecutionTurn, execution_id: str, place: StepPlace, taker: str, kept: KeptEvent | None, now_ms: int
    ) -> None:
        if kept is not None:
            turn.kept[execution_id, place] = taker, kept.number
            received = EventReceived(at_ms=now_ms, place=place, data=kept.data, source=kept.source)
            turn.queue.append((execution_id, received))

    def _close_wait(self, turn: ExecutionTurn, row: ExecutionRow, place: StepPlace) -> Program[None]:
        taker, number = turn.kept.pop((row.execution_id, place), ("", 0))
        if number:
            yield from self.waits.take(row.execution_id, taker, number)
        yield from self.waits.close(row.execution_id, place)

    def _left_open(self, turn: ExecutionTurn, execution_id: str, place: StepPlace, now_ms: int) -> Program[None]:
        """Give a wait that has not taken an event the next one that is kept."""
        taker, number = turn.kept.pop((execution_id, place), ("", 0))
        if number:
            kept = yield from self.waits.next_kept(execution_id, place, number)
            self._give_kept(turn, execution_id, place, taker, kept, now_ms)

    def _end(
        self, tx: Transaction, turn: ExecutionTurn, loaded: LoadedExecution, graph: Graph, command: EndExecution
    ) -> Program[None]:
        row = loaded.row
        task = yield from tx.load(row.execution_id)
        row.status, row.completed_ms, row.error = command.status, tx.context.now_ms, storable(command.error)
        if any(events_of(graph)):
            yield from self.waits.end(row.execution_id)
        if graph.budget != NO_BUDGET:
            yield from budgets.close(tx, row.execution_id)
        result: TaskResult | None = None
        if command.status == "completed":
            result = TaskResult(ResultKind.JSON, write_json(command.result))
        if task is not None and not task.is_final:
            turn.ending.add(row.execution_id)
            if result is not None:
                tx.results[row.execution_id] = result
                yield from tx.apply(task, Move.COMPLETE, tx.facts(ENGINE, result_bytes=len(result.data)))
                yield from results.write(row.execution_id, result, small=tx.context.small)
            elif command.status == "cancelled":
                yield from tx.apply(task, Move.CANCEL, tx.facts(reason=command.error))
            else:
                facts = tx.facts(ENGINE, reason=command.error, error_type=command.error_type)
                yield from tx.apply(task, Move.FAIL, facts)
            turn.ending.discard(row.execution_id)
        if task is not None:
            yield from self._tell_parent(tx, turn, task, command, result)
            if task.workflow & WorkflowPart.FLOW:
                yield from self.flow_ended(tx, row.execution_id)

    def _tell_parent(
        self, tx: Transaction, turn: ExecutionTurn, task: TaskRow, command: EndExecution, result: TaskResult | None
    ) -> Program[None]:
        """Let the execution above, if there is one, take in the end of its step."""
        if task.workflow & WorkflowPart.CALLED:
            yield from self._functions.execution_over(tx, task, command)
        elif task.workflow & WorkflowPart.STEP:
            outcome = "failed" if command.status == "failed" else command.status
            data = None if result is None else result.data
            yield from self._place_ended(tx, turn, task, outcome, command.error, command.error_type, data)

    def _continue(
        self, tx: Transaction, turn: ExecutionTurn, loaded: LoadedExecution, graph: Graph, command: ContinueExecution
    ) -> Program[None]:
        """End an execution as completed, and start the one that goes on with its work."""
        row = loaded.row
        task = yield from task_rows.load(row.execution_id)
        name = command.workflow or row.workflow_id
        stored = yield from definitions.newest(row.workspace, name)
        if stored is None or task is None:
            text = f"there is no workflow {name} in workspace {row.workspace}"
            yield from self._end(
                tx, turn, loaded, graph, EndExecution(status="failed", error=text, error_type="UNKNOWN_WORKFLOW")
            )
            return
        next_id = child_id(tx.context.now_ms, row, StepPlace("continue_as"), row.generation)
        is_same = (stored.workspace, stored.id) == (row.defined_in, row.workflow_id)
        begin = Begin(
            command.input,
            task.creator,
            task.correlation_id,
            {"continues": row.execution_id},
            decode(row.hops),
            instead_of=row.execution_id if is_same else "",
            continues=row,
            signals=_signals_left(turn, loaded) if is_same else (),
        )
        if is_same:
            yield from self.waits.hand_over(row.execution_id, next_id)
        try:
            yield from self.start(tx, stored, row.workspace, begin, task_id=next_id)
        except StartRefused as error:
            yield from self.waits.end(next_id)
            ended = EndExecution(status="failed", error=str(error), error_type="START_REFUSED")
        else:
            ended = EndExecution(status="completed", result={"continued_as": next_id})
        yield from self._end(tx, turn, loaded, graph, ended)

    # -- ends of steps -----------------------------------------------------------------------------

    def _step_ended(self, tx: Transaction, turn: ExecutionTurn, task: TaskRow) -> Program[None]:
        outcome = _OUTCOMES.get(task.status, "failed")
        data: bytes | None = None
        if outcome == "completed":
            result = tx.results.get(task.task_id)
            if result is None and task.result_bytes != NO_RESULT:
                result = yield from results.load(task)
            data = None if result is None else result_json(result)
            if data is not None and tx.context.small and len(data) > results.SMALL_BYTES:
                raise LargeError
        yield from self._place_ended(tx, turn, task, outcome, task.error, task.error_type, data)

    def _place_ended(
        self,
        tx: Transaction,
        turn: ExecutionTurn,
        task: TaskRow,
        outcome: str,
        error: str,
        error_type: str,
        data: bytes | None,
    ) -> Program[None]:
        place, attempt, compensates, is_item = place_of(task)
        stored = StepPlace(place.step + UNDO, place.item) if compensates else place
        now_ms = tx.context.now_ms
        is_open = task.task_id in turn.open
        found = yield from execution_rows.end_step(
            task.parent_task_id, stored, task.task_id, now_ms, outcome, error, error_type, data, is_open=is_open
        )
        if not found:
            return
        ended = StepEnded(
            at_ms=now_ms,
            place=place,
            outcome=outcome,
            error=error,
            error_type=error_type,
            attempt=attempt,
            compensates=compensates,
        )
        if is_item:
            yield from execution_rows.arrive(task.parent_task_id, encode_happening(ended))
            tx.effects.arrivals.add(task.parent_task_id)
        else:
            turn.given.setdefault(task.parent_task_id, {})[stored] = data
            turn.queue.append((task.parent_task_id, ended))

    def _failed_at_once(
        self,
        tx: Transaction,
        turn: ExecutionTurn,
        row: ExecutionRow,
        command: DoAction | StartExecution | AskPerson,
        error: str,
        error_type: str,
    ) -> None:
        ended = StepEnded(
            at_ms=tx.context.now_ms,
            place=command.place,
            outcome="failed",
            error=error,
            error_type=error_type,
            attempt=command.attempt,
            compensates=isinstance(command, DoAction) and command.compensates,
        )
        turn.queue.append((row.execution_id, ended))


def _is_separate(graph: Graph) -> bool:
    """Return whether the start of an execution changes no rows that others change."""
    if graph.flow.gates or graph.max_executions or graph.budget != NO_BUDGET:
        return False
    return all(isinstance(step.work, (Action, Compute)) for step in graph.steps.values())


def _signals_left(turn: ExecutionTurn, loaded: LoadedExecution) -> tuple[tuple[str, Json, str], ...]:
    """Return the signals that an execution has not taken, or begins with."""
    own_id = loaded.row.execution_id
    told = [one for own, one in turn.queue if own == own_id and isinstance(one, SignalReceived)]
    return (*loaded.state.signals, *((one.name, one.data, one.by) for one in told))


def _with_signals(signals: tuple[tuple[str, Json, str], ...]) -> bytes:
    """Return the state of an execution that begins with signals."""
    state = State.new()
    state.signals = list(signals)
    return write_json(state.to_json())


def _cancelled_by(execution_id: str) -> str:
    return f"execution {execution_id} has cancelled it"


def sent_step(task: TaskRow) -> SentStep | None:
    """Return which step a task is; None: its end is taken in later, or no step's."""
    place, _, compensates, is_item = place_of(task)
    return None if compensates or is_item else SentStep(task.parent_task_id, *place)


def _replaced(loaded: LoadedExecution, happening: Happening, commands: list[Command]) -> Mapping[StepPlace, Json]:
    """Return the results of tasks in whose place a step's `output` is kept."""
    ended: tuple[StepEnded, ...] = (happening,) if isinstance(happening, StepEnded) else ()
    if isinstance(happening, ItemsEnded):
        ended = happening.ended
    places = {one.place for one in ended if one.outcome == "completed" and not one.compensates}
    if not places:
        return NO_RESULTS
    kept = {one.place for one in commands if isinstance(one, KeepResult)}
    return {place: loaded.results[place] for place in places & kept if place in loaded.results}


def _hops(row: ExecutionRow, action: Action) -> Hops:
    """Return the chain that an action carries; tasks of clients' executions need none."""
    if not row.hops and (action.type is ActionType.EMIT_EVENT or action.completion_event.enabled):
        return extend((), "workflow", row.workflow_id)
    return decode(row.hops)
