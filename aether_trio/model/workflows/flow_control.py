"""Flow control: when what arrives may run, by key.

A rule or workflow may say `flow:`, with any of these. Each has a `key`, an expression over the
event or input; `flow.key` is the key of those without one. Runs with different keys do not affect
each other.

    idempotency: {key, period}                    the first item of a key in a period; others drop
    rate:        {limit, period, key}             so many items in a period; others are dropped
    debounce:    {period, key, max_wait}          one run of all items, once none came for a period
    batch:       {size, timeout, key}             one run of so many items, or of those by then
    concurrency: {limit, key, on_limit}           so many runs at the same time
    throttle:    {limit, period, key}             so many runs begin in a period; others wait
    singleton:   {key, on_limit}                  concurrency with a limit of 1
    priority:    EXPR                             of those that wait, higher ones begin first

`on_limit` of concurrency is `queue` (wait), `skip` (be dropped) or `replace` (cancel the oldest
run, and begin when it has ended; of those that wait, too, only the newest stay).

This order is that of the stages. Consecutive stages with one key are a *gate*; what one gate starts
arrives at the next (flow_chain.py). A gate has a state for each key, as small as the following:

    arrive(gate, state, item, now_ms)
    finished(gate, state, run, now_ms, first)     a run that was started has ended
    time_passed(gate, state, now_ms, first)       `due_ms` has come
    release(gate, state, run, now_ms)             a run was dropped before it began
    cancel_waiting(gate, state, now_ms, begun)    the owner is deactivated: what waits is dropped

Each returns the next state (None: forget it), decisions in their order, and when time_passed is due
(0: never). A *run* is one item, or those that were gathered; its id is that of its first item.
Items and waiting runs are rows of the caller, the state only counts them: `first` has the first
PAGE waiting runs, by priority and then by age, fewer if there are no more.

Moments are Unix ms. After a clock was set back, the next call moves what waits to within its period
from then. Invariants: there are at most `limit` runs at the same time, beginnings in any stretch of
the throttle's period, and items in one of the rate's; each item is in one run, and that starts, or
waits, or is dropped.
"""

from __future__ import annotations

import enum
import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple, TypeAlias

from aether_trio.model.text import shown
from aether_trio.model.workflows.definition import FlowControl, FlowGate, Json, OnLimit, Pace

PAGE: Final = 16
"""How many waiting runs one call looks at, and so may start."""
MAX_GATHERED: Final = 1_000
"""How many items a run has at most: a debounce or batch ends early with them."""
MAX_WAITING: Final = 100_000
"""How many runs of a key may wait; further ones are dropped."""
MAX_MOMENTS: Final = 64
"""How many different moments of beginnings are kept; closer ones are then taken for the later."""

_Moments: TypeAlias = tuple[tuple[int, int], ...]
"""(Unix ms, how many), ascending."""


@dataclass(frozen=True, slots=True)
class FlowItem:
    """What arrives, or a run that waits; `id` is unique for the owner."""

    id: str
    priority: float = 0.0


@dataclass(frozen=True, slots=True)
class FlowWindow:
    """A run whose items are being gathered, until `due_ms` at the latest."""

    run: str
    items: int
    priority: float
    opened_ms: int
    due_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowState:
    """What a gate knows of a key.

    `running` are runs by age, of which those in `cancelling` are to end. `waiting` counts complete
    runs that wait; `replaceable` are their ids by age, with `on_limit: replace` only.
    """

    running: tuple[str, ...] = ()
    cancelling: tuple[str, ...] = ()
    waiting: int = 0
    replaceable: tuple[str, ...] = ()
    window: FlowWindow | None = None
    begun: _Moments = ()  # of the throttle
    taken: _Moments = ()  # of the rate
    seen_until_ms: int = 0

    def to_json(self) -> dict[str, Json]:
        """Return a small JSON object, without what is empty."""
        window = self.window
        document = {
            "running": list(self.running),
            "cancelling": list(self.cancelling),
            "waiting": self.waiting,
            "replaceable": list(self.replaceable),
            "window": [window.run, window.items, window.priority, window.opened_ms, window.due_ms] if window else None,
            "begun": [list(each) for each in self.begun],
            "taken": [list(each) for each in self.taken],
            "seen_until_ms": self.seen_until_ms,
        }
        return {name: value for name, value in document.items() if value}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> FlowState:
        """Read what `to_json` gave; unknown members are ignored."""
        window = document.get("window")
        return cls(
            running=tuple(document.get("running", ())),
            cancelling=tuple(document.get("cancelling", ())),
            waiting=document.get("waiting", 0),
            replaceable=tuple(document.get("replaceable", ())),
            window=FlowWindow(*window) if window else None,
            begun=tuple((at_ms, count) for at_ms, count in document.get("begun", ())),
            taken=tuple((at_ms, count) for at_ms, count in document.get("taken", ())),
            seen_until_ms=document.get("seen_until_ms", 0),
        )


