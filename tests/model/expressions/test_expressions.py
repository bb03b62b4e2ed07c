"""Expressions: what they read, their bounds, errors, and that nothing escapes."""

from __future__ import annotations

import copy
import gc
import math
import pickle
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aether_trio.model.expressions import Budget, Duration, ExpressionError, compile_expression
from aether_trio.model.expressions.checker import BUILTINS
from tests.model.expressions.patterns import search_for

NOW = datetime(2026, 5, 6, 7, 8, 9, tzinfo=UTC)


def evaluate(source: str, budget: Budget | None = None, **env: object) -> object:
    return compile_expression(source, regex=search_for).evaluate(env, now=lambda: NOW, budget=budget)


def failure(source: str, **env: object) -> ExpressionError | None:
    try:
        evaluate(source, **env)
    except ExpressionError as found:
        return found
    return None


def error(source: str, **env: object) -> ExpressionError:
    found = failure(source, **env)
    assert found is not None
    return found


# What is read.


@pytest.mark.parametrize(
    ("source", "paths"),
    [
        ("1 + 2", set()),
        ("a", {("a",)}),
        ("steps.search.result.topic", {("steps", "search", "result", "topic")}),
        ('steps["search"].result', {("steps", "search", "result")}),
        ("a.b[0].c", {("a", "b", 0, "c")}),
        ("a.b[i].c", {("a", "b"), ("i",)}),
        ("a[b[c]]", {("a",), ("b",), ("c",)}),
        ("a?.b?.c", {("a", "b", "c")}),
        ("a?.b[1:x]", {("a", "b"), ("x",)}),
        ("$env.a.b", {("a", "b")}),
        ("$env", {()}),
        ("$env[a]", {(), ("a",)}),
        ("let s = steps.one; s.result + other", {("steps", "one"), ("steps", "one", "result"), ("other",)}),
        ("let s = 1; s + a", {("a",)}),
        ("let s = a[i]; s.b", {("a",), ("i",)}),
        ("map(a.items, .name + b)", {("a", "items"), ("b",)}),
        ("filter(a, {let n = .x; n > b})", {("a",), ("b",)}),
        ("a ? b : c ?? d", {("a",), ("b",), ("c",), ("d",)}),
        ("if a {b} else {c}", {("a",), ("b",), ("c",)}),
        ("{x: a, (b): [c]}", {("a",), ("b",), ("c",)}),
        ("a | join(b)", {("a",), ("b",)}),
        ("a.when.Year() + b", {("a", "when"), ("b",)}),
        ("false && a", {("a",)}),
        ('{"x": a}.x', {("a",)}),
    ],
)
def test_says_what_it_reads(source: str, paths: set[tuple[str | int, ...]]) -> None:
    assert compile_expression(source, regex=search_for).paths() == paths


@pytest.mark.parametrize(
    ("source", "equalities"),
    [
        ('input.kind == "a"', [(("input", "kind"), "a")]),
        ('"a" == input.kind', [(("input", "kind"), "a")]),
        ('input.kind == "a" && input.n > 3 and input.m == 2', [(("input", "kind"), "a"), (("input", "m"), 2)]),
        ('(input.kind == "a" && input.x == nil) && ok', [(("input", "kind"), "a"), (("input", "x"), None)]),
        ('input.kind in ["a", "b"]', [(("input", "kind"), ("a", "b"))]),
        ('input.kind in ["a", x]', []),
        ('input.kind in ["", "b"]', []),
        ('input.kind == "a" || true', []),
        ('!(input.kind == "a")', []),
        ('input.kind != "a"', []),
        ("input.kind == input.other", []),
        ('input.list[0] == "a"', []),
        ('input[x] == "a"', []),
        ('let x = 1; input.kind == "a"', []),
        ('"a" in input.kinds', []),
        ('input?.kind == "a"', [(("input", "kind"), "a")]),
        ('1 == 1 && input.kind == "a"', [(("input", "kind"), "a")]),
        ('$env.kind == "a"', [(("kind",), "a")]),
    ],
)
def test_says_which_equalities_must_hold(source: str, equalities: list[Any]) -> None:
    assert list(compile_expression(source, regex=search_for).equalities()) == equalities


