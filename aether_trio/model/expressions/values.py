"""The values of expressions, and what Go's types say about them.

| Go | Python |
|---|---|
| nil, bool, int, float64, string | None, bool, int (64 bits, wrapping), float, str |
| []any, []int, []string | list |
| map[string]any | dict |
| time.Time, time.Duration, *time.Location | datetime (aware), Duration, tzinfo |

Some builtins make other types: `MapEntries` (toPairs), `AnyMap` (groupBy, fromPairs), `NilList`
(concat of nothing), `Month` and `Weekday`. They behave as their Go types do within an expression;
`plain` turns them into lists and dicts for the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any, Final, TypeAlias

from aether_trio.model.expressions.budget import EvaluationBudget
from aether_trio.model.expressions.errors import Fault
from aether_trio.model.expressions.natures import with_article

Same: TypeAlias = Callable[[object, object, EvaluationBudget, int], bool]
MAX_DEPTH: Final = 64
"""How deep a value may be nested where it is compared, printed or flattened."""
_SIGN: Final = 1 << 63
_WORD: Final = 1 << 64
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
NOT_AN_INT: Final = -_SIGN
"""What a conversion of NaN, an infinity or too large a float to int gives."""


@dataclass(slots=True, frozen=True, order=True)
class Duration:
    """A length of time in nanoseconds, with sign: 64 bits, as Go's time.Duration."""

    nanoseconds: int

    def timedelta(self) -> timedelta:
        """Return the length for calculations with datetime, to the microsecond."""
        return timedelta(microseconds=self.nanoseconds // 1000)


class NilList(list[object]):
    """An empty list that equals nil."""

    __slots__ = ()


class MapEntries(list[object]):
    """The list of toPairs: its elements are `MapEntry`, and it equals no other list."""

    __slots__ = ()


class MapEntry(list[object]):
    """A key and a value of a map."""

    __slots__ = ()


class AnyMap(dict[object, object]):
    """A map whose keys have any type: 1, 1.0 and true are three of them.

    `exact` holds the value for a type and a key. As a dict, the last of equal keys counts.
    """

    __slots__ = ("exact", "lists")

    def __init__(self, *, lists: bool = False) -> None:
        super().__init__()
        self.exact: dict[tuple[type, object], object] = {}
        self.lists = lists  # a missing key gives an empty list

    def put(self, key: object, value: object) -> None:
        """Set the value of a key; faults for a key that Go cannot hash."""
        if isinstance(key, (list, dict)) and not isinstance(key, MapEntry):
            raise Fault(f"{described(key)} cannot be a key of a map")
        if isinstance(key, MapEntry):
            raise Fault("an entry cannot be a key of a map")
        self.exact[type(key), key] = value
        self[key] = value

    def at(self, key: object) -> object:
        """Return the value of a key, or what a missing one gives."""
        if isinstance(key, (list, dict)):
            raise Fault(f"{described(key)} cannot be a key of a map")
        return self.exact.get((type(key), key), NilList() if self.lists else None)

    def has(self, key: object) -> bool:
        """Return whether a key is there."""
        if isinstance(key, (list, dict)):
            raise Fault(f"{described(key)} cannot be a key of a map")
        return (type(key), key) in self.exact


@dataclass(slots=True, frozen=True, order=True)
class Month:
    """A month, 1 to 12; int() gives its number."""

    number: int


@dataclass(slots=True, frozen=True, order=True)
class Weekday:
    """A day of the week, 0 for Sunday to 6; int() gives its number."""

    number: int


_GO_NAMES: Final[dict[type, str]] = {
    type(None): "nil",
    bool: "bool",
    int: "int",
    float: "float",
    str: "string",
    dict: "map",
    AnyMap: "map",
    datetime: "time.Time",
    Duration: "time.Duration",
    Month: "time.Month",
    Weekday: "time.Weekday",
}


def type_name(value: object) -> str:
    """Return the name of a value's type, as the builtin type() gives it."""
    name = _GO_NAMES.get(type(value))
    if name is not None:
        return name
    if isinstance(value, list):
        return "array"
    return "time.Location" if isinstance(value, tzinfo) else "unknown"


def described(value: object) -> str:
    """Return what a value is, for an error: nil, an int, a string."""
    return with_article(type_name(value))


def wrap(number: int) -> int:
    """Return an int as 64 bits hold it."""
    return number if -_SIGN <= number < _SIGN else (number + _SIGN) % _WORD - _SIGN


def is_nil(value: object) -> bool:
    """Return whether a value is nil."""
    return value is None or type(value) is NilList


def truncated(number: float) -> int:
    """Return a float as an int, without its fraction."""
    return int(number) if -9.3e18 < number < 9.3e18 and -_SIGN <= int(number) < _SIGN else NOT_AN_INT


def to_int(value: object) -> int:
    """Return an index or a count; faults where it is no number."""
    if type(value) is int:
        return value
    if type(value) is float:
        return truncated(value)
    raise Fault(f"{described(value)} is no number")


def to_float(value: object) -> float:
    """Return a number as a float; faults where it is none."""
    if type(value) is float:
        return value
    if type(value) is int:
        return float(value)
    raise Fault(f"{described(value)} is no number")


def to_text(value: object) -> str:
    """Return a string; faults where it is none."""
    if type(value) is str:
        return value
    raise Fault(f"{described(value)} is no string")


def utf8(text: str) -> bytes:
    """Return the bytes of a string; lone surrogates become U+FFFD."""
    if text.isascii():
        return text.encode("ascii")
    try:
        return text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()


def from_utf8(data: bytes) -> str:
    """Return the string of some bytes; each that is no UTF-8 becomes U+FFFD."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        text = data.decode("utf-8", "surrogateescape")
        return "".join("\ufffd" if "\udc80" <= one <= "\udcff" else one for one in text)


def sized(text: str) -> int:
    """Return how many bytes a string has, about: exact for ASCII, at most otherwise."""
    return len(text) if text.isascii() else 4 * len(text)


def nanoseconds(moment: datetime) -> int:
    """Return a moment in nanoseconds since 1970, whatever its zone."""
    return (moment.astimezone(UTC) - _EPOCH) // _MICROSECOND * 1000


def later(moment: datetime, by: Duration) -> datetime:
    """Return a moment some time later, in the same zone; fault after the year 9999."""
    try:
        return (moment.astimezone(UTC) + by.timedelta()).astimezone(moment.tzinfo)
    except (OverflowError, ValueError):
        raise Fault("the moment is outside of the years 1 to 9999") from None


def between(later_one: datetime, earlier: datetime) -> Duration:
    """Return the time between two moments, within what a duration holds."""
    length = nanoseconds(later_one) - nanoseconds(earlier)
    return Duration(min(max(length, -_SIGN), _SIGN - 1))


def equal(left: object, right: object, budget: EvaluationBudget, depth: int = 0) -> bool:
    """Return whether two values are equal, as the operator == says."""
    kind, other = type(left), type(right)
    if kind is other:
        if kind is float or kind is str or kind is bool or kind is int:
            return left == right
        if kind is datetime:
            return nanoseconds(left) == nanoseconds(right)  # type: ignore[arg-type]
    elif (kind is float and other is int) or (kind is int and other is float):
        return float(left) == float(right)  # type: ignore[arg-type]
    if is_nil(left) and is_nil(right):
        return True
    if kind in _LISTS and other in _LISTS:
        return _equal_lists(left, right, equal, budget, depth)  # type: ignore[arg-type]
    return deep_equal(left, right, budget, depth)


_LISTS: Final = frozenset({list, NilList})


def deep_equal(left: object, right: object, budget: EvaluationBudget, depth: int = 0) -> bool:
    """Return whether two values are equal with all their types: 1 and 1.0 are not."""
    kind = type(left)
    if kind is not type(right):
        return False
    if isinstance(left, list):
        return _equal_lists(left, right, deep_equal, budget, depth)  # type: ignore[arg-type]
    if isinstance(left, AnyMap) and isinstance(right, AnyMap):
        return left.lists is right.lists and _equal_maps(left.exact, right.exact, budget, depth)
    if isinstance(left, dict):
        return _equal_maps(left, right, budget, depth)  # type: ignore[arg-type]
    return left == right


def _equal_maps(left: Mapping[Any, object], right: Mapping[Any, object], budget: EvaluationBudget, depth: int) -> bool:
    if len(left) != len(right):
        return False
    deeper(depth)
    budget.spend(len(left))
    for key, value in left.items():
        if key not in right or not deep_equal(value, right[key], budget, depth + 1):
            return False
    return True


def _equal_lists(left: list[object], right: list[object], same: Same, budget: EvaluationBudget, depth: int) -> bool:
    if len(left) != len(right):
        return False
    deeper(depth)
    budget.spend(len(left))
    return all(same(one, other, budget, depth + 1) for one, other in zip(left, right, strict=True))


def deeper(depth: int) -> None:
    """Fault for a value that is nested too deep."""
    if depth >= MAX_DEPTH:
        raise Fault(f"a value is nested more than {MAX_DEPTH} deep")


def less(left: object, right: object) -> bool:
    """Return whether a value is before another; fault for types without an order."""
    kind, other = type(left), type(right)
    if kind is other:
        if kind is float or kind is int or kind is str or kind is Duration:
            return left < right  # type: ignore[operator, no-any-return]
        if kind is datetime:
            return nanoseconds(left) < nanoseconds(right)  # type: ignore[arg-type]
    elif (kind is float and other is int) or (kind is int and other is float):
        return float(left) < float(right)  # type: ignore[arg-type]
    raise Fault(f"{described(left)} and {described(right)} have no order")


def plain(value: object) -> object:
    """Return a result with the types of JSON where an expression made others."""
    if isinstance(value, list):
        return [plain(one) for one in value]
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    return value
