"""Principals, resources, levels and moments as people write them."""

from __future__ import annotations

import pytest

from aether_trio.model.access import AccessLevel
from aether_trio.model.access.spellings import (
    SpellingError,
    moment_text,
    parse_level,
    parse_moment,
    parse_principal,
    parse_resource,
    principal_text,
    resource_text,
)


@pytest.mark.parametrize(
    ("text", "principal", "written"),
    [
        ("ag::red::ann::1", ("agent", "ag::red::ann::1"), None),
        ("agent:ag::red::ann::1", ("agent", "ag::red::ann::1"), "ag::red::ann::1"),
        ("ag::red::*", ("agent", "ag::red::*"), None),
        ("tu::red::x::1", ("task", "tu::red::x::1"), None),
        ("wfe::shard0", ("workflow_engine", "wfe::shard0"), None),
        ("us::eve::w", ("user", "eve"), "user:eve"),
        ("us::eve", ("user", "eve"), "user:eve"),
        ("user:us::eve::w", ("user", "eve"), "user:eve"),
        ("user:eve", ("user", "eve"), None),
        ("group:a::b", ("group", "a::b"), None),
        ("_any_agent", ("wildcard", "_any_agent"), None),
        ("wildcard:_any_agent", ("wildcard", "_any_agent"), "_any_agent"),
        ("agent:sv::x::1", ("agent", "sv::x::1"), None),
    ],
)
def test_principals(text: str, principal: tuple[str, str], written: str | None) -> None:
    assert parse_principal(text) == principal
    assert principal_text(*principal) == (written or text)
    assert parse_principal(principal_text(*principal)) == principal


@pytest.mark.parametrize(
    ("text", "resource"),
    [
        ("workspace:blue", ("workspace", "blue")),
        ("admin/acl", ("admin", "admin/acl")),
        ("capability/a/b", ("capability", "capability/a/b")),
        ("git/repo:a:b", ("git/repo", "a:b")),
    ],
)
def test_resources(text: str, resource: tuple[str, str]) -> None:
    assert parse_resource(text) == resource
    assert resource_text(*resource) == text


@pytest.mark.parametrize("level", AccessLevel)
def test_levels(level: AccessLevel) -> None:
    for text in (level.name, level.name.lower(), str(level.value), int(level)):
        assert parse_level(text) is level
    assert parse_level("read-write") is AccessLevel.READWRITE


def test_moments() -> None:
    assert parse_moment("2027-01-31") == parse_moment("2027-01-31T01:00:00+01:00") == 1_801_353_600_000
    assert moment_text(1_801_353_600_000) == "2027-01-31T00:00:00Z"
    assert moment_text(2**62).endswith(" ms")


@pytest.mark.parametrize(
    ("read", "text", "hint"),
    [
        (parse_principal, "ann", "is no principal"),
        (parse_principal, "_any_agnt", "did you mean _any_agent?"),
        (parse_principal, "agg::x", "did you mean ag?"),
        (parse_principal, ":x", "is no principal"),
        (parse_principal, "ag::red::ann", "write ag::red::ann::* for all that begin so"),
        (parse_principal, "orc::a::b::c", "for all that begin so"),
        (parse_resource, "blue", "is no resource"),
        (parse_resource, "workspace:", "is no resource"),
        (parse_level, "redwrite", "did you mean readwrite?"),
        (parse_level, "15", "the levels are none (0)"),
        (parse_moment, "8h", "is no time"),
        (parse_moment, "1969-01-01", "before 1970"),
    ],
)
def test_what_names_nothing_is_refused(read: object, text: str, hint: str) -> None:
    with pytest.raises(SpellingError) as caught:
        read(text)  # type: ignore[operator]
    assert hint in str(caught.value)
