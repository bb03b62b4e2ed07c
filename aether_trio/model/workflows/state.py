"""What an execution has done so far, without its input and results.

Everything that is not said is the default: a step without an entry is pending. The JSON is compact
(a map of 10,000 items in flight takes some 20 KB) and the same for equal states. Moments are Unix
ms, 0 is "not".
"""

from __future__ import annotations

import enum
import itertools
import re
from collections.abc import Callable, Container, Iterable
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar

from aether_trio.model.workflows.definition import Json
from aether_trio.model.workflows.happenings import NO_ITEM, StepPlace

PENDING: Final = "."
RUNNING: Final = "r"
WAITING: Final = "w"
DELAYED: Final = "d"  # until its next attempt
COMPLETED: Final = "c"
FAILED: Final = "f"
SKIPPED: Final = "s"
CANCELLED: Final = "x"
COMPENSATED: Final = "u"  # it was completed, and its compensation was begun

OPEN: Final = frozenset((RUNNING, WAITING, DELAYED))
ENDED: Final = frozenset((COMPLETED, FAILED, SKIPPED, CANCELLED, COMPENSATED))
WORDS: Final = {
    PENDING: "pending",
    RUNNING: "running",
    WAITING: "waiting",
    DELAYED: "running",
    COMPLETED: "completed",
    FAILED: "failed",
    SKIPPED: "skipped",
    CANCELLED: "cancelled",
    COMPENSATED: "compensated",
}
_DEFAULTS: Final[tuple[Json, ...]] = (PENDING, 0, "", "", "", 0, PENDING, 0, 0, None, ())
_RUN: Final = re.compile(r"(\d+)(\D)")
_REPEATED: Final = re.compile(r"(\D)\1{7,}")
_Key = TypeVar("_Key")


class ExecutionStatus(enum.StrEnum):
    """The status of an execution of a graph."""

    RUNNING = "running"
    PAUSED = "paused"
    COMPENSATING = "compensating"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Ending(NamedTuple):
    """How an execution ends after its compensation; `step` is what has failed."""

    status: str
    error: str = ""
    error_type: str = ""
    step: str = ""


class StepTimer(NamedTuple):
    """A due moment of a step, or of its items from `first` to `last`.

    `kind` is over (of a wait), timeout, retry or escalate, with the escalation's `number`. A timer
    is of one attempt. It stays when its place ends otherwise, and says nothing then.
    """

    due_ms: int
    kind: str
    first: int
    last: int
    attempt: int
    number: int = 0


class MapProgress:
    """How far the items of a step are: their codes, and attempts beyond the first."""

    __slots__ = ("attempts", "codes", "left", "next", "open")

    def __init__(self, codes: str) -> None:
        self.codes = list(codes)
        self.attempts: dict[int, int] = {}
        self.next = 0  # no item before it is pending
        self.left = codes.count(PENDING)
        self.open = sum(map(codes.count, OPEN))

    @classmethod
    def from_text(cls, text: str) -> MapProgress:
        """Decode what `to_text` encoded."""
        return cls(_RUN.sub(_repeated, text))

    def to_text(self) -> str:
        """Encode the codes, with long runs of one as its number and the code."""
        return _REPEATED.sub(_counted, "".join(self.codes))

    def set(self, item: int, code: str) -> None:
        """Change the code of an item."""
        old = self.codes[item]
        self.codes[item] = code
        self.left += (code == PENDING) - (old == PENDING)
        self.open += (code in OPEN) - (old in OPEN)
        if code == PENDING:
            self.next = min(self.next, item)

    def pending(self) -> int:
        """Return the first item that is pending; there must be one."""
        self.next = self.codes.index(PENDING, self.next)
        return self.next

    def attempt(self, item: int) -> int:
        """Return how often an item was begun."""
        return self.attempts.get(item, 0 if self.codes[item] == PENDING else 1)


