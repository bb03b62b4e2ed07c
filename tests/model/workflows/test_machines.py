"""State machines move by events, conditions and timeouts, or say clearly why not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aether_trio.model.workflows import machines
from aether_trio.model.workflows.definition import (
    Action,
    BusEvent,
    EvaluationError,
    MachineDefinition,
    MachineState,
    MachineTransition,
)
from aether_trio.model.workflows.machines import MachineInstance, MachineProblem, MachineStep


class Computed:
    """A value that a function of the environment gives."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function

    def paths(self) -> frozenset[tuple[str | int, ...]]:
        return frozenset()

    def evaluate(self, env: Any, *, now: Callable[[], datetime]) -> Any:
        return self.function({**env, "now": now()})


def fails(_: Any) -> Any:
    raise EvaluationError("input.amount is a string")


def action(name: str) -> Action:
    return Action(agent=name)


def to(state: str, **values: Any) -> tuple[MachineTransition, ...]:
    return (MachineTransition(to=state, **values),)


def state_of(name: str, **values: Any) -> MachineState:
    return MachineState(name=name, entry_action=action(f"enter-{name}"), exit_action=action(f"leave-{name}"), **values)


def machine_of(*states: MachineState, initial: str = "") -> MachineDefinition:
    return MachineDefinition(
        id="order", initial_state=initial or states[0].name, states={each.name: each for each in states}
    )


ORDER = machine_of(
    state_of(
        "open",
        on={
            "pay": (
                MachineTransition(to="review", when=Computed(lambda env: env["input"]["amount"] > 1_000)),
                MachineTransition(
                    to="paid",
                    when=Computed(lambda env: env["input"]["amount"] > 0),
                    assign=Computed(lambda env: {"paid": env["input"]["amount"], "was": env["data"].get("paid")}),
                    action=action("receipt"),
                ),
            ),
            "again": to("open"),
            "lost": to("nowhere"),
        },
        timeout_ms=500,
        timeout_action="expired",
    ),
    state_of("review", on={"ok": to("paid")}, timeout_ms=50),
    state_of("paid", terminal=True, timeout_ms=5, timeout_action="open"),
    state_of("expired", on={"reopen": to("open")}),
)


def created(machine: MachineDefinition = ORDER, data: Any = None, now_ms: int = 100) -> MachineInstance:
    step = machines.create(machine, "o-1", "shop", data, now_ms)
    assert step.instance is not None
    return step.instance


def did(step: MachineStep) -> list[str]:
    return [each.action.agent for each in step.actions]


def test_an_instance_begins_in_the_initial_state() -> None:
    step = machines.create(ORDER, "o-1", "shop", {"a": 1}, 100)
    assert step.instance == MachineInstance(
        id="o-1",
        machine="order",
        workspace="shop",
        state="open",
        data={"a": 1},
        timeout_at_ms=600,
        created_ms=100,
        updated_ms=100,
    )
    assert did(step) == ["enter-open"]
    assert step.actions[0].env["machine"] == {"id": "order", "instance": "o-1", "workspace": "shop", "state": "open"}


def test_an_event_leaves_changes_and_enters_in_this_order() -> None:
    step = machines.send(ORDER, created(data={"paid": 1, "kept": 2}), "pay", {"amount": 7}, 200)
    assert step.problem is None
    assert step.instance is not None
    assert step.instance.state == "paid"
    assert step.instance.data == {"paid": 7, "was": 1, "kept": 2}
    assert (step.instance.completed_ms, step.instance.timeout_at_ms, step.instance.updated_ms) == (200, 0, 200)
    assert did(step) == ["leave-open", "receipt", "enter-paid"]
    assert [each.place for each in step.actions] == ["exit", "transition", "entry"]
    assert [each.env["machine"]["state"] for each in step.actions] == ["open", "open", "paid"]
    assert [each.env["data"]["paid"] for each in step.actions] == [1, 7, 7]
    assert [each.env["input"] for each in step.actions] == [{"amount": 7}] * 3
    assert [each.env["event"] for each in step.actions] == ["pay"] * 3


