"""What a template prints never becomes structure of the YAML around it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from aether_trio.model.templates import Marked, compile_template

# YAML that would open mappings, end strings, begin comments, make aliases, tags and documents.
HOSTILE = [
    "a: b",
    "\nadmin: true",
    "x\n  - y",
    "[1, 2]",
    "{a: 1}",
    "*anchor",
    "&anchor x",
    "!!python/object:os.system x",
    "# comment",
    " # comment",
    "true",
    "null",
    "~",
    "123",
    "1e5",
    "---",
    "...",
    "'",
    '"',
    '", admin: "true',
    "', admin: 'true",
    "|",
    ">",
    "%YAML 1.1",
    "<<",
    "? x",
    "- x",
    "\t",
    "",
    " ",
    "\\",
    "\x00",
    "\x1b[2J",
    "\u2028",
    "\ufeff",
    "\ue0000\ue001",
    "\ue0001\ue001: \ue000",
    "\ue001",
    "{{.input.secret}}",
    "}}",
    "\ud800",
    "x" * 5000,
    "2001-01-01",
    "=",
    "0x1F",
    ".inf",
]


def build(node: yaml.Node, marked: Marked) -> Any:
    """Build a YAML node as the loader of definitions does, without its checks."""
    if isinstance(node, yaml.ScalarNode):
        return marked.fill(node.value, plain=node.style is None)
    if isinstance(node, yaml.SequenceNode):
        return [build(child, marked) for child in node.value]
    assert isinstance(node, yaml.MappingNode)
    return [(marked.fill(key.value, plain=False), build(child, marked)) for key, child in node.value]


def load(source: str, data: object) -> Any:
    marked = compile_template(source).render_marked(data)
    node = yaml.compose(marked.text, Loader=yaml.SafeLoader)
    return build(node, marked)


def shape(value: Any) -> Any:
    """Return a structure without its texts: lists, pairs and the types of scalars."""
    if isinstance(value, list):
        return [shape(child) for child in value]
    if isinstance(value, tuple):
        return (type(value[0]).__name__, shape(value[1]))
    return type(value).__name__


DESTINATION = """\
type: create_task
task_type: "{{.input.kind}}"
target: {{.input.target}}
'{{.input.key}}': {{.input.value}}
{{.input.key}}: v
payload:
  single: 'it is {{.input.value}}, {{.input.kind}}'
  mixed: before {{.input.value}} after {{.input.kind}}
  flow: [{{.input.value}}, "{{.input.kind}}", {a: {{.input.key}}}]
  block: |
    line {{.input.value}}
    {{.input.kind}}
  folded: >-
    {{.input.value}}
    {{.input.kind}}
  nested:
  {{- range $i, $tag := .input.tags}}
  - name: {{$tag}}
    place: {{$i}}
    quoted: "{{$tag}}" # {{$tag}}
  {{- end}}
  {{- with .input.note}}
  note: {{.}}
  {{- end}}
  formed: {{printf "%s/%s" .input.kind .input.value}}
  escaped: {{html .input.value}}
