"""The functions that every Go template has.

A function takes the meter and its arguments, in which nil is None, and returns its value or raises
RenderFault. `and` and `or` decide which of their arguments are evaluated, so they are part of the
compiler and only their names are here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from aether_trio.model.templates.budget import Meter
from aether_trio.model.templates.errors import RenderFault
from aether_trio.model.templates.escaping import escape_html, escape_javascript, escape_query
from aether_trio.model.templates.formatting import sprint, sprint_one, sprintf, sprintln
from aether_trio.model.templates.values import Uint8, from_bytes, from_data, size_of, to_bytes, type_name

Arguments = list[object]
FunctionBody = Callable[[Meter, Arguments], object]


@dataclass(frozen=True, slots=True)
class TemplateFunction:
    """A function, and how many arguments it takes; `most` None is any number."""

    body: FunctionBody
    least: int
    most: int | None


# Comparison. Numbers of different types are not compared: 1 is an int, a number of JSON a float64.

_KINDS: Final[dict[type, str]] = {
    bool: "bool",
    int: "int",
    Uint8: "uint",
    float: "float",
    complex: "complex",
    str: "string",
}
_ORDERED: Final = frozenset({"int", "uint", "float", "string"})


def _charge_comparison(meter: Meter, first: object, second: object) -> None:
    if isinstance(first, str) and isinstance(second, str):
        meter.charge_text(min(len(first), len(second)))


def _incompatible(first: object, second: object) -> RenderFault:
    hint = ""
    if {type(first), type(second)} == {int, float}:
        hint = "; numbers of data are float64, write 1.0 for 1"
    return RenderFault(f"incompatible types for comparison: {type_name(first)} and {type_name(second)}{hint}")


def _are_integers(first: str | None, second: str | None) -> bool:
    return first in {"int", "uint"} and second in {"int", "uint"}


def _is_equal(meter: Meter, first: object, second: object) -> bool:
    kind, other = _KINDS.get(type(first)), _KINDS.get(type(second))
    if kind != other and not _are_integers(kind, other):
        if first is not None and second is not None:
            raise _incompatible(first, second)
        return False
    if kind is not None:
        _charge_comparison(meter, first, second)
        return first == second
    if first is None or second is None:
        return first is second
    if type(first) is not type(second):
        raise RenderFault(f"non-comparable types {type_name(first)} and {type_name(second)}")
    raise RenderFault(f"non-comparable type {type_name(first)}")


def _eq(meter: Meter, arguments: Arguments) -> bool:
    if len(arguments) < 2:
        raise RenderFault("missing argument for comparison")
    first = arguments[0]
    # Every element is compared up to the first equal one, as its type may be refused.
    return any(_is_equal(meter, first, other) for other in arguments[1:])


def _ne(meter: Meter, arguments: Arguments) -> bool:
    return not _is_equal(meter, arguments[0], arguments[1])


def _is_less(meter: Meter, first: object, second: object) -> bool:
    kind, other = _KINDS.get(type(first)), _KINDS.get(type(second))
    if kind is None or other is None:
        value = first if kind is None else second
        raise RenderFault(f"invalid type for comparison: {type_name(value)}")
    if kind != other and not _are_integers(kind, other):
        raise _incompatible(first, second)
    if isinstance(first, str) and isinstance(second, str):
        _charge_comparison(meter, first, second)
        if first.isascii() and second.isascii():
            return first < second
        return to_bytes(first) < to_bytes(second)
    if kind in _ORDERED and isinstance(first, int | float) and isinstance(second, int | float):
        return first < second
    raise RenderFault(f"invalid type for comparison: {type_name(first)}")


def _lt(meter: Meter, arguments: Arguments) -> bool:
    return _is_less(meter, arguments[0], arguments[1])


def _le(meter: Meter, arguments: Arguments) -> bool:
    first, second = arguments
    return _is_less(meter, first, second) or _is_equal(meter, first, second)


def _gt(meter: Meter, arguments: Arguments) -> bool:
    return not _le(meter, arguments)


def _ge(meter: Meter, arguments: Arguments) -> bool:
    return not _lt(meter, arguments)


def _not(_: Meter, arguments: Arguments) -> bool:
    return not arguments[0]


# Lists, maps and the bytes of strings


def _len(meter: Meter, arguments: Arguments) -> int:
    value = arguments[0]
    if isinstance(value, str):
        meter.charge_text(0 if value.isascii() else len(value))
        return size_of(value)
    if isinstance(value, list | dict):
        return len(value)
    raise RenderFault(f"len of {'nil' if value is None else f'type {type_name(value)}'}")


def _position(index: object, limit: int) -> int:
    """Return an index of a list or string, from 0 to `limit` included."""
    if isinstance(index, bool) or not isinstance(index, int):
        hint = "; indexes are ints" if isinstance(index, float) else ""
        raise RenderFault(f"cannot index slice/array with {type_name(index)}{hint}")
    if not 0 <= index <= limit:
        raise RenderFault(f"index out of range: {index}")
    return index


def _index(meter: Meter, arguments: Arguments) -> object:
    value = arguments[0]
    if value is None:
        raise RenderFault("index of untyped nil")
    for index in arguments[1:]:
        match value:
            case dict():
                if not isinstance(index, str):
                    raise RenderFault(f"a key of a map is a string, not {type_name(index)}")
                value = from_data(value.get(index))
            case list():
                place = _position(index, len(value) - 1)
                value = from_data(value[place])
            case str() if value.isascii():
                value = Uint8(ord(value[_position(index, len(value) - 1)]))
            case str():
                meter.charge_text(len(value))
                raw = to_bytes(value)
                value = Uint8(raw[_position(index, len(raw) - 1)])
            case None:
                raise RenderFault("index of nil")
            case _:
                raise RenderFault(f"can't index item of type {type_name(value)}")
    return value


def _slice(meter: Meter, arguments: Arguments) -> object:
    value, indexes = arguments[0], arguments[1:]
    if value is None:
        raise RenderFault("slice of untyped nil")
    if len(indexes) > 3:
        raise RenderFault(f"too many slice indexes: {len(indexes)}")
    if isinstance(value, str):
        if len(indexes) == 3:
            raise RenderFault("cannot 3-index slice a string")
        meter.charge_text(len(value))
        raw = to_bytes(value)
        start, end, _ = _bounds(indexes, len(raw))
        return from_bytes(raw[start:end])
    if isinstance(value, list):
        start, end, _ = _bounds(indexes, len(value))
        meter.charge_text(end - start)
        return value[start:end]
    raise RenderFault(f"can't slice item of type {type_name(value)}")


def _bounds(indexes: Sequence[object], size: int) -> tuple[int, int, int]:
    bounds = [0, size, size]
    for number, index in enumerate(indexes):
        bounds[number] = _position(index, size)
    start, end, capacity = bounds
    if not start <= end <= capacity:
        raise RenderFault(f"invalid slice index: {start} > {end}" if start > end else f"{end} > {capacity}")
    return start, end, capacity


# Text


def _print(meter: Meter, arguments: Arguments) -> str:
    return sprint(arguments, meter)


def _println(meter: Meter, arguments: Arguments) -> str:
    return sprintln(arguments, meter)


def _printf(meter: Meter, arguments: Arguments) -> str:
    form = arguments[0]
    if not isinstance(form, str):
        raise RenderFault(f"the format is a string, not {type_name(form)}")
    meter.charge_text(len(form))
    return sprintf(form, arguments[1:], meter)


def _text_of(meter: Meter, arguments: Arguments) -> str:
    """Return arguments as html, js and urlquery see them: nil is `<no value>`."""
    if len(arguments) == 1:
        text = "<no value>" if arguments[0] is None else sprint_one(arguments[0], meter)
    else:
        text = sprint(["<no value>" if value is None else value for value in arguments], meter)
    return text


def _html(meter: Meter, arguments: Arguments) -> str:
    return escape_html(_text_of(meter, arguments), meter)


def _js(meter: Meter, arguments: Arguments) -> str:
    return escape_javascript(_text_of(meter, arguments), meter)


def _urlquery(meter: Meter, arguments: Arguments) -> str:
    return escape_query(_text_of(meter, arguments), meter)


def _call(_: Meter, arguments: Arguments) -> object:
    if arguments[0] is None:
        raise RenderFault("call of nil")
    raise RenderFault(f"call of a value of type {type_name(arguments[0])}, which is no function; data have none")


def _in_compiler(_: Meter, arguments: Arguments) -> object:
    raise AssertionError("and, or: the compiler evaluates their arguments one by one")


FUNCTIONS: Final[dict[str, TemplateFunction]] = {
    "and": TemplateFunction(_in_compiler, 1, None),
    "call": TemplateFunction(_call, 1, None),
    "eq": TemplateFunction(_eq, 1, None),
    "ge": TemplateFunction(_ge, 2, 2),
    "gt": TemplateFunction(_gt, 2, 2),
    "html": TemplateFunction(_html, 0, None),
    "index": TemplateFunction(_index, 1, None),
    "js": TemplateFunction(_js, 0, None),
    "le": TemplateFunction(_le, 2, 2),
    "len": TemplateFunction(_len, 1, 1),
    "lt": TemplateFunction(_lt, 2, 2),
    "ne": TemplateFunction(_ne, 2, 2),
    "not": TemplateFunction(_not, 1, 1),
    "or": TemplateFunction(_in_compiler, 1, None),
    "print": TemplateFunction(_print, 0, None),
    "printf": TemplateFunction(_printf, 1, None),
    "println": TemplateFunction(_println, 0, None),
    "slice": TemplateFunction(_slice, 1, None),
    "urlquery": TemplateFunction(_urlquery, 0, None),
}
