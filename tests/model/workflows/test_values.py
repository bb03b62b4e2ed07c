"""Computed values: what Go would have written, with the place in errors."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aether_trio.model.expressions import Duration
from aether_trio.model.workflows.compiling import Compiler, ReadScope
from aether_trio.model.workflows.definition import EvaluationError, Value
from aether_trio.model.workflows.reading import Findings
from aether_trio.model.workflows.shapes import ANY
from aether_trio.model.workflows.values import LiteralValue, encode_json, json_value
from aether_trio.services.workflows.documents.tools import TOOLS

NOW = datetime(2030, 1, 2, 3, 4, 5, 600_000, tzinfo=UTC)
SCOPE = ReadScope(names={"trigger": ANY, "item": ANY})


def compiled(tree: Any) -> Value:
    findings = Findings()
    value = Compiler(findings, TOOLS).tree(tree, (), SCOPE, "step 'a', output")
    assert findings.errors == []
    return value


def computed(tree: Any, **env: Any) -> Any:
    return compiled(tree).evaluate(env, now=lambda: NOW)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (5.0, "5"),
        (0.5, "0.5"),
        (-0.0, "0"),
        (1e20, "100000000000000000000"),
        (1.2345678901234568e20, "123456789012345680000"),
        (1e21, "1e+21"),
        (9007199254740993, "9007199254740993"),
        ([1.0, {"a": 2.0}], '[1,{"a":2}]'),
        ({"é": "<&>"}, '{"é":"<&>"}'),
        (NOW, '"2030-01-02T03:04:05.6Z"'),
        (datetime(2030, 1, 2, tzinfo=timezone(timedelta(hours=2))), '"2030-01-02T00:00:00+02:00"'),
        (Duration(1_500_000_000), "1500000000"),
        ({1: "a", 2.5: "b"}, '{"1":"a","2.5":"b"}'),
        (b"\x00", '"AA=="'),
        (True, "true"),
        (None, "null"),
    ],
)
def test_json_is_written_as_go_does(value: object, expected: str) -> None:
    assert encode_json(value) == expected


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, [math.nan], object(), {True: 1}, {1, 2}])
def test_what_is_not_json_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"not JSON|not texts"):
        json_value(value)


def test_a_tree_without_anything_to_compute_is_a_literal() -> None:
    tree = {"a": [1, "x", {"b": None}], "c": "}} no {template"}
    value = compiled(tree)
    assert value == LiteralValue(tree)
    assert value.paths() == frozenset()


def test_trees_with_templates_and_expressions() -> None:
    tree = {
        "text": "about {{ .trigger.topic }}",
        "typed": {"$expr": "trigger.n + 1"},
        "list": [1, {"deep": {"$expr": "trigger.list"}}],
        "same": "as it is",
    }
    assert computed(tree, trigger={"topic": "x: {y}", "n": 1.0, "list": [1.0, None]}) == {
        "text": "about x: {y}",
        "typed": 2,
        "list": [1, {"deep": [1, None]}],
        "same": "as it is",
    }
    assert compiled(tree).paths() == {("trigger", "topic"), ("trigger", "n"), ("trigger", "list")}


@pytest.mark.parametrize(
    ("template", "value", "expected"),
    [
        ("{{ .trigger }}", 5.0, 5),
        (" {{.trigger}} ", 5.0, " 5 "),
        ("{{ .trigger }}", "5", "5"),
        ("{{ .trigger }}", "true", "true"),
        ("{{ .trigger }}", True, True),
        ("{{ .trigger }}", "{a: 1}", "{a: 1}"),
        ("{{ .trigger }}", "null", "null"),
        ("{{ .trigger }}!", 5.0, "5!"),
        ("1{{ .trigger }}", 5.0, "15"),
        ("{{ .trigger }}{{ .trigger }}", 5.0, "55"),
        ("{{ if .trigger }}5{{ end }}", True, "5"),
        ('{{ printf "%v" .trigger }}', 5.0, "5"),
        ("{{ .trigger.missing }}", {}, "<no value>"),
        ("a: {{ .trigger }}", "b", "a: b"),
        ("{{ .trigger }}", {"a": 1.0}, "map[a:1]"),
    ],
)
def test_a_template_gives_a_text_or_the_one_value_that_it_prints(template: str, value: Any, expected: Any) -> None:
    found = computed(template, trigger=value)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("tree", "env", "says"),
    [
        ({"a": [{"$expr": "trigger.x.y"}]}, {"trigger": {}}, r"step 'a', output\.a\[0\]: 1:11: "),
        ({"a": "{{ .trigger.x.y }}"}, {"trigger": {}}, r"step 'a', output\.a: 1:"),
        ({"$expr": "trigger / 0"}, {"trigger": 1.0}, r"step 'a', output: the result has an infinity"),
        ({"$expr": "sum(1..5000) + sum(1..6000)"}, {}, r"too many operations"),
        ({"$expr": "trigger.x()"}, {"trigger": {"x": "\u202e"}}, r"step 'a', output: "),
    ],
)
def test_an_error_names_its_place(tree: Any, env: dict[str, Any], says: str) -> None:
    with pytest.raises(EvaluationError, match=says) as caught:
        computed(tree, **env)
    assert str(caught.value).isprintable()


def test_the_clock_is_handed_in() -> None:
    assert computed({"$expr": "now()"}) == "2030-01-02T03:04:05.6Z"
    assert computed({"$expr": "now() + duration('1h')"}) == "2030-01-02T04:04:05.6Z"
    assert computed({"$expr": "duration('1h')"}) == 3_600_000_000_000


_JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(_JSON)
@settings(max_examples=50)
def test_data_come_through_as_they_are(data: Any) -> None:
    found = computed({"$expr": "trigger"}, trigger=data)
    assert json.loads(encode_json(found), parse_int=float) == data
