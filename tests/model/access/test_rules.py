"""Checks of rules, memberships and locks as clients write them."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aether_trio.model.access import AccessLevel
from aether_trio.model.access.rules import (
    MAX_DEPTH,
    Lock,
    Member,
    Rule,
    RuleError,
    checked_level,
    current_resource,
    membership_problem,
    normalised,
    normalised_lock,
    normalised_member,
)

RULE = Rule("1", "agent", "ag::prod::echo::1", "workspace", "prod", AccessLevel.READ, reason="because")
MEMBER = Member("group", "ops", "user", "alice")


@pytest.mark.parametrize(
    ("change", "becomes"),
    [
        ({}, {}),
        ({"principal_type": "Agent"}, {"principal_type": "agent"}),
        ({"principal_type": "unique_task"}, {"principal_type": "task"}),
        ({"principal_type": "MetricsBridge"}, {"principal_type": "metrics_bridge"}),
        (
            {"principal_type": "user", "principal_id": "us::alice::w1"},
            {"principal_id": "alice", "principal_type": "user"},
        ),
        (
            {"principal_type": "user", "principal_id": "us::alice::*"},
            {"principal_type": "user", "principal_id": "us::alice::*"},
        ),
        (
            {"principal_type": "group", "principal_id": "us::alice::w1"},
            {"principal_type": "group", "principal_id": "us::alice::w1"},
        ),
        ({"principal_id": r"\ag::x"}, {"principal_id": "ag::x"}),
        ({"resource_id": r"wh\?\t"}, {"resource_id": r"wh\?t"}),
        ({"resource_id": r"\*"}, {"resource_id": r"\*"}),
        ({"resource_id": "*"}, {"resource_id": "*"}),
        ({"resource_id": "a[bc]*"}, {"resource_id": "a[bc]*"}),
        ({"resource_type": "acme.io/invoice"}, {"resource_type": "acme.io/invoice"}),
        ({"level": 40}, {"level": AccessLevel.ADMIN}),
        ({"reason": "two\nlines"}, {"reason": "two\nlines"}),
        (
            {"resource_type": "permission", "resource_id": "_perm:metric_credit"},
            {"resource_type": "capability", "resource_id": "capability/metric_credit"},
        ),
        (
            {"resource_type": "permission", "resource_id": "_perm:admin_operations"},
            {"resource_type": "admin", "resource_id": "admin/*"},
        ),
        (
            {"resource_type": "permission", "resource_id": "_perm:admin_acl"},
            {"resource_type": "admin", "resource_id": "admin/acl"},
        ),
        (
            {"resource_type": "permission", "resource_id": "_perm:new"},
            {"resource_type": "permission", "resource_id": "_perm:new"},
        ),
        (
            {"principal_type": "wildcard", "principal_id": "_any_service"},
            {"principal_type": "wildcard", "principal_id": "_any_service"},
        ),
    ],
)
def test_normalised(change: dict[str, object], becomes: dict[str, object]) -> None:
    found = normalised(replace(RULE, **change))  # type: ignore[arg-type]
    assert found == replace(RULE, **becomes)  # type: ignore[arg-type]
    assert type(found.level) is AccessLevel
    assert normalised(found) == found


@pytest.mark.parametrize(
    ("change", "field", "reason"),
    [
        ({"principal_type": "agnet"}, "principal_type", "did you mean agent?"),
        ({"principal_type": "x"}, "principal_type", "known are agent, task"),
        ({"principal_type": "wildcard", "principal_id": "_any_user"}, "principal_id", "did you mean _any_"),
        ({"principal_type": "wildcard", "principal_id": "_any_*"}, "principal_id", "unknown wildcard"),
        ({"principal_type": "wildcard", "principal_id": "_own_workspace"}, "resource_id", "workspace:_own only"),
        ({"principal_id": ""}, "principal_id", "principal_id is empty"),
        ({"principal_id": "a\0"}, "principal_id", "zero byte"),
        ({"resource_type": "workspaces"}, "resource_type", "did you mean workspace?"),
        ({"resource_type": "kvkey"}, "resource_type", "did you mean kv_key?"),
        ({"resource_type": "a/b\n"}, "resource_type", "unknown resource type"),
        ({"resource_type": "a/" + "b" * 500}, "resource_type", "unknown resource type"),
        ({"resource_id": ""}, "resource_id", "resource_id is empty"),
        ({"resource_id": "[a"}, "resource_id", "bad pattern '[a', character 1: this class has no end"),
        ({"resource_id": "*a" * 17}, "resource_id", "at most 16"),
        ({"resource_id": "a" * 1015}, "resource_id", "1025 bytes; at most 1024"),
        ({"resource_id": "a" * 1025}, "resource_id", "1025 bytes; at most 1024"),
        ({"resource_id": r"\*" * 507 + "a"}, "resource_id", "1025 bytes; at most 1024"),
        ({"level": 15}, "access_level", "invalid access level 15: expected 0 (NONE), 10 (READ)"),
        ({"level": 60}, "access_level", "invalid access level 60"),
        ({"level": -10}, "access_level", "invalid access level -10"),
        ({"expires_ms": -1}, "expires_at", "before 1970"),
        ({"reason": "a\0"}, "reason", "control character"),
        ({"reason": "a" * 1025}, "reason", "at most 1024"),
    ],
)
def test_refused_rules(change: dict[str, object], field: str, reason: str) -> None:
    with pytest.raises(RuleError) as caught:
        normalised(replace(RULE, **change))  # type: ignore[arg-type]
    assert reason in str(caught.value)
    assert caught.value.field == field


def test_the_own_rule_is_a_rule() -> None:
    own = Rule("own", "wildcard", "_own_workspace", "workspace", "_own", AccessLevel.READWRITE)
    assert normalised(own) == own


@given(st.text(min_size=1, max_size=30).filter(lambda text: "\0" not in text))
def test_spellings_of_a_name_become_one(name: str) -> None:
    spelt = "".join(f"\\{one}" for one in name)
    again = "".join(f"\\{one}" if one in "*?[\\" else one for one in name)
    assert normalised(replace(RULE, resource_id=spelt)) == normalised(replace(RULE, resource_id=again))


def test_levels_and_resources_of_checks() -> None:
    assert checked_level(30) is AccessLevel.MANAGE
    assert current_resource("permission", "_perm:admin_operations") == ("admin", "admin/*")
    assert current_resource("workspace", "_perm:admin_operations") == ("workspace", "_perm:admin_operations")


@pytest.mark.parametrize(
    ("change", "field", "reason"),
    [
        ({"kind": "team"}, "kind", "unknown kind of membership 'team'; known are group, role"),
        ({"kind": "rule"}, "kind", "did you mean role?"),
        ({"name": ""}, "name", "the name of a group is empty"),
        ({"name": "a\n"}, "name", "control character"),
        ({"name": "a" * 129}, "name", "at most 128"),
        ({"member_type": "wildcard"}, "member_type", "unknown principal type"),
        ({"member_type": "role", "member_id": "a" * 129}, "member_id", "at most 128"),
        ({"member_id": ""}, "member_id", "empty"),
        ({"expires_ms": -5}, "expires_at", "before 1970"),
    ],
)
def test_refused_members(change: dict[str, object], field: str, reason: str) -> None:
    with pytest.raises(RuleError) as caught:
        normalised_member(replace(MEMBER, **change))  # type: ignore[arg-type]
    assert reason in str(caught.value)
    assert caught.value.field == field


def test_members_are_named_as_decisions_ask_for_them() -> None:
    assert normalised_member(replace(MEMBER, member_id="us::alice::w1")) == MEMBER
    assert normalised_member(replace(MEMBER, member_type="USER", name="x*")).name == "x*"


def test_locks() -> None:
    assert normalised_lock(Lock("1", r"ag::\prod")).pattern == "ag::prod"
    assert normalised_lock(Lock("1", "ag::prod::*")).pattern == "ag::prod::*"
    for bad in (Lock("1", ""), Lock("1", "["), Lock("1", "a", reason="\0"), Lock("1", "a", expires_ms=-1)):
        with pytest.raises(RuleError):
            normalised_lock(bad)


def nest(*names: str) -> list[Member]:
    return [Member("group", above, "group", below) for below, above in pairwise(names)]


@pytest.mark.parametrize(
    ("members", "new", "problem"),
    [
        ([], Member("group", "a", "group", "b"), None),
        ([], Member("group", "a", "role", "a"), None),
        ([], Member("group", "a", "group", "a"), "cannot be in itself"),
        (nest("a", "b"), Member("group", "a", "group", "b"), "'group:a' is in 'group:b' already"),
        (nest("a", "b", "c"), Member("group", "a", "group", "c"), "membership would create a cycle"),
        (nest("a", "b", "c"), Member("group", "c", "group", "a"), None),
        (nest("a", "b"), Member("group", "b", "group", "a"), None),  # a renewal
        (nest(*"abcdefg"), Member("group", "h", "group", "g"), None),
        (nest(*"abcdefgh"), Member("group", "i", "group", "h"), "would nest 9 deep; at most 8"),
        (nest(*"abcdefgh"), Member("group", "a", "group", "i"), "would nest 9 deep; at most 8"),
        (nest(*"abcd") + nest(*"efgh"), Member("group", "e", "group", "d"), None),
        (nest(*"abcde") + nest(*"fghi"), Member("group", "f", "group", "e"), "would nest 9 deep"),
        (nest(*"abcdefgh"), Member("group", "a", "user", "x"), None),
        (nest(*"abcdefghijk"), Member("group", "a", "user", "x"), "would nest 9 deep"),
    ],
)
def test_membership_problem(members: list[Member], new: Member, problem: str | None) -> None:
    found = membership_problem(members, new)
    if problem is None:
        assert found is None
    else:
        assert problem in (found or "")


@given(st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=40))
def test_what_is_written_has_no_circle_and_is_not_too_deep(pairs: list[tuple[int, int]]) -> None:
    members: list[Member] = []
    for above, below in pairs:
        new = Member("group", f"g{above}", "group", f"g{below}")
        if membership_problem(members, new) is None:
            members.append(new)
        else:
            assert depth([*members, new]) > MAX_DEPTH
    assert depth(members) <= MAX_DEPTH


def depth(members: list[Member]) -> int:
    """The most groups on a chain; for a circle, one too many."""
    groups = {one.container for one in members} | {one.member for one in members}
    chains = dict.fromkeys(groups, 1)
    for _ in range(MAX_DEPTH + 1):
        for one in members:
            chains[one.container] = min(MAX_DEPTH + 1, max(chains[one.container], chains[one.member] + 1))
    return max(chains.values(), default=0)
