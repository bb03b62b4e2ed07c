"""Convert single values of protobuf fields for JSON and MessagePack, and back.

A reader takes what a JSON or MessagePack decoder made and returns what protobuf takes for the
field, or raises ConversionError. A writer is None where the value needs no conversion.
"""

from __future__ import annotations

import binascii
import math
from collections.abc import Callable
from typing import Any, Final, TypeAlias

from google.protobuf.descriptor import FieldDescriptor

Convert: TypeAlias = Callable[[Any], Any]

_SHOWN: Final = 40
"""Characters of a value that are quoted in an error."""
_RANGES: Final = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
    FieldDescriptor.CPPTYPE_ENUM: (-(2**31), 2**31 - 1),
}
_INTEGERS_64: Final = (FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64)
_FLOATS: Final = (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT)
_MAX_DIGITS: Final = 20
"""Of a 64-bit integer with its sign: longer texts are not worth converting."""
_NOT_FINITE: Final = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_TO_STANDARD: Final = str.maketrans("-_", "+/")
_NAMES: Final = {
    str: "text",
    bytes: "bytes",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "a map",
    type(None): "null",
}


class ConversionError(ValueError):
    """A value that its protobuf field cannot take; `str()` names the field."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.path: list[str] = []

    def within(self, step: str) -> ConversionError:
        """Return this error with the field that encloses the wrong value in its path."""
        self.path.insert(0, step)
        return self

    def __str__(self) -> str:
        return f"{'.'.join(self.path)}: {self.problem}" if self.path else self.problem


def kind_of(value: object) -> str:
    """Return the kind of a JSON or MessagePack value in words, such as "a list"."""
    return _NAMES.get(type(value), "a value of another type")


def shown(value: object) -> str:
    """Return a value as an error quotes it: short, and on one line."""
    text = ascii(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def scalar_writer(field: Any, *, json: bool) -> Convert | None:
    """Return the function that converts a protobuf field's value for JSON."""
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        names = {number: value.name for number, value in field.enum_type.values_by_number.items()}
        return lambda number: names.get(number, number)
    if json and kind in _INTEGERS_64:
        return str
    if json and kind in _FLOATS:
        return _write_float
    return None


def scalar_reader(field: Any, *, json: bool) -> Convert:
    """Return the function that reads a protobuf field's value from JSON."""
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_STRING:
        if field.type != FieldDescriptor.TYPE_BYTES:
            return _read_text
        return _read_base64 if json else _read_bytes
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return _read_bool
    if kind in _FLOATS:
        return _read_float
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        return _enum_reader(field.enum_type)
    return _integer_reader(*_RANGES[kind])


def _write_float(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"  # noqa: PLR0124  # NaN is itself


def _exact_reader(kind: type, what: str) -> Convert:
    def read_exactly(value: Any) -> Any:
        if type(value) is kind:
            return value
        raise ConversionError(f"expected {what}, not {kind_of(value)}")

    return read_exactly


_read_text: Final = _exact_reader(str, "text")
_read_bytes: Final = _exact_reader(bytes, "bytes")
_read_bool: Final = _exact_reader(bool, "true or false")


def _read_base64(value: Any) -> bytes:
    if type(value) is not str:
        raise ConversionError(f"expected base64 text, not {kind_of(value)}")
    try:
        return binascii.a2b_base64(value, strict_mode=True)
    except ValueError:
        pass
    # proto3 JSON asks readers to take the URL alphabet too, and missing padding.
    try:
        return binascii.a2b_base64(value.translate(_TO_STANDARD) + "=" * (-len(value) % 4), strict_mode=True)
    except ValueError:
        raise ConversionError(f"expected base64 text, not {shown(value)}") from None


def _read_float(value: Any) -> float:
    if type(value) is float or type(value) is int:
        try:
            return float(value)
        except OverflowError:
            raise ConversionError(f"{shown(value)} is out of range of a 64-bit float") from None
    if type(value) is str and value in _NOT_FINITE:
        return _NOT_FINITE[value]
    raise ConversionError(f"expected a number, not {shown(value)}")


def _integer_reader(lowest: int, highest: int) -> Convert:
    def read_integer(value: Any) -> int:
        number = value if type(value) is int else _integer(value)
        if lowest <= number <= highest:
            return number
        raise ConversionError(f"{shown(value)} is out of range ({lowest} to {highest})")

    return read_integer


def _integer(value: Any) -> int:
    if type(value) is float and value.is_integer():
        return int(value)
    if type(value) is str and len(value) <= _MAX_DIGITS and value.isascii() and value.removeprefix("-").isdigit():
        return int(value)
    raise ConversionError(f"expected an integer, not {shown(value)}")


def _enum_reader(enum: Any) -> Convert:
    numbers = {name: value.number for name, value in enum.values_by_name.items()}
    read_number = _integer_reader(*_RANGES[FieldDescriptor.CPPTYPE_ENUM])

    def read_enum(value: Any) -> int:
        if type(value) is str:
            number: int | None = numbers.get(value)
            if number is None:
                raise ConversionError(f"{shown(value)} is not a value of {enum.name}")
            return number
        if type(value) is not int:
            raise ConversionError(f"expected the name of a {enum.name}, not {shown(value)}")
        known: int = read_number(value)  # an unknown one is kept, as protobuf itself does
        return known

    return read_enum
