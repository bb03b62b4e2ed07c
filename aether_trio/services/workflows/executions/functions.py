"""Keeps the runs of durable functions: what is done, and what they wait for.

    a worker's ADVANCE ──▶ rows of workflow_steps, workflow_history; child tasks, questions, timers
    the end of a child, a signal, a moment ──▶ the same history ──▶ the worker is told, or woken

A run is a task of its worker's pool, so any worker of the pool goes on with it; the history says
what is done. What the worker has done and what has happened meanwhile lie in one history, numbered
without gaps, so one number says all that a worker knows.

Invariants: a step is known by its key, is begun once in each generation and ends once; what a
worker asks for again, as an answer was lost, is not done again; a worker whose assignment is over
changes nothing. A run that no worker has is woken by each entry that it has not written itself,
unless it is paused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple, Protocol

import structlog

from aether_trio.model.access import AccessLevel
from aether_trio.model.limits import MIB
from aether_trio.model.tasks import Move, Reason, RetrySchedule, StoredStatus, TaskRow, Wait
from aether_trio.model.tasks.form import FORM, FormError, check_match
from aether_trio.model.tasks.result import MAX_RESULT_BYTES, NO_RESULT, ResultKind, TaskResult
from aether_trio.model.tasks.retry import Backoff
from aether_trio.model.tasks.task import WorkflowPart
from aether_trio.model.text import shown
from aether_trio.model.workflows.definition import Action, ActionType, RetryRule
from aether_trio.model.workflows.happenings import (
    CancelAsked,
    EndExecution,
    Happening,
    LimitReached,
    OpenWait,
    PauseAsked,
    ResumeAsked,
    SignalReceived,
    StepPlace,
)
from aether_trio.model.workflows.hops import decode
from aether_trio.services.tasks.transaction import results, task_rows
from aether_trio.services.tasks.transaction.interface import ChangeRefused, LargeError, Transaction
from aether_trio.services.workflows.actions.performer import (
    ENGINE,
    ActionRefused,
    Actions,
    Cause,
    Child,
    create_task,
    dated_id,
)
from aether_trio.services.workflows.documents.json_values import plain
from aether_trio.services.workflows.executions import budgets, execution_rows, function_rows
from aether_trio.services.workflows.executions.advancing import WARN_PART, HistoryLimit
from aether_trio.services.workflows.executions.execution_rows import ExecutionRow, StoredFork
from aether_trio.services.workflows.executions.function_forks import copy_kept
from aether_trio.services.workflows.executions.function_rows import (
    FunctionState,
    FunctionStep,
    RunningFunction,
    StepEnd,
)
from aether_trio.services.workflows.executions.new_executions import (
    QUEUED,
    Begin,
    ExecutionPosition,
    StartRefused,
    new_execution,
)
from aether_trio.services.workflows.executions.questions import new_question
from aether_trio.services.workflows.executions.step_tasks import result_json
from aether_trio.services.workflows.executions.turns import functions_in
from aether_trio.services.workflows.executions.waits import KeptEvent, OpenedWait, Waits, key_problem
from aether_trio.services.workflows.stored import definitions, timers
from aether_trio.services.workflows.stored.definitions import Definitions, StoredDefinition
from aether_trio.services.workflows.stored.listed_rows import PAGE_BYTES
from aether_trio.storage.base import Program
from aether_trio.wire.pb import aether_pb2 as pb

FUNCTION: Final = "function"
"""The kind of these executions and of their timers, and the key of their documents."""
NEWS_STATE: Final = "workflow"
"""The `state` of the progress event that tells a worker how many entries there are."""
MAX_COMMANDS: Final = 200
MAX_OPEN: Final = 1_000
MAX_KEY_CHARS: Final = 400
MAX_CODE_CHARS: Final = 300
MAX_ERROR_CHARS: Final = 4_000
MAX_SOURCE_CHARS: Final = 4_000
MAX_SIGNALS: Final = 1_000
"""Signals that wait for a step, of one run."""
MAX_SIGNAL_BYTES: Final = 1 * MIB
"""The size of all of them: they are a part of the history, which has a bound."""
MAX_MOMENT_MS: Final = 2**53
MAX_PRIORITY: Final = 1_000
"""Moments and times are below it: sums of them fit into a column."""
PAGE: Final = 500
CLEANUP_MS: Final = 60_000
"""Time for a function that is cancelled to undo what it has done."""
GRACE_MS: Final = 10_000
"""How long a worker may be away before another one goes on."""
FAILED: Final = "FUNCTION_FAILED"
"""The error type of the task of a function that has failed: no attempt follows."""
CHECKPOINT: Final = "_workflow"
"""What a hibernated run goes on from: its history."""
logger = structlog.get_logger("aether.workflows")
POLICY: Final = RetrySchedule(10, Backoff.EXPONENTIAL, 200, 30_000, 0.1, final_errors=(FAILED, budgets.USED_UP))
"""For workers that are lost: so many attempts without progress."""
KINDS: Final = ("call", "run", "sleep", "ask", "wait", "once")
OUTCOMES: Final = ("completed", "failed", "cancelled")
CONTINUED: Final = "continued"
"""The outcome of a run whose work a new one goes on with."""
_LATER: Final = ""
"""The key in `FunctionState.due` of a run that a worker has put off."""


class CommandError(ChangeRefused, ValueError):
    """What a worker asks for is malformed, or beyond a limit; nothing is done."""


class StartSub(Protocol):
    """Starts an execution below another one, as `Executions.start` does."""

    def __call__(
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
    ) -> Program[str]: ...


class Advanced(NamedTuple):
    """The answer to a worker: entries (number, Unix ms, JSON) new to it."""

    entries: list[tuple[int, int, bytes]]
    more: bool
    """Whether there are further entries."""
    status: str
    """running, or what the run is by now: the worker has no part in it any more."""


class Functions:
    """Starts runs of functions and moves them on; `validate` is that of Executions."""

    def __init__(
        self,
        stored: Definitions,
        actions: Actions,
        validate: Callable[[Any, Any], str],
        history_limit: HistoryLimit,
        waits: Waits,
    ) -> None:
        self._definitions = stored
        self._actions = actions
        self._validate = validate
        self._history_limit = history_limit
        self._waits = waits

    # -- begin and end -----------------------------------------------------------------------------

    def start(
        self,
        tx: Transaction,
        stored: StoredDefinition,
        workspace: str,
        begin: Begin,
        position: ExecutionPosition,
    ) -> Program[None]:
        """Start a run of a function whose owner may act there, or let it wait.

        Raises StartRefused.
        """
        about = json.loads(stored.document)[FUNCTION]
        if problem := (yield from self._waits.problem(workspace, _events_of(about))):
            raise StartRefused(f"workflow {stored.id}: {problem}")
        schema = about.get("input")
        if schema is not None and (problem := self._validate(schema, begin.input)):
            raise StartRefused(f"the input of workflow {stored.id} is not as declared: {problem}")
        try:
            trigger = begin.written or to_json(plain(begin.input))  # whole numbers are integers
        except CommandError as error:
            raise StartRefused(f"the input of workflow {stored.id}: {error}") from None
        begin = replace(begin, metadata={**begin.metadata, FUNCTION: "true"})
        task, row = new_execution(
            tx,
            self._actions,
            stored,
            workspace,
            begin,
            position,
            trigger,
            worker=about["worker"],
            kind=FUNCTION,
            state=b"{}",
        )
        task.workflow = WorkflowPart.FUNCTION | position.part
        task.retry_policy, task.max_attempts = POLICY.to_json(), POLICY.attempts
        task.grace_ms = int(about.get("grace_ms", GRACE_MS))
        if not (yield from create_task(tx, task, trigger)):
            return  # this program has run before, and was committed
        yield from execution_rows.insert(row)
        if begin.fork is not None:
            yield from copy_kept(row.execution_id, begin.fork, tx.context.now_ms)
        if position.queued:
            return
        if begin.fork is None:
            yield from self._begin(tx, row, begin.creator)
        else:
            yield from self.begin(tx, row.execution_id)

    def begin(self, tx: Transaction, execution_id: str) -> Program[None]:
        """Let a run begin that was queued; its row says so already."""
        row, task = (yield from execution_rows.load(execution_id)), (yield from task_rows.load(execution_id))
        if row is not None and task is not None:
            yield from self._begin(tx, row, task.creator, (yield from execution_rows.fork_of(execution_id)))

    def _begin(self, tx: Transaction, row: ExecutionRow, creator: str, fork: StoredFork | None = None) -> Program[None]:
        yield from self._waits.begin(row.execution_id, row.workspace, _events_of((yield from _about(row))))
        run = functions_in(tx)[row.execution_id] = RunningFunction(row, FunctionState())
        entry = {"type": "Started", "workflow": row.workflow_id, "execution_id": row.execution_id, "by": creator}
        yield from self._note(tx, run, {**entry, "input": json.loads(row.trigger_data)})
        if fork is not None:
            kept = json.loads(fork.kept)
            row.entries, row.bytes = kept["entries"], row.bytes + kept["bytes"]
            run.state.signals, run.state.begun = kept["signals"], kept["begun"]
            yield from self._note(tx, run, {"type": "RetryAsked", "origin": fork.origin, "from": fork.step})
        yield from self._save(tx, run)

    def ended(self, tx: Transaction, task: TaskRow) -> Program[None]:
        """Write that a run has ended, however it has; cancel what it has left open."""
        run = yield from self._load(tx, task.task_id)
        if run is None or run.row.completed_ms:
            return
        row, now_ms = run.row, tx.context.now_ms
        status = {StoredStatus.COMPLETED: "completed", StoredStatus.CANCELLED: "cancelled"}.get(task.status, "failed")
        entry: dict[str, Any] = {"type": "Ended", "outcome": status}
        if status == "completed":
            result = tx.results.get(task.task_id)
            if result is None and task.result_bytes != NO_RESULT:
                result = yield from results.load(task)
            if result is not None:
                entry["result"] = json.loads(result_json(result))
        else:
            entry |= {"error": task.error, "error_type": task.error_type}
            row.error = task.error
        row.status, row.completed_ms = status, now_ms
        run.state = FunctionState(signals=run.state.signals)
        yield from self._waits.end(row.execution_id)
        if not row.entries:  # it has not begun: if it is tried again, it does
            yield from self._save(tx, run)
            return
        yield from self._note(tx, run, entry)
        yield from self._save(tx, run)
        yield from self._close_open(tx, run, "its execution has ended")
        yield from self._save(tx, run)

    def reopened(self, tx: Transaction, before: TaskRow, after: TaskRow) -> Program[None]:
        """Let an ended run begin again, with the steps that it has completed."""
        run = yield from self._load(tx, after.task_id)
        if run is None or not before.is_final:
            return
        row = run.row
        row.generation, row.status, row.completed_ms, row.error = row.generation + 1, "running", 0, ""
        if not row.entries:
            yield from self._save(tx, run)
            yield from self._begin(tx, row, after.creator, (yield from execution_rows.fork_of(row.execution_id)))
            return
        yield from self._waits.begin(row.execution_id, row.workspace, _events_of((yield from _about(row))))
        yield from self._note(tx, run, {"type": "RetryAsked"})
        yield from self._save(tx, run)

    # -- what happens ------------------------------------------------------------------------------

    def step_ended(self, tx: Transaction, task: TaskRow) -> Program[None]:
        """Take the end of a task that a function has called."""
        outcome, data = "failed", b"null"
        error, error_type = task.error, task.error_type
        if task.status is StoredStatus.COMPLETED:
            outcome, error, error_type = "completed", "", ""
            result = tx.results.get(task.task_id)
            if result is None and task.result_bytes != NO_RESULT:
                result = yield from results.load(task)
            if result is not None:
                data = result_json(result)
                if tx.context.small and len(data) > results.SMALL_BYTES:
                    raise LargeError
        elif task.status is StoredStatus.CANCELLED:
            error_type = "CANCELLED"
        elif task.status is StoredStatus.REJECTED:
            error_type = "REJECTED"
        yield from self.step_over(tx, task, StepEnd(outcome, data, error, error_type))

    def step_over(self, tx: Transaction, task: TaskRow, end: StepEnd) -> Program[None]:
        """Take the end of a task or execution that a function has begun as a step."""
        run = yield from self._load(tx, task.parent_task_id)
        if run is None or run.row.completed_ms:
            return
        key = pb.CreateTaskRequest.FromString(task.spec).metadata.get("step_id", "")
        found = yield from function_rows.load_steps(run.row.execution_id, [key])
        if key not in found or found[key].task_id != task.task_id:
            return
        if (yield from self._close(tx, run, key, end)):
            yield from self._told(tx, run)

    def execution_over(self, tx: Transaction, task: TaskRow, ended: EndExecution) -> Program[None]:
        """Take the end of an execution that a function has begun as a step."""
        data = to_json(plain(ended.result)) if ended.status == "completed" else b"null"
        outcome = "completed" if ended.status == "completed" else "failed"
        error_type = ended.error_type or ("CANCELLED" if ended.status == "cancelled" else "")
        yield from self.step_over(tx, task, StepEnd(outcome, data, ended.error, error_type))

    def happen(self, tx: Transaction, execution_id: str, happening: Happening) -> Program[bool]:
        """Let a signal come, or a participant pause, resume or cancel a run.

        Return False if it is no run of a function.
        """
        run = yield from self._load(tx, execution_id)
        if run is None:
            return False
        if not run.row.completed_ms:
            yield from self._happened(tx, run, happening)
        return True

    def _happened(self, tx: Transaction, run: RunningFunction, happening: Happening) -> Program[None]:
        row, state = run.row, run.state
        match happening:
            case SignalReceived():
                yield from self._signal(tx, run, happening)
            case PauseAsked():
                if row.status == "paused":
                    return
                row.status, row.error = "paused", happening.reason
                yield from self._note(tx, run, {"type": "PauseAsked", "reason": happening.reason, "by": happening.by})
                yield from self._told(tx, run)
            case ResumeAsked():
                if row.status != "paused":
                    return
                row.status, row.error = "cancelling" if state.cancelled else "running", ""
                budget = yield from self._steps_budget(row)
                if budget and state.begun >= (state.allowance or budget):
                    state.allowance = state.begun + budget
                yield from self._note(tx, run, {"type": "ResumeAsked", "by": happening.by})
                yield from self._told(tx, run)
            case CancelAsked():
                yield from self._cancel(tx, run, happening)
            case LimitReached():
                yield from self._save(tx, run)
                task = yield from task_rows.load(row.execution_id)
                if task is not None:
                    facts = tx.facts(ENGINE, reason=happening.error, error_type=happening.error_type)
                    yield from tx.apply(task, Move.FAIL, facts)
                return
            case _:
                return
        yield from self._save(tx, run)

    def _steps_budget(self, row: ExecutionRow) -> Program[int]:
        """Return how many steps a run may begin before a person is asked; 0: no bound."""
        terms = yield from self._definitions.terms(row.defined_in, row.workflow_id, row.version)
        return 0 if terms is None else terms.budget.steps

    def _cancel(self, tx: Transaction, run: RunningFunction, asked: CancelAsked) -> Program[None]:
        """Ask a function to end; end it at once if no worker has begun it."""
        row, state = run.row, run.state
        task = yield from task_rows.load(row.execution_id)
        if task is None or state.cancelled:
            return
        if not task.epoch:
            yield from self._save(tx, run)
            yield from tx.apply(task, Move.CANCEL, tx.facts(asked.by))
            return
        row.status = "cancelling"
        yield from self._note(tx, run, {"type": "CancelAsked", "reason": asked.reason, "by": asked.by})
        about = yield from _about(row)
        state.cancelled = row.entries
        state.cancel_ms = tx.context.now_ms + int(about.get("cleanup_ms", CLEANUP_MS))
        yield from self._close_open(tx, run, f"execution {row.execution_id} is cancelled")
        yield from self._told(tx, run)

    def _signal(self, tx: Transaction, run: RunningFunction, signal: SignalReceived) -> Program[None]:
        state = run.state
        waiting = sum(map(len, state.signals.values()))
        taker = next((key for key, name in state.waits.items() if name == signal.name), None)
        if taker is None and waiting >= MAX_SIGNALS:
            raise CommandError(f"{MAX_SIGNALS} signals wait for a step of execution {run.row.execution_id} already")
        found = {"type": "SignalReceived", "name": signal.name, "data": plain(signal.data), "by": signal.by}
        if taker is None:
            size = state.signal_bytes + len(to_json(found))
            if size > MAX_SIGNAL_BYTES:
                raise CommandError(
                    f"the signals that wait for a step of execution {run.row.execution_id} would have {size} bytes; "
                    f"at most {MAX_SIGNAL_BYTES} are allowed"
                )
            state.signal_bytes = size
        yield from self._note(tx, run, found)
        if taker is None:
            state.signals.setdefault(signal.name, []).append(run.row.entries)
        else:
            yield from self._close(tx, run, taker, StepEnd("completed", to_json(plain(signal.data))))
            yield from self._told(tx, run)

    def event_arrived(self, tx: Transaction, wait: OpenedWait, kept: KeptEvent) -> Program[bool]:
        """Let an event reach an open wait; return False if it is not a function's."""
        run = yield from self._load(tx, wait.execution_id)
        if run is None:
            return False
        key = wait.place.step
        if run.row.completed_ms or key not in run.state.events:
            yield from self._waits.close(wait.execution_id, wait.place)
            return True
        yield from self._waits.take(wait.execution_id, wait.taker, kept.number)
        yield from self._close(tx, run, key, _end_by(kept, run.state.events[key]))
        yield from self._told(tx, run)
        return True

    def time_passed(self, tx: Transaction, execution_id: str) -> Program[None]:
        """Let the due moment of a run come."""
        run = yield from self._load(tx, execution_id)
        if run is None or run.row.completed_ms:
            yield from timers.set_timer(FUNCTION, execution_id, 0)
            return
        now_ms, state = tx.context.now_ms, run.state
        for key in sorted(key for key, due_ms in state.due.items() if due_ms <= now_ms):
            if key == _LATER:
                del state.due[key]
                continue
            found = yield from function_rows.load_steps(execution_id, [key])
            sleeps = key in found and found[key].status == "waiting" and not found[key].task_id
            if sleeps and key not in state.waits and key not in state.events:
                yield from self._close(tx, run, key, StepEnd("completed"))
            else:
                yield from self._close(
                    tx, run, key, StepEnd("failed", error="nothing came in time", error_type="TIMEOUT")
                )
        if state.cancel_ms and state.cancel_ms <= now_ms:
            state.cancel_ms = 0
            yield from self._save(tx, run)
            task = yield from task_rows.load(execution_id)
            if task is not None and not task.is_final:
                yield from tx.apply(task, Move.CANCEL, tx.facts(reason="the cancelled function has not ended in time"))
            return
        yield from self._told(tx, run)
        yield from self._save(tx, run)
        if run.row.due_ms == 0:
            yield from timers.set_timer(FUNCTION, execution_id, 0)

    # -- what a worker asks for --------------------------------------------------------------------

    def advance(
        self,
        tx: Transaction,
        caller: str,
        execution_id: str,
        number: int,
        after: int,
        commands: Sequence[Mapping[str, Any]],
        start: StartSub,
    ) -> Program[Advanced | str]:
        """Do what a worker asks for; return what is new to it, or why it is refused.

        `number` is that of its assignment, `after` of the last entry that it knows. Raises
        CommandError; nothing may be committed then.
        """
        run = yield from self._load(tx, execution_id)
        task = yield from task_rows.load(execution_id)
        if run is None or task is None:
            return f"execution {shown(execution_id)} is no run of a function"
        if task.assigned_to != caller or task.epoch != number:
            return f"this assignment is over: assignment {number} of {caller} is not the current one, which is {task.epoch}"
        if task.status is not StoredStatus.RUNNING:
            return Advanced([], False, "paused" if run.row.status == "paused" else task.status.value)
        run.by_worker = True
        known = run.row.entries
        steps = yield from function_rows.load_steps(execution_id, [_key(one) for one in commands if "step" in one])
        status, state = "running", run.state
        budget = (yield from self._steps_budget(run.row)) if commands else 0
        for command in commands:
            begins = command.get("do") == "open" and _key(command) not in steps
            if budget and begins and state.begun >= (state.allowance or budget):
                status = yield from self._pause_for_steps(tx, run, task, budget)
            else:
                status = yield from self._do(tx, run, task, steps, command, after, start)
            if status != "running":
                break
        if budget and status == "running" and state.begun > (state.allowance or budget):
            # The steps that the worker has done itself are written, whatever the budget.
            status = yield from self._pause_for_steps(tx, run, task, budget)
        if status == "running" and run.written:
            if text := self._history_problem(run):
                yield from self._save(tx, run)
                yield from tx.apply(task, Move.FAIL, tx.facts(ENGINE, reason=text, error_type=FAILED))
                return Advanced([], False, "failed")
            if task.retry_count:
                yield from tx.write(task, task.changed({"retry_count": 0}), "")
        if run.written:
            yield from self._save(tx, run)
        run.by_worker = False
        old: list[tuple[int, int, bytes]] = []
        if after < known:
            old = yield from execution_rows.history(execution_id, after, PAGE + 1)
            old = [one for one in old if one[0] <= known]
        if tx.context.small and sum(len(one[2]) for one in old) > results.SMALL_BYTES:
            raise LargeError
        entries, more = _page([*old, *run.written] if after + len(old) >= known else old)
        return Advanced(entries, more or after + len(entries) < run.row.entries, status)

    def _do(
        self,
        tx: Transaction,
        run: RunningFunction,
        task: TaskRow,
        steps: dict[str, FunctionStep],
        command: Mapping[str, Any],
        after: int,
        start: StartSub,
    ) -> Program[str]:
        """Do one command; return "running", or what the run is afterwards."""
        match command.get("do"):
            case "open":
                yield from self._open(tx, run, task, steps, command, after, start)
            case "close":
                yield from self._record(tx, run, steps, command)
            case "tried":
                yield from self._tried(tx, run, steps, command)
            case "end":
                return (yield from self._end(tx, run, task, command, start))
            case "suspend":
                return (yield from self._suspend(tx, run, task, command, after))
            case "pause":
                return (yield from self._pause(tx, run, task, command))
            case other:
                raise CommandError(f"unknown command {shown(str(other))}: see docs/wire.md")
        return "running"

    def _open(
        self,
        tx: Transaction,
        run: RunningFunction,
        task: TaskRow,
        steps: dict[str, FunctionStep],
        command: Mapping[str, Any],
        after: int,
        start: StartSub,
    ) -> Program[None]:
        """Begin a step that ends later: call, run, sleep, ask, wait, or work done once."""
        row, state, now_ms = run.row, run.state, tx.context.now_ms
        key, kind = _key(command), command.get("kind")
        if kind not in KINDS:
            raise CommandError(f"kind is one of {', '.join(KINDS)}")
        found = steps.get(key)
        attempt = row.generation
        if (
            found is not None
            and (found.status == "completed" or found.attempt >= attempt)
            and not (kind == "once" and found.is_open and command.get("again"))
        ):
            return
        if state.opened >= MAX_OPEN:
            raise CommandError(f"{MAX_OPEN} steps of the function are open; wait for some before others begin")
        entry: dict[str, Any] = {
            "type": "StepOpened", "step": key, "kind": kind, "code": _text(command, "code", MAX_CODE_CHARS),
            "assignment": task.epoch,
        }  # fmt: skip
        if about := _text(command, "about", MAX_KEY_CHARS):
            entry["about"] = about
        given = {
            name: value
            for name, value in command.items()
            if name not in ("do", "step", "kind", "code", "about", "again")
        }
        entry |= {"given": given}
        yield from self._note(tx, run, entry)
        reopened = found is not None and found.is_open
        step = FunctionStep("running" if kind in ("call", "run", "once") else "waiting", attempt, "", now_ms)
        state.opened += not reopened
        state.begun += not reopened
        end: StepEnd | None = None
        if state.cancelled > after and kind != "once":
            end = StepEnd("cancelled", error="the function was cancelled")  # unknown to its worker
        elif kind == "run":
            # It may end before it is begun to the end, as a graph that only computes does.
            step = step._replace(task_id=dated_id(now_ms, f"{row.execution_id}\0{key}\0{attempt}\0{row.entries}"))
            yield from function_rows.put_open(row.execution_id, key, step, to_json({"kind": kind, **given}))
            end = yield from self._begin_execution(tx, run, key, step.task_id, command, start)
            after_all = yield from function_rows.load_steps(row.execution_id, [key])
            if not after_all[key].is_open:
                steps[key] = after_all[key]
                return
            if end is not None:
                step = step._replace(task_id="")
        elif kind == "call":
            step, end = yield from self._begin_call(tx, run, key, step, command)
        elif kind == "ask":
            step, end = yield from self._ask(tx, run, key, step, command)
        elif kind == "sleep":
            # A moment before 1970 is over, and 0 would be none.
            until_ms = _number(command, "until_ms", least=-MAX_MOMENT_MS) if "until_ms" in command else 0
            state.due[key] = max(until_ms, 1) if "until_ms" in command else now_ms + _number(command, "for_ms")
        elif kind == "wait" and "event" in command:
            end = yield from self._wait_for_event(run, key, command)
        elif kind == "wait":
            name = _text(command, "signal", MAX_KEY_CHARS)
            kept = state.signals.get(name)
            if kept:
                number = kept.pop(0)
                if not kept:
                    del state.signals[name]
                signals = yield from execution_rows.history(row.execution_id, number - 1, 1)
                state.signal_bytes = max(state.signal_bytes - len(signals[0][2]), 0)
                end = StepEnd("completed", to_json(json.loads(signals[0][2])["data"]))
            else:
                state.waits[key] = name
        if kind in ("ask", "wait") and (timeout_ms := _number(command, "timeout_ms")) and end is None:
            state.due[key] = now_ms + timeout_ms
        yield from function_rows.put_open(row.execution_id, key, step, to_json({"kind": kind, **given}))
        steps[key] = step
        if end is not None:
            yield from self._close(tx, run, key, end)
            steps[key] = step._replace(status=end.outcome)

    def _wait_for_event(self, run: RunningFunction, key: str, command: Mapping[str, Any]) -> Program[StepEnd | None]:
        """Let a step wait for an event; return its end if that has come already.

        Waits of one branch take different events, each the oldest that fits.
        """
        row = run.row
        event, source = _text(command, "event", MAX_KEY_CHARS), _text(command, "key", MAX_SOURCE_CHARS)
        if not event:
            raise CommandError(f"event is the name of an event, of 1 to {MAX_KEY_CHARS} characters")
        if source and (problem := key_problem(source)):
            return StepEnd("failed", error=f"the key of event {event}: {problem}", error_type="EXPRESSION")
        value = command.get("equals")
        if source and value is None:
            raise CommandError("equals is the value of the key for which the step waits; it is not null")
        if problem := (yield from self._waits.problem(row.workspace, [(event, source)])):
            return StepEnd("failed", error=problem, error_type="LIMIT")
        place, taker = StepPlace(key), key[: key.rfind("/") + 1]
        run.state.events[key] = event
        yield from self._waits.begin(row.execution_id, row.workspace, [(event, source)])
        wait = OpenWait(place=place, event=event, key_source=source, value=value)
        kept = yield from self._waits.open(row.execution_id, row.workspace, wait, taker)
        if kept is None:
            return None
        yield from self._waits.take(row.execution_id, taker, kept.number)
        return _end_by(kept, event)

    def _begin_execution(
        self,
        tx: Transaction,
        run: RunningFunction,
        key: str,
        task_id: str,
        command: Mapping[str, Any],
        start: StartSub,
    ) -> Program[StepEnd | None]:
        """Start the execution of a step, whose row is written; return why it is refused."""
        row, name = run.row, _text(command, "workflow", MAX_KEY_CHARS)
        stored = yield from definitions.newest(row.workspace, name)
        if stored is None:
            text = f"there is no workflow {shown(name)} in workspace {row.workspace}"
            return StepEnd("failed", error=text, error_type="UNKNOWN_WORKFLOW")
        try:
            yield from start(
                tx,
                stored,
                row.workspace,
                Begin(command.get("input"), row.owner, hops=decode(row.hops)),
                task_id=task_id,
                parent=row,
                part=WorkflowPart.STEP | WorkflowPart.CALLED,
                place={"workflow": "true", "execution_id": row.execution_id, "step_id": key},
            )
        except StartRefused as error:
            return StepEnd("failed", error=str(error), error_type="START_REFUSED")
        return None

    def _begin_call(
        self, tx: Transaction, run: RunningFunction, key: str, step: FunctionStep, command: Mapping[str, Any]
    ) -> Program[tuple[FunctionStep, StepEnd | None]]:
        """Create the task of a step; the step has ended if that is refused."""
        row = run.row
        made_of = f"{row.execution_id}\0{key}\0{step.attempt}\0{row.entries}"
        metadata = {"workflow": "true", "execution_id": row.execution_id, "step_id": key}
        part = WorkflowPart.STEP | WorkflowPart.CALLED
        action = Action(
            type=ActionType.MESSAGE,
            agent=_text(command, "agent", MAX_KEY_CHARS),
            tool_name=_text(command, "tool", MAX_KEY_CHARS),
            workspace=_text(command, "workspace", MAX_KEY_CHARS),
            retry=_retry(command.get("retry")),
            priority=_number(command, "priority", least=-MAX_PRIORITY, most=MAX_PRIORITY),
        )
        given = command.get("metadata")
        values = {"arguments": command.get("arguments"), "metadata": given if isinstance(given, dict) else {}}
        child = Child(row.execution_id, row.root_id, row.correlation_id, metadata, _number(command, "timeout_ms"), part)
        try:
            task = yield from self._actions.perform(
                tx, action, values, Cause(made_of, row.owner, row.workspace, decode(row.hops)), child
            )
        except ActionRefused as error:
            return step, StepEnd("failed", error=str(error), error_type=error.error_type)
        assert task is not None
        return step._replace(task_id=task.task_id), None

    def _ask(
        self, tx: Transaction, run: RunningFunction, key: str, step: FunctionStep, command: Mapping[str, Any]
    ) -> Program[tuple[FunctionStep, StepEnd | None]]:
        """Put a question to a person, as a child that no worker has."""
        row, now_ms = run.row, tx.context.now_ms
        if problem := self._actions.allowed(row.owner, row.workspace, AccessLevel.READWRITE, now_ms):
            return step, StepEnd("failed", error=problem, error_type="PERMISSION_DENIED")
        form = {name: command[name] for name in ("question", "choices", "text", "form") if command.get(name)}
        match = {FORM: json.dumps(form, separators=(",", ":"))}
        try:
            check_match(match)
        except FormError as error:
            return step, StepEnd("failed", error=str(error), error_type="BAD_QUESTION")
        wait = Wait(expected_principal=_text(command, "of", MAX_KEY_CHARS), input_match=match)
        metadata = {"workflow": "true", "execution_id": row.execution_id, "step_id": key}
        task_id = dated_id(now_ms, f"{row.execution_id}\0{key}\0{step.attempt}\0{row.entries}")
        part = WorkflowPart.STEP | WorkflowPart.CALLED
        yield from create_task(tx, new_question(tx, row, task_id, wait, metadata, part), b"")
        return step._replace(task_id=task_id), None

    def _record(
        self, tx: Transaction, run: RunningFunction, steps: dict[str, FunctionStep], command: Mapping[str, Any]
    ) -> Program[None]:
        """Write the end of a step that the worker has done, or does not wait for any more."""
        row, now_ms = run.row, tx.context.now_ms
        key, outcome = _key(command), command.get("outcome")
        if outcome not in OUTCOMES:
            raise CommandError(f"outcome is one of {', '.join(OUTCOMES)}")
        data = to_json(command.get("result"))
        if len(data) > MAX_RESULT_BYTES:
            raise CommandError(
                f"the result of step {key} has {len(data)} bytes; at most {MAX_RESULT_BYTES} are allowed"
            )
        if tx.context.small and len(data) > results.SMALL_BYTES:
            raise LargeError
        error_type = _text(command, "error_type", MAX_KEY_CHARS)
        end = StepEnd(outcome, data, _text(command, "error", MAX_ERROR_CHARS), error_type)
        found = steps.get(key)
        if found is not None and found.is_open and found.attempt >= row.generation and found.status != "tried":
            yield from self._close(tx, run, key, end)
        elif (
            found is None or found.status == "tried" or (found.status != "completed" and found.attempt < row.generation)
        ):
            entry = {"kind": _text(command, "kind", 40), "code": _text(command, "code", MAX_CODE_CHARS)}
            began_ms = now_ms if found is None else found.started_ms
            yield from function_rows.put_ended(row.execution_id, key, row.generation, began_ms, now_ms, end)
            yield from self._note_end(tx, run, key, end, entry)
            run.state.begun += 1
        else:
            return
        steps[key] = FunctionStep(outcome, row.generation, "", now_ms)

    def _tried(
        self, tx: Transaction, run: RunningFunction, steps: dict[str, FunctionStep], command: Mapping[str, Any]
    ) -> Program[None]:
        """Write that a worker's attempt at a step has failed, and another follows."""
        row, now_ms = run.row, tx.context.now_ms
        key, attempt = _key(command), _number(command, "attempt")
        found = steps.get(key)
        if found is not None and found.status != "tried" and found.attempt >= row.generation:
            return
        entry = {
            "type": "StepTried",
            "step": key,
            "attempt": attempt,
            "kind": _text(command, "kind", 40),
            "code": _text(command, "code", MAX_CODE_CHARS),
            "error": _text(command, "error", MAX_ERROR_CHARS),
            "error_type": _text(command, "error_type", MAX_KEY_CHARS),
            "next_ms": now_ms + _number(command, "wait_ms"),
        }
        yield from self._note(tx, run, entry)
        step = FunctionStep("tried", row.generation, "", now_ms if found is None else found.started_ms)
        yield from function_rows.put_open(row.execution_id, key, step, None)
        steps[key] = step

    def _go_on_as(
        self, tx: Transaction, run: RunningFunction, task: TaskRow, command: Mapping[str, Any], start: StartSub
    ) -> Program[tuple[str, Mapping[str, Any]]]:
        """Start the run that goes on with the work of this one; return how this one ends."""
        row = run.row
        stored = yield from definitions.newest(row.workspace, row.workflow_id)
        next_id = dated_id(tx.context.now_ms, f"{row.execution_id}\0continue_as\0{row.generation}")
        try:
            if stored is None:
                raise StartRefused(f"there is no workflow {row.workflow_id} in workspace {row.workspace}")
            begin = Begin(
                command.get("input"), task.creator, task.correlation_id, {"continues": row.execution_id},
                decode(row.hops), instead_of=row.execution_id, continues=row,
            )  # fmt: skip
            yield from self._waits.hand_over(row.execution_id, next_id)
            yield from start(tx, stored, row.workspace, begin, task_id=next_id)
        except StartRefused as error:
            yield from self._waits.end(next_id)
            return "failed", {"error": f"it cannot go on as a new execution: {error}"}
        yield from self._hand_over_signals(tx, run, next_id)
        return "completed", {"result": {"continued_as": next_id}}

    def _hand_over_signals(self, tx: Transaction, run: RunningFunction, next_id: str) -> Program[None]:
        """Give the next run the signals that no step has taken."""
        following = yield from self._load(tx, next_id)
        if following is None or following.row.status == QUEUED:
            return
        for number in sorted(number for numbers in run.state.signals.values() for number in numbers):
            [(_, _, entry)] = yield from execution_rows.history(run.row.execution_id, number - 1, 1)
            found = json.loads(entry)
            told = SignalReceived(at_ms=tx.context.now_ms, name=found["name"], data=found["data"], by=found["by"])
            yield from self._signal(tx, following, told)
        yield from self._save(tx, following)

    def _end(
        self, tx: Transaction, run: RunningFunction, task: TaskRow, command: Mapping[str, Any], start: StartSub
    ) -> Program[str]:
        """End the run as its function has ended."""
        outcome = command.get("outcome")
        if outcome not in (*OUTCOMES, CONTINUED):
            raise CommandError(f"outcome is one of {', '.join(OUTCOMES)} and {CONTINUED}")
        yield from self._save(tx, run)
        if outcome == CONTINUED:
            outcome, command = yield from self._go_on_as(tx, run, task, command, start)
        if outcome == "completed":
            data = to_json(command.get("result"))
            if len(data) > MAX_RESULT_BYTES:
                raise CommandError(f"the result has {len(data)} bytes; at most {MAX_RESULT_BYTES} are allowed")
            result = TaskResult(ResultKind.JSON, data)
            tx.results[task.task_id] = result
            yield from tx.apply(task, Move.COMPLETE, tx.facts(task.assigned_to, result_bytes=len(data)))
            yield from results.write(task.task_id, result, small=tx.context.small)
        elif outcome == "cancelled":
            yield from tx.apply(task, Move.CANCEL, tx.facts(reason="the function was cancelled"))
        else:
            text = _text(command, "error", MAX_ERROR_CHARS) or "the function has failed"
            yield from tx.apply(task, Move.FAIL, tx.facts(task.assigned_to, reason=text, error_type=FAILED))
        return str(outcome)

    def _suspend(
        self, tx: Transaction, run: RunningFunction, task: TaskRow, command: Mapping[str, Any], after: int
    ) -> Program[str]:
        """Let the run sleep until there is news that the worker does not know.

        With `for_ms` the run is also woken then: 0 gives it to another worker at once.
        """
        if run.row.status != "paused" and run.row.entries > after:
            return "running"
        if "for_ms" in command:
            run.state.due[_LATER] = tx.context.now_ms + _number(command, "for_ms")
        yield from self._save(tx, run)
        yield from self._hibernate(tx, task)
        if command.get("for_ms") == 0 and run.row.status != "paused":
            run.by_worker = False
            del run.state.due[_LATER]
            yield from self._told(tx, run)
        return "hibernated"

    def _pause(self, tx: Transaction, run: RunningFunction, task: TaskRow, command: Mapping[str, Any]) -> Program[str]:
        """Pause the run: its code does not fit its history, or cannot go on."""
        return (yield from self._paused(tx, run, task, _text(command, "reason", MAX_ERROR_CHARS), task.assigned_to))

    def _pause_for_steps(self, tx: Transaction, run: RunningFunction, task: TaskRow, budget: int) -> Program[str]:
        """Pause the run, and ask a person: it has begun as many steps as its budget has."""
        reason = f"the budget of {budget} steps is used up"
        yield from budgets.ask(tx, run.row, reason)
        return (yield from self._paused(tx, run, task, reason, ""))

    def _paused(self, tx: Transaction, run: RunningFunction, task: TaskRow, reason: str, by: str) -> Program[str]:
        run.row.status, run.row.error = "paused", reason
        yield from self._note(tx, run, {"type": "PauseAsked", "reason": reason, "by": by})
        yield from self._save(tx, run)
        yield from self._hibernate(tx, task)
        return "paused"

    def _hibernate(self, tx: Transaction, task: TaskRow) -> Program[None]:
        wait = Wait(reason=Reason.HIBERNATION, checkpoint_key=CHECKPOINT)
        current = (yield from task_rows.load(task.task_id)) or task
        facts = tx.facts(task.assigned_to, caller_epoch=task.epoch, wait=wait)
        yield from tx.apply(current, Move.PAUSE, facts)

    # -- shared ------------------------------------------------------------------------------------

    def _load(self, tx: Transaction, execution_id: str) -> Program[RunningFunction | None]:
        found = functions_in(tx).get(execution_id)
        if found is None:
            row = yield from execution_rows.load(execution_id)
            if row is None or row.kind != FUNCTION:
                return None
            found = functions_in(tx)[execution_id] = RunningFunction(row, FunctionState.from_json(row.state))
        return found

    def _save(self, tx: Transaction, run: RunningFunction) -> Program[None]:
        row, state = run.row, run.state
        row.state = state.to_json()
        due_ms = 0 if row.completed_ms else state.due_ms
        if due_ms != row.due_ms:
            row.due_ms = due_ms
            yield from timers.set_timer(FUNCTION, row.execution_id, due_ms)
        tx.effects.note_due(due_ms)
        yield from execution_rows.save(row)

    def _note(self, tx: Transaction, run: RunningFunction, entry: Mapping[str, Any]) -> Program[None]:
        """Append an entry to the history."""
        data, now_ms = to_json(entry), tx.context.now_ms
        if tx.context.small and len(data) > 2 * results.SMALL_BYTES:
            raise LargeError
        yield from execution_rows.record(run.row, now_ms, data)
        run.written.append((run.row.entries, now_ms, data))

    def _note_end(
        self, tx: Transaction, run: RunningFunction, key: str, end: StepEnd, more: Mapping[str, Any]
    ) -> Program[None]:
        entry: dict[str, Any] = {"type": "StepClosed", "step": key, "outcome": end.outcome, **more}
        if end.outcome == "completed":
            entry["result"] = json.loads(end.result)
        else:
            entry |= {"error": end.error, "error_type": end.error_type}
        yield from self._note(tx, run, entry)

    def _close(self, tx: Transaction, run: RunningFunction, key: str, end: StepEnd) -> Program[bool]:
        """Write the end of a step, and cancel its task; return False if it has ended."""
        row, state = run.row, run.state
        task_id = yield from execution_rows.task_of(row.execution_id, StepPlace(key))
        if not (yield from function_rows.close(row.execution_id, key, tx.context.now_ms, end)):
            return False
        state.due.pop(key, None)
        state.waits.pop(key, None)
        if state.events.pop(key, None) is not None:
            yield from self._waits.close(row.execution_id, StepPlace(key))
        state.opened = max(state.opened - 1, 0)
        yield from self._note_end(tx, run, key, end, {})
        yield from self._save(tx, run)
        child = (yield from task_rows.load(task_id)) if task_id else None
        if child is not None and not child.is_final:
            tx.charge(moved=1)
            facts = tx.facts(reason=f"execution {row.execution_id} has cancelled it")
            yield from tx.apply(child, Move.CANCEL, facts)
        return True

    def _close_open(self, tx: Transaction, run: RunningFunction, why: str) -> Program[None]:
        """End all open steps as cancelled, but work in the worker, which the worker ends."""
        for key, task_id in (yield from function_rows.open_steps(run.row.execution_id)):
            if key == budgets.PLACE.step:
                if run.row.completed_ms:
                    yield from budgets.close(tx, run.row.execution_id)
                continue
            state = run.state
            if task_id or run.row.completed_ms or key in state.due or key in state.waits or key in state.events:
                yield from self._close(tx, run, key, StepEnd("cancelled", error=why))

    def _history_problem(self, run: RunningFunction) -> str:
        """Return why a run has too long a history, or ""; warn of one that comes near it."""
        row, limit = run.row, self._history_limit
        if row.entries > limit.entries or row.bytes > limit.bytes:
            return (
                f"the history has {row.entries} entries and {row.bytes} bytes; at most {limit.entries} and "
                f"{limit.bytes} are allowed: let the function return flow.continue_as(…), which begins a fresh one"
            )
        before = row.entries - len(run.written), row.bytes - sum(len(one[2]) for one in run.written)
        fifth = limit.entries // WARN_PART, limit.bytes // WARN_PART
        if any(was < part <= now for was, part, now in zip(before, fifth, (row.entries, row.bytes), strict=True)):
            logger.warning(
                "the history of a function has a fifth of its bound: let it return flow.continue_as",
                execution=row.execution_id, workflow=row.workflow_id, entries=row.entries, bytes=row.bytes,
            )  # fmt: skip
        return ""

    def _told(self, tx: Transaction, run: RunningFunction) -> Program[None]:
        """Tell the worker of the run that there is news, or let a worker have the run."""
        if run.by_worker:
            return
        yield from self._save(tx, run)
        task = yield from task_rows.load(run.row.execution_id)
        if task is None:
            return
        if task.status is StoredStatus.HIBERNATED and run.row.status != "paused":
            run.state.due.pop(_LATER, None)
            yield from self._save(tx, run)
            yield from tx.wake(task)
        elif task.status is StoredStatus.RUNNING:
            news = pb.TaskProgressEvent(state=NEWS_STATE, progress=-1, message=str(run.row.entries))
            yield from tx.record_event(
                task,
                pb.TaskEvent(
                    task_id=task.task_id,
                    workspace=task.workspace,
                    parent_task_id=task.parent_task_id,
                    emitted_at_unix_ms=tx.context.now_ms,
                    progress=news,
                ),
            )