# Errors.


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("lenn([1])", "1:1: there is no function 'lenn': did you mean 'len'?"),
        ("1 +\n  * 2", "2:3: '*' does not fit here"),
        ("1 +", "1:3: the expression ends too early"),
        ('1 + "a"', "1:3: '+' does not take an int and a string"),
        ("a.b.c", "1:5: 'c' cannot be read from nil: write ?. where nil is allowed"),
        ("len(5.5)", "1:1: len() does not take a float"),
        ("b\n ?? len(b)", "2:5: len() does not take nil"),
        ("n % 2", "1:3: '%' takes ints, not a float and an int: numbers of JSON need int()"),
        ("[1, 2][a.b]", "1:7: nil is no number"),
        ("now().Yeer()", "1:7: a time has no 'Yeer': did you mean 'Year'?"),
        ('"abc', "1:1: a string has no end on its line"),
        ('"a" matches "("', "1:13: the pattern is no regular expression:"),
        ("let len = 1; len", "1:5: 'len' is a builtin: give the variable another name"),
        ("(1", "1:2: ')' is missing before the end"),
        ("1)", "1:2: ')' closes nothing here, or something before it is missing"),
        ("if true {1}", "1:11: an if needs an else"),
    ],
)
def test_an_error_has_its_place(source: str, text: str) -> None:
    found = error(source, n=5.0, a={})
    assert str(found).startswith(text)
    assert str(found) == f"{found.line}:{found.column}: {found.message}"
    assert pickle.loads(pickle.dumps(found)).args == found.args


def test_an_offset_counts_characters() -> None:
    found = error('"é😀" +\n 1')
    assert (found.offset, found.line, found.column) == (5, 1, 6)


# Bounds.


def test_a_source_has_at_most_64_kib() -> None:
    assert evaluate(f'"{"a" * 65_534}"') == "a" * 65_534
    assert "bytes" in error(f'"{"a" * 65_535}"').message
    assert "bytes" in error(f'"{"é" * 40_000}"').message


DEEP = [
    ("(", "1", ")"),
    ("[", "1", "]"),
    ("{a: ", "1", "}"),
    ("len(", "1", ")"),
    ("-", "1", ""),
    ("not ", "true", ""),
    ("map([1], ", "#", ")"),
    ("map([1], {", "#", "})"),
    ("true ? 1 : ", "2", ""),
    ("true ? ", "2", " : 1"),
    ("let a = 1; ", "a", ""),
    ("if true {", "1", "} else {2}"),
    ("if false {1} else ", "if true {1} else {2}", ""),
    ("2 ** ", "2", ""),
    ("", "a", "?.b"),
    ("", "a", ".b"),
    ("", "a", "[0]"),
    ("", "a", "[1:]"),
    ("", "a", " | string()"),
    ("a[", "0", "]"),
    ("1 < (", "1", ") ? 1 : 2"),
    ("", "a", ".b()"),
]


@pytest.mark.parametrize(("before", "core", "after"), DEEP)
@pytest.mark.parametrize("depth", [10, 58, 70, 500, 4_000])
def test_nesting_is_bounded(before: str, core: str, after: str, depth: int) -> None:
    source = before * depth + core + after * depth
    found = failure(source, a=1.0)
    if depth >= 70:
        assert found is not None
        assert "nested" in found.message or "bytes" in found.message or "read" in found.message
    if found is not None and depth == 10:
        assert "nested" not in found.message


