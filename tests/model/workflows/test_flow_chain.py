"""Gates with different keys: no limit is exceeded, and nothing is lost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aether_trio.model.workflows import flow_chain
from aether_trio.model.workflows.definition import (
    Batch,
    Concurrency,
    Debounce,
    FlowControl,
    FlowGate,
    OnLimit,
    Pace,
)
from aether_trio.model.workflows.flow_chain import (
    AtGate,
    BeginRun,
    DropAll,
    FlowRequest,
    FlowRequests,
    LoadBegun,
    LoadFirst,
    LoadGate,
    LoadKeys,
    LoadPlace,
    SaveGate,
)
from aether_trio.model.workflows.flow_control import (
    PAGE,
    CancelRun,
    DropRun,
    FlowItem,
    FlowState,
    KeepItem,
    QueueRun,
)


@dataclass
class Run:
    """A row of a run: where it waits, or when it began."""

    gate: int
    key: str
    priority: float
    begun_ms: int = -1


@dataclass
class Tables:
    """What a service keeps, as tables; it answers requests and does what they say."""

    flow: FlowControl
    states: dict[tuple[int, str], FlowState] = field(default_factory=dict)
    timers: dict[tuple[int, str], int] = field(default_factory=dict)
    items: dict[str, tuple[str, tuple[str, ...]]] = field(default_factory=dict)  # run and keys
    runs: dict[str, Run] = field(default_factory=dict)
    keys: dict[str, tuple[str, ...]] = field(default_factory=dict)  # of runs that have begun
    begun: list[tuple[int, str, list[str]]] = field(default_factory=list)
    dropped: dict[str, str] = field(default_factory=dict)
    cancelled: list[str] = field(default_factory=list)
    now_ms: int = 0
    arriving: tuple[str, tuple[str, ...]] = ("", ())

    def arrive(self, name: str, *keys: str, priority: float = 0.0) -> None:
        self.arriving = (name, keys)
        self._do(flow_chain.item_arrived(self.flow, FlowItem(name, priority), keys, self.now_ms))

    def finish(self, run: str) -> None:
        del self.runs[run]
        self._do(flow_chain.run_finished(self.flow, run, self.keys.pop(run), self.now_ms))

    def deactivate(self) -> None:
        self._do(flow_chain.deactivated(self.flow, list(self.states), self.now_ms))

    def until(self, now_ms: int) -> None:
        while self.timers:
            place, due_ms = min(self.timers.items(), key=lambda timer: timer[1])
            if due_ms > now_ms:
                break
            self.now_ms = max(self.now_ms, due_ms)
            self._do(flow_chain.gate_due(self.flow, *place, self.now_ms))
        self.now_ms = max(self.now_ms, now_ms)

    def running(self) -> list[str]:
        return [run for run, row in self.runs.items() if row.begun_ms >= 0]

    def names(self) -> list[tuple[int, str]]:
        return [(at_ms, "+".join(items)) for at_ms, _, items in self.begun]

    def _do(self, requests: FlowRequests) -> None:
        answer: Any = None
        while True:
            try:
                request = requests.send(answer)
            except StopIteration:
                return
            answer = self._answer(request)

    def _answer(self, request: FlowRequest) -> Any:
        match request:
            case LoadGate(gate, key):
                return self.states.get((gate, key))
            case LoadFirst(gate, key):
                rows = [
                    (run, row.priority)
                    for run, row in self.runs.items()
                    if row.begun_ms < 0 and (row.gate, row.key) == (gate, key)
                ]
                return [FlowItem(*row) for row in sorted(rows, key=lambda row: -row[1])[:PAGE]]
            case LoadKeys(run):
                return self.items[run][1]
            case LoadPlace(run):
                return None if self.runs[run].begun_ms >= 0 else self.runs[run].gate
            case LoadBegun(runs):
                return [run for run in runs if run in self.runs and self.runs[run].begun_ms >= 0]
            case DropAll(reason):
                self.dropped.update(dict.fromkeys(self.items, str(reason)))
                self.items.clear()
                self.runs = {run: row for run, row in self.runs.items() if row.begun_ms >= 0}
            case SaveGate(gate, key, state, due_ms):
                self.states.pop((gate, key), None)
                self.timers.pop((gate, key), None)
                if state is not None:
                    self.states[gate, key] = state
                if due_ms:
                    self.timers[gate, key] = due_ms
            case AtGate(gate, key, decision):
                self._decided(gate, key, decision)
            case BeginRun(run, priority):
                self.runs[run] = Run(-1, "", priority, self.now_ms)
                self.keys[run] = self.items[run][1]
                self.begun.append((self.now_ms, run, self._take(run)))
        return None

    def _decided(self, gate: int, key: str, decision: Any) -> None:
        match decision:
            case KeepItem(item, run):
                keys = self.items[item][1] if item in self.items else self.arriving[1]
                self.items[item] = (run, keys)
            case QueueRun(run, priority):
                self.runs[run] = Run(gate, key, priority)
            case DropRun(run, reason):
                self.runs.pop(run, None)
                self.dropped.update(dict.fromkeys(self._take(run) or [run], str(reason)))
            case CancelRun(run):
                assert self.runs[run].begun_ms >= 0
                self.cancelled.append(run)

    def _take(self, run: str) -> list[str]:
        items = [item for item, (of_run, _) in self.items.items() if of_run == run]
        for item in items:
            del self.items[item]
        return items


def concurrency(limit: int, on_limit: str = "queue") -> FlowGate:
    return FlowGate(concurrency=Concurrency(limit=limit, on_limit=OnLimit(on_limit)))


def throttle(limit: int, period_ms: int) -> FlowGate:
    return FlowGate(throttle=Pace(limit=limit, period_ms=period_ms))


def test_without_gates_all_begins_at_once() -> None:
    got = Tables(FlowControl())
    with pytest.raises(KeyError):  # no gate has told to keep it: it is the item that arrives
        got.arrive("a")
    assert list(flow_chain.item_arrived(FlowControl(), FlowItem("a"), (), 1)) == [BeginRun("a", 0.0)]


def test_keys_are_those_of_all_gates() -> None:
    with pytest.raises(ValueError, match="there are 1 keys for 0 gates"):
        flow_chain.item_arrived(FlowControl(), FlowItem("a"), ("x",), 1)


def test_a_slot_for_each_customer_and_a_pace_for_all() -> None:
    got = Tables(FlowControl(gates=(concurrency(1), throttle(2, 10))))
    for name, customer in [("a1", "a"), ("a2", "a"), ("b1", "b"), ("c1", "c")]:
        got.arrive(name, customer, "")
    assert got.names() == [(0, "a1"), (0, "b1")]
    got.finish("a1")
    assert got.names()[2:] == []
    got.until(10)
    assert got.names()[2:] == [(10, "a2"), (10, "c1")]
    for run in ("b1", "c1", "a2"):
        got.finish(run)
    got.until(100)
    assert got.states == {}
    assert got.items == {}
    assert got.timers == {}


def test_items_of_one_key_are_gathered_and_then_wait_by_another() -> None:
    gather = FlowGate(debounce=Debounce(period_ms=5))
    got = Tables(FlowControl(gates=(gather, concurrency(1))))
    for name, user in [("a1", "a"), ("b1", "b"), ("a2", "a")]:
        got.arrive(name, user, "all")
    got.until(50)
    assert got.names() == [(5, "b1")]
    got.finish("b1")
    assert got.names()[1:] == [(50, "a1+a2")]


def test_a_run_that_waits_at_a_later_gate_is_replaced_without_being_cancelled() -> None:
    got = Tables(FlowControl(gates=(concurrency(1, "replace"), throttle(1, 10))))
    got.arrive("a", "x", "")
    got.finish("a")
    got.arrive("b", "x", "")
    got.arrive("c", "x", "")
    assert got.dropped == {"b": "replaced"}
    got.until(10)
    assert got.names() == [(0, "a"), (10, "c")]
    got.arrive("d", "x", "")
    assert got.cancelled == ["c"]
    got.finish("c")
    got.until(20)
    assert got.names()[2:] == [(20, "d")]


def test_what_a_later_gate_drops_frees_its_slot() -> None:
    got = Tables(FlowControl(gates=(concurrency(1), FlowGate(rate=Pace(limit=1, period_ms=100)))))
    for name in "abc":
        got.arrive(name, "x", "")
    got.finish("a")
    got.until(50)
    assert got.dropped == {"b": "rate", "c": "rate"}
    got.until(100)
    assert got.states == {}


def test_deactivating_drops_all_that_has_not_begun() -> None:
    gates = (FlowGate(batch=Batch(size=2, timeout_ms=100)), concurrency(2), throttle(1, 1_000))
    got = Tables(FlowControl(gates=gates))
    for number in range(9):
        got.arrive(f"i{number}", "x", "x", "x")
    assert got.names() == [(0, "i0+i1")]
    got.deactivate()
    assert got.dropped == {f"i{number}": "deactivated" for number in range(2, 9)}
    assert got.items == {}
    assert got.running() == ["i0"]
    assert got.states == {(1, "x"): FlowState(running=("i0",)), (2, "x"): FlowState(begun=((0, 1),))}
    assert got.timers == {(2, "x"): 1_000}
    got.finish("i0")
    got.until(5_000)
    assert got.states == {}


def test_a_second_end_of_a_run_changes_nothing() -> None:
    flow = FlowControl(gates=(concurrency(1),))
    got = Tables(flow)
    for name in "abc":
        got.arrive(name, "x")
    got.finish("a")
    got._do(flow_chain.run_finished(flow, "a", ("x",), 0))
    assert got.running() == ["b"]


def test_a_gate_of_an_earlier_document_is_forgotten() -> None:
    got = Tables(FlowControl(gates=(concurrency(1), throttle(1, 10))))
    got.arrive("a", "x", "x")
    got.flow = FlowControl(gates=(concurrency(1),))
    got.until(100)
    assert list(got.states) == [(0, "x")]


def test_deactivating_forgets_gates_that_are_no_more() -> None:
    got = Tables(FlowControl(gates=(concurrency(1), throttle(1, 10))))
    got.arrive("a", "x", "x")
    got.flow = FlowControl(gates=(concurrency(1),))
    got.deactivate()
    assert list(got.states) == [(0, "x")]
    assert got.timers == {}
    got._do(flow_chain.deactivated(got.flow, [(0, "y")], 0))
    assert list(got.states) == [(0, "x")]


# -- random chains ---------------------------------------------------------------------------------

stages: list[Callable[..., FlowGate]] = [
    lambda draw: FlowGate(idempotency_ms=draw(st.sampled_from([3, 10]))),
    lambda draw: FlowGate(rate=Pace(limit=draw(st.integers(1, 3)), period_ms=draw(st.sampled_from([3, 20])))),
    lambda draw: draw(
        st.sampled_from([FlowGate(debounce=Debounce(period_ms=3)), FlowGate(batch=Batch(size=2, timeout_ms=5))])
    ),
    lambda draw: concurrency(draw(st.integers(1, 2)), draw(st.sampled_from(["queue", "queue", "skip", "replace"]))),
    lambda draw: throttle(draw(st.integers(1, 2)), draw(st.sampled_from([4, 9]))),
]


@st.composite
def flows(draw: st.DrawFn) -> FlowControl:
    chosen = [make(draw) for make in stages if draw(st.integers(0, 2))]
    return FlowControl(gates=tuple(chosen or [concurrency(1)]))


stories = st.lists(
    st.tuples(
        st.sampled_from([0, 0, 1, 2, 7]),
        st.sampled_from(["arrive", "arrive", "finish"]),
        st.integers(0, 5),
        st.sampled_from([0.0, 1.0]),
        st.lists(st.sampled_from("xyz"), min_size=5, max_size=5),
    ),
    max_size=40,
)


@given(flows(), stories, st.booleans())
def test_no_limit_is_exceeded_and_nothing_is_lost(flow: FlowControl, story: list[Any], stops: bool) -> None:
    got = Tables(flow)
    names: dict[str, tuple[str, ...]] = {}
    for passed, what, number, priority, keys in story:
        got.until(got.now_ms + passed)
        if what == "arrive":
            name = f"i{len(names)}"
            names[name] = tuple(keys[: len(flow.gates)])
            got.arrive(name, *names[name], priority=priority)
        elif running := got.running():
            got.finish(running[number % len(running)])
        for place, gate in enumerate(flow.gates):
            if gate.concurrency:
                running_keys = [got.keys[run][place] for run in got.running()]
                assert all(running_keys.count(key) <= gate.concurrency.limit for key in running_keys)
    if stops:
        got.deactivate()
        assert got.items == {}
    for _ in range(500):
        if got.running():
            got.finish(got.running()[0])
        elif got.timers:
            got.until(min(got.timers.values()))
    assert got.states == {}
    assert got.items == {}
    assert got.runs == {}
    began = [item for _, _, items in got.begun for item in items]
    assert sorted([*began, *got.dropped]) == sorted(names)
    for number, gate in enumerate(flow.gates):
        if gate.throttle:
            for key in "xyz":
                times = [at_ms for at_ms, run, _ in got.begun if names[run][number] == key]
                later = times[gate.throttle.limit :]
                assert all(end - start >= gate.throttle.period_ms for start, end in zip(times, later, strict=False))
