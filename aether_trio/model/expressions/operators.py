"""The operators on values whose types are known only when an expression runs."""

from __future__ import annotations

import math
from datetime import datetime, tzinfo
from typing import Final

from aether_trio.model.expressions.budget import EvaluationBudget
from aether_trio.model.expressions.errors import Fault
from aether_trio.model.expressions.values import (
    AnyMap,
    Duration,
    between,
    described,
    equal,
    from_utf8,
    is_nil,
    later,
    sized,
    to_float,
    to_int,
    to_text,
    utf8,
    wrap,
)

SCANNED: Final = 8
"""How many bits a length of text is shifted to count as operations: 256 characters are one."""


def scan(text: str, budget: EvaluationBudget) -> str:
    """Take the operations for reading through a text; return it."""
    if len(text) >> SCANNED:
        budget.spend(len(text) >> SCANNED)
    return text


def _mismatch(left: object, operator: str, right: object) -> Fault:
    return Fault(f"'{operator}' does not take {described(left)} and {described(right)}")


def plus(left: object, right: object, budget: EvaluationBudget) -> object:
    """Return a sum of numbers, strings, durations, or a moment and a duration."""
    kind, other = type(left), type(right)
    if kind is str and other is str:
        text: str = left + right  # type: ignore[operator]
        budget.make(sized(text))
        return text
    if kind is int and other is int:
        return wrap(left + right)  # type: ignore[operator]
    if kind in _NUMBERS and other in _NUMBERS:
        return float(left) + float(right)  # type: ignore[arg-type]
    if isinstance(left, datetime) and isinstance(right, Duration):
        return later(left, right)
    if isinstance(left, Duration) and isinstance(right, datetime):
        return later(right, left)
    if isinstance(left, Duration) and isinstance(right, Duration):
        return Duration(wrap(left.nanoseconds + right.nanoseconds))
    raise _mismatch(left, "+", right)


_NUMBERS: Final = frozenset({int, float})


def minus(left: object, right: object, budget: EvaluationBudget) -> object:
    """Return a difference of numbers, durations or moments."""
    kind, other = type(left), type(right)
    if kind is int and other is int:
        return wrap(left - right)  # type: ignore[operator]
    if kind in _NUMBERS and other in _NUMBERS:
        return float(left) - float(right)  # type: ignore[arg-type]
    if isinstance(left, datetime) and isinstance(right, datetime):
        return between(left, right)
    if isinstance(left, datetime) and isinstance(right, Duration):
        return later(left, Duration(wrap(-right.nanoseconds)))
    if isinstance(left, Duration) and isinstance(right, Duration):
        return Duration(wrap(left.nanoseconds - right.nanoseconds))
    raise _mismatch(left, "-", right)


def times(left: object, right: object, budget: EvaluationBudget) -> object:
    """Return a product of numbers or durations."""
    kind, other = type(left), type(right)
    if kind is int and other is int:
        return wrap(left * right)  # type: ignore[operator]
    if kind in _NUMBERS and other in _NUMBERS:
        return float(left) * float(right)  # type: ignore[arg-type]
    if Duration in (kind, other):
        one = left.nanoseconds if isinstance(left, Duration) else left
        two = right.nanoseconds if isinstance(right, Duration) else right
        if type(one) is int and type(two) is int:
            return Duration(wrap(one * two))
        if type(one) in _NUMBERS and type(two) in _NUMBERS:
            return float(one) * float(two)  # type: ignore[arg-type]
    raise _mismatch(left, "*", right)


def divide(left: object, right: object, budget: EvaluationBudget) -> float:
    """Return a quotient, always a float; by zero it is an infinity or NaN."""
    if type(left) not in _NUMBERS or type(right) not in _NUMBERS:
        raise _mismatch(left, "/", right)
    one, two = float(left), float(right)  # type: ignore[arg-type]
    if two == 0:
        if one == 0 or math.isnan(one):
            return math.nan
        return math.copysign(math.inf, one) * math.copysign(1.0, two)
    return one / two


def modulo(left: object, right: object, budget: EvaluationBudget) -> int:
    """Return a remainder of ints, with the sign of the left one."""
    if type(left) is not int or type(right) is not int:
        raise Fault(
            f"'%' takes ints, not {described(left)} and {described(right)}: numbers of JSON need int()"
            if float in (type(left), type(right))
            else f"'%' does not take {described(left)} and {described(right)}"
        )
    if right == 0:
        raise Fault("an int cannot be divided by zero")
    rest = abs(left) % abs(right)
    return -rest if left < 0 else rest


def power(left: object, right: object, budget: EvaluationBudget) -> float:
    """Return a power, always a float."""
    return _power(to_float(left), to_float(right))