def test_the_first_transition_that_holds_is_taken() -> None:
    step = machines.send(ORDER, created(), "pay", {"amount": 5_000}, 200)
    assert step.instance is not None
    assert (step.instance.state, step.instance.timeout_at_ms) == ("review", 250)


def test_a_transition_to_the_same_state_begins_it_anew() -> None:
    step = machines.send(ORDER, created(), "again", None, 300)
    assert step.instance is not None
    assert (step.instance.state, step.instance.timeout_at_ms) == ("open", 800)
    assert did(step) == ["leave-open", "enter-open"]


def test_values_see_the_moment_and_the_source() -> None:
    machine = machine_of(
        state_of("a", on={"go": to("b", assign=Computed(lambda env: {"at": env["now"].isoformat(), **env["source"]}))}),
        state_of("b"),
    )
    step = machines.send(machine, created(machine), "go", None, 1_500, source={"agent": "x"})
    assert step.instance is not None
    assert step.instance.data == {"at": datetime(1970, 1, 1, 0, 0, 1, 500_000, UTC).isoformat(), "agent": "x"}


INSTANCE = created()


@pytest.mark.parametrize(
    ("instance", "event", "data", "problem", "error"),
    [
        (
            INSTANCE,
            "ship",
            None,
            MachineProblem.NO_TRANSITION,
            (
                "instance 'o-1' of machine 'order' has no transition for event 'ship' in state 'open': "
                "it takes 'pay', 'again', 'lost'"
            ),
        ),
        (
            INSTANCE,
            "pay",
            {"amount": 0},
            MachineProblem.NO_TRANSITION,
            "instance 'o-1' of machine 'order': no condition of event 'pay' in state 'open' holds",
        ),
        (
            INSTANCE,
            "lost",
            None,
            MachineProblem.UNKNOWN_STATE,
            (
                "instance 'o-1' of machine 'order': event 'lost' leads to state 'nowhere', "
                "which is none of 'open', 'review', 'paid', 'expired'"
            ),
        ),
        (
            replace(INSTANCE, state="old"),
            "pay",
            None,
            MachineProblem.UNKNOWN_STATE,
            (
                "instance 'o-1' of machine 'order' is in state 'old', which the machine does not have any more: "
                "it has 'open', 'review', 'paid', 'expired'"
            ),
        ),
        (
            replace(INSTANCE, state="paid", completed_ms=5),
            "pay",
            None,
            MachineProblem.COMPLETED,
            "instance 'o-1' of machine 'order' has completed in state 'paid': it takes no event",
        ),
        (
            replace(INSTANCE, state="paid"),
            "pay",
            None,
            MachineProblem.TERMINAL,
            "instance 'o-1' of machine 'order' is in the terminal state 'paid'",
        ),
    ],
)
def test_a_problem_says_what_it_is_and_changes_nothing(
    instance: MachineInstance, event: str, data: Any, problem: MachineProblem, error: str
) -> None:
    step = machines.send(ORDER, instance, event, data, 200)
    assert step == MachineStep(instance=instance, problem=problem, error=error)


@pytest.mark.parametrize(
    ("values", "data", "problem", "error"),
    [
        ({"when": Computed(fails)}, None, MachineProblem.EVALUATION, "input.amount is a string"),
        ({"when": Computed(lambda _: 1)}, None, MachineProblem.EVALUATION, "gives no true or false"),
        ({"assign": Computed(fails)}, None, MachineProblem.EVALUATION, "input.amount is a string"),
        ({"assign": Computed(lambda _: [1])}, None, MachineProblem.EVALUATION, "gives no object"),
        ({"assign": Computed(lambda _: {"a": 1})}, [1], MachineProblem.EVALUATION, "whose data is an object"),
        ({"assign": Computed(lambda _: {"a": "x" * 600_000})}, None, MachineProblem.BAD_DATA, "524288 are allowed"),
        ({"assign": Computed(lambda _: {"a": float("nan")})}, None, MachineProblem.BAD_DATA, "cannot be JSON"),
        ({"assign": Computed(lambda env: {"a": env["now"]})}, None, MachineProblem.BAD_DATA, "cannot be JSON"),
    ],
)
def test_what_fails_to_compute_changes_nothing(
    values: dict[str, Any], data: Any, problem: MachineProblem, error: str
) -> None:
    machine = machine_of(state_of("a", on={"go": to("b", **values)}), state_of("b"))
    instance = created(machine, data)
    step = machines.send(machine, instance, "go", None, 200)
    assert (step.instance, step.actions, step.problem) == (instance, (), problem)
    assert error in step.error
    assert step.error.startswith("instance 'o-1' of machine 'order': ")
    assert len(step.error) < 300


