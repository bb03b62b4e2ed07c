"""Converts protobuf messages to frozen dataclasses (records) and back.

A record is a frozen dataclass whose fields bear the names of the message's fields; `Wire` in an
annotation gives another name, or the unit of a time. What a type means on the wire:

| type | message field |
|---|---|
| int, float, str, bytes, bool | the same |
| an IntEnum | an enum; a number that the enum does not know reads as its member 0 |
| datetime or None | an integer since the Unix epoch, in the unit that `Wire` says; 0 is None. Always aware, in UTC |
| float, with the unit `span` | milliseconds; here it is seconds. Also a tuple of them |
| `Level` | the enum form of an access level, which authority requests have; None is unspecified |
| a record | a message; with `or None`, None if it is absent |
| tuple of these, Mapping from str | repeated, map |

Invariant: `read(type(r), write(r, message)) == r` for every record whose times are whole units of
the wire.
"""

from __future__ import annotations

import enum
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Annotated, Any, Final, TypeAlias, TypeVar

from google.protobuf.message import Message

from aether_trio.model.access import AccessLevel

R = TypeVar("R")
M = TypeVar("M", bound=Message)
E = TypeVar("E", bound=enum.IntEnum)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_UNITS = {"s": timedelta(seconds=1), "ms": timedelta(milliseconds=1)}


@dataclass(frozen=True)
class Wire:
    """A dataclass field's name in protobuf, and unit: s, ms, span (below), level."""

    name: str = ""
    unit: str = "s"


Seconds: TypeAlias = Annotated[datetime | None, Wire(unit="s")]
"""A time that the wire counts in seconds."""
Millis: TypeAlias = Annotated[datetime | None, Wire(unit="ms")]
"""A time that the wire counts in milliseconds."""
SPAN: Final = "span"
"""The unit of a number of seconds (a float) that the wire counts in milliseconds."""
Level: TypeAlias = Annotated[AccessLevel | None, Wire(unit="level")]
"""An access level that the wire has as an enum."""


def to_ms(seconds: float | None) -> int:
    """Convert a time limit in seconds to whole milliseconds, 1 or more; None to 0."""
    return 0 if seconds is None else max(1, round(seconds * 1000))


def to_time(count: int, unit: str = "s") -> datetime | None:
    """Convert seconds or milliseconds since the epoch to a datetime, 0 to None."""
    try:
        return _EPOCH + count * _UNITS[unit] if count else None
    except OverflowError:
        return None


def from_time(when: datetime | None, unit: str = "s") -> int:
    """Convert an aware datetime to whole units since the epoch, 1 or more; None to 0."""
    if when is None:
        return 0
    if when.tzinfo is None:
        raise ValueError(f"{when} has no time zone; say datetime.now(UTC) or give it a tzinfo")
    return max((when - _EPOCH) // _UNITS[unit], 1)


@dataclass(frozen=True)
class _Field:
    """One dataclass field: its name here and in protobuf, how it is read and written."""

    name: str
    wire: str
    read: Callable[[Any], Any]
    write: Callable[[Any, Any], None]
    """Takes (message, value)."""
    optional: bool = False


def read(record: type[R], message: Message) -> R:
    """Make a record (a dataclass of type `record`) from a protobuf message."""
    return record(**{f.name: _value(f, message) for f in _fields_of(record)})


def _value(field: _Field, message: Message) -> Any:
    if field.optional and not message.HasField(field.wire):
        return None
    return field.read(getattr(message, field.wire))


def write(record: Any, message: M) -> M:
    """Fill and return a protobuf message from a dataclass; None and empty stay unset."""
    for field in _fields_of(type(record)):
        value = getattr(record, field.name)
        if value is not None:
            field.write(message, value)
    return message


def read_optional(record: type[R], message: Message, name: str) -> R | None:
    """Make a dataclass `record` from the field `name` of a message; None if absent."""
    return read(record, getattr(message, name)) if message.HasField(name) else None


def _fields_of(record: Any) -> tuple[_Field, ...]:
    return _compiled(record)


@cache
def _compiled(record: Any) -> tuple[_Field, ...]:
    hints = typing.get_type_hints(record, include_extras=True)
    return tuple(_field(f.name, hints[f.name]) for f in fields(record))


def _field(name: str, hint: Any) -> _Field:
    wire = Wire()
    if typing.get_origin(hint) is Annotated:
        # The innermost annotation that was added, which is the last.
        hint, *_, wire = typing.get_args(hint)
    there = wire.name or name
    plain, optional = _without_none(hint)
    if plain is datetime:
        return _Field(name, there, lambda n: to_time(n, wire.unit), _setter(there, lambda t: from_time(t, wire.unit)))
    if wire.unit == "level":
        return _Field(
            name, there, lambda n: AccessLevel.from_wire(n) if n else None, _setter(there, lambda level: level.wire)
        )
    if wire.unit == SPAN:
        return _span(name, there, many=typing.get_origin(plain) is tuple)
    origin = typing.get_origin(plain)
    if origin is tuple:
        return _repeated(name, there, typing.get_args(plain)[0])
    if origin is not None and issubclass(origin, Mapping):
        return _Field(name, there, dict, lambda message, value: getattr(message, there).update(value))
    if _is_record(plain):
        return _Field(
            name, there, lambda m: read(plain, m), lambda message, v: _write_into(v, message, there), optional
        )
    return _Field(name, there, _scalar(plain), _setter(there, lambda value: value))


def _repeated(name: str, wire: str, item: Any) -> _Field:
    if _is_record(item):
        return _Field(
            name,
            wire,
            lambda many: tuple(read(item, one) for one in many),
            lambda message, many: _add_all(getattr(message, wire), many),
        )
    one = _scalar(item)
    return _Field(
        name, wire, lambda many: tuple(one(v) for v in many), lambda message, many: getattr(message, wire).extend(many)
    )


def _span(name: str, wire: str, *, many: bool) -> _Field:
    if many:
        return _Field(
            name,
            wire,
            lambda counts: tuple(count / 1000 for count in counts),
            lambda message, spans: getattr(message, wire).extend(round(span * 1000) for span in spans),
        )
    return _Field(name, wire, lambda count: count / 1000, _setter(wire, lambda span: round(span * 1000)))


def _add_all(container: Any, records: tuple[Any, ...]) -> None:
    for record in records:
        write(record, container.add())


def _write_into(record: Any, parent: Message, name: str) -> None:
    part = getattr(parent, name)
    part.SetInParent()
    write(record, part)


def _setter(wire: str, convert: Callable[[Any], Any]) -> Callable[[Any, Any], None]:
    return lambda message, value: setattr(message, wire, convert(value))


def _scalar(kind: Any) -> Callable[[Any], Any]:
    if isinstance(kind, type) and issubclass(kind, enum.IntEnum):
        return lambda number: member(kind, number)
    return lambda value: value


def member(kind: type[E], number: int) -> E:
    """Return the enum's member with this number, or its member 0 if there is none."""
    return _members(kind).get(number) or kind(0)


@cache
def _members(kind: Any) -> dict[int, Any]:
    return {int(one): one for one in kind}


def _without_none(hint: Any) -> tuple[Any, bool]:
    if typing.get_origin(hint) in {typing.Union, types.UnionType}:
        (plain,) = (one for one in typing.get_args(hint) if one is not type(None))
        return plain, True
    return hint, False


def _is_record(kind: Any) -> bool:
    return isinstance(kind, type) and hasattr(kind, "__dataclass_fields__")