def _power(base: float, exponent: float) -> float:
    """Compute a power as Go does, by squaring, so that the last digit is the same."""
    if not math.isfinite(base) or not math.isfinite(exponent) or 0 in (base, exponent):
        odd = abs(exponent) < 2**53 and exponent % 2 == 1
        if base == 0 and exponent < 0:
            return math.copysign(math.inf, base) if odd else math.inf
        return math.pow(base, exponent)
    if exponent in (0.5, -0.5) and base > 0:
        return math.sqrt(base) if exponent > 0 else 1 / math.sqrt(base)
    fraction, whole = math.modf(abs(exponent))
    if fraction and base < 0:
        return math.nan
    if whole >= 1 << 63:
        if abs(base) == 1:
            return 1.0
        return 0.0 if (abs(base) < 1) == (exponent > 0) else math.inf
    value, shift = 1.0, 0
    if fraction:
        if fraction > 0.5:
            fraction, whole = fraction - 1, whole + 1
        value = math.exp(fraction * math.log(base))
    square, power_of_two = math.frexp(base)
    left = int(whole)
    while left:
        if abs(power_of_two) > 1 << 12:
            shift += power_of_two
            break
        if left & 1:
            value *= square
            shift += power_of_two
        square *= square
        power_of_two *= 2
        if square < 0.5:
            square += square
            power_of_two -= 1
        left >>= 1
    if exponent < 0:
        value, shift = 1 / value, -shift
    try:
        return math.ldexp(value, shift)
    except OverflowError:
        return math.copysign(math.inf, value)


def negate(value: object) -> object:
    """Return a number with the other sign."""
    if type(value) is int:
        return wrap(-value)
    if type(value) is float:
        return -value
    raise Fault(f"'-' does not take {described(value)}")


def within(needle: object, whole: object, budget: EvaluationBudget) -> bool:
    """Return whether a value is in a list, or a key in a map."""
    if whole is None:
        return False
    if isinstance(whole, list):
        budget.spend(len(whole))
        return any(equal(one, needle, budget) for one in whole)
    if isinstance(whole, AnyMap):
        return whole.has(needle)
    if isinstance(whole, dict):
        return key_text(needle) in whole
    if isinstance(whole, (datetime, tzinfo)) and isinstance(needle, str):
        return False  # a struct without fields that are seen
    raise Fault(f"'in' does not take {described(whole)} to search in")


def key_text(key: object) -> str:
    """Return a key of a map: a string, and nil is the empty one."""
    if key is None:
        return ""
    if type(key) is str:
        return key
    raise Fault(f"{described(key)} is no key of a map: keys are strings")


def span(left: object, right: object, budget: EvaluationBudget) -> list[object]:
    """Return the ints from one to another, both included."""
    start, stop = to_int(left), to_int(right)
    length = wrap(stop - start + 1)
    if length <= 0:
        return []
    budget.make_list(length)
    return list(range(start, stop + 1))


def fetch(base: object, key: object, budget: EvaluationBudget) -> object:
    """Return an element of a list, the value of a key, or a byte of a string."""
    if isinstance(base, AnyMap):
        return base.at(key)
    if isinstance(base, dict):
        return base.get(key_text(key))
    if base is None:
        raise Fault(f"{_named(key)} cannot be read from nil: write ?. where nil is allowed")
    if isinstance(base, list) or type(base) is str:
        whole: list[object] | bytes = base if isinstance(base, list) else utf8(scan(base, budget))
        index = to_int(key)
        if index < 0:
            index += len(whole)
        if not 0 <= index < len(whole):
            raise Fault(f"the index {index} is out of range: there are {len(whole)} elements")
        return whole[index]
    raise Fault(f"{_named(key)} cannot be read from {described(base)}")


def _named(key: object) -> str:
    return f"'{key[:40]}'" if isinstance(key, str) else "an element"


def cut(whole: object, start: object, stop: object, budget: EvaluationBudget) -> object:
    """Return a part of a list or string; its bounds count from the end if negative."""
    if isinstance(whole, list):
        first, last = _bounds(len(whole), start, stop)
        budget.make_list(last - first)
        part = whole[first:last]
        return part if type(whole) is list else type(whole)(part)
    if type(whole) is str:
        data = utf8(whole)
        first, last = _bounds(len(data), start, stop)
        budget.make(last - first)
        return from_utf8(data[first:last])
    raise Fault(f"{described(whole)} cannot be sliced")


def _bounds(length: int, start: object, stop: object) -> tuple[int, int]:
    last = length if stop is None else to_int(stop)
    first = to_int(start)
    first = max(first + length if first < 0 else first, 0)
    last = min(max(last + length if last < 0 else last, 0), length)
    return min(first, last), last


def contains(left: object, right: object, budget: EvaluationBudget) -> bool:
    """Return whether a string contains another; with nil it does not."""
    if is_nil(left) or is_nil(right):
        return False
    return to_text(right) in scan(to_text(left), budget)


def starts_with(left: object, right: object, budget: EvaluationBudget) -> bool:
    """Return whether a string begins with another; with nil it does not."""
    if is_nil(left) or is_nil(right):
        return False
    return to_text(left).startswith(to_text(right))


def ends_with(left: object, right: object, budget: EvaluationBudget) -> bool:
    """Return whether a string ends with another; with nil it does not."""
    if is_nil(left) or is_nil(right):
        return False
    return to_text(left).endswith(to_text(right))
