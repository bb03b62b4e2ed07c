"""What the builtins without predicates take and give, as far as types tell."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

from aether_trio.model.expressions.errors import Fault
from aether_trio.model.expressions.natures import (
    ANY,
    ANY_MAP,
    BOOL,
    DURATION,
    FLOAT,
    INT,
    LIST,
    LOCATION,
    STRING,
    STRINGS,
    TIME,
    UNKNOWN,
    Nature,
)

Signature: TypeAlias = Callable[[list[Nature]], Nature]
_COUNTABLE: Final = ("number", "duration", "month", "weekday")


def _plural(count: int) -> str:
    return "one argument" if count == 1 else f"{count} arguments"


def _takes(nature: Nature, wanted: Nature | None) -> bool:
    """Return whether an argument is of a wanted nature, or may be; None takes any."""
    if wanted is None:
        return True
    return not nature.nil and (nature.unknown or nature.assignable_to(wanted))


def _overloads(name: str, result: Nature, *forms: tuple[Nature | None, ...]) -> Signature:
    """Return the signature of a builtin that has one or several lists of arguments."""

    def check(given: list[Nature]) -> Nature:
        counts = sorted({len(form) for form in forms})
        if len(given) not in counts:
            expected = _plural(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]} arguments"
            raise Fault(f"{name}() takes {expected}, not {len(given)}")
        for form in forms:
            if len(form) == len(given) and all(map(_takes, given, form)):
                return result
        raise Fault(f"{name}() does not take {' and '.join(map(str, given))}")

    return check


def _one(name: str, kinds: tuple[str, ...], result: Callable[[Nature], Nature]) -> Signature:
    """Return the signature of a builtin with one argument of some kinds."""

    def check(given: list[Nature]) -> Nature:
        if len(given) != 1:
            raise Fault(f"{name}() takes one argument, not {len(given)}")
        if not given[0].unknown and not given[0].is_any(*kinds):
            raise Fault(f"{name}() does not take {given[0]}")
        return result(given[0])

    return check


def _always(result: Nature) -> Callable[[Nature], Nature]:
    return lambda _: result


def _element(nature: Nature) -> Nature:
    return STRING if nature == STRINGS else ANY


def _aggregate(name: str) -> Signature:
    def check(given: list[Nature]) -> Nature:
        if not given:
            raise Fault(f"{name}() needs an argument")
        for nature in given:
            if nature.unknown or nature.kind == "array":
                return ANY
            if not nature.is_any(*_COUNTABLE):
                raise Fault(f"{name}() does not take {nature}")
        return given[0]

    return check


def _now(given: list[Nature]) -> Nature:
    if not given or (len(given) == 1 and given[0] == LOCATION):
        return TIME
    raise Fault("now() takes nothing, or a timezone()")


def _date(given: list[Nature]) -> Nature:
    if not given:
        raise Fault("date() needs an argument")
    if len(given) > 3 + (given[0] == LOCATION):
        raise Fault(f"date() takes at most 3 arguments, not {len(given)}")
    return TIME


def _take(given: list[Nature]) -> Nature:
    if len(given) != 2:
        raise Fault(f"take() takes 2 arguments, not {len(given)}")
    if not given[0].unknown and given[0].kind != "array":
        raise Fault(f"take() does not take from {given[0]}")
    if not given[1].unknown and not given[1].is_any("int", "duration", "month", "weekday"):
        raise Fault(f"take() does not take a number that is {given[1]}")
    return STRINGS if given[0] == STRINGS else LIST if given[0].kind == "array" else ANY


def _concat(given: list[Nature]) -> Nature:
    if not given:
        raise Fault("concat() needs an argument")
    for nature in given:
        if not nature.unknown and nature.kind != "array":
            raise Fault(f"concat() does not take {nature}")
    return LIST


def _get(given: list[Nature]) -> Nature:
    if len(given) != 2:
        raise Fault(f"get() takes 2 arguments, not {len(given)}")
    base, key = given
    if base.unknown:
        return UNKNOWN
    if base.kind == "array":
        if not key.unknown and key.kind != "int":
            raise Fault(f"an index is an int, not {key}")
        return base.of_elements()
    if base.kind == "map":
        check_key(base, key)
        return base.of_elements()
    raise Fault(f"get() does not take {base}")


def check_key(base: Nature, key: Nature) -> None:
    """Fault where a key has a type that the map's keys have not."""
    if not base.identity and not key.unknown and key.kind != "string":
        raise Fault(f"{key} is no key of a map: keys are strings")


_VALUES: Final = ("number", "string", *_COUNTABLE)

SIGNATURES: Final[dict[str, Signature]] = {
    "len": _one("len", ("array", "map", "string"), _always(INT)),
    "type": _overloads("type", STRING, (None,)),
    "abs": _one("abs", _COUNTABLE, lambda nature: nature),
    **{name: _one(name, _COUNTABLE, _always(FLOAT)) for name in ("ceil", "floor", "round")},
    "int": _one("int", _VALUES, _always(INT)),
    "float": _one("float", _VALUES, _always(FLOAT)),
    "string": _overloads("string", STRING, (None,)),
    **{name: _overloads(name, STRING, (STRING,), (STRING, STRING)) for name in ("trim", "trimPrefix", "trimSuffix")},
    **{name: _overloads(name, STRING, (STRING,)) for name in ("upper", "lower", "toBase64", "fromBase64")},
    **{name: _overloads(name, STRINGS, (STRING, STRING), (STRING, STRING, INT)) for name in ("split", "splitAfter")},
    "replace": _overloads("replace", STRING, (STRING, STRING, STRING), (STRING, STRING, STRING, INT)),
    "repeat": _overloads("repeat", STRING, (STRING, INT)),
    "join": _overloads("join", STRING, (LIST,), (STRINGS,), (LIST, STRING), (STRINGS, STRING)),
    **{name: _overloads(name, INT, (STRING, STRING)) for name in ("indexOf", "lastIndexOf")},
    **{name: _overloads(name, BOOL, (STRING, STRING)) for name in ("hasPrefix", "hasSuffix")},
    **{name: _aggregate(name) for name in ("max", "min", "mean", "median")},
    "toJSON": _overloads("toJSON", STRING, (None,)),
    "fromJSON": _overloads("fromJSON", ANY, (STRING,)),
    "now": _now,
    "duration": _overloads("duration", DURATION, (STRING,)),
    "date": _date,
    "timezone": _overloads("timezone", LOCATION, (STRING,)),
    **{name: _one(name, ("array",), _element) for name in ("first", "last")},
    "get": _get,
    "take": _take,
    **{name: _one(name, ("map",), _always(LIST)) for name in ("keys", "values", "toPairs")},
    "fromPairs": _one("fromPairs", ("array",), _always(ANY_MAP)),
    **{name: _one(name, ("array",), _always(LIST)) for name in ("reverse", "uniq", "flatten")},
    "concat": _concat,
    "sort": _overloads("sort", LIST, (LIST,), (STRINGS,), (LIST, STRING), (STRINGS, STRING)),
    **{
        name: _overloads(name, INT, (INT, INT))
        for name in ("bitand", "bitor", "bitxor", "bitnand", "bitshl", "bitshr", "bitushr")
    },
    "bitnot": _overloads("bitnot", INT, (INT,)),
}
"""The check of the arguments of each builtin: it gives the nature of the result, or faults."""
