"""Runs the cases of a workflow's `tests` by the interpreter, on a virtual clock.

    case: input, outcomes, signals, events ──▶ interpreter ──▶ what was expected, or differences

Nothing is outside: the results of steps are in memory, and time goes to the next moment at which
something is due. A sub-workflow is run with the graph that `known` gives for its name, unless its
outcome has a result or an error. What happens in the same moment keeps its order: what the case
gives, then ends of steps, then timers.
"""

from __future__ import annotations

import fnmatch
import heapq
import json
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from aether_trio.model.workflows.definition import (
    ActionType,
    EvaluationError,
    Graph,
    Json,
    SentSignal,
    StepOutcome,
    StepOutcomes,
    WaitFor,
    WorkflowCase,
)
from aether_trio.model.workflows.flow_control import gathers
from aether_trio.model.workflows.happenings import (
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
    Happening,
    KeepResult,
    MarkStep,
    Need,
    NeedItems,
    NeedResults,
    OpenWait,
    PauseExecution,
    SignalReceived,
    Started,
    StartExecution,
    StepEnded,
    StepPlace,
    TimePassed,
)
from aether_trio.model.workflows.interpreter import Validate, advance
from aether_trio.model.workflows.state import State

MAX_HAPPENINGS: Final = 100_000
MAX_DEPTH: Final = 16
MAX_DIFFERENCES: Final = 20
WORKSPACE: Final = "test"
_SHOWN: Final = 300
_LATER_MS: Final = 1_000

Known = Callable[[str], Graph | None]
"""Returns the graph of a workflow's name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseResult:
    """How a case has ended; without `differences` it is as expected."""

    name: str
    status: str
    result: Json = None
    error: str = ""
    error_type: str = ""
    took_ms: int = 0
    steps: Mapping[str, Mapping[str, Json]] = field(default_factory=dict)
    differences: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether it is as expected."""
        return not self.differences


def run_case(graph: Graph, case: WorkflowCase, *, known: Known, validate: Validate) -> CaseResult:
    """Run one case, and compare its end with what it expects."""
    return _Trial(graph, case, known, validate).run()


def answered(advancing: Generator[Need, Json, list[Command]], answer_of: Callable[[Need], Json]) -> list[Command]:
    """Run the interpreter for one happening, and give it what it asks for."""
    answer: Json = None
    while True:
        try:
            need = advancing.send(answer)
        except StopIteration as done:
            commands: list[Command] = done.value
            return commands
        answer = answer_of(need)


@dataclass(slots=True)
class _Row:
    """What is kept of a step, an item or a round."""

    status: str
    result: Json = None
    error: str = ""
    error_type: str = ""
    attempt: int = 0


@dataclass(slots=True)
class _TrialRun:
    """An execution: that of the case, or that of a sub-workflow."""

    graph: Graph
    trigger: Json
    outcomes: StepOutcomes
    id: str
    depth: int = 0
    above: tuple[_TrialRun, StepPlace, int] | None = None
    state: State = field(default_factory=State.new)
    rows: dict[StepPlace, _Row] = field(default_factory=dict)
    open: dict[StepPlace, Command] = field(default_factory=dict)
    below: dict[StepPlace, _TrialRun] = field(default_factory=dict)
    waits: dict[StepPlace, OpenWait] = field(default_factory=dict)
    sent: dict[str, dict[str, Json]] = field(default_factory=dict)
    taken: set[tuple[str, int]] = field(default_factory=set)
    paused: str = ""
    end: EndExecution | None = None
    continues: ContinueExecution | None = None