@pytest.mark.parametrize(
    ("source", "result"),
    [
        (" + ".join(["n"] * 3000), 3000.0),
        (" - ".join(["n"] * 3000), -2998.0),
        (" && ".join(["t"] * 3000), True),
        (" or ".join(["no"] * 3000), False),
        (" ?? ".join(["x"] * 3000), None),
        (" || ".join(f'kind == "{number}"' for number in range(2000)), False),
        ("[" + ", ".join(["n"] * 3000) + "]", [1.0] * 3000),
        (" == ".join(["t"] * 999), True),
    ],
)
def test_a_chain_of_operators_may_be_long(source: str, result: object) -> None:
    assert evaluate(source, n=1.0, t=True, no=False, x=None, kind="a") == result


def test_an_expression_has_at_most_10_000_parts() -> None:
    assert "parts" in error("+".join(["n"] * 6000), n=1.0).message


MANY = 'map(1..90, map(1..90, map(1..90, "x")))'


@pytest.mark.parametrize(
    "source",
    [
        "1..1000000000000",
        MANY,
        "map(1..3000, # + # + # + #)",
        "reduce(1..9000, #acc + 1 + 1, 0)",
        'repeat("ab", 1000000)',
        'repeat(repeat("ab", 900), 900)',
        'reduce(1..100, #acc + #acc, "xxxxxxxx")',
        "reduce(1..40, [#acc, #acc], 1) | string()",
        "reduce(1..40, [#acc, #acc], 1) | toJSON()",
        "reduce(1..40, [#acc, #acc], 1) | flatten()",
        "let a = reduce(1..40, [#acc, #acc], 1); [a] == [a]",
        "reduce(1..40, [#acc, #acc], 1) == reduce(1..40, [#acc, #acc], 1)",
        "reduce(1..40, [#acc, #acc], [1]) | max()",
        "reduce(1..40, [#acc, #acc], [1]) | mean()",
        "reduce(1..40, {{a: #acc, b: #acc}}, 1) | toJSON()",
        "reduce(1..40, concat(#acc, #acc), [1])",
        "uniq(map(1..3000, # * 1.0))",
        "uniq(map(1..2000, [#]))",
        "any(1..3000, 0 in list)",
        "sort(map(1..4000, -#))",
        'split(repeat("a,", 200000), ",")',
        'split(repeat("a", 200000), "")',
        'replace(repeat("a", 1000), "", repeat("b", 2000))',
        'map(1..2000, text contains "b")',
        'map(1..2000, indexOf(text, "b"))',
        'map(1..2000, lastIndexOf(text, "ba"))',
        'map(1..2000, text matches "b")',
        'map(1..2000, text matches ("b" + ""))',
        "map(1..100, string(#) matches string(#))",
        "map(1..2000, upper(text))",
        "map(1..2000, text[1:])",
        "map(1..2000, toBase64(text))",
        "map(1..2000, string(text))",
        "map(1..2000, [text] | join())",
        "fromJSON(text2)",
        "map(1..9999, list)",
        "map(list, map(list, #))",
        "sortBy(list, list)",
        "groupBy(list, string(list))",
        "filter(1..9000, # > 1 and # > 2)",
        "find(1..9000, # > 8000)",
        "findLast(1..9000, # < 3)",
        "all(1..9000, # > 0)",
        "none(1..9000, # < 0)",
        "one(1..9000, # == 0)",
        "count(1..9000, # == 0)",
        "sum(1..9000, # * 2)",
        "toPairs(fromPairs(map(1..3000, [string(#), #])))",
        "take(1..6000, 6000)",
        "reverse(1..6000)",
        "map(1..9000, accents[0])",
        "map(1..9000, first(accents))",
        "map(1..9000, get(accents, 1))",
        "map(1..90, filter(accents, true))",
        "(1..6000)[0:]",
    ],
)
def test_too_much_work_ends_by_the_budget(source: str) -> None:
    text = "a" * 200_000
    found = error(source, text=text, text2=f'"{text}"', accents="é" * 5000, list=[1.0] * 3000, a=1.0)
    assert "too many operations" in found.message or "too much data" in found.message or "nested" in found.message


