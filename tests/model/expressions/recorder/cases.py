"""Write the expressions whose answers are recorded, one JSON object a line.

They are those of hand_written.txt, operators and builtins with values of all types (a part of all
pairs, drawn with a fixed seed), and random nested ones. main.go says how to record.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

HAND_WRITTEN = Path(__file__).with_name("hand_written.txt")
KEPT = 0.27  # of the pairs of operators or builtins with values
ENVIRONMENT: dict[str, Any] = {
    "n": 5,
    "f": 2.5,
    "z": 0,
    "neg": -3,
    "big": 1e21,
    "s": "abc",
    "u": "héllo wörld",
    "e": "",
    "num": "42",
    "t": True,
    "no": False,
    "x": None,
    "l": [3, 1, 2],
    "w": ["b", "a", "c"],
    "mix": [1, "a", None, True],
    "nest": [[1, 2], [3, [4, [5]]]],
    "empty": [],
    "m": {"a": 1, "b": "x"},
    "none_map": {},
    "o": [
        {"name": "ann", "n": 3, "ok": True, "tags": ["p", "q"]},
        {"name": "bob", "n": 1, "ok": False, "tags": []},
        {"name": "cid", "n": 2, "ok": True, "tags": ["q"]},
    ],
    "input": {"kind": "a", "n": 5, "deep": {"er": {"value": 7}}, "gone": None, "list": [1, 2, 3]},
    "day": "2023-08-14",
}
VARIABLES = ("n", "f", "s", "t", "x", "l", "m", "e")
LITERALS = ("1", "2.5", '"a"', "true", "nil", "[1]", "{a: 1}", 'duration("1h")', 'date("2024-02-29")')
BINARY = ("+", "-", "*", "/", "%", "**", "==", "!=", "<", ">", "<=", ">=", "&&", "||", "??", "in", "..")
TEXTUAL = ("contains", "startsWith", "endsWith", "matches")
ONE = [
    "len",
    "type",
    "abs",
    "ceil",
    "floor",
    "round",
    "int",
    "float",
    "string",
    "trim",
    "trimPrefix",
    "trimSuffix",
    "upper",
    "lower",
    "max",
    "min",
    "mean",
    "median",
    "toJSON",
    "fromJSON",
    "toBase64",
    "fromBase64",
    "duration",
    "date",
    "timezone",
    "first",
    "last",
    "keys",
    "values",
    "reverse",
    "uniq",
    "concat",
    "flatten",
    "sort",
    "fromPairs",
    "bitnot",
    "join",
    "sum",
    "count",
]
PREDICATE = [
    "all",
    "none",
    "any",
    "one",
    "filter",
    "map",
    "count",
    "sum",
    "find",
    "findIndex",
    "findLast",
    "findLastIndex",
    "groupBy",
    "sortBy",
]
ARGUMENTS = (*VARIABLES, *LITERALS, "w", "mix", "nest", "empty", "num", "u", "1..3", "-2", "-2.5", "o", "none_map")


def operators() -> Iterator[str]:
    for operator, left, right in product((*BINARY, *TEXTUAL), VARIABLES, VARIABLES):
        if operator != "in" or right != "m" or left != "m":
            yield f"{left} {operator} {right}"
    for operator, left, right in product(BINARY, LITERALS, LITERALS):
        yield f"{left} {operator} {right}"
    for operator, left, right in product(BINARY, ("n", "s", "x"), LITERALS):
        yield f"{left} {operator} {right}"
    for operator, value in product(("-", "+", "!", "not "), (*VARIABLES, *LITERALS)):
        yield f"{operator}{value}"
    for operator, left, right in product(("in", *TEXTUAL), ("s", '"abc"', "1"), ("w", '"a"', '["abc", "d"]', "x")):
        yield f"{left} not {operator} {right}"
        yield f"not ({left} {operator} {right})"


def builtins() -> Iterator[str]:
    for name, argument in product(ONE, ARGUMENTS):
        if name not in ("keys", "values") or argument != "m":  # their order is random
            yield f"{name}({argument})"
    for name in ONE:
        yield f"{name}()"
        yield f"{name}(1, 2, 3, 4, 5)"
    for name, values, body in product(
        PREDICATE,
        ("l", "w", "o", "empty", "s", "x", "n", "none_map", "[1, 2]", '"ab"', "1..4"),
        ("true", "# == 2", "# > 1", "#", ".ok", "nil", "1"),
    ):
        if name in ("sortBy", "groupBy") and body in ("true", ".ok") and values == "o":
            continue
        yield f"{name}({values}, {body})"
    for name, left, right in product(
        ("split", "splitAfter", "indexOf", "lastIndexOf", "hasPrefix", "hasSuffix", "repeat", "join", "take", "get"),
        ("s", "u", "e", "w", "l", "m", "x", '"a,b,,c"', "[1, 2, 3]"),
        ('""', '"b"', '","', "1", "2.5", "n", "-1", "nil", '"ö"', "0", '"a"'),
    ):
        yield f"{name}({left}, {right})"
    for name, left, right in product(
        ("bitand", "bitor", "bitxor", "bitnand", "bitshl", "bitshr", "bitushr"),
        ("12", "-12", "n", "int(n)"),
        ("10", "-1", "70", "2", '"a"', "int(f)"),
    ):
        yield f"{name}({left}, {right})"


def random_expressions(count: int, seed: int) -> Iterator[str]:
    """Yield nested expressions of mostly fitting types."""
    chance = random.Random(seed)

    def number(depth: int) -> str:
        if depth <= 0:
            return chance.choice(["1", "2", "3.5", "n", "f", "z", "neg", "input.n", "m.a", "len(s)", "-4"])
        return chance.choice(
            [
                lambda: f"{number(depth - 1)} {chance.choice('+-*/')} {number(depth - 1)}",
                lambda: f"({number(depth - 1)} {chance.choice(['+', '-', '**', '%'])} {number(depth - 1)})",
                lambda: f"sum({numbers(depth - 1)})",
                lambda: f"max({number(depth - 1)}, {number(depth - 1)})",
                lambda: f"len({numbers(depth - 1)})",
                lambda: f"int({number(depth - 1)})",
                lambda: f"reduce({numbers(depth - 1)}, #acc + #, {number(depth - 1)})",
                lambda: f"({condition(depth - 1)} ? {number(depth - 1)} : {number(depth - 1)})",
                lambda: f"(input.gone ?? {number(depth - 1)})",
                lambda: f"{numbers(depth - 1)}[0]",
                lambda: f"round({number(depth - 1)})",
            ]
        )()

    def numbers(depth: int) -> str:
        if depth <= 0:
            return chance.choice(["l", "[1, 2.5, 3]", "1..4", "[n, f]", "empty", "input.list"])
        return chance.choice(
            [
                lambda: f"map({numbers(depth - 1)}, # * {number(depth - 1)})",
                lambda: f"filter({numbers(depth - 1)}, # > {number(depth - 1)})",
                lambda: f"sort({numbers(depth - 1)})",
                lambda: f"concat({numbers(depth - 1)}, {numbers(depth - 1)})",
                lambda: f"map(o, .n + {number(depth - 1)})",
                lambda: f"[{number(depth - 1)}, {number(depth - 1)}]",
                lambda: f"reverse({numbers(depth - 1)})",
                lambda: f"uniq({numbers(depth - 1)})",
                lambda: f"{numbers(depth - 1)}[1:]",
            ]
        )()

    def string(depth: int) -> str:
        if depth <= 0:
            return chance.choice(["s", "u", '"x"', "e", "input.kind", "o[0].name", "`r`"])
        return chance.choice(
            [
                lambda: f"({string(depth - 1)} + {string(depth - 1)})",
                lambda: f"upper({string(depth - 1)})",
                lambda: f"string({number(depth - 1)})",
                lambda: f"string({numbers(depth - 1)})",
                lambda: f"join(map(o, .name), {string(depth - 1)})",
                lambda: f"replace({string(depth - 1)}, {string(0)}, {string(0)})",
                lambda: f"({condition(depth - 1)} ? {string(depth - 1)} : {string(depth - 1)})",
                lambda: f"toJSON({numbers(depth - 1)})",
                lambda: f"{string(depth - 1)}[{chance.randint(-2, 2)}:]",
                lambda: f"type({number(depth - 1)})",
            ]
        )()

    def condition(depth: int) -> str:
        if depth <= 0:
            return chance.choice(["t", "no", "true", "n > 3", 's == "abc"', "x == nil", "o[0].ok", '"a" in m'])
        return chance.choice(
            [
                lambda: f"{condition(depth - 1)} {chance.choice(['&&', '||', 'and', 'or'])} {condition(depth - 1)}",
                lambda: f"!({condition(depth - 1)})",
                lambda: f"not {condition(depth - 1)}",
                lambda: f"{number(depth - 1)} {chance.choice(['<', '>', '<=', '>=', '==', '!='])} {number(depth - 1)}",
                lambda: (
                    f"{string(depth - 1)} {chance.choice(['contains', 'startsWith', '==', '<'])} {string(depth - 1)}"
                ),
                lambda: f"any({numbers(depth - 1)}, # > {number(depth - 1)})",
                lambda: f"all({numbers(depth - 1)}, {{# < {number(depth - 1)}}})",
                lambda: f"{number(depth - 1)} {chance.choice(['in', 'not in'])} {numbers(depth - 1)}",
                lambda: f"{numbers(depth - 1)} == {numbers(depth - 1)}",
            ]
        )()

    for _ in range(count):
        yield chance.choice([number, numbers, string, condition])(chance.randint(1, 4))


def variables(source: str) -> dict[str, Any]:
    """Return what of the environment an expression may read."""
    if "$env" in source:
        return {"n": ENVIRONMENT["n"]}
    return {name: value for name, value in ENVIRONMENT.items() if re.search(rf"\b{name}\b", source)}


def main() -> None:
    seen = set()
    hand = [line for line in HAND_WRITTEN.read_text().split("\n") if line]
    joined = [
        "'a\nb'",
        "`a\nb`",
        "1 +\n2",
        "map([1],\n  #) // end\n| len()",
        '"a\rb"',
        "  1  ",
        "\t1\n",
        "1\u00a0+ 1",
        "",
    ]
    draw = random.Random(17)
    pairs = [source for source in (*operators(), *builtins()) if draw.random() < KEPT]
    for source in (*hand, *joined, *pairs, *random_expressions(600, 16)):
        if source not in seen:
            seen.add(source)
            case: dict[str, Any] = {"expr": source}
            if env := variables(source):
                case["env"] = env
            print(json.dumps(case, ensure_ascii=False))


if __name__ == "__main__":
    main()
