"""The builtins without predicates, as functions of a budget and their arguments.

Those with predicates (filter, map, reduce ...) are a part of the compiler, as is now().
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from collections.abc import Callable
from datetime import UTC, datetime, tzinfo
from functools import cmp_to_key
from typing import Any, Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from aether_trio.model.expressions import layouts
from aether_trio.model.expressions.budget import EvaluationBudget
from aether_trio.model.expressions.errors import Fault
from aether_trio.model.expressions.formatting import any_items, json_of, text_of
from aether_trio.model.expressions.lexer import SPACES
from aether_trio.model.expressions.operators import fetch, key_text, scan
from aether_trio.model.expressions.values import (
    AnyMap,
    Duration,
    MapEntries,
    MapEntry,
    Month,
    NilList,
    Weekday,
    deeper,
    described,
    equal,
    from_utf8,
    less,
    sized,
    to_int,
    to_text,
    truncated,
    type_name,
    utf8,
    wrap,
)

_INT: Final = re.compile(r"[+-]?[0-9]{1,400}")
_FLOAT: Final = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_HEX_FLOAT: Final = re.compile(r"[+-]?0[xX]([0-9a-fA-F]+\.?[0-9a-fA-F]*|\.[0-9a-fA-F]+)[pP][+-]?[0-9]+")
_UNDERSCORE: Final = re.compile(r"(?<=[0-9a-fA-FxX])_(?=[0-9a-fA-F])")
_SPECIAL_FLOAT: Final = re.compile(r"[+-]?inf(inity)?|nan", re.IGNORECASE)
_MOST_REPEATS: Final = 1_000_000
_DATE_LAYOUTS: Final = (
    "2006-01-02",
    "15:04:05",
    "2006-01-02 15:04:05",
    "2006-01-02T15:04:05Z07:00",
    "02 Jan 06 15:04 MST",
    "Monday, 02-Jan-06 15:04:05 MST",
    "Mon, 02 Jan 2006 15:04:05 MST",
)


def _refuse(name: str, value: object) -> Fault:
    return Fault(f"{name}() does not take {described(value)}")


def _text(budget: EvaluationBudget, text: str) -> str:
    budget.make(sized(text))
    return text


def _list(name: str, value: object) -> list[object]:
    if isinstance(value, list):
        return value
    raise _refuse(name, value)


# Numbers and types.


def _len(budget: EvaluationBudget, value: object) -> int:
    if isinstance(value, (list, dict, str)):
        return len(value)
    raise _refuse("len", value)


def _type(budget: EvaluationBudget, value: object) -> str:
    return type_name(value)


def _abs(budget: EvaluationBudget, value: object) -> object:
    if type(value) is float:
        return -value if value < 0 else value
    if type(value) is int:
        return wrap(-value) if value < 0 else value
    raise _refuse("abs", value)


def _rounding(name: str, rounded: Callable[[float], float]) -> Callable[[EvaluationBudget, object], float]:
    def run(budget: EvaluationBudget, value: object) -> float:
        if type(value) is int:
            return float(value)
        if type(value) is not float:
            raise _refuse(name, value)
        if not math.isfinite(value) or value == 0 or abs(value) >= 2**53:
            return value
        return math.copysign(rounded(value), value)

    return run


def _half_away(value: float) -> float:
    whole = math.trunc(value)
    return float(whole + math.copysign(1, value)) if abs(value - whole) >= 0.5 else float(whole)


def _int(budget: EvaluationBudget, value: object) -> int:
    if type(value) is int:
        return value
    if type(value) is float:
        return truncated(value)
    if type(value) is str:
        if _INT.fullmatch(value) and wrap(int(value)) == int(value):
            return int(value)
        raise Fault(f"the text {value[:40]!r} is no int")
    if isinstance(value, Duration):
        return value.nanoseconds
    if isinstance(value, (Month, Weekday)):
        return value.number
    raise _refuse("int", value)


def _float(budget: EvaluationBudget, value: object) -> float:
    if type(value) is float:
        return value
    if type(value) is int:
        return float(value)
    if type(value) is not str:
        raise _refuse("float", value)
    number: float | None = None
    digits = _UNDERSCORE.sub("", value) if len(value) <= 1000 else ""
    if _FLOAT.fullmatch(digits):
        number = float(digits)
    elif _HEX_FLOAT.fullmatch(digits):
        try:
            number = float.fromhex(digits)
        except (OverflowError, ValueError):
            number = math.inf
    if _SPECIAL_FLOAT.fullmatch(digits):
        number = float(digits)
    elif number is None or math.isinf(number):
        raise Fault(f"the text {value[:40]!r} is no float")
    return number


def _to_string(budget: EvaluationBudget, value: object) -> str:
    return text_of(value, budget)


def _numbers(name: str, budget: EvaluationBudget, values: tuple[object, ...], depth: int = 0) -> list[float]:
    """Return the numbers in some values and the lists within them, as floats."""
    deeper(depth)
    budget.spend(len(values))
    found: list[float] = []
    for value in values:
        if isinstance(value, list):
            found += _numbers(name, budget, tuple(value), depth + 1)
        elif type(value) is int or type(value) is float:
            found.append(float(value))
        elif isinstance(value, Duration):
            found.append(float(value.nanoseconds))
        elif isinstance(value, (Month, Weekday)):
            found.append(float(value.number))
        else:
            raise _refuse(name, value)
    return found


def _mean(budget: EvaluationBudget, *values: object) -> float:
    numbers = _numbers("mean", budget, values)
    total = 0.0
    for number in numbers:
        total += number
    return total / len(numbers) if numbers else 0.0


def _median(budget: EvaluationBudget, *values: object) -> float:
    numbers = sorted(_numbers("median", budget, values), key=lambda number: (not math.isnan(number), number))
    if not numbers:
        return 0.0
    middle = len(numbers) // 2
    return numbers[middle] if len(numbers) % 2 else (numbers[middle - 1] + numbers[middle]) / 2


def _extreme(name: str, beats: Callable[[object, object], bool]) -> Callable[..., object]:
    """Return min or max: of numbers, and of numbers in lists."""

    def run(budget: EvaluationBudget, *values: object) -> object:
        return extreme(budget, values, 0)

    def extreme(budget: EvaluationBudget, values: tuple[object, ...], depth: int) -> object:
        deeper(depth)
        best: object = None
        for value in values:
            if isinstance(value, list):
                budget.spend(len(value))
                for element in value:
                    number = extreme(budget, (element,), depth + 1) if isinstance(element, list) else element
                    if type(number) is not int and type(number) is not float:
                        raise _refuse(name, number)
                    if best is None or beats(number, best):
                        best = number
            elif isinstance(value, (int, float, Duration, Month, Weekday)) and type(value) is not bool:
                if best is None or beats(value, best):
                    best = value
            elif len(values) == 1:
                return value
            else:
                raise _refuse(name, value)
        return best

    return run


def _bits(name: str, run: Callable[[int, int], int]) -> Callable[[EvaluationBudget, object, object], int]:
    def bits(budget: EvaluationBudget, left: object, right: object) -> int:
        return wrap(run(_exact_int(name, left), _exact_int(name, right)))

    return bits


def _exact_int(name: str, value: object) -> int:
    if type(value) is int:
        return value
    hint = ": use int()" if type(value) is float else ""
    raise Fault(f"{name}() takes ints, not {described(value)}{hint}")


def _shift(count: int) -> int:
    if count < 0:
        raise Fault(f"a shift by {count} bits is not possible")
    return min(count, 64)


# Strings.


def _trim(budget: EvaluationBudget, text: object, cut: object = SPACES) -> str:
    return to_text(text).strip(to_text(cut))


def _trim_prefix(budget: EvaluationBudget, text: object, prefix: object = " ") -> str:
    return to_text(text).removeprefix(to_text(prefix))


def _trim_suffix(budget: EvaluationBudget, text: object, suffix: object = " ") -> str:
    return to_text(text).removesuffix(to_text(suffix))


def _upper(budget: EvaluationBudget, text: object) -> str:
    value = to_text(text)
    if value.isascii():
        return _text(budget, value.upper())
    budget.spend(len(value) >> 3)
    return _text(budget, "".join(map(_upper_character, value)))


def _upper_character(character: str) -> str:
    """Return the capital of a character, or itself where that would be two."""
    for found in (character.upper(), character.title()):
        if len(found) == 1:
            return found
    return character


def _lower(budget: EvaluationBudget, text: object) -> str:
    value = to_text(text)
    if value.isascii():
        return _text(budget, value.lower())
    budget.spend(len(value) >> 3)
    return _text(budget, "".join(character.lower()[0] for character in value))


def _split(budget: EvaluationBudget, text: object, separator: object, most: object = -1) -> list[object]:
    return _parts(budget, to_text(text), to_text(separator), to_int(most), keep=False)


def _split_after(budget: EvaluationBudget, text: object, separator: object, most: object = -1) -> list[object]:
    return _parts(budget, to_text(text), to_text(separator), to_int(most), keep=True)


def _parts(budget: EvaluationBudget, text: str, separator: str, most: int, *, keep: bool) -> list[object]:
    if most == 0:
        return NilList()
    scan(text, budget)
    count = text.count(separator) + 1 if separator else len(text)
    count = count if most < 0 else min(count, most)
    budget.make_list(count)
    budget.make(sized(text))
    parts: list[str]
    if separator:
        parts = text.split(separator, count - 1)
        if keep:
            parts = [part + separator for part in parts[:-1]] + parts[-1:]
    else:
        parts = [*text[: count - 1], text[count - 1 :]] if count else []
    return list[object](parts)


def _replace(budget: EvaluationBudget, text: object, old: object, new: object, most: object = -1) -> str:
    value, before, after, limit = to_text(text), to_text(old), to_text(new), to_int(most)
    scan(value, budget)
    count = value.count(before)
    count = count if limit < 0 else min(count, limit)
    budget.make(sized(value) + count * sized(after))
    return value.replace(before, after, count)


def _repeat(budget: EvaluationBudget, text: object, count: object) -> str:
    value, times = to_text(text), to_int(count)
    if times < 0:
        raise Fault(f"repeat() cannot repeat a text {times} times")
    if times > _MOST_REPEATS:
        raise Fault(f"repeat() repeats at most {_MOST_REPEATS} times")
    budget.make(sized(value) * times)
    return value * times


def _join(budget: EvaluationBudget, values: object, glue: object = "") -> str:
    parts = _list("join", values)
    between = to_text(glue)
    budget.spend(len(parts))
    texts = [to_text(part) for part in parts]
    budget.make(sum(map(sized, texts)) + len(texts) * sized(between))
    return between.join(texts)


def _index_of(budget: EvaluationBudget, text: object, part: object) -> int:
    value, wanted = scan(to_text(text), budget), to_text(part)
    return _in_bytes(value, value.find(wanted))


def _last_index_of(budget: EvaluationBudget, text: object, part: object) -> int:
    value, wanted = scan(to_text(text), budget), to_text(part)
    found = value[::-1].find(wanted[::-1])  # linear, unlike rfind
    return _in_bytes(value, found if found < 0 else len(value) - found - len(wanted))


def _in_bytes(text: str, index: int) -> int:
    return index if index <= 0 or text.isascii() else len(utf8(text[:index]))


def _has_prefix(budget: EvaluationBudget, text: object, part: object) -> bool:
    return to_text(text).startswith(to_text(part))


def _has_suffix(budget: EvaluationBudget, text: object, part: object) -> bool:
    return to_text(text).endswith(to_text(part))


# JSON and base64.


def _to_json(budget: EvaluationBudget, value: object) -> str:
    return json_of(value, budget)


def _json_number(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(text)
    return number


def _no_constant(text: str) -> float:
    raise ValueError(text)


def _whole(value: object) -> object:
    """Return a value of JSON without lone surrogates, which an escape can spell."""
    if isinstance(value, str):
        return utf8(value).decode()
    if isinstance(value, list):
        return [_whole(one) for one in value]
    if isinstance(value, dict):
        return {utf8(key).decode(): _whole(one) for key, one in value.items()}
    return value


def _from_json(budget: EvaluationBudget, text: object) -> object:
    value = to_text(text)
    budget.make(8 * sized(value))
    try:
        found: object = json.loads(
            utf8(value).decode(), parse_int=_json_number, parse_float=_json_number, parse_constant=_no_constant
        )
        return _whole(found) if "\\ud" in value or "\\uD" in value else found
    except (ValueError, RecursionError):
        raise Fault("the text is no JSON") from None


def _to_base64(budget: EvaluationBudget, text: object) -> str:
    return _text(budget, base64.b64encode(utf8(to_text(text))).decode())


def _from_base64(budget: EvaluationBudget, text: object) -> str:
    value = to_text(text).replace("\r", "").replace("\n", "")
    try:
        return _text(budget, from_utf8(base64.b64decode(value, validate=True)))
    except (binascii.Error, ValueError):
        raise Fault("the text is no base64") from None


# Time.


def _duration(budget: EvaluationBudget, text: object) -> Duration:
    return Duration(layouts.parse_duration(to_text(text)))


def _date(budget: EvaluationBudget, *values: object) -> datetime:
    zone: tzinfo | None = None
    if isinstance(values[0], tzinfo):
        zone, values = values[0], values[1:]
    if not values:
        raise Fault("date() needs a text")
    text = to_text(values[0])
    if len(values) == 2:
        return layouts.parse_moment(text, to_text(values[1]), zone or UTC)
    if len(values) == 3:
        return layouts.parse_moment(text, to_text(values[1]), _timezone(budget, values[2]))
    for layout in _DATE_LAYOUTS:
        try:
            return layouts.parse_moment(text, layout, zone or UTC)
        except Fault:
            continue
    raise Fault(f"the text {text[:40]!r} is no moment such as 2006-01-02 15:04:05")


def _timezone(budget: EvaluationBudget, name: object) -> tzinfo:
    key = to_text(name)
    if key in ("", "UTC"):
        return UTC
    try:
        if len(key) > 64 or key == "Local":
            raise ValueError(key)
        return ZoneInfo(key)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise Fault(f"there is no time zone {key[:40]!r}: write one such as Europe/Berlin") from None


# Lists and maps.


def _at(index: int) -> Callable[[EvaluationBudget, object], object]:
    def run(budget: EvaluationBudget, value: object) -> object:
        if isinstance(value, AnyMap):
            return value.at(index)
        return fetch(value, index, budget) if isinstance(value, (list, str)) and value else None

    return run


def _get(budget: EvaluationBudget, base: object, key: object) -> object:
    if isinstance(base, AnyMap):
        return base.at(key) if base.has(key) else None
    if isinstance(base, dict):
        return base.get(key_text(key))
    if isinstance(base, (list, str)):
        whole: list[object] | bytes = base if isinstance(base, list) else utf8(scan(base, budget))
        index = to_int(key)
        return whole[index] if -len(whole) <= index < len(whole) else None
    return None


def _take(budget: EvaluationBudget, values: object, count: object) -> list[object]:
    elements = _list("take", values)
    if isinstance(count, Duration):
        number = count.nanoseconds
    elif isinstance(count, (Month, Weekday)):
        number = count.number
    else:
        number = _exact_int("take", count)
    if number < 0:
        raise Fault(f"take() cannot take {number} elements")
    number = min(number, len(elements))
    budget.make_list(number)
    return type(elements)(elements[:number])


def _items(name: str, value: object) -> list[tuple[object, object]]:
    """Return the items of a map, ordered by key, however it was stored."""
    if isinstance(value, AnyMap):
        return any_items(value)
    if isinstance(value, dict):
        return sorted(value.items())
    raise _refuse(name, value)


def _keys(budget: EvaluationBudget, value: object) -> list[object]:
    items = _items("keys", value)
    budget.make_list(len(items))
    return [key for key, _ in items]


def _values(budget: EvaluationBudget, value: object) -> list[object]:
    items = _items("values", value)
    budget.make_list(len(items))
    return [one for _, one in items]


def _to_pairs(budget: EvaluationBudget, value: object) -> list[object]:
    items = _items("toPairs", value)
    budget.make_list(3 * len(items))
    return MapEntries(MapEntry(item) for item in items)


def _from_pairs(budget: EvaluationBudget, value: object) -> AnyMap:
    pairs = _list("fromPairs", value)
    budget.make_list(2 * len(pairs))
    made = AnyMap()
    for pair in pairs:
        if not isinstance(pair, list) or len(pair) != 2:
            raise Fault("fromPairs() takes lists of a key and a value")
        made.put(pair[0], pair[1])
    return made


def _reverse(budget: EvaluationBudget, value: object) -> list[object]:
    elements = _list("reverse", value)
    budget.make_list(len(elements))
    return list[object](elements[::-1])


def _uniq(budget: EvaluationBudget, value: object) -> list[object]:
    elements = _list("uniq", value)
    budget.make_list(len(elements))
    found: list[object] = []
    texts: set[str] = set()
    for element in elements:
        if type(element) is str:
            if element not in texts:
                texts.add(element)
                found.append(element)
            continue
        budget.spend(len(found) - len(texts))
        for other in found:
            if type(other) is not str and equal(element, other, budget):
                break
        else:
            found.append(element)
    return found


def _concat(budget: EvaluationBudget, *values: object) -> list[object]:
    made: list[object] = []
    for value in values:
        elements = _list("concat", value)
        budget.make_list(len(elements))
        made += elements
    return made or NilList()


def _flatten(budget: EvaluationBudget, value: object) -> list[object]:
    made: list[object] = []
    _flatten_into(made, _list("flatten", value), budget, 0)
    return made


def _flatten_into(made: list[object], values: list[object], budget: EvaluationBudget, depth: int) -> None:
    deeper(depth)
    budget.make_list(len(values))
    for value in values:
        if isinstance(value, list):
            _flatten_into(made, value, budget, depth + 1)
        else:
            made.append(value)


def _sort(budget: EvaluationBudget, value: object, order: object = "asc") -> list[object]:
    descending = is_descending(order)
    if not isinstance(value, list) or type(value) is MapEntries:
        return NilList()  # as expr: what it cannot sort is empty
    return sorted_by(budget, value, value, descending=descending)


def is_descending(order: object) -> bool:
    """Return whether an order is `desc`; faults for another than `asc`."""
    if order in ("asc", "desc"):
        return order == "desc"
    raise Fault('the order of a sort is "asc" or "desc"')


def sorted_by(
    budget: EvaluationBudget, elements: list[object], keys: list[object], *, descending: bool
) -> list[object]:
    """Return elements in the order of their keys; those with equal keys stay in place."""
    budget.spend(len(elements) * len(elements).bit_length())
    budget.make_list(len(elements))
    if len(kinds := set(map(type, keys))) == 1 and kinds <= {str, int, float}:
        return [elements[at] for at in sorted(range(len(elements)), key=keys.__getitem__, reverse=descending)]  # type: ignore[arg-type]

    def compare(left: int, right: int) -> int:
        one, other = (keys[right], keys[left]) if descending else (keys[left], keys[right])
        return -1 if less(one, other) else 1 if less(other, one) else 0

    return [elements[index] for index in sorted(range(len(elements)), key=cmp_to_key(compare))]


FUNCTIONS: Final[dict[str, Callable[..., Any]]] = {
    "len": _len,
    "type": _type,
    "abs": _abs,
    "ceil": _rounding("ceil", math.ceil),
    "floor": _rounding("floor", math.floor),
    "round": _rounding("round", _half_away),
    "int": _int,
    "float": _float,
    "string": _to_string,
    "trim": _trim,
    "trimPrefix": _trim_prefix,
    "trimSuffix": _trim_suffix,
    "upper": _upper,
    "lower": _lower,
    "split": _split,
    "splitAfter": _split_after,
    "replace": _replace,
    "repeat": _repeat,
    "join": _join,
    "indexOf": _index_of,
    "lastIndexOf": _last_index_of,
    "hasPrefix": _has_prefix,
    "hasSuffix": _has_suffix,
    "max": _extreme("max", lambda number, best: less(best, number)),
    "min": _extreme("min", less),
    "mean": _mean,
    "median": _median,
    "toJSON": _to_json,
    "fromJSON": _from_json,
    "toBase64": _to_base64,
    "fromBase64": _from_base64,
    "duration": _duration,
    "date": _date,
    "timezone": _timezone,
    "first": _at(0),
    "last": _at(-1),
    "get": _get,
    "take": _take,
    "keys": _keys,
    "values": _values,
    "toPairs": _to_pairs,
    "fromPairs": _from_pairs,
    "reverse": _reverse,
    "uniq": _uniq,
    "concat": _concat,
    "flatten": _flatten,
    "sort": _sort,
    "bitand": _bits("bitand", lambda left, right: left & right),
    "bitor": _bits("bitor", lambda left, right: left | right),
    "bitxor": _bits("bitxor", lambda left, right: left ^ right),
    "bitnand": _bits("bitnand", lambda left, right: left & ~right),
    "bitshl": _bits("bitshl", lambda left, right: left << _shift(right)),
    "bitshr": _bits("bitshr", lambda left, right: left >> _shift(right)),
    "bitushr": _bits("bitushr", lambda left, right: (left % (1 << 64)) >> _shift(right)),
    "bitnot": lambda budget, value: ~_exact_int("bitnot", value),
}
"""The builtins by name."""

SPECIAL: Final = frozenset({"concat", "split", "splitAfter", "sort", "toPairs", "fromPairs", "groupBy"})
"""The builtins whose results may have other types than those of JSON."""