class StepProgress:
    """How far a step is.

    `attempt` counts how often it, or its present round, was begun. `route` is the step that runs
    because this one has failed. `round` is the present round of a `while`, or the next one if its
    `round_code` is PENDING: those before it are completed. When the execution is retried, attempts
    go on from `base`, so none comes twice; `most` is the highest one of the rounds that ended.
    """

    __slots__ = ("attempt", "base", "code", "error", "error_type", "items", "most", "round", "round_code", "route")

    def __init__(self, code: str = PENDING, attempt: int = 0) -> None:
        self.code = code
        self.attempt = attempt
        self.error = ""
        self.error_type = ""
        self.route = ""
        self.items: MapProgress | None = None
        self.round = 0
        self.round_code = PENDING
        self.base = 0
        self.most = 0

    def highest_attempt(self) -> int:
        """Return the highest attempt of the step and all its items and rounds."""
        items = self.items
        of_items = max(map(items.attempt, range(len(items.codes))), default=0) if items is not None else 0
        return max(self.base, self.most, self.attempt, of_items)

    def to_json(self) -> list[Json]:
        """Encode it; what is missing at the end is the default."""
        fields: list[Json] = [self.code, self.attempt, self.error, self.error_type, self.route]
        fields += [self.round, self.round_code, self.base, self.most]
        if self.items is not None:
            by_attempt = _grouped((count, item) for item, count in self.items.attempts.items())
            fields += [self.items.to_text(), [[count, ranges] for count, ranges in by_attempt]]
        else:
            while fields and fields[-1] == _DEFAULTS[len(fields) - 1]:
                fields.pop()
        return fields

    @classmethod
    def from_json(cls, fields: list[Json]) -> StepProgress:
        """Decode what `to_json` encoded."""
        full = [*fields, *_DEFAULTS[len(fields) :]]
        self = cls(full[0], full[1])
        self.error, self.error_type, self.route, self.round, self.round_code, self.base, self.most = full[2:9]
        if full[9] is not None:
            self.items = MapProgress.from_text(full[9])
            for count, ranges in full[10]:
                self.items.attempts.update(dict.fromkeys(_numbers(ranges), count))
        return self


