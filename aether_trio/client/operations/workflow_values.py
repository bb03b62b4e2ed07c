"""What operations on workflows return: definitions, executions, steps and history."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

UNDO: Final = "~"
"""What the name of a step ends with, on the wire, where it is a compensation."""
ENDED: Final = frozenset({"completed", "failed", "cancelled"})
"""The statuses of an execution that has ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowDefinition:
    """A version of a workflow; `document` is the definition in canonical form."""

    id: str
    version: int
    workspace: str
    document: Mapping[str, Any]
    active: bool
    """False once it is deleted: no execution begins any more."""
    owner: str
    """The participant that has applied it, for which its executions act."""
    created_at: datetime | None
    updated_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionStep:
    """A step of an execution, or one item of a step that does its work for many."""

    step: str
    item: int | None
    """The number of the item, or of the round; None for the step as a whole."""
    kind: str
    """What the step is: action, workflow, wait, ask, fail, continue_as or compute."""
    status: str
    """pending, running, waiting, completed, failed, skipped, cancelled or compensated."""
    attempt: int
    task_id: str
    """The task that works on it; for `workflow` it is the id of an execution too."""
    worker: str
    """The identity of the worker that has the task; "" if none has it."""
    started_at: datetime | None
    completed_at: datetime | None
    error: str
    error_type: str
    input: Any
    result: Any
    items: Mapping[str, int]
    """How many items have which status; empty for a step without items."""
    waits_for: Mapping[str, Any]
    """What it waits for: `for` is answer, signal, event, time, retry, worker or execution."""
    compensates: bool
    """Whether this undoes the step of that name."""

    @property
    def name(self) -> str:
        """The step's name, with the number of the item as in "fetch[3]"."""
        return self.step if self.item is None else f"{self.step}[{self.item}]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """An execution of a workflow; lists have it without its steps and result."""

    execution_id: str
    workflow: str
    version: int
    workspace: str
    status: str
    """queued, running, paused, compensating, completed, failed or cancelled."""
    input: Any
    result: Any
    started_at: datetime | None
    completed_at: datetime | None
    error: str
    """Why it has failed, or was paused."""
    owner: str
    parent_id: str
    """The execution whose step this is; "" if it is none's."""
    history_entries: int
    waits_for: Mapping[str, Any] = field(default_factory=dict)
    """While it is queued: {"for": "turn" or "more", "keys": […]}; {} in lists."""
    usage: Mapping[str, float] = field(default_factory=dict)
    """What its workers have reported as `usage.NAME`, summed up; {} in lists."""
    forked_from: str = ""
    """The execution of which this one is a fork, from the step `forked_at` on; "" if it is none."""
    forked_at: str = ""
    forks: Sequence[str] = ()
    """The newest executions that are forks of this one; lists have none."""
    steps: Sequence[ExecutionStep] = field(default_factory=tuple)

    @property
    def has_ended(self) -> bool:
        """Whether it has ended. A retry begins it again."""
        return self.status in ENDED

    def step(self, name: str) -> ExecutionStep:
        """Return the step, or the item such as "fetch[3]". Raises KeyError."""
        for one in self.steps:
            if one.name == name and not one.compensates:
                return one
        raise KeyError(name)


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryEntry:
    """What happened to an execution, and what followed."""

    number: int
    at: datetime | None
    type: str
    """Such as Started, StepEnded, SignalReceived, TimePassed or CancelAsked."""
    fields: Mapping[str, Any]
    """What it says besides, by the names of docs/wire.md."""
    then: Sequence[Mapping[str, Any]]
    """What followed: commands such as DoAction, each with its `type`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryDivergence:
    """The first entry of a history from which other commands follow.

    `recorded` and `now` are the commands that differ; None if there is none any more.
    """

    number: int
    step: str
    happening: Mapping[str, Any]
    recorded: Mapping[str, Any] | None
    now: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryReplay:
    """How many entries of a history replay; `version` is 0 for a document."""

    entries: int
    version: int
    divergence: HistoryDivergence | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """A page of what is known of an execution; docs/wire.md says what entries have."""

    entries: Sequence[Mapping[str, Any]]
    next: str
    """The position behind which the next page begins; "" if there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Foretold:
    """What documents would have done with a page of events."""

    events: int
    foretold: Sequence[Mapping[str, Any]]
    """docs/wire.md says what these have."""
    next: int
    """The offset behind which the next page begins; 0 if there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionFork:
    """A new execution that goes on with what another one has done."""

    execution_id: str
    kept: Sequence[str] = ()
    """The steps whose results it has taken over."""
    undone_by_both: Sequence[str] = ()
    """Kept steps that both executions compensate if they fail, as the other one has not ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AppliedDefinition:
    """What applying a document did: `change` is created, updated or unchanged.

    `secret` is that of a new webhook, if the gateway has made it: it is shown this once.
    """

    kind: str
    workspace: str
    id: str
    version: int
    change: str
    secret: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """What applying documents did, in their order, and what to look at."""

    applied: Sequence[AppliedDefinition]
    warnings: Sequence[str]


def moment(text: Any) -> datetime | None:
    """Read a time as Go writes it; None for none."""
    if not isinstance(text, str) or not text or text.startswith("0001-"):
        return None
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None