def _about(row: ExecutionRow) -> Program[Mapping[str, Any]]:
    """Load what is registered of the function of a run; {} if that is gone."""
    stored = yield from definitions.load(row.defined_in, row.workflow_id, row.version)
    found: Mapping[str, Any] = {} if stored is None else json.loads(stored.document)[FUNCTION]
    return found


def _events_of(about: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """Return the events for which a function may wait, with their keys."""
    events: Mapping[str, str] = about.get("events", {})
    return events.items()


def _end_by(kept: KeptEvent, event: str) -> StepEnd:
    """Return the end of a step by an event: its data is the result."""
    data = to_json(plain(kept.data))
    if len(data) > MAX_RESULT_BYTES:
        text = f"the data of event {event} has {len(data)} bytes; at most {MAX_RESULT_BYTES} are allowed"
        return StepEnd("failed", error=text, error_type="TOO_LARGE")
    return StepEnd("completed", data)


def document_of(name: str, about: Mapping[str, Any]) -> bytes:
    """Return the stored document of a function; `about` has `worker` and options."""
    return to_json({FUNCTION: dict(about), "name": name})


def to_json(value: Any) -> bytes:
    """Write a value as compact JSON, with numbers as they are. Raises CommandError."""
    try:
        return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError, UnicodeEncodeError) as error:
        raise CommandError(f"this is not JSON: {error}") from None


