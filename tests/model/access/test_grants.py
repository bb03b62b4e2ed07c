"""Grants: scopes, lineages, audiences, renewals, and any order of events."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from aether_trio.model.access.grants import (
    MAX_COMPARISONS,
    MAX_DEPTH,
    SUBJECT_WORKSPACES,
    Audience,
    AuthorityGrant,
    GrantError,
    GrantProblem,
    GrantScope,
    GrantTerms,
    GrantUse,
    Lineage,
    PrincipalKey,
    ResourcePatterns,
    derive,
    ends_ms,
    needed_sessions,
    new_root,
    renewed,
    state_problem,
    use_problem,
)
from aether_trio.model.access.levels import AccessLevel
from aether_trio.model.identity import Identity

ANN = PrincipalKey("user", "ann")
PLANNER = PrincipalKey("agent", "ag::prod::planner::1")
HELPER = PrincipalKey("agent", "ag::prod::helper::1")
NOW = 1_700_000_000_000
HOUR = 3_600_000


def terms(scope: GrantScope | None = None, **changes: Any) -> GrantTerms:
    made = GrantTerms(
        scope or GrantScope(AccessLevel.MANAGE), Audience("agent", PLANNER.id), NOW + HOUR, NOW + 2 * HOUR
    )
    return replace(made, **changes)


def root(scope: Any = None, **changes: Any) -> AuthorityGrant:
    return new_root(
        "g1", subject=ANN, delegate=PLANNER, issued_by=ANN, terms=terms(scope, **{"hops": 3, **changes}), now_ms=NOW
    )


def child(parent: Lineage, scope: Any = None, **changes: Any) -> AuthorityGrant:
    made = terms(scope or parent[-1].terms.scope, **changes)
    return derive(parent, "g2", delegate=HELPER, issued_by=PLANNER, terms=made, now_ms=NOW)


def planner(**changes: object) -> GrantUse:
    return replace_use(GrantUse(PLANNER, "s1", "", ANN), **changes)


def replace_use(use: GrantUse, **changes: object) -> GrantUse:
    return use._replace(**changes)  # type: ignore[arg-type]


def always(session_id: str) -> bool:
    return True


# -- scopes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scope", "asked", "problem"),
    [
        (GrantScope(AccessLevel.READ), (AccessLevel.READWRITE, "op", "prod", "kv_key", "a"), GrantProblem.LEVEL),
        (GrantScope(AccessLevel.READ), (AccessLevel.READ, "op", "prod", "kv_key", "a"), None),
        (
            GrantScope(AccessLevel.READ, operations=("kv_*",)),
            (AccessLevel.READ, "send_message", "", "", ""),
            GrantProblem.OPERATION,
        ),
        (
            GrantScope(AccessLevel.READ, ("prod", "team-*")),
            (AccessLevel.READ, "op", "test", "", ""),
            GrantProblem.WORKSPACE,
        ),
        (GrantScope(AccessLevel.READ, ("prod", "team-*")), (AccessLevel.READ, "op", "team-a", "", ""), None),
        (GrantScope(AccessLevel.READ, ("prod",)), (AccessLevel.READ, "op", "", "", ""), None),
        (GrantScope(AccessLevel.READ, (SUBJECT_WORKSPACES,)), (AccessLevel.READ, "op", "any/where", "", ""), None),
        (
            GrantScope(AccessLevel.READ, resources=(ResourcePatterns("kv_key", ("app/*",)),)),
            (AccessLevel.READ, "op", "", "kv_key", "app/x/y"),
            GrantProblem.RESOURCE,
        ),
        (
            GrantScope(AccessLevel.READ, resources=(ResourcePatterns("kv_key", ("app/*",)),)),
            (AccessLevel.READ, "op", "", "workspace", "prod"),
            GrantProblem.RESOURCE,
        ),
        (
            GrantScope(AccessLevel.READ, resources=(ResourcePatterns("kv_key"),)),
            (AccessLevel.READ, "op", "", "kv_key", "app/x/y"),
            None,
        ),
    ],
)
def test_a_scope_limits_level_operation_workspace_and_resource(
    scope: GrantScope, asked: tuple[AccessLevel, str, str, str, str], problem: GrantProblem | None
) -> None:
    assert scope.problem(*asked) is problem


@pytest.mark.parametrize(
    ("outer", "inner", "fits"),
    [
        (GrantScope(AccessLevel.READ), GrantScope(AccessLevel.MANAGE), False),
        (GrantScope(AccessLevel.MANAGE), GrantScope(AccessLevel.READ, ("prod",)), True),
        (GrantScope(AccessLevel.READ, ("prod",)), GrantScope(AccessLevel.READ), False),
        (GrantScope(AccessLevel.READ, ("prod",)), GrantScope(AccessLevel.READ, (SUBJECT_WORKSPACES,)), False),
        (GrantScope(AccessLevel.READ, (SUBJECT_WORKSPACES,)), GrantScope(AccessLevel.READ), True),
        (GrantScope(AccessLevel.READ, ("team-*",)), GrantScope(AccessLevel.READ, ("team-a", "team-b*")), True),
        (GrantScope(AccessLevel.READ, ("team-*",)), GrantScope(AccessLevel.READ, ("team-a", "prod")), False),
        (GrantScope(AccessLevel.READ, ("team-?",)), GrantScope(AccessLevel.READ, ("team-*",)), False),
        (
            GrantScope(AccessLevel.READ, operations=("kv_*",)),
            GrantScope(AccessLevel.READ, operations=("kv_get", "kv_put")),
            True,
        ),
        (
            GrantScope(AccessLevel.READ, resources=(ResourcePatterns("kv_key", ("app/*",)),)),
            GrantScope(AccessLevel.READ, resources=(ResourcePatterns("kv_key"),)),
            False,
        ),
        (
            GrantScope(AccessLevel.READ, resources=(ResourcePatterns("kv_key"),)),
            GrantScope(AccessLevel.READ, resources=(ResourcePatterns("kv_key", ("x",)),)),
            True,
        ),
        (
            GrantScope(AccessLevel.READ, resources=(ResourcePatterns("kv_key"),)),
            GrantScope(AccessLevel.READ, resources=(ResourcePatterns("workspace", ("x",)),)),
            False,
        ),
    ],
)
def test_a_scope_contains_another_by_containment_of_patterns(outer: GrantScope, inner: GrantScope, fits: bool) -> None:
    assert outer.contains(inner) is fits


@pytest.mark.parametrize(
    ("scope", "text"),
    [
        (GrantScope(AccessLevel.NONE), "max_access_level"),
        (GrantScope(AccessLevel.READ, ("[",)), "bad pattern"),
        (GrantScope(AccessLevel.READ, ("x" * 257,)), "bytes"),
        (GrantScope(AccessLevel.READ, ("",)), "bytes"),
        (GrantScope(AccessLevel.READ, tuple(map(str, range(65)))), "at most 64"),
        (GrantScope(AccessLevel.READ, ("*" * 17,)), "bad pattern"),
        (GrantScope(AccessLevel.READ, resources=(ResourcePatterns("a"), ResourcePatterns("a"))), "once"),
    ],
)
def test_a_malformed_scope_is_refused(scope: GrantScope, text: str) -> None:
    with pytest.raises(GrantError, match=text):
        scope.check()


def test_too_many_comparisons_count_as_wider() -> None:
    many = tuple(f"a{number}*" for number in range(MAX_COMPARISONS + 1))
    outer = GrantScope(AccessLevel.READ, (*(f"b{number}*" for number in range(30)), "*"))
    assert not outer.contains(GrantScope(AccessLevel.READ, many))
    assert outer.contains(GrantScope(AccessLevel.READ, outer.workspaces))


@pytest.mark.parametrize(
    ("wanted", "given_", "left"),
    [
        ((), (), ()),
        ((), ("prod",), ("prod",)),
        (("prod",), (), ("prod",)),
        (("team-*",), ("team-a", "prod"), ("team-a",)),
        (("team-a", "team-b"), ("team-*",), ("team-a", "team-b")),
        (("prod",), ("test",), None),
        (("a*",), ("*b",), None),
        ((SUBJECT_WORKSPACES,), ("prod",), ("prod",)),
        (("prod",), (SUBJECT_WORKSPACES,), ("prod",)),
    ],
)
def test_narrowing_leaves_what_is_in_both(
    wanted: tuple[str, ...], given_: tuple[str, ...], left: tuple[str, ...] | None
) -> None:
    def narrow() -> GrantScope:
        return GrantScope(AccessLevel.MANAGE, wanted).narrowed(GrantScope(AccessLevel.READ, given_))

    if left is None:
        with pytest.raises(GrantError, match="nothing of the requested workspace_scope is left"):
            narrow()
    else:
        assert narrow() == GrantScope(AccessLevel.READ, left)


def test_narrowing_resources_narrows_each_type() -> None:
    wanted = GrantScope(
        AccessLevel.READ, resources=(ResourcePatterns("kv_key", ("app/*",)), ResourcePatterns("workspace"))
    )
    given_ = GrantScope(
        AccessLevel.NONE, resources=(ResourcePatterns("kv_key", ("app/x",)), ResourcePatterns("admin", ("admin/acl",)))
    )
    assert wanted.narrowed(given_) == GrantScope(AccessLevel.READ, resources=(ResourcePatterns("kv_key", ("app/x",)),))
    with pytest.raises(GrantError, match="resource_scope"):
        wanted.narrowed(replace(given_, resources=given_.resources[1:]))


# -- making and using ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"expires_ms": 0}, GrantProblem.INVALID),
        ({"renewable_ms": NOW + 1}, GrantProblem.INVALID),
        ({"expires_ms": NOW}, GrantProblem.EXPIRED),
        ({"hops": -1}, GrantProblem.INVALID),
        ({"hops": MAX_DEPTH}, GrantProblem.INVALID),
        ({"audience": Audience("planet", "x")}, GrantProblem.INVALID),
        ({"audience": Audience("agent", "")}, GrantProblem.INVALID),
        ({"renewable_ms": 2**60}, GrantProblem.INVALID),
    ],
)
def test_a_grant_with_bad_terms_is_not_made(changes: dict[str, object], problem: GrantProblem) -> None:
    with pytest.raises(GrantError) as raised:
        root(**changes)
    assert raised.value.problem is problem


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"scope": GrantScope(AccessLevel.ADMIN)}, GrantProblem.BROADER),
        ({"expires_ms": NOW + HOUR + 1}, GrantProblem.BROADER),
        ({"renewable_ms": NOW + 2 * HOUR + 1}, GrantProblem.BROADER),
        ({"hops": 3}, GrantProblem.CANNOT_DELEGATE),
    ],
)
def test_a_child_is_never_more_than_its_parent(changes: dict[str, object], problem: GrantProblem) -> None:
    with pytest.raises(GrantError) as raised:
        child((root(),), **changes)
    assert raised.value.problem is problem


def test_a_child_has_its_parents_times_by_default_and_ends_with_its_audience_if_the_parent_does() -> None:
    parent = root(while_active=True)
    made = child((parent,), expires_ms=0, renewable_ms=0)
    assert (made.terms.expires_ms, made.terms.renewable_ms) == (NOW + HOUR, NOW + 2 * HOUR)
    assert made.terms.while_active
    assert (made.subject, made.root_id, made.parent_id, made.depth) == (ANN, "g1", "g1", 2)


def test_a_grant_without_hops_and_one_at_the_greatest_depth_have_no_children() -> None:
    with pytest.raises(GrantError, match="cannot be delegated"):
        child((root(hops=0),))
    deep = replace(root(), depth=MAX_DEPTH)
    with pytest.raises(GrantError, match="cannot be delegated"):
        child((deep,))


def test_no_child_is_derived_from_a_revoked_or_expired_lineage() -> None:
    parent = root()
    middle = child((parent,), hops=2)
    with pytest.raises(GrantError, match="revoked"):
        child((replace(parent, revoked_ms=NOW), middle))
    with pytest.raises(GrantError, match="expired"):
        derive((parent, middle), "g3", delegate=ANN, issued_by=HELPER, terms=terms(), now_ms=parent.terms.expires_ms)


def test_a_revocation_of_an_ancestor_ends_all_below_it() -> None:
    parent = root()
    made = child((parent,))
    assert state_problem((parent, made), NOW) is None
    assert state_problem((replace(parent, revoked_ms=NOW), made), NOW) is GrantProblem.REVOKED
    assert state_problem((made,), NOW) is None


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({}, None),
        ({"actor": HELPER}, GrantProblem.DELEGATE),
        ({"subject": PrincipalKey("user", "bob")}, GrantProblem.SUBJECT),
    ],
)
def test_a_grant_is_used_by_its_delegate_for_its_subject(
    changes: dict[str, object], problem: GrantProblem | None
) -> None:
    assert use_problem((root(),), planner(**changes), NOW, always) is problem


@pytest.mark.parametrize(
    ("audience", "while_active", "use", "alive", "fits"),
    [
        (Audience("session", "s1"), False, {}, (), True),
        (Audience("session", "s2"), False, {}, ("s2",), False),
        (Audience("session", "s2"), True, {}, ("s2",), True),
        (Audience("session", "s1"), True, {}, (), False),
        (Audience("task", "t1"), False, {"task_id": "t1"}, (), True),
        (Audience("task", "t1"), False, {"task_id": "t2"}, (), False),
        (Audience("agent", PLANNER.id), False, {}, (), True),
        (Audience("service", PLANNER.id), False, {}, (), False),
        (Audience("agent", HELPER.id), False, {}, (), False),
    ],
)
def test_a_grant_is_used_by_its_audience(
    audience: Audience, while_active: bool, use: dict[str, object], alive: tuple[str, ...], fits: bool
) -> None:
    grant = root()
    grant = replace(grant, terms=replace(grant.terms, audience=audience, while_active=while_active))
    expected = None if fits else GrantProblem.AUDIENCE
    assert use_problem((grant,), planner(**use), NOW, alive.__contains__) is expected


def test_a_child_ends_with_the_session_that_its_parent_needs() -> None:
    parent = root()
    parent = replace(parent, terms=replace(parent.terms, audience=Audience("session", "s9"), while_active=True))
    lineage = (parent, child((parent,), audience=Audience("agent", HELPER.id)))
    use = GrantUse(HELPER, "s1", "", ANN)
    assert needed_sessions(lineage) == ["s9"]
    assert use_problem(lineage, use, NOW, {"s9"}.__contains__) is None
    assert use_problem(lineage, use, NOW, set[str]().__contains__) is GrantProblem.AUDIENCE


def test_all_windows_of_a_user_are_one_principal() -> None:
    windows = [PrincipalKey.of(Identity.user("ann", name)) for name in ("w1", "w2")]
    assert windows == [ANN, ANN]
    assert str(ANN) == "user:ann"


def test_a_renewal_is_cut_at_the_end_of_the_window_and_of_all_above() -> None:
    parent = root()
    made = child((parent,), expires_ms=NOW + 1000)
    assert renewed((parent,), NOW, extend_ms=10 * HOUR).terms.expires_ms == NOW + 2 * HOUR
    assert renewed((parent, made), NOW, extend_ms=10 * HOUR).terms.expires_ms == NOW + HOUR
    assert renewed((parent, made), NOW, extend_ms=1000).terms.expires_ms == NOW + 2000
    assert renewed((parent, made), NOW, expires_ms=NOW + 3000).terms.expires_ms == NOW + 3000
    assert renewed((parent, made), NOW, expires_ms=NOW + 3000).renewed_ms == NOW


@pytest.mark.parametrize(
    "how", [{}, {"extend_ms": -1}, {"expires_ms": NOW + 3 * HOUR}, {"expires_ms": NOW + 1}], ids=str
)
def test_a_renewal_beyond_the_window_or_backwards_is_refused(how: dict[str, int]) -> None:
    with pytest.raises(GrantError) as raised:
        renewed((root(),), NOW, **how)
    assert raised.value.problem is GrantProblem.CANNOT_RENEW


def test_what_has_ended_is_not_renewed() -> None:
    with pytest.raises(GrantError, match="expired"):
        renewed((root(),), NOW + HOUR, extend_ms=1000)
    with pytest.raises(GrantError, match="revoked"):
        renewed((replace(root(), revoked_ms=NOW),), NOW, extend_ms=1000)


# -- any order of events ---------------------------------------------------------------------------

texts = st.sampled_from(["prod", "prod-1", "test", "prod/x", "a"])
patterns = st.lists(
    st.sampled_from(["*", "prod*", "prod", "prod-?", "*-1", "[pt]*", "prod/*", "test", r"\a"]), max_size=3
).map(lambda found: tuple(dict.fromkeys(found)))
scopes = st.builds(
    GrantScope,
    st.sampled_from([AccessLevel.READ, AccessLevel.READWRITE, AccessLevel.MANAGE]),
    st.one_of(patterns, st.just((SUBJECT_WORKSPACES,))),
    st.dictionaries(st.sampled_from(["kv_key", "topic"]), patterns, max_size=2).map(
        lambda found: tuple(ResourcePatterns(*one) for one in found.items())
    ),
    patterns,
)
questions = st.tuples(
    st.sampled_from(list(AccessLevel)),
    texts,
    st.one_of(st.just(""), texts),
    st.sampled_from(["kv_key", "topic"]),
    texts,
)


@given(scopes, scopes, questions)
@settings(max_examples=400)
def test_what_a_contained_or_narrowed_scope_permits_the_wider_one_permits(
    outer: GrantScope, inner: GrantScope, asked: tuple[AccessLevel, str, str, str, str]
) -> None:
    if outer.contains(inner) and inner.problem(*asked) is None:
        assert outer.problem(*asked) is None
    try:
        both = outer.narrowed(inner)
    except GrantError:
        return
    if both.problem(*asked) is None:
        assert outer.problem(*asked) is None
        assert inner.problem(*asked) is None


class Grants(RuleBasedStateMachine):
    """Exchanges, derivations, renewals, revocations and time, in any order."""

    made = Bundle("made")

    def __init__(self) -> None:
        super().__init__()
        self.now_ms = NOW
        self.rows: dict[str, AuthorityGrant] = {}
        self.asked: list[tuple[AccessLevel, str, str, str, str]] = []

    def lineage(self, grant_id: str) -> Lineage:
        found: list[AuthorityGrant] = []
        while grant_id:
            found.insert(0, self.rows[grant_id])
            grant_id = self.rows[grant_id].parent_id
        return tuple(found)

    def keep(self, grant: AuthorityGrant) -> str:
        self.rows[grant.grant_id] = grant
        return grant.grant_id

    @rule(target=made, scope=scopes, lasts=st.integers(1, 5), more=st.integers(0, 5), hops=st.integers(0, 7))
    def exchange(self, scope: GrantScope, lasts: int, more: int, hops: int) -> str:
        end = self.now_ms + lasts * HOUR
        given_ = GrantTerms(scope, Audience("agent", PLANNER.id), end, end + more * HOUR, hops)
        name = f"g{len(self.rows)}"
        return self.keep(new_root(name, subject=ANN, delegate=PLANNER, issued_by=ANN, terms=given_, now_ms=self.now_ms))

    @rule(
        target=made,
        above=made,
        scope=st.one_of(st.none(), scopes),
        lasts=st.integers(0, 5),
        more=st.integers(0, 5),
        hops=st.integers(0, 7),
    )
    def derive(self, above: str, scope: GrantScope | None, lasts: int, more: int, hops: int) -> object:
        parent = self.lineage(above)
        end = self.now_ms + lasts * HOUR if lasts else 0
        until = end + more * HOUR if end else 0
        scope = scope or parent[-1].terms.scope
        given_ = GrantTerms(
            scope, Audience("agent", HELPER.id), end, until, min(hops, max(parent[-1].terms.hops - 1, 0))
        )
        name = f"g{len(self.rows)}"
        try:
            made = derive(parent, name, delegate=HELPER, issued_by=PLANNER, terms=given_, now_ms=self.now_ms)
        except GrantError:
            return multiple()
        assert state_problem(parent, self.now_ms) is None
        return self.keep(made)

    @rule(grant=made, extend=st.integers(0, 4), absolute=st.integers(0, 9))
    def renew(self, grant: str, extend: int, absolute: int) -> None:
        before = self.lineage(grant)
        moment = self.now_ms + absolute * HOUR if absolute else 0
        try:
            after = renewed(before, self.now_ms, expires_ms=moment, extend_ms=extend * HOUR)
        except GrantError:
            return
        assert state_problem(before, self.now_ms) is None
        self.rows[grant] = after

    @rule(grant=consumes(made))
    def revoke(self, grant: str) -> None:
        self.rows[grant] = replace(self.rows[grant], revoked_ms=self.now_ms)

    @rule(hours=st.integers(1, 3))
    def pass_time(self, hours: int) -> None:
        self.now_ms += hours * HOUR

    @rule(asked=questions)
    def ask(self, asked: tuple[AccessLevel, str, str, str, str]) -> None:
        self.asked.append(asked)

    @invariant()
    def no_grant_permits_more_or_lives_longer_than_any_above_it(self) -> None:
        for grant_id, grant in self.rows.items():
            lineage = self.lineage(grant_id)
            assert len(lineage) == grant.depth <= MAX_DEPTH
            valid = state_problem(lineage, self.now_ms) is None
            for above in lineage[:-1]:
                assert above.terms.scope.contains(grant.terms.scope)
                assert above.terms.expires_ms >= grant.terms.expires_ms
                assert above.terms.hops > grant.terms.hops
                assert (above.subject, above.root_id) == (grant.subject, grant.root_id)
                assert not (valid and (above.revoked_ms or above.terms.expires_ms <= self.now_ms))
                for asked in self.asked[-3:]:
                    assert grant.terms.scope.problem(*asked) or not above.terms.scope.problem(*asked)
            assert not valid or ends_ms(lineage) > self.now_ms


TestGrants = Grants.TestCase
TestGrants.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
