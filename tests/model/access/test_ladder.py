"""The ladder: each tier by example, and against the naive evaluator of the table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aether_trio.model.access import AccessLevel
from aether_trio.model.access.ladder import MAX_ASKED, AccessIndex, Verdict
from aether_trio.model.access.patterns import Pattern
from aether_trio.model.access.rules import Lock, Member, Rule, membership_problem
from tests.model.access.naive import NaiveAccess, Question

NONE, READ, READWRITE, MANAGE, ADMIN, SUPERADMIN = AccessLevel
ALICE = "agent", "ag::prod::echo::alice"


def rule(subject: str, resource: str, level: int = READ, expires_ms: int = 0, rule_id: str = "") -> Rule:
    principal_type, _, principal_id = subject.partition(":")
    resource_type, _, resource_id = resource.partition(":")
    return Rule(
        rule_id or f"{subject} {resource}",
        principal_type,
        principal_id,
        resource_type,
        resource_id,
        AccessLevel(level),
        expires_ms=expires_ms,
    )


def member(text: str, container: str, expires_ms: int = 0) -> Member:
    member_type, _, member_id = text.partition(":")
    kind, _, name = container.partition(":")
    return Member(kind, name, member_type, member_id, expires_ms=expires_ms)


def index(*records: Rule | Member | Lock, **fallbacks: AccessLevel) -> AccessIndex:
    made = AccessIndex()
    puts: dict[type, Callable[[Any], None]] = {
        Rule: made.put_rule,
        Member: made.put_membership,
        Lock: made.put_lock,
    }
    for one in records:
        puts[type(one)](one)
    for category, level in fallbacks.items():
        made.set_fallback(category, level)
    return made


def ask(access: AccessIndex, resource: str = "workspace:prod", now_ms: int = 0, own_workspace: str = "") -> Verdict:
    resource_type, _, resource_id = resource.partition(":")
    return access.decide(*ALICE, resource_type, resource_id, now_ms, own_workspace)


SELF = "agent:ag::prod::echo::alice"
TIERS = [
    rule(SELF, "workspace:prod", NONE),
    rule("wildcard:_any_agent", "workspace:prod", READ),
    rule(SELF, "workspace:*", READWRITE),
    rule("wildcard:_any_agent", "workspace:*", MANAGE),
    rule("agent:ag::prod::*", "workspace:prod", ADMIN),
]
REASONS = [
    "Explicit rule: NONE",
    "Wildcard rule: READ",
    "Any-resource rule: READWRITE",
    "Wildcard any-resource rule: MANAGE",
    "Glob pattern rule: ADMIN",
]


@pytest.mark.parametrize("first", range(6))
def test_the_first_tier_with_a_rule_decides(first: int) -> None:
    access = index(*TIERS[first:], agent_workspace=SUPERADMIN)
    verdict = ask(access)
    if first == 5:
        assert verdict == (SUPERADMIN, 6, "", "", "Fallback policy for agent_workspace: SUPERADMIN", 0)
    else:
        assert verdict == (TIERS[first].level, first + 1, TIERS[first].rule_id, "", REASONS[first], 0)


@pytest.mark.parametrize("kind", ["group", "role"])
def test_groups_and_roles_count_as_the_principal_does(kind: str) -> None:
    access = index(
        member(SELF, f"{kind}:ops"),
        rule(SELF, "workspace:prod", NONE),
        rule(f"{kind}:ops", "workspace:prod", MANAGE),
    )
    assert ask(access)[:5] == (
        MANAGE,
        1,
        f"{kind}:ops workspace:prod",
        f"{kind}:ops",
        f"Explicit rule: MANAGE (via {kind}:ops)",
    )


def test_groups_nest() -> None:
    chain = [member(f"group:g{n}", f"role:r{n}") for n in range(2)] + [member("role:r0", "group:g1")]
    access = index(member(SELF, "group:g0"), *chain, rule("role:r1", "workspace:*", READ))
    assert access.subjects(*ALICE, 0) == (SELF, "group:g0", "role:r0", "group:g1", "role:r1")
    assert ask(access).via == "role:r1"


def test_a_membership_ends_at_its_moment() -> None:
    access = index(
        member(SELF, "group:ops", expires_ms=100), rule("group:ops", "workspace:prod", READ), agent_workspace=NONE
    )
    assert ask(access, now_ms=99)[:2] == (READ, 1)
    assert ask(access, now_ms=99).until_ms == 100
    assert ask(access, now_ms=100)[:2] == (NONE, 6)
    assert ask(access, now_ms=98).level == READ  # a clock may be set back


def test_of_two_chains_to_a_group_the_longer_lasting_counts() -> None:
    access = index(
        member(SELF, "group:a", expires_ms=100),
        member(SELF, "group:b", expires_ms=300),
        member("group:a", "group:ops"),
        member("group:b", "group:ops", expires_ms=200),
        rule("group:ops", "workspace:prod", READ, expires_ms=250),
    )
    assert ask(access).until_ms == 200
    assert ask(access, now_ms=150) == ask(access)
    assert ask(access, now_ms=200).tier == 6


def test_a_rule_ends_at_its_moment() -> None:
    access = index(rule(SELF, "workspace:prod", ADMIN, expires_ms=100), rule(SELF, "workspace:*", READ))
    assert ask(access, now_ms=99)[:2] == (ADMIN, 1)
    assert ask(access, now_ms=99).until_ms == 100
    assert ask(access, now_ms=100)[:2] == (READ, 3)


def test_a_none_is_outvoted_in_its_tier_only() -> None:
    access = index(rule(SELF, "workspace:prod", NONE), rule("agent:*", "workspace:*", ADMIN))
    assert ask(access).level is NONE


@pytest.mark.parametrize(
    ("asked", "level"),
    [("admin:admin/acl", ADMIN), ("admin:admin/*", ADMIN), ("admin:admin/acl/x", NONE), ("admin:admin", NONE)],
)
def test_a_star_does_not_cross_a_slash(asked: str, level: AccessLevel) -> None:
    assert ask(index(rule(SELF, "admin:admin/*", ADMIN)), asked).level is level


def test_any_resource_includes_names_with_slashes_and_a_pattern_of_a_subject_does_not() -> None:
    assert ask(index(rule(SELF, "kv_key:*")), "kv_key:a/b")[:2] == (READ, 3)
    assert ask(index(rule("agent:ag::*", "kv_key:*")), "kv_key:a/b")[:2] == (NONE, 6)
    assert ask(index(rule("agent:ag::*", "kv_key:*")), "kv_key:a")[:2] == (READ, 5)


@pytest.mark.parametrize("asked", ["*", "pro?", "[p]rod", "p*", "\\*"])
def test_what_is_asked_for_is_a_name(asked: str) -> None:
    access = index(rule(SELF, "workspace:prod", ADMIN), rule(SELF, "workspace:prod-*", ADMIN))
    assert ask(access, f"workspace:{asked}").level is NONE
    assert access.decide("agent", asked, "workspace", "prod", 0).level is NONE


def test_an_escaped_name_is_exact() -> None:
    access = index(rule(SELF, r"kv_key:wh\?t", ADMIN), rule(SELF, "kv_key:wh?t", READ), rule(r"agent:\*", r"kv_key:\*"))
    assert ask(access, "kv_key:wh?t")[:2] == (ADMIN, 1)
    assert ask(access, "kv_key:what")[:2] == (READ, 5)
    assert access.decide("agent", "*", "kv_key", "*", 0)[:2] == (READ, 1)
    access.remove_rule(rf"{SELF} kv_key:wh\?t")
    assert ask(access, "kv_key:wh?t")[:2] == (READ, 5)


def test_wildcards_are_not_in_tier_5() -> None:
    access = index(
        rule("wildcard:_any_agent", "workspace:pr*", ADMIN), rule("wildcard:_any_*", "workspace:prod", ADMIN)
    )
    assert ask(access).tier == 6


def test_types_without_a_wildcard_have_none() -> None:
    access = index(rule("wildcard:_any_agent", "workspace:prod"))
    assert access.decide("bridge", "br::a::b", "workspace", "prod", 0).tier == 6
    assert access.decide("task", "tu::a::b::c", "workspace", "prod", 0).tier == 6


def test_patterns_of_groups_match_names_of_groups() -> None:
    access = index(member(SELF, "group:dev-eu"), rule("group:dev-*", "workspace:prod"))
    assert ask(access)[:4] == (READ, 5, "group:dev-* workspace:prod", "group:dev-eu")


def test_nothing_known_is_no() -> None:
    verdict = AccessIndex().decide("robot", "\0", "thing", "\ud800", 0)
    assert verdict == (NONE, 6, "", "", "No rule or fallback policy for robot_thing", 0)


OWN = rule("wildcard:_own_workspace", "workspace:_own", READWRITE, expires_ms=50, rule_id="own")


@pytest.mark.parametrize(
    ("asked", "own", "now_ms", "level"),
    [
        ("workspace:prod", "prod", 0, READWRITE),
        ("workspace:prod", "prod", 50, NONE),
        ("workspace:dev", "prod", 0, NONE),
        ("workspace:prod", "", 0, NONE),
        ("workspace:", "", 0, NONE),
        ("kv_scope:workspace", "prod", 0, READWRITE),
        ("kv_scope:workspace", "", 0, NONE),
        ("kv_scope:global", "prod", 0, NONE),
        ("topic:prod", "prod", 0, NONE),
    ],
)
def test_the_rule_own(asked: str, own: str, now_ms: int, level: AccessLevel) -> None:
    verdict = ask(index(OWN), asked, now_ms, own)
    assert verdict.level is level
    if level:
        assert verdict == (READWRITE, 6, "own", "", "Rule own: READWRITE", 50)
    assert ask(index(OWN, agent_workspace=READ), "workspace:prod", 0, "prod").rule_id == "own"
    assert ask(index(OWN, agent_workspace=MANAGE), "workspace:prod", 0, "prod").rule_id == ""
    assert ask(index(OWN, rule(SELF, "workspace:prod", NONE)), "workspace:prod", 0, "prod").level is NONE


def test_the_rule_own_is_replaced_and_removed() -> None:
    access = index(OWN, rule("wildcard:_own_workspace", "workspace:_own", READ, rule_id="other"))
    assert [one.rule_id for one in access.rules()] == ["other"]
    assert ask(access, own_workspace="prod").level is READ
    access.remove_rule("other")
    assert ask(access, own_workspace="prod").level is NONE


def test_locks() -> None:
    locks = [
        Lock("1", "ag::prod::*", expires_ms=100),
        Lock("2", "ag::prod::echo*", expires_ms=200),
        Lock("3", "user:bob"),
        Lock("4", r"ag::\*::x"),
    ]
    access = index(*locks)
    assert access.locked(*ALICE, ALICE[1], 0) == locks[1]
    assert access.locked(*ALICE, ALICE[1], 199) == locks[1]
    assert access.locked(*ALICE, ALICE[1], 200) is None
    assert access.locked("user", "bob", "us::bob::1", 10**15) == locks[2]
    assert access.locked("user", "bobby", "us::bobby::1", 0) is None
    with_slash = "ag::prod::a/b::c"
    assert access.locked("agent", with_slash, with_slash, 0) == locks[0]
    access.remove_lock("2")
    access.remove_lock("2")
    assert access.locked(*ALICE, ALICE[1], 0) == locks[0]
    assert list(access.locks()) == [locks[0], *locks[2:]]


def test_a_dropped_group_takes_all_with_it() -> None:
    access = index(
        member(SELF, "group:ops"),
        member("group:ops", "role:admin"),
        rule("group:ops", "workspace:prod"),
        rule("role:admin", "workspace:*", ADMIN),
        rule("group:o*", "workspace:dev"),
        rule("role:ops", "workspace:dev"),
    )
    access.drop_role("ops")
    assert ask(access).via == "group:ops"
    access.drop_group("ops")
    assert ask(access).tier == 6
    assert list(access.memberships()) == []
    assert {one.subject for one in access.rules()} == {"role:admin", "group:o*"}
    access.put_membership(member(SELF, "group:ops"))  # born again, without its rules
    assert ask(access).tier == 6


def test_explain_lists_what_matches_in_order() -> None:
    access = index(
        *TIERS,
        member(SELF, "group:ops"),
        rule("group:ops", "workspace:prod", READWRITE, expires_ms=10),
        rule(SELF, "kv_key:x"),
        OWN,
        agent_workspace=READ,
    )
    explanation = access.explain(*ALICE, "workspace", "prod", 20, own_workspace="prod")
    assert explanation.subjects == (SELF, "group:ops")
    assert explanation.verdict == ask(access, now_ms=20, own_workspace="prod")
    assert [(one.tier, one.subject, one.level, one.expired) for one in explanation.contributions] == [
        (1, "group:ops", READWRITE, True),
        (1, SELF, NONE, False),
        (2, "wildcard:_any_agent", READ, False),
        (3, SELF, READWRITE, False),
        (4, "wildcard:_any_agent", MANAGE, False),
        (5, SELF, ADMIN, False),
        (6, "wildcard:_own_workspace", READWRITE, False),
        (6, "fallback:agent_workspace", READ, False),
    ]
    assert explanation.contributions[5].resource == "workspace:prod"


def test_next_expiry_forgets_what_is_gone() -> None:
    access = index(
        rule(SELF, "workspace:a", expires_ms=30),
        member(SELF, "group:ops", expires_ms=20),
        Lock("1", "x*", expires_ms=40),
        rule(SELF, "workspace:b"),
    )
    assert access.next_expiry_ms(0) == 20
    assert access.next_expiry_ms(20) == 30
    access.put_rule(rule(SELF, "workspace:a", expires_ms=50))
    assert access.next_expiry_ms(20) == 40
    access.remove_lock("1")
    assert access.next_expiry_ms(20) == 50
    access.remove_rule(f"{SELF} workspace:a")
    assert access.next_expiry_ms(20) == 0


def test_renewed_rules_leave_no_heap_behind() -> None:
    access = AccessIndex()
    for moment in range(1, 10_000):
        access.put_rule(rule(SELF, "workspace:a", expires_ms=moment))
    assert len(access._expiries) <= 128
    assert access.next_expiry_ms(0) == 9_999


def test_a_bad_pattern_changes_nothing() -> None:
    access = index(rule(SELF, "workspace:prod", rule_id="1"))
    with pytest.raises(ValueError, match="bad pattern"):
        access.put_rule(rule(SELF, "workspace:[", rule_id="1"))
    assert ask(access).level is READ


# Against the table.

LEVELS = st.sampled_from([NONE, READ, MANAGE])
MOMENTS = st.sampled_from([0, 0, 10, 20, 30])
SUBJECTS = st.sampled_from(
    [
        *(
            "agent:a",
            "agent:b",
            "agent:a/b",
            r"agent:\*",
            r"agent:\a",
            "user:a",
            "group:g",
            "group:h",
            "role:r",
            "role:g",
        ),
        *("agent:*", "agent:?", "agent:[ab]", "agent:a*b", "agent:a/*", "group:?", "role:*", "agent:**", "user:*"),
        *("agent:*b", "agent:?/b", "agent:[a]*b", "agent:a?b", "role:*r"),
        *("wildcard:_any_agent", "wildcard:_any_authenticated_user"),
    ]
)
RESOURCES = st.sampled_from(
    [
        *("workspace:w", "workspace:v", "workspace:w/x", r"workspace:\*", r"workspace:\w", "kv_scope:workspace"),
        *("kv_key:k", "kv_key:*", "kv_key:k*", r"kv_key:\k"),
        *(
            "workspace:*",
            "workspace:?",
            "workspace:[wv]",
            "workspace:w*",
            "workspace:w/?",
            "workspace:**",
            "kv_scope:w*",
        ),
    ]
)
MEMBERS = st.sampled_from(["agent:a", "agent:b", "user:a", "group:g", "group:h", "role:r", "role:g", "agent:a/b"])
CONTAINERS = st.sampled_from(["group:g", "group:h", "role:r", "role:g", "group:k"])
RULES = st.builds(
    lambda subject, resource, level, expires_ms, version: rule(
        subject, resource, level, expires_ms, f"{subject} {resource} {version}"
    ),
    SUBJECTS,
    RESOURCES,
    LEVELS,
    MOMENTS,
    st.sampled_from("12"),
)
OWN_RULES = st.builds(
    lambda level, expires_ms: rule("wildcard:_own_workspace", "workspace:_own", level, expires_ms, "own"),
    LEVELS,
    MOMENTS,
)
LOCKS = st.builds(
    lambda number, pattern, expires_ms: Lock(number, pattern, expires_ms=expires_ms),
    st.sampled_from("123"),
    st.sampled_from(["a", "a*", "agent:*", "*b", "?", "user:a", "[ab]/?"]),
    MOMENTS,
)
QUESTIONS = [
    Question(*principal, *resource, own, groups)
    for principal, resource, (own, groups) in product(
        [("agent", "a"), ("agent", "a/b"), ("agent", "*"), ("user", "a"), ("bridge", "b")],
        [("workspace", "w"), ("workspace", "w/x"), ("workspace", "*"), ("kv_scope", "workspace"), ("kv_key", "k")],
        [("", ()), ("w", ("h", "g"))],
    )
]
OPERATIONS = st.one_of(
    st.tuples(st.just("put_rule"), RULES),
    st.tuples(st.just("put_rule"), RULES),
    st.tuples(st.just("put_rule"), OWN_RULES),
    st.tuples(st.just("remove_rule"), st.integers(0, 30)),
    st.tuples(st.just("put_membership"), st.builds(member, MEMBERS, CONTAINERS, MOMENTS)),
    st.tuples(st.just("put_membership"), st.builds(member, MEMBERS, CONTAINERS, MOMENTS)),
    st.tuples(st.just("remove_membership"), st.builds(member, MEMBERS, CONTAINERS)),
    st.tuples(st.just("drop"), CONTAINERS),
    st.tuples(st.just("fallback"), st.sampled_from(["agent_workspace", "user_workspace"]), st.none() | LEVELS),
    st.tuples(st.just("put_lock"), LOCKS),
    st.tuples(st.just("remove_lock"), st.sampled_from("123")),
    st.tuples(st.just("ask"), st.sampled_from(QUESTIONS), st.sampled_from([0, 5, 10, 20, 25, 30, 40])),
)


def apply(operation: tuple[Any, ...], access: AccessIndex, plain: NaiveAccess) -> None:
    match operation:
        case "put_rule", one:
            access.put_rule(one)
            plain.put_rule(one)
        case "remove_rule", number:
            rule_id = plain.rules[number % len(plain.rules)].rule_id if plain.rules else "none"
            access.remove_rule(rule_id)
            plain.remove_rule(rule_id)
        case "put_membership", one:
            if membership_problem(plain.members, one) is None:
                access.put_membership(one)
                plain.put_membership(one)
        case "remove_membership", one:
            key = one.kind, one.name, one.member_type, one.member_id
            access.remove_membership(*key)
            plain.remove_membership(*key)
        case "drop", text:
            kind, _, name = text.partition(":")
            (access.drop_group if kind == "group" else access.drop_role)(name)
            plain.drop(kind, name)
        case "fallback", category, level:
            access.set_fallback(category, level)
            plain.fallbacks.pop(category, None)
            if level is not None:
                plain.fallbacks[category] = level
        case "put_lock", lock:
            access.put_lock(lock)
            plain.put_lock(lock)
        case "remove_lock", lock_id:
            access.remove_lock(lock_id)
            plain.remove_lock(lock_id)
        case "ask", question, now_ms:
            compare(question, now_ms, access, plain)


def compare(question: Question, now_ms: int, access: AccessIndex, plain: NaiveAccess) -> None:
    verdict = access.decide(*question.arguments, now_ms, question.own_workspace, question.groups)
    answer = plain.answer(question, now_ms)
    assert (verdict.level, verdict.tier, verdict.rule_id, verdict.via) == (
        answer.level,
        answer.tier,
        answer.rule_id,
        answer.via,
    )
    if question.resource_type == "kv_key" and verdict.tier < 6:
        principal = question.principal_type, question.principal_id
        assert access.may_have_key_rules(*principal, now_ms, question.groups)
    assert verdict.reason.endswith(f"(via {verdict.via})") is bool(verdict.via)
    for later_ms in (10, 20, 30, 40):
        if now_ms < later_ms and (not verdict.until_ms or later_ms < verdict.until_ms):
            assert plain.answer(question, later_ms).level == verdict.level
            assert plain.answer(question, later_ms).tier == verdict.tier


def compare_all(access: AccessIndex, plain: NaiveAccess) -> None:
    for question in QUESTIONS:
        for now_ms in (15, 0):
            compare(question, now_ms, access, plain)
        explanation = access.explain(*question.arguments, 15, question.own_workspace, question.groups)
        assert explanation.verdict == access.decide(*question.arguments, 15, question.own_workspace, question.groups)
        assert {
            (one.tier, one.subject, one.rule_id, one.resource, one.expired) for one in explanation.contributions
        } - {(6, f"fallback:{category}", "", category, False) for category in plain.fallbacks} == {
            (tier, subject, one.rule_id, one.resource, not one.is_live(15))
            for tier, subject, one in plain.matching(question, 15)
        }
        principal = f"{question.principal_type}:{question.principal_id}"
        assert set(explanation.subjects) == plain.subjects(principal, 15, question.groups)
        lock = access.locked(question.principal_type, question.principal_id, question.principal_id, 15)
        barred = plain.lock_ids(principal, question.principal_id, 15)
        assert (lock is None) is not bool(barred)
        assert lock is None or lock.lock_id in barred
    assert sorted(one.rule_id for one in access.rules()) == sorted(one.rule_id for one in plain.rules)
    assert all(access.rule(one.rule_id) == one for one in plain.rules)
    assert sorted(one.member + one.container for one in access.memberships()) == sorted(
        one.member + one.container for one in plain.members
    )
    assert access.next_expiry_ms(15) == plain.next_expiry_ms(15)


@settings(max_examples=150)
@given(st.lists(OPERATIONS, max_size=25))
@example(
    [
        ("put_rule", rule("agent:a", "workspace:w")),
        ("put_rule", rule("agent:a", r"workspace:\w", expires_ms=10)),
    ]
)
@example(
    [
        ("put_rule", rule("agent:a", "workspace:w*")),
        ("put_rule", rule(r"agent:\a", "workspace:w*", NONE)),
    ]
)
@example(
    [
        ("put_rule", rule("agent:a", "workspace:w", rule_id="x")),
        ("put_rule", rule("agent:b", "workspace:w", rule_id="x")),
    ]
)
def test_the_index_answers_as_the_table_says(operations: list[tuple[Any, ...]]) -> None:
    access, plain = AccessIndex(), NaiveAccess()
    for one in operations:
        apply(one, access, plain)
    compare_all(access, plain)
    for rule_id in [one.rule_id for one in plain.rules]:
        access.remove_rule(rule_id)
    for one in plain.members:
        access.remove_membership(one.kind, one.name, one.member_type, one.member_id)
    for lock in plain.locks:
        access.remove_lock(lock.lock_id)
    for category in plain.fallbacks:
        access.set_fallback(category, None)
    assert_empty(access)


def assert_empty(access: AccessIndex) -> None:
    """Nothing is left behind: not in the indexes by prefix either."""
    left = (access._rules, access._exact, access._any, access._pattern_rules, access._key_rules, access._own)
    assert not any(left)
    assert not any((access._above, access._members, access._locks, access._fallbacks))
    assert len(access._locks_by_prefix) == 0
    for places in (*access._by_resource, *access._by_subject):
        assert not any(map(len, places.values()))
    assert access.next_expiry_ms(0) == 0


def test_clear_forgets_all() -> None:
    access = index(*TIERS, member(SELF, "group:ops"), Lock("1", "*"), OWN, agent_workspace=READ)
    access.clear()
    assert_empty(access)
    assert ask(access).tier == 6


def test_the_remembered_principals_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aether_trio.model.access.ladder.MAX_REMEMBERED", 3)
    access = index(*(member(f"agent:a{n}", "group:ops") for n in range(10)))
    for n in range(10):
        assert access.subjects("agent", f"a{n}", 0) == (f"agent:a{n}", "group:ops")
        access.subjects("agent", f"other{n}", 0)
    assert len(access._subjects) <= 3


def test_a_group_that_is_known_already_hides_no_other() -> None:
    access = index(
        member(SELF, "group:a"),
        member(SELF, "group:b"),
        member("group:a", "group:b"),
        member("group:a", "group:c"),
        rule("group:c", "workspace:prod"),
    )
    assert ask(access).via == "group:c"


def test_the_remembered_places_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aether_trio.model.access.ladder.MAX_REMEMBERED", 3)
    access = index(rule("agent:a*", "workspace:prod"))
    for n in range(10):
        assert access.decide("agent", f"a{n}", "workspace", "prod", 0).level is READ
        assert access.decide("agent", f"b{n}", "workspace", "prod", 0).level is NONE
    assert len(access._by_subject[0]["agent"]._remembered) <= 3


@pytest.mark.parametrize(
    "resource",
    [
        "workspace:team-{n}-*",
        "workspace:*-team-{n}",
        "workspace:*/team-{n}/*",
        "kv_key:*-team-{n}",
    ],
)
@pytest.mark.parametrize(
    "subject", ["{self}", "agent:ag::*::echo-{n}::alice", "agent:ag::prod::echo-{n}::*", "agent:*"]
)
def test_few_of_many_patterns_are_tried(subject: str, resource: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []
    matches = Pattern.matches
    monkeypatch.setattr(Pattern, "matches", lambda self, text: tried.append(self) or matches(self, text))
    access = index(
        *(rule(subject.format(self=SELF, n=n), resource.format(n=n), rule_id=str(n)) for n in range(200)),
    )
    names = {"alice": ALICE, "echo-7": ("agent", "ag::prod::echo-7::alice")}
    for principal in names.values():
        for asked in ("team-7-x", "x-team-7", "x/team-7/x"):
            tried.clear()
            access.decide(*principal, resource.partition(":")[0], asked, 0)
            scanned = resource.startswith("workspace:*/") and subject in {"{self}", "agent:*"}
            assert len(tried) <= (400 if scanned else 4)


def test_a_pattern_counts_for_principals_that_have_asked_before() -> None:
    access = index(member(SELF, "group:ops"))
    assert ask(access).level is NONE
    access.put_rule(rule("group:o*", "workspace:prod", READ, rule_id="1"))
    assert ask(access).level is READ
    access.put_rule(rule("group:op*", "workspace:prod", MANAGE, rule_id="2"))
    assert ask(access).level is MANAGE
    access.remove_rule("2")
    assert ask(access).level is READ
    access.remove_rule("1")
    assert ask(access).level is NONE


def test_the_rules_of_a_principal_are_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client may ask for them with each request, and the look-up passes all rules."""
    made = AccessIndex()
    looked: list[frozenset[str]] = []
    find = made._find_rules_of

    def counted(subjects: frozenset[str]) -> list[Rule]:
        looked.append(subjects)
        return find(subjects)

    monkeypatch.setattr(made, "_find_rules_of", counted)
    mine = Rule("1", "agent", "x", "workspace", "a", AccessLevel.READ)
    for known in ([mine], [mine, replace(mine, rule_id="2", principal_id="?")], [mine]):
        for rule in known:
            made.put_rule(rule)
        for rule_id in {"1", "2"} - {rule.rule_id for rule in known}:
            made.remove_rule(rule_id)
        looked.clear()
        for _ in range(3):
            found = made.rules_of(["agent:x", "group:g"])
            assert sorted(rule.rule_id for rule in found) == [rule.rule_id for rule in known]
            found.clear()
        assert len(looked) == 1
    for number in range(1000):
        made.rules_of([f"agent:{number}"])
    assert len(made._rules_of) <= MAX_ASKED