def _page(entries: Iterable[tuple[int, int, bytes]]) -> tuple[list[tuple[int, int, bytes]], bool]:
    """Return the first entries that fit into an answer, and whether there are more."""
    page: list[tuple[int, int, bytes]] = []
    size = 0
    for one in entries:
        size += len(one[2])
        if page and (size > PAGE_BYTES or len(page) >= PAGE):
            return page, True
        page.append(one)
    return page, False


def _text(command: Mapping[str, Any], name: str, limit: int) -> str:
    """Return a text of a command, cut at a limit. Raises CommandError."""
    found = command.get(name, "")
    if not isinstance(found, str) or "\0" in found:
        raise CommandError(f"{name} is a text without zero bytes")
    return found if len(found) <= limit else found[: limit - 1] + "…"


def _key(command: Mapping[str, Any]) -> str:
    key = command.get("step")
    if not isinstance(key, str) or not key or "\0" in key or len(key) > MAX_KEY_CHARS or key == budgets.PLACE.step:
        raise CommandError(
            f"step is a text of 1 to {MAX_KEY_CHARS} characters without zero bytes, and not {budgets.PLACE.step}"
        )
    return key


def _number(command: Mapping[str, Any], name: str, least: int = 0, most: int = MAX_MOMENT_MS) -> int:
    found = command.get(name, 0)
    if isinstance(found, bool) or not isinstance(found, (int, float)) or not least <= found <= most:
        raise CommandError(f"{name} is a number from {least} to {most}")
    return int(found)


def _retry(found: Any) -> RetryRule:
    """Read how often a call is tried: attempts, backoff, initial_ms, max_ms, final."""
    if not isinstance(found, Mapping):
        return RetryRule()
    final = found.get("final", [])
    return RetryRule(
        max_attempts=_number(found, "max_attempts") or 1,
        backoff=_text(found, "backoff", 20) or "exponential",
        initial_ms=_number(found, "initial_ms") or 1_000,
        max_ms=_number(found, "max_ms"),
        final=tuple(one for one in final if isinstance(one, str)) if isinstance(final, list) else (),
    )
