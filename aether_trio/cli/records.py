"""Turns records of the client into JSON.

Keys are the names of the records' fields, so programs find in JSON what the client's documentation
says. Times are ISO 8601 in UTC and null for none, enums are names in lower case.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from typing import Any


def plain(value: Any) -> Any:
    """Convert a record of the client, or what is in one, to what JSON has."""
    if isinstance(value, enum.Enum):
        return value.name.lower()
    if isinstance(value, datetime):
        return value.isoformat()
    if is_dataclass(value):
        return {item.name: plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    return value


def iso_time(unix_s: int) -> str | None:
    """Return Unix seconds as ISO 8601 in UTC, None for 0."""
    return datetime.fromtimestamp(unix_s, UTC).isoformat() if unix_s else None


def with_iso_times(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row in which the Unix seconds of `..._at` are ISO 8601."""
    return {name: iso_time(value) if name.endswith("_at") else value for name, value in row.items()}