def test_a_budget_may_be_larger_or_shared() -> None:
    assert len(evaluate("1..50000", Budget(operations=200_000))) == 50_000  # type: ignore[arg-type]
    shared = Budget(operations=100)
    for _ in range(5):
        evaluate("map(1..3, # + 1)", shared)
    with pytest.raises(ExpressionError, match="too many operations"):
        evaluate("map(1..3, # + 1)", shared)


def nested(depth: int) -> list[object]:
    value: list[object] = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "source", ["string(a)", "toJSON(a)", "flatten(a)", "a == b", "[a] == [b]", "max(a)", "mean(a)"]
)
@pytest.mark.parametrize("depth", [63, 64, 200, 5_000])
def test_a_deep_value_is_refused(source: str, depth: int) -> None:
    found = failure(source, a=nested(depth), b=nested(depth))
    if found is None:
        assert depth < 65
    else:
        assert depth < 64 or "nested" in found.message or "take" in found.message


def test_a_deep_stack_of_the_caller_gives_an_error() -> None:
    def call(depth: int) -> object:
        if depth:
            return call(depth - 1)
        return evaluate("[" * 50 + "]" * 50)

    met = 0
    for depth in range(0, 980, 20):
        try:
            call(depth)
        except ExpressionError:
            met += 1
        except RecursionError:
            pass  # in the test itself
    assert met


# Values.


def test_the_clock_is_handed_in() -> None:
    assert evaluate("now()") == NOW
    assert evaluate('now(timezone("Asia/Tokyo")).Hour()') == 16
    assert evaluate('now() - duration("1h") == at', at=NOW - timedelta(hours=1)) is True


def test_a_variable_that_is_known_to_be_there_comes_before_a_builtin() -> None:
    env = {"last": {"more": True}, "round": 2.0}
    with pytest.raises(ExpressionError, match="a func has no 'more'"):
        compile_expression("last.more", regex=search_for)
    names = {"last", "round"}
    expression = compile_expression(
        "last.more and round == 2 and last([1, round(2.4)]) == 2", regex=search_for, variables=names
    )
    assert expression.evaluate(env, now=lambda: NOW) is True
    assert expression.paths() == {("last", "more"), ("round",)}


def test_numbers_of_json_are_floats_and_equal_ints() -> None:
    assert evaluate("n == 5 && n in [5] && n in 1..9 && n + 1 == 6", n=5.0) is True
    assert evaluate("n == 1 || n == 0", n=True) is False
    assert evaluate("n == 1", n=True) is False
    assert evaluate("n == 5", n=5) is True


def test_moments_and_durations_may_be_in_the_environment() -> None:
    env: dict[str, object] = {"at": NOW, "length": Duration(90_000_000_000)}
    assert evaluate("at + length", **env) == NOW + timedelta(seconds=90)
    assert evaluate("string(length)", **env) == "1m30s"
    assert evaluate("at.Year()", **env) == 2026
    assert Duration(1_500_000).timedelta() == timedelta(microseconds=1500)


def test_maps_come_in_the_order_of_their_keys() -> None:
    assert evaluate("keys(m)", m={"b": 1.0, "a": 2.0, "C": 3.0}) == ["C", "a", "b"]
    assert evaluate("values(m)", m={"b": 1.0, "a": 2.0}) == [2.0, 1.0]
    assert evaluate("toPairs(m)", m={"b": 1.0, "a": 2.0}) == [["a", 2.0], ["b", 1.0]]
    assert evaluate('keys(groupBy(["b", "a"], #))') == ["a", "b"]


def test_a_result_has_plain_types() -> None:
    for source in ("concat([])", 'split("", "", 0)', "toPairs({a: 1})", "groupBy([1], #)", "[toPairs({a: 1})[0]]"):
        result = evaluate(source)
        assert type(result) in (list, dict)
        if isinstance(result, list):
            assert all(type(one) is list for one in result)


