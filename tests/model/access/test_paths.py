"""The ways to a level: each kind of step, the least of them, and an attacker."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aether_trio.model.access import AccessLevel, paths
from aether_trio.model.access.ladder import AccessIndex
from aether_trio.model.access.paths import ACL, EXCHANGE, MINT_USERS, TOKENS, PathStep, StepKind, paths_to
from aether_trio.model.access.rules import Lock, Member, Rule
from tests.model.access.naive import NaiveAccess, Question
from tests.model.access.test_ladder import index, member, rule

NONE, READ, READWRITE, MANAGE, ADMIN, SUPERADMIN = AccessLevel
BOB = "user", "bob"
OBJECT = {one: ":".join(one) for one in (ACL, TOKENS, MINT_USERS, EXCHANGE)}


def ways(*records: Rule | Member | Lock, **options: Any) -> list[list[str]]:
    fallbacks = options.pop("fallbacks", {})
    found = paths_to(index(*records, **fallbacks), BOB, now_ms=options.pop("now_ms", 0), **options)
    assert found.complete
    return [[str(step) for step in path] for path in found.paths]


def test_no_way() -> None:
    assert ways() == []
    assert ways(rule("user:bob", OBJECT[ACL], MANAGE)) == []
    assert ways(rule("user:bob", OBJECT[ACL], ADMIN, expires_ms=10), now_ms=10) == []


def test_a_rule_for_the_principal() -> None:
    assert ways(rule("user:bob", OBJECT[ACL], ADMIN, rule_id="1")) == [
        ["user:bob has ADMIN on admin:admin/acl (rule 1)"],
    ]


def test_groups_in_groups_by_each_chain() -> None:
    records = [
        member("user:bob", "group:a"),
        member("user:bob", "group:b"),
        member("group:a", "role:admin"),
        member("group:b", "role:admin"),
        member("group:b", "group:c"),
        rule("role:admin", "admin:admin/*", ADMIN, rule_id="1"),
    ]
    assert ways(*records) == [
        ["user:bob is in group:a", "group:a is in role:admin", "role:admin has ADMIN on admin:admin/* (rule 1)"],
        ["user:bob is in group:b", "group:b is in role:admin", "role:admin has ADMIN on admin:admin/* (rule 1)"],
    ]


def test_all_rules_of_the_tier_that_decides() -> None:
    records = [
        rule("user:bob", OBJECT[ACL], SUPERADMIN, rule_id="1"),
        rule("group:a", OBJECT[ACL], ADMIN, rule_id="2"),
        rule("group:b", OBJECT[ACL], MANAGE, rule_id="3"),
        rule("user:bob", "admin:*", ADMIN, rule_id="4"),
        member("user:bob", "group:a"),
        member("user:bob", "group:b"),
    ]
    assert [path[-1] for path in ways(*records)] == [
        "user:bob has SUPERADMIN on admin:admin/acl (rule 1)",
        "group:a has ADMIN on admin:admin/acl (rule 2)",
    ]


def test_wildcards_and_fallbacks() -> None:
    assert ways(rule("wildcard:_any_authenticated_user", "admin:*", ADMIN, rule_id="1")) == [
        ["wildcard:_any_authenticated_user has ADMIN on admin:* (rule 1)"],
    ]
    assert ways(fallbacks={"user_admin": ADMIN}) == [["user:bob has ADMIN on user_admin (fallback)"]]


def test_a_token_of_another_principal() -> None:
    records = [
        rule("user:bob", OBJECT[TOKENS], ADMIN, rule_id="1"),
        rule("agent:ag::ops::root::1", OBJECT[ACL], ADMIN, rule_id="2"),
    ]
    way = [
        "user:bob has ADMIN on admin:admin/tokens (rule 1)",
        "user:bob makes a token of agent:ag::ops::root::1",
        "agent:ag::ops::root::1 has ADMIN on admin:admin/acl (rule 2)",
    ]
    assert ways(*records) == [way]
    assert ways(*records, reaches=lambda principal_type, principal_id: "::prod::" in principal_id) == []


def test_a_name_that_a_pattern_stands_for_is_made_up() -> None:
    records = [
        rule("user:bob", OBJECT[TOKENS], ADMIN, rule_id="1"),
        rule("agent:ag::ops::*", OBJECT[ACL], ADMIN, rule_id="2"),
    ]
    assert ways(*records)[0][1:] == [
        "user:bob makes a token of agent:ag::ops::x",
        "agent:ag::ops::x has ADMIN on admin:admin/acl (rule 2)",
    ]
    records[1] = rule("wildcard:_any_agent", OBJECT[ACL], ADMIN, rule_id="2")
    assert ways(*records)[0][1] == "user:bob makes a token of agent:_any_agent"


PROD: dict[str, Any] = {"resource": ("workspace", "prod"), "level": ADMIN}


def test_a_token_of_a_user_needs_one_more_power() -> None:
    records = [
        rule("agent:ag::ops::root::1", OBJECT[TOKENS], ADMIN, rule_id="1"),
        rule("user:ana", "workspace:prod", ADMIN, rule_id="2"),
        rule("user:bob", OBJECT[TOKENS], ADMIN, rule_id="3"),
    ]
    agent = "agent", "ag::ops::root::1"
    assert paths_to(index(*records), agent, now_ms=0, **PROD).paths == ()
    records.append(rule("agent:ag::ops::root::1", OBJECT[MINT_USERS], MANAGE, rule_id="4"))
    assert [str(step) for step in paths_to(index(*records), agent, now_ms=0, **PROD).paths[0]] == [
        "agent:ag::ops::root::1 has ADMIN on admin:admin/tokens (rule 1)",
        "agent:ag::ops::root::1 has MANAGE on capability:capability/mint_user_tokens (rule 4)",
        "agent:ag::ops::root::1 makes a token of user:ana",
        "user:ana has ADMIN on workspace:prod (rule 2)",
    ]


def test_a_user_with_more_administration_gets_no_token() -> None:
    records = [
        rule("user:bob", OBJECT[TOKENS], ADMIN),
        rule("user:bob", OBJECT[MINT_USERS], MANAGE),
        rule("user:ana", "workspace:prod", ADMIN),
    ]
    assert len(ways(*records, **PROD)) == 1
    assert ways(*records, rule("user:ana", "admin:admin/audit", READ), **PROD) == []
    assert ways(*records, rule("user:ana", "capability:*", READ), **PROD) == []
    assert len(ways(*records, rule("user:ana", OBJECT[TOKENS], ADMIN), **PROD)) == 1
    assert ways(*records, rule("user:ana", OBJECT[ACL], ADMIN)) == []


def test_all_of_administration_makes_tokens_of_all() -> None:
    service = rule("service:sv::vault::1", "workspace:prod", ADMIN, rule_id="2")
    assert ways(rule("user:bob", OBJECT[TOKENS], ADMIN), service, **PROD) == []
    assert ways(rule("user:bob", "admin:admin/*", ADMIN, rule_id="1"), service, **PROD) == [
        [
            "user:bob has ADMIN on admin:admin/* (rule 1)",
            "user:bob makes a token of service:sv::vault::1",
            "service:sv::vault::1 has ADMIN on workspace:prod (rule 2)",
        ]
    ]
    user = rule("user:ana", "workspace:prod", ADMIN, rule_id="3")
    assert len(ways(rule("user:bob", "admin:*", ADMIN), user, **PROD)) == 1


@pytest.mark.parametrize(
    ("form", "workspaces", "found"),
    [
        ("", [], True),
        ("/_no_workspace/ana", [], True),
        ("/_no_workspace/eve", [], False),
        ("/prod/ana", [], True),
        ("/*/ana", [], True),
        ("/pr*/ana", [], False),
        ("/pr*/ana", ["prod"], True),
        ("/prod/a*", [], True),
        ("/*", [], False),
        ("/[a/]na/x", [], False),
    ],
)
@pytest.mark.parametrize("holder", ["user:bob", "user:b*", "wildcard:_any_authenticated_user"])
def test_acting_for_a_user(holder: str, form: str, workspaces: list[str], found: bool) -> None:
    found = found and not (holder.startswith("wildcard") and "*" in form)  # those count nowhere
    records = [
        rule(holder, OBJECT[EXCHANGE] + form, MANAGE, rule_id="1"),
        rule("user:ana", OBJECT[ACL], ADMIN, rule_id="2"),
        rule("agent:ag::ops::root::1", OBJECT[ACL], ADMIN, rule_id="3"),
    ]
    assert ways(*records, workspaces=workspaces) == (
        [
            [
                f"{holder if '*' not in holder else 'user:bob'} has MANAGE on {OBJECT[EXCHANGE]}{form} (rule 1)",
                "user:bob acts for user:ana",
                "user:ana has ADMIN on admin:admin/acl (rule 2)",
            ]
        ]
        if found
        else []
    )


def test_who_writes_rules_gets_nothing_by_it() -> None:
    writer = rule("user:bob", OBJECT[ACL], SUPERADMIN, rule_id="1")
    assert ways(writer, resource=("workspace", "prod"), level=READ) == []
    assert ways(writer, rule("user:ana", "workspace:prod", READ), resource=("workspace", "prod"), level=READ) == []


def test_a_way_through_several_principals() -> None:
    records = [
        rule("user:bob", OBJECT[EXCHANGE] + "/_no_workspace/ana", MANAGE, rule_id="1"),
        rule("user:ana", OBJECT[TOKENS], ADMIN, rule_id="2"),
        rule("task:tu::ops::vault::1", OBJECT[ACL], ADMIN, rule_id="3"),
    ]
    assert [path[-1] for path in ways(*records)] == ["task:tu::ops::vault::1 has ADMIN on admin:admin/acl (rule 3)"]
    assert len(ways(*records)[0]) == 5


def test_the_longer_way_on_the_same_evidence_is_left_out() -> None:
    records = [
        rule("user:bob", OBJECT[EXCHANGE], MANAGE, rule_id="1"),
        rule("user:ana", OBJECT[EXCHANGE], MANAGE, rule_id="2"),
        rule("user:eve", OBJECT[ACL], ADMIN, rule_id="3"),
    ]
    assert len(ways(*records)) == 1


def test_the_locked_reach_nothing() -> None:
    records = [
        rule("user:bob", OBJECT[EXCHANGE], MANAGE, rule_id="1"),
        rule("user:ana", OBJECT[ACL], ADMIN, rule_id="2"),
    ]
    assert len(ways(*records)) == 1
    assert ways(*records, Lock("1", "us::ana::*")) == []
    assert ways(*records, Lock("1", "user:bob")) == []


def test_the_rule_own() -> None:
    own = rule("wildcard:_own_workspace", "workspace:_own", READWRITE, rule_id="own")
    found = paths_to(index(own), ("agent", "ag::prod::a::b"), ("workspace", "prod"), READWRITE, now_ms=0)
    assert [str(step) for step in found.paths[0]] == [
        "wildcard:_own_workspace has READWRITE on workspace:_own (rule own)"
    ]


def test_what_is_left_out_is_said() -> None:
    records = [rule("user:bob", OBJECT[EXCHANGE], MANAGE, rule_id="1")]
    records += [rule(f"user:u{n:02d}", OBJECT[ACL], ADMIN, rule_id=f"r{n:02d}") for n in range(20)]
    found = paths_to(index(*records), BOB, now_ms=0, most=5)
    assert [path[-1].rule_id for path in found.paths] == ["r00", "r01", "r02", "r03", "r04"]
    assert not found.complete
    assert str(found).count("\n") == 4
    chains = [member("user:bob", f"group:g{n}") for n in range(20)]
    chains += [member(f"group:g{n}", "group:top") for n in range(20)]
    found = paths_to(index(*chains, rule("group:top", OBJECT[ACL], ADMIN)), BOB, now_ms=0)
    assert (len(found.paths), found.complete) == (paths.MOST_CHAINS, False)


def test_principals_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "MOST_TAKEOVERS", 3)
    records = [rule("user:bob", OBJECT[EXCHANGE], MANAGE)]
    records += [rule(f"user:u{n:02d}", OBJECT[ACL], ADMIN, rule_id=f"r{n:02d}") for n in range(20)]
    found = paths_to(index(*records), BOB, now_ms=0)
    assert 0 < len(found.paths) < 20
    assert not found.complete


def test_steps_have_their_evidence() -> None:
    steps = paths_to(
        index(member("user:bob", "group:a"), rule("group:a", OBJECT[ACL], ADMIN, rule_id="1")), BOB, now_ms=0
    ).paths[0]
    assert steps == (
        PathStep(StepKind.MEMBER, "user:bob", "group:a"),
        PathStep(StepKind.RULE, "group:a", OBJECT[ACL], "1", ADMIN),
    )
    assert [step.evidence for step in steps] == ["user:bob in group:a", "1"]


# Against an attacker who tries everything.

SUBJECTS = [
    "user:bob",
    "user:ana",
    "agent:a",
    "group:g",
    "service:s",
    "wildcard:_any_authenticated_user",
    "agent:*",
    "user:a*",
]
OBJECTS = [
    *OBJECT.values(),
    "admin:admin/*",
    OBJECT[EXCHANGE] + "/w/ana",
    OBJECT[EXCHANGE] + "/*/ana",
    OBJECT[EXCHANGE] + "/w/*",
    "workspace:w",
]
RULES = st.builds(
    rule,
    st.sampled_from(SUBJECTS),
    st.sampled_from(OBJECTS),
    st.sampled_from([NONE, MANAGE, ADMIN, SUPERADMIN]),
)
MEMBERSHIPS = st.builds(member, st.sampled_from(SUBJECTS[:4]), st.sampled_from(["group:g", "role:r"])).filter(
    lambda one: one.member != one.container
)


def attack(plain: NaiveAccess, everyone: set[tuple[str, str]], target: tuple[str, str], level: AccessLevel) -> bool:
    """Take over all that one can; return whether one of them reaches the target."""
    mine = {BOB}

    def has(principal: tuple[str, str], resource: tuple[str, str], needed: AccessLevel) -> bool:
        return plain.answer(Question(*principal, *resource), 0).level >= needed

    def administers_all(principal: tuple[str, str]) -> bool:
        return all(has(principal, one, ADMIN) for one in paths.ADMINISTRATION)

    def levels(principal: tuple[str, str]) -> list[AccessLevel]:
        asked = (*paths.ADMINISTRATION, *paths.CAPABILITIES)
        return [plain.answer(Question(*principal, *one), 0).level for one in asked]

    def takes(one: tuple[str, str], other: tuple[str, str]) -> bool:
        """Whether the first may make a token of the other, or act for it."""
        mints = has(one, TOKENS, ADMIN)
        if other[0] != "user":
            return mints and (other[0] in {"agent", "task", one[0]} or administers_all(one))
        narrow = [(EXCHANGE[0], f"{EXCHANGE[1]}/{name}/{other[1]}") for name in ("w", "_no_workspace")]
        if any(has(one, asked, MANAGE) for asked in (EXCHANGE, *narrow)):
            return True
        pairs = zip(levels(other), levels(one), strict=True)
        return (
            mints
            and (administers_all(one) or has(one, MINT_USERS, MANAGE))
            and all(theirs <= mine for theirs, mine in pairs)
        )

    while True:
        more = mine | {other for one, other in product(mine, everyone) if takes(one, other)}
        if more == mine:
            return any(has(one, target, level) for one in mine)
        mine = more


@settings(max_examples=150)
@given(
    st.lists(RULES, max_size=7),
    st.lists(MEMBERSHIPS, max_size=3),
    st.sampled_from([(ACL, ADMIN), (("workspace", "w"), SUPERADMIN), (("workspace", "w"), MANAGE)]),
)
def test_a_way_is_found_where_an_attacker_finds_one(
    made: list[Rule], members: list[Member], goal: tuple[tuple[str, str], AccessLevel]
) -> None:
    access, plain = AccessIndex(), NaiveAccess()
    for one in made:
        access.put_rule(one)
        plain.put_rule(one)
    for each in members:
        access.put_membership(each)
        plain.put_membership(each)
    found = paths_to(access, BOB, *goal, now_ms=0, workspaces=["w"])
    assert bool(found.paths) is attack(plain, paths._principals(access), *goal)
    evidence = [{step.evidence for step in path} - {""} for path in found.paths]
    for one_way, other_way in product(evidence, evidence):
        assert one_way is other_way or not one_way <= other_way
    assert found == paths_to(access, BOB, *goal, now_ms=0, workspaces=["w"])
