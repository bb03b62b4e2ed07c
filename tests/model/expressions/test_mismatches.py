"""Operations that fail for the types of what they read are found, and no others."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest

from aether_trio.model.expressions import Expression, ExpressionError, compile_expression
from aether_trio.model.expressions.mismatches import WORDS
from aether_trio.model.expressions.parser import PREDICATES
from aether_trio.model.expressions.signatures import SIGNATURES
from tests.model.expressions.patterns import search_for
from tests.model.expressions.test_conformance import ROWS

KINDS = {float: "float", str: "string", bool: "bool", list: "array", dict: "map"}
SAMPLES: dict[str, list[Any]] = {
    "float": [0.0, 1.0, -2.0, 2.5],
    "string": ["", "a", "1", "1h", "2006-01-02", "asc", "UTC", '{"a": 1}', "YQ=="],
    "bool": [True, False],
    "array": [[], ["a"], [1.0, 2.0], [["a", 1.0]], [True], [{"a": 1.0}]],
    "map": [{}, {"a": 1.0}],
}


@dataclass(frozen=True)
class Like:
    """What is declared of a value: that it is like this one."""

    value: Any

    @property
    def kind(self) -> str | None:
        return KINDS.get(type(self.value))

    def field(self, name: str) -> Like | None:
        return Like(self.value[name]) if isinstance(self.value, dict) and name in self.value else None

    def element(self) -> Like | None:
        kinds = {Like(one).kind for one in self.value}
        plain = len(kinds) == 1 and not kinds & {None, "array", "map"}
        return Like(self.value[0]) if plain else None


@dataclass(frozen=True)
class OfKind:
    """What is declared of a value: its kind."""

    kind: str | None

    def field(self, name: str) -> None:
        return None

    def element(self) -> None:
        return None


def compiled(source: str, env: dict[str, Any]) -> Expression:
    """Compile an expression over variables like those of an environment."""
    known = {name: one if isinstance(one, OfKind) else Like(one) for name, one in env.items()}
    return compile_expression(source, regex=search_for, look=known.get)


def wrong(source: str, **env: Any) -> list[str]:
    return [str(one) for one in compiled(source, env).mismatches]


def fails(expression: Expression, env: dict[str, Any]) -> bool:
    try:
        expression.evaluate(env, now=lambda: datetime(2026, 1, 2, tzinfo=UTC))
    except ExpressionError:
        return True
    return False


UNREACHED = {"(not !(n > 3) ? map(o, .n + z)[0] : reduce([f, 3.5], #acc + #, (z % neg)))"}
"""Rows in which what is wrong is in a branch that is not taken."""


def test_what_expr_answers_is_never_wrong() -> None:
    found = 0
    for row in ROWS:
        env = json.loads(json.dumps(row.get("env", {})), parse_int=float)
        if row.get("fails") == "compile":
            continue
        try:
            expression = compiled(row["expr"], env)
        except ExpressionError:
            continue
        found += bool(expression.mismatches)
        assert not expression.mismatches or "fails" in row or row["expr"] in UNREACHED, (row, expression.mismatches)
        out = row.get("out")
        if isinstance(out, str | bool | list) and expression.kind is not None:
            decided = type(out) is bool and any(one in row["expr"] for one in ("&&", "||", "and", "or"))
            assert decided or expression.kind == KINDS[type(out)], row
    assert found > 400, "of the rows that fail when they run, more than half are found"


OPERATORS = ("+", "-", "*", "/", "%", "**", "..", "<", ">", "<=", ">=", "==", "!=", "in", "??")
TEXT_OPERATORS = ("contains", "startsWith", "endsWith", "matches")


def sources() -> Iterator[tuple[str, int]]:
    """Yield expressions over a, b and c, and how many of them they read."""
    for operator in (*OPERATORS, *TEXT_OPERATORS, "and", "or"):
        yield f"a {operator} b", 2
    yield from (("not a", 1), ("-a", 1), ("+a", 1), ("a ? 1 : 2", 1), ("a[1:2]", 1), ("[1][a:2]", 1), ("'abc'[:a]", 1))
    yield from (("[1, 2][a]", 1), ("{'a': 1}[a]", 1), ("a in {'a': 1}", 1), ("let v = a + 1; v", 1))
    for name in SIGNATURES:
        for count in (1, 2, 3):
            yield f"{name}({', '.join('abc'[:count])})", count
    for name in PREDICATES:
        yield f"{name}(a, true)", 1
        yield f"{name}([1], a)", 1


CONDITIONAL = (" and ", " or ", *(f"{name}(" for name in PREDICATES))
"""What reads a value only if another one asks for it."""


def test_what_is_wrong_fails_with_every_value() -> None:
    found = 0
    for source, count in sources():
        for kinds in itertools.product(SAMPLES, repeat=count):
            if count == 3 and kinds.count("string") < 2:
                continue  # there are many of them
            declared = {name: OfKind(kind) for name, kind in zip("abc", kinds, strict=False)}
            try:
                expression = compiled(source, declared)
            except ExpressionError:
                continue  # it takes another number of arguments
            values = itertools.product(*(SAMPLES[kind][: 2 if count == 3 else None] for kind in kinds))
            outcomes = (fails(expression, dict(zip("abc", one, strict=False))) for one in values)
            if expression.mismatches:
                found += 1
                enough = any if any(one in source for one in CONDITIONAL) else all
                assert enough(outcomes), (source, kinds, expression.mismatches)
            elif count == 2 and any(f" {one} " in source for one in (*OPERATORS[:11], *TEXT_OPERATORS)):
                assert not all(outcomes), (source, kinds)
    assert found > 500


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("n + 'a'", ["1:3: '+' does not take a number and a text"]),
        ("n + m + s", ["1:7: '+' does not take a number and a text"]),
        ("s + s + n", ["1:7: '+' does not take a text and a number"]),
        ("other * s", ["1:7: '*' does not take something unknown and a text"]),
        ("n < s", ["1:3: '<' does not take a number and a text"]),
        ("n and yes", ["1:3: 'and' does not take a number and a bool"]),
        ("other or n or other", ["1:12: 'or' does not take a number and something unknown"]),
        ("yes and n", []),
        ("n and true", []),
        ("not s", ["1:1: 'not' does not take a text"]),
        ("n % 2", ["1:3: '%' does not take a number and a number: numbers of JSON need int()"]),
        ("upper(n)", ["1:7: upper() does not take a number there"]),
        ("take(l, n)", ["1:9: take() does not take a number there: use int()"]),
        ("s ? 1 : 2", ["1:1: a condition is a bool, not a text"]),
        ("filter(l, # + s)", ["1:13: '+' does not take a number and a text"]),
        ("map(rows, .at + 1)", []),
        ("filter(l, # + 1)", ["1:11: the predicate of filter() gives a number, not a bool"]),
        ("let v = n;\nv + s", ["2:3: '+' does not take a number and a text"]),
        ("of.name - 1", ["1:9: '-' does not take a text and a number"]),
        ("of?.name - 1", ["1:10: '-' does not take a text and a number"]),
        (
            "[n + s, s - n]",
            ["1:4: '+' does not take a number and a text", "1:11: '-' does not take a text and a number"],
        ),
        ("n in ['a', 'b']", ["1:3: 'in' looks for a text here, not for a number"]),
        ("n + s == 1 and false", []),
        ("n in s", ["1:3: 'in' looks into a list or a map, not into a text"]),
        ("l[s]", ["1:3: an index is a number, not a text"]),
        ("of[n]", ["1:4: a key of a map is a text, not a number"]),
        ("(s ?? n) + 1", []),
        ("(yes ? s : n) + 1", []),
        ("(yes ? m : n) + s", ["1:15: '+' does not take a number and a text"]),
        ("s == n", []),
        ("int(n) % 2", []),
        ("nothing + s", []),
        ("len(l) % 2", []),
        ("string(n) + s", []),
    ],
)
def test_errors_have_their_place_and_the_types(source: str, says: list[str]) -> None:
    env = {"n": 1.0, "m": 2.0, "s": "a", "yes": True, "l": [1.0], "of": {"name": "a"}, "rows": [{"at": 1.0}]}
    assert wrong(source, nothing=None, **env) == says


def test_without_declarations_nothing_is_wrong() -> None:
    assert compile_expression("a + 'x' < b and not c", regex=search_for).mismatches == ()
    assert set(KINDS.values()) < set(WORDS)
