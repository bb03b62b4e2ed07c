"""Flow control starts, delays and drops as it says, as a naive model does."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aether_trio.model.workflows import flow_control
from aether_trio.model.workflows.definition import (
    Batch,
    Concurrency,
    Debounce,
    FlowGate,
    OnLimit,
    Pace,
)
from aether_trio.model.workflows.flow_control import (
    MAX_GATHERED,
    MAX_MOMENTS,
    PAGE,
    CancelRun,
    DropRun,
    DropWaiting,
    FlowItem,
    FlowState,
    FlowStep,
    KeepItem,
    QueueRun,
    StartRun,
)


@dataclass
class Gate:
    """A caller of one gate and key, with the state as JSON and rows of items and runs."""

    gate: FlowGate
    state: FlowState | None = None
    due_ms: int = 0
    items: dict[str, list[str]] = field(default_factory=dict)  # by run
    waiting: dict[str, float] = field(default_factory=dict)
    started: list[tuple[int, list[str]]] = field(default_factory=list)
    dropped: list[tuple[str, str]] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    running: set[str] = field(default_factory=set)

    def first(self) -> list[FlowItem]:
        rows = sorted(self.waiting.items(), key=lambda row: -row[1])  # stable: by age
        return [FlowItem(run, priority) for run, priority in rows[:PAGE]]

    def arrive(self, name: str, now_ms: int, priority: float = 0.0) -> FlowStep:
        return self._take(
            flow_control.arrive(self.gate, self.state, FlowItem(name, priority), now_ms), now_ms, arriving=name
        )

    def finish(self, run: str, now_ms: int) -> FlowStep:
        self.running.discard(run)
        return self._take(flow_control.finished(self.gate, self.state, run, now_ms, self.first()), now_ms)

    def time(self, now_ms: int) -> FlowStep:
        return self._take(flow_control.time_passed(self.gate, self.state, now_ms, self.first()), now_ms)

    def timers(self, until_ms: int) -> int:
        """Call time_passed at each due moment; return the last."""
        now_ms = 0
        while self.due_ms and self.due_ms <= until_ms:
            now_ms = self.due_ms
            self.time(now_ms)
        return now_ms

    def stop(self, now_ms: int) -> FlowStep:
        return self._take(flow_control.cancel_waiting(self.gate, self.state, now_ms, self.running), now_ms)

    def _take(self, step: FlowStep, now_ms: int, arriving: str = "") -> FlowStep:
        for decision in step.decisions:
            match decision:
                case KeepItem(item, run):
                    assert item == arriving
                    self.items.setdefault(run, []).append(item)
                case QueueRun(run, priority):
                    self.waiting[run] = priority
                case StartRun(run, _):
                    self.waiting.pop(run, None)
                    self.started.append((now_ms, self.items.pop(run)))
                    if self.gate.concurrency:
                        self.running.add(run)
                case DropRun(run, reason):
                    self.waiting.pop(run, None)
                    self.dropped += [(item, str(reason)) for item in self.items.pop(run, [arriving])]
                case CancelRun(run):
                    assert run in self.running
                    self.cancelled.append(run)
                case DropWaiting(reason):
                    self.dropped += [(item, str(reason)) for run in self.items.values() for item in run]
                    self.items.clear()
                    self.waiting.clear()
        self.state, self.due_ms = step.state, step.due_ms
        if step.state is not None:
            document = json.dumps(step.state.to_json())
            assert FlowState.from_json(json.loads(document)) == step.state
            assert len(document) < 200 + 25 * (2 * MAX_MOMENTS + len(step.state.running) * 2)
            assert step.state.waiting == len(self.waiting)
            if self.gate.concurrency:
                assert set(step.state.running) == self.running
                assert len(self.running) <= self.gate.concurrency.limit
        else:
            assert not self.items
            assert not self.running
            assert step.due_ms == 0
        return step


def limited(limit: int = 1, on_limit: str = "queue", **stages: Any) -> Gate:
    return Gate(FlowGate(concurrency=Concurrency(limit=limit, on_limit=OnLimit(on_limit)), **stages))


def starts(gate: Gate) -> list[tuple[int, str]]:
    return [(at_ms, "+".join(items)) for at_ms, items in gate.started]


# -- concurrency -----------------------------------------------------------------------------------


def test_without_stages_each_item_starts_and_nothing_is_kept() -> None:
    gate = Gate(FlowGate())
    assert gate.arrive("a", 1) == FlowStep(None, (KeepItem("a", "a"), StartRun("a", 0.0)), 0)


def test_runs_over_the_limit_wait_for_an_end() -> None:
    gate = limited(2)
    for name in "abcd":
        gate.arrive(name, 1)
    assert starts(gate) == [(1, "a"), (1, "b")]
    gate.finish("a", 5)
    gate.finish("a", 6)
    gate.finish("x", 6)
    assert starts(gate)[2:] == [(5, "c")]
    for run in "bcd":
        gate.finish(run, 7)
    assert starts(gate)[3:] == [(7, "d")]
    assert gate.state is None


def test_higher_priorities_of_those_that_wait_begin_first() -> None:
    gate = limited()
    for name, priority in [("a", 0.0), ("b", 1.0), ("c", 2.0), ("d", 2.0), ("e", -1.0)]:
        gate.arrive(name, 1, priority)
    for run in "acdb":
        gate.finish(run, 2)
    assert [items for _, items in gate.started] == [["a"], ["c"], ["d"], ["b"], ["e"]]


def test_skip_drops_what_is_over_the_limit() -> None:
    gate = limited(on_limit="skip")
    gate.arrive("a", 1)
    gate.arrive("b", 2)
    gate.finish("a", 3)
    gate.arrive("c", 4)
    assert starts(gate) == [(1, "a"), (4, "c")]
    assert gate.dropped == [("b", "skipped")]


def test_replace_cancels_the_oldest_and_begins_when_it_has_ended() -> None:
    gate = limited(2, "replace")
    for now_ms, name in enumerate("abcde", 1):
        gate.arrive(name, now_ms)
    assert starts(gate) == [(1, "a"), (2, "b")]
    assert gate.cancelled == ["a", "b"]
    assert gate.dropped == [("c", "replaced")]
    gate.finish("b", 10)
    gate.finish("a", 11)
    assert starts(gate)[2:] == [(10, "d"), (11, "e")]
    gate.arrive("f", 12)
    assert gate.cancelled[2:] == ["d"]


# -- throttle and rate -----------------------------------------------------------------------------


def test_a_throttle_lets_so_many_begin_in_any_period() -> None:
    gate = Gate(FlowGate(throttle=Pace(limit=2, period_ms=10)))
    for now_ms, name in [(1, "a"), (6, "b"), (7, "c"), (8, "d"), (8, "e")]:
        gate.timers(now_ms)
        gate.arrive(name, now_ms)
    gate.timers(100)
    assert starts(gate) == [(1, "a"), (6, "b"), (11, "c"), (16, "d"), (21, "e")]
    assert gate.state is None


def test_a_rate_drops_the_others() -> None:
    gate = Gate(FlowGate(rate=Pace(limit=2, period_ms=10)))
    for now_ms, name in [(1, "a"), (6, "b"), (7, "c"), (11, "d"), (12, "e")]:
        gate.arrive(name, now_ms)
    assert starts(gate) == [(1, "a"), (6, "b"), (11, "d")]
    assert gate.dropped == [("c", "rate"), ("e", "rate")]
    assert gate.due_ms == 21
    gate.time(21)
    assert gate.state is None


def test_a_slot_is_used_only_when_the_throttle_allows_it() -> None:
    gate = limited(1, throttle=Pace(limit=1, period_ms=10))
    gate.arrive("a", 1)
    gate.arrive("b", 2)
    assert gate.due_ms == 0
    gate.finish("a", 3)
    assert gate.due_ms == 11
    gate.timers(11)
    assert starts(gate) == [(1, "a"), (11, "b")]


@settings(max_examples=15)
@given(st.lists(st.integers(0, 30), min_size=300, max_size=300), st.integers(1, 400))
def test_many_moments_are_kept_in_little_and_never_let_too_many_begin(steps: list[int], limit: int) -> None:
    period_ms = 2_000
    gate = Gate(FlowGate(rate=Pace(limit=limit, period_ms=period_ms)))
    now_ms = 1
    for number, passed in enumerate(steps):
        now_ms += passed
        gate.arrive(str(number), now_ms)
    times = [at_ms for at_ms, _ in gate.started]
    assert all(later - earlier >= period_ms for earlier, later in zip(times, times[limit:], strict=False))
    assert gate.state is not None
    assert len(gate.state.taken) <= MAX_MOMENTS


# -- debounce and batch ----------------------------------------------------------------------------


def test_a_debounce_runs_once_with_all_items_after_a_quiet_period() -> None:
    gate = Gate(FlowGate(debounce=Debounce(period_ms=10)))
    for now_ms, name in [(1, "a"), (9, "b"), (18, "c")]:
        gate.timers(now_ms)
        gate.arrive(name, now_ms)
    gate.timers(100)
    gate.arrive("d", 200)
    gate.timers(300)
    assert starts(gate) == [(28, "a+b+c"), (210, "d")]
    assert gate.state is None


def test_a_debounce_waits_no_longer_than_said() -> None:
    gate = Gate(FlowGate(debounce=Debounce(period_ms=10, max_wait_ms=15)))
    for now_ms, name in [(1, "a"), (9, "b"), (15, "c"), (17, "d")]:
        gate.timers(now_ms)
        gate.arrive(name, now_ms)
    gate.timers(100)
    assert starts(gate) == [(16, "a+b+c"), (27, "d")]


def test_a_debounce_ends_early_with_as_many_items_as_a_run_may_have() -> None:
    gate = Gate(FlowGate(debounce=Debounce(period_ms=10)))
    for number in range(MAX_GATHERED + 1):
        gate.arrive(str(number), 1)
    assert [len(items) for _, items in gate.started] == [MAX_GATHERED]
    gate.timers(100)
    assert [len(items) for _, items in gate.started] == [MAX_GATHERED, 1]


def test_a_batch_runs_when_it_is_full_or_its_time_is_over() -> None:
    gate = Gate(FlowGate(batch=Batch(size=3, timeout_ms=10)))
    for now_ms, name in [(1, "a"), (2, "b"), (3, "c"), (4, "d"), (13, "e"), (14, "f")]:
        gate.timers(now_ms)
        gate.arrive(name, now_ms)
    gate.timers(100)
    assert starts(gate) == [(3, "a+b+c"), (14, "d+e"), (24, "f")]


def test_a_gathered_run_waits_with_the_highest_priority_of_its_items() -> None:
    gate = limited(1, batch=Batch(size=2, timeout_ms=100))
    for name, priority in [("a", 0.0), ("b", 0.0), ("c", 1.0), ("d", 0.0), ("e", 0.0), ("f", 5.0)]:
        gate.arrive(name, 1, priority)
    gate.finish("a", 2)
    gate.finish("e", 3)
    assert starts(gate) == [(1, "a+b"), (2, "e+f"), (3, "c+d")]


def test_a_gathered_run_over_the_limit_is_skipped_with_all_items() -> None:
    gate = limited(1, "skip", batch=Batch(size=2, timeout_ms=100))
    for name in "abcd":
        gate.arrive(name, 1)
    assert gate.dropped == [("c", "skipped"), ("d", "skipped")]


# -- idempotency, deactivation, changes ------------------------------------------------------------


def test_the_first_item_of_a_key_is_the_only_one_of_a_period() -> None:
    gate = Gate(FlowGate(idempotency_ms=10))
    for now_ms, name in [(1, "a"), (1, "b"), (10, "c"), (11, "d"), (12, "e")]:
        gate.arrive(name, now_ms)
    assert starts(gate) == [(1, "a"), (11, "d")]
    assert gate.dropped == [(name, "duplicate") for name in "bce"]
    gate.time(20)
    assert gate.state is not None
    gate.time(21)
    assert gate.state is None


def test_deactivating_drops_what_waits_and_lets_runs_end() -> None:
    gate = limited(1, batch=Batch(size=2, timeout_ms=100))
    for name in "abcde":
        gate.arrive(name, 1)
    assert gate.stop(2).decisions == (DropWaiting(flow_control.DropReason.DEACTIVATED),)
    assert gate.stop(3).decisions == ()
    gate.finish("a", 4)
    assert [name for name, _ in gate.dropped] == ["c", "d", "e"]
    assert gate.state is None


def test_a_run_that_waits_at_a_later_gate_gives_back_its_slot_on_deactivation() -> None:
    gate = limited(2)
    gate.arrive("a", 1)
    gate.arrive("b", 1)
    step = flow_control.cancel_waiting(gate.gate, gate.state, 2, {"b"})
    assert step.state == FlowState(running=("b",))


def test_a_run_that_is_being_cancelled_stays_so_on_deactivation() -> None:
    gate = limited(2, "replace")
    for name in "abcd":
        gate.arrive(name, 1)
    step = flow_control.cancel_waiting(gate.gate, gate.state, 2, {"b"})
    assert step.state == FlowState(running=("b",), cancelling=("b",))


def test_a_run_that_was_dropped_later_gives_back_its_slot_and_the_next_is_due() -> None:
    gate = limited(1)
    gate.arrive("a", 1)
    gate.arrive("b", 1)
    gate.running.clear()
    gate._take(flow_control.release(gate.gate, gate.state, "a", 2), 2)
    assert gate.due_ms == 2
    gate.timers(2)
    assert starts(gate)[1:] == [(2, "b")]


def test_a_run_that_waits_may_be_taken_away() -> None:
    gate = limited(1, "replace")
    gate.arrive("a", 1)
    gate.arrive("b", 1)
    step = flow_control.release(gate.gate, gate.state, "b", 2)
    assert step.state == FlowState(running=("a",), cancelling=("a",))
    assert flow_control.release(gate.gate, step.state, "b", 2).state == step.state


def test_a_limit_that_is_raised_lets_more_begin_page_by_page() -> None:
    gate = limited(1)
    for number in range(40):
        gate.arrive(str(number), 1)
    gate.gate = FlowGate(concurrency=Concurrency(limit=100))
    assert gate.time(2).due_ms == 2
    gate.timers(2)
    assert len(gate.started) == 40
    assert gate.due_ms == 0


def test_stages_that_are_no_more_let_go_what_they_held() -> None:
    gate = limited(1, "replace", batch=Batch(size=9, timeout_ms=100), throttle=Pace(limit=1, period_ms=50))
    gate.arrive("a", 1)
    gate.timers(101)
    gate.arrive("b", 102)
    gate.timers(202)
    gate.arrive("c", 203)
    gate.gate = FlowGate()
    gate.time(204)
    gate.timers(204)
    assert [items for _, items in gate.started] == [["a"], ["b"], ["c"]]


def test_a_count_that_is_wrong_is_put_right_by_the_rows() -> None:
    gate = limited(1)
    step = flow_control.finished(gate.gate, FlowState(running=("a",), waiting=7), "a", 1, [FlowItem("b")])
    assert step.decisions == (StartRun("b", 0.0),)
    assert step.state == FlowState(running=("b",))
    step = flow_control.time_passed(gate.gate, FlowState(waiting=7), 1, [])
    assert step == FlowStep(None, (), 0)


def test_no_more_than_so_many_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow_control, "MAX_WAITING", 3)
    gate = limited(1)
    for name in "abcde":
        gate.arrive(name, 1)
    assert gate.dropped == [("e", "full")]


@pytest.mark.parametrize(("value", "number"), [(None, 0.0), (3, 3.0), (-1.5, -1.5)])
def test_reads_a_priority(value: Any, number: float) -> None:
    assert flow_control.priority_of(value) == number


@pytest.mark.parametrize("value", [True, "high", [], float("nan"), float("-inf"), 10**400])
def test_refuses_what_is_no_priority(value: Any) -> None:
    with pytest.raises(ValueError, match="priority must be a"):
        flow_control.priority_of(value)


# -- clocks ----------------------------------------------------------------------------------------

HOUR = 3_600_000


@pytest.mark.parametrize(
    "stages",
    [
        {"throttle": Pace(limit=1, period_ms=50)},
        {"debounce": Debounce(period_ms=50)},
        {"debounce": Debounce(period_ms=40, max_wait_ms=50)},
        {"batch": Batch(size=10, timeout_ms=50)},
    ],
)
def test_a_clock_that_is_set_back_delays_by_a_period_only(stages: dict[str, Any]) -> None:
    gate = Gate(FlowGate(**stages))
    gate.arrive("a", HOUR)
    gate.arrive("b", 10)
    assert 10 < gate.due_ms <= 60
    gate.timers(60)
    assert sorted(item for _, items in gate.started for item in items) == ["a", "b"]


@pytest.mark.parametrize("stages", [{"rate": Pace(limit=1, period_ms=50)}, {"idempotency_ms": 50}])
def test_a_clock_that_is_set_back_drops_for_a_period_only(stages: dict[str, Any]) -> None:
    gate = Gate(FlowGate(**stages))
    gate.arrive("a", HOUR)
    gate.arrive("b", 10)
    gate.arrive("c", 60)
    assert starts(gate) == [(HOUR, "a"), (60, "c")]


# -- against a naive model -------------------------------------------------------------------------


@dataclass
class NaiveFlow:
    """All that ever came is kept, and each tick of a millisecond looks at all of it."""

    gate: FlowGate
    now_ms: int = 0
    passed: list[tuple[int, str]] = field(default_factory=list)  # items after idempotency and rate
    accepted_ms: list[int] = field(default_factory=list)
    seen_ms: list[int] = field(default_factory=list)
    window: list[tuple[int, str, float]] = field(default_factory=list)
    queue: list[tuple[float, list[str]]] = field(default_factory=list)
    running: list[str] = field(default_factory=list)
    cancelling: list[str] = field(default_factory=list)
    started: list[tuple[int, list[str]]] = field(default_factory=list)
    dropped: list[tuple[str, str]] = field(default_factory=list)

    def arrive(self, name: str, priority: float) -> None:
        gate = self.gate
        if gate.idempotency_ms:
            if any(self.now_ms < at_ms + gate.idempotency_ms for at_ms in self.seen_ms):
                self.dropped.append((name, "duplicate"))
                return
            self.seen_ms.append(self.now_ms)
        if gate.rate:
            if sum(self.now_ms - gate.rate.period_ms < at_ms for at_ms in self.accepted_ms) >= gate.rate.limit:
                self.dropped.append((name, "rate"))
                return
            self.accepted_ms.append(self.now_ms)
        if not gate.debounce and not gate.batch:
            self.ready([name], priority)
            return
        self.window.append((self.now_ms, name, priority))
        if gate.batch and len(self.window) == gate.batch.size:
            self.close()

    def close(self) -> None:
        window, self.window = self.window, []
        self.ready([name for _, name, _ in window], max(priority for _, _, priority in window))

    def ready(self, items: list[str], priority: float) -> None:
        concurrency = self.gate.concurrency
        full = concurrency and len(self.running) + len(self.queue) >= concurrency.limit
        if concurrency and full and concurrency.on_limit is OnLimit.SKIP:
            self.dropped += [(item, "skipped") for item in items]
            return
        self.queue.append((priority, items))
        if concurrency and concurrency.on_limit is OnLimit.REPLACE and not (len(self.queue) == 1 and self.may_begin()):
            while len(self.running) - len(self.cancelling) + len(self.queue) > concurrency.limit:
                old = [run for run in self.running if run not in self.cancelling]
                if old:
                    self.cancelling.append(old[0])
                else:
                    self.dropped += [(item, "replaced") for item in self.queue.pop(0)[1]]
        self.begin()

    def may_begin(self) -> bool:
        gate = self.gate
        if gate.concurrency and len(self.running) >= gate.concurrency.limit:
            return False
        recent = [at_ms for at_ms, _ in self.started if gate.throttle and self.now_ms - gate.throttle.period_ms < at_ms]
        return not gate.throttle or len(recent) < gate.throttle.limit

    def begin(self) -> None:
        while self.queue and self.may_begin():
            best = max(self.queue, key=lambda run: run[0])
            self.queue.remove(best)
            self.started.append((self.now_ms, best[1]))
            if self.gate.concurrency:
                self.running.append(best[1][0])

    def finish(self, run: str) -> None:
        if run in self.running:
            self.running.remove(run)
            if run in self.cancelling:
                self.cancelling.remove(run)
            self.begin()

    def tick(self) -> None:
        self.now_ms += 1
        self.begin()
        if self.window:
            first_ms, last_ms = self.window[0][0], self.window[-1][0]
            if self.gate.batch:
                due_ms = first_ms + self.gate.batch.timeout_ms
            else:
                assert self.gate.debounce
                due_ms = last_ms + self.gate.debounce.period_ms
                if self.gate.debounce.max_wait_ms:
                    due_ms = min(due_ms, first_ms + self.gate.debounce.max_wait_ms)
            if self.now_ms >= due_ms:
                self.close()


paces = st.none() | st.builds(Pace, limit=st.integers(1, 3), period_ms=st.sampled_from([1, 5, 12]))
gates = st.builds(
    FlowGate,
    idempotency_ms=st.sampled_from([0, 0, 0, 4]),
    rate=paces,
    concurrency=st.none()
    | st.builds(Concurrency, limit=st.integers(1, 3), on_limit=st.sampled_from([*OnLimit, OnLimit.QUEUE])),
    throttle=paces,
).flatmap(
    lambda gate: st.sampled_from(
        [
            {},
            {},
            {"debounce": Debounce(period_ms=3)},
            {"debounce": Debounce(period_ms=4, max_wait_ms=6)},
            {"batch": Batch(size=1, timeout_ms=5)},
            {"batch": Batch(size=3, timeout_ms=5)},
        ]
    ).map(
        lambda gathers: FlowGate(
            idempotency_ms=gate.idempotency_ms,
            rate=gate.rate,
            concurrency=gate.concurrency,
            throttle=gate.throttle,
            **gathers,
        )
    )
)
stories = st.lists(
    st.tuples(
        st.sampled_from([0, 0, 0, 1, 1, 2, 5, 15]),
        st.sampled_from(["arrive", "arrive", "arrive", "finish"]),
        st.integers(0, 5),
        st.sampled_from([0.0, 0.0, 1.0, 2.0]),
    ),
    max_size=40,
)


@given(gates, stories)
def test_does_what_a_naive_model_does(gate: FlowGate, story: list[tuple[int, str, int, float]]) -> None:
    got, naive = Gate(gate), NaiveFlow(gate)
    now_ms, names = 0, 0
    for passed, what, number, priority in [*story, (100, "", 0, 0.0)]:
        now_ms += passed
        got.timers(now_ms)
        while naive.now_ms < now_ms:
            naive.tick()
        if what == "arrive":
            names += 1
            got.arrive(f"i{names}", now_ms, priority)
            naive.arrive(f"i{names}", priority)
        elif what == "finish" and got.state is not None and got.state.running:
            run = got.state.running[number % len(got.state.running)]
            got.finish(run, now_ms)
            naive.finish(run)
        assert got.started == naive.started
        assert got.dropped == naive.dropped
        assert set(got.state.cancelling if got.state else ()) == set(naive.cancelling)


@given(gates, stories, st.lists(st.integers(-50, 50), min_size=40, max_size=40))
def test_loses_nothing_whatever_the_clock_does(
    gate: FlowGate, story: list[tuple[int, str, int, float]], jumps: list[int]
) -> None:
    got = Gate(gate)
    now_ms, names = 1_000, []
    for (passed, what, number, priority), jump in zip(story, jumps, strict=False):
        now_ms += passed + (jump if number == 0 else 0)
        got.time(now_ms)
        if what == "arrive":
            names.append(f"i{len(names)}")
            got.arrive(names[-1], now_ms, priority)
        elif got.state is not None and got.state.running:
            got.finish(got.state.running[number % len(got.state.running)], now_ms)
        assert got.due_ms <= now_ms + 15
    for _ in range(1_000):
        if got.state is None:
            break
        if got.running:
            got.finish(min(got.running), now_ms)
        else:
            assert got.due_ms
            now_ms = max(now_ms, got.due_ms)
            got.time(now_ms)
    assert got.state is None
    ended = [item for _, items in got.started for item in items] + [item for item, _ in got.dropped]
    assert sorted(ended) == sorted(names)
