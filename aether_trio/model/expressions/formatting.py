"""Writes values as Go does: with `%v` for string(), and as its JSON for toJSON().

Text is charged to a budget while it is written, so that a list with many references to one long
string ends early.
"""

from __future__ import annotations

import json
import math
from datetime import datetime, tzinfo
from typing import Final

from aether_trio.model.expressions.budget import EvaluationBudget
from aether_trio.model.expressions.errors import Fault
from aether_trio.model.expressions.layouts import format_duration, format_moment, month_name, weekday_name, zone_text
from aether_trio.model.expressions.values import (
    AnyMap,
    Duration,
    Month,
    NilList,
    Weekday,
    deeper,
    described,
    sized,
    utf8,
)

MOMENT: Final = "2006-01-02 15:04:05.999999999 -0700 MST"
RFC3339: Final = "2006-01-02T15:04:05.999999999Z07:00"
_JSON_ESCAPES: Final = {
    ord("<"): "\\u003c",
    ord(">"): "\\u003e",
    ord("&"): "\\u0026",
    0x2028: "\\u2028",
    0x2029: "\\u2029",
}


def _digits(number: float) -> tuple[str, int]:
    """Return the shortest decimal digits of a positive float, and where its point is."""
    mantissa, _, exponent = repr(number).partition("e")
    whole, _, fraction = mantissa.partition(".")
    digits = (whole + fraction).lstrip("0")
    point = len(whole) + int(exponent or 0) - (len(whole + fraction) - len(digits))
    return digits.rstrip("0") or "0", point


def _fixed(digits: str, point: int) -> str:
    if point <= 0:
        return f"0.{'0' * -point}{digits}"
    if point >= len(digits):
        return digits + "0" * (point - len(digits))
    return f"{digits[:point]}.{digits[point:]}"


def _scientific(digits: str, point: int, width: int) -> str:
    exponent = point - 1
    fraction = f".{digits[1:]}" if len(digits) > 1 else ""
    return f"{digits[0]}{fraction}e{'-' if exponent < 0 else '+'}{abs(exponent):0{width}d}"


def float_text(number: float) -> str:
    """Return a float as Go prints it: 5, 0.5, 1e+06, +Inf, NaN."""
    if math.isnan(number):
        return "NaN"
    if math.isinf(number):
        return "+Inf" if number > 0 else "-Inf"
    sign = "-" if math.copysign(1.0, number) < 0 else ""
    if number == 0:
        return f"{sign}0"
    digits, point = _digits(abs(number))
    if -4 <= point - 1 < 6:
        return sign + _fixed(digits, point)
    return sign + _scientific(digits, point, 2)


def _json_float(number: float) -> str:
    if math.isnan(number) or math.isinf(number):
        raise Fault(f"{float_text(number)} has no JSON")
    sign = "-" if math.copysign(1.0, number) < 0 else ""
    if number == 0:
        return f"{sign}0"
    digits, point = _digits(abs(number))
    if 1e-6 <= abs(number) < 1e21:
        return sign + _fixed(digits, point)
    text = _scientific(digits, point, 2)
    return sign + (text[:-2] + text[-1] if text[-4:-1] == "e-0" else text)


def text_of(value: object, budget: EvaluationBudget) -> str:
    """Return a value as Go's `%v` prints it: `[1 2]`, `map[a:1]`, `<nil>`."""
    text = _text(value, budget, 0)
    budget.make(sized(text))
    return text


