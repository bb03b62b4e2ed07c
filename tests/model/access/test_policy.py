"""Policies: read with their mistakes, compared with a state, applied, rehearsed."""

from __future__ import annotations

from itertools import count
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aether_trio.cli.access.policy_file import policy_node
from aether_trio.model.access import AccessLevel
from aether_trio.model.access.policy import (
    SECTIONS,
    AccessState,
    Policy,
    PolicyGroup,
    PolicyLock,
    PolicyMember,
    PolicyRule,
    apply_changes,
    base_state,
    difference,
    judge,
    rehearsed,
    run_tests,
    state_problems,
)
from aether_trio.model.access.policy_reading import PolicyError, read_policy
from aether_trio.model.access.rules import GROUP, ROLE, Lock, Member, Rule
from aether_trio.model.access.spellings import parse_moment

NOW_MS = 1_800_000_000_000
LATER_MS = NOW_MS + 1000
IDS = count(1)


def read(text: str) -> Policy:
    return read_policy(policy_node(text))


def problems(text: str) -> list[str]:
    with pytest.raises(PolicyError) as caught:
        read(text)
    return [f"{one.line}: {one.text}" for one in caught.value.problems]


def applied(policy: Policy, state: AccessState, *, prune: bool = False) -> AccessState:
    found = difference(policy, state, now_ms=NOW_MS, by="me", new_id=lambda: f"new-{next(IDS)}", prune=prune)
    return apply_changes(state, found.changes)


def lines(policy: Policy, state: AccessState, *, prune: bool = False) -> list[str]:
    found = difference(policy, state, now_ms=NOW_MS, new_id=lambda: "new", prune=prune)
    return [str(one.line()) for one in found.changes]


FILE = """
version: 1
base: closed
names:
  ann: ag::red::ann::1
  bob: us::bob
roles:
  deployers:
    description: may deploy
    members:
      - bob
      - {member: "group:leads", expires: 2030-01-31}
groups:
  leads: [ann]
  readers:
rules:
  - group:leads readwrite workspace:blue
  - principal: role:deployers
    level: 30
    resource: capability/create_workspace
    reason: deploys
    expires: 2030-01-31T12:00:00+02:00
  - _any_agent read kv_scope:global
fallbacks:
  agent_topic: read
locks:
  - ag::prod::*
  - {pattern: bob, reason: left}
tests:
  - ann may readwrite workspace:blue
  - ann may not manage workspace:blue
  - ann may readwrite workspace:red
  - {test: ann may manage capability/create_workspace, at: 2029-01-01}
  - {test: ann may not manage capability/create_workspace, at: 2031-01-01}
  - ag::red::new::1 may read kv_scope:global
  - bob may not read workspace:blue
  - ag::prod::x::1 may not readwrite workspace:prod
"""


def test_a_file_is_read() -> None:
    policy = read(FILE)
    assert policy.base == "closed"
    assert policy.sections == SECTIONS
    assert policy.groups == (
        PolicyGroup("role", "deployers", "may deploy"),
        PolicyGroup("group", "leads"),
        PolicyGroup("group", "readers"),
    )
    assert policy.members == (
        PolicyMember("role", "deployers", "user", "bob"),
        PolicyMember("role", "deployers", "group", "leads", parse_moment("2030-01-31")),
        PolicyMember("group", "leads", "agent", "ag::red::ann::1"),
    )
    first, second, third = policy.rules
    assert first == PolicyRule("group", "leads", "workspace", "blue", AccessLevel.READWRITE, line=17)
    assert second.key == ("role", "deployers", "capability", "capability/create_workspace")
    assert (second.level, second.reason, second.line) == (AccessLevel.MANAGE, "deploys", 18)
    assert second.expires_ms == parse_moment("2030-01-31T10:00:00Z")
    assert third.key == ("wildcard", "_any_agent", "kv_scope", "global")
    assert policy.fallbacks == (("agent_topic", AccessLevel.READ),)
    assert policy.locks == (PolicyLock("ag::prod::*"), PolicyLock("user:bob", "left"))
    assert [one.allowed for one in policy.tests] == [True, False, True, True, False, True, False, False]