class _Trial:
    def __init__(self, graph: Graph, case: WorkflowCase, known: Known, validate: Validate) -> None:
        self._graph = graph
        self._case = case
        self._known = known
        self._validate = validate
        self._start_ms = self._now_ms = round(datetime.fromisoformat(case.now).timestamp() * 1000)
        self._coming: list[tuple[int, int, Callable[[], None]]] = []
        self._number = 0
        self._runs: list[_TrialRun] = []
        self._events: list[tuple[SentSignal, Json, dict[str, Json]]] = []
        self._differences: list[str] = []

    def _input_problem(self, given: Json) -> str:
        """Return what is wrong with the input: with `items` in it, if starts are gathered."""
        schema = self._graph.input_schema
        if not gathers(self._graph.flow):
            return "" if schema is None else self._validate(schema, given)
        items = given.get("items") if isinstance(given, dict) else None
        if not isinstance(items, list) or not items:
            return "starts are gathered (flow), so the input of a case is {items: [INPUT, ...]}"
        return next((found for one in items if schema is not None and (found := self._validate(schema, one))), "")

    def run(self) -> CaseResult:
        case = self._case
        given = _as_read(case.input)
        if problem := self._input_problem(given):
            return self._compared("refused", error=f"the input is not as declared: {problem}")
        run = _TrialRun(self._graph, given, case.outcomes, "execution-1")
        for signal in case.signals:
            self._at(signal.at_ms, lambda signal=signal: self._signal(run, signal))  # type: ignore[misc]
        for event in case.events:
            self._at(event.at_ms, lambda event=event: self._event(event))  # type: ignore[misc]
        if case.cancel_ms >= 0:
            self._at(case.cancel_ms, lambda: self._cancel(run))
        self._begin(run)
        happened = 0
        while (run.end is None and run.continues is None) and self._next():
            happened += 1
            if happened > MAX_HAPPENINGS:
                self._differ(f"it does not end: more than {MAX_HAPPENINGS} things have happened")
                break
        return self._ended(run)

    # -- time --------------------------------------------------------------------------------------

    def _at(self, after_ms: int, does: Callable[[], None]) -> None:
        self._number += 1
        heapq.heappush(self._coming, (self._now_ms + after_ms, self._number, does))

    def _next(self) -> bool:
        """Let the next thing happen; return False if nothing is due any more."""
        live = [run for run in self._runs if run.state.due_ms and not run.state.over]
        first = min(live, key=lambda run: run.state.due_ms, default=None)
        if self._coming and (first is None or self._coming[0][0] <= max(first.state.due_ms, self._now_ms)):
            at_ms, _, does = heapq.heappop(self._coming)
            self._now_ms = max(self._now_ms, at_ms)
            does()
            return True
        if first is None:
            return False
        due_ms = first.state.due_ms
        self._now_ms = max(self._now_ms, due_ms)
        if not self._tell(first, TimePassed(at_ms=self._now_ms)) and first.state.due_ms == due_ms:
            self._now_ms += _LATER_MS
        return True

    # -- executions --------------------------------------------------------------------------------

    def _begin(self, run: _TrialRun) -> None:
        self._runs.append(run)
        self._tell(run, Started(at_ms=self._now_ms, trigger=run.trigger, execution_id=run.id, workspace=WORKSPACE))

    def _tell(self, run: _TrialRun, happening: Happening) -> list[Command]:
        advancing = advance(run.graph, run.state, happening, validate=self._validate)
        commands = answered(advancing, lambda need: self._answer(run, need))
        for command in commands:
            self._obey(run, command)
        return commands

    def _answer(self, run: _TrialRun, need: Need) -> Json:
        if isinstance(need, NeedItems):
            return [
                {
                    "item": place.item,
                    "status": row.status,
                    "result": row.result,
                    "error": row.error,
                    "error_type": row.error_type,
                }
                for place, row in sorted(run.rows.items())
                if place.step == need.step and place.item >= 0
            ]
        if isinstance(need, NeedResults):
            return {step: run.rows[StepPlace(step)].result for step in need.steps}
        return run.trigger if need.place == TRIGGER else run.rows[need.place].result

    def _obey(self, run: _TrialRun, command: Command) -> None:
        match command:
            case DoAction() if command.compensates:
                if command.action.type is not ActionType.EMIT_EVENT:
                    self._at(0, lambda: self._undone(run, command))
            case DoAction():
                run.sent[command.place.step] = dict(command.values)
                self._opened(run, command, "running")
                if command.action.type is not ActionType.EMIT_EVENT:
                    self._plan_end(run, command)
            case StartExecution():
                run.sent[command.place.step] = {"input": command.input}
                self._opened(run, command, "running")
                self._start_below(run, command)
            case AskPerson():
                run.sent[command.place.step] = {"question": command.question, "of": command.of}
                asked = command.place in run.open
                self._opened(run, command, "waiting")
                if not asked:
                    self._plan_answer(run, command)
            case CancelStep():
                self._cancel_step(run, command.place)
            case OpenWait():
                run.waits[command.place] = command
                run.rows[command.place] = _Row("waiting")
                for number in range(len(self._events)):
                    self._at(0, lambda number=number: self._offer(run, command.place, number))  # type: ignore[misc]
            case CloseWait():
                run.waits.pop(command.place, None)
            case KeepResult():
                row = run.rows.setdefault(command.place, _Row(""))
                row.status, row.result = "completed", _as_read(command.result)
            case MarkStep():
                row = run.rows.setdefault(command.place, _Row(""))
                row.status, row.error, row.error_type = command.status, command.error, command.error_type
            case EndExecution():
                run.end = command
                self._over(run, command)
            case ContinueExecution():
                run.continues = command
                self._over(run, EndExecution(status="completed"))
            case PauseExecution():
                run.paused = command.reason

    def _opened(self, run: _TrialRun, command: DoAction | StartExecution | AskPerson, status: str) -> None:
        run.rows[command.place] = _Row(status, attempt=command.attempt)
        if not isinstance(command, DoAction) or command.action.type is not ActionType.EMIT_EVENT:
            run.open[command.place] = command

    def _over(self, run: _TrialRun, ended: EndExecution) -> None:
        """Tell the execution above that its step has ended."""
        if run.above is None:
            return
        above, place, attempt = run.above
        above.below.pop(place, None)
        self._at(0, lambda: self._end(above, place, attempt, ended.status, ended.result, ended.error, ended.error_type))

    # -- steps -------------------------------------------------------------------------------------

    def _outcome(self, run: _TrialRun, command: DoAction | StartExecution | AskPerson) -> StepOutcome | None:
        place = command.place
        outcomes = run.outcomes.get(place.step)
        if outcomes is None:
            return None
        number = command.attempt - 1 if place.item == NO_ITEM else place.item
        return outcomes[min(number, len(outcomes) - 1)]

    def _plan_end(self, run: _TrialRun, command: DoAction | StartExecution) -> None:
        outcome = self._outcome(run, command)
        if outcome is None:
            self._differ(
                f"step {_named(command.place)} has begun{_inside(run)}, and the test does not say how it ends: "
                f"write it below steps, such as {command.place.step}: {{result: …}}"
            )
            return
        place, attempt, after_ms = command.place, command.attempt, outcome.after_ms
        status, error, error_type = "completed", outcome.error, outcome.error_type
        if command.timeout_ms and after_ms > command.timeout_ms:
            after_ms = command.timeout_ms
            status, error, error_type = "failed", f"timed out after {after_ms / 1000:g} s", "TIMEOUT"
        elif error:
            status = "failed"
        result = _as_read(outcome.result) if status == "completed" else None
        self._at(after_ms, lambda: self._end(run, place, attempt, status, result, error, error_type))

    def _plan_answer(self, run: _TrialRun, command: AskPerson) -> None:
        outcome = self._outcome(run, command)
        if outcome is None:
            return  # a timeout, perhaps
        answer = outcome.answer
        if answer is None:
            self._differ(f"step {_named(command.place)}{_inside(run)} asks a person: write answer")
            return
        problem = ""
        if answer["choice"] and answer["choice"] not in command.choices:
            problem = f"choice is one of {', '.join(command.choices)}" if command.choices else "there are no choices"
        elif command.form is not None and answer["approved"]:
            problem = self._validate(command.form, _as_read(answer["data"]))
        if problem:
            self._differ(f"the answer to step {_named(command.place)} is none: {problem}")
            return
        place, attempt = command.place, command.attempt
        self._at(outcome.after_ms, lambda: self._end(run, place, attempt, "completed", _as_read(dict(answer)), "", ""))

    def _start_below(self, run: _TrialRun, command: StartExecution) -> None:
        outcome = self._outcome(run, command)
        graph = self._known(command.workflow)
        if graph is None or (outcome is not None and outcome.steps is None):
            if outcome is not None and outcome.steps is not None:
                self._differ(
                    f"the files have no workflow {command.workflow}, which step {_named(command.place)} starts"
                )
            else:
                self._plan_end(run, command)
            return
        place, attempt = command.place, command.attempt
        given = _as_read(command.input)
        problem = ""
        if run.depth + 1 >= MAX_DEPTH:
            problem = f"workflow {graph.id} would run {run.depth + 2} deep; at most {MAX_DEPTH} are allowed"
        elif graph.input_schema is not None:
            problem = self._validate(graph.input_schema, given)
            problem = problem and f"the input of workflow {graph.id} is not as declared: {problem}"
        if problem:
            self._at(0, lambda: self._end(run, place, attempt, "failed", None, problem, "START_REFUSED"))
            return
        outcomes = {} if outcome is None or outcome.steps is None else outcome.steps
        above = run, place, attempt
        below = _TrialRun(graph, given, outcomes, f"execution-{len(self._runs) + 1}", run.depth + 1, above)
        run.below[place] = below
        self._begin(below)

    def _end(
        self, run: _TrialRun, place: StepPlace, attempt: int, status: str, result: Json, error: str, error_type: str
    ) -> None:
        row, command = run.rows.get(place), run.open.get(place)
        if row is None or command is None or row.attempt != attempt:
            return
        del run.open[place]
        row.status, row.result, row.error, row.error_type = status, result, error, error_type
        self._tell(
            run,
            StepEnded(
                at_ms=self._now_ms, place=place, outcome=status, error=error, error_type=error_type, attempt=attempt
            ),
        )

    def _undone(self, run: _TrialRun, command: DoAction) -> None:
        self._tell(
            run,
            StepEnded(
                at_ms=self._now_ms,
                place=command.place,
                outcome="completed",
                attempt=command.attempt,
                compensates=True,
            ),
        )

    def _cancel_step(self, run: _TrialRun, place: StepPlace) -> None:
        command = run.open.get(place)
        if isinstance(command, StartExecution):  # its end is awaited
            if (below := run.below.get(place)) is not None:
                self._at(0, lambda: self._cancel(below))
            else:
                attempt = command.attempt
                self._at(0, lambda: self._end(run, place, attempt, "cancelled", None, "cancelled", ""))
        else:
            run.open.pop(place, None)
        if place in run.rows:
            run.rows[place].status = "cancelled"

    # -- from outside ------------------------------------------------------------------------------

    def _cancel(self, run: _TrialRun) -> None:
        self._tell(run, CancelAsked(at_ms=self._now_ms, by="us::tester"))

    def _signal(self, run: _TrialRun, signal: SentSignal) -> None:
        data = _as_read(signal.data)
        self._tell(run, SignalReceived(at_ms=self._now_ms, name=signal.name, data=data, by=signal.by))

    def _event(self, event: SentSignal) -> None:
        source: dict[str, Json] = {
            "agent": event.agent,
            "workspace": WORKSPACE,
            "event": event.name,
            "principal": event.by,
        }
        self._events.append((event, _as_read(event.data), source))
        for run in self._runs:
            for place in sorted(run.waits):
                self._offer(run, place, len(self._events) - 1)

    def _offer(self, run: _TrialRun, place: StepPlace, number: int) -> None:
        """Let a wait have an event, if it fits and was not taken by the same step."""
        wait = run.waits.get(place)
        event, data, source = self._events[number]
        if wait is None or wait.event != event.name:
            return
        step = run.graph.steps[place.step]
        taker = place.step if step.for_each is None else f"{place.step}[{place.item}]"
        work = step.work
        assert isinstance(work, WaitFor)
        if (taker, number) in run.taken:
            return
        if work.key is not None:
            try:
                key = work.key.evaluate({"input": data, "source": source}, now=self._now)
            except EvaluationError:
                return
            if _difference(wait.value, key) is not None:
                return
        self._tell(run, EventReceived(at_ms=self._now_ms, place=place, data=data, source=source))
        if run.waits.get(place) is not wait:
            run.taken.add((taker, number))

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._now_ms / 1000, UTC)

    # -- the comparison ----------------------------------------------------------------------------

    def _differ(self, text: str) -> None:
        if len(self._differences) < MAX_DIFFERENCES:
            self._differences.append(text)

    def _ended(self, run: _TrialRun) -> CaseResult:
        status, error, error_type, result = str(run.state.status), run.paused, "", None
        if run.end is not None:
            status, error, error_type, result = run.end.status, run.end.error, run.end.error_type, run.end.result
        elif run.continues is not None:
            status, error = "completed", ""
        steps: dict[str, dict[str, Json]] = {}
        for step in run.graph.steps:
            row = run.rows.get(StepPlace(step), _Row(""))
            steps[step] = {
                "status": run.state.step_status(StepPlace(step)),
                "result": row.result if row.status in {"completed", "compensated"} else None,
                "error": row.error,
                "error_type": row.error_type,
                "attempts": run.state.attempt(StepPlace(step)),
                "sent": run.sent.get(step),
            }
        return self._compared(status, result, error, error_type, steps, run.continues)

    def _compared(
        self,
        status: str,
        result: Json = None,
        error: str = "",
        error_type: str = "",
        steps: Mapping[str, Mapping[str, Json]] | None = None,
        continues: ContinueExecution | None = None,
    ) -> CaseResult:
        expect, shown = self._case.expect, steps or {}
        if status != expect.status:
            reason = f": {error}" if error else _open_steps(shown)
            self._differ(f"it is {status}, not {expect.status}{reason}")
        if expect.error is not None and not _fits(expect.error, error):
            self._differ(f"its error is {_text(error)}, not {_text(expect.error)}")
        if expect.error_type is not None and error_type != expect.error_type:
            self._differ(f"its error_type is {_text(error_type)}, not {_text(expect.error_type)}")
        for step, expected in expect.steps.items():
            self._compare_step(step, expected, shown.get(step, {}))
        if expect.has_result and (place := _difference(expect.result, result)) is not None:
            self._differ(f"its result{place}")
        if expect.has_continues:
            given = None if continues is None else continues.input
            if continues is None:
                self._differ("it does not continue as another execution")
            elif (place := _difference(expect.continues, given)) is not None:
                self._differ(f"the input with which it continues{place}")
        return CaseResult(
            name=self._case.name,
            status=status,
            result=result,
            error=error,
            error_type=error_type,
            took_ms=self._now_ms - self._start_ms,
            steps=shown,
            differences=tuple(self._differences),
        )

    def _compare_step(self, step: str, expected: Mapping[str, Json], found: Mapping[str, Json]) -> None:
        wanted = expected.get("status")
        if wanted is not None and found.get("status") != wanted:
            reason = f": {found['error']}" if found.get("error") else ""
            self._differ(f"step {step} is {found.get('status', 'pending')}, not {wanted}{reason}")
        error = found.get("error") or ""
        if "error" in expected and not _fits(expected["error"], error):
            self._differ(f"the error of step {step} is {_text(error)}, not {_text(expected['error'])}")
        for key in ("error_type", "attempts"):
            if key in expected and found.get(key) != expected[key]:
                self._differ(f"{key} of step {step} is {_text(found.get(key))}, not {_text(expected[key])}")
        if "sent" in expected:
            sent = found.get("sent")
            for key, value in expected["sent"].items():
                if not isinstance(sent, dict):
                    self._differ(f"step {step} has sent nothing")
                    break
                if (place := _difference(value, sent.get(key))) is not None:
                    self._differ(f"what step {step} has sent as {key}{place}")
        if "result" in expected and (place := _difference(expected["result"], found.get("result"))) is not None:
            self._differ(f"the result of step {step}{place}")


