"""Arguments of commands about access: principals, resources, levels, moments."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import click

from aether_trio.model.access import AccessLevel
from aether_trio.model.access.spellings import (
    SpellingError,
    moment_text,
    parse_level,
    parse_moment,
    parse_principal,
    parse_resource,
)
from aether_trio.model.text import shown

T = TypeVar("T")

UNITS_S: Final[Mapping[str, int]] = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
_DURATION: Final = re.compile(r"(\d{1,9})\s*([smhdw])")


class _Spelled(click.ParamType[Any]):
    """An argument that is read by a function of model/access/spellings.py."""

    def __init__(self, name: str, read: Callable[[str], Any]) -> None:
        self.name = name
        self._read = read

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self._read(value)
        except SpellingError as error:
            self.fail(str(error), param, ctx)


def duration_s(text: str) -> int:
    """Return the seconds of a duration such as 8h or 7d. Raises SpellingError."""
    found = _DURATION.fullmatch(text.strip().lower())
    if found is None:
        raise SpellingError(f"{shown(text)} is no duration: write 30m, 8h or 7d")
    return int(found[1]) * UNITS_S[found[2]]


def _end(text: str) -> int:
    """Return a moment in Unix seconds: after a duration from now, or a date or time."""
    if _DURATION.fullmatch(text.strip().lower()):
        return int(time.time()) + duration_s(text)
    return _moment(text)


def _start(text: str) -> int:
    """Return a moment in Unix seconds: a duration ago, or a date or time."""
    if _DURATION.fullmatch(text.strip().lower()):
        return int(time.time()) - duration_s(text)
    return _moment(text)


def _moment(text: str) -> int:
    try:
        return parse_moment(text) // 1000
    except SpellingError as error:
        raise SpellingError(f"{error}, or a duration (30m, 8h, 7d)") from None


def _filter(text: str) -> tuple[str, str]:
    """Return a type and id, or a type alone."""
    return parse_resource(text) if ":" in text or "/" in text else (text, "")


PRINCIPAL: Final = _Spelled("principal", parse_principal)
RESOURCE: Final = _Spelled("resource", parse_resource)
RESOURCE_OR_TYPE: Final = _Spelled("resource", _filter)
LEVEL: Final = _Spelled("level", parse_level)
END: Final = _Spelled("moment", _end)
START: Final = _Spelled("moment", _start)


def until(unix_s: int) -> str:
    """Return an expiry for a table: a time in UTC, "" for never."""
    return moment_text(unix_s * 1000) if unix_s else ""


def level_name(number: int) -> str:
    """Return the name of a level in small letters; the number of an unknown one."""
    try:
        return AccessLevel(number).name.lower()
    except ValueError:
        return str(number)
