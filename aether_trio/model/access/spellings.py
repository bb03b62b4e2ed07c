"""Reads principals, resources and levels as people write them.

| written | is |
|---|---|
| `ag::red::ann::1`, `ag::red::*` | agent:ag::red::ann::1, agent:ag::red::* |
| `us::eve::tab1`, `us::eve` | user:eve; all windows of a user are one principal |
| `user:eve`, `group:readers` | themselves |
| `_any_agent` | wildcard:_any_agent |
| `workspace:blue`, `admin/acl`, `capability/metric_credit` | resources; the last two name their type |
| `readwrite`, `20` | the level READWRITE |
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Final

from aether_trio.model.access.levels import AccessLevel
from aether_trio.model.access.rules import OWN_PRINCIPAL, WILDCARD, WILDCARDS
from aether_trio.model.identity import SEPARATOR, Identity, IdentityError, Kind, prefix_of
from aether_trio.model.text import shown

_TYPE_OF_PREFIX: Final[Mapping[str, str]] = MappingProxyType(
    {prefix_of(kind): kind.principal_type.type_name for kind in Kind}
)
_WILDCARDS: Final = frozenset("*?[\\")
_WILDCARD_NAMES: Final = (*WILDCARDS.values(), OWN_PRINCIPAL)
_NAMED_BY_ID: Final = ("admin", "capability")
"""Types of resources whose ids begin with the type: `admin/acl`."""


LEVEL_NAMES: Final = tuple(one.name.lower() for one in AccessLevel)


class SpellingError(ValueError):
    """A text names no principal, resource or level; the message says what would."""


def parse_principal(text: str) -> tuple[str, str]:
    """Return the principal, as type and id, that a text names. Raises SpellingError.

    The id may be a pattern. Whether the type is known is checked with the rule.
    """
    prefix, separator, rest = text.partition(SEPARATOR)
    if separator and ":" not in prefix:
        kind = _TYPE_OF_PREFIX.get(prefix)
        if kind is None:
            raise SpellingError(
                f"unknown prefix {shown(prefix)} of an identity{nearest_hint(prefix, tuple(_TYPE_OF_PREFIX))}"
            )
        if kind == "user":
            return kind, rest.partition(SEPARATOR)[0]
        if _WILDCARDS.isdisjoint(text):
            try:
                Identity.parse(text, strict=False)
            except IdentityError as error:
                raise SpellingError(f"{error}; write {text.rstrip(':')}::* for all that begin so") from None
        return kind, text
    if text in _WILDCARD_NAMES:
        return WILDCARD, text
    kind, colon, name = text.partition(":")
    if not colon or not kind or not name:
        hint = nearest_hint(text, _WILDCARD_NAMES) if text.startswith("_") else ""
        raise SpellingError(
            f"{shown(text)} is no principal{hint}: write an identity (ag::red::ann::1), TYPE:ID (user:eve, "
            "group:readers) or a wildcard (_any_agent)"
        )
    if kind == "user" and name.startswith("us::"):
        return parse_principal(name)
    return kind, name


def parse_resource(text: str) -> tuple[str, str]:
    """Return the resource, as type and id, that a text names. Raises SpellingError."""
    kind, colon, name = text.partition(":")
    if not colon and (found := text.partition("/")[0]) in _NAMED_BY_ID:
        return found, text
    if not colon or not kind or not name:
        raise SpellingError(f"{shown(text)} is no resource: write TYPE:ID, such as workspace:blue or kv_key:prices")
    return kind, name


def parse_level(text: str | int) -> AccessLevel:
    """Return the level of this name or number. Raises SpellingError."""
    name = str(text).strip().upper().replace("-", "").replace("_", "")
    if name in AccessLevel.__members__:
        return AccessLevel[name]
    if name.isdecimal() and int(name) in set(AccessLevel):
        return AccessLevel(int(name))
    known = ", ".join(f"{one.name.lower()} ({one.value})" for one in AccessLevel)
    raise SpellingError(
        f"unknown access level {shown(text)}{nearest_hint(name.lower(), LEVEL_NAMES)}; the levels are {known}"
    )


def principal_text(principal_type: str, principal_id: str) -> str:
    """Return a principal as these functions read it: an identity alone, or TYPE:ID."""
    if principal_type == WILDCARD and principal_id in _WILDCARD_NAMES:
        return principal_id
    if principal_type != "user" and _TYPE_OF_PREFIX.get(principal_id.partition(SEPARATOR)[0]) == principal_type:
        return principal_id
    return f"{principal_type}:{principal_id}"


def resource_text(resource_type: str, resource_id: str) -> str:
    """Return a resource as these functions read it."""
    if resource_type in _NAMED_BY_ID and resource_id.startswith(f"{resource_type}/") and ":" not in resource_id:
        return resource_id
    return f"{resource_type}:{resource_id}"


def nearest_hint(name: str, known: tuple[str, ...]) -> str:
    """Return "; did you mean ...?" for an unknown name, or ""."""
    found = difflib.get_close_matches(name[:128], known, 1)
    return f"; did you mean {found[0]}?" if found else ""


def parse_moment(text: str) -> int:
    """Return the Unix ms of a date or time in ISO 8601, by default UTC.

    Raises SpellingError.
    """
    try:
        found = datetime.fromisoformat(text.strip())
        found = found if found.tzinfo is not None else found.replace(tzinfo=UTC)
        moment_ms = int(found.timestamp() * 1000)
    except (ValueError, OverflowError):
        raise SpellingError(
            f"{shown(text)} is no time: write a date (2027-01-31) or a time (2027-01-31T18:00:00Z)"
        ) from None
    if moment_ms <= 0:
        raise SpellingError(f"{shown(text)} is before 1970")
    return moment_ms


def moment_text(moment_ms: int) -> str:
    """Return a moment as `parse_moment` reads it, in UTC."""
    try:
        found = datetime.fromtimestamp(moment_ms / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return f"{moment_ms} ms"
    return found.strftime("%Y-%m-%dT%H:%M:%SZ")