def test_texts_of_time_are_bounded() -> None:
    many = "1h" * 100_000
    for source in ("duration(many)", "date(many)", "date(day, many)", "date(day).Format(many)"):
        error(source, many=many, day="2024-01-01")


def test_a_moment_outside_of_the_years_is_an_error() -> None:
    for source in (
        'date("9999-12-31") + duration("48h")',
        'date("0001-01-01") - duration("48h")',
        'date("2024-01-01").AddDate(9000, 0, 0)',
        'date("2024-01-01").AddDate(0, 0, 999999999999)',
        'date("0001-01-01").In(timezone("America/New_York"))',
        'date("0001-01-01", "2006-01-02", "Asia/Tokyo")',
        'date("9999-12-31T23:59:59-12:00")',
        'date("15:04:05")',
    ):
        error(source)


# Whatever is written.

WORDS = [
    *[
        "abc",
        "n",
        "x",
        "1",
        "2.5",
        "0",
        "-1",
        "1e3",
        "0x1F",
        ".",
        ",",
        ";",
        ":",
        "?",
        "?.",
        "??",
        "|",
        "||",
        "&&",
        "!",
        "(",
        ")",
        "[",
        "]",
        "{",
        "}",
        "#",
        "#index",
        "#acc",
        "+",
        "-",
        "*",
        "/",
        "%",
        "**",
        "^",
        "==",
        "!=",
        "<",
        ">",
        "<=",
        ">=",
        "..",
    ],
    *[
        "in",
        "not",
        "and",
        "or",
        "contains",
        "matches",
        "startsWith",
        "endsWith",
        "let",
        "if",
        "else",
        "true",
        "false",
        "nil",
        "$env",
        "now()",
        "date",
        "duration",
    ],
    *[
        "map",
        "filter",
        "reduce",
        "sortBy",
        "groupBy",
        "sum",
        "count",
        "all",
        "find",
        "len",
        "string",
        "toJSON",
        "fromJSON",
        "split",
        "join",
        "repeat",
        "replace",
    ],
    *[
        "sort",
        "uniq",
        "concat",
        "flatten",
        "keys",
        "get",
        "take",
        "first",
        "last",
        "bitshl",
        "int",
        "float",
        "max",
        "mean",
        "timezone",
        "upper",
        "trim",
    ],
    '"text"',
    "'é'",
    "`r`",
    '"2024-02-29"',
    '"1h"',
    '"UTC"',
    "(",
    ")",
    "(",
    ")",
    "=",
    "\n",
    "//",
    "/*",
    "😀",
]
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
ENVIRONMENTS = st.fixed_dictionaries({"a": JSON, "b": JSON, "c": JSON, "n": st.floats(), "x": st.none(), "abc": JSON})


def survive(source: str, env: dict[str, object]) -> None:
    before = copy.deepcopy(env)
    found = None
    try:
        expression = compile_expression(source, regex=search_for)
        expression.paths()
        expression.equalities()
        expression.evaluate(env, now=lambda: NOW)
    except ExpressionError as refused:
        found = refused
    if found is not None:
        assert 0 <= found.offset <= len(source)
        assert found.line >= 1
        assert found.column >= 1
    assert same(env, before)


def same(left: object, right: object) -> bool:
    """Compare with NaN equal to itself."""
    if isinstance(left, float) and isinstance(right, float):
        return left == right or (math.isnan(left) and math.isnan(right))
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    return type(left) is type(right) and left == right


@given(st.text(max_size=40), ENVIRONMENTS)
@example("'\\", {})
@example('"\\u', {})
@example('"\\u{', {})
@example("\x00", {})
@example('"\ud800"', {})
@example("\ud800", {})
@example("1.", {})
@example("#", {})
def test_any_text_gives_a_value_or_an_error(source: str, env: dict[str, object]) -> None:
    survive(source, env)