def test_the_tests_of_a_file_say_what_decides() -> None:
    policy = read(FILE)
    outcomes = run_tests(policy.tests, rehearsed(policy, now_ms=NOW_MS).index(), NOW_MS)
    assert [one.passed for one in outcomes] == [True] * 8
    why = [one.why for one in outcomes]
    assert why[0] == "rule line-17: group:leads readwrite workspace:blue (tier 1, via group:leads)"
    assert why[2] == "rule own: _own_workspace readwrite workspace:_own (tier 6)"
    assert why[4] == "No rule or fallback policy for agent_capability"
    assert why[6] == "the lock on user:bob"


def test_a_test_that_fails_says_so() -> None:
    policy = read("version: 1\ntests: [us::bob may read workspace:red]")
    [outcome] = run_tests(policy.tests, rehearsed(policy, now_ms=NOW_MS).index(), NOW_MS)
    assert not outcome.passed
    assert outcome.why == "No rule or fallback policy for user_workspace"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ["1: the policy has no version; write `version: 1`"]),
        ("[]", ["1: the policy is a mapping, not a list"]),
        ("version: 2", ["1: unknown version 2; this gateway reads version 1"]),
        ("version: true", ["1: unknown version True; this gateway reads version 1"]),
        ("version: 1\nrule: []", ["2: unknown key 'rule' of the policy; did you mean rules?"]),
        ("version: 1\nbase: close", ["2: unknown base 'close'; did you mean closed?; it is one of closed, open, none"]),
        ("version: 1\nrules: x", ["2: rules is a list, not 'x'"]),
        ("version: 1\nversion: 1", ["2: the key 'version' is given twice; remove one"]),
        (
            "version: 1\nrules:\n- user:a rea workspace:b",
            [("3: unknown access level 'rea'; did you mean read?; the levels are none (0), read (10), readwrite (20), "
             "manage (30), admin (40), superadmin (50)")],
        ),
        ("version: 1\nrules:\n- usr:a read workspace:b", ["3: unknown principal type 'usr'; did you mean user?"]),
        ("version: 1\nrules:\n- user:a read worksp:b", ["3: unknown resource type 'worksp'; did you mean workspace?"]),
        ("version: 1\nrules:\n- agg::x read workspace:b", ["3: unknown prefix 'agg' of an identity; did you mean ag?"]),
        ("version: 1\nrules:\n- _any_agents read workspace:b", [("3: '_any_agents' is no principal; did you mean _any_agent?: "
         "write an identity (ag::red::ann::1), TYPE:ID (user:eve, group:readers) or a wildcard (_any_agent)")]),
        ("version: 1\nnames: {anna: 'user:a'}\nrules:\n- ana read workspace:b", ["4: 'ana' is not in `names`; did you mean anna?"]),
        ("version: 1\nrules:\n- {principal: 'user:a', level: read}", ["3: a rule needs `resource`"]),
        ("version: 1\nrules:\n- {principal: 'user:a', levl: read, resource: 'workspace:b'}",
         ["3: a rule needs `level`", "3: unknown key 'levl' of a rule; did you mean level?"]),
        ("version: 1\nrules:\n- user:a read workspace:b\n- user:a manage workspace:b",
         ["4: this rule is given in line 3 already, for the same resource"]),
        ("version: 1\nrules:\n- {principal: 'user:a', level: read, resource: 'workspace:b', expires: 8h}",
         ["3: '8h' is no time: write a date (2027-01-31) or a time (2027-01-31T18:00:00Z)"]),
        ("version: 1\nrules:\n- 'user:[a read workspace:b'", ["3: principal_id: bad pattern '[a', character 1: the class is not closed"]),
        ("version: 1\ngroups:\n  g: [_any_agent]", [("3: _any_agent cannot be a member; members are agent, task, user, "
         "orchestrator, workflow_engine, metrics_bridge, bridge, service, group, role")]),
        ("version: 1\ngroups:\n  g: ['user:a', 'user:a']", ["3: this member is in group g twice"]),
        ("version: 1\nfallbacks: {agent_workspac: read}", [("2: 'agent_workspac' is no category; did you mean agent_workspace?: "
         "it is the type of a principal and of a resource")]),
        ("version: 1\nlocks: ['user:a', 'user:a']", ["2: the lock on user:a is given twice"]),
        ("version: 1\ntests:\n- user:a can read workspace:b", [("3: 'user:a can read workspace:b': a test is PRINCIPAL may [not] "
         "LEVEL RESOURCE, such as: ann may readwrite workspace:blue")]),
        ("version: 1\ntests:\n- user:* may read workspace:b", [("3: a test is about one principal and one resource, and "
         "'user:*' may be several")]),
        ("version: 1\ntests:\n- user:a may none workspace:b", ["3: a test asks for a level above none"]),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_its_line(text: str, expected: list[str]) -> None:
    found = problems(text)
    if "class is not closed" in expected[0]:  # the text is patterns.py's
        assert found[0].startswith("3: principal_id: bad pattern")
    else:
        assert found == expected


