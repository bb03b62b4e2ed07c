"""JSON Schemas of documents: what is wrong with them, and what they refuse."""

from __future__ import annotations

import time
from typing import Any

import pytest

from aether_trio.services.workflows.documents.regex import RegexError, compile_regex
from aether_trio.services.workflows.documents.schemas import check_schema, schema_problems


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "object", "properties": {"a": {"$ref": "#/$defs/a"}}, "$defs": {"a": {"type": "string"}}},
        {"$ref": "#"},
        {"pattern": "^[a-z]+$", "patternProperties": {"^x": {}}},
        {"$schema": "https://json-schema.org/draft/2020-12/schema"},
    ],
)
def test_right_schemas(schema: Any) -> None:
    assert list(check_schema(schema)) == []


@pytest.mark.parametrize(
    ("schema", "place", "says"),
    [
        ({"type": "strng"}, ("type",), "'strng' is not valid"),
        ({"properties": {"a": 5}}, ("properties", "a"), "a schema has to be a map, true or false, and is a number"),
        ({"required": "a"}, ("required",), "'a' is not of type 'array'"),
        ({"pattern": "("}, ("pattern",), "'(' is no regular expression: missing )"),
        ({"patternProperties": {"(?=a)": {}}}, ("patternProperties", "(?=a)"), "is no regular expression"),
        ({"$ref": "http://example.com/x"}, ("$ref",), "leads out of the document"),
        ({"$ref": "file:///etc/passwd"}, ("$ref",), "leads out of the document"),
        ({"$ref": "#/$defs/none"}, ("$ref",), "leads nowhere"),
        ({"unevaluatedProperties": False}, ("unevaluatedProperties",), "is not supported; use items or additional"),
        ({"$schema": "http://example.com/own"}, ("$schema",), "is not known"),
    ],
)
def test_wrong_schemas(schema: Any, place: tuple[str, ...], says: str) -> None:
    ((path, message), *_) = check_schema(schema)
    assert path == place
    assert says in message


@pytest.mark.parametrize(
    ("schema", "value", "expected"),
    [
        ({"type": "string"}, "a", []),
        ({"type": "string"}, 5, ["5 is not of type 'string'"]),
        ({"type": "object", "required": ["a"]}, {}, ["'a' is a required property"]),
        ({"properties": {"a": {"items": {"type": "number"}}}}, {"a": [1, "x"]}, ["a[1]: 'x' is not of type 'number'"]),
        ({"pattern": "^a+$"}, "b", ["'b' does not match '^a+$'"]),
        ({"patternProperties": {"^x": {"type": "number"}}}, {"x1": "a"}, ["x1: 'a' is not of type 'number'"]),
        (
            {"patternProperties": {"^x": {}}, "additionalProperties": False},
            {"x": 1, "y": 2},
            ["there is no property 'y'"],
        ),
        ({"additionalProperties": {"type": "null"}}, {"y": 2}, ["y: 2 is not of type 'null'"]),
        ({"uniqueItems": True}, [1, 1.0], ["the list has an item twice"]),
        ({"uniqueItems": True}, [1, True, "1", {"a": 1}, {"a": 2}], []),
        ({"enum": [1, "a"]}, True, ["True is not one of [1, 'a']"]),
        ({"enum": [[1], {"a": 1}]}, {"a": 1.0}, []),
        ({"type": ["integer", "null"]}, 2.0, []),
        ({"type": ["integer", "null"]}, 2.5, ["2.5 is not of type 'integer', 'null'"]),
        ({"$ref": "#"}, 1, ["the schema refers to itself without an end"]),
        ({"type": "string"}, "\u202e\x1b", []),
        ({"type": "number"}, "\u202e\x1b", ["'\\u202e\\x1b' is not of type 'number'"]),
    ],
)
def test_values(schema: Any, value: Any, expected: list[str]) -> None:
    assert schema_problems(schema, value) == expected


def test_problems_are_bounded_and_nothing_is_slow() -> None:
    assert len(schema_problems({"items": {"type": "string"}}, list(range(1000)))) == 20
    began = time.process_time()
    assert schema_problems({"uniqueItems": True}, [{"n": index} for index in range(20_000)]) == []
    assert schema_problems({"pattern": "(a+)+$"}, "a" * 50_000 + "b") == [f"{'a' * 80!r} does not match '(a+)+$'"]
    assert time.process_time() - began < 30


def test_a_schema_whose_work_doubles_at_each_level_ends() -> None:
    levels = {
        f"d{level}": {"anyOf": [{"$ref": f"#/$defs/d{level + 1}"}, {"$ref": f"#/$defs/d{level + 1}"}]}
        for level in range(60)
    }
    schema = {"$ref": "#/$defs/d0", "$defs": {**levels, "d60": {"type": "null"}}}
    assert list(check_schema(schema)) == []
    assert schema_problems(schema, 1) == [
        "the check takes more than 5000 steps: use a simpler schema or a smaller value"
    ]
    assert schema_problems({"minimum": 2}, 1) == ["1 is less than the minimum of 2"]


@pytest.mark.parametrize(
    "item",
    [
        {"enum": [f"v{number}" for number in range(20_000)]},
        {"required": [f"v{number}" for number in range(20_000)]},
        {"properties": {f"v{number}": {} for number in range(10_000)}},
        {"patternProperties": {f"v{number}": {} for number in range(2_000)}},
    ],
)
def test_a_long_schema_and_a_long_value_end(item: Any) -> None:
    value = [{"a": 1, "b": 2}] * 50_000
    (problem, *_) = schema_problems({"items": item}, value)
    assert "steps" in problem or "is not one of" in problem or "is a required property" in problem


def test_a_large_value_of_a_common_schema_is_checked_whole() -> None:
    schema = {"type": "array", "items": {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}}
    rows = [{"n": float(number), "more": None} for number in range(50_000)]
    assert schema_problems(schema, rows) == []
    assert schema_problems({**schema, "uniqueItems": False}, rows) == [
        "the check takes more than 5000 steps: use a simpler schema or a smaller value"
    ]


def test_regular_expressions() -> None:
    assert compile_regex("^a.c$")("abc")
    assert not compile_regex("^a.c$")("abcd")
    assert compile_regex("b")("abc")
    assert compile_regex(r"\pL+")("é")
    assert compile_regex("x")("\ud800x")
    for pattern in ("(", "(?<=a)b", r"\1", "a{5000}", "a" * 2000, "((a{100}){100}){10}", "\ud800"):
        with pytest.raises(RegexError):
            compile_regex(pattern)
