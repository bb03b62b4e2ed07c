"""Builds graphs and drives executions, as a service without tables and tasks."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from aether_trio.model.workflows.definition import (
    Action,
    ActionType,
    AskStep,
    CallWorkflow,
    Compute,
    EvaluationError,
    Graph,
    Json,
    Path,
    Step,
    Value,
    WaitFor,
)
from aether_trio.model.workflows.happenings import (
    NO_ITEM,
    TRIGGER,
    AskPerson,
    CancelStep,
    CloseWait,
    Command,
    ContinueExecution,
    DoAction,
    EndExecution,
    EventReceived,
    Happening,
    ItemsEnded,
    KeepResult,
    MarkStep,
    NeedItems,
    NeedResult,
    NeedResults,
    OpenWait,
    SignalReceived,
    Started,
    StartExecution,
    StepEnded,
    StepPlace,
    TimePassed,
)
from aether_trio.model.workflows.interpreter import Validate, advance
from aether_trio.model.workflows.state import State

START_MS = 1_700_000_000_000


class Of:
    """A value that a function computes; it reads `paths` such as steps.a.result."""

    def __init__(self, function: Callable[[Any], Json], *paths: str) -> None:
        self.function = function
        self._paths = frozenset(tuple(path.split(".")) if path else () for path in paths)

    def paths(self) -> frozenset[Path]:
        """Return what it reads."""
        return self._paths

    def evaluate(self, env: Any, *, now: Callable[[], datetime]) -> Json:
        """Compute it; what goes wrong is an EvaluationError."""
        assert now().timestamp() * 1000 >= START_MS
        try:
            return self.function(env)
        except (LookupError, TypeError, ZeroDivisionError) as failed:
            raise EvaluationError(f"cannot compute: {failed!r}") from failed


def as_read(value: Json) -> Json:
    """Return a value as it is read from where it was kept: all numbers are floats."""
    return json.loads(json.dumps(value), parse_int=float)


def lit(value: Json) -> Value:
    """Return a literal."""
    return Of(lambda env: copy.deepcopy(value))


def result_of(step: str) -> Value:
    """Return the value that is a step's result."""
    return Of(lambda env: env["steps"][step]["result"], f"steps.{step}.result")


def read(*path: str) -> Value:
    """Return the value at a path of the environment."""

    def value(env: Any) -> Json:
        for name in path:
            env = env[name]
        return env

    return Of(value, ".".join(path))


def never() -> Value:
    """Return a value that cannot be computed."""
    return Of(lambda env: {}["missing"])


def agent(name: str = "worker", **values: Any) -> Action:
    """Return an action for an agent."""
    return Action(agent=name, **values)


def emit(name: str = "done", **values: Any) -> Action:
    """Return an action that emits an event."""
    return Action(type=ActionType.EMIT_EVENT, event_name=name, **values)


def step(name: str, work: Any = None, **fields: Any) -> Step:
    """Return a step; `depends_on` is a text of ids."""
    if isinstance(needs := fields.get("depends_on"), str):
        fields["depends_on"] = tuple(needs.split())
    return Step(id=name, work=agent() if work is None else work, **fields)


def graph(*steps: Step, **fields: Any) -> Graph:
    """Return a graph, with the steps that name each step in it."""
    success: dict[str, list[str]] = {one.id: [] for one in steps}
    failure: dict[str, list[str]] = {one.id: [] for one in steps}
    for one in steps:
        if one.on_success:
            success[one.on_success].append(one.id)
        targets = [one.on_failure, *(handler.run for handler in one.on_error)]
        for target in dict.fromkeys(filter(None, targets)):
            failure[target].append(one.id)
    linked = {
        one.id: replace(one, targeted_by=tuple(success[one.id]), failure_target_of=tuple(failure[one.id]))
        for one in steps
    }
    return Graph(id="flow", steps=linked, **fields)


@dataclass
class Row:
    """What the service's table of steps says of a place."""

    status: str
    result: Json = None
    error: str = ""
    error_type: str = ""
    attempt: int = 0