@pytest.mark.parametrize(("more", "text"), [(10, "'e8', 'e9'"), (12, "'e8', 'e9' and 2 more"), (0, "it takes nothing")])
def test_an_error_names_ten_of_what_is_possible(more: int, text: str) -> None:
    machine = machine_of(state_of("a", on={f"e{number}": to("a") for number in range(more)}))
    assert machines.send(machine, created(machine), "x", None, 1).error.endswith(text)


def test_a_long_or_bad_name_is_bounded_and_escaped_in_the_error() -> None:
    step = machines.send(ORDER, INSTANCE, "\x1b[31m" + "x" * 100_000, None, 200)
    assert len(step.error) < 300
    assert "\x1b" not in step.error


def test_a_machine_without_its_initial_state_creates_nothing() -> None:
    step = machines.create(machine_of(state_of("a"), initial="b"), "o-1", "shop", None, 1)
    assert step == MachineStep(
        instance=None,
        problem=MachineProblem.UNKNOWN_STATE,
        error="machine 'order': the initial state 'b' is none of 'a'",
    )


def test_an_initial_state_that_is_terminal_completes_at_once() -> None:
    assert created(machine_of(state_of("a", terminal=True, timeout_ms=5)), now_ms=7).completed_ms == 7


@pytest.mark.parametrize("data", ["x" * 600_000, [float("inf")]])
def test_data_that_cannot_be_kept_creates_nothing(data: Any) -> None:
    step = machines.create(ORDER, "o-1", "shop", data, 1)
    assert (step.instance, step.problem) == (None, MachineProblem.BAD_DATA)
    assert step.error.startswith("machine 'order', instance 'o-1': its data ")


# -- timeouts --------------------------------------------------------------------------------------


def test_a_timeout_leads_to_its_state() -> None:
    instance = created()
    assert machines.time_passed(ORDER, instance, 599) == MachineStep(instance=instance)
    step = machines.time_passed(ORDER, instance, 600)
    assert step.instance is not None
    assert (step.instance.state, step.instance.timeout_at_ms) == ("expired", 0)
    assert did(step) == ["leave-open", "enter-expired"]
    assert [each.env["event"] for each in step.actions] == ["timeout", "timeout"]


def lap_of(*timeouts_ms: int, back: int = 0, **more: Any) -> MachineDefinition:
    """Return a machine whose timeouts lead from a to b and on, the last to `back`."""
    names = "abcdef"[: len(timeouts_ms)]
    after = [*names[1:], names[back]]
    return machine_of(
        *(
            state_of(name, timeout_ms=timeout_ms, timeout_action=then, **more)
            for name, timeout_ms, then in zip(names, timeouts_ms, after, strict=True)
        )
    )


@pytest.mark.parametrize(
    ("machine", "lap"),
    [
        (lap_of(1), ["a", "a"]),
        (lap_of(999), ["a", "a"]),
        (lap_of(1_000), []),
        (lap_of(1, 2, 3), ["a", "b", "c", "a"]),
        (lap_of(1, 998, 1), []),
        (lap_of(0), []),
        (lap_of(1, 0), []),
        (lap_of(1, 1, back=1), []),
        (lap_of(1, 1, terminal=True), []),
        (machine_of(state_of("a", timeout_ms=1)), []),
        (machine_of(state_of("a", timeout_ms=1, timeout_action="gone")), []),
    ],
)
def test_a_quick_circle_of_timeouts_is_found(machine: MachineDefinition, lap: list[str]) -> None:
    assert machines.quick_lap(machine.states, "a") == lap