class DropReason(enum.StrEnum):
    """Why items do not run."""

    DUPLICATE = "duplicate"  # idempotency
    RATE = "rate"
    SKIPPED = "skipped"
    REPLACED = "replaced"
    FULL = "full"  # MAX_WAITING
    DEACTIVATED = "deactivated"


@dataclass(frozen=True, slots=True)
class KeepItem:
    """Keep the arriving item as one of a run."""

    item: str
    run: str


@dataclass(frozen=True, slots=True)
class QueueRun:
    """Let a run, whose items are kept, wait."""

    run: str
    priority: float


@dataclass(frozen=True, slots=True)
class StartRun:
    """Start a run with all its items."""

    run: str
    priority: float


@dataclass(frozen=True, slots=True)
class DropRun:
    """Forget a run and its items, or the arriving item of that id."""

    run: str
    reason: DropReason


@dataclass(frozen=True, slots=True)
class CancelRun:
    """Cancel a run that was started; its end is `finished`."""

    run: str


@dataclass(frozen=True, slots=True)
class DropWaiting:
    """Forget all items that have not started, and their runs."""

    reason: DropReason


FlowDecision: TypeAlias = KeepItem | QueueRun | StartRun | DropRun | CancelRun | DropWaiting


class FlowStep(NamedTuple):
    """The next state, decisions, and when time_passed is due (0: never)."""

    state: FlowState | None
    decisions: tuple[FlowDecision, ...]
    due_ms: int


def gathers(flow: FlowControl) -> bool:
    """Return whether a run may be made of several items (debounce and batch)."""
    return any(gate.debounce is not None or gate.batch is not None for gate in flow.gates)


def priority_of(value: Json) -> float:
    """Return what a `priority` gave as a number; ValueError if it is none."""
    if value is None:
        return 0.0
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"priority must be a number, not {shown(value)}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"priority must be a finite number, not {shown(value)}")
    return number


def arrive(gate: FlowGate, state: FlowState | None, item: FlowItem, now_ms: int) -> FlowStep:
    """Take in an item: it starts, waits, is gathered, or is dropped."""
    passage = _Passage(gate, state, now_ms)
    passage.arrive(item)
    return passage.step()


def finished(gate: FlowGate, state: FlowState | None, run: str, now_ms: int, first: Sequence[FlowItem]) -> FlowStep:
    """Start others as a run has ended; an unknown run changes nothing."""
    passage = _Passage(gate, state, now_ms)
    if passage.finish(run):
        passage.start_waiting(first)
    return passage.step()


def time_passed(gate: FlowGate, state: FlowState | None, now_ms: int, first: Sequence[FlowItem]) -> FlowStep:
    """End a window that is due, and start what may."""
    passage = _Passage(gate, state, now_ms)
    passage.start_waiting(first)
    passage.close_window()
    return passage.step()


def release(gate: FlowGate, state: FlowState | None, run: str, now_ms: int) -> FlowStep:
    """Forget a run that is here, and whose rows are gone: it has begun or waits.

    Others start when time_passed is called.
    """
    passage = _Passage(gate, state, now_ms)
    if not passage.finish(run):
        passage.withdraw(run)
    return passage.step()


def cancel_waiting(gate: FlowGate, state: FlowState | None, now_ms: int, begun: Collection[str]) -> FlowStep:
    """Drop what waits or is gathered here, and what waits at a later gate.

    Runs that have `begun` go on.
    """
    passage = _Passage(gate, state, now_ms)
    passage.drop_waiting(begun)
    return passage.step()


