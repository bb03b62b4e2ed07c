"""A workflow's definition, checked and compiled: what the interpreter reads.

documents.py makes it of the JSON or YAML that a client gives. Names are those of the document.
Durations are milliseconds, 0 is "not". A `Value` is a JSON tree whose strings may be templates and
whose `{$expr: …}` are expressions; `Condition` is an expression whose result is a bool.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Protocol, TypeAlias

Json: TypeAlias = Any
"""A JSON value: None, bool, int, float, str, list or dict."""
Environment: TypeAlias = Mapping[str, Json]
"""What an expression or a template reads, by top-level name."""
Path: TypeAlias = tuple[str | int, ...]


class Value(Protocol):
    """Something of a definition that is computed when it is needed."""

    def paths(self) -> frozenset[Path]:
        """Return what it reads of its environment, as far as it is known beforehand."""

    def evaluate(self, env: Environment, *, now: Callable[[], datetime]) -> Json:
        """Compute it. Raises EvaluationError, which says what failed and where."""


Condition: TypeAlias = Value


class EvaluationError(ValueError):
    """An expression or a template of a definition failed, or is beyond its budget."""


class ActionType(enum.StrEnum):
    """What an action does; "" in a document is MESSAGE."""

    MESSAGE = "message"  # in a graph: a POOL task for the agent
    CREATE_TASK = "create_task"
    EMIT_EVENT = "emit_event"
    JOIN = "join"  # of rules only


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryRule:
    """How often, and when, a failed action is tried again.

    `max_attempts` counts the first one, too.
    """

    max_attempts: int = 1
    backoff: str = "exponential"  # constant, fixed, linear or exponential
    initial_ms: int = 1_000
    max_ms: int = 0
    jitter: float = 0.1
    final: tuple[str, ...] = ()  # patterns (*, ?) of errors after which no further attempt is made


NO_RETRY: Final = RetryRule()


@dataclass(frozen=True, slots=True, kw_only=True)
class EndEvent:
    """The event that follows when a created task has ended."""

    enabled: bool = False
    event_name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """What a step, a rule, a schedule, a machine or a join does."""

    type: ActionType = ActionType.MESSAGE
    agent: str = ""
    tool_name: str = ""
    arguments: Value | None = None
    workspace: str = ""
    metadata: Value | None = None
    task_type: str = ""
    target_implementation: str = ""
    payload: Value | None = None
    retry: RetryRule = NO_RETRY
    event_name: str = ""
    idempotency_key: Value | None = None
    correlation_id: Value | None = None
    completion_event: EndEvent = EndEvent()
    priority: int = 0
    join: JoinDefinition | None = None


class JoinMode(enum.StrEnum):
    """When a join fires."""

    COUNT = "count"  # as many events as expected have come
    SET = "set"  # each member of the expected set has come
    COALESCE = "coalesce"  # at once, and once more after the window for what came within it


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinDefinition:
    """A join of events, as a rule's destination names it for one event.

    Its expressions are over that event's `input` and `source`. Joins with the same name, workspace
    and result of `correlation_key` are one.
    """

    name: str
    correlation_key: Value
    mode: JoinMode = JoinMode.COUNT
    expected_count: Value | None = None
    arm_on_event: str = ""
    dedup_key: Value | None = None
    expected_set: Value | None = None
    member_key: Value | None = None
    window_ms: int = 0
    timeout_ms: int = 0
    linger_ms: int = 60_000
    on_complete: Action | None = None
    on_timeout: Action | None = None
    on_partial_failure: str = ""  # "abort": time out without an action


@dataclass(frozen=True, slots=True, kw_only=True)
class CallWorkflow:
    """A step that is an execution of another workflow, of the same workspace."""

    workflow: str
    input: Value | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitFor:
    """A step that waits: for a moment, a signal or an event with a key.

    An event counts if `key`, over `input` and `source` of the event, equals `equals`, over the
    execution, and `condition`, over both, holds. One that came since the execution began counts.
    """

    duration: Value | None = None  # a duration text or a number of seconds
    until: Value | None = None  # an RFC 3339 text
    signal: str = ""
    event: str = ""
    key: Value | None = None
    key_source: str = ""  # the text of `key`
    equals: Value | None = None
    condition: Condition | None = None
    default: Value | None = None  # the result when its step's timeout passes; None: the step fails


@dataclass(frozen=True, slots=True, kw_only=True)
class Escalation:
    """Who is asked instead when there is no answer `after_ms` after the question."""

    after_ms: int
    of: Value


@dataclass(frozen=True, slots=True, kw_only=True)
class AskStep:
    """A step that asks a person: the result is `{approved, choice, text, data, by}`."""

    question: Value
    of: Value | None = None  # a user id or a principal; None: any person of the workspace
    choices: tuple[str, ...] = ()
    text: bool | str = False
    form: Mapping[str, Json] | None = None  # JSON Schema of the answer's data
    default: Value | None = None  # the result when the step's timeout passes; None: the step fails
    escalate: tuple[Escalation, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Fail:
    """A step that ends the execution as failed."""

    message: Value
    error_type: str = "FAILED"


@dataclass(frozen=True, slots=True, kw_only=True)
class ContinueAs:
    """A step that begins the execution anew with another input and a fresh history."""

    input: Value
    workflow: str = ""  # "": the same


@dataclass(frozen=True, slots=True, kw_only=True)
class Compute:
    """A step without an action: its `output` is its result."""


Work: TypeAlias = Action | CallWorkflow | WaitFor | AskStep | Fail | ContinueAs | Compute


class MapMode(enum.StrEnum):
    """What a failed item of a `for_each` means."""

    FAIL_FAST = "fail_fast"  # the step fails, and the other items are cancelled
    SETTLED = "settled"  # each item's result is {status, result | error}


@dataclass(frozen=True, slots=True, kw_only=True)
class ForEach:
    """A step that does its work for each item of a list, with `item` and `index`."""

    items: Value
    max_parallel: int = 0  # 0: as many as there are
    mode: MapMode = MapMode.FAIL_FAST


@dataclass(frozen=True, slots=True, kw_only=True)
class While:
    """A step that does its work again while a condition holds.

    It has `round` and `last`. The condition is checked before each round; `last` is null before
    the first.
    """

    condition: Condition
    max_rounds: int = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorHandler:
    """What follows a failure that matches `error`: a step to run, or a result."""

    error: str  # a pattern (*, ?) of the error's type or text
    run: str = ""
    result: Value | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A step of a graph.

    `join`: how many of the steps of `depends_on` must be completed; 0 for all, 1 for any.
    `targeted_by` and `failure_target_of` are the steps that name this one in `on_success`, or in
    `on_failure` and `on_error`.
    """

    id: str
    work: Work
    depends_on: tuple[str, ...] = ()
    join: int = 0
    on_success: str = ""
    on_failure: str = ""
    targeted_by: tuple[str, ...] = ()
    failure_target_of: tuple[str, ...] = ()
    when: Condition | None = None
    for_each: ForEach | None = None
    while_: While | None = None
    on_error: tuple[ErrorHandler, ...] = ()
    retry: RetryRule = NO_RETRY
    timeout_ms: int = 0
    compensate: Action | None = None
    output: Value | None = None  # over `result`; None: the result as it is
    result_schema: Mapping[str, Json] | None = None
    path: Path = ()  # where the document has it