def test_all_problems_come_at_once() -> None:
    assert [one[0] for one in problems("version: 1\nrules:\n- a\n- b\ntests:\n- c\n")] == ["3", "4", "6"]


# -- the difference --------------------------------------------------------------------------------


def test_without_prune_nothing_is_taken_away() -> None:
    state = applied(
        read("version: 1\nrules: ['user:a read workspace:x']\ngroups: {g: ['user:a']}"), base_state("closed")
    )
    policy = read("version: 1\nrules: ['user:b read workspace:x']\ngroups: {h: ['user:b']}")
    assert lines(policy, state) == [
        "+ group h",
        "+ member user:b in group:h",
        "+ rule user:b workspace:x: read",
    ]
    assert difference(policy, state, now_ms=NOW_MS, new_id=str).unnamed == 3
    assert lines(policy, state, prune=True) == [
        "- member user:a in group:g",
        "- rule user:a workspace:x: read",
        "- group g",
        "+ group h",
        "+ member user:b in group:h",
        "+ rule user:b workspace:x: read",
    ]


def test_sections_that_a_policy_does_not_have_stay() -> None:
    everything = read(FILE)
    state = applied(everything, base_state("closed"))
    assert lines(read("version: 1"), state, prune=True) == []
    assert lines(read("version: 1\nfallbacks: {}"), state, prune=True) == ["- fallback agent_topic: read"]
    assert lines(read("version: 1\nlocks: []"), state, prune=True) == ["- lock ag::prod::*", "- lock user:bob: (left)"]


def test_seeds_of_the_base_stay_and_others_go() -> None:
    state = base_state("open")
    assert lines(read("version: 1\nbase: open\nrules: []\nroles: {}\nfallbacks: {}"), state, prune=True) == []
    gone = lines(read("version: 1\nrules: []\nfallbacks: {}"), state, prune=True)
    assert "- fallback agent_workspace: readwrite" in gone
    assert not any("administrators" in one for one in gone)
    assert any(
        "role:administrators" in one for one in lines(read("version: 1\nbase: none\nrules: []"), state, prune=True)
    )


def test_a_group_that_a_rule_names_is_not_dropped() -> None:
    state = applied(read("version: 1\ngroups: {g: ['user:a'], h: ['user:a']}"), base_state("closed"))
    policy = read("version: 1\ngroups: {}\nrules: ['group:g read workspace:x']")
    assert lines(policy, state, prune=True) == [
        "- member user:a in group:h",
        "- group h",
        "+ rule group:g workspace:x: read",
    ]