def _text(value: object, budget: EvaluationBudget, depth: int) -> str:
    kind = type(value)
    if kind is str:
        return value  # type: ignore[return-value]
    if kind is float:
        return float_text(value)  # type: ignore[arg-type]
    if kind is bool:
        return "true" if value else "false"
    if value is None:
        return "<nil>"
    if kind is int:
        return str(value)
    if isinstance(value, list):
        deeper(depth)
        budget.make_list(len(value))
        return f"[{' '.join([_charged(one, budget, depth) for one in value])}]"
    if isinstance(value, dict):
        deeper(depth)
        budget.make_list(len(value))
        items = any_items(value) if isinstance(value, AnyMap) else sorted(value.items())
        return (
            "map[" + " ".join(f"{_text(key, budget, depth)}:{_charged(one, budget, depth)}" for key, one in items) + "]"
        )
    if isinstance(value, datetime):
        return format_moment(value, MOMENT)
    if isinstance(value, Duration):
        return format_duration(value.nanoseconds)
    if isinstance(value, Month):
        return month_name(value.number)
    if isinstance(value, Weekday):
        return weekday_name(value.number)
    if isinstance(value, tzinfo):
        return zone_text(value)
    raise Fault(f"{described(value)} cannot be printed")


def _charged(value: object, budget: EvaluationBudget, depth: int) -> str:
    text = _text(value, budget, depth + 1)
    budget.make(len(text))
    return text


def any_items(value: AnyMap) -> list[tuple[object, object]]:
    """Return the items of a map in Go's order: by the type of the key, then by key."""
    ranks = {type(None): 0, int: 1, float: 2, bool: 3, str: 4}
    items = [(kind, key, one) for (kind, key), one in value.exact.items()]
    return [
        (key, one)
        for _, key, one in sorted(items, key=lambda item: (ranks.get(item[0], 5), str(item[0]), _order(item[1])))
    ]


def _order(key: object) -> tuple[int, float, str]:
    if isinstance(key, (int, float)):
        return (0, float(key), "")
    return (1, 0.0, str(key))


def json_of(value: object, budget: EvaluationBudget) -> str:
    """Return a value as JSON with two spaces of indentation, its keys sorted."""
    text = _json(value, budget, 0)
    budget.make(sized(text))
    return text


def _json(value: object, budget: EvaluationBudget, depth: int) -> str:
    kind = type(value)
    if kind is str:
        return json_string(value)  # type: ignore[arg-type]
    if kind is float:
        return _json_float(value)  # type: ignore[arg-type]
    if kind is bool:
        return "true" if value else "false"
    if value is None or kind is NilList:
        return "null"
    if kind is int:
        return str(value)
    if isinstance(value, AnyMap):
        raise Fault("a map of groupBy() or fromPairs() has no JSON")
    if isinstance(value, list):
        deeper(depth)
        budget.make_list(len(value))
        return _block("[", [_charged_json(one, budget, depth) for one in value], "]", budget, depth)
    if isinstance(value, dict):
        deeper(depth)
        budget.make_list(len(value))
        pairs = [f"{json_string(key)}: {_charged_json(one, budget, depth)}" for key, one in sorted(value.items())]
        return _block("{", pairs, "}", budget, depth)
    if isinstance(value, datetime):
        return json_string(format_moment(value, RFC3339))
    if isinstance(value, Duration):
        return str(value.nanoseconds)
    if isinstance(value, (Month, Weekday)):
        return str(value.number)
    if isinstance(value, tzinfo):
        return "{}"
    raise Fault(f"{described(value)} has no JSON")


def _charged_json(value: object, budget: EvaluationBudget, depth: int) -> str:
    text = _json(value, budget, depth + 1)
    budget.make(len(text))
    return text


def _block(opening: str, parts: list[str], closing: str, budget: EvaluationBudget, depth: int) -> str:
    if not parts:
        return opening + closing
    indent = "  " * (depth + 1)
    budget.make(len(parts) * len(indent))
    return f"{opening}\n{indent}" + f",\n{indent}".join(parts) + f"\n{'  ' * depth}{closing}"


def json_string(text: str) -> str:
    """Return a string as Go's JSON, with the characters of HTML escaped."""
    text = utf8(text).decode()
    return json.dumps(text, ensure_ascii=False).translate(_JSON_ESCAPES)
