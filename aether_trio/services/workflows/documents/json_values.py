"""JSON as workflows keep it: numbers are floats, and are written as Go does.

Expressions see every number as a float, as those of the reference do. So a float that is a whole
number is written without a fraction: 5.0 becomes 5.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from aether_trio.model.limits import KIB
from aether_trio.model.workflows.definition import Path
from aether_trio.model.workflows.reading import pointer

_INFINITE: Final = (re.compile(rb"[eE]\+?[0-9]{3}"), re.compile(rb"[0-9]{300}"))
"""Where a number may be too large for a float. As alternatives of one pattern they are slow."""
_SEARCHED: Final = 32 * KIB
"""Bytes that are searched without letting other threads have their turn."""
_OVERLAP: Final = 300
HALF: Final = re.compile(rb"\\u[dD][89a-fA-F]")
"""Where half of a character may be."""
LARGE_BYTES: Final = 16 * KIB
_PIECE: Final = 500
"""Entries of a long list that are written without letting other threads have their turn."""
WHOLE: Final = 2.0**63
"""Whole floats below it are written as integers."""


class JsonError(ValueError):
    """A value cannot be written as JSON."""


def read_json(data: bytes | str) -> Any:
    """Read JSON with all numbers as floats. Raises ValueError."""
    if len(data) <= LARGE_BYTES:
        return json.loads(data, parse_int=float, parse_constant=_refuse)
    return json.loads(data, parse_int=_float, parse_float=_float, object_hook=_object, parse_constant=_refuse)


def read_document(data: bytes | str) -> Any:
    """Read JSON with integers as such. Raises ValueError."""
    if len(data) <= LARGE_BYTES:
        return json.loads(data)
    return json.loads(data, parse_int=_int, parse_float=_float, object_hook=_object)


def _float(text: str) -> float:
    return float(text)  # the call lets other threads have their turn, which float itself does not


def _int(text: str) -> int:
    return int(text)


def _object(found: dict[str, Any]) -> dict[str, Any]:
    return found


def may_be_infinite(data: bytes) -> bool:
    """Return whether JSON may have a number that is too large for a float."""
    return any(
        one.search(data, begin, begin + _SEARCHED + _OVERLAP)
        for begin in range(0, len(data), _SEARCHED)
        for one in _INFINITE
    )


def unwritable(document: Any, data: bytes) -> str:
    """Return where a document, read from `data`, has what JSON cannot write; or ""."""
    if not (may_be_infinite(data) or HALF.search(data) or b"NaN" in data or b"Infinity" in data):
        return ""
    open_: list[tuple[Any, Path]] = [(document, ())]
    while open_:
        value, path = open_.pop()
        if isinstance(value, float) and not math.isfinite(value):
            return f"{pointer(path)}: {value} is not a number of JSON"
        if isinstance(value, str) and _is_half(value):
            return f"{pointer(path)}: a text has a lone surrogate, which cannot be written as UTF-8"
        if isinstance(value, dict):
            if any(map(_is_half, value)):
                return f"{pointer(path)}: a key has a lone surrogate, which cannot be written as UTF-8"
            open_ += ((one, (*path, key)) for key, one in value.items())
        elif isinstance(value, list):
            open_ += ((one, (*path, number)) for number, one in enumerate(value))
    return ""


def _is_half(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def write_json(value: Any) -> bytes:
    """Write a value as compact JSON. Raises JsonError for what JSON does not have."""
    try:
        return b"".join(_pieces(plain(value)))
    except (TypeError, ValueError, RecursionError, UnicodeEncodeError) as error:
        raise JsonError(f"this is not JSON: {error}") from None


def _pieces(value: Any) -> Iterator[bytes]:
    """Write a value, and long lists that are it or its members, in pieces."""
    if isinstance(value, list) and len(value) > _PIECE:
        for begin in range(0, len(value), _PIECE):
            yield (b"," if begin else b"[") + _dumped(value[begin : begin + _PIECE])[1:-1]
        yield b"]"
    elif isinstance(value, dict) and any(isinstance(one, list) and len(one) > _PIECE for one in value.values()):
        before = b"{"
        for key, one in value.items():
            yield before + _dumped({key: None})[1:-5]
            yield from _pieces(one) if isinstance(one, list) else (_dumped(one),)
            before = b","
        yield b"}"
    else:
        yield _dumped(value)


def _dumped(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def size_up_to(value: Any, most: int) -> int:
    """Return about how many bytes a value has as JSON, or somewhat more than `most`."""
    size, open_ = 0, [value]
    while open_ and size <= most:
        one = open_.pop()
        size += len(one) + 2 if isinstance(one, str) else 4
        if isinstance(one, dict):
            open_ += one.keys()
            open_ += one.values()
        elif isinstance(one, list):
            size += len(one)
            open_ += one
    return size


def write_object(fields: Mapping[str, Any], **written: bytes | None) -> bytes:
    """Write an object whose further members `written` are JSON already; None is null.

    Raises JsonError.
    """
    encoded = write_json(fields)[:-1]
    rest = [b'"%s":%s' % (name.encode(), b"null" if data is None else data) for name, data in written.items()]
    return (b"," if len(encoded) > 1 and rest else b"").join((encoded, b",".join(rest))) + b"}"


def write_entry(fields: Mapping[str, Any], written: bytes) -> bytes:
    """Write an object that also has the members of one that is JSON already."""
    rest = written[1:]
    return write_json(fields)[:-1] + (rest if rest == b"}" else b"," + rest)


def write_list(written: Iterable[bytes]) -> bytes:
    """Write a list whose entries are JSON already."""
    return b"[" + b",".join(written) + b"]"


def plain(value: Any) -> Any:
    """Return a JSON value with whole floats as integers."""
    if isinstance(value, float):
        return int(value) if value.is_integer() and math.fabs(value) < WHOLE else value
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    return value


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
