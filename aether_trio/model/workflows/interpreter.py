"""Interprets workflow graphs: a happening goes in, commands come out.

It is deterministic: the same happenings, and the same results that it asks for, give the same state
and the same commands. So one interpreter runs, replays and foretells executions.

Order. Of the steps that can begin, the first of the document begins first; a step that ends at once
(computed, skipped, an emitted event) is followed before the next one is looked at. All ends that
one happening brings count before anything follows from them. The first failure that no handler
takes is that of the execution.

Pages. One happening begins at most BEGUN_AT_ONCE items and rounds of maps and loops, and no further
step, item or round once what it has begun took OPERATIONS_AT_ONCE. The others follow at the next
TimePassed, which is due at once. Output and result schema are those of each item or round.

Failure. No further step begins, what is open is cancelled, and the execution waits for the ends of
cancelled sub-executions. Then what was completed is compensated, one step after the other, the last
one first; of a map or loop each completed item or round, also if the step has failed. A step whose
result is that of an error handler has not done its work, so it is not compensated.

Retry. What failed without a handler, was cancelled or was compensated begins again, and so do steps
that were skipped and depend on one of those. Attempts are counted on, so none comes twice.

Pause. Nothing begins, and a failure has no consequence until the execution goes on. Timers of waits
and questions go off. A pause takes no time of the execution's timeout, nor does a moment at which
all that is open are waits and questions.

A happening that is late, comes again, or does not fit the present state changes nothing.
"""

from __future__ import annotations

import bisect
import fnmatch
import heapq
import json
import math
import zlib
from collections.abc import Callable, Generator, Iterator, Mapping
from datetime import UTC, datetime
from typing import Final, TypeAlias, TypeVar

