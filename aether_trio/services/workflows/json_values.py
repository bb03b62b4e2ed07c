"""JSON as workflows keep it: numbers are floats, and are written as Go does.

Expressions see every number as a float, as those of the reference do. So a float that is a whole
number is written without a fraction: 5.0 becomes 5.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, Final

from aether_trio.model.workflows.definition import Path
from aether_trio.model.workflows.reading import pointer

_SUSPECT: Final = re.compile(rb"\\u[dD][89a-fA-F]|[0-9]{300}|[eE]\+?0*[0-9]{3}|NaN|Infinity")
"""Where half of a character may be, or a number that no float is."""
WHOLE: Final = 2.0**63
"""Whole floats below it are written as integers."""


class JsonError(ValueError):
    """A value cannot be written as JSON."""


def read_json(data: bytes | str) -> Any:
    """Read JSON with all numbers as floats. Raises ValueError."""
    return json.loads(data, parse_int=float, parse_constant=_refuse)


def unwritable(document: Any, data: bytes) -> str:
    """Return where a document, read from `data`, has what JSON cannot write; or ""."""
    if not _SUSPECT.search(data):
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
        return json.dumps(plain(value), separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError, UnicodeEncodeError) as error:
        raise JsonError(f"this is not JSON: {error}") from None


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