def definition_of(found: Mapping[str, Any]) -> WorkflowDefinition:
    """Read the answer of GET_WORKFLOW."""
    return WorkflowDefinition(
        id=_text(found, "ID"),
        version=_number(found, "Version"),
        workspace=_text(found, "Workspace"),
        document=found.get("Definition") or {},
        active=bool(found.get("Active", True)),
        owner=_text(found, "Owner"),
        created_at=moment(found.get("CreatedAt")),
        updated_at=moment(found.get("UpdatedAt")),
    )


def execution_of(found: Mapping[str, Any], steps: Sequence[Mapping[str, Any]] = ()) -> Execution:
    """Read an execution of LIST_EXECUTIONS, or with its steps of GET_EXECUTION."""
    more = found.get("Metadata") or {}
    return Execution(
        execution_id=_text(found, "ExecutionID"),
        workflow=_text(found, "WorkflowID"),
        version=_number(found, "WorkflowVersion"),
        workspace=_text(found, "Workspace"),
        status=_text(found, "Status"),
        input=found.get("TriggerData"),
        result=found.get("Result"),
        started_at=moment(found.get("StartedAt")),
        completed_at=moment(found.get("CompletedAt")),
        error=_text(found, "ErrorMessage"),
        owner=_text(more, "owner"),
        parent_id=_text(more, "parent"),
        history_entries=_number(more, "entries"),
        waits_for=found.get("WaitsFor") or {},
        usage=found.get("Usage") or {},
        forked_from=_text(more, "forked_from"),
        forked_at=_text(more, "forked_at"),
        forks=tuple(_text(one, "execution_id") for one in more.get("forks") or ()),
        steps=tuple(map(step_of, steps)),
    )


def step_of(found: Mapping[str, Any]) -> ExecutionStep:
    """Read a step of GET_EXECUTION."""
    name = _text(found, "StepID")
    return ExecutionStep(
        step=name.removesuffix(UNDO),
        item=found.get("Item"),
        kind=_text(found, "Kind"),
        status=_text(found, "Status"),
        attempt=_number(found, "Attempt"),
        task_id=_text(found, "TaskID"),
        worker=_text(found, "Worker"),
        started_at=moment(found.get("StartedAt")),
        completed_at=moment(found.get("CompletedAt")),
        error=_text(found, "ErrorMessage"),
        error_type=_text(found, "ErrorType"),
        input=found.get("InputData"),
        result=found.get("OutputData"),
        items=found.get("Items") or {},
        waits_for=found.get("WaitsFor") or {},
        compensates=name.endswith(UNDO),
    )


def entry_of(found: Mapping[str, Any]) -> HistoryEntry:
    """Read an entry of HISTORY."""
    return HistoryEntry(
        number=_number(found, "number"),
        at=moment(found.get("at")),
        type=_text(found, "type"),
        fields={name: value for name, value in found.items() if name not in ("number", "at", "type", "then")},
        then=tuple(found.get("then") or ()),
    )


def replayed_of(found: Mapping[str, Any]) -> HistoryReplay:
    """Read the answer of REPLAY."""
    part = found.get("divergence")
    divergence = None
    if isinstance(part, Mapping):
        divergence = HistoryDivergence(
            number=_number(part, "number"),
            step=_text(part, "step"),
            happening=part.get("happening") or {},
            recorded=part.get("recorded"),
            now=part.get("now"),
        )
    return HistoryReplay(entries=_number(found, "entries"), version=_number(found, "version"), divergence=divergence)


@dataclass(frozen=True, slots=True, kw_only=True)
class Redriven:
    """A page of dead letters that were acted on again."""

    acted: int
    refused: Sequence[tuple[str, str]]
    """(task id, reason) of those that are dead again."""
    after: str
    until: str

    @property
    def more(self) -> bool:
        """Whether there are more."""
        return bool(self.after)


def redriven_of(found: Mapping[str, Any]) -> Redriven:
    """Read the answer of REDRIVE."""
    refused = tuple((_text(one, "task_id"), _text(one, "reason")) for one in found.get("refused") or ())
    return Redriven(
        acted=_number(found, "acted"), refused=refused, after=_text(found, "after"), until=_text(found, "until")
    )


def fork_of(found: Mapping[str, Any]) -> ExecutionFork:
    """Read the answer of FORK."""
    return ExecutionFork(
        execution_id=_text(found, "execution_id"),
        kept=tuple(map(str, found.get("kept") or ())),
        undone_by_both=tuple(map(str, found.get("undone_by_both") or ())),
    )


def applied_of(found: Mapping[str, Any]) -> Applied:
    """Read the answer of APPLY."""
    names = ("kind", "workspace", "id", "change")
    applied = [
        AppliedDefinition(
            version=_number(one, "version"),
            **{name: _text(one, name) for name in names},
            secret=_text(one, "secret") if "secret" in one else "",
        )
        for one in found.get("applied") or ()
    ]
    return Applied(applied=tuple(applied), warnings=tuple(map(str, found.get("warnings") or ())))


def _text(found: Mapping[str, Any], name: str) -> str:
    value = found.get(name)
    return value if isinstance(value, str) else ""


def _number(found: Mapping[str, Any], name: str) -> int:
    value = found.get(name)
    return value if isinstance(value, int) else 0
