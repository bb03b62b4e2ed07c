"""JSON as workflows keep it: numbers are floats, and are written as Go does.

Expressions see every number as a float, as those of the reference do. So a float that is a whole
number is written without a fraction: 5.0 becomes 5.
"""

from __future__ import annotations

import json
import math
from typing import Any, Final

WHOLE: Final = 2.0**63
"""Whole floats below it are written as integers."""


class JsonError(ValueError):
    """A value cannot be written as JSON."""


def read_json(data: bytes | str) -> Any:
    """Read JSON with all numbers as floats. Raises ValueError."""
    return json.loads(data, parse_int=float, parse_constant=_refuse)


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