@dataclass
class Execution:
    """An execution whose world is the test: rows, open tasks and the history.

    Each advance goes through the state's JSON, so none depends on what the JSON does not have.
    """

    graph: Graph
    trigger: Json = None
    validate: Validate | None = None
    now_ms: int = START_MS
    state: dict[str, Json] = field(default_factory=lambda: State.new().to_json())
    rows: dict[StepPlace, Row] = field(default_factory=dict)
    open: dict[StepPlace, Command] = field(default_factory=dict)
    undoing: dict[StepPlace, DoAction] = field(default_factory=dict)
    waits: dict[StepPlace, OpenWait] = field(default_factory=dict)
    cancelling: dict[StepPlace, Command] = field(default_factory=dict)
    history: list[tuple[Happening, list[Command], list[Json]]] = field(default_factory=list)
    end: EndExecution | None = None
    continued: ContinueExecution | None = None
    needs: list[Any] = field(default_factory=list)

    def tell(self, happening: Happening) -> list[Command]:
        """Let the execution take a happening in, and obey its commands."""
        state = State.from_json(json.loads(json.dumps(self.state)))
        answers: list[Json] = []
        run = advance(self.graph, state, happening, validate=self.validate)
        answer = None
        while True:
            try:
                need = run.send(answer)
            except StopIteration as stop:
                commands: list[Command] = stop.value
                break
            self.needs.append(need)
            answer = as_read(self._answer(need))
            answers.append(answer)
        self.state = state.to_json()
        self.history.append((happening, commands, answers))
        for command in commands:
            self._obey(command)
        return commands

    def _answer(self, need: Any) -> Json:
        if isinstance(need, NeedItems):
            return [
                {
                    "item": place.item,
                    "status": row.status,
                    "result": row.result,
                    "error": row.error,
                    "error_type": row.error_type,
                }
                for place, row in sorted(self.rows.items())
                if place.step == need.step and place.item >= 0
            ]
        if isinstance(need, NeedResults):
            return {step: self._answer(NeedResult(StepPlace(step))) for step in need.steps}
        assert isinstance(need, NeedResult)
        if need.place == TRIGGER:
            return self.trigger
        row = self.rows[need.place]
        assert row.status in {"completed", "compensated", "compensation_failed"}, (need, row)
        return row.result

    def _obey(self, command: Command) -> None:
        assert self.end is None, f"{command} comes after the end"
        match command:
            case DoAction(compensates=True):
                assert self.rows[command.place].status == "completed"
                if command.action.type != ActionType.EMIT_EVENT:
                    assert command.place not in self.undoing
                    self.undoing[command.place] = command
            case DoAction() | StartExecution():
                assert command.place not in self.open
                assert command.attempt > self.attempt(command.place)
                self.rows[command.place] = Row("running", attempt=command.attempt)
                if not isinstance(command, DoAction) or command.action.type != ActionType.EMIT_EVENT:
                    self.open[command.place] = command
            case AskPerson():
                if command.place not in self.open:
                    assert command.attempt > self.attempt(command.place)
                self.rows[command.place] = Row("waiting", attempt=command.attempt)
                self.open[command.place] = command
            case CancelStep():
                cancelled = self.open.pop(command.place)
                self.rows[command.place].status = "cancelled"
                if isinstance(cancelled, StartExecution):
                    self.cancelling[command.place] = cancelled
            case OpenWait():
                assert command.place not in self.waits
                self.waits[command.place] = command
                self.rows[command.place] = Row("waiting")
            case CloseWait():
                del self.waits[command.place]
            case KeepResult():
                assert command.place not in self.open
                json.dumps(command.result)
                self.rows[command.place] = Row("completed", command.result, attempt=self.attempt(command.place))
            case MarkStep():
                row = self.rows.setdefault(command.place, Row(""))
                row.status, row.error, row.error_type = command.status, command.error, command.error_type
            case EndExecution():
                assert not self.open, self.open
                assert not self.waits
                self.end = command
            case ContinueExecution():
                self.continued = command

    def attempt(self, place: StepPlace) -> int:
        """Return the attempt of the place's row."""
        return self.rows[place].attempt if place in self.rows else 0

    def start(self) -> list[Command]:
        """Begin the execution."""
        return self.tell(Started(at_ms=self.now_ms, trigger=self.trigger, execution_id="e-1", workspace="ws"))

    def ended(
        self, name: str, item: int = NO_ITEM, *, result: Json = None, error: str = "", error_type: str = ""
    ) -> StepEnded:
        """Return the end of an open place, whose row says so from now on."""
        place = StepPlace(name, item)
        command = self.open.pop(place, None) or self.cancelling.pop(place)
        assert isinstance(command, (DoAction, StartExecution, AskPerson))
        outcome = "failed" if error else "completed"
        self.rows[place] = Row(outcome, result, error, error_type, command.attempt)
        return StepEnded(
            at_ms=self.now_ms,
            place=place,
            outcome=outcome,
            error=error,
            error_type=error_type,
            attempt=command.attempt,
        )

    def complete(self, name: str, result: Json = None, item: int = NO_ITEM) -> list[Command]:
        """Let a place's task end well."""
        return self.tell(self.ended(name, item, result=result))

    def fail(self, name: str, error: str = "broken", item: int = NO_ITEM, error_type: str = "") -> list[Command]:
        """Let a place's task fail."""
        return self.tell(self.ended(name, item, error=error, error_type=error_type))

    def page(self, *ended: StepEnded) -> list[Command]:
        """Tell a page of ends."""
        return self.tell(ItemsEnded(at_ms=self.now_ms, ended=ended))

    def undone(self, name: str, item: int = NO_ITEM, error: str = "") -> list[Command]:
        """Let a compensation end."""
        command = self.undoing.pop(StepPlace(name, item))
        return self.tell(
            StepEnded(
                at_ms=self.now_ms,
                place=command.place,
                outcome="failed" if error else "completed",
                error=error,
                attempt=command.attempt,
                compensates=True,
            )
        )

    def event(self, name: str, data: Json, item: int = NO_ITEM, source: Json = None) -> list[Command]:
        """Let an event come for which a place waits."""
        place = StepPlace(name, item)
        return self.tell(EventReceived(at_ms=self.now_ms, place=place, data=data, source=source))

    def signal(self, name: str, data: Json = None) -> list[Command]:
        """Let a signal come."""
        return self.tell(SignalReceived(at_ms=self.now_ms, name=name, data=data, by="us::ada"))

    def pass_time(self, ms: int = 0) -> list[Command]:
        """Let time pass, up to the due moment if no length is given."""
        self.now_ms = self.now_ms + ms if ms else max(self.now_ms, self.due_ms)
        return self.tell(TimePassed(at_ms=self.now_ms))

    def pass_pages(self) -> None:
        """Let the moments come that are due now."""
        while self.due_ms and self.due_ms <= self.now_ms:
            self.pass_time()

    @property
    def now_state(self) -> State:
        """The state."""
        return State.from_json(self.state)

    @property
    def due_ms(self) -> int:
        """The due moment of the state."""
        return self.now_state.due_ms

    @property
    def status(self) -> str:
        """The status of the execution."""
        return self.now_state.status

    def statuses(self) -> dict[str, str]:
        """Return the status of each step."""
        state = self.now_state
        return {name: state.step_status(StepPlace(name)) for name in self.graph.steps}

    def result(self, name: str, item: int = NO_ITEM) -> Json:
        """Return the result that is kept of a place, which is completed."""
        row = self.rows[StepPlace(name, item)]
        assert row.status == "completed"
        return row.result

    def opened(self) -> set[str]:
        """Return the open places as text: "a", or "a[3]" for items."""
        return {place.step if place.item == NO_ITEM else f"{place.step}[{place.item}]" for place in self.open}


def started(*steps: Step, trigger: Json = None, validate: Validate | None = None, **fields: Any) -> Execution:
    """Return a started execution of a graph of these steps."""
    execution = Execution(graph(*steps, **fields), trigger=trigger, validate=validate)
    execution.start()
    return execution


def compute(function: Callable[[Any], Json] | Json, *paths: str, name: str, **fields: Any) -> Step:
    """Return a step without an action."""
    output = Of(function, *paths) if callable(function) else lit(function)
    return step(name, Compute(), output=output, **fields)


def kinds(commands: list[Command]) -> list[str]:
    """Return commands in short: the name of the class and the step."""
    return [
        f"{type(one).__name__} {one.place.step}" if hasattr(one, "place") else type(one).__name__ for one in commands
    ]


__all__ = ["AskStep", "CallWorkflow", "WaitFor"]