def test_a_change_says_what_it_was() -> None:
    state = applied(
        read("version: 1\nrules: ['user:a read workspace:x']\nfallbacks: {agent_topic: read}"), AccessState()
    )
    policy = read(
        "version: 1\nrules: [{principal: 'user:a', level: manage, resource: 'workspace:x', expires: 2030-01-01, reason: y}]\n"
        "fallbacks: {agent_topic: none}"
    )
    assert lines(policy, state) == [
        "~ rule user:a workspace:x: read -> manage until 2030-01-01T00:00:00Z (y)",
        "~ fallback agent_topic: read -> none",
    ]


def test_a_changed_rule_keeps_its_id_and_an_expired_one_counts_as_absent() -> None:
    state = applied(read("version: 1\nrules: ['user:a read workspace:x']"), AccessState())
    after = applied(read("version: 1\nrules: ['user:a manage workspace:x']"), state)
    assert [one.rule_id for one in after.rules.values()] == [one.rule_id for one in state.rules.values()]
    old = read("version: 1\nrules: [{principal: 'user:a', level: read, resource: 'workspace:x', expires: 2020-01-01}]")
    assert lines(old, AccessState()) == []
    assert lines(old, state, prune=True) == ["- rule user:a workspace:x: read"]


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ("{a: ['group:b'], b: []}", []),
        ("{a: ['group:b']}", ["group not found: 'b'"]),
        ("{a: ['group:a']}", ["membership would create a cycle: 'group:a' would be in itself"]),
        (
            "{a: ['group:b'], b: ['group:c'], c: ['group:a']}",
            ["membership would create a cycle: 'group:b' would be in itself"],
        ),
        ("{" + ", ".join(f"g{n}: ['group:g{n + 1}']" for n in range(7)) + ", g7: []}", []),
        (
            "{" + ", ".join(f"g{n}: ['group:g{n + 1}']" for n in range(8)) + ", g8: []}",
            ["groups and roles would nest 9 deep; at most 8 are allowed"],
        ),
    ],
)
def test_groups_of_the_result_are_checked(groups: str, expected: list[str]) -> None:
    found = state_problems(applied(read(f"version: 1\ngroups: {groups}"), AccessState()))
    if expected and "cycle" in expected[0]:
        assert len(found) == 1
        assert "cycle" in found[0]
    else:
        assert found == expected


# -- by hypothesis ---------------------------------------------------------------------------------

NAMES = st.sampled_from(["a", "b", "c"])
LEVELS = st.sampled_from(AccessLevel)
TIMES = st.sampled_from([0, 0, NOW_MS - 1, LATER_MS])
PRINCIPALS = st.sampled_from(
    [("user", "a"), ("user", "b"), ("user", "*"), ("group", "a"), ("group", "b"), ("role", "a"), ("agent", "ag::a::x::1"),
     ("agent", "ag::a::*"), ("wildcard", "_any_agent")]
)  # fmt: skip
RESOURCES = st.sampled_from([("workspace", "a"), ("workspace", "b"), ("workspace", "*"), ("topic", "a*")])
CATEGORIES = st.sampled_from(["user_workspace", "agent_workspace", "agent_topic"])


@st.composite
def policies(draw: Any) -> Policy:
    groups = draw(
        st.lists(st.builds(PolicyGroup, st.sampled_from([GROUP, ROLE]), NAMES, NAMES), unique_by=lambda g: g[:2])
    )
    members = draw(
        st.lists(
            st.builds(PolicyMember, st.just("group"), NAMES, st.just("user"), NAMES, TIMES),
            unique_by=lambda one: one[:4],
        )
    )
    named = {(one.kind, one.name) for one in groups}
    rules = draw(
        st.lists(
            st.builds(
                lambda p, r, level, until: PolicyRule(*p, *r, level, until), PRINCIPALS, RESOURCES, LEVELS, TIMES
            ),
            unique_by=lambda one: one.key,
        )
    )
    fallbacks = draw(st.dictionaries(CATEGORIES, LEVELS))
    locks = draw(
        st.lists(
            st.builds(PolicyLock, st.sampled_from(["user:a", "ag::*"]), NAMES, TIMES), unique_by=lambda one: one[0]
        )
    )
    return Policy(
        draw(st.sampled_from(["open", "closed", "none"])),
        SECTIONS,
        tuple(groups),
        tuple(one for one in members if one[:2] in named),
        tuple(rules),
        tuple(fallbacks.items()),
        tuple(locks),
    )