def test_in_a_quick_circle_of_timeouts_each_state_rests_for_a_second() -> None:
    machine = lap_of(5, 1, 2, back=1)
    instance, now_ms, moments = created(machine), 0, []
    for _ in range(4):
        now_ms = instance.timeout_at_ms
        step = machines.time_passed(machine, instance, now_ms)
        assert step.instance is not None
        instance = step.instance
        moments.append((instance.state, instance.timeout_at_ms - now_ms))
    assert moments == [("b", 1_000), ("c", 1_000), ("b", 1_000), ("c", 1_000)]
    pulse = machine_of(state_of("a", timeout_ms=5, timeout_action="b"), state_of("b", timeout_ms=7, timeout_action="c"))
    step = machines.time_passed(pulse, created(pulse, now_ms=10), 15)
    assert step.instance is not None
    assert step.instance.timeout_at_ms == 22, "a row of quick timeouts that ends is as quick as it says"


def test_what_is_entered_may_have_to_rest() -> None:
    machine = machine_of(state_of("a", on={"go": to("b")}, timeout_ms=5), state_of("b", timeout_ms=3_000))
    assert created(machine).timeout_at_ms == 105
    bus = BusEvent(event="go", key=Computed(lambda env: "o-1"), creates=True)
    other = replace(bus, event="odd")
    for event, state, due_ms in ((bus, "b", 3_100), (other, "a", 1_100)):
        step = machines.receive(machine, event, None, "o-1", "shop", {}, 100, rest_ms=1_000)
        assert step.instance is not None
        assert (step.instance.state, step.instance.timeout_at_ms) == (state, due_ms)


def test_a_timeout_without_an_action_is_cleared() -> None:
    instance = replace(created(), state="review", timeout_at_ms=50)
    step = machines.time_passed(ORDER, instance, 60)
    assert step == MachineStep(instance=replace(instance, timeout_at_ms=0, updated_ms=60))


@pytest.mark.parametrize("state", ["paid", "gone"])
def test_a_timeout_of_a_state_that_is_no_more_is_cleared(state: str) -> None:
    step = machines.time_passed(ORDER, replace(created(), state=state), 600)
    assert step.instance is not None
    assert (step.instance.state, step.instance.timeout_at_ms, step.actions) == (state, 0, ())


def test_a_timeout_that_leads_nowhere_is_a_problem_once() -> None:
    machine = machine_of(state_of("a", timeout_ms=5, timeout_action="b"))
    step = machines.time_passed(machine, created(machine), 600)
    assert step.problem is MachineProblem.UNKNOWN_STATE
    assert step.error == (
        "instance 'o-1' of machine 'order': the timeout of state 'a' leads to state 'b', which is none of 'a'"
    )
    assert step.instance is not None
    assert step.instance.timeout_at_ms == 0


# -- events of the bus -----------------------------------------------------------------------------


def key(creates: bool = False, send: str = "") -> BusEvent:
    return BusEvent(event="pay", key=Computed(lambda env: env["input"]["order"]), creates=creates, send=send)


def test_an_event_of_the_bus_acts_under_the_name_that_the_machine_has_for_it() -> None:
    step = machines.receive(ORDER, key(send="again"), created(), "o-1", "shop", {}, 200, source={"agent": "a"})
    assert did(step) == ["leave-open", "enter-open"]
    assert step.actions[0].env["source"] == {"agent": "a"}
    assert step.actions[0].env["event"] == "again"


def test_an_event_of_the_bus_needs_an_instance() -> None:
    step = machines.receive(ORDER, key(), None, "o-2", "shop", {}, 200)
    assert step.problem is MachineProblem.NO_INSTANCE
    assert step.error == "machine 'order' has no instance 'o-2'"


