"""The values within a template, with the names and bytes that Go gives them.

JSON data stand for Go's `any`: None, bool, float (float64), str, list (`[]any`) and dict
(`map[string]any`). An int is Go's int: constants, lengths and indexes are ints, numbers of JSON are
not. Two values exist only here: Uint8, a byte of a string, and NO_VALUE, Go's zero reflect.Value,
which is printed as `<no value>`.

A str may hold single bytes that are no UTF-8 (`slice "é" 0 1`), as the lone surrogates of Python's
"surrogateescape".
"""

from __future__ import annotations

import re
from typing import Final

from aether_trio.model.templates.errors import RenderFault

_OTHER_SURROGATES: Final = re.compile("[\ud800-\udc7f\udd00-\udfff]")
_SURROGATES: Final = re.compile("[\ud800-\udfff]")


class NoValue:
    """The type of NO_VALUE, which is what a pipeline yields for nil."""

    __slots__ = ()

    def __bool__(self) -> bool:
        return False


NO_VALUE: Final = NoValue()


class Uint8(int):
    """A byte of a string, Go's uint8."""

    __slots__ = ()


TYPE_NAMES: Final[dict[type, str]] = {
    bool: "bool",
    int: "int",
    Uint8: "uint8",
    float: "float64",
    complex: "complex128",
    str: "string",
    list: "[]interface {}",
    dict: "map[string]interface {}",
}
"""Go's name of the type of every value but nil."""

_EXACT: Final = frozenset({type(None), bool, float, str, list, dict})
_BASES: Final = (bool, int, float, str, list, dict)


def from_data(value: object) -> object:
    """Return a value of the caller's data as one of the exact types above.

    An int beyond 64 bits becomes a float. RenderFault if JSON has no such value.
    """
    kind = type(value)
    if kind in _EXACT:
        return value
    if isinstance(value, int):
        value = int(value)
        if -(1 << 63) <= value < 1 << 63:
            return value
        try:
            return float(value)
        except OverflowError:
            raise RenderFault("the data have a number that is too large for a float64") from None
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, list | tuple):
        return list(value)
    if isinstance(value, dict):
        return dict(value)
    raise RenderFault(f"the data have a value of type {kind.__name__}, which JSON does not have")


def type_name(value: object) -> str:
    """Return Go's name of a value's type, `<nil>` for none."""
    return TYPE_NAMES.get(type(value), "<nil>")


def sorted_keys(mapping: dict[object, object]) -> list[str]:
    """Return a map's keys in Go's order; RenderFault if they are not all strings."""
    keys: list[str] = []
    for key in mapping:
        if not isinstance(key, str):
            raise RenderFault(f"the data have a map with a key of type {type(key).__name__}; keys are strings")
        keys.append(key)
    keys.sort()
    return keys


def to_bytes(text: str) -> bytes:
    """Return the bytes that a string has in Go; other lone surrogates become U+FFFD."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return _OTHER_SURROGATES.sub("\ufffd", text).encode("utf-8", "surrogateescape")


def from_bytes(raw: bytes) -> str:
    """Return the string of some bytes, which need not be UTF-8."""
    return raw.decode("utf-8", "surrogateescape")


def size_of(text: str) -> int:
    """Return the length of a string in bytes of UTF-8."""
    return len(text) if text.isascii() else len(to_bytes(text))


def printable_text(text: str) -> str:
    """Return text as it leaves a template: each byte that is no UTF-8 becomes U+FFFD."""
    if text.isascii() or not _SURROGATES.search(text):
        return text
    return _SURROGATES.sub("\ufffd", from_bytes(to_bytes(text)))
