"""The index of rules has all that match, in order, and looks at few others."""

from __future__ import annotations

import gc
import math
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aether_trio.model.expressions import ExpressionError, compile_expression
from aether_trio.model.workflows.rule_index import ANY, EventFilter, RuleIndex

NAMES = ["a", "b"]
SCALARS: list[Any] = [None, True, False, 0, 1, 1.0, 5, 5.0, -0.0, "", "x", "1", "true", 2**53, 2**53 + 1]
paths = st.lists(st.sampled_from(["a", "b", "c", 0, -1]), min_size=1, max_size=3).map(lambda rest: ("input", *rest))
scalars = st.sampled_from(SCALARS)
trees = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", "c"]), inner, max_size=3),
    max_leaves=12,
)
filters = st.builds(
    EventFilter,
    event=st.sampled_from(NAMES),
    agent=st.sampled_from([ANY, "", *NAMES]),
    workspace=st.sampled_from([ANY, "", *NAMES]),
    equalities=st.lists(
        st.tuples(paths, scalars | st.lists(scalars, min_size=1, max_size=4).map(tuple)), max_size=3
    ).map(tuple),
    priority=st.integers(-1, 1),
)
changes = st.lists(st.tuples(st.integers(0, 40), st.none() | filters), max_size=60)


def equal(left: Any, right: Any) -> bool:
    """`==` of the language: numbers by value, everything else within its type."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, int | float) and isinstance(right, int | float):
        return left == right if isinstance(left, int) and isinstance(right, int) else float(left) == float(right)
    return type(left) is type(right) and bool(left == right)


def member(value: Any, part: str | int) -> Any:
    """A member as the language gives it; LookupError where it fails."""
    if isinstance(value, dict) and isinstance(part, str):
        return value.get(part)
    if isinstance(value, list | str) and isinstance(part, int):
        return (value.encode() if isinstance(value, str) else value)[part]
    raise LookupError(part)


def holds(accepts: EventFilter, env: dict[str, Any]) -> bool:
    for path, literal in accepts.equalities:
        value: Any = env
        try:
            for part in path:
                value = member(value, part)
        except LookupError:
            return False
        if not any(equal(value, one) for one in alternatives(literal)):
            return False
    return True


def alternatives(literal: Any) -> tuple[Any, ...]:
    return literal if isinstance(literal, tuple) else (literal,)


def matches(accepts: EventFilter, event: str, agent: str, workspace: str, env: dict[str, Any]) -> bool:
    return (
        accepts.event == event
        and accepts.agent in ("", ANY, agent)
        and accepts.workspace in ("", ANY, workspace)
        and holds(accepts, env)
    )


@given(changes, st.lists(st.tuples(*[st.sampled_from(NAMES)] * 3, trees), min_size=1, max_size=5))
def test_has_all_that_a_scan_finds_in_order(
    changed: list[tuple[int, EventFilter | None]], events: list[tuple[str, str, str, Any]]
) -> None:
    index: RuleIndex[int, int] = RuleIndex()
    naive: dict[int, EventFilter] = {}
    for key, accepts in changed:
        if accepts is None:
            assert index.remove(key) == (naive.pop(key, None) is not None)
        else:
            index.add(key, accepts, key)
            naive[key] = accepts
    assert set(index) == set(naive)
    assert len(index) == len(naive)
    for event, agent, workspace, data in events:
        env = {"input": data, "source": {"agent": agent}}
        found = index.candidates(event, agent, workspace, env)
        expected = {key for key, accepts in naive.items() if matches(accepts, event, agent, workspace, env)}
        assert expected <= set(found)
        assert found == sorted(set(found), key=lambda key: (-naive[key].priority, key))
        for key in set(found) - expected:
            assert not holds_strictly_false(naive[key], env)
    for key in list(naive):
        index.remove(key)
    assert not index._events
    assert not index._entries


conjuncts = st.tuples(
    st.sampled_from(
        ["input.a", "input.b", "input?.a?.b", 'input["b"].a', "source.agent", "input.missing", "$env.input.a"]
    ),
    st.sampled_from(["==", "==", "in", "!="]),
    st.sampled_from(["5", "5.0", "1", "true", "nil", '"x"', '""', "'a'", "-1"]),
    st.sampled_from(["5", "nil", '"x"', '"a"', "false"]),
)


def conjunct_of(parts: tuple[str, str, str, str]) -> str:
    path, operator, literal, other = parts
    if operator == "in":
        return f"{path} in [{literal}, {other}]"
    return f"{literal} == {path}" if operator == "==" and other == "nil" else f"{path} {operator} {literal}"


def no_regex(pattern: str) -> Any:
    raise AssertionError(pattern)


terms = conjuncts.map(conjunct_of)
conditions = (
    terms
    | st.builds("{} && {}".format, terms, terms)
    | st.builds("{} and ({} || {})".format, terms, terms, terms)
    | st.builds("{} && ({} and not ({}))".format, terms, terms, terms)
)
values = st.sampled_from([None, True, 5.0, 1.0, -1.0, "x", "a", ""])


@settings(max_examples=30)
@given(
    st.lists(conditions, min_size=12, max_size=15),
    st.lists(
        st.dictionaries(st.sampled_from("ab"), values | st.dictionaries(st.sampled_from("ab"), values)), max_size=4
    ),
)
def test_has_all_whose_condition_is_true(sources: list[str], events: list[Any]) -> None:
    index: RuleIndex[int, int] = RuleIndex()
    compiled = [compile_expression(source, regex=no_regex) for source in sources]
    for number, expression in enumerate(compiled):
        index.add(number, EventFilter(event="e", equalities=expression.equalities()), number)
    for data in events:
        env = {"input": data, "source": {"agent": "a"}}
        found = set(index.candidates("e", "a", "ws", env))
        for number, expression in enumerate(compiled):
            try:
                holds = expression.evaluate(env, now=lambda: datetime(2026, 1, 1, tzinfo=UTC))
            except ExpressionError:
                continue
            assert holds is not True or number in found


def holds_strictly_false(accepts: EventFilter, env: dict[str, Any]) -> bool:
    """Return whether an equality is false; one that fails, or is beyond 2**53, is not."""
    for path, literal in accepts.equalities:
        value: Any = env
        try:
            for part in path:
                value = member(value, part)
        except LookupError:
            continue
        large = [one for one in alternatives(literal) if isinstance(one, int) and one >= 2**53]
        both_large = isinstance(value, int) and value >= 2**53 and large
        if not any(equal(value, one) for one in alternatives(literal)) and not both_large:
            return True
    return False


def looked_at(index: RuleIndex[int, int], event: str, data: Any) -> tuple[list[int], int]:
    before = index.examined
    return index.candidates(event, "agent", "ws", {"input": data, "source": {}}), index.examined - before


def kind(value: Any) -> tuple[tuple[tuple[str, str], Any], ...]:
    return ((("input", "kind"), value),)


def test_many_names_cost_nothing() -> None:
    index: RuleIndex[int, int] = RuleIndex()
    for number in range(10_000):
        index.add(number, EventFilter(event=f"event-{number}"), number)
    assert looked_at(index, "event-77", {}) == ([77], 1)
    assert looked_at(index, "other", {}) == ([], 0)
    assert index.has_event("event-77")
    assert not index.has_event("other")


@pytest.mark.parametrize("agent", [ANY, "agent"])
def test_one_name_and_as_many_literals_cost_a_handful(agent: str) -> None:
    index: RuleIndex[int, int] = RuleIndex()
    for number in range(10_000):
        index.add(number, EventFilter(event="e", agent=agent, equalities=kind(f"k{number}")), number)
    found, examined = looked_at(index, "e", {"kind": "k9876", "other": 1})
    assert found == [9876]
    assert examined < 20
    assert looked_at(index, "e", {"other": 1})[1] < 20


def test_one_of_several_literals_is_looked_up_too() -> None:
    index: RuleIndex[int, int] = RuleIndex()
    for number in range(5_000):
        equalities = ((("source", "agent"), "agent"), *kind((f"k{number}", f"m{number}", float(number))))
        index.add(number, EventFilter(event="e", equalities=equalities), number)
    for value in ("k77", "m77", 77, 77.0):
        index.examined = 0
        env = {"input": {"kind": value}, "source": {"agent": "agent"}}
        assert index.candidates("e", "agent", "ws", env) == [77]
        assert index.examined < 30


def test_an_equality_that_all_share_does_not_spoil_the_others() -> None:
    index: RuleIndex[int, int] = RuleIndex()
    for number in range(10_000):
        equalities = ((("source", "agent"), "agent"), (("input", "n"), number))
        index.add(number, EventFilter(event="e", equalities=equalities), number)
    found = index.candidates("e", "agent", "ws", {"input": {"n": 42.0}, "source": {"agent": "agent"}})
    assert found == [42]
    assert index.examined < 20


def test_pairs_of_literals_are_divided_twice() -> None:
    index: RuleIndex[int, int] = RuleIndex()
    for number in range(10_000):
        equalities = ((("input", "row"), number // 100), (("input", "column"), number % 100))
        index.add(number, EventFilter(event="e", equalities=equalities), number)
    found, examined = looked_at(index, "e", {"row": 12, "column": 34})
    assert found == [1234]
    assert examined < 40


def test_many_paths_cost_as_little_as_the_event_has_members() -> None:
    index: RuleIndex[int, int] = RuleIndex()
    for number in range(10_000):
        index.add(number, EventFilter(event="e", equalities=((("input", f"key-{number}", 0), "v"),)), number)
    found, examined = looked_at(index, "e", {"key-5": ["v"], "key-6": ["w"], "key-7": "v"})
    assert found == [5]
    assert examined < 20


@pytest.mark.parametrize(
    ("literal", "same", "others"),
    [
        (5, [5, 5.0], ["5", True, None, 5.5]),
        (1, [1, 1.0], [True, "1"]),
        (True, [True], [1, 1.0, "true"]),
        (False, [False], [0, None, ""]),
        (None, [None], [False, 0, ""]),
        ("", [""], [None, False, 0, []]),
        (0, [0, -0.0], [False, None, "0", [], {}]),
    ],
)
@pytest.mark.parametrize("more", [0, 20])
def test_equality_is_that_of_the_language(literal: Any, same: list[Any], others: list[Any], more: int) -> None:
    index: RuleIndex[int, int] = RuleIndex()
    for number in range(more):
        index.add(number, EventFilter(event="e", equalities=kind(f"k{number}")), number)
    index.add(100, EventFilter(event="e", equalities=kind(literal)), 100)
    assert all(looked_at(index, "e", {"kind": value})[0] == [100] for value in same)
    assert not any(looked_at(index, "e", {"kind": value})[0] for value in [*others, math.nan, 10**400])


def test_null_is_a_member_that_is_missing() -> None:
    index: RuleIndex[int, int] = RuleIndex()
    for number in range(20):
        index.add(number, EventFilter(event="e", equalities=kind(None)), number)
    assert looked_at(index, "e", {})[0] == list(range(20))
    assert looked_at(index, "e", None)[0] == list(range(20))
    assert looked_at(index, "e", {"kind": 1})[0] == []


def test_what_is_no_scalar_is_left_to_the_condition() -> None:
    index: RuleIndex[int, int] = RuleIndex()
    for number in range(20):
        index.add(number, EventFilter(event="e", equalities=kind([number])), number)
        index.add(number + 100, EventFilter(event="e", equalities=kind(tuple(range(number, 50)))), number + 100)
    found, _ = looked_at(index, "e", {"kind": [3]})
    assert found == [*range(20), *range(100, 120)]


def test_deep_paths_and_data_need_no_stack() -> None:
    index: RuleIndex[int, int] = RuleIndex()
    path = ("input", *["a"] * 5_000)
    data: Any = "x"
    for _ in range(5_000):
        data = {"a": data}
    for number in range(20):
        index.add(number, EventFilter(event="e", equalities=((path, "x" if number == 3 else number),)), number)
    assert looked_at(index, "e", data)[0] == [3]
    while data != "x":  # freed from the outside in: no recursion of the interpreter
        data = data["a"]


def test_entries_that_come_and_go_leave_nothing() -> None:
    index: RuleIndex[int, int] = RuleIndex()

    def objects() -> int:
        gc.collect()
        return sum(type(each).__module__ == RuleIndex.__module__ for each in gc.get_objects())

    before = objects()
    for number in range(2_000):
        equalities = (
            (("input", f"k{number % 7}", f"m{number}"), number),
            (("input", "row"), (number % 10, number % 11, number)),
        )
        index.add(number, EventFilter(event=f"e{number % 3}", equalities=equalities), number)
    assert objects() > before
    for number in range(3, 2_000):
        assert index.remove(number)
        assert not index.remove(number)
    assert objects() < before + 100
    env = {"input": {"row": 2, "k2": {"m2": 2}}}
    assert index.candidates("e2", "", "", env) == [2]
    for number in range(3):
        assert index.remove(number)
    assert objects() == before


def test_adding_a_key_again_replaces_its_entry() -> None:
    index: RuleIndex[str, str] = RuleIndex()
    index.add("r", EventFilter(event="e"), "old")
    index.add("r", EventFilter(event="f"), "new")
    assert index.candidates("e", "", "", {}) == []
    assert index.candidates("f", "", "", {}) == ["new"]
    assert "r" in index
    assert len(index) == 1