def test_an_event_of_the_bus_may_create_the_instance_and_act_on_it() -> None:
    step = machines.receive(ORDER, key(creates=True), None, "o-2", "shop", {"amount": 5_000}, 200)
    assert step.instance is not None
    assert (step.instance.id, step.instance.state, step.instance.data) == ("o-2", "review", {"amount": 5_000})
    assert did(step) == ["enter-open", "leave-open", "enter-review"]


@pytest.mark.parametrize("data", [{"amount": 0}, {"amount": -1}])
def test_creating_is_enough_where_the_initial_state_does_not_take_the_event(data: Any) -> None:
    step = machines.receive(ORDER, key(creates=True), None, "o-2", "shop", data, 200)
    assert step.instance is not None
    assert (step.instance.state, step.instance.data, step.problem) == ("open", data, None)
    assert did(step) == ["enter-open"]


def test_an_event_that_fails_creates_nothing() -> None:
    machine = machine_of(state_of("a", on={"pay": to("b", when=Computed(fails))}), state_of("b"))
    step = machines.receive(machine, key(creates=True), None, "o-2", "shop", "text", 200)
    assert (step.instance, step.actions, step.problem) == (None, (), MachineProblem.EVALUATION)


# -- against a naive model -------------------------------------------------------------------------

NAMES = ["a", "b", "c"]
states = st.lists(
    st.tuples(
        st.dictionaries(
            st.sampled_from(["x", "y"]), st.lists(st.sampled_from([*NAMES, "gone"]), min_size=1, max_size=2)
        ),
        st.booleans(),
        st.sampled_from([0, 5, 20]),
        st.sampled_from(["", *NAMES, "gone"]),
    ),
    min_size=3,
    max_size=3,
)


def goes_in_circles(table: dict[str, MachineState], state: str) -> bool:
    """Return whether timeouts alone lead back to a state, which is quick here."""
    at = state
    for _ in NAMES:
        if at not in table or table[at].terminal or not table[at].timeout_ms:
            return False
        at = table[at].timeout_action
        if at == state:
            return True
    return False


passes = st.one_of(st.integers(0, 15), st.just(1_000))


@given(states, st.lists(st.tuples(passes, st.sampled_from(["x", "y", "z", "time"])), max_size=20))
def test_is_always_in_a_state_by_the_definition(drawn: list[Any], story: list[tuple[int, str]]) -> None:
    table = {
        name: MachineState(
            name=name,
            on={event: tuple(MachineTransition(to=target) for target in targets) for event, targets in on.items()},
            terminal=terminal,
            timeout_ms=timeout_ms,
            timeout_action=timeout_action,
        )
        for name, (on, terminal, timeout_ms, timeout_action) in zip(NAMES, drawn, strict=True)
    }
    machine = MachineDefinition(id="m", initial_state="a", states=table)
    instance = created(machine, now_ms=1)
    now_ms, state, due_ms = 1, "a", 0 if table["a"].terminal or not table["a"].timeout_ms else 1 + table["a"].timeout_ms
    for passed, event in story:
        now_ms += passed
        target = ""
        if event == "time":
            step = machines.time_passed(machine, instance, now_ms)
            if 0 < due_ms <= now_ms:
                target, due_ms = table[state].timeout_action, 0
        else:
            step = machines.send(machine, instance, event, None, now_ms)
            if not table[state].terminal and event in table[state].on:
                target = table[state].on[event][0].to
            assert (step.problem is None) == (target in table)
        if target in table:
            state = target
            timeout_ms = 0 if table[state].terminal else table[state].timeout_ms
            rest_ms = 1_000 if event == "time" and goes_in_circles(table, state) else 0
            due_ms = now_ms + max(timeout_ms, rest_ms) if timeout_ms else 0
        assert step.instance is not None
        instance = step.instance
        assert (instance.state, instance.timeout_at_ms) == (state, due_ms)
        assert bool(instance.completed_ms) == table[state].terminal
