"""YAML by the rules of 1.2, with positions and bounds."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aether_trio.services.workflows.documents.yaml_reader import (
    MAX_BYTES,
    Position,
    YamlDocument,
    YamlError,
    read_yaml,
    read_yaml_documents,
)


def documents(text: str) -> list[YamlDocument]:
    return list(read_yaml_documents(text))


def tree(text: str) -> Any:
    (one,) = documents(text)
    return one.tree


def failure(text: str) -> str:
    with pytest.raises(YamlError) as caught:
        documents(text)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("on: 1", {"on": 1}),
        ("a: on", {"a": "on"}),
        ("a: yes", {"a": "yes"}),
        ("a: NO", {"a": "NO"}),
        ("a: true", {"a": True}),
        ("a: False", {"a": False}),
        ("a: tRUE", {"a": "tRUE"}),
        ("a: 0o17", {"a": 15}),
        ("a: 017", {"a": 17}),
        ("a: 0x1F", {"a": 31}),
        ("a: 0b11", {"a": "0b11"}),
        ("a: 1_000", {"a": "1_000"}),
        ("a: 1:30", {"a": "1:30"}),
        ("a: 2026-01-02", {"a": "2026-01-02"}),
        ("a: 1e3", {"a": 1000.0}),
        ("a: .5", {"a": 0.5}),
        ("a: -5", {"a": -5}),
        ("a:", {"a": None}),
        ("a: ~", {"a": None}),
        ("a: null", {"a": None}),
        ("a: 'null'", {"a": "null"}),
        ('a: "5"', {"a": "5"}),
        ("a: |\n  5\n", {"a": "5\n"}),
        ("a: !!str 5", {"a": "5"}),
        ("a: ! 5", {"a": "5"}),
        ("a: !!int '5'", {"a": 5}),
        ("a: !!float 5", {"a": 5.0}),
        ("a: !!map {}", {"a": {}}),
        ("5: x\ntrue: y", {"5": "x", "true": "y"}),
        ("=: x", {"=": "x"}),
        ("[1, [2, {a: b}]]", [1, [2, {"a": "b"}]]),
        ("a: &x [1]\nb: *x", {"a": [1], "b": [1]}),
        ("a: 99999999999999999999999", {"a": 1e23}),
        ('{"a": ["b", null]}', {"a": ["b", None]}),
        ('a: "\\u0000"', {"a": "\x00"}),
        ("%YAML 1.2\n---\na: 1\n", {"a": 1}),
        ("\ufeffa: 1", {"a": 1}),
    ],
)
def test_values_are_those_of_the_core_schema(text: str, value: object) -> None:
    found = tree(text)
    assert found == value
    assert repr(found) == repr(value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 1\nb: 2\na: 3", "3:1: the key 'a' is there twice: also in line 1"),
        ("a: {b: 1, 'b': 2}", "1:11: the key 'b' is there twice: also in line 1"),
        ("a: .inf", "1:4: '.inf' is not a number of JSON; quotes make a text of it"),
        ("a: .nan", "1:4: '.nan' is not a number of JSON; quotes make a text of it"),
        ("a: 1e999", "1:4: '1e999' is not a number of JSON; quotes make a text of it"),
        ("[a]: 1", "1:1: a key has to be a text"),
        ("{a: 1}: 1", "1:1: a key has to be a text"),
        ("? *x\n: 1", "1:3: a key has to be a text"),
        ("?\n: 1", "1:2: a key is empty"),
        ("<<: {a: 1}", "1:1: '<<' merges maps in YAML 1.1 only: write the keys themselves"),
        ("a: *x", "1:4: there is no anchor &x before this alias"),
        ("a: &x [*x]", "1:8: the alias *x is within what it stands for"),
        ("a: !!python/object:os.system x", "1:4: the tag '!!python/object:os.system' is not one of JSON's types"),
        ("a: !foo x", "1:4: the tag '!foo' is not one of JSON's types"),
        ("a: !!timestamp 2026-01-01", "1:4: the tag '!!timestamp' is not one of JSON's types"),
        ("a: !!set {}", "1:4: the tag '!!set' is not one of JSON's types"),
        ("a: !!int x", "1:4: 'x' is not what its tag '!!int' says"),
        ("a: !!bool 1", "1:4: '1' is not what its tag '!!bool' says"),
        ("a: 1\x00", "1:5: the character U+0000 is not allowed in YAML; in double quotes it can be escaped"),
        ("a: \ud800", "1:4: the character U+D800 is not allowed in YAML; in double quotes it can be escaped"),
        ("a:\n  - b\n c: 1", "3:2: "),
        ("a: [1", "2:1: "),
        ("a: b: c", "1:5: mapping values are not allowed in this context: a text with ': ' needs quotes"),
        (
            "a: {b: c[0].d}",
            "1:9: while parsing a flow mapping did not find expected ',' or '}': a text with brackets, braces or commas needs quotes there",
        ),
        ("a:\n\t- b", "2:1: "),
        ("a: %x", "1:4: "),
        ("[" * 100, "1:65: the document is nested deeper than 64 levels"),
    ],
)
def test_what_is_wrong_has_its_position(text: str, says: str) -> None:
    found = failure(text)
    assert found.startswith(says)
    assert "\n" not in found


def test_a_tab_is_named() -> None:
    assert "indent with spaces" in failure("a:\n\t- b")


def test_several_documents_and_empty_ones() -> None:
    found = documents("---\na: 1\n---\n---\n# nothing\n---\nb: &x 2\n...\n")
    assert [one.tree for one in found] == [{"a": 1}, {"b": 2}]
    assert [one.mark.start for one in found] == [Position(2, 1), Position(7, 1)]
    assert failure("a: &x 1\n---\nb: *x") == "3:4: there is no anchor &x before this alias"
    assert failure("--- 1\n" * 1001) == "1001:1: there are more than 1000 documents"


def test_documents_before_an_error_are_read() -> None:
    reading = read_yaml_documents("a: 1\n---\na: *x")
    assert next(reading).tree == {"a": 1}
    with pytest.raises(YamlError, match="3:4"):
        next(reading)


def test_aliases_are_bounded_by_what_they_expand_to() -> None:
    bomb = "a0: &a0 [x]\n" + "".join(
        f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]\n" for level in range(1, 30)
    )
    assert failure(bomb) == "6:25: there are more than 100000 values, with what aliases repeat"


def test_size_and_depth_are_bounded() -> None:
    assert failure("a" * (MAX_BYTES + 1)) == f"1:1: it has {MAX_BYTES + 1} bytes; at most {MAX_BYTES} are allowed"
    assert failure("- " * 500_000).startswith("1:129: the document is nested deeper than 64 levels")
    assert failure("{a: " * 200_000).startswith("1:257: the document is nested deeper than 64 levels")
    assert failure("[" + "1, " * 200_000 + "]").endswith("there are more than 100000 values, with what aliases repeat")
    assert failure('"' * 3).startswith("1:")


def test_positions_of_values_keys_and_places_in_texts() -> None:
    text = """\
