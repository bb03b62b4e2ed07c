"""What happens to an execution, and what follows: the interpreter's interface.

    happening ──▶ interpreter ──▶ the next state, and commands

Both are recorded in the history, so a replay sees what was decided. A step's *item* is its number
in a `for_each`, or its round in a `while`; NO_ITEM for a step that does its work once. Moments are
Unix ms.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeAlias

from aether_trio.model.workflows.definition import Action, Json

NO_ITEM: Final = -1
ITEMS: Final = -2
"""The "item" under which the first page of a `for_each`'s list is kept; page k is at ITEMS - k."""
ITEMS_PAGE: Final = 100  # items of a list that are kept together
BEGUN_AT_ONCE: Final = 25
"""Items and rounds that one happening begins, so that other work comes between two transactions."""


class StepPlace(NamedTuple):
    """Where something happens: a step, and the item of it."""

    step: str
    item: int = NO_ITEM


TRIGGER: Final = StepPlace("")
"""Where the interpreter asks for the execution's input: NeedResult(TRIGGER)."""


# -- happenings ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """The execution begins; `trigger` is its input.

    `refused` says why it may not: it fails with that and `error_type`, and no step begins.
    """

    at_ms: int
    trigger: Json
    execution_id: str = ""
    workspace: str = ""
    refused: str = ""
    error_type: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forked:
    """The execution begins with what another one, `origin`, has done.

    `kept` is that part of the other one's state (model/workflows/forks.py), whose results are kept
    already. `step`, and what follows from it, is done again. `refused` is as of Started.
    """

    at_ms: int
    trigger: Json
    execution_id: str = ""
    workspace: str = ""
    origin: str = ""
    step: str = ""
    kept: dict[str, Json] = field(default_factory=dict)
    refused: str = ""
    error_type: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepEnded:
    """A step's task, sub-execution or question has ended.

    Its result, if it is completed, is kept already: the interpreter asks for it when it needs it.
    `attempt` and `compensates` are those of the command that began it, so a late end of an earlier
    attempt is not taken for that of a later one; attempt 0 is not known.
    """

    at_ms: int
    place: StepPlace
    outcome: str  # completed, failed or cancelled
    error: str = ""
    error_type: str = ""
    attempt: int = 0
    compensates: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemsEnded:
    """A page of the items of steps has ended."""

    at_ms: int
    ended: tuple[StepEnded, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TimePassed:
    """The execution's due moment has come: a timer, a timeout, or a page of items."""

    at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SignalReceived:
    """A client has sent a signal."""

    at_ms: int
    name: str
    data: Json = None
    by: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EventReceived:
    """An event has come for which a step waits."""

    at_ms: int
    place: StepPlace
    data: Json
    source: Json = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelAsked:
    """The execution is cancelled: open steps too; what was done is compensated."""

    at_ms: int
    reason: str = ""
    by: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitReached:
    """A bound of the gateway is reached: the execution fails, and is compensated."""

    at_ms: int
    error: str
    error_type: str = "LIMIT"


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryAsked:
    """A failed or cancelled execution goes on: what has failed is begun again."""

    at_ms: int
    by: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PauseAsked:
    """The execution begins no further step until it is resumed."""

    at_ms: int
    by: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumeAsked:
    """A paused execution goes on."""

    at_ms: int
    by: str = ""


Happening: TypeAlias = (
    Started
    | Forked
    | StepEnded
    | ItemsEnded
    | TimePassed
    | SignalReceived
    | EventReceived
    | CancelAsked
    | LimitReached
    | RetryAsked
    | PauseAsked
    | ResumeAsked
)


# -- commands --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class DoAction:
    """Do an action: a task, whose end is a StepEnded, or an event, which ends at once.

    Strings and trees of `action` are in `values`, computed: arguments, metadata, payload,
    idempotency_key, correlation_id. `compensates`: the step that it undoes.
    """

    place: StepPlace
    attempt: int
    action: Action
    values: dict[str, Json] = field(default_factory=dict)
    timeout_ms: int = 0
    compensates: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StartExecution:
    """Start an execution of another workflow, whose end is a StepEnded."""

    place: StepPlace
    attempt: int
    workflow: str
    input: Json
    timeout_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class AskPerson:
    """Ask a person; the answer is a StepEnded whose result is kept.

    It is repeated with another `of`, and the same attempt, when an open question escalates: then
    that person is asked instead.
    """

    place: StepPlace
    attempt: int
    question: str
    of: str = ""
    choices: tuple[str, ...] = ()
    text: bool | str = False
    form: Json = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelStep:
    """Cancel the task, sub-execution or question of a step.

    The end of a sub-execution is awaited, since it may compensate: it is a StepEnded. Tasks and
    questions have ended for the interpreter at once.
    """

    place: StepPlace


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenWait:
    """Deliver an event with this key, if one came since the execution began or comes."""

    place: StepPlace
    event: str
    key_source: str  # the text of the expression over the event; "" for any event
    value: Json = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CloseWait:
    """Deliver no event to this step any more."""

    place: StepPlace


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepResult:
    """Keep a result that the interpreter has made: its place is completed.

    At ITEMS and below it is a page of the list of a `for_each`, which is asked for like a result.
    """

    place: StepPlace
    result: Json


@dataclass(frozen=True, slots=True, kw_only=True)
class MarkStep:
    """Show the status of a step or item, and its error, that no other command says.

    pending (again), running, waiting, completed (without a result), failed, skipped, cancelled,
    compensated, or compensation_failed. NeedItems answers with it, too.
    """

    place: StepPlace
    status: str
    error: str = ""
    error_type: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndExecution:
    """The execution has ended: completed, failed or cancelled."""

    status: str
    result: Json = None
    error: str = ""
    error_type: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContinueExecution:
    """The execution goes on as a new one, with a fresh history: this one has ended."""

    workflow: str
    input: Json


@dataclass(frozen=True, slots=True, kw_only=True)
class PauseExecution:
    """The execution waits for a person, as something is used up or does not match."""

    reason: str


Command: TypeAlias = (
    DoAction
    | StartExecution
    | AskPerson
    | CancelStep
    | OpenWait
    | CloseWait
    | KeepResult
    | MarkStep
    | EndExecution
    | ContinueExecution
    | PauseExecution
)


# -- what the interpreter asks for in between ------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NeedResult:
    """Yielded by the interpreter to be sent the result of a completed step or item.

    At TRIGGER it is the execution's input.
    """

    place: StepPlace


@dataclass(frozen=True, slots=True)
class NeedItems:
    """Yielded by the interpreter to be sent the results of a step's items, as a list.

    Each is {"item": …, "status": …, "result": …, "error": …, "error_type": …}, in the order of the
    items, as they were before this happening's commands; items that have no row yet may be absent.
    """

    step: str


@dataclass(frozen=True, slots=True)
class NeedResults:
    """Yielded to be sent the results of several completed steps, by step."""

    steps: tuple[str, ...]


Need: TypeAlias = NeedResult | NeedResults | NeedItems
