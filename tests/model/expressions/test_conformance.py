"""What expr-lang v1.17.7 answered, value and type (recorder/main.go records it)."""

from __future__ import annotations

import json
import re
from collections import Counter
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from typing import Any

import pytest

from aether_trio.model.expressions import Duration, ExpressionError, compile_expression
from aether_trio.model.expressions.checker import BUILTINS
from aether_trio.model.expressions.layouts import zone_text
from aether_trio.model.expressions.values import Month, Weekday
from tests.model.expressions.patterns import search_for

ROWS = [json.loads(line) for line in Path(__file__).with_name("rows.jsonl").read_text().splitlines()]

DEVIATIONS = {
    "3 == findLastIndex([1, 2, 1, 1], # == 1)": "compares 3 with the last index",
    "groupBy(mix, #)": "a dict has one of the keys 1.0 and true",
    "groupBy([1, 1.0], #)": "a dict has one of the keys 1 and 1.0",
}
"""The rows whose results differ on purpose."""

CALLED_NOTHING = re.compile(r"cannot call (nil|non-function)")
"""Errors at run time there that are errors when compiled here: the function does not exist."""


def moment(value: datetime) -> str:
    text = value.isoformat().replace("+00:00", "Z")
    return re.sub(r"(\.\d*?)0+(?=[Z+-])", r"\1", text)


def shape(value: object) -> object:
    """Return a value of ours with its types, comparable with `recorded`."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return value
    if isinstance(value, int):
        return ("int", value)
    if isinstance(value, float):
        return ("float", repr(value))
    if isinstance(value, list):
        return [shape(one) for one in value]
    if isinstance(value, dict):
        return {repr(shape(key)): shape(one) for key, one in value.items()}
    if isinstance(value, datetime):
        return ("time", moment(value))
    if isinstance(value, Duration):
        return ("duration", value.nanoseconds)
    if isinstance(value, Month | Weekday):
        return (f"time.{type(value).__name__}", value.number)
    assert isinstance(value, tzinfo)
    return ("*time.Location", zone_text(value))


FLOATS = {"NaN": "nan", "+Inf": "inf", "-Inf": "-inf"}


def recorded(value: Any) -> object:
    """Return a recorded value with its types."""
    if isinstance(value, list):
        return [recorded(one) for one in value]
    if not isinstance(value, dict):
        return shape(value)
    if "$" not in value:
        return {repr(key): recorded(one) for key, one in value.items()}
    kind, what = value["$"], value["v"]
    if kind == "map":
        return {repr(recorded(key)): recorded(one) for key, one in what}
    if kind in ("uint8", "int64"):  # both are int here
        return ("int", int(what))
    return ("float", FLOATS[what]) if kind == "float" else (kind, what)


def answer(row: dict[str, Any]) -> tuple[str, object]:
    env = json.loads(json.dumps(row.get("env", {})), parse_int=float)
    before = json.dumps(env)
    try:
        expression = compile_expression(row["expr"], regex=search_for)
    except ExpressionError as error:
        return "compile", error
    try:
        result = expression.evaluate(env, now=lambda: datetime(2026, 1, 2, tzinfo=UTC))
    except ExpressionError as error:
        return "run", error
    assert json.dumps(env) == before
    return "result", shape(result)


def test_there_are_rows_of_every_builtin_and_of_both_kinds_of_failure() -> None:
    assert len(ROWS) > 3000
    succeeding = [row["expr"] for row in ROWS if "out" in row]
    for name in BUILTINS:
        assert sum(f"{name}(" in expression for expression in succeeding) >= 3, name
    assert Counter(row.get("fails") for row in ROWS).keys() == {None, "compile", "run"}


@pytest.mark.parametrize("part", range(8))
def test_answers_as_expr_does(part: int) -> None:
    wrong = []
    for row in ROWS[part::8]:
        if row["expr"] in DEVIATIONS:
            continue
        phase, got = answer(row)
        if "out" in row:
            right = phase == "result" and got == recorded(row["out"])
        else:
            early = phase == "compile" and CALLED_NOTHING.search(row["error"]) is not None
            right = phase == row["fails"] or early
        if not right:
            wrong.append((row, phase, got))
    assert not wrong, "\n".join(f"{row}\n    {phase}: {got}" for row, phase, got in wrong[:20])


def test_a_deviation_is_still_one() -> None:
    for row in ROWS:
        if row["expr"] in DEVIATIONS:
            phase, got = answer(row)
            assert phase == "result"
            assert "fails" in row or got != recorded(row["out"])
