"""What lint finds, rule by rule, and that a shadowed rule never decides."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aether_trio.model.access import AccessLevel
from aether_trio.model.access.ladder import AccessIndex
from aether_trio.model.access.lint import LintCode, LintFinding, lint
from aether_trio.model.access.rules import Member, Rule
from tests.model.access.naive import NaiveAccess
from tests.model.access.test_ladder import OPERATIONS, QUESTIONS, apply, index, member, rule

NONE, READ, READWRITE, MANAGE, ADMIN, SUPERADMIN = AccessLevel
AGENT = "agent:ag::prod::echo::1"
NOW_MS = 100


def found(*records: Rule | Member) -> list[tuple[str, str]]:
    return [(one.code.value, one.rule_id or one.subject) for one in lint(index(*records), NOW_MS)]


CASES: list[tuple[list[Any], list[tuple[str, str]]]] = [
    ([], []),
    ([rule(AGENT, "workspace:prod")], []),
    # Expired.
    ([rule(AGENT, "workspace:prod", expires_ms=100, rule_id="r")], [("expired", "r")]),
    ([rule(AGENT, "workspace:prod", expires_ms=101, rule_id="r")], []),
    ([member(AGENT, "group:a", expires_ms=100)], [("expired", AGENT)]),
    # Shadowed by the same subject on all, or by the wildcard of the type.
    ([rule(AGENT, "workspace:p*", rule_id="r"), rule(AGENT, "workspace:*")], [("shadowed", "r")]),
    ([rule(AGENT, "workspace:p*", rule_id="r"), rule(AGENT, "kv_key:*")], []),
    ([rule(AGENT, "workspace:p*", rule_id="r"), rule(AGENT, "workspace:*", expires_ms=200)], []),
    (
        [rule(AGENT, "workspace:p*", expires_ms=150, rule_id="r"), rule(AGENT, "workspace:*", expires_ms=200)],
        [("shadowed", "r")],
    ),
    ([rule(AGENT, "workspace:p*", rule_id="r"), rule("wildcard:_any_agent", "workspace:*")], [("shadowed", "r")]),
    ([rule(AGENT, "workspace:p*", rule_id="r"), rule("wildcard:_any_task", "workspace:*")], []),
    (
        [rule("agent:ag::prod::a::*", "workspace:p", rule_id="r"), rule("wildcard:_any_agent", "workspace:p")],
        [("shadowed", "r")],
    ),
    ([rule("agent:ag::prod::a::*", "workspace:p*", rule_id="r"), rule("wildcard:_any_agent", "workspace:p")], []),
    ([rule("agent:ag::prod::a::*", "workspace:*", rule_id="r"), rule(AGENT, "workspace:*")], []),
    ([rule(AGENT, "workspace:p", rule_id="r"), rule(AGENT, "workspace:*")], []),
    ([rule("wildcard:_any_agent", "workspace:p*", rule_id="r")], [("never", "r")]),
    ([rule("wildcard:_any_agent", "workspace:*", rule_id="r")], []),
    ([rule("wildcard:_own_workspace", "workspace:_own", rule_id="own")], []),
    ([rule("user:us::alice::*", "workspace:p", rule_id="r")], [("never", "r")]),
    # Outvoted within tier 5.
    ([rule(AGENT, "workspace:pr*", rule_id="r"), rule(AGENT, "workspace:p*", READWRITE)], [("outvoted", "r")]),
    ([rule(AGENT, "workspace:pr*", ADMIN, rule_id="r"), rule(AGENT, "workspace:p*", READWRITE)], []),
    ([rule(AGENT, "workspace:a*", rule_id="1"), rule(AGENT, "workspace:a*[b-d]", rule_id="2")], [("outvoted", "2")]),
    ([rule(AGENT, "kv_key:a?*", rule_id="1"), rule(AGENT, "kv_key:a*?", rule_id="2")], [("outvoted", "2")]),
    # Groups.
    ([rule("group:a", "workspace:p", rule_id="r")], [("empty_group", "r")]),
    ([rule("group:a", "workspace:p", rule_id="r"), member(AGENT, "group:a")], []),
    ([rule("group:a", "workspace:p", rule_id="r"), member(AGENT, "role:a")], [("empty_group", "r")]),
    (
        [rule("group:a", "workspace:p", rule_id="r"), member(AGENT, "group:a", expires_ms=50)],
        [("empty_group", "r"), ("expired", AGENT)],
    ),
    ([rule("group:a*", "workspace:p", rule_id="r"), member(AGENT, "group:b")], [("empty_group", "r")]),
    ([rule("group:a*", "workspace:p", rule_id="r"), member(AGENT, "group:ab")], []),
    # Breadth.
    ([rule("agent:ag::prod::*", "workspace:p", rule_id="r")], [("broad", "r")]),
    ([rule("agent:ag::prod::echo*", "workspace:p", rule_id="r")], [("broad", "r")]),
    ([rule("agent:ag::prod::echo::*", "workspace:p", rule_id="r")], []),
    ([rule("agent:*", "workspace:p", rule_id="r")], [("broad", "r")]),
    ([rule("service:sv::*", "workspace:p", rule_id="r")], [("broad", "r")]),
    ([rule("service:sv::echo::*", "workspace:p", rule_id="r")], []),
    ([rule("user:a*", "workspace:p", rule_id="r")], []),
    ([rule(AGENT, "agent:ag::prod::*", rule_id="r")], [("broad", "r")]),
    ([rule(AGENT, "topic:us::*", rule_id="r")], [("broad", "r")]),
    ([rule(AGENT, "agent:*", rule_id="r")], []),
    ([rule("agent:ag::prod::*", "workspace:p", NONE, rule_id="r")], [("weak_ban", "r")]),
    # Names and patterns that are taken for each other.
    ([rule(AGENT, "kv_key:wh?t", rule_id="r")], [("looks_like_name", "r")]),
    ([rule(AGENT, r"kv_key:wh\?t", rule_id="r")], []),
    ([rule(AGENT, "kv_key:{a,b}", rule_id="r")], [("looks_like_pattern", "r")]),
    ([rule(AGENT, "kv_key:a%", rule_id="r")], [("looks_like_pattern", "r")]),
    ([rule(AGENT, "topic:a.>", rule_id="r")], [("looks_like_pattern", "r")]),
    ([rule(AGENT, "kv_key:a.*", rule_id="r")], [("looks_like_pattern", "r")]),
    ([rule(AGENT, "kv_key:a/**", rule_id="r")], [("looks_like_pattern", "r")]),
    ([member(AGENT, "group:a*")], [("looks_like_pattern", "group:a*")]),
]


@pytest.mark.parametrize(("records", "expected"), CASES)
def test_findings(records: list[Any], expected: list[tuple[str, str]]) -> None:
    assert found(*records) == expected


def test_findings_say_what_to_do() -> None:
    access = index(rule(AGENT, "kv_key:wh?t", rule_id="r"))
    assert lint(access, 0) == [
        LintFinding(
            LintCode.LOOKS_LIKE_NAME,
            "r",
            AGENT,
            "kv_key:wh?t",
            r"'wh?t' is a pattern; as a name it is written 'wh\\?t'",
        )
    ]


@settings(max_examples=60)
@given(st.lists(OPERATIONS, max_size=20))
def test_a_rule_that_never_decides_can_be_removed(operations: list[tuple[Any, ...]]) -> None:
    access, plain = AccessIndex(), NaiveAccess()
    for one in operations:
        apply(one, access, plain)
    useless = {
        one.rule_id
        for one in lint(access, 15)
        if one.rule_id and one.code in {LintCode.SHADOWED, LintCode.NEVER, LintCode.OUTVOTED, LintCode.EXPIRED}
    }
    before = [plain.answer(question, now_ms) for question in QUESTIONS for now_ms in (15, 25, 35)]
    for rule_id in useless:
        plain.remove_rule(rule_id)
    after = [plain.answer(question, now_ms) for question in QUESTIONS for now_ms in (15, 25, 35)]
    assert [(one.level, one.tier) for one in before] == [(one.level, one.tier) for one in after]