class _Passage:
    """A state while one call changes it."""

    __slots__ = ("decisions", "gate", "now_ms", "state")

    def __init__(self, gate: FlowGate, state: FlowState | None, now_ms: int) -> None:
        self.gate = gate
        self.now_ms = now_ms
        self.decisions: list[FlowDecision] = []
        self.state = _present(gate, FlowState() if state is None else state, now_ms)

    def step(self) -> FlowStep:
        state = self.state
        due_ms = self._due_ms()
        active = state.running or state.waiting or state.window
        kept = state if active or due_ms > self.now_ms else None
        return FlowStep(kept, tuple(self.decisions), due_ms if kept is not None else 0)

    def arrive(self, item: FlowItem) -> None:
        gate, now_ms = self.gate, self.now_ms
        if gate.idempotency_ms:
            if now_ms < self.state.seen_until_ms:
                self.decisions.append(DropRun(item.id, DropReason.DUPLICATE))
                return
            self._change(seen_until_ms=now_ms + gate.idempotency_ms)
        if gate.rate is not None:
            if _count(self.state.taken) >= gate.rate.limit:
                self.decisions.append(DropRun(item.id, DropReason.RATE))
                return
            self._change(taken=_with(self.state.taken, now_ms))
        if gate.debounce is None and gate.batch is None:
            self._ready(item, kept=False)
        else:
            self._gather(item)

    def finish(self, run: str) -> bool:
        state = self.state
        if run not in state.running:
            return False
        self._change(running=_without(state.running, run), cancelling=_without(state.cancelling, run))
        return True

    def withdraw(self, run: str) -> None:
        state = self.state
        if state.window is not None and state.window.run == run:
            self._change(window=None)
        else:
            self._change(waiting=max(state.waiting - 1, 0), replaceable=_without(state.replaceable, run))

    def start_waiting(self, first: Sequence[FlowItem]) -> None:
        """Start as many of the first waiting runs as may begin now."""
        starting = first[: min(self._room(), PAGE)]
        for item in starting:
            self._start(item)
        # The rows are right where they and the count differ: a wrong count would wait for ever.
        state = self.state
        waiting = state.waiting - len(starting) if len(first) >= PAGE else len(first) - len(starting)
        started = {item.id for item in starting}
        left = tuple(run for run in state.replaceable if run not in started)
        self._change(waiting=max(waiting, 0), replaceable=left if waiting > 0 else ())

    def close_window(self) -> None:
        window = self.state.window
        if window is not None and window.due_ms <= self.now_ms:
            self._change(window=None)
            self._ready(FlowItem(window.run, window.priority), kept=True)

    def drop_waiting(self, begun: Collection[str]) -> None:
        state = self.state
        if state.waiting or state.window:
            self.decisions.append(DropWaiting(DropReason.DEACTIVATED))
        running = tuple(run for run in state.running if run in begun)
        cancelling = tuple(run for run in state.cancelling if run in begun)
        self._change(running=running, cancelling=cancelling, waiting=0, replaceable=(), window=None)

    def _gather(self, item: FlowItem) -> None:
        window = self.state.window
        if window is None:
            window = FlowWindow(item.id, 0, item.priority, self.now_ms, 0)
        size, due_ms = _bounds(self.gate, window, self.now_ms)
        priority = max(window.priority, item.priority)
        window = replace(window, items=window.items + 1, priority=priority, due_ms=max(due_ms, 1))
        self.decisions.append(KeepItem(item.id, window.run))
        self._change(window=window)
        if window.items >= size:
            self._change(window=None)
            self._ready(FlowItem(window.run, priority), kept=True)

    def _ready(self, run: FlowItem, *, kept: bool) -> None:
        """Start a complete run, or let it wait; `kept`: its items are rows already."""
        state, concurrency = self.state, self.gate.concurrency
        on_limit = concurrency.on_limit if concurrency is not None else OnLimit.QUEUE
        full = concurrency is not None and len(state.running) + state.waiting >= concurrency.limit
        if full and on_limit is OnLimit.SKIP:
            self.decisions.append(DropRun(run.id, DropReason.SKIPPED))
            return
        starts = not state.waiting and self._room() > 0
        if not starts and state.waiting >= MAX_WAITING:
            self.decisions.append(DropRun(run.id, DropReason.FULL))
            return
        if not kept:
            self.decisions.append(KeepItem(run.id, run.id))
        if starts:
            self._start(run)
            return
        self.decisions.append(QueueRun(run.id, run.priority))
        self._change(waiting=state.waiting + 1)
        if concurrency is not None and on_limit is OnLimit.REPLACE:
            self._change(replaceable=(*state.replaceable, run.id))
            self._replace(concurrency.limit)

    def _replace(self, limit: int) -> None:
        """Cancel the oldest runs, then drop the oldest that wait, down to the limit."""
        state = self.state
        staying = [run for run in state.running if run not in state.cancelling]
        while len(staying) + self.state.waiting > limit:
            if staying:
                run = staying.pop(0)
                self.decisions.append(CancelRun(run))
                self._change(cancelling=(*self.state.cancelling, run))
            elif self.state.replaceable:
                run, *left = self.state.replaceable
                self.decisions.append(DropRun(run, DropReason.REPLACED))
                self._change(replaceable=tuple(left), waiting=self.state.waiting - 1)
            else:
                return  # they waited before the document said `replace`

    def _start(self, run: FlowItem) -> None:
        self.decisions.append(StartRun(run.id, run.priority))
        if self.gate.concurrency is not None:
            self._change(running=(*self.state.running, run.id))
        if self.gate.throttle is not None:
            self._change(begun=_with(self.state.begun, self.now_ms))

    def _room(self) -> int:
        """Return how many runs may begin now."""
        room = MAX_WAITING
        if self.gate.concurrency is not None:
            room = min(room, self.gate.concurrency.limit - len(self.state.running))
        if self.gate.throttle is not None:
            room = min(room, self.gate.throttle.limit - _count(self.state.begun))
        return max(room, 0)

    def _due_ms(self) -> int:
        gate, state, now_ms = self.gate, self.state, self.now_ms
        due_ms = [state.window.due_ms] if state.window is not None else []
        if state.waiting:
            if self._room():
                due_ms.append(now_ms)
            elif gate.concurrency is None or len(state.running) < gate.concurrency.limit:
                assert gate.throttle is not None
                due_ms.append(state.begun[0][0] + gate.throttle.period_ms)
        if due_ms or state.running or state.waiting:
            return max(min(due_ms), 1) if due_ms else 0
        # When all of it is past, the state is forgotten.
        forgotten_ms = state.seen_until_ms
        for pace, moments in ((gate.throttle, state.begun), (gate.rate, state.taken)):
            if pace is not None and moments:
                forgotten_ms = max(forgotten_ms, moments[-1][0] + pace.period_ms)
        return forgotten_ms

    def _change(self, **values: Any) -> None:
        self.state = replace(self.state, **values)