@dataclass(frozen=True, slots=True, kw_only=True)
class Trigger:
    """Which event starts an execution."""

    event: str = ""
    source_agent: str = "*"
    condition: Condition | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What pauses an execution for a person once it is used up; 0: no bound."""

    steps: int = 0
    usage: Mapping[str, float] = field(default_factory=dict)  # of `usage.*` in progress reports
    runs_per_hour: int = 0


NO_BUDGET: Final = Budget()


class OnLimit(enum.StrEnum):
    """What happens to a run beyond the limit of concurrency."""

    QUEUE = "queue"
    REPLACE = "replace"
    SKIP = "skip"


@dataclass(frozen=True, slots=True, kw_only=True)
class Concurrency:
    """How many runs there are at the same time; `limit` is at most 1,000."""

    limit: int
    on_limit: OnLimit = OnLimit.QUEUE


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How many begin in any stretch of a period."""

    limit: int
    period_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Debounce:
    """A run once no item came for a period, or long after the first (0: never)."""

    period_ms: int
    max_wait_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """A run of `size` items, or of those that came within a time of the first."""

    size: int
    timeout_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowGate:
    """Stages with one key; without a `key` there is one state for all.

    Debounce excludes batch.
    """

    key: Value | None = None
    key_source: str = ""  # the text of `key`
    idempotency_ms: int = 0
    rate: Pace | None = None
    debounce: Debounce | None = None
    batch: Batch | None = None
    concurrency: Concurrency | None = None
    throttle: Pace | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowControl:
    """The flow control of a rule or a workflow: gates in the order of passage."""

    gates: tuple[FlowGate, ...] = ()
    priority: Value | None = None  # a number: `priority_of`


