"""Joins fire once for all events, in any order, as a naive model does."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aether_trio.model.workflows import joins
from aether_trio.model.workflows.definition import Action, JoinDefinition, JoinMode
from aether_trio.model.workflows.joins import Arrival, JoinNote, JoinOutcome, JoinState, JoinStatus

DONE = Action(agent="done")
TIMED_OUT = Action(agent="timed-out")


class _Key:
    """A value that is never computed: the caller has computed it."""

    def paths(self) -> frozenset[tuple[str | int, ...]]:
        return frozenset()

    def evaluate(self, env: Any, *, now: Any) -> Any:
        raise AssertionError


def join_of(mode: str = "count", **values: Any) -> JoinDefinition:
    defaults: dict[str, Any] = {"on_complete": DONE, "on_timeout": TIMED_OUT, "linger_ms": 100}
    return JoinDefinition(name="j", correlation_key=_Key(), mode=JoinMode(mode), **{**defaults, **values})


@dataclass
class Instances:
    """A caller with one correlation key: the state as JSON, and rows of members."""

    join: JoinDefinition
    state: JoinState | None = None
    dedup_ids: set[str] = field(default_factory=set)
    arrived: set[str] = field(default_factory=set)
    expected: set[str] | None = None
    actions: list[tuple[int, str]] = field(default_factory=list)

    def event(
        self, now_ms: int, *, name: str = "e", dedup: str = "", member: str = "", expects: Any = None
    ) -> JoinOutcome:
        """Handle an event; `expects` is what its expected_count or expected_set gives."""
        if joins.is_over(self.state, now_ms):
            self._forget()
        arms = joins.is_arming(self.join, name)
        count: int | None = None
        present: int | None = None
        becomes_known = False
        if expects is not None and joins.wants_expected(self.join, self.state, name, now_ms):
            if self.join.mode is JoinMode.SET:
                self.expected = set(expects)
                count = len(self.expected)
                becomes_known = True
            else:
                count = joins.expected_number(expects)
        is_new = True
        if not arms:
            is_new = not (dedup and dedup in self.dedup_ids)
            if dedup:
                self.dedup_ids.add(dedup)
            if is_new and self.join.mode is JoinMode.SET:
                is_new = member not in self.arrived
                self.arrived.add(member)
        if becomes_known:
            assert self.expected is not None
            present = len(self.arrived & self.expected)
        is_member = self.join.mode is not JoinMode.SET or self.expected is None or member in self.expected
        arrival = Arrival(arms=arms, is_new=is_new, is_member=is_member, expected=count, present=present)
        state, outcome = joins.arrive(self.join, self.state, arrival, now_ms)
        return self._keep(state, outcome, now_ms)

    def time(self, now_ms: int) -> JoinOutcome:
        state, outcome = joins.time_passed(self.join, self.state, now_ms)
        return self._keep(state, outcome, now_ms)

    def cancel(self, now_ms: int) -> JoinOutcome:
        state, outcome = joins.cancel(self.join, self.state, now_ms)
        return self._keep(state, outcome, now_ms)

    def _keep(self, state: JoinState | None, outcome: JoinOutcome, now_ms: int) -> JoinOutcome:
        if outcome.action is not None:
            self.actions.append((now_ms, outcome.action.agent))
        if state is None:
            self._forget()
        else:
            self.state = JoinState.from_json(json.loads(json.dumps(state.to_json())))
            assert self.state == state
            assert state.due_ms > 0
            assert len(json.dumps(state.to_json())) < 400
        return outcome

    def _forget(self) -> None:
        self.state = None
        self.dedup_ids.clear()
        self.arrived.clear()
        self.expected = None


# -- count -----------------------------------------------------------------------------------------


def test_fires_once_when_all_have_arrived() -> None:
    got = Instances(join_of())
    assert got.event(1, expects=3.0).began
    assert not got.event(2, expects=99).began
    assert got.event(3).ended is JoinStatus.FIRED
    assert got.event(4).note is JoinNote.LATE
    assert got.actions == [(3, "done")]
    assert got.state is not None
    assert (got.state.arrived, got.state.expected, got.state.status) == (3, 3, JoinStatus.FIRED)


def test_a_duplicate_does_not_count() -> None:
    got = Instances(join_of())
    got.event(1, dedup="a", expects=2)
    assert got.event(2, dedup="a").note is JoinNote.DUPLICATE
    assert got.actions == []
    got.event(3, dedup="b")
    assert got.actions == [(3, "done")]


@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_the_arming_event_says_how_many_and_is_not_counted(place: int) -> None:
    got = Instances(join_of(arm_on_event="armed"))
    for number in range(4):
        if number == place:
            got.event(number, name="armed", expects=3)
        else:
            got.event(number, dedup=f"d{number}", expects=1)
    assert got.actions == [(3, "done")]


def test_a_rule_that_does_not_arm_leaves_the_count_to_the_one_that_does() -> None:
    got = Instances(join_of())
    got.event(1)
    got.event(2)
    assert got.actions == []
    got.join = join_of(arm_on_event="armed")
    got.event(3, name="armed", expects=2)
    assert got.actions == [(3, "done")]


def test_the_last_arming_event_counts() -> None:
    got = Instances(join_of(arm_on_event="armed"))
    got.event(1, name="armed", expects=1_000)
    got.event(2)
    got.event(3, name="armed", expects=2)
    got.event(4)
    assert got.actions == [(4, "done")]


def test_nothing_expected_fires_when_that_is_known() -> None:
    got = Instances(join_of(arm_on_event="armed"))
    got.event(1, name="armed", expects=0)
    assert got.actions == [(1, "done")]


@pytest.mark.parametrize("value", [True, None, "3", [3], float("nan"), float("inf"), -1, 2**41, "x" * 1_000_000])
def test_refuses_what_is_no_count(value: Any) -> None:
    with pytest.raises(ValueError, match=r"^expected_count .*(must be a number, not|must be between)") as caught:
        joins.expected_number(value)
    assert len(str(caught.value)) < 150


@pytest.mark.parametrize(("value", "number"), [(0, 0), (3, 3), (3.9, 3), (2.0**40, 2**40)])
def test_truncates_a_count(value: float, number: int) -> None:
    assert joins.expected_number(value) == number


# -- set -------------------------------------------------------------------------------------------


def test_fires_when_each_member_has_arrived() -> None:
    got = Instances(join_of("set"))
    got.event(1, member="a", expects=["a", "b", "a"])
    assert got.event(2, member="a").note is JoinNote.DUPLICATE
    assert got.event(3, member="x").note is JoinNote.FOREIGN
    assert got.actions == []
    got.event(4, member="b", expects=["b"])
    assert got.actions == [(4, "done")]


def test_members_before_the_set_is_known_count_if_it_has_them() -> None:
    got = Instances(join_of("set", arm_on_event="armed"))
    for number, member in enumerate(["a", "x", "b", "y"]):
        got.event(number, member=member)
    got.event(9, name="armed", expects=["a", "b", "c"])
    assert got.actions == []
    assert got.state is not None
    assert got.state.arrived == 2
    got.event(10, member="c")
    assert got.actions == [(10, "done")]


# -- deadlines -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "actions"),
    [
        ({}, [(50, "timed-out")]),
        ({"on_timeout": None}, [(50, "done")]),
        ({"on_partial_failure": "continue"}, [(50, "timed-out")]),
        ({"on_partial_failure": "abort"}, []),
    ],
)
def test_times_out_by_its_policy(values: dict[str, Any], actions: list[tuple[int, str]]) -> None:
    got = Instances(join_of(timeout_ms=40, **values))
    got.event(10, expects=2)
    assert got.state is not None
    assert got.state.due_ms == 50
    assert got.time(49) == joins.NOTHING
    assert got.time(50).ended is JoinStatus.TIMED_OUT
    assert got.time(50) == joins.NOTHING
    assert got.event(51).note is JoinNote.LATE
    assert got.actions == actions


def test_an_arrival_before_the_deadline_has_acted_counts() -> None:
    got = Instances(join_of(timeout_ms=40))
    got.event(10, expects=2)
    got.event(60)
    assert got.actions == [(60, "done")]


def test_without_a_timeout_it_is_given_up_after_a_month() -> None:
    got = Instances(join_of())
    got.event(10, expects=2)
    assert got.time(10 + joins.LONGEST_OPEN_MS).ended is JoinStatus.TIMED_OUT
    assert got.actions == []


def test_another_rule_of_the_join_may_declare_the_timeout_and_the_action() -> None:
    got = Instances(join_of(on_complete=None, on_timeout=None))
    got.event(10)
    got.join = joins.merge(join_of(arm_on_event="armed", timeout_ms=40), got.join)
    got.event(20, name="armed", expects=2)
    got.join = joins.merge(join_of(on_complete=None, on_timeout=None), got.join)
    got.event(21, dedup="late")
    assert got.actions == [(21, "done")]
    got = Instances(joins.merge(join_of(on_complete=None), join_of(timeout_ms=40)))
    got.event(10, expects=2)
    got.time(50)
    assert got.actions == [(50, "timed-out")]


def test_after_its_linger_the_key_begins_anew() -> None:
    got = Instances(join_of())
    got.event(10, dedup="a", expects=1)
    assert got.event(109, dedup="b", expects=1).note is JoinNote.LATE
    assert got.event(110, dedup="a", expects=1).began
    assert got.actions == [(10, "done"), (110, "done")]
    got.time(209)
    assert got.state is not None
    got.time(210)
    assert got.state is None


def test_without_linger_it_begins_anew_at_once() -> None:
    got = Instances(join_of(linger_ms=0))
    got.event(10, expects=1)
    assert got.event(10, expects=1).began
    assert got.actions == [(10, "done"), (10, "done")]


# -- cancel ----------------------------------------------------------------------------------------


def test_a_cancelled_instance_does_nothing_more() -> None:
    got = Instances(join_of(timeout_ms=40))
    assert got.cancel(1) == joins.NOTHING
    assert got.state is None
    got.event(10, expects=2)
    assert got.cancel(20).ended is JoinStatus.CANCELLED
    assert got.cancel(30) == joins.NOTHING
    got.event(40)
    got.time(60)
    assert got.actions == []
    assert got.state is not None
    assert got.state.linger_until_ms == 120


def test_cancel_takes_the_run_after_the_window_too() -> None:
    got = Instances(join_of("coalesce", window_ms=50))
    got.event(10)
    got.event(20)
    got.cancel(30)
    got.time(60)
    assert got.actions == [(10, "done")]


def test_what_has_ended_is_not_cancelled() -> None:
    got = Instances(join_of())
    got.event(10, expects=1)
    assert got.cancel(20) == joins.NOTHING
    assert got.state is not None
    assert got.state.status is JoinStatus.FIRED


# -- coalesce --------------------------------------------------------------------------------------


def test_arrivals_of_a_window_cause_one_run_at_its_end() -> None:
    got = Instances(join_of("coalesce", window_ms=50))
    for now_ms in (10, 20, 30, 59):
        got.event(now_ms)
    got.time(60)
    got.time(110)
    assert got.actions == [(10, "done"), (60, "done")]
    assert got.state is not None
    assert got.state.due_ms == 210
    got.event(111)
    assert got.actions[2:] == [(111, "done")]


def test_the_run_at_the_end_of_a_window_opens_another() -> None:
    got = Instances(join_of("coalesce", window_ms=50))
    for now_ms in (10, 20, 70, 80):
        got.time(now_ms)
        got.event(now_ms)
    got.time(120)
    assert got.actions == [(10, "done"), (70, "done"), (120, "done")]


def test_an_arrival_after_the_window_takes_the_place_of_the_run_at_its_end() -> None:
    got = Instances(join_of("coalesce", window_ms=50))
    for now_ms in (10, 20, 70):
        got.event(now_ms)
    got.time(70)
    assert got.actions == [(10, "done"), (70, "done")]


def test_without_a_window_each_arrival_fires() -> None:
    got = Instances(join_of("coalesce"))
    for now_ms in (10, 10, 11):
        got.event(now_ms)
    assert [at for at, _ in got.actions] == [10, 10, 11]


def test_a_duplicate_makes_no_run() -> None:
    got = Instances(join_of("coalesce", window_ms=50))
    got.event(10, dedup="a")
    assert got.event(20, dedup="a").note is JoinNote.DUPLICATE
    got.time(60)
    assert got.event(70, dedup="a").note is JoinNote.DUPLICATE
    assert got.actions == [(10, "done")]
    got.time(160)
    assert got.state is None
    got.event(161, dedup="a")
    assert got.actions[1:] == [(161, "done")]


@pytest.mark.parametrize("mode", ["count", "set", "coalesce"])
def test_a_clock_that_is_set_back_delays_by_no_more_than_the_declared_time(mode: str) -> None:
    hour = 3_600_000
    got = Instances(join_of(mode, window_ms=50, timeout_ms=50))
    got.event(hour, member="a", expects=9 if mode == "count" else ["a", "b"])
    got.event(20, member="x", dedup="d")
    got.event(20, member="x", dedup="d")
    assert got.state is not None
    assert got.state.due_ms == 70


# -- against a naive model -------------------------------------------------------------------------


@dataclass
class NaiveJoin:
    """All events of an instance are kept, and everything is computed anew from them."""

    join: JoinDefinition
    events: list[dict[str, Any]] = field(default_factory=list)
    ended_ms: int | None = None
    window_end_ms: int | None = None
    waiting: int = 0
    idle_since_ms: int | None = None
    actions: list[tuple[int, str]] = field(default_factory=list)

    def event(self, now_ms: int, **event: Any) -> None:
        self._forget(now_ms)
        if self.ended_ms is not None:
            return
        before = len(self._counted())
        self.events.append({**event, "at": now_ms})
        counted = self._counted()
        if self.join.mode is JoinMode.COALESCE:
            if self._arms(event) or len(counted) == before:
                self.idle_since_ms = now_ms if len(self.events) == 1 else self.idle_since_ms
            elif self.window_end_ms is not None and now_ms < self.window_end_ms:
                self.waiting += 1
            else:
                self._fire(now_ms)
            return
        expected = self._expected()
        if expected is None:
            return
        complete = len(counted) >= expected if isinstance(expected, int) else expected <= set(counted)
        if complete:
            self.actions.append((now_ms, "done"))
            self.ended_ms = now_ms

    def _fire(self, now_ms: int) -> None:
        self.actions.append((now_ms, "done"))
        self.waiting = 0
        self.window_end_ms = now_ms + self.join.window_ms if self.join.window_ms else None
        self.idle_since_ms = None if self.join.window_ms else now_ms

    def time(self, now_ms: int) -> None:
        self._forget(now_ms)
        if not self.events or self.ended_ms is not None:
            return
        if self.join.mode is JoinMode.COALESCE:
            if self.window_end_ms is not None and now_ms >= self.window_end_ms:
                if self.waiting:
                    self._fire(now_ms)
                else:
                    self.window_end_ms = None
                    self.idle_since_ms = now_ms
        elif now_ms >= self.events[0]["at"] + self.join.timeout_ms:
            self.ended_ms = now_ms
            if self.join.on_partial_failure != "abort":
                self.actions.append((now_ms, "timed-out"))

    def cancel(self, now_ms: int) -> None:
        self._forget(now_ms)
        if self.events and self.ended_ms is None:
            self.ended_ms = now_ms
            self.window_end_ms = None

    def _forget(self, now_ms: int) -> None:
        over_ms = self.ended_ms if self.ended_ms is not None else self.idle_since_ms
        if over_ms is not None and now_ms >= over_ms + self.join.linger_ms:
            self.events = []
            self.ended_ms = self.window_end_ms = self.idle_since_ms = None
            self.waiting = 0

    def _arms(self, event: dict[str, Any]) -> bool:
        return bool(self.join.arm_on_event) and event["name"] == self.join.arm_on_event

    def _expected(self) -> Any:
        """A number of members, or the set of them; None if it is not known."""
        said = [
            event["expects"]
            for event in self.events
            if event["expects"] is not None and self._arms(event) == bool(self.join.arm_on_event)
        ]
        if not said:
            return None
        one = said[-1] if self.join.arm_on_event else said[0]
        return set(one) if self.join.mode is JoinMode.SET else int(one)

    def _counted(self) -> list[str]:
        """The members by first arrival of each dedup id, and of each member of a set."""
        counted: list[str] = []
        ids: set[str] = set()
        for event in self.events:
            if self._arms(event) or (event["dedup"] and event["dedup"] in ids):
                continue
            ids.add(event["dedup"])
            if self.join.mode is not JoinMode.SET or event["member"] not in counted:
                counted.append(event["member"])
        return counted


definitions = st.builds(
    join_of,
    st.sampled_from(list(JoinMode)),
    arm_on_event=st.sampled_from(["", "armed"]),
    window_ms=st.sampled_from([0, 5, 20]),
    timeout_ms=st.sampled_from([15, 60]),
    linger_ms=st.sampled_from([0, 1, 10]),
    on_partial_failure=st.sampled_from(["", "abort"]),
)
members = st.sampled_from(["a", "b", "c", "d"])
happenings = st.tuples(
    st.integers(0, 9),
    st.sampled_from(["event"] * 8 + ["cancel"]),
    st.sampled_from(["e", "e", "e", "armed"]),
    st.sampled_from(["", "", "1", "2", "3", "4"]),
    members,
    st.none() | st.integers(0, 4),
    st.sets(members),
)


@given(definitions, st.lists(happenings, max_size=25))
def test_does_what_a_naive_model_does(join: JoinDefinition, story: list[tuple[Any, ...]]) -> None:
    got, naive = Instances(join), NaiveJoin(join)
    now_ms = 1
    for passed, what, name, dedup, member, count, members_expected in story:
        end_ms = now_ms + passed
        while got.state is not None and got.state.due_ms <= end_ms:  # the caller's timer
            now_ms = max(now_ms, got.state.due_ms)
            got.time(now_ms)
            naive.time(now_ms)
        now_ms = end_ms
        if what == "cancel":
            got.cancel(now_ms)
            naive.cancel(now_ms)
        else:
            expects = members_expected if join.mode is JoinMode.SET and count is not None else count
            event = {"name": name, "dedup": dedup, "member": member, "expects": expects}
            got.event(now_ms, **event)
            naive.event(now_ms, **event)
        assert got.actions == naive.actions


@given(st.permutations(["a", "b", "c", "d", "armed"]), st.sampled_from(["count", "set"]), st.data())
def test_fires_once_at_the_last_event_in_any_order(order: list[str], mode: str, data: st.DataObject) -> None:
    got = Instances(join_of(mode, arm_on_event="armed", timeout_ms=1_000))
    for now_ms, name in enumerate(order, 1):
        assert not got.actions
        for _ in range(data.draw(st.integers(1, 3))):
            expects = 4 if mode == "count" else ["a", "b", "c", "d"]
            got.event(now_ms, name=name, dedup=name, member=name, expects=expects)
    assert got.actions == [(5, "done")]


def test_reads_a_state_with_members_that_it_does_not_know() -> None:
    state = JoinState(arrived=3, expected=5)
    assert JoinState.from_json({**state.to_json(), "later": 1}) == state
    assert JoinState.from_json({}) == JoinState()
    assert replace(state, status=JoinStatus.FIRED).to_json()["status"] == "fired"
