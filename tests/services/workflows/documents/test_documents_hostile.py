"""Nothing but DefinitionErrors escapes for any text and data, and none takes long."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aether_trio.model.workflows.compiling import ACTION_KEYS, JOIN_KEYS, RETRY_KEYS
from aether_trio.model.workflows.definition import EvaluationError, RuleDefinition
from aether_trio.model.workflows.documents import KINDS, compile_document
from aether_trio.model.workflows.graphs import ASK_KEYS, GRAPH_KEYS, ITEM_KEYS, ROUND_KEYS, STEP_KEYS, WAIT_KEYS
from aether_trio.model.workflows.reading import MAX_PROBLEMS, DefinitionErrors
from aether_trio.model.workflows.records import (
    BUS_KEYS,
    MACHINE_KEYS,
    RULE_KEYS,
    SCHEDULE_KEYS,
    STATE_KEYS,
    TRANSITION_KEYS,
    read_action,
)
from aether_trio.services.workflows.documents.reader import read_file, read_json
from aether_trio.services.workflows.documents.schemas import check_schema, schema_problems
from aether_trio.services.workflows.documents.tools import TOOLS

NOW = datetime(2030, 1, 1, tzinfo=UTC)
WORDS = (
    *(*GRAPH_KEYS, *STEP_KEYS, *ITEM_KEYS, *ROUND_KEYS, *WAIT_KEYS, *ASK_KEYS),
    *(*RULE_KEYS, *SCHEDULE_KEYS, *MACHINE_KEYS, *STATE_KEYS, *TRANSITION_KEYS, *BUS_KEYS),
    *(*ACTION_KEYS, *RETRY_KEYS, *JOIN_KEYS),
    *("$expr", "definition", "Definition", "ID", "RuleName", "error", "run", "result", "message", "after", "of"),
)
TEXTS = st.sampled_from(
    ["", "a", "b", "*", "5m", "all", "{{ .trigger.x }}", "{{ .input", "trigger.x == 1", "steps.a.result", "{{", "true",
     "join", "emit_event", "string", "string[]?", "cron", "* * * * *", "message", "workflow", "{", "[1", "#", "1 +"]
)  # fmt: skip
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | TEXTS | st.text(max_size=8)
KEYS = st.sampled_from(WORDS) | st.text(max_size=5)
TREES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=6), max_leaves=40
)


@given(st.sampled_from(KINDS), st.dictionaries(KEYS, TREES, max_size=8))
@settings(max_examples=60)
def test_any_tree_is_a_definition_or_errors(kind: str, tree: dict[str, Any]) -> None:
    for strict in (True, False):
        definition, findings = compile_document(kind, tree, TOOLS, strict=strict)
        assert (definition is None) == bool(findings.errors)
        for problem in (*findings.errors, *findings.warnings):
            assert problem.text().isprintable()
    try:
        read_json(kind, tree)
    except DefinitionErrors as exc:
        lines = exc.problems
    else:
        lines = ("/",)
    assert lines
    assert all(line.startswith("/") and line.isprintable() for line in lines)


@given(st.dictionaries(KEYS, TREES, max_size=8), st.dictionaries(KEYS, TREES, max_size=4))
@settings(max_examples=50)
def test_any_step_is_compiled_or_refused(step: dict[str, Any], other: dict[str, Any]) -> None:
    tree = {"id": "flow", "steps": [{"id": "a", "output": 1, **step}, {"id": "b", "depends_on": ["a"], **other}]}
    definition, findings = compile_document("workflow", tree, TOOLS)
    assert (definition is None) == bool(findings.errors)


@given(st.text(max_size=300) | TREES.map(repr) | TREES.map(lambda tree: json.dumps(tree, default=str)))
def test_any_text_of_a_file_is_documents_or_errors(text: str) -> None:
    for name in ("a.yaml", "a.json"):
        found = read_file(name, text)
        assert found.definitions or found.errors
        assert all(line.startswith(name) and line.isprintable() for line in found.errors)


@given(st.binary(max_size=100))
def test_any_bytes_of_an_operation_are_refused(data: bytes) -> None:
    with pytest.raises(DefinitionErrors):
        read_json("rule", data)


@given(TREES)
def test_any_destination_is_an_action_or_an_error(tree: Any) -> None:
    try:
        read_action(tree, TOOLS, "rule")
    except EvaluationError as exc:
        said = str(exc)
    else:
        said = "right"
    assert said.isprintable()


@given(st.text(max_size=40), st.floats() | st.integers() | TREES)
def test_what_an_event_has_stays_a_scalar(text: str, number: Any) -> None:
    template = "agent: x\npayload:\n  a: {{ .input.a }}\n  - {{ .input.b }}\n".replace("  - ", "  b: ")
    definition, _ = read_json("rule", {"rule_name": "r", "source_event": "e", "destination_template": template})
    assert isinstance(definition, RuleDefinition)
    try:
        found = definition.destination.evaluate({"input": {"a": text, "b": number}}, now=lambda: NOW)
    except EvaluationError:
        return  # NaN, say
    assert found["agent"] == "x"
    assert set(found["payload"]) == {"a", "b"}
    assert found["payload"]["a"] == text.encode("utf-8", "replace").decode() or "\ufffd" in found["payload"]["a"]
    assert not isinstance(found["payload"]["b"], dict | list)


_SCHEMA_KEYS = st.sampled_from(
    ["type", "properties", "items", "required", "enum", "const", "anyOf", "not", "pattern", "minimum", "minLength", "$defs",
     "uniqueItems", "multipleOf", "additionalProperties", "prefixItems", "dependentRequired", "$comment", "title", "default",
     "if", "examples", "$id", "$anchor", "maxContains", "own", "readOnly", "format"]
)  # fmt: skip
_SCHEMA_LEAVES = (
    st.none() | st.booleans() | st.integers(-2, 3) | st.sampled_from([0.5, 1.0, "string", "object", "a", "#/x", ""])
)
SCHEMAS = st.recursive(
    _SCHEMA_LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_SCHEMA_KEYS, inner, max_size=4),
    max_leaves=15,
)


@given(SCHEMAS, SCHEMAS)
@settings(max_examples=150)
def test_schemas_are_right_if_the_metaschema_says_so(schema: Any, value: Any) -> None:
    validator = jsonschema.Draft202012Validator(jsonschema.Draft202012Validator.META_SCHEMA)
    assert (not list(check_schema(schema))) == validator.is_valid(schema)
    if isinstance(schema, dict) and validator.is_valid(schema):
        expected = jsonschema.Draft202012Validator(schema).is_valid(value)
        assert (schema_problems(schema, value) == []) == expected


def test_a_document_with_many_errors_says_how_many_more() -> None:
    steps = [{"id": f"a{index}", "depends_on": [f"b{index}"], "output": 1} for index in range(500)]
    found = read_file("a.json", json.dumps({"id": "a", "steps": steps}))
    assert len(found.errors) == MAX_PROBLEMS + 1
    assert found.errors[-1] == "a.json: /: there are 400 more errors in this document"


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ({"steps": [{"id": "a", "output": [{"$expr": "1"}] * 5001}]}, "more than 5000 expressions and templates"),
        ({"inputs": {"properties": {f"p{n}": {} for n in range(20_000)}}, "steps": [{"id": "a", "output": 1}]}, "20000 parts"),
        ({"steps": [{"id": "a", "output": {"$expr": "1 + " * 20_000 + "1"}}]}, "bytes; at most 65536 are allowed"),
        ({"steps": [{"id": "a", "output": "{{ .trigger.x }}" * 5_000}]}, "bytes; at most 65536 are allowed"),
        ({"steps": [{"id": "a", "for_each": list(range(10_001)), "output": 1}]}, "10001 items; at most 10000"),
        ({"steps": [{"id": "a", "when": "'x' matches '('", "output": 1}]}, "when: "),
    ],
)  # fmt: skip
def test_bounds_of_a_document(document: dict[str, Any], says: str) -> None:
    found = read_file("a.json", json.dumps({"id": "a", **document}))
    assert len(found.errors) == 1
    assert says in found.errors[0]


def test_patterns_take_linear_time() -> None:
    definition, _ = read_json(
        "rule",
        {
            "rule_name": "r",
            "source_event": "e",
            "destination_template": "agent: x",
            "trigger_condition": "input.x matches '(a+)+$'",
        },
    )
    assert isinstance(definition, RuleDefinition)
    assert definition.condition is not None
    env = {"input": {"x": "a" * 50_000 + "b"}}
    assert definition.condition.evaluate(env, now=lambda: NOW) is False