NO_FLOW_CONTROL: Final = FlowControl()


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOutcome:
    """How a step's work ends in a test case, `after_ms` its begin.

    `answer` is that of a question; a sub-workflow may be run, with outcomes of its `steps`.
    """

    result: Json = None
    error: str = ""
    error_type: str = ""
    after_ms: int = 0
    answer: Mapping[str, Json] | None = None
    steps: StepOutcomes | None = None


StepOutcomes: TypeAlias = Mapping[str, tuple[StepOutcome, ...]]
"""By step: of its items, rounds or attempts; the last one is that of all further ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SentSignal:
    """A signal or event that comes in a test case, `at_ms` after the begin."""

    name: str
    data: Json = None
    at_ms: int = 0
    agent: str = ""  # of an event
    by: str = ""  # the principal


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseEnd:
    """What a test case expects; None: anything."""

    status: str = "completed"
    error: str | None = None  # a pattern (*, ?)
    error_type: str | None = None
    has_result: bool = False
    result: Json = None
    has_continues: bool = False
    continues: Json = None  # the input of continue_as
    steps: Mapping[str, Mapping[str, Json]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowCase:
    """A case of a workflow's `tests`, which trial.py runs on a virtual clock."""

    name: str
    path: Path = ()
    input: Json = None
    now: str  # RFC 3339
    outcomes: StepOutcomes = field(default_factory=dict)
    signals: tuple[SentSignal, ...] = ()
    events: tuple[SentSignal, ...] = ()
    cancel_ms: int = -1
    expect: CaseEnd = CaseEnd()


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """A checked definition of a graph: `steps` in the document's order."""

    id: str
    version: int = 1
    workspace: str = "*"
    trigger: Trigger | None = None
    steps: Mapping[str, Step]
    input_schema: Mapping[str, Json] | None = None
    output_schema: Mapping[str, Json] | None = None
    outputs: Value | None = None  # None: the results of all steps by id
    timeout_ms: int = 0
    budget: Budget = NO_BUDGET
    description: str = ""
    max_executions: int = 0  # that run at the same time; further ones wait; 0: no bound
    flow: FlowControl = NO_FLOW_CONTROL  # keys and priority over {trigger, inputs}
    tests: tuple[WorkflowCase, ...] = ()
    source: Mapping[str, Json] = field(default_factory=dict)  # the document, in canonical form
    digest: str = ""  # of `source`, hexadecimal: equal content has an equal digest