def _present(gate: FlowGate, state: FlowState, now_ms: int) -> FlowState:
    """Return a state without what is past, and with nothing too far ahead.

    A clock that was set back, or an earlier document, may have put it there.
    """
    window = state.window
    if window is not None:
        window = replace(window, opened_ms=min(window.opened_ms, now_ms))
        window = replace(window, due_ms=min(window.due_ms, max(_bounds(gate, window, now_ms)[1], 1)))
    return replace(
        state,
        window=window,
        replaceable=state.replaceable if gate.concurrency and gate.concurrency.on_limit is OnLimit.REPLACE else (),
        begun=_within(gate.throttle, state.begun, now_ms),
        taken=_within(gate.rate, state.taken, now_ms),
        seen_until_ms=min(state.seen_until_ms, now_ms + gate.idempotency_ms),
    )


def _bounds(gate: FlowGate, window: FlowWindow, now_ms: int) -> tuple[int, int]:
    """Return how many items a window takes, and when it ends if the last comes now."""
    if gate.batch is not None:
        return min(gate.batch.size, MAX_GATHERED), window.opened_ms + gate.batch.timeout_ms
    if gate.debounce is not None:
        due_ms = now_ms + gate.debounce.period_ms
        if gate.debounce.max_wait_ms:
            due_ms = min(due_ms, window.opened_ms + gate.debounce.max_wait_ms)
        return MAX_GATHERED, due_ms
    return 1, now_ms


def _within(pace: Pace | None, moments: _Moments, now_ms: int) -> _Moments:
    """Return the moments of the period before now."""
    if pace is None or not moments:
        return ()
    kept = tuple(each for each in moments if each[0] > now_ms - pace.period_ms)
    if not kept or kept[-1][0] <= now_ms:
        return kept
    before = tuple(each for each in kept if each[0] < now_ms)
    return (*before, (now_ms, sum(count for at_ms, count in kept if at_ms >= now_ms)))


def _with(moments: _Moments, now_ms: int) -> _Moments:
    """Return the moments with one more, now; of too many the two closest are one."""
    if moments and moments[-1][0] == now_ms:
        return (*moments[:-1], (now_ms, moments[-1][1] + 1))
    if len(moments) < MAX_MOMENTS:
        return (*moments, (now_ms, 1))
    gaps = [later[0] - earlier[0] for earlier, later in itertools.pairwise(moments)]
    first = gaps.index(min(gaps))
    (_, count), (later_ms, more) = moments[first : first + 2]
    return (*moments[:first], (later_ms, count + more), *moments[first + 2 :], (now_ms, 1))


def _count(moments: _Moments) -> int:
    return sum(count for _, count in moments)


def _without(runs: tuple[str, ...], run: str) -> tuple[str, ...]:
    return tuple(each for each in runs if each != run)