# a comment
steps:
  - id: a
    when: steps.x == 1
    "key": "quoted"
    text: |
      first
        second
    folded: >
      one
      two
    escaped: "a\\tb"
    none:
"""
    (document,) = documents(text)
    at = document.position
    assert at(()) == (2, 1)
    assert at(("steps", 0)) == (3, 5)
    assert at(("steps", 0, "when")) == (4, 11)
    assert at(("steps", 0, "when"), of_key=True) == (4, 5)
    assert at(("steps", 0, "when"), line=1, column=7) == (4, 17)
    assert at(("steps", 0, "key"), line=1, column=2) == (5, 14)
    assert at(("steps", 0, "text"), line=2, column=3) == (8, 9)
    assert at(("steps", 0, "text"), line=9, column=3) == (6, 11)
    assert at(("steps", 0, "folded"), line=1, column=3) == (9, 13)
    assert at(("steps", 0, "escaped"), line=1, column=3) == (12, 14)
    assert at(("steps", 0, "absent", "more")) == (3, 5)
    assert at(("steps", 7)) == (2, 1) or at(("steps", 7)) == (3, 3)


def test_a_hook_gives_scalars_their_values() -> None:
    def hook(text: str, plain: bool) -> object:
        return {"one": 1, "two": "2", "key": "renamed"}.get(text, text)

    assert read_yaml("key: one\na: 'one'\nb: two\nc: 3\nd: '3'\n", hook) == {
        "renamed": 1,
        "a": 1,
        "b": "2",
        "c": 3,
        "d": "3",
    }
    assert read_yaml("# nothing", hook) is None
    with pytest.raises(YamlError, match="2:5: there is more than one document"):
        read_yaml("--- 1\n--- 2", hook)


_LINES = st.sampled_from(
    ["a: 1", "  b: [", "- x", "&a", "*a", "---", "...", "? k", ": v", "'", '"', "|", "  text", "\t", "!!str", "{", "}"]
)


@given(
    st.text(max_size=200)
    | st.lists(_LINES, max_size=12).map("\n".join)
    | st.binary(max_size=60).map(lambda raw: raw.decode("latin-1"))
)
def test_any_text_is_documents_or_an_error(text: str) -> None:
    try:
        for document in read_yaml_documents(text):
            document.position(("a", 0, "b"), of_key=True, line=3, column=4)
    except YamlError as exc:
        says = str(exc)
    else:
        says = "1:1: "
    assert says.isprintable()
    assert min(map(int, says.split(":")[:2])) >= 1