def _difference(expected: Json, found: Json, path: str = "") -> str | None:
    """Return the first place where two values differ, and how; None if they are equal."""
    if isinstance(expected, dict) and isinstance(found, dict):
        for key in (*expected, *(key for key in found if key not in expected)):
            inner = f"{path}.{key}"
            if key not in found:
                return f", {inner[1:]}: is missing, and should be {_text(expected[key])}"
            if key not in expected:
                return f", {inner[1:]}: is {_text(found[key])}, and should not be there"
            if (place := _difference(expected[key], found[key], inner)) is not None:
                return place
        return None
    if isinstance(expected, list) and isinstance(found, list):
        for index, (one, other) in enumerate(zip(expected, found, strict=False)):
            if (place := _difference(one, other, f"{path}[{index}]")) is not None:
                return place
        if len(expected) != len(found):
            at = f", {path.lstrip('.')}:" if path else ""
            return f"{at} has {len(found)} entries, not {len(expected)}"
        return None
    if isinstance(expected, bool) is isinstance(found, bool) and expected == found:
        return None
    at = f", {path.lstrip('.')}:" if path else ""
    return f"{at} is {_text(found)}, not {_text(expected)}"


def _open_steps(steps: Mapping[str, Mapping[str, Json]]) -> str:
    open_ = [f"{step} ({one['status']})" for step, one in steps.items() if one["status"] in {"running", "waiting"}]
    return f": nothing is due any more, and these steps are open: {', '.join(open_[:10])}" if open_ else ""


def _fits(pattern: str, text: str) -> bool:
    return fnmatch.fnmatchcase(text, pattern.replace("[", "[[]"))


def _named(place: StepPlace) -> str:
    return place.step if place.item == NO_ITEM else f"{place.step}[{place.item}]"


def _inside(run: _TrialRun) -> str:
    return "" if run.above is None else f" in workflow {run.graph.id}"


def _as_read(value: Json) -> Json:
    return json.loads(json.dumps(value), parse_int=float)


def _plain(value: Json) -> Json:
    if isinstance(value, float):
        return int(value) if value.is_integer() else value
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list) else value


def _text(value: Json) -> str:
    """Return a value as JSON, cut to what messages show."""
    text = json.dumps(_plain(value), ensure_ascii=False, sort_keys=True)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