class StartTerms(Protocol):
    """What bounds the executions of a workflow: of a graph, or of a durable function."""

    @property
    def flow(self) -> FlowControl:
        """When a start begins; keys and priority over {trigger, inputs}."""

    @property
    def max_executions(self) -> int:
        """How many run at the same time; 0: no bound."""

    @property
    def budget(self) -> Budget:
        """What pauses an execution for a person."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionTerms:
    """The StartTerms of a durable function."""

    flow: FlowControl = NO_FLOW_CONTROL
    max_executions: int = 0
    budget: Budget = NO_BUDGET


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleDefinition:
    """What follows an event: `destination`, over it, gives an action's document.

    documents.read_action makes an Action of that document. Names are unique in a workspace.
    """

    name: str
    source_event: str
    destination: Value
    source_agent: str = "*"
    workspace: str = "*"
    condition: Condition | None = None
    condition_source: str = ""  # the text of `condition`
    style: str = "template-yaml"
    priority: int = 0  # rules with a higher one act first
    flow: FlowControl = NO_FLOW_CONTROL  # keys and priority over {input, source}
    active: bool = True
    workspaces: tuple[str, ...] = ()  # that the destination names, as far as that is not computed
    reach: str = ""  # of the credential that has written it (services/workflows/requests/reach.py)
    source: Mapping[str, Json] = field(default_factory=dict)
    digest: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleDefinition:
    """What is done at which moments; its `action` and `input` are over {schedule}.

    `schedule` is {id, name, fired_at, slot}.
    """

    id: str
    schedule_type: str  # cron, interval, once or event_delayed
    schedule_expr: str
    name: str = ""
    workspace: str = "*"
    action: Action | None = None
    workflow_id: str = ""
    input: Value | None = None
    enabled: bool = True
    miss_policy: str = "skip"  # skip, fire_once or fire_all; of a document event_delayed: fire_all
    max_concurrent: int = 0
    timezone: str = ""  # an IANA name; "": the gateway's
    jitter_ms: int = 0
    event: str = ""  # event_delayed: the event after which it fires
    source: Mapping[str, Json] = field(default_factory=dict)
    digest: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineTransition:
    """Where an event leads: to `to`, if `when` holds.

    Its values, and the actions of states, are over `data` (the instance's), `input` (the event's
    data), `event` (its name), `source` (of an event of the bus) and `machine` {id, instance,
    workspace, state}. `assign` gives a map, which is merged into the instance's data.
    """

    to: str
    when: Condition | None = None
    assign: Value | None = None
    action: Action | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineState:
    """A state: for each event the transitions, of which the first that holds is taken."""

    name: str
    on: Mapping[str, tuple[MachineTransition, ...]] = field(default_factory=dict)
    entry_action: Action | None = None
    exit_action: Action | None = None
    terminal: bool = False
    timeout_ms: int = 0
    timeout_action: str = ""  # the state after the timeout; "": none


@dataclass(frozen=True, slots=True, kw_only=True)
class BusEvent:
    """An event of the bus that reaches the instance that `key`, over it, names."""

    event: str
    key: Value
    key_source: str = ""
    send: str = ""  # the machine's name of the event; "": the same
    creates: bool = False  # an instance that does not exist is created
    source_agent: str = "*"


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineDefinition:
    """A checked definition of a state machine."""

    id: str
    initial_state: str
    states: Mapping[str, MachineState]
    workspace: str = "*"
    description: str = ""
    bus: tuple[BusEvent, ...] = ()
    source: Mapping[str, Json] = field(default_factory=dict)
    digest: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookDefinition:
    """An address for signed messages from outside, each of which is an event.

    `headers` are the names, in lower case, of those that are passed on. `secrets` are the keys that
    the document gives, none if the gateway is to make one; they are not in `source`.
    """

    name: str
    event: str
    workspace: str = ""
    headers: tuple[str, ...] = ()
    secrets: tuple[bytes, ...] = field(default=(), repr=False)
    active: bool = True
    source: Mapping[str, Json] = field(default_factory=dict)


Definition: TypeAlias = Graph | RuleDefinition | ScheduleDefinition | MachineDefinition | WebhookDefinition