class GraphState:
    """The state of one execution; the interpreter changes it in place.

    `due_ms` is when the next TimePassed is to come. `order` has the steps to compensate, in the
    order of their completion; `undoing` are compensations in flight, `cancelling` sub-executions
    whose end is awaited. `begun` counts the places that were begun, up to `allowance` if there is a
    budget. `used_ms` of the execution's timeout are used up, besides the time from `ticking_ms` on.

    `plain` has the codes of steps of which nothing else is to be said: they were begun once, or
    skipped. So most steps of a large graph cost nothing when a state is read and written.
    """

    def __init__(self) -> None:
        self.status: str = ExecutionStatus.RUNNING
        self.execution_id = ""
        self.workspace = ""
        self.started_ms = 0
        self.due_ms = 0
        self.page_ms = 0  # when further items or rounds are begun
        self.plain: dict[str, str] = {}
        self.steps: dict[str, StepProgress] = {}  # the others
        self.timers: dict[str, list[StepTimer]] = {}  # of each step, in order
        self.order: list[str] = []
        self.undoing: set[StepPlace] = set()
        self.cancelling: set[StepPlace] = set()
        self.failure: Ending | None = None  # that the execution has not obeyed yet
        self.ending: Ending | None = None
        self.signals: list[tuple[str, Json, str]] = []  # name, data, by: for which no step waited
        self.begun = 0
        self.allowance = 0
        self.used_ms = 0
        self.ticking_ms = 0
        # Computed from the others:
        self.open: set[str] = set()
        self.ended = 0
        self.tallies: dict[str, list[int]] = {}  # dependencies: completed, others that ended

    @classmethod
    def new(cls) -> GraphState:
        """Return the state of an execution that has not been started."""
        return cls()

    @property
    def over(self) -> bool:
        """Whether the execution has ended."""
        return self.status in {ExecutionStatus.COMPLETED, ExecutionStatus.FAILED, ExecutionStatus.CANCELLED}

    def take_over(self, other: GraphState, steps: Container[str]) -> None:
        """Begin with what another execution has done of these steps."""
        self.plain = {step: code for step, code in other.plain.items() if step in steps}
        self.steps = {step: progress for step, progress in other.steps.items() if step in steps}
        self.order = [step for step in other.order if step in steps]
        self.signals = other.signals
        self.ended = sum(self.code(step) in ENDED for step in (*self.plain, *self.steps))

    def step_status(self, place: StepPlace) -> str:
        """Return the status of a step, item or round, as a word of WORDS."""
        return WORDS[self._code(place)]

    def attempt(self, place: StepPlace) -> int:
        """Return how often a step, item or present round was begun."""
        progress = self.steps.get(place.step)
        if progress is None:
            return int(self.plain.get(place.step, SKIPPED) != SKIPPED)
        if progress.items is not None and 0 <= place.item < len(progress.items.codes):
            return progress.items.attempt(place.item)
        return progress.attempt

    def progress(self, step: str) -> StepProgress:
        """Return how far a step is, to change it."""
        found = self.steps.get(step)
        if found is None:
            code = self.plain.pop(step, PENDING)
            found = self.steps[step] = StepProgress(code, int(code not in (PENDING, SKIPPED)))
        return found

    def known(self, step: str) -> StepProgress | None:
        """Return how far a step is, None if nothing was ever said of it."""
        return self.progress(step) if step in self.plain or step in self.steps else None

    def code(self, step: str) -> str:
        """Return the code of a whole step."""
        progress = self.steps.get(step)
        return self.plain.get(step, PENDING) if progress is None else progress.code

    def set_step(self, step: str, code: str) -> None:
        """Change the code of a whole step."""
        old = self.code(step)
        self.ended += (code in ENDED) - (old in ENDED)
        if step in self.steps:
            self.steps[step].code = code
        elif (old == PENDING and code == SKIPPED) or not {old, code} & {PENDING, SKIPPED}:
            self.plain[step] = code
        else:
            self.progress(step).code = code
        if code in OPEN:
            self.open.add(step)
        else:
            self.open.discard(step)

    def to_json(self) -> dict[str, Json]:
        """Encode it, without what is the default."""
        plain: dict[str, list[str]] = {}
        other: dict[str, list[Json]] = {}
        for step, code in self.plain.items():
            plain.setdefault(code, []).append(step)
        for step, progress in self.steps.items():
            fields = progress.to_json()
            if fields in ([progress.code, 1], [SKIPPED]):
                plain.setdefault(progress.code, []).append(step)
            elif fields:
                other[step] = fields
        encoded = {
            "status": str(self.status),
            "id": self.execution_id,
            "workspace": self.workspace,
            "started": self.started_ms,
            "due": self.due_ms,
            "page": self.page_ms,
            "plain": {code: sorted(steps) for code, steps in sorted(plain.items())},
            "steps": dict(sorted(other.items())),
            "timers": {step: [list(one) for one in timers] for step, timers in sorted(self.timers.items())},
            "order": self.order,
            "undoing": _grouped(self.undoing),
            "cancelling": _grouped(self.cancelling),
            "failure": self.failure and [str(one) for one in self.failure],
            "ending": self.ending and [str(one) for one in self.ending],
            "signals": [list(one) for one in self.signals],
            "begun": self.begun,
            "allowance": self.allowance,
            "used": self.used_ms,
            "ticking": self.ticking_ms,
        }
        return {name: value for name, value in encoded.items() if value}

    @classmethod
    def from_json(cls, encoded: dict[str, Json]) -> GraphState:
        """Decode what `to_json` encoded."""
        self = cls()
        read: Callable[[str, Any], Any] = encoded.get
        self.status = encoded["status"]
        self.execution_id, self.workspace = read("id", ""), read("workspace", "")
        self.started_ms, self.due_ms, self.page_ms = read("started", 0), read("due", 0), read("page", 0)
        for code, steps in read("plain", {}).items():
            self.plain.update(dict.fromkeys(steps, code))
            if code in OPEN:
                self.open.update(steps)
            self.ended += len(steps) if code in ENDED else 0
        self.steps.update({step: StepProgress.from_json(fields) for step, fields in read("steps", {}).items()})
        self.timers = {step: [StepTimer(*one) for one in timers] for step, timers in read("timers", {}).items()}
        self.order = list(read("order", []))
        for name, places in (("undoing", self.undoing), ("cancelling", self.cancelling)):
            places.update(StepPlace(step, item) for step, ranges in read(name, []) for item in _numbers(ranges))
        self.failure = Ending(*encoded["failure"]) if "failure" in encoded else None
        self.ending = Ending(*encoded["ending"]) if "ending" in encoded else None
        self.signals = [(name, data, by) for name, data, by in read("signals", [])]
        self.begun, self.allowance = read("begun", 0), read("allowance", 0)
        self.used_ms, self.ticking_ms = read("used", 0), read("ticking", 0)
        self.open.update(step for step, progress in self.steps.items() if progress.code in OPEN)
        self.ended += sum(progress.code in ENDED for progress in self.steps.values())
        return self

    def _code(self, place: StepPlace) -> str:
        progress = self.steps.get(place.step)
        if place.item == NO_ITEM:
            return self.code(place.step)
        if progress is None:
            return PENDING
        if progress.items is not None:
            return progress.items.codes[place.item] if 0 <= place.item < len(progress.items.codes) else PENDING
        if place.item == progress.round:
            return progress.round_code
        return COMPLETED if 0 <= place.item < progress.round else PENDING


State: TypeAlias = GraphState


def _counted(run: re.Match[str]) -> str:
    return f"{len(run[0])}{run[1]}"


def _repeated(run: re.Match[str]) -> str:
    return int(run[1]) * run[2]


def _grouped(pairs: Iterable[tuple[_Key, int]]) -> list[list[Any]]:
    """Encode pairs of something and a number: [[key, [first, last, first, last …]] …]."""
    groups: dict[_Key, list[int]] = {}
    for key, number in sorted(pairs):
        ranges = groups.setdefault(key, [])
        if ranges and ranges[-1] == number - 1:
            ranges[-1] = number
        else:
            ranges += [number, number]
    return [[key, ranges] for key, ranges in groups.items()]


def _numbers(ranges: list[int]) -> Iterable[int]:
    pairs = zip(ranges[::2], ranges[1::2], strict=True)
    return itertools.chain.from_iterable(range(first, last + 1) for first, last in pairs)