@st.composite
def states(draw: Any) -> AccessState:
    state = draw(st.sampled_from([AccessState(), base_state("open"), base_state("closed")]))
    if draw(st.booleans()):
        state = applied(draw(policies()), state)
    odd_locks = draw(
        st.lists(st.builds(Lock, NAMES, st.sampled_from(["user:a", "sv::*"])), unique_by=lambda one: one.lock_id)
    )
    return AccessState(state.rules, state.groups, state.members, state.fallbacks, (*state.locks, *odd_locks))


QUESTIONS = [
    (principal, resource, level)
    for principal in [("user", "a"), ("user", "b"), ("agent", "ag::a::x::1"), ("agent", "ag::b::x::1"), ("group", "a")]
    for resource in [("workspace", "a"), ("workspace", "b"), ("topic", "ab"), ("admin", "admin/acl")]
    for level in [AccessLevel.READ, AccessLevel.MANAGE]
]


@settings(max_examples=60, deadline=None)
@given(policies(), states())
def test_what_is_applied_twice_changes_nothing(policy: Policy, state: AccessState) -> None:
    for prune in (True, False):
        after = applied(policy, state, prune=prune)
        assert lines(policy, after, prune=prune) == []


@settings(max_examples=60, deadline=None)
@given(policies())
def test_a_new_gateway_decides_like_the_file(policy: Policy) -> None:
    theirs = applied(policy, base_state(policy.base), prune=True).index()
    ours = rehearsed(policy, now_ms=NOW_MS).index()
    for principal, resource, level in QUESTIONS:
        for at_ms in (NOW_MS, LATER_MS + 1):
            found = judge(theirs, principal, resource, level, at_ms)[0]
            assert found is judge(ours, principal, resource, level, at_ms)[0]


@settings(max_examples=60, deadline=None)
@given(policies(), states())
def test_pruned_sections_hold_what_the_policy_and_its_base_name(policy: Policy, state: AccessState) -> None:
    after = applied(policy, state, prune=True)
    base = base_state(policy.base)
    named = {one.key for one in policy.rules if not one.expires_ms or one.expires_ms > NOW_MS}
    assert named <= after.rules.keys() <= named | base.rules.keys()
    assert after.fallbacks.keys() <= dict(policy.fallbacks).keys() | base.fallbacks.keys()
    assert {one.pattern for one in after.locks} <= {one.pattern for one in policy.locks}


@settings(max_examples=60, deadline=None)
@given(states())
def test_a_state_as_a_policy_changes_nothing(state: AccessState) -> None:
    locks: dict[str, tuple[str, str, int]] = {}
    for one in state.locks:
        if one.is_live(NOW_MS):
            locks.setdefault(one.pattern, (one.pattern, one.reason, one.expires_ms))
    policy = Policy(
        "none",
        SECTIONS,
        tuple(PolicyGroup(*key, text) for key, text in state.groups.items()),
        tuple(PolicyMember(*key, one.expires_ms) for key, one in state.members.items()),
        tuple(
            PolicyRule(*key, one.level, one.expires_ms, one.reason)
            for key, one in state.rules.items()
            if one.is_live(NOW_MS)
        ),
        tuple(state.fallbacks.items()),
        tuple(PolicyLock(*one) for one in locks.values()),
    )
    assert lines(policy, state) == []


def test_records_are_what_they_seem() -> None:
    rule = Rule("r", "user", "a", "workspace", "x", AccessLevel.READ)
    member = Member("group", "g", "user", "a")
    state = AccessState.of([rule], {("group", "g"): ""}, [member], {}, [])
    assert state.index().decide("user", "a", "workspace", "x", NOW_MS).level is AccessLevel.READ
