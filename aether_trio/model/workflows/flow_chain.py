"""Flow control with several keys: what one gate starts arrives at the next.

    item_arrived(flow, item, keys, now_ms)     an event, or an input of a workflow
    run_finished(flow, run, keys, now_ms)      a run that has begun has ended
    gate_due(flow, gate, key, now_ms)          the `due_ms` of a SaveGate has come
    run_withdrawn(flow, gate, run, keys, now_ms)  a run is cancelled that waits there, or after all
    deactivated(flow, places, now_ms)          the rule or workflow is deactivated

Each is a generator: it yields what it needs, to be sent the answer, and what is to be done, which
the caller does before it goes on. All is one transaction.

| request | answer, or what is done |
|---|---|
| LoadGate | the gate's FlowState for a key, or None |
| LoadFirst | the first PAGE runs that wait there, as FlowItems, by priority, then age |
| LoadKeys | the keys of the item with the run's id |
| LoadPlace | the number of the gate at which a run waits; None if it has begun |
| LoadBegun | those of some runs that have begun |
| SaveGate | the state is kept, or deleted if it is None; a timer is set or deleted |
| AtGate | KeepItem: the item is kept with its keys, in the run; a kept one changes its run |
| | QueueRun: the run waits there; DropRun: the run, if there is one, and its items are deleted |
| | CancelRun: a run that has begun is cancelled; its end is `run_finished` |
| DropAll | all items, and runs that have not begun, are deleted |
| BeginRun | the run begins with all its items; its keys are kept until it ends |

`keys` has the text of each gate's key, "" without one, computed from the item. A run's keys are
those of its first item. A run that waits at a later gate occupies its slot at an earlier one, so
no limit is ever exceeded. When `flow` changes, its gates do: let all kept items arrive anew.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

from aether_trio.model.workflows import flow_control
from aether_trio.model.workflows.definition import FlowControl
from aether_trio.model.workflows.flow_control import (
    CancelRun,
    DropReason,
    DropRun,
    DropWaiting,
    FlowItem,
    FlowState,
    FlowStep,
    KeepItem,
    QueueRun,
    StartRun,
)


@dataclass(frozen=True, slots=True)
class LoadGate:
    """Answered with a FlowState or None."""

    gate: int
    key: str


@dataclass(frozen=True, slots=True)
class LoadFirst:
    """Answered with a list of FlowItem."""

    gate: int
    key: str


@dataclass(frozen=True, slots=True)
class LoadKeys:
    """Answered with a sequence of str."""

    run: str


@dataclass(frozen=True, slots=True)
class LoadPlace:
    """Answered with an int or None."""

    run: str


@dataclass(frozen=True, slots=True)
class LoadBegun:
    """Answered with a collection of str."""

    runs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DropAll:
    """Forget all items and runs of the owner that have not begun."""

    reason: DropReason


@dataclass(frozen=True, slots=True)
class SaveGate:
    """Keep a state; `due_ms` is 0 if it needs no timer."""

    gate: int
    key: str
    state: FlowState | None
    due_ms: int


@dataclass(frozen=True, slots=True)
class AtGate:
    """Do what a gate has decided."""

    gate: int
    key: str
    decision: KeepItem | QueueRun | DropRun | CancelRun


@dataclass(frozen=True, slots=True)
class BeginRun:
    """Begin a run, which has passed all gates."""

    run: str
    priority: float


FlowRequest: TypeAlias = (
    LoadGate | LoadFirst | LoadKeys | LoadPlace | LoadBegun | SaveGate | AtGate | DropAll | BeginRun
)
FlowRequests: TypeAlias = Generator[FlowRequest, Any, None]
Keys: TypeAlias = tuple[str, ...]


def item_arrived(flow: FlowControl, item: FlowItem, keys: Keys, now_ms: int) -> FlowRequests:
    """Let an item pass the gates, as far as it may."""
    if len(keys) != len(flow.gates):
        raise ValueError(f"there are {len(keys)} keys for {len(flow.gates)} gates")
    return _arrive(flow, 0, item, keys, now_ms)


def run_finished(flow: FlowControl, run: str, keys: Keys, now_ms: int) -> FlowRequests:
    """Free the slot of a run, and let others begin; a second time nothing changes."""
    for number, (gate, key) in enumerate(zip(flow.gates, keys, strict=False)):
        state: FlowState | None = yield LoadGate(number, key)
        if state is not None and run in state.running:
            first: list[FlowItem] = (yield LoadFirst(number, key)) if state.waiting else []
            yield from _apply(flow, number, key, flow_control.finished(gate, state, run, now_ms, first), now_ms)


def run_withdrawn(flow: FlowControl, gate: int, run: str, keys: Keys, now_ms: int) -> FlowRequests:
    """Forget a run whose rows are gone before it has begun.

    It waits or is gathered at a gate, or has passed all of them (their number).
    """
    if gate < min(len(flow.gates), len(keys)):
        yield from _release_at(flow, gate, run, keys, now_ms)
    yield from _release(flow, min(gate, len(flow.gates), len(keys)), run, keys, now_ms)


def gate_due(flow: FlowControl, gate: int, key: str, now_ms: int) -> FlowRequests:
    """Let time pass at a gate."""
    state: FlowState | None = yield LoadGate(gate, key)
    if gate >= len(flow.gates):  # an earlier document had it
        yield SaveGate(gate, key, None, 0)
        return
    first: list[FlowItem] = (yield LoadFirst(gate, key)) if state is not None and state.waiting else []
    yield from _apply(flow, gate, key, flow_control.time_passed(flow.gates[gate], state, now_ms, first), now_ms)


def deactivated(flow: FlowControl, places: Iterable[tuple[int, str]], now_ms: int) -> FlowRequests:
    """Drop all that has not begun.

    `places` are the gates and keys that have a state, or a page of them.
    """
    yield DropAll(DropReason.DEACTIVATED)
    for number, key in places:
        state: FlowState | None = yield LoadGate(number, key)
        if number >= len(flow.gates) or state is None:
            yield SaveGate(number, key, None, 0)
            continue
        begun: Collection[str] = (yield LoadBegun(state.running)) if state.running else ()
        step = flow_control.cancel_waiting(flow.gates[number], state, now_ms, begun)
        yield SaveGate(number, key, step.state, step.due_ms)


def _arrive(flow: FlowControl, number: int, item: FlowItem, keys: Keys, now_ms: int) -> FlowRequests:
    if number == len(flow.gates):
        yield BeginRun(item.id, item.priority)
        return
    state: FlowState | None = yield LoadGate(number, keys[number])
    step = flow_control.arrive(flow.gates[number], state, item, now_ms)
    yield from _apply(flow, number, keys[number], step, now_ms, item.id, keys)


def _apply(
    flow: FlowControl, number: int, key: str, step: FlowStep, now_ms: int, arriving: str = "", keys: Keys = ()
) -> FlowRequests:
    """Do what a gate has decided; `keys` are those of the item that arrives."""
    yield SaveGate(number, key, step.state, step.due_ms)
    for decision in step.decisions:
        if isinstance(decision, StartRun):
            run = decision.run
            of_run: Keys = keys if run == arriving else tuple((yield LoadKeys(run)))
            yield from _arrive(flow, number + 1, FlowItem(run, decision.priority), of_run, now_ms)
        elif isinstance(decision, CancelRun):
            place: int | None = yield LoadPlace(decision.run)
            if place is None:
                yield AtGate(number, key, decision)
            else:
                yield from _drop_later(flow, place, decision.run, now_ms)
        elif isinstance(decision, DropRun) and number:
            of_run = keys if decision.run == arriving else tuple((yield LoadKeys(decision.run)))
            yield AtGate(number, key, decision)
            yield from _release(flow, number, decision.run, of_run, now_ms)
        elif isinstance(decision, DropWaiting):
            yield DropAll(decision.reason)
        elif not (isinstance(decision, KeepItem) and number and decision.item == decision.run):
            yield AtGate(number, key, decision)


def _drop_later(flow: FlowControl, place: int, run: str, now_ms: int) -> FlowRequests:
    """Drop a run that an earlier gate replaces while it waits at a later one."""
    keys: Keys = tuple((yield LoadKeys(run)))
    yield from _release_at(flow, place, run, keys, now_ms)
    yield AtGate(place, keys[place], DropRun(run, DropReason.REPLACED))
    yield from _release(flow, place, run, keys, now_ms)


def _release(flow: FlowControl, before: int, run: str, keys: Keys, now_ms: int) -> FlowRequests:
    """Free the slots of a run that was dropped, at the gates before a gate."""
    for number in range(before):
        if flow.gates[number].concurrency is not None:
            yield from _release_at(flow, number, run, keys, now_ms)


def _release_at(flow: FlowControl, number: int, run: str, keys: Keys, now_ms: int) -> FlowRequests:
    state: FlowState | None = yield LoadGate(number, keys[number])
    step = flow_control.release(flow.gates[number], state, run, now_ms)
    yield SaveGate(number, keys[number], step.state, step.due_ms)