from aether_trio.model.evaluation_meter import metered
from aether_trio.model.workflows.definition import (
    Action,
    ActionType,
    AskStep,
    CallWorkflow,
    Compute,
    ContinueAs,
    EvaluationError,
    Fail,
    Graph,
    Json,
    MapMode,
    Step,
    Value,
    WaitFor,
)
from aether_trio.model.workflows.durations import DurationError, duration_ms
from aether_trio.model.workflows.forks import begins_again, kept_state
from aether_trio.model.workflows.happenings import (
    BEGUN_AT_ONCE,
    ITEMS,
    ITEMS_PAGE,
    NO_ITEM,
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
    NeedResult,
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
from aether_trio.model.workflows.plan import GraphPlan, plan_of
from aether_trio.model.workflows.state import (
    CANCELLED,
    COMPENSATED,
    COMPLETED,
    DELAYED,
    ENDED,
    FAILED,
    OPEN,
    PENDING,
    RUNNING,
    SKIPPED,
    WAITING,
    WORDS,
    Ending,
    ExecutionStatus,
    MapProgress,
    State,
    StepProgress,
    StepTimer,
)

EXPRESSION: Final = "EXPRESSION"  # types of errors that the interpreter finds
RESULT_SCHEMA: Final = "RESULT_SCHEMA"
TIMEOUT: Final = "TIMEOUT"
LIMIT: Final = "LIMIT"
STOPPED: Final = "CANCELLED"
WAITS_IN_A_CIRCLE: Final = "CIRCLE"

MAX_ITEMS: Final = 10_000
MAX_RESULT_BYTES: Final = 512 * 1024
MAX_MADE_BYTES: Final = 2 * 1024 * 1024  # computed for steps, not items, by one happening
OPERATIONS_AT_ONCE: Final = 20_000  # for steps, items and rounds that one happening begins, about
STEP_OPERATIONS: Final = 50  # what the begin of a step counts, without its values
DEPENDENCY_OPERATIONS: Final = 2
MAX_SIGNALS: Final = 256  # signals for which no step waits yet
MAX_SIGNAL_BYTES: Final = 64 * 1024  # of all of them
MAX_ERROR_CHARACTERS: Final = 1_000  # of a step's error in the state
MAX_WAIT_MS: Final = 100 * 365 * 24 * 3_600_000

_FIXED: Final = frozenset(("constant", "fixed"))
_MAX_EXPONENT: Final = 40
_KINDS: Final = 4  # of timers
_MAX_FIRED: Final = 100  # timers of places that one happening lets go off
_NOT_RETRIED: Final = frozenset((EXPRESSION, RESULT_SCHEMA, LIMIT, STOPPED))
_COMPUTED: Final = ("arguments", "metadata", "payload", "idempotency_key", "correlation_id")

Validate: TypeAlias = Callable[[Mapping[str, Json], Json], str]
_T = TypeVar("_T")
Needing: TypeAlias = Generator[Need, Json, _T]


class _Unknown:
    """The result of a step that its own task has made, and that is not asked for yet."""


_UNKNOWN: Final = _Unknown()


def advance(
    graph: Graph, state: State, happening: Happening, *, validate: Validate | None = None
) -> Needing[list[Command]]:
    """Take a happening in: changes the state in place, and returns what follows.

    The caller sends the answer to each Need that is yielded. `validate` checks a value against a
    JSON Schema and returns the problem, "" for none; without it nothing is checked. What a
    document, a worker or an event says raises nothing.
    """
    run = _Advance(plan_of(graph), state, happening.at_ms, validate)
    if (yield from run.take(happening)):
        yield from run.settle()
        run.finish()
    return run.commands


def signal_problem(graph: Graph, state: State, name: str, data: Json) -> str:
    """Return why an execution does not take a signal, for its sender; "" if it does."""
    if state.over or state.status == ExecutionStatus.COMPENSATING:
        return f"the execution is {state.status}"
    waiting = plan_of(graph).signals
    if name not in waiting:
        names = ", ".join(sorted(waiting)) or "none"
        return f"no step of the workflow waits for this signal; the signals of the workflow are: {names}"
    if any(state.code(step.id) in OPEN for step in waiting[name]):
        return ""
    return _buffer_problem(state, data)


def _buffer_problem(state: State, data: Json) -> str:
    if len(state.signals) >= MAX_SIGNALS:
        return f"{MAX_SIGNALS} signals wait for a step of the execution already"
    try:
        size = len(_encoded([[one[1] for one in state.signals], data]))
    except (ValueError, TypeError, RecursionError) as failed:
        return f"the signal's data are not JSON: {failed}"
    if size > MAX_SIGNAL_BYTES:
        return f"the signals that wait for a step would have {size} bytes; {MAX_SIGNAL_BYTES} are allowed"
    return ""


class _Advance:
    """One happening, and all that follows from it."""

    def __init__(self, plan: GraphPlan, state: State, at_ms: int, validate: Validate | None) -> None:
        self.commands: list[Command] = []
        self._plan = plan
        self._state = state
        self._at = at_ms
        self._validate = validate
        self._queue: list[int] = []  # numbers of steps to look at, as a heap
        self._queued: set[int] = set()
        self._page = BEGUN_AT_ONCE  # items and rounds that may still be begun
        self._spent = 0  # operations, of values and of what begins
        self._known: dict[StepPlace, Json] = {}  # results that were asked for, or as if they were
        self._made: dict[StepPlace, Json] = {}  # results of this advance
        self._made_bytes = 0
        self._errors: dict[StepPlace, tuple[str, str]] = {}  # of items that failed in this advance
        self._taking = True
        self._failing: dict[str, tuple[str, str]] = {}  # steps that fail once all ends are taken in

    # -- happenings --------------------------------------------------------------------------------

    def take(self, happening: Happening) -> Needing[bool]:
        """Change what the happening says; returns whether it said anything."""
        took = yield from self._take(happening)
        self._taking = False
        for name, (error, kind) in self._failing.items():
            if self._code(StepPlace(name)) == RUNNING:
                yield from self._fail_step(self._plan.steps[name], error, kind)
        return took

    def _take(self, happening: Happening) -> Needing[bool]:
        state = self._state
        if isinstance(happening, Started | Forked):
            return self._start(happening)
        if not state.started_ms:
            return False
        match happening:
            case StepEnded():
                return (yield from self._step_ended(happening))
            case ItemsEnded():
                took = False
                for one in happening.ended:
                    took |= yield from self._step_ended(one)
                return took
            case TimePassed():
                return (yield from self._time_passed())
            case SignalReceived():
                return (yield from self._signal(happening))
            case EventReceived():
                return (yield from self._event(happening))
            case CancelAsked():
                if not self._going:
                    return False
                self._begin_ending(Ending(ExecutionStatus.CANCELLED, happening.reason or "cancelled", STOPPED))
                return True
            case LimitReached():
                if not self._going:
                    return False
                self._begin_ending(Ending(ExecutionStatus.FAILED, happening.error, happening.error_type))
                return True
            case RetryAsked():
                return self._retry()
            case PauseAsked():
                if state.status != ExecutionStatus.RUNNING:
                    return False
                state.status = ExecutionStatus.PAUSED
                return True
            case ResumeAsked():
                return self._resume()

    @property
    def _going(self) -> bool:
        return self._state.status in {ExecutionStatus.RUNNING, ExecutionStatus.PAUSED}

    def _start(self, happening: Started | Forked) -> bool:
        state = self._state
        if state.started_ms:
            return False
        if isinstance(happening, Forked):
            state.take_over(kept_state(happening.kept), self._plan.steps)
        state.started_ms = max(happening.at_ms, 1)
        state.execution_id = happening.execution_id
        state.workspace = happening.workspace
        state.allowance = self._plan.graph.budget.steps
        if happening.refused:
            self._begin_ending(Ending(ExecutionStatus.FAILED, happening.refused, happening.error_type))
        else:
            self._look_at_all()
        return True

    def _resume(self) -> bool:
        state = self._state
        if state.status != ExecutionStatus.PAUSED:
            return False
        state.status = ExecutionStatus.RUNNING
        budget = self._plan.graph.budget.steps
        if budget and state.begun >= state.allowance:
            state.allowance = state.begun + budget
        self._look_at_all()
        return True

    def _retry(self) -> bool:
        """Make pending what failed, was cancelled, skipped for that, or compensated."""
        state, plan = self._state, self._plan
        if state.status not in {ExecutionStatus.FAILED, ExecutionStatus.CANCELLED}:
            return False
        state.status = ExecutionStatus.RUNNING
        state.ending = state.failure = None
        state.used_ms = 0
        state.tallies.clear()
        again = [step.id for step in plan.order if begins_again(state.known(step.id))]
        while again:
            step = again.pop()
            self._reset(step)
            for number in plan.dependents[step]:
                other = plan.order[number].id
                if state.code(other) == SKIPPED and other not in again:
                    again.append(other)
        self._look_at_all()
        return True

    def _reset(self, step: str) -> None:
        self._state.set_step(step, PENDING)
        progress = self._state.progress(step)
        progress.base = progress.highest_attempt()
        progress.error = progress.error_type = progress.route = ""
        progress.round_code = PENDING
        if progress.items is not None:
            items = progress.items
            for item, code in enumerate(items.codes):
                if code in {FAILED, CANCELLED, COMPENSATED}:
                    items.attempts.pop(item, None)
                    items.set(item, PENDING)
        self.commands.append(MarkStep(place=StepPlace(step), status=WORDS[PENDING]))

    def _step_ended(self, ended: StepEnded) -> Needing[bool]:
        state, place = self._state, StepPlace(*ended.place)
        step = self._plan.steps.get(place.step)
        if step is None:
            return False
        if ended.compensates:
            return self._compensation_ended(step, place, ended)
        if place in state.cancelling:
            if ended.attempt not in (0, state.attempt(place)):
                return False
            state.cancelling.discard(place)
            if ended.outcome == "completed" and state.status == ExecutionStatus.COMPENSATING:
                self._completed_after_all(step, place)
            return True
        if not self._going or not self._awaits_end(step, place):
            return False
        if ended.attempt not in (0, state.attempt(place)):
            return False
        if ended.outcome == "completed":
            yield from self._finish(step, place)
        else:
            kind = STOPPED if ended.outcome == "cancelled" else "FAILED"
            error = ended.error or ("cancelled" if ended.outcome == "cancelled" else "failed")
            yield from self._fail(step, place, error, ended.error_type or kind, told=True)
        return True

    def _awaits_end(self, step: Step, place: StepPlace) -> bool:
        if (place.item == NO_ITEM) != (step.for_each is None and step.while_ is None):
            return False
        if isinstance(step.work, AskStep):
            return self._code(place) == WAITING
        return isinstance(step.work, (Action, CallWorkflow)) and self._code(place) == RUNNING

    def _completed_after_all(self, step: Step, place: StepPlace) -> None:
        """Note that a sub-execution was completed before its cancellation."""
        progress = self._state.progress(step.id)
        if progress.items is not None:
            progress.items.set(place.item, COMPLETED)
        elif step.while_ is not None:
            progress.round += 1
            progress.round_code = PENDING
        else:
            self._state.set_step(step.id, COMPLETED)
        if step.compensate is not None and step.id not in self._state.order:
            self._state.order.append(step.id)

    def _time_passed(self) -> Needing[bool]:
        state = self._state
        took = False
        if state.page_ms and state.page_ms <= self._at and state.status != ExecutionStatus.PAUSED:
            state.page_ms = 0
            self._look_at_all()
            took = True
        timeout = self._plan.graph.timeout_ms
        if state.ticking_ms and timeout and state.used_ms + self._at - state.ticking_ms >= timeout:
            error = f"the execution timed out after {timeout / 1000:g} s"
            self._begin_ending(Ending(ExecutionStatus.FAILED, error, TIMEOUT))
            return True
        due = [
            (timer.due_ms, self._plan.number[name], timer)
            for name, timers in state.timers.items()
            for timer in timers
            if timer.due_ms <= self._at and not self._rests(timer)
        ]
        fired = 0
        for _, number, timer in sorted(due):
            if fired >= _MAX_FIRED or not self._going:
                break
            step = self._plan.order[number]
            left = [one for one in state.timers.get(step.id, ()) if one != timer]
            if step.id not in state.timers or len(left) == len(state.timers[step.id]):
                continue  # an earlier one has ended the step
            self._set_timers(step.id, left)
            took = True
            for item in range(timer.first, timer.last + 1):
                place = StepPlace(step.id, item)
                if self._code(place) in OPEN and state.attempt(place) == timer.attempt:
                    fired += 1
                    yield from self._fire(step, place, timer)
        return took

    def _rests(self, timer: StepTimer) -> bool:
        return timer.kind == "retry" and self._state.status == ExecutionStatus.PAUSED

    def _fire(self, step: Step, place: StepPlace, timer: StepTimer) -> Needing[None]:
        code = self._code(place)
        if timer.kind == "retry" and code == DELAYED:
            if self._state.failure is None and step.id not in self._failing:
                yield from self._begin(step, place)
        elif timer.kind == "over" and code == WAITING:
            yield from self._finish(step, place, None)
        elif timer.kind == "timeout" and code == WAITING:
            yield from self._wait_timed_out(step, place)
        elif timer.kind == "escalate" and code == WAITING:
            yield from self._escalate(step, place, timer)

    def _wait_timed_out(self, step: Step, place: StepPlace) -> Needing[None]:
        assert isinstance(step.work, (WaitFor, AskStep))
        self._close(step, place)
        error, kind = f"timed out after {step.timeout_ms / 1000:g} s", TIMEOUT
        if step.work.default is not None:
            try:
                result = yield from self._value(step, place, step.work.default)
            except EvaluationError as failed:
                error, kind = str(failed), EXPRESSION
            else:
                yield from self._finish(step, place, result)
                return
        yield from self._fail(step, place, error, kind)

    def _escalate(self, step: Step, place: StepPlace, timer: StepTimer) -> Needing[None]:
        assert isinstance(step.work, AskStep)
        escalation = step.work.escalate[timer.number]
        try:
            of = yield from self._value(step, place, escalation.of)
            yield from self._ask(step, place, step.work, of)
        except EvaluationError as failed:
            self._close(step, place)
            yield from self._fail(step, place, str(failed), EXPRESSION)
            return
        asked_ms = timer.due_ms - escalation.after_ms
        self._set_escalation(step.work, place, timer.number + 1, asked_ms)

    def _set_escalation(self, work: AskStep, place: StepPlace, number: int, asked_ms: int) -> None:
        if number < len(work.escalate):
            self._set_timer(place, "escalate", asked_ms + work.escalate[number].after_ms, number)

    def _signal(self, happening: SignalReceived) -> Needing[bool]:
        if not self._going or happening.name not in self._plan.signals:
            return False
        for step in self._plan.signals[happening.name]:
            for place in list(self._open_places(step)):
                if self._code(place) == WAITING and (
                    yield from self._takes_signal(step, place, happening.data, happening.by)
                ):
                    return True
        if _buffer_problem(self._state, happening.data):
            return False
        self._state.signals.append((happening.name, happening.data, happening.by))
        return True

    def _takes_signal(self, step: Step, place: StepPlace, data: Json, by: str) -> Needing[bool]:
        """End a wait by a signal that fits it; returns whether it did, or failed of it."""
        assert isinstance(step.work, WaitFor)
        if step.work.condition is not None:
            source = {"agent": "", "workspace": self._state.workspace, "event": step.work.signal, "principal": by}
            try:
                extra = {"input": _as_read(data), "source": source}
                if not (yield from self._holds(step, place, step.work.condition, extra)):
                    return False
            except EvaluationError as failed:
                yield from self._fail(step, place, str(failed), EXPRESSION)
                return True
        yield from self._finish(step, place, data)
        return True

    def _event(self, happening: EventReceived) -> Needing[bool]:
        place = StepPlace(*happening.place)
        step = self._plan.steps.get(place.step)
        if step is None or not self._going or not isinstance(step.work, WaitFor) or not step.work.event:
            return False
        if self._code(place) != WAITING:
            return False
        if step.work.condition is not None:
            extra = {"input": happening.data, "source": happening.source}
            try:
                if not (yield from self._holds(step, place, step.work.condition, extra)):
                    return False
            except EvaluationError as failed:
                self._close(step, place)
                yield from self._fail(step, place, str(failed), EXPRESSION)
                return True
        self.commands.append(CloseWait(place=place))
        yield from self._finish(step, place, happening.data)
        return True

    # -- what follows ------------------------------------------------------------------------------

    def settle(self) -> Needing[None]:
        """Do all that can be decided now."""
        state = self._state
        while state.status == ExecutionStatus.RUNNING:
            if state.failure is not None:
                self._begin_ending(state.failure)
            elif self._queue and self._spent >= OPERATIONS_AT_ONCE:
                state.page_ms = self._at
                return
            elif self._queue:
                number = heapq.heappop(self._queue)
                self._queued.discard(number)
                yield from self._look(self._plan.order[number])
            elif state.open or state.cancelling:
                return
            elif state.ended == len(self._plan.order):
                yield from self._complete_execution()
            elif state.page_ms:
                return
            else:
                pending = [step.id for step in self._plan.order if self._code(StepPlace(step.id)) == PENDING]
                error = f"these steps wait for each other: {', '.join(pending[:10])}"
                state.failure = Ending(ExecutionStatus.FAILED, error, WAITS_IN_A_CIRCLE)
        if state.status == ExecutionStatus.COMPENSATING:
            yield from self._compensate()

    def finish(self) -> None:
        """Compute when the execution is due next."""
        state, plan = self._state, self._plan
        timeout = plan.graph.timeout_ms
        if timeout:
            if state.ticking_ms:
                state.used_ms += max(self._at - state.ticking_ms, 0)
            state.ticking_ms = self._at if self._works() else 0
        if sum(map(len, state.timers.values())) > ITEMS_PAGE:
            self._forget_timers()
        due = [timer.due_ms for timers in state.timers.values() for timer in timers if not self._rests(timer)]
        if state.page_ms and state.status != ExecutionStatus.PAUSED:
            due.append(state.page_ms)
        if state.ticking_ms:
            due.append(state.ticking_ms + max(timeout - state.used_ms, 0))
        state.due_ms = max(min(due), self._at) if due else 0

    def _works(self) -> bool:
        """Return whether the execution's timeout passes: it does more than wait."""
        state = self._state
        if state.status != ExecutionStatus.RUNNING:
            return False
        waits = False
        for step in state.open:
            progress = state.progress(step)
            codes = progress.items.codes if progress.items is not None else [progress.code]
            if progress.items is None and self._plan.steps[step].while_ is not None:
                codes = [progress.round_code]
            if RUNNING in codes or DELAYED in codes:
                return True
            waits |= WAITING in codes
        return bool(state.page_ms) or not waits

    def _forget_timers(self) -> None:
        """Drop the timers whose items have all ended."""
        for step, timers in list(self._state.timers.items()):
            items = self._state.progress(step).items
            if len(timers) > ITEMS_PAGE + _KINDS * (items.open if items is not None else 1):
                self._set_timers(step, [timer for timer in timers if self._matters(step, timer)])

    def _matters(self, step: str, timer: StepTimer) -> bool:
        places = (StepPlace(step, item) for item in range(timer.first, timer.last + 1))
        return any(self._code(place) in OPEN and self._state.attempt(place) == timer.attempt for place in places)

    def _look_at(self, number: int) -> None:
        if number not in self._queued:
            self._queued.add(number)
            heapq.heappush(self._queue, number)

    def _look_at_all(self) -> None:
        for number, step in enumerate(self._plan.order):
            if self._state.code(step.id) not in ENDED:
                self._look_at(number)

    def _look(self, step: Step) -> Needing[None]:
        """Begin a step, or its next items or round, or skip it, if it is time."""
        code = self._code(StepPlace(step.id))
        if code == RUNNING:
            if step.for_each is not None:
                yield from self._begin_items(step)
            elif step.while_ is not None:
                yield from self._begin_rounds(step)
        elif code == PENDING:
            standing = self._standing(step)
            if standing == SKIPPED:
                self._skip(step)
            elif standing == RUNNING and self._afford():
                yield from self._begin_step(step)

    def _standing(self, step: Step) -> str:
        """Return if a step may begin: RUNNING yes, SKIPPED never, PENDING not yet."""
        standing = RUNNING
        if step.depends_on:
            completed, lost = self._tally(step)
            wanted = step.join or len(step.depends_on)
            if len(step.depends_on) - lost < wanted:
                return SKIPPED
            if completed < wanted:
                standing = PENDING
        for source in step.targeted_by:
            code = self._code(StepPlace(source))
            if code != COMPLETED:
                if code in ENDED:
                    return SKIPPED
                standing = PENDING
        if step.failure_target_of and self._failed_source(step) is None:
            if all(self._code(StepPlace(source)) in ENDED for source in step.failure_target_of):
                return SKIPPED
            standing = PENDING
        return standing

    def _tally(self, step: Step) -> list[int]:
        tally = self._state.tallies.get(step.id)
        if tally is None:
            codes = [self._code(StepPlace(source)) for source in step.depends_on]
            completed = codes.count(COMPLETED)
            tally = self._state.tallies[step.id] = [completed, sum(code in ENDED for code in codes) - completed]
        return tally

    def _failed_source(self, step: Step) -> str | None:
        for source in step.failure_target_of:
            progress = self._state.known(source)
            if progress is not None and progress.code == FAILED and progress.route == step.id:
                return source
        return None

    def _afford(self) -> bool:
        """Return whether the budget has a further place; pauses the execution if not."""
        state, budget = self._state, self._plan.graph.budget.steps
        if not budget or state.begun < state.allowance:
            return True
        state.status = ExecutionStatus.PAUSED
        self.commands.append(PauseExecution(reason=f"the budget of {budget} steps is used up"))
        return False

    def _skip(self, step: Step) -> None:
        self._end_step(step, SKIPPED)
        self.commands.append(MarkStep(place=StepPlace(step.id), status=WORDS[SKIPPED]))

    @property
    def _is_spent(self) -> bool:
        """Whether further items, rounds and steps are for the next happening."""
        return not self._page or self._spent >= OPERATIONS_AT_ONCE

    def _begin_step(self, step: Step) -> Needing[None]:
        self._spent += STEP_OPERATIONS + DEPENDENCY_OPERATIONS * len(step.depends_on)
        place = StepPlace(step.id)
        try:
            if step.when is not None and not (yield from self._holds(step, place, step.when)):
                self._skip(step)
                return
            if step.for_each is None and step.while_ is None:
                yield from self._begin(step, place)
                return
            if step.for_each is not None and self._state.progress(step.id).items is None:
                yield from self._keep_items(step, step.for_each.items)
        except EvaluationError as failed:
            yield from self._fail_step(step, str(failed), EXPRESSION)
            return
        if self._code(place) != PENDING:
            return  # there are too many items
        self._state.set_step(step.id, RUNNING)
        progress = self._state.progress(step.id)
        if step.for_each is not None:
            progress.attempt += 1
        self.commands.append(MarkStep(place=place, status=WORDS[RUNNING]))
        self._look_at(self._plan.number[step.id])

    def _keep_items(self, step: Step, value: Value) -> Needing[None]:
        place = StepPlace(step.id)
        items = yield from self._value(step, place, value)
        if not isinstance(items, (list, tuple)):
            raise EvaluationError(f"for_each gives {_kind(items)}, not a list")
        if len(items) > MAX_ITEMS:
            yield from self._fail_step(step, f"for_each has {len(items)} items; {MAX_ITEMS} are allowed", LIMIT)
            return
        for number, first in enumerate(range(0, len(items), ITEMS_PAGE)):
            page = list(items[first : first + ITEMS_PAGE])
            problem, kind = self._problem(page, counts=True)
            if problem:
                yield from self._fail_step(step, f"items from {first} on: {problem}", kind)
                return
            self._keep(StepPlace(step.id, ITEMS - number), page)
        self._state.progress(step.id).items = MapProgress(PENDING * len(items))

    def _begin_items(self, step: Step) -> Needing[None]:
        state, progress, for_each = self._state, self._state.progress(step.id), step.for_each
        assert progress.items is not None
        assert for_each is not None
        items = progress.items
        limit = for_each.max_parallel or len(items.codes)
        while items.left and items.open < limit:
            if self._is_spent:
                state.page_ms = self._at
                return
            if not self._afford():
                return
            self._page -= 1
            yield from self._begin(step, StepPlace(step.id, items.pending()))
            if progress.code != RUNNING or state.failure is not None or not self._going:
                return
        if not items.left and not items.open:
            yield from self._collect(step, items)

    def _collect(self, step: Step, items: MapProgress) -> Needing[None]:
        """Make the result of a `for_each` of those of its items."""
        known, errors = {**self._known, **self._made}, self._errors
        places = [StepPlace(step.id, item) for item in range(len(items.codes))]
        rows: dict[int, Json] = {}
        if not all(place in known or place in errors for place in places):
            answer = yield NeedItems(step.id)
            rows = {row.get("item", number): row for number, row in enumerate(answer)}
        results: list[Json] = []
        settled = step.for_each is not None and step.for_each.mode == MapMode.SETTLED
        for place, code in zip(places, items.codes, strict=True):
            row = rows.get(place.item, {})
            if code == COMPLETED:
                result = known[place] if place in known else row.get("result")
                results.append({"status": WORDS[code], "result": result} if settled else result)
            else:
                word = row.get("status", WORDS[FAILED])
                error, kind = errors.get(place) or (
                    row.get("error") or word,
                    row.get("error_type") or (STOPPED if word == WORDS[CANCELLED] else "FAILED"),
                )
                results.append({"status": WORDS[code], "error": error, "error_type": kind})
        problem, kind = self._problem(results)
        if problem:
            yield from self._fail_step(step, problem, kind)
            return
        self._keep(StepPlace(step.id), results)
        self._complete_step(step)

    def _begin_rounds(self, step: Step) -> Needing[None]:
        state, progress, loop = self._state, self._state.progress(step.id), step.while_
        assert loop is not None
        while progress.code == RUNNING and progress.round_code == PENDING:
            if state.failure is not None or not self._going:
                return
            if self._is_spent:
                state.page_ms = self._at
                return
            if not self._afford():
                return
            place = StepPlace(step.id, progress.round)
            try:
                again = yield from self._holds(step, place, loop.condition)
            except EvaluationError as failed:
                yield from self._fail_step(step, f"condition of round {place.item}: {failed}", EXPRESSION)
                return
            if not again:
                self._keep(StepPlace(step.id), (yield from self._last(place)))
                self._complete_step(step)
            elif progress.round >= loop.max_rounds:
                error = f"the condition still holds after {loop.max_rounds} rounds, which is the most"
                yield from self._fail_step(step, error, LIMIT)
            else:
                self._page -= 1
                yield from self._begin(step, place)

    def _last(self, place: StepPlace) -> Needing[Json]:
        if not place.item:
            return None
        return (yield from self._result(StepPlace(place.step, place.item - 1)))

    # -- a step, an item or a round ----------------------------------------------------------------

    def _begin(self, step: Step, place: StepPlace) -> Needing[None]:
        """Begin the next attempt of a place."""
        state = self._state
        state.begun += 1
        progress = state.progress(step.id)
        attempt = max(state.attempt(place), progress.base) + 1
        if progress.items is None:
            progress.attempt = attempt
        elif attempt > 1:
            progress.items.attempts[place.item] = attempt
        try:
            yield from self._do(step, place, attempt)
        except EvaluationError as failed:
            yield from self._fail(step, place, str(failed), EXPRESSION)

    def _do(self, step: Step, place: StepPlace, attempt: int) -> Needing[None]:
        work = step.work
        match work:
            case Action():
                values = yield from self._values(step, place, work)
                self.commands.append(
                    DoAction(place=place, attempt=attempt, action=work, values=values, timeout_ms=step.timeout_ms)
                )
                if work.type == ActionType.EMIT_EVENT:
                    yield from self._finish(step, place, None)
                else:
                    self._set_code(place, RUNNING)
            case CallWorkflow():
                given: Json = {} if work.input is None else (yield from self._value(step, place, work.input))
                self.commands.append(
                    StartExecution(
                        place=place,
                        attempt=attempt,
                        workflow=work.workflow,
                        input=given,
                        timeout_ms=step.timeout_ms,
                    )
                )
                self._set_code(place, RUNNING)
            case WaitFor():
                yield from self._wait(step, place, work)
            case AskStep():
                of = None if work.of is None else (yield from self._value(step, place, work.of))
                yield from self._ask(step, place, work, of)
                self._set_code(place, WAITING)
                self._set_timeout(step, place)
                self._set_escalation(work, place, 0, self._at)
            case Fail():
                message = _text((yield from self._value(step, place, work.message)))
                self._end_failed(step, message, work.error_type, "")
            case ContinueAs():
                yield from self._continue(step, place, work)
            case Compute():
                yield from self._finish(step, place, None)

    def _values(
        self, step: Step, place: StepPlace, action: Action, extra: Mapping[str, Json] | None = None
    ) -> Needing[dict[str, Json]]:
        values: dict[str, Json] = {}
        for name in _COMPUTED:
            value: Value | None = getattr(action, name)
            if value is not None:
                values[name] = yield from self._value(step, place, value, extra)
        return values

    def _ask(self, step: Step, place: StepPlace, work: AskStep, of: Json) -> Needing[None]:
        question = yield from self._value(step, place, work.question)
        self.commands.append(
            AskPerson(
                place=place,
                attempt=self._state.attempt(place) or 1,
                question=_text(question),
                of=_text(of),
                choices=work.choices,
                text=work.text,
                form=work.form,
            )
        )

    def _wait(self, step: Step, place: StepPlace, work: WaitFor) -> Needing[None]:
        if work.duration is not None or work.until is not None:
            due_ms = yield from self._end_of_wait(step, place, work)
            if due_ms <= self._at:
                yield from self._finish(step, place, None)
                return
            self._wait_at(step, place)
            self._set_timer(place, "over", due_ms)
        elif work.signal:
            for number, (name, data, by) in enumerate(self._state.signals):
                if name == work.signal and (yield from self._takes_signal(step, place, data, by)):
                    del self._state.signals[number]
                    return
            self._wait_at(step, place)
        else:
            value = None if work.equals is None else (yield from self._value(step, place, work.equals))
            self.commands.append(OpenWait(place=place, event=work.event, key_source=work.key_source, value=value))
            self._set_code(place, WAITING)
        self._set_timeout(step, place)

    def _wait_at(self, step: Step, place: StepPlace) -> None:
        self._set_code(place, WAITING)
        self.commands.append(MarkStep(place=place, status=WORDS[WAITING]))

    def _end_of_wait(self, step: Step, place: StepPlace, work: WaitFor) -> Needing[int]:
        if work.duration is not None:
            value = yield from self._value(step, place, work.duration)
            return self._at + _milliseconds(value)
        assert work.until is not None
        due_ms = _moment((yield from self._value(step, place, work.until)))
        if due_ms - self._at > MAX_WAIT_MS:
            raise EvaluationError("wait: `until` is more than 100 years ahead")
        return due_ms

    def _continue(self, step: Step, place: StepPlace, work: ContinueAs) -> Needing[None]:
        state = self._state
        given = yield from self._value(step, place, work.input)
        problem, kind = self._problem(given)
        if problem:
            yield from self._fail(step, place, problem, kind)
            return
        self._close_places(step)
        self._end_step(step, COMPLETED)
        self.commands.append(MarkStep(place=StepPlace(step.id), status=WORDS[COMPLETED]))
        self._stop()
        state.status = ExecutionStatus.COMPLETED
        self.commands.append(ContinueExecution(workflow=work.workflow, input=given))

    def _finish(self, step: Step, place: StepPlace, raw: Json | _Unknown = _UNKNOWN) -> Needing[None]:
        """Complete a place with the result of its work, which was kept if it is not given."""
        value = raw
        checks = step.result_schema is not None and self._validate is not None
        try:
            if value is _UNKNOWN and (checks or step.output is not None):
                value = yield from self._result(place)
            if step.output is not None:
                given = value if raw is _UNKNOWN else _as_read(value)
                value = yield from self._value(step, place, step.output, {"result": given})
        except EvaluationError as failed:
            yield from self._fail(step, place, str(failed), EXPRESSION)
            return
        made = raw is not _UNKNOWN or step.output is not None
        if made or checks:
            problem, kind = self._problem(value, step.result_schema, counts=made and place.item == NO_ITEM)
            if problem:
                yield from self._fail(step, place, problem, kind)
                return
        if made:
            self._keep(place, value)
        if place.item == NO_ITEM:
            self._complete_step(step)
            return
        progress = self._state.progress(step.id)
        if progress.items is not None:
            progress.items.set(place.item, COMPLETED)
        else:
            progress.round += 1
            progress.round_code = PENDING
            progress.most, progress.attempt = max(progress.most, progress.attempt), 0
            self._state.timers.pop(step.id, None)
        self._look_at(self._plan.number[step.id])

    def _fail(self, step: Step, place: StepPlace, error: str, kind: str, *, told: bool = False) -> Needing[None]:
        """Try a place again, or let it be failed; `told`: its end has said so."""
        if kind not in _NOT_RETRIED and self._try_again(step, place, error, kind):
            return
        if place.item == NO_ITEM:
            yield from self._fail_step(step, error, kind, told=told)
            return
        if not told:
            self.commands.append(MarkStep(place=place, status=WORDS[FAILED], error=error, error_type=kind))
        self._set_code(place, FAILED)
        if step.for_each is None:
            yield from self._fail_step(step, f"round {place.item}: {error}", kind)
        elif step.for_each.mode == MapMode.FAIL_FAST:
            error = f"item {place.item}: {error}"
            if self._taking:
                self._failing.setdefault(step.id, (error, kind))
            else:
                yield from self._fail_step(step, error, kind)
        else:
            self._errors[place] = error, kind
            self._look_at(self._plan.number[step.id])

    def _try_again(self, step: Step, place: StepPlace, error: str, kind: str) -> bool:
        retry, attempt = step.retry, self._state.attempt(place)
        tries = attempt - self._state.progress(step.id).base
        if not isinstance(step.work, (CallWorkflow, WaitFor, AskStep)) or tries >= retry.max_attempts:
            return False
        if any(_fits(pattern, error, kind) for pattern in retry.final):
            return False
        factor = 1 if retry.backoff in _FIXED else tries
        if retry.backoff == "exponential":
            factor = 1 << min(tries - 1, _MAX_EXPONENT)
        delay = min(retry.initial_ms * factor, retry.max_ms or MAX_WAIT_MS)
        seed = zlib.crc32(f"{self._state.execution_id} {place.step} {place.item} {attempt}".encode())
        delay = round(delay * (1 + min(max(retry.jitter, 0.0), 1.0) * (seed / 0x8000_0000 - 1)))
        if step.for_each is None:
            self._state.timers.pop(step.id, None)
        self._set_code(place, DELAYED)
        self._set_timer(place, "retry", self._at + delay)
        self.commands.append(MarkStep(place=place, status=WORDS[DELAYED], error=error, error_type=kind))
        return True

    def _fail_step(self, step: Step, error: str, kind: str, *, told: bool = False) -> Needing[None]:
        """Let a step be failed, and find out what takes its failure."""
        self._close_places(step)
        route = step.on_failure
        for handler in step.on_error:
            if not _fits(handler.error, error, kind):
                continue
            if handler.result is None:
                route = handler.run
                break
            extra = {"error": {"step": step.id, "type": kind, "message": error}}
            result: Json = None
            try:
                result = yield from self._value(step, StepPlace(step.id), handler.result, extra)
                problem, other_kind = self._problem(result, counts=True)
            except EvaluationError as failed:
                problem, other_kind = str(failed), EXPRESSION
            if problem:
                error, kind, told = f"{problem} (in on_error of: {error})", other_kind, False
                break
            self._keep(StepPlace(step.id), result)
            self._end_step(step, COMPLETED)
            self._note_partly_done(step)  # what has failed is not undone
            return
        self._end_failed(step, error, kind, route, told=told)

    def _end_failed(self, step: Step, error: str, kind: str, route: str, *, told: bool = False) -> None:
        self._close_places(step)
        self._end_step(step, FAILED)
        progress = self._state.progress(step.id)
        cut = error if len(error) <= MAX_ERROR_CHARACTERS else f"{error[: MAX_ERROR_CHARACTERS - 1]}…"
        progress.error, progress.error_type, progress.route = cut, kind, route
        if not told:
            self.commands.append(MarkStep(place=StepPlace(step.id), status=WORDS[FAILED], error=error, error_type=kind))
        self._note_partly_done(step)
        if not route and self._state.failure is None:
            self._state.failure = Ending(ExecutionStatus.FAILED, f"step {step.id}: {cut}", kind, step.id)

    def _complete_step(self, step: Step) -> None:
        self._end_step(step, COMPLETED)
        if step.compensate is not None:
            self._state.order.append(step.id)

    def _end_step(self, step: Step, code: str) -> None:
        state = self._state
        state.set_step(step.id, code)
        state.timers.pop(step.id, None)
        for other in self._plan.after[step.id]:
            if other in state.tallies:
                state.tallies[other][code != COMPLETED] += 1
        for number in self._plan.dependents[step.id]:
            if self._code(StepPlace(self._plan.order[number].id)) == PENDING:
                self._look_at(number)

    def _note_partly_done(self, step: Step) -> None:
        """Let the items or rounds that are done be compensated, though their step is not."""
        progress = self._state.progress(step.id)
        done = progress.round > 0 or (progress.items is not None and COMPLETED in progress.items.codes)
        if done and step.compensate is not None and step.id not in self._state.order:
            self._state.order.append(step.id)

    def _code(self, place: StepPlace) -> str:
        """Return the code of a place; of a place that its step does not have, SKIPPED."""
        if place.item == NO_ITEM:
            return self._state.code(place.step)
        progress = self._state.steps.get(place.step)
        if progress is None:
            return SKIPPED
        if progress.items is not None:
            return progress.items.codes[place.item] if 0 <= place.item < len(progress.items.codes) else SKIPPED
        if self._plan.steps[place.step].while_ is not None and place.item == progress.round:
            return progress.round_code
        return SKIPPED

    def _set_code(self, place: StepPlace, code: str) -> None:
        progress = self._state.progress(place.step)
        if place.item == NO_ITEM:
            self._state.set_step(place.step, code)
        elif progress.items is not None:
            progress.items.set(place.item, code)
        else:
            progress.round_code = code

    def _open_places(self, step: Step) -> Iterator[StepPlace]:
        progress = self._state.known(step.id)
        if progress is None:
            return
        if progress.items is not None:
            yield from [StepPlace(step.id, item) for item, code in enumerate(progress.items.codes) if code in OPEN]
        elif step.while_ is not None:
            if progress.round_code in OPEN:
                yield StepPlace(step.id, progress.round)
        elif step.for_each is None and progress.code in OPEN:
            yield StepPlace(step.id)

    def _close_places(self, step: Step) -> None:
        """Cancel what is open of a step."""
        for place in self._open_places(step):
            if place.item == NO_ITEM:
                continue
            self._cancel_place(step, place)

    def _cancel_place(self, step: Step, place: StepPlace) -> None:
        if not self._close(step, place):
            self.commands.append(MarkStep(place=place, status=WORDS[CANCELLED]))
        if self._code(place) == RUNNING and isinstance(step.work, CallWorkflow):
            self._state.cancelling.add(place)
        self._set_code(place, CANCELLED)

    def _close(self, step: Step, place: StepPlace) -> bool:
        """Close what is open of a place; returns whether that tells that it is cancelled."""
        code = self._code(place)
        if code == RUNNING or (code == WAITING and isinstance(step.work, AskStep)):
            self.commands.append(CancelStep(place=place))
            return True
        if code == WAITING and isinstance(step.work, WaitFor) and step.work.event:
            self.commands.append(CloseWait(place=place))
        return False

    # -- timers ------------------------------------------------------------------------------------

    def _set_timeout(self, step: Step, place: StepPlace) -> None:
        if step.timeout_ms:
            self._set_timer(place, "timeout", self._at + step.timeout_ms)

    def _set_timer(self, place: StepPlace, kind: str, due_ms: int, number: int = 0) -> None:
        timer = StepTimer(due_ms, kind, place.item, place.item, self._state.attempt(place), number)
        timers = self._state.timers.setdefault(place.step, [])
        at = bisect.bisect(timers, timer)
        if at and timers[at - 1].last == place.item - 1:
            grown = timers[at - 1]._replace(last=place.item)
            if grown == timer._replace(first=grown.first):
                timers[at - 1] = grown
                return
        timers.insert(at, timer)

    def _set_timers(self, step: str, timers: list[StepTimer]) -> None:
        if timers:
            self._state.timers[step] = timers
        else:
            self._state.timers.pop(step, None)

    # -- the end -----------------------------------------------------------------------------------

    def _complete_execution(self) -> Needing[None]:
        state, graph = self._state, self._plan.graph
        result: Json
        try:
            if graph.outputs is not None:
                result = yield from self._value(None, TRIGGER, graph.outputs)
            else:
                done = [step.id for step in self._plan.order if state.code(step.id) == COMPLETED]
                yield from self._ask_for(done)
                result = {step: self._known[StepPlace(step)] for step in done}
        except EvaluationError as failed:
            state.failure = Ending(ExecutionStatus.FAILED, f"outputs: {failed}", EXPRESSION)
            return
        problem, kind = self._problem(result, graph.output_schema)
        if problem:
            state.failure = Ending(ExecutionStatus.FAILED, f"outputs: {problem}", kind)
            return
        state.status = ExecutionStatus.COMPLETED
        state.page_ms = 0
        self.commands.append(EndExecution(status=state.status, result=result))

    def _stop(self) -> None:
        """Begin nothing more, and cancel what is open."""
        state = self._state
        state.failure = None
        state.page_ms = 0
        self._queue.clear()
        self._queued.clear()
        for step in sorted((self._plan.steps[one] for one in state.open), key=lambda one: self._plan.number[one.id]):
            if step.for_each is None and step.while_ is None:
                self._cancel_place(step, StepPlace(step.id))
                continue
            self._close_places(step)
            state.set_step(step.id, CANCELLED)
            self.commands.append(MarkStep(place=StepPlace(step.id), status=WORDS[CANCELLED]))
            self._note_partly_done(step)
        state.timers.clear()

    def _begin_ending(self, ending: Ending) -> None:
        self._stop()
        self._state.ending = ending
        self._state.status = ExecutionStatus.COMPENSATING

    def _compensate(self) -> Needing[None]:
        """Undo what is done, the last step first, and end when nothing is left."""
        state = self._state
        if state.cancelling:
            return
        while state.order:
            yield from self._undo(self._plan.steps[state.order[-1]])
            if state.undoing or state.page_ms:
                return
            state.order.pop()
        assert state.ending is not None
        status, error, kind, _ = state.ending
        state.status = ExecutionStatus(status)
        state.page_ms = 0
        self.commands.append(EndExecution(status=status, error=error, error_type=kind))

    def _undo(self, step: Step) -> Needing[None]:
        """Begin as many compensations of a step as may run at once."""
        state, progress = self._state, self._state.progress(step.id)
        if progress.items is not None:
            codes = progress.items.codes
            width = min((step.for_each and step.for_each.max_parallel) or ITEMS_PAGE, ITEMS_PAGE)
            if progress.code == COMPLETED:
                state.set_step(step.id, COMPENSATED)
            done = [item for item, code in enumerate(codes) if code == COMPLETED]
            while done and len(state.undoing) < width:
                if self._is_spent:
                    state.page_ms = self._at
                    return
                self._page -= 1
                item = done.pop()
                progress.items.set(item, COMPENSATED)
                yield from self._begin_undoing(step, StepPlace(step.id, item))
        elif step.while_ is not None:
            if progress.code == COMPLETED:
                state.set_step(step.id, COMPENSATED)
            while progress.round and not state.undoing:
                if self._is_spent:
                    state.page_ms = self._at
                    return
                self._page -= 1
                progress.round -= 1
                progress.round_code = PENDING
                progress.most, progress.attempt = max(progress.most, progress.attempt), 0
                yield from self._begin_undoing(step, StepPlace(step.id, progress.round))
        elif progress.code == COMPLETED:
            state.set_step(step.id, COMPENSATED)
            yield from self._begin_undoing(step, StepPlace(step.id))

    def _begin_undoing(self, step: Step, place: StepPlace) -> Needing[None]:
        action, ending = step.compensate, self._state.ending
        assert action is not None
        assert ending is not None
        extra: dict[str, Json] = {
            "error": {"step": ending.step, "type": ending.error_type, "message": ending.error},
        }
        try:
            if any(self._plan.reads(value).read("result") for value in _values_of(action)):
                extra["result"] = yield from self._result(place)
            values = yield from self._values(step, place, action, extra)
        except EvaluationError as failed:
            self._mark_compensated(place, str(failed), EXPRESSION)
            return
        attempt = self._undo_attempt(step, place)
        self.commands.append(
            DoAction(
                place=place,
                attempt=attempt,
                action=action,
                values=values,
                timeout_ms=step.timeout_ms,
                compensates=True,
            )
        )
        if action.type == ActionType.EMIT_EVENT:
            self._mark_compensated(place)
        else:
            self._state.undoing.add(place)

    def _undo_attempt(self, step: Step, place: StepPlace) -> int:
        """Return the attempt that is undone; of a round, one that was not undone yet."""
        return self._state.progress(step.id).base + 1 if step.while_ is not None else self._state.attempt(place)

    def _compensation_ended(self, step: Step, place: StepPlace, ended: StepEnded) -> bool:
        state = self._state
        if place not in state.undoing or ended.attempt not in (0, self._undo_attempt(step, place)):
            return False
        state.undoing.discard(place)
        if ended.outcome == "completed":
            self._mark_compensated(place)
        else:
            self._mark_compensated(place, ended.error or ended.outcome, ended.error_type or "FAILED")
        return True

    def _mark_compensated(self, place: StepPlace, error: str = "", kind: str = "") -> None:
        status = "compensation_failed" if error else WORDS[COMPENSATED]
        self.commands.append(MarkStep(place=place, status=status, error=error, error_type=kind))

    # -- values ------------------------------------------------------------------------------------

    def _result(self, place: StepPlace) -> Needing[Json]:
        if place not in self._known:
            made = place in self._made
            self._known[place] = _as_read(self._made[place]) if made else (yield NeedResult(place))
        return self._known[place]

    def _ask_for(self, steps: list[str]) -> Needing[None]:
        """Ask for the results of completed steps that are not known, at once."""
        unknown = [step for step in steps if StepPlace(step) not in self._known and StepPlace(step) not in self._made]
        if len(unknown) > 1:
            found = yield NeedResults(tuple(unknown))
            self._known.update({StepPlace(step): found[step] for step in unknown})
        for step in steps:
            yield from self._result(StepPlace(step))

    def _keep(self, place: StepPlace, result: Json) -> None:
        self._made[place] = result
        self._known.pop(place, None)
        self.commands.append(KeepResult(place=place, result=result))

    def _problem(
        self, value: Json, schema: Mapping[str, Json] | None = None, *, counts: bool = False
    ) -> tuple[str, str]:
        """Return what is wrong with a result, and its error_type; "" for nothing.

        `counts`: it is kept with all that follows from this happening, in one entry of the history.
        """
        try:
            size = len(_encoded(value))
        except (ValueError, TypeError, RecursionError) as failed:
            return f"the result is not JSON: {failed}", EXPRESSION
        if size > MAX_RESULT_BYTES:
            return f"the result has {size} bytes; {MAX_RESULT_BYTES} are allowed", LIMIT
        self._made_bytes += size if counts else 0
        if self._made_bytes > MAX_MADE_BYTES:
            text = f"the steps that are computed at once would have {self._made_bytes} bytes of results"
            return f"{text}; {MAX_MADE_BYTES} are allowed: let them keep less, or a step between them wait", LIMIT
        if schema is not None and self._validate is not None:
            return self._validate(schema, value), RESULT_SCHEMA
        return "", ""

    def _holds(
        self, step: Step, place: StepPlace, condition: Value, extra: Mapping[str, Json] | None = None
    ) -> Needing[bool]:
        held = yield from self._value(step, place, condition, extra)
        if not isinstance(held, bool):
            raise EvaluationError(f"the condition gives {_kind(held)}, not true or false")
        return held

    def _value(
        self, step: Step | None, place: StepPlace, value: Value, extra: Mapping[str, Json] | None = None
    ) -> Needing[Json]:
        """Compute a value of the graph; raises EvaluationError."""
        state, reads = self._state, self._plan.reads(value)
        env: dict[str, Json] = {"steps": {}}
        if reads.read("execution"):
            env["execution"] = {
                "id": state.execution_id,
                "workflow": self._plan.graph.id,
                "workspace": state.workspace,
                "started_at": _rfc3339(state.started_ms),
            }
        if reads.read("trigger") or reads.read("inputs"):
            env["trigger"] = env["inputs"] = yield from self._result(TRIGGER)
        if reads.results:
            yield from self._ask_for([one for one in reads.steps if one in reads.results and self._has_result(one)])
        for one in reads.steps:
            env["steps"][one] = self._shown(one, with_result=one in reads.results)
        if step is not None:
            if step.for_each is not None and place.item >= 0:
                env["index"] = place.item
                if reads.read("item"):
                    page = yield from self._result(StepPlace(step.id, ITEMS - place.item // ITEMS_PAGE))
                    env["item"] = page[place.item % ITEMS_PAGE]
            if step.while_ is not None and place.item >= 0:
                env["round"] = place.item
                if reads.read("last"):
                    env["last"] = yield from self._last(place)
            source = self._failed_source(step) if step.failure_target_of else None
            if source is not None:
                failed = state.progress(source)
                env["error"] = {"step": source, "type": failed.error_type, "message": failed.error}
        if extra:
            env.update(extra)
        with metered() as meter:
            try:
                return value.evaluate(env, now=self._now)
            finally:
                self._spent += meter.operations

    def _has_result(self, step: str) -> bool:
        return self._state.code(step) in {COMPLETED, COMPENSATED}

    def _shown(self, step: str, *, with_result: bool) -> dict[str, Json]:
        progress = self._state.known(step) or StepProgress()
        shown: dict[str, Json] = {
            "status": WORDS[progress.code],
            "result": None,
            "error": progress.error,
            "error_type": progress.error_type,
        }
        if with_result and self._has_result(step):
            shown["result"] = self._known[StepPlace(step)]
        return shown

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._at / 1000, UTC)


def _values_of(action: Action) -> list[Value]:
    return [value for name in _COMPUTED if (value := getattr(action, name)) is not None]


def _fits(pattern: str, error: str, kind: str) -> bool:
    literal = pattern.replace("[", "[[]")
    return fnmatch.fnmatchcase(kind, literal) or fnmatch.fnmatchcase(error, literal)


def _encoded(value: Json) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def _as_read(value: Json) -> Json:
    """Return a value as expressions see it that was kept: with all numbers as floats."""
    try:
        return json.loads(_encoded(value), parse_int=float)
    except (ValueError, TypeError, RecursionError) as failed:
        raise EvaluationError(f"this is not JSON: {failed}") from None


def _text(value: Json) -> str:
    if isinstance(value, str):
        return value
    try:
        return "" if value is None else _encoded(value).decode()
    except (ValueError, TypeError, RecursionError) as failed:
        raise EvaluationError(f"the text is not JSON: {failed}") from None


def _kind(value: Json) -> str:
    kinds = {bool: "a bool", int: "a number", float: "a number", str: "a text", dict: "an object", list: "a list"}
    return kinds.get(type(value), "null")


def _milliseconds(value: Json) -> int:
    if isinstance(value, str):
        try:
            length = duration_ms(value)
        except DurationError as failed:
            raise EvaluationError(f"wait: {failed}") from None
    elif isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0:
        length = math.ceil(min(value, MAX_WAIT_MS) * 1000)
    else:
        raise EvaluationError(f"wait: the duration gives {_kind(value)}; '1h30m' or a number of seconds is wanted")
    if length > MAX_WAIT_MS:
        raise EvaluationError("wait: the duration is longer than 100 years")
    return length


def _moment(value: Json) -> int:
    problem = EvaluationError("wait: `until` gives no moment such as '2026-11-29T18:00:00Z'")
    try:
        moment = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        raise problem from None
    if moment.tzinfo is None:
        raise problem
    return math.ceil(moment.timestamp() * 1000)


def _rfc3339(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat().replace("+00:00", "Z")