@given(st.lists(st.sampled_from(WORDS), max_size=14), ENVIRONMENTS)
def test_any_words_give_a_value_or_an_error(words: list[str], env: dict[str, object]) -> None:
    survive(" ".join(words), env)


def calls() -> st.SearchStrategy[str]:
    """Return expressions that are right more often: builtins with values."""
    atoms = st.sampled_from(
        [
            *("a", "b", "c", "n", "x", "1", "-2", "2.5", "true", "nil", "[1, 2]", "{a: 1}", "now()", "$env"),
            *("[a, b]", "1..3", "{k: c}", "toPairs({a: n})", "concat([])"),
            *['"ab"', '"é"', 'duration("1h")', 'timezone("Europe/Berlin")'],
        ]
    )
    names = sorted(BUILTINS)
    operators = st.sampled_from(
        [
            *[
                "+",
                "-",
                "*",
                "/",
                "%",
                "**",
                "==",
                "!=",
                "<",
                ">=",
                "&&",
                "||",
                "??",
                "in",
                "..",
                "contains",
                "startsWith",
                "matches",
            ]
        ]
    )

    def extend(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        return (
            st.tuples(inner, operators, inner).map(lambda parts: f"({' '.join(parts)})")
            | st.tuples(st.sampled_from(names), st.lists(inner, min_size=1, max_size=3)).map(
                lambda call: f"{call[0]}({', '.join(call[1])})"
            )
            | st.tuples(
                st.sampled_from(["map", "filter", "sortBy", "groupBy", "sum", "find", "any"]), inner, inner
            ).map(lambda call: f"{call[0]}({call[1]}, {call[2]} == # ? # : {call[2]})")
            | st.tuples(inner, inner).map(lambda parts: f"{parts[0]}[{parts[1]}]")
            | st.tuples(inner, inner, inner).map(lambda parts: f"{parts[0]}[{parts[1]}:{parts[2]}]")
            | inner.map(lambda part: f"{part}?.a.b")
            | st.tuples(inner, st.sampled_from(["Year()", "Format('2006 MST')", "Hours()", "Unix()", "a"])).map(
                ".".join
            )
        )

    return st.recursive(atoms, extend, max_leaves=8)


@given(calls(), ENVIRONMENTS)
def test_any_calls_give_a_value_or_an_error(source: str, env: dict[str, object]) -> None:
    survive(source, env)


@given(st.floats())
def test_a_printed_float_is_read_again(number: float) -> None:
    text = evaluate("string(n)", n=number)
    again = evaluate("float(text)", text=text)
    assert again == number or (math.isnan(number) and isinstance(again, float) and math.isnan(again))


@given(st.text(max_size=20))
def test_json_and_base64_are_inverse(text: str) -> None:
    assert evaluate("fromJSON(toJSON(t))", t=text) == text
    assert evaluate("fromBase64(toBase64(t))", t=text) == text


def test_a_regex_engine_is_handed_in() -> None:
    asked = []

    def regex(pattern: str) -> Callable[[str], bool]:
        asked.append(pattern)
        return lambda text: pattern in text

    expression = compile_expression('a matches "x" && b matches (c + "")', regex=regex)
    assert expression.evaluate({"a": "axb", "b": "y", "c": "y"}, now=lambda: NOW) is True
    assert asked[-1] == "y"


def test_compilation_leaves_nothing_to_the_cycle_collector() -> None:
    """Its passes stop the event loop, the longer the more they find."""
    source = 'let a = input.list; any(a, # > 1 && # in [1, 2.5]) ? a[1:]?.x : {"k": -$env["n"]}'
    compile_expression(source, regex=search_for)
    gc.collect()
    gc.disable()
    try:
        for _ in range(20):
            compile_expression(source, regex=search_for)
        assert gc.collect() < 20
    finally:
        gc.enable()