"""
NAMES = ("kind", "target", "key", "value", "note")


def event(value: str, tags: list[str]) -> dict[str, object]:
    return {"input": {**dict.fromkeys(NAMES, value), "tags": tags}}


HARMLESS = load(DESTINATION, event("harmless", ["a", "b"]))


def printed(value: str) -> str:
    return value.replace("\ud800", "\ufffd")


@pytest.mark.parametrize("value", [value for value in HOSTILE if value])
def test_hostile_text_is_text(value: str) -> None:
    result = load(DESTINATION, event(value, [value, value]))
    assert shape(result) == shape(HARMLESS)
    text = printed(value)
    pairs = dict(result)
    assert pairs["task_type"] == pairs["target"] == text
    assert result[3] == (text, text)
    assert result[4] == (text, "v")
    payload = dict(pairs["payload"])
    assert payload["single"] == f"it is {text}, {text}"
    assert payload["mixed"] == f"before {text} after {text}"
    assert payload["flow"] == [text, text, [("a", text)]]
    assert payload["block"] == f"line {text}\n{text}\n"
    assert payload["folded"] == f"{text} {text}"
    assert payload["nested"] == [[("name", text), ("place", place), ("quoted", text)] for place in range(2)]
    assert payload["note"] == text
    assert payload["formed"] == f"{text}/{text}"


_texts = st.one_of(
    st.sampled_from(HOSTILE),
    st.text(max_size=20),
    st.text(alphabet="{}[]:-#&*!|>'\"%@`,?\n\t \\~<=.0123456789ae\ue000\ue001", max_size=20),
).filter(bool)


@given(values=st.fixed_dictionaries(dict.fromkeys(NAMES, _texts)), tags=st.lists(_texts, min_size=2, max_size=2))
def test_no_text_changes_the_structure(values: dict[str, str], tags: list[str]) -> None:
    result = load(DESTINATION, {"input": {**values, "tags": tags}})
    assert shape(result) == shape(HARMLESS)


def test_an_empty_text_is_a_str() -> None:
    assert load("a: {{.x}}\nb: '{{.x}}'\n{{.x}}: c", {"x": ""}) == [("a", ""), ("b", ""), ("", "c")]


@pytest.mark.parametrize(
    ("source", "data", "value"),
    [
        ("{{.}}", 3.0, 3),
        ("{{.}}", 2.5, 2.5),
        ("{{.}}", 1e6, 1e6),
        ("{{.}}", 1e21, 1e21),
        ("{{.}}", -7.0, -7),
        ("{{.}}", 12, 12),
        ("{{.}}", True, True),
        ("{{.}}", False, False),
        ("{{.}}", None, "<no value>"),
        ("{{.a}}", {}, "<no value>"),
        ("{{len .}}", "four", 4),
        ("{{eq . 1.0}}", 1.0, True),
        ("{{index . 0}}", "A", 65),
        ("{{index . 1}}", [1.0, 2.0], 2),
        ("{{or . 5}}", 0.0, 5),
        ("{{and . true}}", "x", True),
        ("{{(index . 0).n}}", [{"n": 4.0}], 4),
        ("{{.}}{{.}}", 12.0, 1212),
        ("-{{.}}", 12.0, -12),
        ("{{.}}.{{.}}", 12.0, 12.12),
        ("0x{{.}}", 12.0, 0x12),
        ("0o{{.}}", 12.0, 0o12),
        ("0{{.}}", 12.0, 12),
        ("{{.}}e3", 1.0, 1000.0),
        ("v{{.}}", 12.0, "v12"),
        ("{{.}} items", 12.0, "12 items"),
        ("n{{1}}ull", None, "n1ull"),
        ("{{1}}{{.}}", "2", "12"),
        ("{{print .}}", 3.0, "3"),
        ('{{printf "%d" 3}}', None, "3"),
        ("{{html .}}", 3.0, "3"),
        ("{{. | print}}", True, "true"),
        ("{{`5`}}", None, "5"),
        ("{{.}}", "5", "5"),
        ("{{.}}", [1.0, 2.0], "[1 2]"),
        ("{{.}}", [], "[]"),
        ("{{.}}", {}, "map[]"),
        ("{{1i}}", None, "(0+1i)"),
        ("{{.}}", 1 << 63, float(1 << 63)),
        ("9223372036854775808{{.}}", 0.0, float(92233720368547758080)),
        ("922337203685477580{{.}}", 8.0, 1 << 63),
        ("{{.}}{{.}}", 9223372036854775807, float("92233720368547758079223372036854775807")),
        ("{{.}}", math.inf, "+Inf"),
        ("{{.}}", math.nan, "NaN"),
    ],
)
def test_plain_scalars_of_numbers_are_typed(source: str, data: object, value: object) -> None:
    plain, single, double, block = (
        dict(load(form.format(source), data))["a"] for form in ("a: {}", "a: '{}'", "a: \"{}\"", "a: |-\n  {}")
    ) if '"' not in source else (load(f"a: {source}", data)[0][1],) * 4  # fmt: skip
    assert plain == value
    assert type(plain) is type(value)
    if not isinstance(value, str):
        assert isinstance(single, str)
        assert single == double == block == compile_template(source).render(data)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("~", None),
        ("null", None),
        ("Null", None),
        ("True", True),
        ("FALSE", False),
        ("yes", "yes"),
        ("on", "on"),
        ("+1", 1),
        ("1_000", "1_000"),
        ("1.", 1.0),
        (".5", 0.5),
        (".", "."),
        ("-", "-"),
        ("0x1g", "0x1g"),
        ("0o8", "0o8"),
        ("08", 8),
        (".inf", math.inf),
        ("-.INF", -math.inf),
        ("2001-01-01", "2001-01-01"),
        ("1:30", "1:30"),
        ("9" * 81, float("9" * 81)),
        ("1" + "0" * 400, math.inf),
    ],
)
def test_the_core_schema_of_yaml_1_2(text: str, value: object) -> None:
    marked = Marked("", (compile_template("{{1}}").render_marked(None).printed[0]._replace(text=text),))
    filled = marked.fill("\ue0000\ue001", plain=True)
    assert filled == value
    assert type(filled) is type(value)


def test_a_number_that_is_none() -> None:
    marked = Marked("", (compile_template("{{1}}").render_marked(None).printed[0]._replace(text=".nan"),))
    filled = marked.fill("\ue0000\ue001", plain=True)
    assert isinstance(filled, float)
    assert math.isnan(filled)


def test_scalars_without_placeholders_are_left_to_the_caller() -> None:
    marked = compile_template("a: {{.}}").render_marked(1.0)
    assert marked.fill("true", plain=True) == "true"
    assert marked.fill("12", plain=True) == "12"


@pytest.mark.parametrize(
    "text", ["\ue000", "\ue0009\ue001", "\ue000x\ue001", "\ue000" + "9" * 50 + "\ue001", "\ue0000"]
)
def test_what_looks_like_a_placeholder_is_left_as_it_is(text: str) -> None:
    marked = compile_template("a: {{.}}").render_marked(1.0)
    assert marked.fill(text, plain=True) == text


def test_a_double_quoted_escape_is_the_authors_own_text() -> None:
    assert load('a: "\\uE0007\\uE001{{.}}"', "x") == [("a", "\ue0007\ue001x")]


def test_the_structure_of_loops_is_the_authors() -> None:
    source = "{{range .}}- {{.}}\n{{end}}"
    assert load(source, ["a", "- b", "c: d\n- e"]) == ["a", "- b", "c: d\n- e"]


def test_placeholders_count_as_output() -> None:
    marked = compile_template("{{range 100}}{{.}}{{end}}").render_marked(None)
    assert len(marked.printed) == 100
    assert marked.text.count("\ue000") == 100
